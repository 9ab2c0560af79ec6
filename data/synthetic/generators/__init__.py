"""What answers prompts: a server, a checkpoint, or nothing but the task itself."""
