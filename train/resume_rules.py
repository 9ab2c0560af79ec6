"""Which configuration keys may change between the attempts of one run: the table of docs/fault_tolerance.md."""

from typing import Any

from isthmus.errors import UserError

FORBIDDEN = {
    "model": "the checkpoint holds another model",
    "train.seed": "it decides the order of the samples",
    "train.sequence_length": "it decides what a sample is",
    "data.tokenizer": "it decides what a token is",
    "data.vocab_size": "it decides what a token is",
    "data.packing": "it decides what a sample is",
    "data.held_out": "it decides what is never trained on",
    "data.held_out_tokens": "it decides what is never trained on",
    "data.shuffle_chunk_bytes": "it decides which sample comes when",
    "data.shuffle_group_chunks": "it decides which sample comes when",
}
# Changes nothing but where and how fast: the trajectory stays the same, to rounding where the layout changes.
# What is in neither table bends the run and is named; so does an edited mixture, which goes on from the sample reached.
FREE = (
    "run",
    "log",
    "lane",
    "sites",
    "checkpoint",
    "restart",
    "watchdog",
    "chaos",
    "eval",
    "parallel",
    "model.name",
    "train.device",
    "train.threads",
    "train.timeout_seconds",
    "train.micro_batch",
    "train.deterministic",
    "data.cache_dir",
    "data.cache_bytes",
    "data.workers",
    "data.prefetch",
    "data.open_files",
    "data.check_blocks",
    "data.max_bad_windows",
    "data.log_samples",
    "sync.verify_every",
)


def compare_config(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the keys whose change makes the run another than the one that was begun, under dotted names.

    Raises:
        UserError: a key has changed that may not.
    """
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    bending = [name for name in changed if not _covered(name, FREE)]
    for name in bending:
        for prefix, why in FORBIDDEN.items():
            if _covered(name, (prefix,)):
                raise UserError(
                    f"is {now.get(name)!r}, the checkpoint was made with {before.get(name)!r}: {why}",
                    where=name,
                    fix="change it back, choose another run.name or set checkpoint.resume=never",
                )
    return sorted(bending)


def _covered(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def fit_sync_state(state: dict[str, Any], changed: list[str], same_layout: bool, wire: str) -> list[str]:
    """Take out of a sync's state what the configuration no longer has a place for; return what that costs."""
    lost = []
    codec_changed = any(name in changed for name in ("sync.wire", "sync.density", "sync.error_decay"))
    schedule = any(name in changed for name in ("sync.every", "sync.fragments", "sync.overlap_steps"))
    # The errors lie in blocks, whose size is the codec's, and fragment by fragment.
    if (not same_layout or codec_changed or schedule) and state.pop("local", None) is not None and wire != "fp32":
        lost.append("the errors of compression begin at zero")
    if schedule and state.get("under_way"):
        state["under_way"] = []
        lost.append("the rounds under way are dropped")
    return lost
