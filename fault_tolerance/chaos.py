"""Rehearsing failures: faults that strike a run at a chosen place, once, so that what comes after can be seen."""

import ctypes
import hashlib
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from isthmus.config import key, to_plain
from isthmus.errors import UserError
from isthmus.fault_tolerance.chaos_files import LEADER_POINTS, SAVE_POINTS, Marker

FOLDER = "chaos"  # in the run folder: what has struck
PHASES = ("data", "compute", "sync", "checkpoint", "evaluation")


class FaultKind(Enum):
    kill = "kill"
    stall = "stall"
    corrupt_gradient = "corrupt_gradient"
    delay_collective = "delay_collective"
    flip_bit = "flip_bit"
    fill_disk = "fill_disk"


_OF_SAVES = (FaultKind.flip_bit, FaultKind.fill_disk)


@dataclass(kw_only=True, slots=True)
class FaultConfig:
    """One fault."""

    kind: FaultKind | None = key(
        None, "kill, stall, corrupt_gradient, delay_collective, flip_bit (in a checkpoint), fill_disk (while saving)"
    )
    rank: int = key(0, "that it strikes")
    site: str | None = key(None, "that it strikes (null: every site)")
    step: int | None = key(None, "at which it strikes; of faults in a save: the first save at or after it (null: any)")
    point: str | None = key(
        None,
        "kill, stall: where: data, compute (default), sync, checkpoint, evaluation; or within a save: part_written, "
        "part_durable, manifest_written, committed, retiring",
    )
    seconds: float | None = key(None, "stall, delay_collective: for how long")
    holding_lock: bool = key(False, "stall: inside a C call that keeps Python's lock")
    factor: float | None = key(None, "corrupt_gradient: times the gradient of a norm's weight (null: it becomes NaN)")
    times: int = key(1, "how often it strikes, restarts included (0: whenever the run comes by)")


@dataclass(kw_only=True, slots=True)
class ChaosConfig:
    faults: list[FaultConfig] = key([], "[{kind: kill, rank: 1, step: 5}, ...]: failures to rehearse")


class Chaos:
    """The faults of this rank.

    Args:
        folder: of the run, of this site.
        copies: the ranks that hold copies of what each rank computes: a gradient is corrupted on all of them alike.
    """

    def __init__(
        self,
        config: ChaosConfig,
        folder: Path,
        *,
        rank: int,
        site: str,
        copies: Callable[[int], Sequence[int]] = lambda rank: [rank],
    ) -> None:
        self._folder, self._rank = folder / FOLDER, rank
        here = [fault for fault in config.faults if fault.site in (None, site)]
        self._faults = [fault for fault in here if rank in _struck(fault, copies)]
        self._factor: float | None = None

    def describe(self) -> list[str]:
        """Return a line for each fault of this rank that may still strike."""
        left = [fault for fault in self._faults if not self._marker(fault).spent(fault.times)]
        return [f"chaos: {_describe(fault)}" for fault in left]

    def of_saves(self) -> list[dict[str, Any]]:
        """Return the faults that strike within a save, as what writes it understands them."""
        return [
            {**to_plain(fault), "marker": str(self._marker(fault).path)}
            for fault in self._faults
            if fault.kind in _OF_SAVES or fault.point in SAVE_POINTS
        ]

    def attach(self, parameters: Sequence[Any]) -> None:
        """Lie in wait for the gradient of the first weight that is a vector (a norm's): it goes the way of all."""
        if any(fault.kind is FaultKind.corrupt_gradient for fault in self._faults):
            vector = next(parameter for parameter in parameters if parameter.dim() == 1)
            vector.register_hook(lambda gradient: None if self._factor is None else gradient * self._factor)

    def enter(self, phase: str, step: int) -> None:
        """The rank enters a phase of a step."""
        self._factor = None
        for fault in self._faults:
            if fault.step == step and (fault.point or "compute") == phase and self._marker(fault).take(fault.times):
                logging.warning("chaos: %s", _describe(fault))
                self._strike(fault)

    def _strike(self, fault: FaultConfig) -> None:
        if fault.kind is FaultKind.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind is FaultKind.corrupt_gradient:
            self._factor = float("nan") if fault.factor is None else fault.factor
        elif fault.kind is FaultKind.stall:
            assert fault.seconds
            (_hold_lock if fault.holding_lock else time.sleep)(fault.seconds)
        elif fault.kind is FaultKind.delay_collective:
            assert fault.seconds
            _delay_next_collective(fault.seconds)

    def _marker(self, fault: FaultConfig) -> Marker:
        digest = hashlib.sha256(json.dumps(to_plain(fault), sort_keys=True).encode()).hexdigest()[:8]
        assert fault.kind
        return Marker(self._folder / f"{fault.kind.name}-{digest}-rank-{self._rank:05d}.json")


