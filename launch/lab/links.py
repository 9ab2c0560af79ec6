"""What the links between sites are like: from `lab.*` keys, or from a YAML file of links. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from isthmus.errors import UserError

_LEAST_QUEUE_BYTES = 128 * 1024  # room for two of the largest packets that TCP hands down


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One direction of a link. Bandwidth counts IP packets, headers included; None is no limit."""

    bandwidth_mbps: float | None = None
    rtt_ms: float = 0.0  # half of it in each direction
    jitter_ms: float = 0.0  # up to so much more, evenly spread, without reordering
    loss: float = 0.0  # share of packets
    queue_ms: float | None = None  # packets that would wait longer are dropped; None: a round trip, at least 128 KiB

    def bytes_per_second(self) -> float | None:
        return None if self.bandwidth_mbps is None else self.bandwidth_mbps * 1e6 / 8

    def queue_bytes(self) -> float:
        """Return how much may wait."""
        rate = self.bytes_per_second()
        if rate is None:
            return float("inf")
        waits_ms = self.rtt_ms if self.queue_ms is None else self.queue_ms
        return max(rate * waits_ms / 1000, _LEAST_QUEUE_BYTES)

    def describe(self) -> str:
        parts = ["no limit" if self.bandwidth_mbps is None else f"{self.bandwidth_mbps:g} Mbit/s"]
        parts.append(f"{self.rtt_ms:g} ms round trip")
        if self.jitter_ms:
            parts.append(f"{self.jitter_ms:g} ms jitter")
        if self.loss:
            parts.append(f"{self.loss:.2%} loss")
        return ", ".join(parts)


@dataclass(frozen=True)
class Links:
    """All links of a lab: `shapes[source, target]` for every ordered pair of sites."""

    names: Sequence[str]
    shapes: dict[tuple[int, int], Shape] = field(default_factory=dict)

    @classmethod
    def uniform(cls, names: Sequence[str], shape: Shape) -> "Links":
        """Return links that are all alike.

        Raises:
            UserError: a figure that no link can have.
        """
        _check(shape, "lab")
        count = range(len(names))
        return cls(names, {(source, target): shape for source in count for target in count if source != target})

    @property
    def lossy(self) -> bool:
        return any(shape.loss > 0 for shape in self.shapes.values())


def read_links(path: Path, default: Shape) -> Links:
    """Read a file of links.

    ```yaml
    sites: [oregon, iowa, dublin]
    links:
      - {between: [oregon, iowa], bandwidth_mbps: 100, rtt_ms: 36}
      - {from: dublin, to: iowa, bandwidth_mbps: 20}     # one direction; later entries win
    ```

    Args:
        default: what no entry says.

    Raises:
        UserError: the file is missing or makes no sense; names the entry.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix="check lab.links") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError("is not YAML", where=f"{path}{line}", fix="write valid YAML") from None
    if not isinstance(content, dict) or not isinstance(content.get("sites"), list):
        raise UserError("names no sites", where=str(path), fix="begin with `sites: [NAME, NAME]`")
    if unknown := sorted(set(content) - {"sites", "links"}):
        raise UserError(f"there is no key '{unknown[0]}'", where=str(path), fix="sites and links are the keys")
    names = [str(name) for name in content["sites"]]
    links = Links.uniform(names, default)
    for number, entry in enumerate(content.get("links") or [], 1):
        _apply(links, entry, f"{path}: link {number}")
    return links


def _apply(links: Links, entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"is {entry!r}", where=where, fix="write {between: [A, B], bandwidth_mbps: 100}")
    figures = dict(entry)
    ends = figures.pop("between", None), figures.pop("from", None), figures.pop("to", None)
    match ends:
        case [str(a), str(b)], None, None:
            pairs = [(a, b), (b, a)]
        case None, str(source), str(target):
            pairs = [(source, target)]
        case _:
            raise UserError("does not say which", where=where, fix="write `between: [A, B]` or `from: A, to: B`")
    if unknown := sorted(set(figures) - set(asdict(Shape()))):
        raise UserError(f"there is no key '{unknown[0]}'", where=where, fix=f"choose from {', '.join(asdict(Shape()))}")
    for name, figure in figures.items():
        if isinstance(figure, bool) or not isinstance(figure, int | float | None):
            raise UserError(f"{name} is {figure!r}", where=where, fix="give a number")
    for pair in pairs:
        for name in pair:
            if name not in links.names:
                raise UserError(f"there is no site '{name}'", where=where, fix=f"sites are {', '.join(links.names)}")
        key = links.names.index(pair[0]), links.names.index(pair[1])
        if key not in links.shapes:
            raise UserError(f"joins {pair[0]} to itself", where=where, fix="name two sites")
        links.shapes[key] = replace(links.shapes[key], **figures)
        _check(links.shapes[key], where)


def _check(shape: Shape, where: str) -> None:
    if shape.bandwidth_mbps is not None and shape.bandwidth_mbps <= 0:
        raise UserError(f"is {shape.bandwidth_mbps}", where=f"{where}.bandwidth_mbps", fix="it must be positive")
    for name in ("rtt_ms", "jitter_ms", "queue_ms"):
        if (getattr(shape, name) or 0) < 0:
            raise UserError(f"is {getattr(shape, name)}", where=f"{where}.{name}", fix="0 or more")
    if not 0 <= shape.loss < 1:
        raise UserError(f"is {shape.loss}", where=f"{where}.loss", fix="a share from 0 to below 1, as 0.001")
