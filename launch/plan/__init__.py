"""`isthmus plan`: the command line of train/planner."""
