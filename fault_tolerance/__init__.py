"""What keeps a run alive: checkpoints, guards, preemption, ledger."""
