"""The loader beside Megatron's, mosaicml-streaming and litdata: start-up, tokens per CPU second, random access.

    python benchmarks/loader.py [--tokens 50000000] [--rounds 3] [--peers FOLDER] [--out FILE]

Every contender reads the same tokens in samples of 1024, in a process of its own with one thread, in turn, with the
page cache warm; a figure is the median over rounds. litdata reads in order; isthmus, Megatron and mosaicml-streaming
shuffle. FOLDER has the peers: `pip install --target FOLDER --no-deps litdata mosaicml-streaming`, and
what they ask for when they are imported. The large mixture is of sparse files. Megatron's build is timed on fewer and
smaller files, since its sample index for 10^12 tokens would not fit, and given per file.
"""

import argparse
import functools
import importlib.machinery
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
from loader_data import (
    LARGE_SHARDS,
    LARGE_TOKENS,
    LENGTH,
    VOCABULARY,
    small_samples,
    write_large,
    write_many,
    write_small,
)

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(CONTENDERS[arguments.contender](arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="isthmus-loader-") as folder:
        result = measure(Path(folder), arguments)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    write_small(folder / "small", arguments.tokens)
    write_large(folder / "large")
    write_many(folder / "many")
    readers = ["isthmus", "isthmus-packed", "megatron"]
    peers = ("litdata", "streaming") if arguments.peers else ()
    readers += [peer for peer in peers if run(f"prepare-{peer}", folder, arguments.peers) is not None]
    rates: dict[str, list[float]] = {name: [] for name in readers}
    access: dict[str, list[float]] = {"pread": [], "mmap": []}
    start: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        for name in readers:  # in turn
            found = run(name, folder, arguments.peers)
            if found is not None:
                rates[name].append(found["tokens_per_cpu_second"])
        for name, found_rate in (run("access", folder) or {}).items():
            access[name].append(found_rate)
        if found := run("start", folder):
            start.append(found)
    medians = {name: statistics.median(found) for name, found in rates.items() if found}
    return {
        "machine": platform.processor() or platform.machine(),
        "samples_of": LENGTH,
        "tokens": arguments.tokens,
        "tokens_per_cpu_second": medians,
        "all_rounds": rates,
        "isthmus_over": {name: medians["isthmus"] / rate for name, rate in medians.items() if name != "isthmus"},
        "bytes_per_cpu_second": {name: statistics.median(found) for name, found in access.items()},
        "start": {name: statistics.median(found[name] for found in start) for name in start[0]},
        "start_all_rounds": {name: [found[name] for found in start] for name in ("seconds", "cpu_seconds")},
        "megatron_start": run("megatron-start", folder),
        "random_access": run("random", folder),
        "packing": run("packing", folder),
    }


def run(contender: str, folder: Path, peers: Path | None = None) -> dict[str, Any] | None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if peers and contender.removeprefix("prepare-") in ("litdata", "streaming"):
        environment["PYTHONPATH"] = str(peers)
    command = [sys.executable, __file__, "--contender", contender, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"{contender} does not run here: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    value: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return value


def our_loader(sources: dict[str, Path], samples: int, folder: Path, *, packed: bool = False) -> Any:
    from isthmus.data.config import DataConfig, Packing, SourceConfig
    from isthmus.data.corpus import build_corpus
    from isthmus.data.loader import MixtureLoader, validate_corpus
    from isthmus.data.shares import Division

    config = DataConfig(
        sources={
            name: SourceConfig(path=str(path), weight=1.0 + number)
            for number, (name, path) in enumerate(sources.items())
        },
        cache_dir=str(folder / "cache"),
        held_out=0.001,
        packing=Packing.best_fit if packed else Packing.stream,
    )
    corpus = build_corpus(config, VOCABULARY, LENGTH)
    mixture = validate_corpus(
        corpus, config, sequence_length=LENGTH, global_batch=BATCH, steps=samples // BATCH, seed=0, held_out=False
    )
    return MixtureLoader(
        corpus, mixture, config, sequence_length=LENGTH, global_batch=BATCH, micro_batch=8, division=Division()
    )


def isthmus(folder: Path, *, packed: bool = False) -> dict[str, float]:
    samples = Path(folder / "small/part-0.bin").stat().st_size * 8 // 2 // LENGTH
    loader = our_loader({"small": folder / "small"}, samples, folder, packed=packed)
    loader.next_step()
    return rate(lambda: sum(batch.tokens_BS.numel() for batch in loader.next_step()), samples // BATCH - 2)


def megatron(folder: Path) -> dict[str, float]:
    dataset = megatron_dataset([str(folder / f"small/part-{number}") for number in range(8)], folder / "cache-megatron")
    numbers = iter(range(len(dataset)))
    return rate(lambda: sum(dataset[next(numbers)]["tokens"].numel() for _ in range(BATCH)), len(dataset) // BATCH - 2)


def megatron_dataset(prefixes: list[str], cache: Path, samples: int = 40_000) -> Any:
    import logging

    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    logging.disable(logging.WARNING)
    torch.distributed.init_process_group("gloo", init_method=f"file://{cache}.store", rank=0, world_size=1)
    tokenizer = types.SimpleNamespace(eod=0, vocab_size=VOCABULARY, unique_identifiers={"class": "none"}, pad=1)
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=LENGTH,
        blend=(prefixes, [1.0] * len(prefixes)),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(cache),
        tokenizer=tokenizer,
        mid_level_dataset_surplus=0.005,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def rate(step: Any, steps: int) -> dict[str, float]:
    step()
    started, tokens = time.process_time(), 0
    for _ in range(steps):
        tokens += step()
    return {"tokens_per_cpu_second": tokens / (time.process_time() - started), "tokens": tokens}


def start(folder: Path) -> dict[str, float]:
    """From the mixture's paths to its first batch; imports are not counted."""
    import isthmus.data.loader  # noqa: F401

    before, peak = resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.perf_counter(), time.process_time()
    loader = our_loader({f"set{number}": folder / f"large/set{number}" for number in range(5)}, 10**9, folder)
    loader.next_step()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    return {
        "shards": LARGE_SHARDS,
        "tokens": LARGE_TOKENS,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "megabytes": max(grown * 1024, resident_bytes() - before) / 1e6,
        "process_megabytes": resident_bytes() / 1e6,
    }


def megatron_start(folder: Path) -> dict[str, float]:
    import megatron.core.datasets.gpt_dataset  # noqa: F401

    prefixes = [str(path.with_suffix("")) for path in sorted((folder / "many").glob("*.bin"))]
    started = time.perf_counter()
    megatron_dataset(prefixes, folder / "cache-many", samples=15_000)
    seconds = time.perf_counter() - started
    return {"files": len(prefixes), "seconds": seconds, "seconds_for_2000": seconds / len(prefixes) * LARGE_SHARDS}


def random_access(folder: Path) -> dict[str, float]:
    """A single sample by number, anywhere in 10^12 tokens: position and read."""
    loader = our_loader({f"set{number}": folder / f"large/set{number}" for number in range(5)}, 10**9, folder)
    numbers = np.random.default_rng(0).integers(0, 9 * 10**8, 2_000).tolist()
    seconds, cpu_seconds = [], []
    reader = loader._reader()
    for number in numbers:
        started, cpu = time.perf_counter(), time.process_time()
        reader.read([number])
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu)
    p50, p99 = (float(value) * 1e3 for value in np.quantile(seconds, [0.5, 0.99]))
    cpu_p99 = float(np.quantile(cpu_seconds, 0.99)) * 1e3
    return {"samples": len(seconds), "p50_milliseconds": p50, "p99_milliseconds": p99, "p99_cpu_milliseconds": cpu_p99}


def access(folder: Path) -> dict[str, float]:
    """Windows anywhere in files of the page cache, copied to a buffer by pread or from a map; bytes per CPU second."""
    files = sorted((folder / "small").glob("*.bin"))
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    maps = [np.asarray(np.memmap(file, dtype="<u2", mode="r")) for file in files]  # slices of a memmap are slow
    draw = np.random.default_rng(0)
    starts = [
        (file, int(draw.integers(len(maps[file]) - LENGTH))) for file in draw.integers(len(maps), size=40_000).tolist()
    ]
    row = np.empty(LENGTH + 1, dtype="<u2")
    target = memoryview(row.view(np.uint8).data)

    def pread() -> None:
        for file, start in starts:
            os.preadv(descriptors[file], [target], 2 * start)

    def mapped() -> None:
        for file, start in starts:
            row[:] = maps[file][start : start + LENGTH + 1]

    def bytes_per_cpu_second(read: Any) -> float:
        started = time.process_time()
        read()
        return len(starts) * row.nbytes / (time.process_time() - started)

    return {"pread": bytes_per_cpu_second(pread), "mmap": bytes_per_cpu_second(mapped)}


def packing(folder: Path) -> dict[str, float]:
    """Packing documents whose lengths are log-normal, as those of web pages are, for samples of 4,096 tokens."""
    from isthmus.data.shards.packing import write_packing

    draw = np.random.default_rng(0)
    lengths = np.maximum(1, draw.lognormal(6.2, 1.2, 1_000_000)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    table, record = write_packing(folder, "packed", starts, 4_096)
    return {
        "documents": len(lengths),
        "tokens": table.tokens,
        "cpu_seconds": time.process_time() - started,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6,
        "table_bytes_per_token": record.bytes / table.tokens,
        "fill": table.tokens / (table.windows * 4_097),
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def prepare_litdata(folder: Path) -> dict[str, float]:
    import torch
    from litdata.streaming import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes=64 * 2**20, item_loader=TokensLoader(LENGTH))
    for number, row in enumerate(small_samples(folder)):
        writer.add_item(number, torch.from_numpy(row))
    writer.done()
    writer.merge()
    return {}


def litdata(folder: Path) -> dict[str, float]:
    from litdata import StreamingDataset
    from litdata.streaming import TokensLoader

    dataset = StreamingDataset(str(folder / "litdata"), item_loader=TokensLoader(LENGTH), shuffle=False)
    rows = iter(dataset)
    return rate(lambda: sum(next(rows).numel() for _ in range(BATCH)), len(dataset) // BATCH - 4)


def stub_torchvision() -> None:
    """mosaicml-streaming imports torchvision, whose wheel does not import beside this torch."""

    def stand_in(attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})

    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets"):
        module = types.ModuleType(name)
        module.__getattr__ = stand_in  # type: ignore[method-assign]
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)  # transformers looks for it
        sys.modules[name] = module


def prepare_streaming(folder: Path) -> dict[str, float]:
    stub_torchvision()
    from streaming import MDSWriter

    columns = {"tokens": f"ndarray:uint16:{LENGTH}"}
    with MDSWriter(out=str(folder / "streaming"), columns=columns, size_limit=64 * 2**20) as writer:
        for row in small_samples(folder):
            writer.write({"tokens": row})
    return {}


def streaming(folder: Path) -> dict[str, float]:
    stub_torchvision()
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(folder / "streaming"), shuffle=True, batch_size=BATCH)
    rows = iter(dataset)
    return rate(lambda: sum(next(rows)["tokens"].size for _ in range(BATCH)), len(dataset) // BATCH - 4)


CONTENDERS = {
    "isthmus": isthmus,
    "isthmus-packed": functools.partial(isthmus, packed=True),
    "megatron": megatron,
    "litdata": litdata,
    "streaming": streaming,
    "prepare-litdata": prepare_litdata,
    "prepare-streaming": prepare_streaming,
    "start": start,
    "megatron-start": megatron_start,
    "random": random_access,
    "access": access,
    "packing": packing,
}


if __name__ == "__main__":
    main()
