"""What a run writes about itself, and how it hears that it should stop."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from isthmus.fault_tolerance.stragglers import Comparison
from isthmus.train.metrics import Metrics
from isthmus.train.report import StepReport
from isthmus.train.stop import StopRequest

# DESIGN.md, "Commands": what every row of metrics.jsonl has
_FIELDS = {
    "step",
    "tokens",
    "loss",
    "learning_rate",
    "grad_norm",
    "step_seconds",
    "tokens_per_second",
    "site",
    "attempt",
}


def _metrics(folder: Path, **fields: Any) -> Metrics:
    defaults: dict[str, Any] = {"flops_per_token": 6.0, "peak_flops": None, "every_steps": 1, "tensorboard": False}
    return Metrics(folder, site="main", **(defaults | fields))


def _report(step: int, **fields: Any) -> StepReport:
    defaults: dict[str, Any] = {
        "step": step,
        "tokens": 100 * step,
        "loss": 5.0 - step,
        "learning_rate": 0.1,
        "grad_norm": 2.0,
        "step_tokens": 100,
        "step_seconds": 0.5,
        "skipped": False,
        "mix": {"web": 3 * step},
    }
    return StepReport(**(defaults | fields))


def _rows(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON (RFC 8259, section 6)")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_rows_have_the_documented_fields(tmp_path: Path) -> None:
    metrics = _metrics(tmp_path, peak_flops=2_400.0)
    metrics.start(0, 0, {"web": 6.0})
    metrics.step(_report(1), None)
    assert len(_rows(tmp_path)) == 2, "a row is on disk as soon as it is written"
    metrics.step(_report(2, skipped=True), {"web": 3.5})
    metrics.close()
    before, first, second = _rows(tmp_path)
    for row in (before, first, second):
        assert set(row) >= _FIELDS
        assert (row["site"], row["attempt"]) == ("main", 1)
    assert (before["step"], before["loss"], before["held_out_loss"]) == (0, None, {"web": 6.0})
    assert (first["step"], first["tokens"], first["loss"], first["data_mix"]) == (1, 100, 4.0, {"web": 3})
    assert first["tokens_per_second"] == 200.0  # 100 tokens in 0.5 s
    assert first["mfu"] == 0.5  # 200 tokens/s x 6 FLOPs of 2,400 FLOP/s
    assert "held_out_loss" not in first
    assert "skipped" not in first
    assert (second["held_out_loss"], second["skipped"]) == ({"web": 3.5}, True)


def test_rates_are_means_over_the_steps_since_the_last_row(tmp_path: Path) -> None:
    metrics = _metrics(tmp_path, every_steps=3)
    metrics.start(0, 0, None)
    for step, seconds in enumerate((1.0, 2.0, 3.0, 4.0), start=1):
        metrics.step(_report(step, step_seconds=seconds), None)
    metrics.step(_report(5, step_seconds=6.0), {"web": 1.0})  # an evaluation is never left out
    metrics.step(_report(6, step_seconds=7.0), None)
    metrics.close()
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == [3, 5, 6]
    assert [row["step_seconds"] for row in rows] == [2.0, 5.0, 7.0]
    assert [row["tokens_per_second"] for row in rows] == [300 / 6, 200 / 10, 100 / 7]
    assert "mfu" not in rows[0]


def test_nan_becomes_null(tmp_path: Path) -> None:
    metrics = _metrics(tmp_path)
    metrics.step(_report(1, loss=float("nan")), None)
    metrics.close()
    assert _rows(tmp_path)[0]["loss"] is None


@pytest.mark.parametrize(
    ("fields", "held_out"), [({"grad_norm": float("inf")}, None), ({}, {"web": float("nan")})], ids=["inf", "nested"]
)
def test_no_row_breaks_a_strict_reader(
    tmp_path: Path, fields: dict[str, float], held_out: dict[str, float] | None
) -> None:
    metrics = _metrics(tmp_path)
    metrics.step(_report(1, **fields), held_out)
    metrics.close()
    assert len(_rows(tmp_path)) == 1


def test_torn_line_is_cut_and_attempts_count_up(tmp_path: Path) -> None:
    first = _metrics(tmp_path)
    first.step(_report(1), None)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "tok')  # the machine went down here
    for attempt in (2, 3):
        metrics = _metrics(tmp_path)
        assert metrics.attempt == attempt
        metrics.step(_report(attempt), None)
        metrics.close()
    assert [(row["step"], row["attempt"]) for row in _rows(tmp_path)] == [(1, 1), (2, 2), (3, 3)]


def test_file_that_holds_only_a_torn_line_starts_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1')
    metrics = _metrics(tmp_path)
    metrics.step(_report(1), None)
    metrics.close()
    assert [row["attempt"] for row in _rows(tmp_path)] == [1]


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    metrics = _metrics(tmp_path, tensorboard=True, peak_flops=2_400.0)
    metrics.start(0, 0, {"web": 6.0})
    metrics.step(_report(1), None)
    metrics.step(_report(2), {"web": 3.5})
    metrics.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def points(chart: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(chart)]

    assert points("loss/train") == [(1, 4.0), (2, 3.0)]
    assert points("loss/held_out/web") == [(0, 6.0), (2, 3.5)]
    assert points("progress/tokens") == [(0, 0.0), (1, 100.0), (2, 200.0)]
    assert points("data/samples/web") == [(1, 3.0), (2, 6.0)]
    assert points("optimizer/grad_norm") == [(1, 2.0), (2, 2.0)]
    assert points("speed/mfu") == [(1, 0.5), (2, 0.5)]
    assert points("optimizer/learning_rate")[0][1] == pytest.approx(0.1)


def test_first_ctrl_c_asks_and_the_second_insists() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop.listening() as listening:
        assert listening is stop
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        assert stop.received is signal.SIGINT
        signal.raise_signal(signal.SIGTERM)  # torchrun forwards the same Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_termination_asks_as_often_as_it_comes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert stop.received is signal.SIGTERM
    assert stop(), "a request outlives the listening"
    assert signal.getsignal(signal.SIGTERM) == before


def test_second_ctrl_c_insists_after_a_termination_too() -> None:
    with StopRequest().listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_the_guard_decides_has_a_row_at_once(tmp_path: Path) -> None:
    metrics = _metrics(tmp_path, every_steps=10)
    metrics.start(0, 0, None)
    metrics.step(_report(1), None)
    metrics.decided(2, "skip", "the loss is nan")
    metrics.step(_report(2, skipped=True), None)
    metrics.step(_report(3), None)
    metrics.decided(4, "stop", "the loss is nan")  # its step has no report: the run ends
    metrics.close()
    skipped, stopped = _rows(tmp_path)
    assert skipped["guard"] == [{"step": 2, "decision": "skip", "why": "the loss is nan"}]
    assert (skipped["step"], skipped["skipped"], skipped["skipped_batches"]) == (2, True, 1)
    assert (stopped["step"], stopped["guard"][0]["decision"]) == (4, "stop")
    assert set(stopped) >= _FIELDS


def test_tensorboard_has_guard_stragglers_and_goodput(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = _metrics(tmp_path, tensorboard=True)
    metrics.start(0, 0, None)
    metrics.compared(Comparison({1: 2.5, 0: 1.0}, data_seconds=0.5, forward_seconds=2.0, peers_seconds=1.0))
    metrics.decided(1, "skip", "the loss is nan")
    metrics.step(_report(1, skipped=True), None)
    metrics.conclude(1, {"goodput": 0.75, "elapsed": 8.0, "compute": 6.0, "recovery": 2.0, "guard_skip": 1})
    metrics.close()
    (row,) = _rows(tmp_path)
    assert (row["slowest_rank"], row["slowest_rank_score"], row["rank_scores"]) == (1, 2.5, {"1": 2.5, "0": 1.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found["goodput/share"] == 0.75
    assert (found["goodput/seconds/compute"], found["goodput/seconds/recovery"]) == (6.0, 2.0)
    assert (found["speed/slowest_rank"], found["speed/slowest_rank_score"]) == (1.0, 2.5)
    assert (found["guard/skipped_batches"], found["guard/decisions/skip"]) == (1.0, 1.0)
    assert "guard/text_summary" in events.Tags()["tensors"]
