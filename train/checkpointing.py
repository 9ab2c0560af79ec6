"""Saving and restoring a Run: what a checkpoint holds, on which step all ranks and sites go on, and when to save."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from isthmus.config import flat, to_plain
from isthmus.errors import EXIT_STORAGE, UserError
from isthmus.fault_tolerance.filesystem import free_bytes
from isthmus.fault_tolerance.manifest import Broken, Manifest, check_hashes
from isthmus.fault_tolerance.reader import Reader
from isthmus.fault_tolerance.records import Record
from isthmus.fault_tolerance.rewinds import choose_step, distrusted
from isthmus.fault_tolerance.snapshot import Snapshot
from isthmus.fault_tolerance.store import Found, Store
from isthmus.fault_tolerance.writer import Request, WriteError, WriterProcess, file_system_for, serve
from isthmus.parallelism.engine import Engine
from isthmus.parallelism.sites.config import SyncKind
from isthmus.parallelism.slices import Slice
from isthmus.train.config import Config, site_name
from isthmus.train.parts import SiteSync, Stateful
from isthmus.train.randomness import generators_state, restore_generators
from isthmus.train.resume_rules import compare_config, fit_sync_state
from isthmus.train.resuming import at_path
from isthmus.train.rewinding import RunRewinds, rewound
from isthmus.train.save_schedule import SaveSchedule
from isthmus.train.validate import Plan

_SPARE = 1.1  # of the bytes of a save that must be free


class StorageError(UserError):
    """A checkpoint could not be written: training on would only add to what is lost."""

    exit_code = EXIT_STORAGE


class RunCheckpointer:
    """The loop's checkpointer.

    Args:
        tell: prints one line for the user.
        rewinds: what was decided about going back.
        faults: to rehearse within saves.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        engine: Engine,
        sync: SiteSync,
        tell: Callable[[str], None],
        rewinds: RunRewinds,
        faults: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._config, self._plan, self._engine, self._sync, self._tell = config, plan, engine, sync, tell
        self._rewinds, self._faults = rewinds, list(faults)
        self._keys = config.checkpoint
        self.store = Store(plan.folder / "checkpoints")
        topology = plan.topology
        self._layout = {
            name: getattr(topology, name)
            for name in ("tensor", "pipeline", "virtual_pipeline", "context", "expert", "data")
        }
        self._layout["distributed_optimizer"] = int(config.parallel.distributed_optimizer)
        self._layout["bucket_parameters"] = config.parallel.bucket_parameters or 0
        self._attempt = 1
        self._snapshot = Snapshot()
        self._writer: WriterProcess | None = None
        self._saving: int | None = None  # the step whose save is under way
        self.durable_step = 0
        self._durable_everywhere = 0
        self._schedule = SaveSchedule(
            self._keys,
            plan.folder / "ledger.jsonl",
            leads=engine.rank == 0,
            ask_sites=self._ask_sites,
            tell=tell,
        )

    def restore(self, parts: dict[str, Stateful]) -> None:
        """Go on from the newest step that verifies on all ranks of all sites, if there is one.

        Raises:
            UserError: a site has checkpoints but none that all share, or the configuration is another one.
        """
        self._clean_up()
        self._rewinds.meet(self._ask_sites, before=self._attempt, writes=self._engine.rank == 0)
        found = self._agree_on_step()
        if self._engine.rank == 0:
            self._rewinds.set_aside(self.store, found.step if found is not None else 0)
        if found is not None:
            self._load(found, parts)
            self.durable_step = self._durable_everywhere = found.step
        self._rewinds.apply()
        self._schedule.begin(found.step if found is not None else 0)

    def after_step(self, step: int, parts: dict[str, Stateful], *, last: bool) -> None:
        """Save if it is time to; the last save is waited for.

        Raises:
            StorageError: this or an earlier save could not be written.
            Rewound: at the last step, instead of a save: the run goes back.
        """
        self._collect(wait=False)
        if last:
            self._go_back_if_asked()
        if not (last or self._schedule.is_due(step)):
            return
        if last and step == self.durable_step:
            return
        started = time.perf_counter()
        self._save(step, parts)
        if last or not self._keys.asynchronous:
            self._collect(wait=True)
        if not last:
            self._schedule.saved(step, time.perf_counter() - started)

    def _go_back_if_asked(self) -> None:
        wishes = self._rewinds.agree(self._ask_sites, attempt=self._attempt, writes=self._engine.rank == 0)
        if wishes:
            self._collect(wait=True)  # it may be the one to go back to
            raise rewound(wishes)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._snapshot.close()

    # ---- save

    def _save(self, step: int, parts: dict[str, Stateful]) -> None:
        self._collect(wait=True)
        answers = self._ask_sites({"durable": self.durable_step})
        self._durable_everywhere = min(int(answer["durable"]) for answer in answers)
        state = {name: part.state_dict() for name, part in parts.items()}
        records = [(record, tensor) for record, tensor, mine in self._slices() if mine]
        self._snapshot.fill(records, {"parts": state, "random": generators_state()})
        self._check_space()
        folder = self.store.path(step, self._attempt)
        alone = self._plan.sites == 1
        request = Request(
            folder=str(folder),
            rank=self._engine.rank,
            length=self._snapshot.bytes,
            deadline_seconds=self._keys.deadline_seconds,
            manifest=dataclasses.asdict(self._manifest(step, state)) if self._engine.rank == 0 else None,
            keep=self._keys.keep,
            keep_every=self._keys.keep_every,
            durable_everywhere=step if alone else self._durable_everywhere,
            process=os.getpid(),
            faults=self._faults,
        )
        self._saving = step
        try:
            if self._keys.asynchronous:
                if self._writer is None:
                    self._writer = WriterProcess(self._snapshot.descriptor)
                self._writer.start(request)
            else:
                serve(request, self._snapshot.view(), file_system_for(request))
        except WriteError as error:
            raise self._failed(error) from None

    def _collect(self, *, wait: bool) -> None:
        """Look whether the save under way is done."""
        if self._saving is None:
            return
        try:
            done = self._writer.finished(wait=wait) if self._writer is not None else True
        except WriteError as error:
            raise self._failed(error) from None
        if done:
            self.durable_step, self._saving = self._saving, None

    def _failed(self, error: WriteError) -> StorageError:
        return StorageError(
            str(error), where="checkpoint", fix=f"free space or mend the disk; step {self.durable_step} is safe"
        )

    def _check_space(self) -> None:
        """Refuse a save that cannot fit, before a byte of it is written: all ranks' files on this file system."""
        import torch

        needed = int(self._engine.sum_over_ranks(torch.tensor([self._snapshot.bytes], dtype=torch.float64)).item())
        free = free_bytes(self.store.folder)
        if self._engine.any_rank(free < _SPARE * needed):
            raise StorageError(
                f"{free} bytes are free, the next checkpoint needs {needed}",
                where=str(self.store.folder),
                fix=f"free space or lower checkpoint.keep; step {self.durable_step} is safe",
            )

    def _manifest(self, step: int, state: dict[str, Any]) -> Manifest:
        return Manifest(
            step=step,
            tokens=state["progress"]["tokens"],
            round=int(state["sync"].get("rounds", 0)),
            attempt=self._attempt,
            ranks=self._plan.topology.world_size,
            layout=self._layout,
            sync=self._config.sync.kind.name,
            site=site_name(self._config),
            sites=list(self._config.sites.names),
            config=flat(to_plain(self._config)),
            saved_at=time.time(),
        )

    def _slices(self) -> Iterator[tuple[Record, Tensor, bool]]:
        """Yield (record, flat view, whether this rank is the one to save it)."""
        for source in (self._engine.state(), self._sync.slices()):
            for kind, where, tensor in source:
                yield _record(kind, where), tensor, self._engine.saves(where)

    # ---- restore

    def _clean_up(self) -> None:
        """Rank 0 sets aside what is broken, and numbers this attempt."""
        message: dict[str, Any] = {}
        if self._engine.rank == 0:
            self.store.prepare()
            message["attempt"] = max(self.store.next_attempt(), self._rewinds.log.last_attempt + 1)
            for entry in self.store.scan():
                if entry.manifest is None:
                    away = self.store.quarantine(entry.folder)
                    self._tell(f"{entry.folder.name} is broken ({entry.broken}): set aside as {away.name}")
            if self._keys.resume == "never":
                self.store.abandon(self.store.scan())
                self.store.abandon_lost()
                self._rewinds.log.forget()
        self._attempt = int(self._share(message)["attempt"])

    def _agree_on_step(self) -> Found | None:
        """Return the newest checkpoint that is whole in every site; all ranks read their share of the files."""
        while True:
            chosen = self._offer()
            if chosen is None:
                return None
            found, own = chosen
            if own:
                self._refuse_parted_sites(found)
            wrong = self._verify(found)
            answers = self._ask_sites({"wrong": wrong})
            if not any(answer["wrong"] for answer in answers):
                return found
            if not own:
                raise UserError(
                    wrong or "is broken in another site", where="checkpoint.resume", fix="choose another checkpoint"
                )
            if self._engine.rank == 0:
                # Whole here and broken elsewhere, it is of no use either: sites go on from the same step.
                away = self.store.quarantine(found.folder)
                why = wrong or "another site's is broken"
                self._tell(f"{found.folder.name} is broken ({why}): set aside as {away.name}")

    def _offer(self) -> tuple[Found, bool] | None:
        """Return the checkpoint to go on from, and whether it is this run's own."""
        message = self._share(self._holdings() if self._engine.rank == 0 else {})
        worthless, given = set(message["distrusted"]), message["given"]
        trusted = sorted({int(step) for step in message["own"]} - worthless)
        offer = {"steps": trusted, "distrusted": sorted(worthless), "lost": message["lost"]}
        offers = self._ask_sites({**offer, "given": given["step"] if given else None})
        steps, others = ([set(offer[name]) for offer in offers] for name in ("steps", "distrusted"))
        chosen = choose_step(steps, others)
        if chosen is not None:
            return at_path(Path(message["own"][str(chosen)])), True
        held = set().union(*steps, *others)
        if given and all(offer["given"] == given["step"] >= max(held, default=0) for offer in offers):
            return at_path(Path(given["folder"])), False
        if held:
            raise UserError(
                "the sites hold checkpoints, but of no step that all of them have",
                where="checkpoint.resume",
                fix=f"give the one of step {max(held)} to all with checkpoint.resume=PATH, or start anew with never",
            )
        if any(offer["given"] is not None for offer in offers):
            raise UserError("differs between the sites", where="checkpoint.resume", fix="give all the same checkpoint")
        if any(offer["lost"] for offer in offers):
            # What the run has learnt is in what was set aside: to begin again is not for us to decide.
            raise UserError(
                f"no checkpoint is whole ({', '.join(message['lost']) or 'of another site'})",
                where="checkpoint.resume",
                fix="restore one, give another with checkpoint.resume=PATH, or start anew with never",
            )
        return None

    def _refuse_parted_sites(self, found: Found) -> None:
        manifest, sync = found.manifest, self._config.sync.kind
        assert manifest is not None
        if manifest.sync == "local" and sync is SyncKind.exact and len(manifest.sites) > 1:
            raise UserError(
                f"step {found.step} was saved under sync=local, where each site has parameters of its own",
                where="sync=exact",
                fix="give one site's checkpoint to all with checkpoint.resume=PATH, in a run of another name",
            )

    def _holdings(self) -> dict[str, Any]:
        """Return what this site has: checkpoints of its own, and the one that it was given."""
        # Of two of the same step the later attempt's counts.
        newest = {entry.step: entry for entry in reversed(self.store.scan()) if entry.manifest is not None}
        own = list(newest.values())
        given = None
        if self._keys.resume not in ("auto", "never"):
            # With checkpoints of its own, a run may be started again after what it began from is gone.
            with suppress(UserError) if own else nullcontext():
                entry = at_path(Path(self._keys.resume))
                given = {"folder": str(entry.folder), "step": entry.step}
        return {
            "own": {str(entry.step): str(entry.folder) for entry in own},
            "given": given,
            "lost": [path.name for path in self.store.lost()],
            "distrusted": [entry.step for entry in distrusted(own, self._rewinds.log.entries)],
        }

    def _verify(self, found: Found) -> str:
        """Check the hashes of all files, a share on each rank; return what is wrong, or ""."""
        assert found.manifest is not None
        size = self._plan.topology.world_size
        wrong = ""
        try:
            check_hashes(found.folder, found.manifest, range(self._engine.rank, found.manifest.ranks, size))
        except Broken as error:
            wrong = str(error)
            self._tell(f"{found.folder.name}: {wrong}")
        broken_somewhere = self._engine.any_rank(bool(wrong))
        return wrong or ("a file that another rank read is damaged" if broken_somewhere else "")

    def _load(self, found: Found, parts: dict[str, Stateful]) -> None:
        manifest = found.manifest
        assert manifest is not None
        changed = compare_config(manifest.config, flat(to_plain(self._config)))
        reader = Reader(found.folder, manifest)
        sync_kind = self._config.sync.kind.name
        same_sites = manifest.sync == sync_kind and len(manifest.sites) == len(self._config.sites.names)
        same_layout = manifest.layout == self._layout and same_sites
        saved = reader.state(self._engine.rank if same_layout else 0)
        inexact = [f"{name} has changed" for name in changed]
        for name, part in parts.items():
            state = saved["parts"][name]
            if name == "sync":
                if not same_sites:
                    if manifest.sync != sync_kind or sync_kind == "local":
                        inexact.append(
                            f"what {manifest.sync} sync of {max(len(manifest.sites), 1)} site(s) kept is dropped"
                        )
                    continue
                inexact += fit_sync_state(state, changed, same_layout, self._config.sync.wire.name)
            part.load_state_dict(state)
        if same_layout:
            restore_generators(saved["random"])
        elif manifest.layout != self._layout:
            inexact.append("the layout has changed: equal to rounding")
        targets = [(record, tensor) for record, tensor, _ in self._slices() if same_sites or _is_inner(record)]
        reader.fill(targets, near=self._engine.rank)
        self._engine.restored(int(saved["parts"]["progress"]["updates"]))
        if self._engine.rank == 0:
            note = f"; not exact: {', '.join(inexact)}" if inexact else ""
            self._tell(f"resumed step {found.step} ({manifest.tokens} tokens) from {found.folder}{note}")

    # ---- agreement

    def _share(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return rank 0's message on all ranks of the site."""
        shared = json.loads(self._engine.broadcast(json.dumps(message).encode()))
        assert isinstance(shared, dict)
        return shared

    def _ask_sites(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the messages of rank 0 of every site on all ranks of all sites."""
        answers = []
        if self._engine.rank == 0:
            answers = [json.loads(answer) for answer in self._sync.ask_sites(json.dumps(message).encode())]
        return list(self._share({"answers": answers})["answers"])


def _record(kind: str, where: Slice) -> Record:
    return Record(kind, where.name, where.global_shape, where.offset, where.shape, where.start, where.stop)


def _is_inner(record: Record) -> bool:
    return record.kind in ("parameter", "exp_avg", "exp_avg_sq")
