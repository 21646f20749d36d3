"""Where parts lie: one small interface over a local folder and an object store.

`create` publishes a file that appears whole or not at all and is never overwritten: locally a temporary file, fsync,
hard link, fsync of the folder; on s3:// and gs:// one conditional put (`If-None-Match: *`). A reader that lists a file
may therefore trust it, and two writers of one name cannot both win.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from curate.environment import drop_empty_keys
from curate.errors import StoreError, UsageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

# Tries of one request, and the longest pause between two of them, seconds: 0.1, 0.2, 0.4 ... doubled up to the cap and
# drawn between nothing and that ("full jitter"), so that workers that were refused together do not come back together.
TRIES = 10
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
AT_FDCWD, RENAME_NOREPLACE = -100, 1  # of Linux
# What `link` says on a mount without hard links (FUSE, exFAT, SMB). A full disk is none of it.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
# Not by the client: a put that it repeats in silence meets its own object and is reported as lost to another writer.
CLIENT_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=0)}


class Files(Protocol):
    """A folder tree of immutable files, addressed by paths relative to `uri` with `/` between names."""

    uri: str

    def create(self, path: str, data: bytes) -> bool:
        """Publish `data` as `path`; False when `path` is already there (it is left as it is)."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Write `data` as `path` at once, over what is there."""
        ...

    def adopt(self, path: str, finished: Path) -> None:
        """Publish a local file, which is durable, as `path`, over what is there; it may be moved."""
        ...

    def read(self, path: str) -> bytes:
        """The bytes of `path`; raises FileNotFoundError."""
        ...

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """At most `length` bytes of `path` from `start`; raises FileNotFoundError."""
        ...

    def exists(self, path: str) -> bool:
        """Whether `path` is there."""
        ...

    def list(self, folder: str) -> Iterator[str]:
        """Paths of all files below `folder`, in any order; nothing when the folder does not exist."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """The same paths with their sizes in bytes."""
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
            except OSError as why:
                if why.errno not in NO_LINKS:
                    raise
                if not _rename_new(temporary, final):
                    return False
        _sync_folder(final.parent)
        return True

    def replace(self, path: str, data: bytes) -> None:
        final = self.root / path
        with _written(final, data) as temporary:
            temporary.replace(final)
        _sync_folder(final.parent)

    def adopt(self, path: str, finished: Path) -> None:
        final = self.root / path
        final.parent.mkdir(parents=True, exist_ok=True)
        finished.replace(final)
        _sync_folder(final.parent)

    def sweep(self) -> None:
        """Remove what writers that were killed left behind; for a folder that nobody else writes to."""
        for path in self.root.rglob(".*.tmp"):
            path.unlink(missing_ok=True)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def read_range(self, path: str, start: int, length: int) -> bytes:
        with (self.root / path).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def list(self, folder: str) -> Iterator[str]:
        for here, _, names in os.walk(self.root / folder):
            inside = Path(here).relative_to(self.root).as_posix()
            yield from (f"{inside}/{name}" for name in names if not name.startswith("."))

    def sizes(self, folder: str) -> dict[str, int]:
        found = {}
        for path in self.list(folder):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                found[path] = (self.root / path).stat().st_size
        return found

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

            drop_empty_keys()
            self._store = from_url(self.uri, retry_config=CLIENT_RETRIES, client_options=_client())
        return self._store

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_store": None}

    def create(self, path: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        tried = 0

        def put() -> bool:
            nonlocal tried
            tried += 1
            try:
                self.store.put(path, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                try:
                    there = bytes(self.store.get(path).bytes())
                except FileNotFoundError:
                    # obstore 0.12 says "already exists" to any 409, S3's "another request is under way" too.
                    raise OSError(f"409 for {path}, which is not there") from None
                return tried > 1 and there == data  # ours, when the answer to an earlier try was lost
            return True

        return self._try(path, put)

    def replace(self, path: str, data: bytes) -> None:
        self._try(path, lambda: self.store.put(path, data))

    def adopt(self, path: str, finished: Path) -> None:
        self._try(path, lambda: self.store.put(path, finished))

    def read(self, path: str) -> bytes:
        return self._try(path, lambda: bytes(self.store.get(path).bytes()))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return self._try(path, lambda: bytes(self.store.get_range(path, start=start, length=length)))

    def exists(self, path: str) -> bool:
        try:
            self._try(path, lambda: self.store.head(path))
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> Iterator[str]:
        yield from self.sizes(folder)

    def sizes(self, folder: str) -> dict[str, int]:
        def all_of_it() -> dict[str, int]:
            return {entry["path"]: entry["size"] for batch in self.store.list(prefix=folder) for entry in batch}

        return self._try(folder, all_of_it)

    def delete(self, path: str) -> None:
        paths = [path] if self.exists(path) else [*self.list(path)]
        if paths:
            self._try(path, lambda: self.store.delete(paths))

    def _try(self, path: str, request: Callable[[], T]) -> T:
        """The answer; raises StoreError when it is refused, FileNotFoundError when nothing is there.

        Refused for good is what the same request would be refused for again: a bucket that is not there, rights, keys.
        """
        from obstore import exceptions

        final = (
            exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, exceptions.InvalidPathError,
            exceptions.NotSupportedError, exceptions.UnknownConfigurationKeyError,
        )  # fmt: skip
        for left in range(TRIES - 1, -1, -1):
            try:
                return request()
            except (exceptions.BaseError, OSError) as why:
                status, code = _answer(why)
                if code == "NoSuchBucket":
                    raise NoBucketError(f"{self.uri}: the bucket {self.uri.split('/')[2]!r} does not exist") from None
                if isinstance(why, FileNotFoundError):
                    raise
                if isinstance(why, final) or (400 <= status < 500 and not _passes(status, code)):
                    raise StoreError(f"{self.uri}/{path}: refused: {_in_words(why)}") from None
                if not left:
                    raise StoreError(
                        f"{self.uri}/{path}: the store did not do as asked in {TRIES} tries: {_in_words(why)}; nothing "
                        "is lost, run the same command again"
                    ) from None
            cap = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (TRIES - 1 - left))
            time.sleep(random.uniform(0, cap))
        raise AssertionError("TRIES is 0")

    def local(self, path: str) -> Path | None:
        return None


def _client() -> ClientConfig:
    """A request that gets no answer for so long is one that failed; plain http only where the endpoint says so."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return {"timeout": "300s", "connect_timeout": "10s", "allow_http": endpoint.startswith("http://")}


