"""What keeps a run alive: checkpoints, guards, watchdog, preemption, ledger."""
