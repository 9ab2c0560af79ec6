"""Bytes of plain, gzip or zstd files, in bounded memory, with a way on after damage.

`gzip` and `zstandard` readers stop for good at the first bad byte, and hide where members begin; an archive of a
thousand members must lose only the bad one.
"""

import zlib
from collections import deque
from typing import Any, BinaryIO, Protocol

from isthmus.data.extras import need
from isthmus.data.readers.records import Corrupt, Limits

_CHUNK = 1 << 18
_FREE_BYTES = 64 * 2**20  # may expand without limit: a short text can be all one letter
_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_FEED = 1 << 10  # at most 32 MB of output: a block of 4 bytes can stand for 128 kB


class _Decoder(Protocol):
    """Yields decompressed chunks; b"" is the end. After `Corrupt`, `resume` says whether there is more."""

    member: int  # byte of the file at which the current member or frame begins

    def chunk(self) -> bytes: ...
    def resume(self) -> bool: ...


class Stream:
    """The decompressed bytes of a file; its name or its first bytes tell the compression (either may be wrong)."""

    def __init__(self, raw: BinaryIO, limits: Limits, *, start: int = 0, name: str = "") -> None:
        head = _read_exactly(raw, 4)
        raw.seek(start)
        self._decoder: _Decoder
        if start == 0 and (head.startswith(_GZIP_MAGIC[:2]) or name.lower().endswith((".gz", ".tgz"))):
            self._decoder = _Gzip(raw, limits)
        elif start == 0 and (head == _ZSTD_MAGIC or name.lower().endswith(".zst")):
            self._decoder = _Zstd(raw, limits)
        else:
            self._decoder = _Plain(raw, start)
        self.compressed = not isinstance(self._decoder, _Plain)
        self._buffer = bytearray()
        self._at = 0  # first byte of the buffer that is not consumed
        self._base = start  # decompressed offset of the buffer's first byte
        self._members: deque[tuple[int, int]] = deque()

    @property
    def offset(self) -> int:
        """The decompressed offset of the next byte."""
        return self._base + self._at

    @property
    def stored_offset(self) -> int:
        """Where the next byte's member begins in the file; for a plain file, the byte itself."""
        if not self.compressed:
            return self.offset
        self._fill()
        while len(self._members) > 1 and self._members[1][0] <= self.offset:
            self._members.popleft()
        return self._members[0][1] if self._members else 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end of the file."""
        while len(self._buffer) - self._at < size and self._more():
            pass
        taken = bytes(self._buffer[self._at : self._at + size])
        self._at += len(taken)
        self._trim()
        return taken

    def unread(self, content: bytes) -> None:
        """Put back what was read last."""
        if self._at >= len(content):
            self._at -= len(content)
        else:
            self._base -= len(content) - self._at
            self._buffer[: self._at] = content
            self._at = 0

    def skip(self, size: int) -> int:
        """Pass over `size` bytes in bounded memory and return how many there were."""
        passed = 0
        while passed < size and (self._at < len(self._buffer) or self._fill()):
            step = min(size - passed, len(self._buffer) - self._at)
            self._at += step
            passed += step
            self._trim()
        return passed

    def line(self, limit: int) -> tuple[bytes, bool]:
        """Return (the next line with its newline, False), or (its first bytes, True) and pass over a longer one."""
        searched = self._at
        while True:
            found = self._buffer.find(b"\n", searched)
            if found >= 0 or len(self._buffer) - self._at > limit:
                break
            searched = len(self._buffer)
            before = self._at
            if not self._more():
                break
            searched -= before - self._at
        stop = found + 1 if found >= 0 else len(self._buffer)
        if stop - self._at <= limit + 1:
            line = bytes(self._buffer[self._at : stop])
            self._at = stop
            self._trim()
            return line, False
        head = bytes(self._buffer[self._at : self._at + 100])
        while found < 0:
            self._at = len(self._buffer)
            if not self._fill():
                return head, True
            found = self._buffer.find(b"\n", self._at)
        self._at = found + 1
        self._trim()
        return head, True

    def resume(self) -> bool:
        """After `Corrupt`: drop what is buffered and go to the next member; False if there is none."""
        self._base += len(self._buffer)
        self._buffer.clear()
        self._at = 0
        self._members.clear()
        return self._decoder.resume()

    def _fill(self) -> bool:
        return self._at < len(self._buffer) or self._more()

    def _more(self) -> bool:
        self._trim()
        chunk = self._decoder.chunk()
        if chunk and (not self._members or self._members[-1][1] != self._decoder.member):
            self._members.append((self._base + len(self._buffer), self._decoder.member))
        self._buffer += chunk
        return bool(chunk)

    def _trim(self) -> None:
        if self._at > _CHUNK or self._at == len(self._buffer):
            del self._buffer[: self._at]
            self._base += self._at
            self._at = 0


class _Plain:
    def __init__(self, raw: BinaryIO, start: int) -> None:
        self._raw, self.member = raw, start

    def chunk(self) -> bytes:
        return self._raw.read(_CHUNK)

    def resume(self) -> bool:
        return True


class _Gzip:
    def __init__(self, raw: BinaryIO, limits: Limits) -> None:
        self._raw, self._limits = raw, limits
        self._pending = b""
        self._at = 0  # file offset of the first pending byte
        self.member = 0
        self._inflate: Any = None
        self._produced = 0

    def chunk(self) -> bytes:
        while True:
            if not self._pending:
                self._pending = self._raw.read(_CHUNK)
                if not self._pending:
                    if self._inflate is not None:
                        self._inflate = None
                        raise Corrupt("truncated gzip", self.member)
                    return b""
            if self._inflate is None:
                if not self._begin_member():
                    return b""
                continue
            produced = self._step()
            if produced:
                return produced

    def resume(self) -> bool:
        """Search for the next bytes that look like a member."""
        self._inflate = None
        while True:
            found = self._pending.find(_GZIP_MAGIC, 1 if self._at == self.member else 0)
            if found >= 0:
                self._at += found
                self._pending = self._pending[found:]
                return True
            keep = self._pending[-2:] if self._at + len(self._pending) - 2 > self.member else b""
            self._at += len(self._pending) - len(keep)
            more = self._raw.read(_CHUNK)
            self._pending = keep + more
            if not more:
                self._at += len(self._pending)
                self._pending = b""
                return False

    def _begin_member(self) -> bool:
        if not self._pending.strip(b"\0"):  # padding
            self._at += len(self._pending)
            self._pending = b""
            return True
        self.member = self._at
        self._inflate = zlib.decompressobj(wbits=31)
        self._produced = 0
        return True

    def _step(self) -> bytes:
        try:
            chunk: bytes = self._inflate.decompress(self._pending, _CHUNK)
        except zlib.error as error:
            self._inflate = None
            raise Corrupt(f"corrupt gzip: {error}", self.member) from None
        rest = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        self._at += len(self._pending) - len(rest)
        self._pending = rest
        self._produced += len(chunk)
        _check_expansion(self._produced, self._at - self.member, self.member, self._limits)
        if self._inflate.eof:
            self._inflate = None
        return chunk


class _Zstd:
    def __init__(self, raw: BinaryIO, limits: Limits) -> None:
        self._zstandard = need("zstandard")
        self._raw, self._limits = raw, limits
        self._pending = b""
        self._at = 0
        self.member = 0
        self._frame: Any = None
        self._produced = 0

    def chunk(self) -> bytes:
        while True:
            if not self._pending:
                self._pending = self._raw.read(_ZSTD_FEED)
                if not self._pending:
                    if self._frame is not None:
                        self._frame = None
                        raise Corrupt("truncated zstd", self.member)
                    return b""
            if self._frame is None:
                self.member = self._at
                self._produced = 0
                self._frame = self._zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
            try:
                chunk: bytes = self._frame.decompress(self._pending)
            except self._zstandard.ZstdError as error:
                self._frame = None
                raise Corrupt(f"corrupt zstd: {error}", self.member) from None
            rest = self._frame.unused_data if self._frame.eof else b""
            self._at += len(self._pending) - len(rest)
            self._pending = rest
            self._produced += len(chunk)
            _check_expansion(self._produced, self._at - self.member, self.member, self._limits)
            if self._frame.eof:
                self._frame = None
            if chunk:
                return chunk

    def resume(self) -> bool:
        return False  # frames are rarely records, and their magic is not rare enough to search for


def _check_expansion(produced: int, consumed: int, member: int, limits: Limits) -> None:
    if produced > _FREE_BYTES and produced > limits.expansion * consumed:
        raise Corrupt(f"expands more than {limits.expansion} times (a zip bomb?)", member)


def _read_exactly(raw: BinaryIO, size: int) -> bytes:
    """Remote files may return fewer bytes than asked for."""
    content = b""
    while len(content) < size and (more := raw.read(size - len(content))):
        content += more
    return content
