"""Pages of the web to text."""
