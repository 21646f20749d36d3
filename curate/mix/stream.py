"""A file that is written and hashed on the way, from values that are read where they lie."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from blake3 import blake3

from curate.read.pages import Piece

# Read, hashed and written while it is in the processor's cache. With a thread that hashes larger blocks, two shards at
# once took a third longer.
BLOCK_BYTES = 1 << 19
FLUSH_BYTES = 8 << 20


class Stream:
    """Bytes to a new local file, a block at a time; `close` gives its BLAKE3 hash and size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.hash = blake3()
        self.block = memoryview(bytearray(BLOCK_BYTES))
        self.used = 0  # bytes of the block
        self.written = 0
        self.flushed = 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.handle)

    @property
    def size(self) -> int:
        """How many bytes were put."""
        return self.written + self.used

    def put(self, data: bytes | memoryview) -> None:
        """Add bytes."""
        at = 0
        while at < len(data):
            room = self._room(len(data) - at)
            room[:] = data[at : at + len(room)]
            at += len(room)

    def copy(self, piece: Piece) -> None:
        """Add a value from where it lies."""
        at = 0
        while at < piece.size:
            room = self._room(piece.size - at)
            piece.into(room, at)
            at += len(room)

    def _room(self, most: int) -> memoryview:
        """Some bytes of the block, which the caller fills."""
        if self.used == BLOCK_BYTES:
            self._write()
        first = self.used
        self.used = min(BLOCK_BYTES, first + most)
        return self.block[first : self.used]

    def _write(self) -> None:
        left = self.block[: self.used]
        self.hash.update(left)
        try:
            while left:
                left = left[os.write(self.handle, left) :]
        except OSError as why:
            raise OSError(why.errno, why.strerror, str(self.path)) from None
        self.written += self.used
        self.used = 0
        if self.written - self.flushed >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Let the disk begin, or it waits for the fsync at the end of the file, and then the processor for the disk.

        The advice also drops pages that are clean, but those are not yet.
        """
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.handle, self.flushed, self.written - self.flushed, os.POSIX_FADV_DONTNEED)
        self.flushed = self.written

    def close(self) -> tuple[str, int]:
        """Write the rest and make it durable; the BLAKE3 hash (hexadecimal) and the size of the whole file."""
        self._write()
        self._flush()
        os.fsync(self.handle)
        return self.hash.hexdigest(), self.written