class NoBucketError(StoreError):
    """The bucket is not there."""


def _answer(why: BaseException) -> tuple[int, str]:
    """HTTP status and S3's code of a refusal, which obstore has as text only; 0 and nothing without an answer."""
    status = re.search(r"status code: (\d{3})", str(why))
    code = re.search(r"<Code>(\w+)</Code>", str(why))
    return int(status[1]) if status else 0, code[1] if code else ""


def _passes(status: int, code: str) -> bool:
    """Whether the same request may be taken a little later."""
    return status in (408, 409, 412, 425, 429) or code in ("RequestTimeout", "BadDigest", "IncompleteBody")


def _in_words(why: BaseException) -> str:
    """What the service said, without the XML around it."""
    said = re.search(r"<Message>(.*?)</Message>", str(why), re.DOTALL)
    status, code = _answer(why)
    if code:
        return f"{status or ''} {code}{': ' + ' '.join(said[1].split()) if said else ''}".strip()[:300]
    return (str(why).strip().splitlines() or [type(why).__name__])[0][:300]


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


def _rename_new(temporary: Path, final: Path) -> bool:
    """Rename onto a name that is free, where a file has no second name; False when it is taken.

    The kernel does both in one step on most mounts. On one that cannot, writers take turns by a lock on the folder:
    across machines that holds where the mount shares locks.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(temporary), AT_FDCWD, os.fsencode(final), RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), str(final))
    return _rename_locked(temporary, final)


def _rename_locked(temporary: Path, final: Path) -> bool:
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if final.exists():
            return False
        temporary.rename(final)
    finally:
        os.close(folder)  # gives up the lock
    return True
