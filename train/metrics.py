"""What a run writes about itself: metrics.jsonl for scripts, TensorBoard for people."""

import json
import math
import os
from pathlib import Path
from typing import Any

from isthmus.fault_tolerance.stragglers import Comparison
from isthmus.train.report import StepReport

_MEASURED = ("loss", "learning_rate", "grad_norm", "step_seconds", "tokens_per_second")


class Metrics:
    """Appends one JSON object per logged step; rows of an earlier attempt in the same folder are kept.

    Args:
        folder: the run folder of this site.
        site: name of this site.
        flops_per_token: of forward and backward together.
        peak_flops: of all devices of all sites together; None leaves MFU out.
        every_steps: steps between rows; times and rates are means over the steps since the last row.
    """

    def __init__(
        self,
        folder: Path,
        *,
        site: str,
        flops_per_token: float,
        peak_flops: float | None,
        every_steps: int,
        tensorboard: bool,
    ) -> None:
        self.site, self.every_steps = site, every_steps
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        path = folder / "metrics.jsonl"
        self.attempt = _repair(path) + 1
        self._file = path.open("a", encoding="utf-8")
        self._folder = folder
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._seconds, self._tokens, self._steps, self._reduction = 0.0, 0, 0, 0.0
        self._wan: dict[str, Any] = {}
        self._decisions: list[dict[str, Any]] = []
        self._skips = 0
        self._comparison: Comparison | None = None
        self.last: dict[str, Any] = {}

    def start(self, step: int, tokens: int, held_out: dict[str, float] | None) -> None:
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Points of an earlier attempt beyond this step are hidden, not mixed with the new ones.
            self._writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=step + 1, flush_secs=10)
        if held_out is not None:
            self._write({"step": step, "tokens": tokens, **dict.fromkeys(_MEASURED)}, held_out)

    def decided(self, step: int, decision: str, why: str) -> None:
        """The guard has decided something about a step: it comes into that step's row, which is written in any case."""
        self._decisions.append({"step": step, "decision": decision, "why": why})

    def compared(self, comparison: Comparison) -> None:
        """The ranks' own times were compared: it comes into the next row."""
        self._comparison = comparison

    def step(self, report: StepReport, held_out: dict[str, float] | None) -> None:
        self._seconds += report.step_seconds
        self._tokens += report.step_tokens
        self._steps += 1
        self._reduction += report.reduction_seconds
        self._wan = _add(self._wan, report.wan)
        self._skips += report.skipped
        if report.step % self.every_steps and held_out is None and not self._decisions:
            return
        rate = self._tokens / self._seconds if self._seconds else 0.0
        row: dict[str, Any] = {
            "step": report.step,
            "tokens": report.tokens,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "step_seconds": self._seconds / self._steps,
            "tokens_per_second": rate,
            "site_exposed_seconds": self._reduction,
        }
        if self._peak_flops:
            row["mfu"] = rate * self._flops_per_token / self._peak_flops
        row["data_mix"] = report.mix
        for link in self._wan.get("wan_links", {}).values():
            for way in ("sent", "received"):
                link[f"{way}_mbps"] = link[f"bytes_{way}"] * 8e-6 / self._seconds
        row |= self._wan
        if report.skipped:
            row["skipped"] = True
        if self._decisions:
            row["guard"], self._decisions = self._decisions, []
        row["skipped_batches"] = self._skips
        if (slowest := self._comparison) is not None:
            row |= {"slowest_rank": slowest.rank, "slowest_rank_score": slowest.score}
            row["rank_scores"] = {str(rank): score for rank, score in slowest.scores.items()}
            self._comparison = None
        self._seconds, self._tokens, self._steps, self._reduction, self._wan = 0.0, 0, 0, 0.0, {}
        self._write(row, held_out)

    def conclude(self, step: int, totals: dict[str, float]) -> None:
        """The attempt has ended: draw where the time of all attempts went."""
        if self._writer is None:
            return
        self._writer.add_scalar("goodput/share", totals["goodput"], step)
        for name, figure in totals.items():
            if name.startswith("guard_"):
                self._writer.add_scalar(f"guard/decisions/{name.removeprefix('guard_')}", figure, step)
            elif name not in ("goodput", "elapsed"):
                self._writer.add_scalar(f"goodput/seconds/{name}", figure, step)

    def close(self) -> None:
        if self._decisions:  # the one that ended the run, whose step has no row of its own
            decision, self._decisions = self._decisions[-1], []
            tokens = self.last.get("tokens", 0)
            row = {"step": decision["step"], "tokens": tokens, **dict.fromkeys(_MEASURED), "guard": [decision]}
            self._write(row, None)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _write(self, row: dict[str, Any], held_out: dict[str, float] | None) -> None:
        row |= {"site": self.site, "attempt": self.attempt}
        if held_out is not None:
            row["held_out_loss"] = held_out
        self.last = self.last | row
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        self._file.flush()
        if self._writer is not None:
            self._draw(row, held_out)

    def _draw(self, row: dict[str, Any], held_out: dict[str, float] | None) -> None:
        step = row["step"]
        charts = {
            "loss/train": "loss",
            "optimizer/learning_rate": "learning_rate",
            "optimizer/grad_norm": "grad_norm",
            "speed/step_seconds": "step_seconds",
            "speed/tokens_per_second": "tokens_per_second",
            "speed/mfu": "mfu",
            "progress/tokens": "tokens",
            "wan/bytes_sent": "wan_bytes_sent",
            "wan/bytes_received": "wan_bytes_received",
            "wan/exposed_seconds": "wan_exposed_seconds",
            "wan/transfer_seconds": "wan_transfer_seconds",
            "speed/site_exposed_seconds": "site_exposed_seconds",
            "wan/rounds": "round",
            "wan/rounds_refused": "rounds_refused",
            "guard/skipped_batches": "skipped_batches",
            "speed/slowest_rank": "slowest_rank",
            "speed/slowest_rank_score": "slowest_rank_score",
        }
        for chart, name in charts.items():
            if row.get(name) is not None:
                self._writer.add_scalar(chart, row[name], step)
        for site, link in row.get("wan_links", {}).items():
            self._writer.add_scalar(f"wan/mbps_to/{site}", link["sent_mbps"], step)
            self._writer.add_scalar(f"wan/mbps_from/{site}", link["received_mbps"], step)
        for source, samples in row.get("data_mix", {}).items():
            self._writer.add_scalar(f"data/samples/{source}", samples, step)
        for source, loss in (held_out or {}).items():
            self._writer.add_scalar(f"loss/held_out/{source}", loss, step)
        for entry in row.get("guard", []):
            self._writer.add_text("guard", f"step {entry['step']}: {entry['decision']}, {entry['why']}", step)


def _add(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Add up bytes and seconds, also of single links; the numbers of rounds are where they stand."""
    added = dict(total)
    for name, figure in more.items():
        if isinstance(figure, dict):
            added[name] = _add(total.get(name, {}), figure)
        else:
            added[name] = figure if name.startswith("round") else total.get(name, 0) + figure
    return added


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which strict JSON does not know, by null."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _repair(path: Path) -> int:
    """Cut off a last line that a crash left incomplete; return the number of attempts that wrote to the file."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    lines = whole.splitlines()
    return int(json.loads(lines[-1])["attempt"]) if lines else 0
