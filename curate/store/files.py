"""Where parts lie: one small interface over a local folder and an object store.

`create` publishes a file that appears whole or not at all and is never overwritten: locally a temporary file, fsync,
hard link, fsync of the folder; on s3:// and gs:// one conditional put (`If-None-Match: *`). A reader that lists a file
may therefore trust it, and two writers of one name cannot both win.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from curate.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore


class Files(Protocol):
    """A folder tree of immutable files, addressed by paths relative to `uri` with `/` between names."""

    uri: str

    def create(self, path: str, data: bytes) -> bool:
        """Publish `data` as `path`; False when `path` is already there (it is left as it is)."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Write `data` as `path` at once, over what is there."""
        ...

    def read(self, path: str) -> bytes:
        """The bytes of `path`; raises FileNotFoundError."""
        ...

    def exists(self, path: str) -> bool:
        """Whether `path` is there."""
        ...

    def list(self, folder: str) -> Iterator[str]:
        """Paths of all files below `folder`, in any order; nothing when the folder does not exist."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file, or all files below a folder."""
        ...

    def local(self, path: str) -> Path | None:
        """`path` on this machine's disk, or None when the store is remote."""
        ...


def open_files(uri: str) -> Files:
    """The files at a local path, file://, s3:// or gs:// URI."""
    scheme, colon, rest = uri.partition("://")
    if not colon:
        return LocalFiles(Path(uri))
    if scheme == "file":
        return LocalFiles(Path(rest))
    if scheme in ("s3", "gs"):
        return ObjectFiles(uri)
    raise UsageError(f"store.uri = {uri!r}: unknown scheme {scheme!r}; use a local path, s3:// or gs://")


class LocalFiles:
    """Files in a local (or mounted) folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def create(self, path: str, data: bytes) -> bool:
        final = self.root / path
        if final.exists():
            return False
        with _written(final, data) as temporary:
            try:
                os.link(temporary, final)
            except FileExistsError:
                return False
            except OSError:
                # Some mounts (FUSE, exFAT) have no hard links. A rename is atomic too; if two writers race here the
                # second puts the same bytes over the first, since parts are deterministic.
                temporary.rename(final)
        _sync_folder(final.parent)
        return True

    def replace(self, path: str, data: bytes) -> None:
        final = self.root / path
        with _written(final, data) as temporary:
            temporary.replace(final)
        _sync_folder(final.parent)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def list(self, folder: str) -> Iterator[str]:
        for here, _, names in os.walk(self.root / folder):
            inside = Path(here).relative_to(self.root).as_posix()
            yield from (f"{inside}/{name}" for name in names if not name.startswith("."))

    def delete(self, path: str) -> None:
        where = self.root / path
        if where.is_dir():
            shutil.rmtree(where, ignore_errors=True)
        else:
            where.unlink(missing_ok=True)

    def local(self, path: str) -> Path | None:
        return self.root / path


class ObjectFiles:
    """Files in an object store; credentials and endpoint come from the usual environment (AWS_*, GOOGLE_*)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._store: ObjectStore | None = None

    @property
    def store(self) -> ObjectStore:
        """Opened on first use in each process: a client holds threads and sockets and does not travel."""
        if self._store is None:
            from obstore.store import from_url

            self._store = from_url(self.uri)
        return self._store

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_store": None}

    def create(self, path: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        try:
            self.store.put(path, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        self.store.put(path, data)

    def read(self, path: str) -> bytes:
        return bytes(self.store.get(path).bytes())

    def exists(self, path: str) -> bool:
        try:
            self.store.head(path)
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> Iterator[str]:
        for batch in self.store.list(prefix=folder):
            yield from (entry["path"] for entry in batch)

    def delete(self, path: str) -> None:
        paths = [path] if self.exists(path) else list(self.list(path))
        if paths:
            self.store.delete(paths)

    def local(self, path: str) -> Path | None:
        return None


@contextlib.contextmanager
def _written(final: Path, data: bytes) -> Iterator[Path]:
    """A synced temporary file with `data` beside `final`; dot-named so that no listing or glob sees it."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
