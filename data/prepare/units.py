"""Units of work: which files, or ranges of a file, are worked on at once. A function of the input alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.data.prepare.config import PrepareData, PrepareSource, SourceKind
from isthmus.data.readers.columns import row_groups
from isthmus.data.readers.files import InputFile, is_compressed, list_files, open_file
from isthmus.data.transcripts.tracks import video_key
from isthmus.errors import UserError

_FORMATS = {
    SourceKind.web: ("warc", "html", "parquet", "jsonl", "text", "zip", "tar"),
    SourceKind.transcripts: ("captions", "jsonl", "parquet", "text", "zip", "tar"),
    SourceKind.text: ("text", "jsonl", "parquet", "zip", "tar"),
}
_SINGLE = ("html", "text", "captions")  # one document a file
_FILES_PER_UNIT = 2_000


@dataclass(frozen=True)
class Segment:
    """A file, or the part [start, stop) of it: bytes of JSONL, row groups of parquet. `bytes` is about its size."""

    file: InputFile
    bytes: int
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Unit:
    name: str
    source: str
    segments: tuple[Segment, ...]

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment in self.segments)


def source_files(name: str, source: PrepareSource) -> list[InputFile]:
    """List a source's files.

    Raises:
        UserError: no path, or nothing there.
    """
    where = f"data.sources.{name}.path"
    paths = [*([source.path] if source.path else []), *source.paths]
    if not paths:
        raise UserError("is not given", where=where, fix="give a file, folder, glob or URL")
    return list_files(paths, _FORMATS[source.kind], where)


def plan_units(files: dict[str, list[InputFile]], config: PrepareData) -> list[Unit]:
    """Cut the files of all sources into units of about `unit_bytes`, in the order of sources and identities."""
    units = []
    for name, listed in sorted(files.items()):
        groups = _groups(listed, config.sources[name], config.unit_bytes)
        units += [Unit(f"{name}-{number:06d}", name, tuple(group)) for number, group in enumerate(groups)]
    return units


def _groups(files: Sequence[InputFile], source: PrepareSource, unit_bytes: int) -> list[list[Segment]]:
    groups: list[list[Segment]] = []
    gathered: list[Segment] = []
    size = 0
    for cluster in _clusters(files, source):
        if len(cluster) == 1 and cluster[0].format not in _SINGLE:
            parts = _parts(cluster[0], unit_bytes)
            if len(parts) > 1:
                groups += [[part] for part in parts]
                continue
        more = sum(file.bytes for file in cluster)
        if gathered and (size + more > unit_bytes or len(gathered) + len(cluster) > _FILES_PER_UNIT):
            groups.append(gathered)
            gathered, size = [], 0
        gathered += [Segment(file, file.bytes) for file in cluster]
        size += more
    if gathered:
        groups.append(gathered)
    return groups


def _clusters(files: Sequence[InputFile], source: PrepareSource) -> list[list[InputFile]]:
    """Keep the tracks of a video together: which of them is used depends on the others."""
    clusters: dict[str, list[InputFile]] = {}
    for file in files:
        tracks = source.kind is SourceKind.transcripts and file.format == "captions"
        clusters.setdefault(f"video {video_key(file.identity)}" if tracks else f"file {file.identity}", []).append(file)
    return list(clusters.values())


def _parts(file: InputFile, unit_bytes: int) -> list[Segment]:
    """Cut a large file where it can be: plain JSONL anywhere, parquet between row groups."""
    if file.bytes <= unit_bytes or is_compressed(file.identity):
        return [Segment(file, file.bytes)]
    if file.format == "jsonl":
        starts = range(0, file.bytes, unit_bytes)
        return [Segment(file, min(unit_bytes, file.bytes - start), start, start + unit_bytes) for start in starts]
    if file.format == "parquet":
        with open_file(file.url) as raw:
            groups = row_groups(raw)
        per_part = max(1, groups * unit_bytes // file.bytes)
        ends = [(start, min(start + per_part, groups)) for start in range(0, groups, per_part)]
        return [Segment(file, file.bytes * (stop - start) // groups, start, stop) for start, stop in ends]
    return [Segment(file, file.bytes)]