def validate_chaos(config: ChaosConfig, *, ranks: int, steps: int, sites: Sequence[str]) -> None:
    """Refuse faults that would never strike, or mean nothing.

    Raises:
        UserError: names the fault and the key.
    """
    for number, fault in enumerate(config.faults):
        where = f"chaos.faults[{number}]"
        for name, value in (("seconds", fault.seconds), ("factor", fault.factor)):
            if value is not None and not math.isfinite(value):
                raise UserError(f"is {value}", where=f"{where}.{name}", fix="give a finite number")
        if fault.kind is None:
            raise UserError("is not given", where=f"{where}.kind", fix="name what shall happen, as kind: kill")
        if not 0 <= fault.rank < ranks:
            raise UserError(f"is {fault.rank} of {ranks} rank(s)", where=f"{where}.rank", fix="ranks count from 0")
        if fault.site is not None and fault.site not in sites:
            raise UserError(
                f"there is no site '{fault.site}'", where=f"{where}.site", fix=f"one of: {', '.join(sites)}"
            )
        if fault.times < 0:
            raise UserError(f"is {fault.times}", where=f"{where}.times", fix="0 means always")
        if fault.step is not None and not 1 <= fault.step <= steps:
            raise UserError(f"is {fault.step} of {steps}", where=f"{where}.step", fix="steps count from 1")
        _validate_place(fault, where)
        _validate_extent(fault, where, ranks)


def _validate_place(fault: FaultConfig, where: str) -> None:
    if fault.point is not None:
        if fault.kind not in (FaultKind.kill, FaultKind.stall):
            raise UserError("would do nothing", where=f"{where}.point", fix="it is of kill and stall")
        if fault.point not in (*PHASES, *SAVE_POINTS):
            listed = ", ".join((*PHASES, *SAVE_POINTS))
            raise UserError(f"there is no point '{fault.point}'", where=f"{where}.point", fix=f"one of: {listed}")
        if fault.point in LEADER_POINTS and fault.rank:
            raise UserError(
                f"only rank 0 comes to '{fault.point}'", where=f"{where}.rank", fix="leave it out, it is 0 by default"
            )
    if fault.step is None and fault.kind not in _OF_SAVES and fault.point not in SAVE_POINTS:
        raise UserError("is not given", where=f"{where}.step", fix="say when it strikes")


def _validate_extent(fault: FaultConfig, where: str, ranks: int) -> None:
    lasts = fault.kind in (FaultKind.stall, FaultKind.delay_collective)
    if lasts and (fault.seconds is None or fault.seconds <= 0):
        raise UserError(f"is {fault.seconds}", where=f"{where}.seconds", fix="say for how long, in seconds")
    if not lasts and fault.seconds is not None:
        raise UserError("would do nothing", where=f"{where}.seconds", fix="it is of stall and delay_collective")
    if fault.kind is FaultKind.delay_collective and ranks == 1:
        raise UserError("there is no other rank that would wait", where=f"{where}.kind", fix="start more, or use stall")
    if fault.holding_lock and fault.kind is not FaultKind.stall:
        raise UserError("would do nothing", where=f"{where}.holding_lock", fix="it is of stall")
    if fault.factor is not None and fault.kind is not FaultKind.corrupt_gradient:
        raise UserError("would do nothing", where=f"{where}.factor", fix="it is of corrupt_gradient")
    if fault.factor == 1:
        raise UserError("is 1: it would change nothing", where=f"{where}.factor", fix="leave it out for NaN")


def _struck(fault: FaultConfig, copies: Callable[[int], Sequence[int]]) -> Sequence[int]:
    return copies(fault.rank) if fault.kind is FaultKind.corrupt_gradient else [fault.rank]


def _describe(fault: FaultConfig) -> str:
    assert fault.kind
    words = [f"{fault.kind.name.replace('_', ' ')} on rank {fault.rank}"]
    if fault.step is not None:
        words.append(f"at step {fault.step}")
    if fault.point is not None:
        words.append(f"in {fault.point.replace('_', ' ')}")
    if fault.seconds is not None:
        words.append(f"for {fault.seconds:g} s")
    if fault.factor is not None:
        words.append(f"times {fault.factor:g}")
    often = "each time" if not fault.times else "once" if fault.times == 1 else f"{fault.times} times"
    return f"{' '.join(words)} ({often})"


def _hold_lock(seconds: float) -> None:
    """Wait in a C call that keeps Python's lock, and which no signal cuts short."""

    class Timespec(ctypes.Structure):
        _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))

    library = ctypes.PyDLL(None)  # unlike CDLL, it does not let go of the lock
    mutex = ctypes.create_string_buffer(64)  # zeros are an open one
    until = time.time() + seconds
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_timedlock(mutex, ctypes.byref(Timespec(int(until), int(until % 1 * 1e9))))


def _delay_next_collective(seconds: float) -> None:
    """Be late to the next all-reduce in which another rank waits."""
    import torch

    in_time = torch.distributed.all_reduce

    def late(tensor: Any, op: Any = torch.distributed.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        if torch.distributed.get_world_size(group) > 1:
            torch.distributed.all_reduce = in_time
            time.sleep(seconds)
        return in_time(tensor, op, group, async_op)

    torch.distributed.all_reduce = late
