"""`isthmus data`: preparing, inspecting and importing datasets."""
