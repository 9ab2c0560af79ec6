"""What deduplication knows of the documents of a unit of work: arrays on disk, bands sorted."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.data.dedup.signatures import MinHasher
from isthmus.files import write_atomically

DOCUMENTS, TEXTS, SIGNATURES, BANDS, PLACES = "documents", "texts", "signatures", "bands", "places"
_ROWS_AT_ONCE = 20_000


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


class KeyWriter:
    """Gathers the keys of a unit: hashes in memory (32 bytes a document), signatures on disk.

    Without a hasher there are no signatures and bands.
    """

    def __init__(self, prefix: Path, hasher: MinHasher | None) -> None:
        self._prefix, self._hasher = prefix, hasher
        self._documents, self._texts = bytearray(), bytearray()
        self._raw = tempfile.TemporaryFile(dir=prefix.parent)  # noqa: SIM115 - `close` ends it

    @property
    def count(self) -> int:
        return len(self._documents) // 16

    def add(self, document: bytes, text: bytes, signature: NDArray[np.uint32] | None) -> None:
        self._documents += document
        self._texts += text
        if signature is not None:
            self._raw.write(signature.tobytes())

    def close(self) -> None:
        """Write the arrays; a band at a time, so that memory does not grow with their number."""
        with self._raw:
            _save(self._prefix, DOCUMENTS, halves(bytes(self._documents)))
            _save(self._prefix, TEXTS, halves(bytes(self._texts)))
            if self._hasher is None:
                return
            shape = (self.count, self._hasher.bands * self._hasher.rows)
            by_band = (self._hasher.bands, self.count)
            self._raw.flush()
            with (
                _new_array(self._prefix, SIGNATURES, np.dtype(np.uint32), shape) as signatures,
                _new_array(self._prefix, BANDS, np.dtype(np.uint64), by_band) as bands,
                _new_array(self._prefix, PLACES, np.dtype(np.uint32), by_band) as places,
            ):
                self._raw.seek(0)
                for start in range(0, self.count, _ROWS_AT_ONCE):
                    stop = min(self.count, start + _ROWS_AT_ONCE)
                    content = self._raw.read((stop - start) * shape[1] * 4)
                    part = np.frombuffer(content, dtype=np.uint32).reshape(-1, shape[1])
                    signatures[start:stop] = part
                    bands[:, start:stop] = self._hasher.band_hashes(part)
                for band in range(self._hasher.bands):
                    order = np.argsort(bands[band], kind="stable")
                    places[band] = order
                    bands[band] = bands[band][order]


def halves(hashes: bytes) -> NDArray[np.uint64]:
    """Return 16-byte hashes as [n, 2] numbers that sort as the bytes do."""
    return np.frombuffer(hashes, dtype=">u8").astype(np.uint64).reshape(-1, 2)


@contextlib.contextmanager
def _new_array(prefix: Path, name: str, dtype: np.dtype, shape: tuple[int, int]) -> Iterator[NDArray[Any]]:
    """Write an array that need not fit in memory; it takes its name when it is complete and on disk."""
    if not shape[0] * shape[1]:  # nothing can be mapped
        _save(prefix, name, np.zeros(shape, dtype))
        yield np.zeros(shape, dtype)
        return
    path = _path(prefix, name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
    try:
        yield array
        array.flush()
        del array
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _save(prefix: Path, name: str, array: NDArray[np.generic]) -> None:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_atomically(_path(prefix, name), content.getvalue())


def _path(prefix: Path, name: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{name}.npy")
