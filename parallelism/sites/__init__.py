"""Everything that crosses a link between sites."""
