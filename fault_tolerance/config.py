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
    failure_hours: float = key(6.0, "mean time between failures that auto reckons with until it has seen some")
    restart_seconds: float = key(60.0, "from a failure to the next step, as auto reckons until it has seen one")
    deadline_seconds: float = key(1800.0, "limit on one save, all ranks together")
    time_limit_seconds: float | None = key(None, "of a job: save and stop in time to be done")


@dataclass(kw_only=True, slots=True)
class RestartConfig:
    """What `isthmus launch` does when ranks fail."""

    without_progress: int = key(3, "restarts in a row without a new step before it gives up (0: never restart)")
    delay_seconds: float = key(1.0, "wait before a restart that follows an attempt without a new step")
    silence_seconds: float | None = key(
        None,
        "a rank without a heartbeat for so long is taken for frozen, and all start again (null: twice"
        " watchdog.floor_seconds; 0: never)",
    )


@dataclass(kw_only=True, slots=True)
class WatchdogConfig:
    """When a rank is taken to hang: each phase of a step (data, compute, sync, ...) has a deadline of its own.

    It is `factor` times the longest that the phase has taken in this attempt, one outlier left out, and never less
    than the floor. Timeouts form a hierarchy: lane < collective < watchdog < supervisor, so that who knows best what is
    wrong speaks first.
    """

    enabled: bool = key(True, "watch for ranks that make no progress, and end them with exit code 86")
    floor_seconds: float | None = key(None, "no phase hangs before that (null: 1.5 times train.timeout_seconds)")
    factor: float = key(10.0, "deadline of a phase, in times of the longest one seen")
    first_seconds: float = key(3600.0, "deadline of a phase that has not been seen three times, as that of the start")
    grace_seconds: float = key(10.0, "for the other ranks to say where they are before all are ended")
    compare_every: int = key(50, "steps between comparisons of the ranks' own step times (0: never)")
