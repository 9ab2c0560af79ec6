"""Timeouts in their order: who knows best what is wrong must be the first to lose patience."""

from isthmus.errors import UserError
from isthmus.fault_tolerance.heartbeat import LEAST_SILENCE_SECONDS
from isthmus.parallelism.sites.config import SyncKind
from isthmus.train.config import Config

_FLOOR_FACTOR = 1.5  # of train.timeout_seconds
_SUSPICION_FACTOR = 0.75  # of train.timeout_seconds
_SILENCE_FACTOR = 2.0  # of the floor
_LEAST_SILENCE_SECONDS = 600.0  # ranks show no sign of life while they import


def floor_seconds(config: Config) -> float:
    """Return `watchdog.floor_seconds`, or what follows from `train.timeout_seconds`."""
    given = config.watchdog.floor_seconds
    return _FLOOR_FACTOR * config.train.timeout_seconds if given is None else given


def suspicion_seconds(config: Config) -> float:
    """Return how long a phase lasts before the ranks are asked where they are.

    In time for an answer before a collective gives up: NCCL then ends its process without a word of Python's.
    """
    return _SUSPICION_FACTOR * config.train.timeout_seconds


def silence_seconds(config: Config) -> float:
    """Return `restart.silence_seconds` (0: never), or what follows from the watchdog's floor."""
    given = config.restart.silence_seconds
    return max(_SILENCE_FACTOR * floor_seconds(config), _LEAST_SILENCE_SECONDS) if given is None else given


def validate_timeouts(config: Config) -> None:
    """Refuse a set of timeouts in which a layer gives up before the one below it, which knows more.

    Raises:
        UserError: names the two.
    """
    between_sites = config.sync.kind is not SyncKind.none
    watchdog, timeout = config.watchdog, config.train.timeout_seconds
    for where, value in (
        ("watchdog.floor_seconds", floor_seconds(config)),
        ("watchdog.first_seconds", watchdog.first_seconds),
        ("watchdog.grace_seconds", watchdog.grace_seconds),
    ):
        if value <= 0:
            raise UserError(f"is {value:g}", where=where, fix="it must be positive")
    silence = silence_seconds(config)
    if silence < 0:
        raise UserError(f"is {silence:g}", where="restart.silence_seconds", fix="0 means never")
    if 0 < silence < LEAST_SILENCE_SECONDS:
        fix = f"{LEAST_SILENCE_SECONDS:g} or more: ranks give a sign of life every few seconds"
        raise UserError(f"is {silence:g}", where="restart.silence_seconds", fix=fix)
    if watchdog.factor <= 1:
        raise UserError(f"is {watchdog.factor:g}", where="watchdog.factor", fix="it must be above 1")
    if watchdog.compare_every < 0:
        raise UserError(f"is {watchdog.compare_every}", where="watchdog.compare_every", fix="0 means never")
    if between_sites and config.lane.deadline_seconds >= timeout:
        raise UserError(
            f"is {config.lane.deadline_seconds:g}, train.timeout_seconds {timeout:g}",
            where="lane.deadline_seconds",
            fix="it must be shorter, so that the lane is what speaks of a lost site",
        )
    if not watchdog.enabled:
        return
    _require(
        ("train.timeout_seconds", timeout),
        ("watchdog.floor_seconds", floor_seconds(config)),
        "so that a collective that fails says so itself",
    )
    if silence:
        _require(
            ("watchdog.floor_seconds", floor_seconds(config)),
            ("restart.silence_seconds", silence),
            "so that the watchdog is what speaks of a rank that hangs",
        )
    if watchdog.first_seconds < floor_seconds(config):
        raise UserError(
            f"is {watchdog.first_seconds:g}, watchdog.floor_seconds {floor_seconds(config):g}",
            where="watchdog.first_seconds",
            fix="it must not be shorter: nothing is known yet",
        )
    if between_sites:
        _require(
            ("sites.wait_seconds", config.sites.wait_seconds),
            ("watchdog.first_seconds", watchdog.first_seconds),
            "so that waiting for the other sites at the start is no hang",
        )


def _require(shorter: tuple[str, float], longer: tuple[str, float], why: str) -> None:
    if shorter[1] >= longer[1]:
        raise UserError(
            f"is {shorter[1]:g}, {longer[0]} {longer[1]:g}", where=shorter[0], fix=f"it must be shorter, {why}"
        )
