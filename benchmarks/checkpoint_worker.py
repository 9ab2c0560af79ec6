"""A rank of `checkpoint.py`: trains, saves by one contender or another in turn, and tells how long steps took.

Started by checkpoint.py with the variables that torchrun sets; rank 0 prints one line of JSON a measurement.
"""

import argparse
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from rich.console import Console
from torch.distributed.checkpoint import async_save
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from isthmus.config import compose
from isthmus.train.assembly import World, build_run
from isthmus.train.config import Config
from isthmus.train.loop import Run
from isthmus.train.stop import StopRequest
from isthmus.train.validate import plan_run


class Isthmus:
    """Our own, as the loop calls it."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._folder, self._saves = run, folder, 0

    def save(self) -> None:
        self._saves += 1
        self._run.progress.step = self._saves
        self._run.checkpointer.after_step(self._saves, self._run.stateful(), last=False)  # every_steps=1: it is due

    def look(self) -> bool:
        self._run.checkpointer._collect(wait=False)
        return self._run.checkpointer._saving is None

    def written(self) -> Path:
        return max((self._folder / "checkpoints").glob("step-*"))

    def clear(self) -> None:
        """It retires old ones itself."""


class TorchDcp:
    """torch.distributed.checkpoint.async_save of the same numbers, writing in a thread (its default) or a process."""

    def __init__(self, run: Run, folder: Path, kind: AsyncCheckpointerType) -> None:
        self._run, self._folder, self._kind, self._number = run, folder / f"dcp-{kind.value}", kind, 0
        self._future: Any = None
        # Its thread plans by collectives beside the training's: on the same group the two can wait for each other.
        self._group = torch.distributed.new_group(backend="gloo")

    def save(self) -> None:
        self._number += 1
        state = {f"{rank_key(self._run)}/{key}": tensor for key, tensor in numbers(self._run)}
        answer = async_save(
            state, checkpoint_id=self.written(), process_group=self._group, async_checkpointer_type=self._kind
        )
        self._future = getattr(answer, "upload_completion", answer)

    def look(self) -> bool:
        if self._future is not None and self._future.done():
            self._future.result()
            self._future = None
        return self._future is None

    def written(self) -> Path:
        return self._folder / f"{self._number}"

    def clear(self) -> None:
        shutil.rmtree(self._folder / f"{self._number - 1}", ignore_errors=True)


class Megatron:
    """megatron-core's async save of the same numbers, by a process forked for each: the one that stays needs a GPU."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._number = run, 0
        self._folder = folder / "megatron"
        self._queue = AsyncCallsQueue(persistent=False)
        self._strategy = TorchDistSaveShardedStrategy("torch_dist", 1)

    def save(self) -> None:
        self._number += 1
        if self._run.engine.rank == 0:
            self.written().mkdir(parents=True)
        torch.distributed.barrier()
        prefix = rank_key(self._run)
        state = {key: ShardedTensor.from_rank_offsets(f"{prefix}/{key}", tensor) for key, tensor in numbers(self._run)}
        request = dist_checkpointing.save(
            state,
            str(self.written()),
            self._strategy,
            async_sharded_save=True,
            validate_access_integrity=False,
        )
        self._queue.schedule_async_request(request)

    def look(self) -> bool:
        self._queue.maybe_finalize_async_calls(blocking=False)
        return self._queue.get_num_unfinalized_calls() == 0

    def written(self) -> Path:
        return self._folder / f"{self._number}"

    def clear(self) -> None:
        if self._run.engine.rank == 0:
            shutil.rmtree(self._folder / f"{self._number - 1}", ignore_errors=True)


def rank_key(run: Run) -> str:
    return f"rank{run.engine.rank}"


def numbers(run: Run) -> list[tuple[str, torch.Tensor]]:
    """Return what isthmus saves of this rank: parameters and moments, flat."""
    found = []
    for kind, where, tensor in run.engine.state():
        if run.engine.saves(where):
            found.append((f"{kind}/{where.name}[{where.offset}:{where.start}]", tensor))
    return found


CONTENDERS: dict[str, Callable[[Run, Path], Any]] = {
    "isthmus": Isthmus,
    "torch async_save, thread": lambda run, folder: TorchDcp(run, folder, AsyncCheckpointerType.THREAD),
    "torch async_save, process": lambda run, folder: TorchDcp(run, folder, AsyncCheckpointerType.PROCESS),
    "megatron": Megatron,
}


def steps(run: Run, count: int, look: Callable[[], bool]) -> float:
    """Train for some steps, looking after the save after each as a loop does; return the seconds on all ranks."""
    torch.distributed.barrier()
    started = time.perf_counter()
    for _ in range(count):
        microbatches = run.loader.next_step()
        loss = run.engine.forward_backward(microbatches)
        run.engine.gradient_norm(loss.tokens)
        run.engine.step(1e-4)
        look()
    torch.distributed.barrier()
    return time.perf_counter() - started


def measure(run: Run, contender: Any, count: int, before: float) -> dict[str, Any]:
    """Return the seconds of `count` steps with a save and those without, before (given) and after; and its bytes."""
    started = time.perf_counter()  # behind the barrier that ended the last steps
    contender.save()
    call = time.perf_counter() - started
    steps(run, count, contender.look)
    with_save = time.perf_counter() - started
    while not all_done(run, contender.look()):
        time.sleep(0.01)
    durable = time.perf_counter() - started
    after = steps(run, count, contender.look)
    torch.distributed.barrier()
    size = sum(path.stat().st_size for path in contender.written().rglob("*") if path.is_file())
    contender.clear()
    return {
        "quiet_s": (before + after) / 2,
        "after_s": after,
        "with_save_s": with_save,
        "call_s": call,
        "durable_s": durable,
        "bytes": size,
    }


def all_done(run: Run, done: bool) -> bool:
    return not run.engine.any_rank(not done)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    words = [*options.words, f"run.dir={options.folder}", "run.name=r", "checkpoint.every_steps=1", "checkpoint.keep=1"]
    config = compose(Config, "train", [*words, "train.steps=100000", "log.tensorboard=false"])
    world = World.from_environment()
    plan = plan_run(config, world.size)
    with build_run(config, plan, world, Console(file=sys.stderr), StopRequest()) as run:
        run.sync.attach(run.engine)
        run.checkpointer.restore(run.stateful())
        steps(run, 3, lambda: True)
        contenders = {
            name: make(run, plan.folder)
            for name, make in CONTENDERS.items()
            if not options.only or options.only in name
        }
        tell = print if world.rank == 0 else (lambda *_, **__: None)
        state = sum(tensor.numel() * tensor.element_size() for _, tensor in numbers(run))
        whole = int(run.engine.sum_over_ranks(torch.tensor([state], dtype=torch.float64)).item())
        tell(json.dumps({"state_bytes": whole}), flush=True)
        names = list(contenders)
        before = 0.0
        for number in range(-1, options.rounds):  # the first round warms up: buffers, processes, plans
            if number == 0:
                before = steps(run, options.steps, lambda: True)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                row = measure(run, contenders[name], options.steps if number >= 0 else 2, before)
                before = row["after_s"]
                if number >= 0:
                    tell(json.dumps({"contender": name, "round": number, **row}), flush=True)
    os._exit(0)  # forked writers of others would keep it


if __name__ == "__main__":
    main()
