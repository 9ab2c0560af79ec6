"""One site of a measurement over shaped links: `python wan_worker.py JOB`, JOB a JSON object. Started by wan.py."""

import datetime
import json
import logging
import os
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", module=r"megatron\.")
logging.getLogger("megatron").setLevel(logging.ERROR)

import torch
from contenders import random_batches

from isthmus.config import compose
from isthmus.launch.lab.namespaces import DEVICE
from isthmus.parallelism.engine import Engine
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.sites.config import LaneConfig, SitesConfig
from isthmus.parallelism.sites.lane import Lane
from isthmus.parallelism.sites.local import LocalSync
from isthmus.parallelism.sites.meeting import Attendance, meet
from isthmus.train.assembly import build_engine
from isthmus.train.config import Config
from isthmus.train.parts import NoSync, SiteSync
from isthmus.train.sites import build_sync
from isthmus.train.validate import plan_run

Job = dict[str, Any]
_PORT = 29400


def lane_job(job: Job, stack: ExitStack) -> Any:
    """Send so many bytes in both directions at once, again and again; return the seconds of each time."""
    answers = []
    for number, options in enumerate(job["lanes"]):
        lane = open_lane(job, stack, f"lane{number}", _PORT + number, **options)
        message = os.urandom(job["bytes"])
        seconds = []
        for tag in range(1, job["times"] + 2):
            lane.exchange(2 * tag, {1 - lane.site: b""}).wait()
            started = time.perf_counter()
            lane.exchange(2 * tag + 1, {1 - lane.site: message}).wait()
            seconds.append(time.perf_counter() - started)
        answers.append({**options, "seconds": seconds[1:]})  # the first opens the windows
    return answers


def train_job(job: Job, stack: ExitStack) -> Any:
    """Train variants of a run in turn, a phase each; return what each step of each phase took."""
    torch.set_num_threads(1)
    control = open_lane(job, stack, "control", _PORT)
    groups = None
    variants: dict[str, Variant] = {}
    for number, (name, overrides) in enumerate(job["variants"].items()):
        config = site_config(job, [*job["overrides"], *overrides], _PORT + 1 + number)
        plan = plan_run(config, 1)
        if groups is None:
            timeout = datetime.timedelta(minutes=30)
            groups = stack.enter_context(site_groups(plan.topology, rank=0, timeout=timeout))
        sync: SiteSync = NoSync()
        if config.sync.kind.name != "none":
            lane = open_lane(job, stack, name, _PORT + 1 + number)
            sync = build_sync(config, lane)
        batches = batches_of(config, max(len(config.sites.names), 1))
        variants[name] = Variant(batches, build_engine(config, groups), sync)
    results = []
    for number, phase in enumerate(job["phases"]):
        control.exchange(2 * number, {1 - control.site: b""}).wait()
        if phase["variant"] == "bulk":
            time.sleep(phase["idle_seconds"])  # a link that has been quiet takes time to fill, in training too
            started = time.perf_counter()
            control.exchange(2 * number + 1, {1 - control.site: bytes(phase["bytes"])}).wait()
            results.append({**phase, "seconds": time.perf_counter() - started})
        else:
            results.append({**phase, **variants[phase["variant"]].train(phase["steps"])})
    control.exchange(2 * len(job["phases"]), {1 - control.site: b""}).wait()
    return results


def flat_job(job: Job, stack: ExitStack) -> Any:
    """Train as if the sites were one: Megatron's data parallelism over the link, one Gloo group of all ranks."""
    torch.set_num_threads(1)
    config = compose(Config, "train", [*job["overrides"], "train.steps=1"])
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    meeting = f"tcp://{job['addresses'][0]}:{_PORT}"
    plan = plan_run(config, len(job["names"]))
    groups = stack.enter_context(
        site_groups(plan.topology, rank=job["site"], timeout=datetime.timedelta(minutes=30), init_method=meeting)
    )
    batches = batches_of(config, len(job["names"]))
    variant = Variant(batches, build_engine(config, groups), NoSync())
    return variant.train(job["steps"])["rows"]


class Variant:
    """One engine with its sync, trained on random tokens."""

    def __init__(self, batches: list[Any], engine: Engine, sync: SiteSync) -> None:
        self.batches, self.engine, self.sync = batches, engine, sync
        self.step = 0
        self.started = 0.0
        self.ready: list[tuple[float, int]] = []  # (seconds since the step began, bytes) of each bucket
        if isinstance(sync, NoSync):
            engine.on_bucket_ready(self._note)
        sync.attach(engine)
        sync.begin(0)

    def _note(self, bucket: Any) -> None:
        size = sum(view.numel() for _, view in bucket.slices)
        self.ready.append((time.perf_counter() - self.started, 4 * size))

    def train(self, steps: int) -> dict[str, Any]:
        rows = []
        for number in range(steps):
            self.step += 1
            self.ready = []
            cpu, self.started = time.process_time(), time.perf_counter()
            loss = self.sync.reduce(self.step, self.engine.forward_backward(self.batches))
            backward = time.perf_counter() - self.started
            self.engine.gradient_norm(loss.tokens)
            self.engine.step(1e-4)
            self.sync.after_step(self.step, last=False)
            seconds = time.perf_counter() - self.started
            if number == steps - 1 and isinstance(self.sync, LocalSync):
                self.sync.settle()  # what this phase has sent must not be paid for in the next one
                seconds = time.perf_counter() - self.started
            row = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "backward": backward}
            rows.append({**row, "loss": loss.mean, "ready": self.ready, **self.sync.report()})
        return {"rows": rows}


def batches_of(config: Config, ranks: int) -> list[Any]:
    """Return the microbatches of one of so many ranks."""
    count = config.train.global_batch // config.train.micro_batch // ranks
    return random_batches(config, count, torch.Generator().manual_seed(1))


def site_config(job: Job, overrides: list[str], port: int) -> Config:
    names = job["names"]
    if not any(word.startswith("sync=") and word != "sync=none" for word in overrides):
        return compose(Config, "train", [*overrides, "train.steps=1"])
    sites = [
        f"sites.name={names[job['site']]}",
        f"sites.names=[{','.join(names)}]",
        f"sites.store={job['addresses'][0]}:{port}",
    ]
    return compose(Config, "train", [*overrides, *sites, "train.steps=1"])


def open_lane(job: Job, stack: ExitStack, run: str, port: int, **options: Any) -> Lane:
    names = job["names"]
    sites = SitesConfig(name=names[job["site"]], names=names, store=f"{job['addresses'][0]}:{port}")
    lane = LaneConfig(interface=job["addresses"][job["site"]], **options)
    attendance = Attendance(run=run, world_size=1, rank=0, config={})
    return stack.enter_context(meet(sites, lane, attendance, tell=print))


def main() -> None:
    job = json.loads(sys.argv[1])
    with ExitStack() as stack:
        answer = {"lane": lane_job, "train": train_job, "flat": flat_job}[job["kind"]](job, stack)
        Path(job["out"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
