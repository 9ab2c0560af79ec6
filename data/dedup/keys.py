"""What deduplication knows of the documents of a unit of work: arrays on disk, bands sorted."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isthmus.data.dedup.signatures import MinHasher
from isthmus.files import write_atomically

DOCUMENTS, TEXTS, SIGNATURES, BANDS, PLACES = "documents", "texts", "signatures", "bands", "places"


@dataclass(frozen=True)
class UnitKeys:
    """The arrays of one unit of n documents, mapped from disk.

    `documents` and `texts` are [n, 2] halves of 128-bit hashes, `signatures` [n, bands x rows], `bands` [bands, n]
    sorted along n, and `places` [bands, n] the document of each sorted hash.
    """

    prefix: Path

    def load(self, name: str) -> NDArray[np.generic]:
        path = _path(self.prefix, name)
        array: NDArray[np.generic] = np.load(path, mmap_mode="r" if path.stat().st_size > 4096 else None)
        return array


def write_keys(
    prefix: Path, documents: list[bytes], texts: list[bytes], signatures: NDArray[np.uint32], hasher: MinHasher | None
) -> None:
    """Write the arrays of a unit; without a hasher no signatures and bands."""
    _save(prefix, DOCUMENTS, halves(documents))
    _save(prefix, TEXTS, halves(texts))
    if hasher is None:
        return
    bands = hasher.band_hashes(signatures)
    places = np.argsort(bands, axis=1, kind="stable").astype(np.uint32)
    _save(prefix, SIGNATURES, signatures)
    _save(prefix, BANDS, np.take_along_axis(bands, places.astype(np.int64), axis=1))
    _save(prefix, PLACES, places)


def halves(hashes: list[bytes]) -> NDArray[np.uint64]:
    """Return 16-byte hashes as [n, 2] numbers that sort as the bytes do."""
    return np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _save(prefix: Path, name: str, array: NDArray[np.generic]) -> None:
    import io

    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_atomically(_path(prefix, name), content.getvalue())


def _path(prefix: Path, name: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{name}.npy")
