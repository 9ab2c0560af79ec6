"""What crossing a thin link costs: lanes, exact and streaming sync, beside flat data parallelism and torchft.

    python benchmarks/sites.py [lane] [exact] [streaming] [flat] [torchft] [--out FILE] [--plot FILE.html]

Two sites of one rank train `model=tiny` on random tokens in network namespaces joined by shaped links (needs root).
Wall clock is what is measured, so nothing else should run. Whatever is compared runs in the same processes, a phase
each in turn: a machine that is slow for a while is slow for both.

    lane       share of a 200 Mbit/s, 80 ms link that one lane fills, over its parallel streams
    exact      step time beside the best schedule that the measured times allow: each bucket leaves when it is ready and
               the link is free, at the rate that one message of all gradients has reached after as long a pause
    streaming  tokens/s of Streaming DiLoCo (int4, H = 30, P = 4) beside no sync at all, where flat fp32 data
               parallelism reaches 10% utilisation, and at a tenth of that bandwidth
    flat       Megatron's data parallelism over the link: one Gloo group of all ranks of all sites
    torchft    torchft's DiLoCo on the same model and links (needs `pip install torchft`)
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wan import Wan

TORCHFT = Path(__file__).parent / "torchft_worker.py"
OVERRIDES = ["model=tiny", "train.sequence_length=256", "train.micro_batch=2"]
RTT_MS = 50.0
GRADIENT_BYTES = 4 * 11_014_400
BANDWIDTHS = (20.0, 50.0, 100.0, 200.0)
EVERY, FRAGMENTS = 30, 4
STREAMING = ["sync=local", f"sync.every={EVERY}", f"sync.fragments={FRAGMENTS}", "sync.overlap_steps=7"]
ALONE = ["sync=none", "train.global_batch=4"]


def lane() -> list[dict[str, Any]]:
    message, rows = 32 << 20, []
    for loss in (0.0, 0.001):
        wan = Wan(2, bandwidth_mbps=200, rtt_ms=80, loss=loss)
        options = [{"streams": streams} for streams in (1, 2, 4, 8)] + [{"streams": 4, "congestion": "cubic"}]
        answers = wan.run({"kind": "lane", "bytes": message, "times": 5, "lanes": options[: 5 if not loss else 4]})
        wan.close()
        for first, second in zip(*answers, strict=True):
            slower = [max(pair) for pair in zip(first["seconds"], second["seconds"], strict=True)]
            filled = message * 8e-6 / statistics.median(slower) / 200
            rows.append({**first, "seconds": slower, "loss": loss, "filled": filled})
            control = first.get("congestion", "bbr")
            print(f"lane, {loss:.1%} loss, {first['streams']} streams, {control}: {filled:.1%} of 200 Mbit/s")
    return rows


def exact(bandwidths: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for bandwidth in bandwidths:
        overrides = [*OVERRIDES, "train.global_batch=16", "sync.verify_every=0"]
        turn = [
            {"variant": "none", "steps": 2},
            {"variant": "bulk", "bytes": GRADIENT_BYTES, "idle_seconds": 1.0},
            {"variant": "exact", "steps": 3},
        ]
        wan = Wan(2, bandwidth_mbps=bandwidth, rtt_ms=RTT_MS)
        variants = {"none": ["sync=none", "train.global_batch=8"], "exact": ["sync=exact"]}
        overrides = overrides[:-1]
        warm_up = [{"variant": "none", "steps": 1}, {"variant": "exact", "steps": 1}]
        job = {"kind": "train", "overrides": overrides, "variants": variants, "phases": [*warm_up, *turn * 4]}
        answers = wan.run(job)
        wan.close()
        measured, ideal, alone, bulk = [], [], [], []
        for at in range(2, len(job["phases"]), 3):
            none, link, synced = ([answer[at + step] for answer in answers] for step in range(3))
            rate = GRADIENT_BYTES / max(answer["seconds"] for answer in link)
            bulk.append(rate * 8e-6)
            pairs = zip(*(answer["rows"] for answer in none), strict=True)
            ideal += [max(best_schedule(row, rate) for row in pair) for pair in pairs]
            alone += [row["seconds"] for answer in none for row in answer["rows"]]
            pairs = zip(*(answer["rows"] for answer in synced), strict=True)
            measured += [max(row["seconds"] for row in pair) for pair in pairs]
        row = {
            "bandwidth_mbps": bandwidth,
            "bulk_mbps": statistics.median(bulk),
            "best_seconds": statistics.median(ideal),
            "step_seconds": statistics.median(measured),
            "alone_seconds": statistics.median(alone),
        }
        row["ratio"] = row["step_seconds"] / row["best_seconds"]
        row["utilisation"] = row["alone_seconds"] / row["step_seconds"]
        rows.append(row)
        print(
            f"exact, {bandwidth:g} Mbit/s: {row['step_seconds']:.2f} s a step, {row['ratio']:.3f}x the best schedule, "
            f"bulk {row['bulk_mbps']:.0f} Mbit/s, utilisation {row['utilisation']:.1%}"
        )
    return rows


def best_schedule(row: dict[str, Any], bytes_per_second: float) -> float:
    """Return the step time if every bucket left as soon as it is ready and the link is free."""
    free = 0.0
    for ready, size in row["ready"]:
        free = max(free, ready) + size / bytes_per_second
    return max(free, row["backward"]) + row["seconds"] - row["backward"]


def streaming() -> list[dict[str, Any]]:
    rows = []
    step_seconds = alone_seconds()
    for share in (1.0, 0.1):
        # Utilisation 10% without overlap: the exchange takes nine times as long as the step.
        bandwidth = share * GRADIENT_BYTES * 8e-6 / (9 * step_seconds)
        wan = Wan(2, bandwidth_mbps=bandwidth, rtt_ms=RTT_MS)
        # A machine that slows down or speeds up does so for both: none, streaming, streaming, none.
        pair = [{"variant": "none", "steps": EVERY}, {"variant": "streaming", "steps": EVERY}]
        turns = [*pair, *reversed(pair)] * 2
        # The first phase ends two steps before a fragment leaves, so that every phase sends and applies all four.
        warm_up = [{"variant": "none", "steps": 2}, {"variant": "streaming", "steps": 2 * EVERY - 2}]
        variants = {"none": ALONE, "streaming": [*STREAMING, "train.global_batch=8"]}
        answers = wan.run({"kind": "train", "overrides": OVERRIDES, "variants": variants, "phases": [*warm_up, *turns]})
        wan.close()
        seconds = {name: phase_seconds(answers, name, skip=2) for name in variants}
        ratios = [none / synced for none, synced in zip(seconds["none"], seconds["streaming"], strict=True)]
        exposed = sum(row["wan_exposed_seconds"] for phase in answers[0][2:] for row in phase["rows"] if len(row) > 5)
        row = {
            "bandwidth_mbps": bandwidth,
            "none_step_seconds": statistics.median(seconds["none"]) / EVERY,
            "streaming_step_seconds": statistics.median(seconds["streaming"]) / EVERY,
            "ratios": ratios,
            "tokens_per_second_ratio": statistics.median(ratios),
            "exposed_seconds": exposed,
        }
        rows.append(row)
        print(
            f"streaming int4, {bandwidth:.1f} Mbit/s: {row['tokens_per_second_ratio']:.1%} of the tokens/s without "
            f"sync ({row['none_step_seconds']:.2f} s a step), {exposed:.2f} s exposed"
        )
    return rows


def alone_seconds() -> float:
    """Return the seconds of a step without sync, beside another site."""
    wan = Wan(2, rtt_ms=RTT_MS)
    phases = [{"variant": "none", "steps": 2}, {"variant": "none", "steps": 8}]
    answers = wan.run({"kind": "train", "overrides": OVERRIDES, "variants": {"none": ALONE}, "phases": phases})
    wan.close()
    return statistics.median(row["seconds"] for answer in answers for row in answer[1]["rows"])


def phase_seconds(answers: list[list[dict[str, Any]]], variant: str, *, skip: int) -> list[float]:
    """Return the seconds of each phase of a variant, of the slower site."""
    phases = [number for number, phase in enumerate(answers[0]) if phase["variant"] == variant and number >= skip]
    return [max(sum(row["seconds"] for row in answer[number]["rows"]) for answer in answers) for number in phases]


def flat(bandwidths: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for bandwidth in sorted({*bandwidths, GRADIENT_BYTES * 8e-6 / (9 * alone_seconds())}):
        wan = Wan(2, bandwidth_mbps=bandwidth, rtt_ms=RTT_MS)
        job = {"kind": "flat", "overrides": [*OVERRIDES, "train.global_batch=8"], "steps": 4}
        answers = wan.run(job)
        wan.close()
        pairs = list(zip(*answers, strict=True))[1:]
        seconds = statistics.median(max(row["seconds"] for row in pair) for pair in pairs)
        cpu = statistics.median(row["cpu_seconds"] for answer in answers for row in answer[1:])
        used = cpu / seconds
        rows.append({"bandwidth_mbps": bandwidth, "step_seconds": seconds, "cpu_seconds": cpu, "utilisation": used})
        print(f"flat data parallelism, {bandwidth:g} Mbit/s: {seconds:.2f} s a step, at most {used:.1%} utilised")
    return rows


def torchft() -> list[dict[str, Any]]:
    """Its sync_every must be a multiple of its fragments, and its delay be below their quotient."""
    rows = []
    for bandwidth in (5.6, 56.0):
        for fragments, delay in ((1, 0), (3, 7)):
            wan = Wan(2, bandwidth_mbps=bandwidth, rtt_ms=RTT_MS)
            job = {"overrides": [*OVERRIDES[:2], "train.micro_batch=4", "train.global_batch=4"], "steps": 2 * EVERY + 1}
            answers = wan.run({**job, "every": EVERY, "fragments": fragments, "delay": delay}, script=TORCHFT)
            wan.close()
            # The second H steps, in which every fragment crosses once.
            seconds = max(sum(row["seconds"] for row in answer[-EVERY:]) for answer in answers) / EVERY
            cpu = statistics.mean(row["cpu_seconds"] for answer in answers for row in answer[1:])
            row = {"bandwidth_mbps": bandwidth, "fragments": fragments, "delay": delay, "step_seconds": seconds}
            rows.append({**row, "utilisation": cpu / seconds})
            print(
                f"torchft, H {EVERY}, P {fragments}, delay {delay}, {bandwidth:g} Mbit/s: {seconds:.2f} s a step, "
                f"at most {cpu / seconds:.1%} utilised"
            )
    return rows


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw utilisation over bandwidth."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, key in (("exact", "utilisation"), ("flat", "utilisation"), ("streaming", "tokens_per_second_ratio")):
        points = sorted((row["bandwidth_mbps"], row[key]) for row in results.get(name, []))
        figure.add_scatter(x=[x for x, _ in points], y=[y for _, y in points], name=name, mode="lines+markers")
    figure.update_xaxes(title="Mbit/s", type="log")
    figure.update_yaxes(title="utilisation", tickformat=".0%", range=[0, 1.05])
    figure.update_layout(title="Time spent computing, two sites of model=tiny")
    figure.write_html(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "lane": lane,
        "exact": exact,
        "streaming": streaming,
        "flat": flat,
        "torchft": torchft,
    }
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure (all but torchft)")
    parser.add_argument("--bandwidths", type=float, nargs="+", default=BANDWIDTHS, help="Mbit/s, of exact and flat")
    parser.add_argument("--out", type=Path, help="JSON of all figures, added to what is there")
    parser.add_argument("--plot", type=Path, help="HTML with utilisation over bandwidth (needs plotly)")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.out and arguments.out.exists():
        results = json.loads(arguments.out.read_text())
    results["machine"] = platform.platform()
    for name in arguments.parts or [name for name in parts if name != "torchft"]:
        results[name] = parts[name](arguments.bandwidths) if name in ("exact", "flat") else parts[name]()
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.plot:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
