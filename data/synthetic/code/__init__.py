"""Programs as training data: tasks with frozen tests, translation into other languages, execution in the sandbox."""
