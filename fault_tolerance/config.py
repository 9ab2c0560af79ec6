"""What keeps a run alive, as keys."""

from dataclasses import dataclass

from isthmus.config import key


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When to save, what to keep, where to go on. A run always saves at its end and when it is asked to stop."""

    every_steps: int | str = key("auto", "steps between saves; auto: Daly's interval from what a save costs; 0: never")
    keep: int = key(2, "newest checkpoints that stay")
    keep_every: int = key(0, "steps whose multiples stay for ever (0: none)")
    asynchronous: bool = key(True, "write in a process of its own while training goes on")
    resume: str = key("auto", "auto (newest verified step of the run folder), never, or the path of a checkpoint")
    failure_hours: float = key(6.0, "mean time between failures that auto reckons with")
    deadline_seconds: float = key(1800.0, "limit on one save, all ranks together")
    time_limit_seconds: float | None = key(None, "of a job: save and stop in time to be done")


@dataclass(kw_only=True, slots=True)
class RestartConfig:
    """What `isthmus launch` does when ranks fail."""

    without_progress: int = key(3, "restarts in a row without a new step before it gives up (0: never restart)")
    delay_seconds: float = key(1.0, "wait before a restart")
    silence_seconds: float = key(300.0, "a rank without a heartbeat for so long is taken for frozen (0: never)")
