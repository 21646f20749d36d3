"""Where bytes come from: URIs, listings, and paths that must not lead out of their root.

Local paths, file://, s3:// and gs:// go through pyarrow.fs; every other scheme through fsspec when it knows it.
Object keys are taken as they are written (no percent decoding), as the AWS and Google tools do.
"""

from __future__ import annotations

import functools
import io
import os
import posixpath
import random
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from curate.environment import drop_empty_keys
from curate.read.shards import InputError
from schemas.errors import RowError

SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
QUERY = re.compile(r"\?(?:[a-z_]+=[^&]*)(?:&[a-z_]+=[^&]*)*$")
WEB = ("http", "https", "ftp", "ftps", "data")
NATIVE = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss")
# Folders that other tools leave behind and that hold no input.
NOT_INPUT = {"_temporary", "_delta_log", "__MACOSX"}
# One S3 request takes some 30 ms whatever its size; 16 at once keep a worker's core busy.
REMOTE_REQUESTS = 16
READ_TRIES = 8

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Place:
    """A path in a file system. `scheme` is empty for local paths; `query` are connection options of the URI."""

    fs: fs.FileSystem
    path: str
    scheme: str = ""
    query: str = ""

    @property
    def local(self) -> bool:
        """Whether the path can be opened by the operating system."""
        return not self.scheme

    @property
    def uri(self) -> str:
        """The URI that `locate` turns into this place again."""
        return f"{self.scheme}://{self.path}{self.query}" if self.scheme else self.path

    def at(self, path: str) -> Place:
        """Another path in the same file system."""
        return replace(self, path=path)

    @property
    def parent(self) -> Place:
        """The folder that holds this place."""
        return self.at(posixpath.dirname(self.path))


@dataclass(frozen=True)
class Entry:
    """One listed file: path, size in bytes."""

    path: str
    size: int


def locate(uri: str) -> Place:
    """File system and path of a URI or local path; raises InputError for what cannot be reached."""
    match = SCHEME.match(uri)
    if not match:
        return Place(fs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))
    scheme = match[1].lower()
    if scheme == "file":
        return Place(fs.LocalFileSystem(), os.path.normpath(unquote(re.sub(r"^file://(localhost)?", "", uri))))
    if scheme in WEB:
        raise InputError("shard_unreadable", f"{uri}: curate never reads from the web; download it first")
    found = QUERY.search(uri)
    query = found[0] if found else ""
    path = uri[match.end() : len(uri) - len(query)].rstrip("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    try:
        if scheme not in NATIVE:
            import fsspec

            path = fsspec.core.url_to_fs(f"{scheme}://{path}")[1]
        return Place(connect(scheme, path.partition("/")[0], query, endpoint), path, scheme, query)
    except (ImportError, OSError, ValueError, pa.ArrowException) as failure:
        raise InputError("shard_unreadable", f"{uri}: cannot be reached: {failure}") from failure


@functools.lru_cache(maxsize=64)
def connect(scheme: str, bucket: str, query: str, endpoint: str) -> fs.FileSystem:
    """The file system of a bucket, made once: it holds the connections and the credentials.

    pyarrow 26 reads the credentials and the region from the environment but not AWS_ENDPOINT_URL.
    """
    drop_empty_keys()
    # Jittered and capped by the AWS client; it tries throttling, 5xx and lost connections again.
    patience = {"retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=10), "request_timeout": 60}
    if scheme == "s3" and endpoint and not query:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return fs.S3FileSystem(endpoint_override=endpoint, region=region, **patience)
    if scheme in NATIVE:
        return fs.FileSystem.from_uri(f"{scheme}://{bucket}{query}")[0]
    import fsspec

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))


def listing(place: Place, recursive: bool = True) -> Iterator[Entry]:
    """Files below a folder but the hidden ones; linked local folders are followed, each once."""
    if place.local:
        seen: set[str] = set()
        for folder, folders, files in os.walk(place.path, followlinks=recursive):
            real = os.path.realpath(folder)
            folders[:] = sorted(f for f in folders if visible(f)) if recursive and real not in seen else []
            if real in seen:
                continue
            seen.add(real)
            for name in files:
                path = Path(folder, name)
                # A link that leads nowhere is listed: it fails by name instead of being passed over.
                if visible(name) and (path.is_file() or not path.exists()):
                    yield Entry(str(path), path.stat().st_size if path.exists() else 0)
        return
    below = len(place.path) + 1
    for info in place.fs.get_file_info(fs.FileSelector(place.path, recursive=recursive, allow_not_found=True)):
        if info.type == fs.FileType.File and all(map(visible, info.path[below:].split("/"))):
            yield Entry(info.path, info.size)


def visible(name: str) -> bool:
    """Whether a file or folder of this name can be input."""
    return not name.startswith(".") and name not in NOT_INPUT


def read(place: Place, offset: int = 0, size: int | None = None) -> bytes:
    """Bytes of a file, whole or `size` from `offset`; fewer when the file ends before. Raises OSError."""
    if place.local:
        with Path(place.path).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if size is None else size)
    with RemoteFile(place) as file:
        file.seek(offset)
        return file.read(-1 if size is None else size)


class RemoteFile(io.RawIOBase):
    """A file of an object store whose reads are tried again.

    The store's client tries requests again but no answer that breaks off in the middle. Nor does pyarrow 26 any error
    whose text is longer than what was asked for: it ends as "Failed to flush response stream".
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.position = 0
        self.file = patiently(lambda: place.fs.open_input_file(place.path))
        self.length = int(patiently(self.file.size))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes from where the file stands; fewer at its end only."""
        left = max(self.length - self.position, 0)
        size = left if size is None or size < 0 else min(size, left)
        data = bytes(patiently(lambda: self.file.read_at(size, self.position))) if size else b""
        self.position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def patiently(request: Callable[[], R]) -> R:
    """The answer of a request that is tried READ_TRIES times, with pauses drawn between nothing and a doubling cap."""
    for tried in range(1, READ_TRIES + 1):
        try:
            return request()
        except FileNotFoundError:
            raise
        except OSError:
            if tried == READ_TRIES:
                raise
        time.sleep(random.uniform(0, min(10.0, 0.1 * 2**tried)))
    raise AssertionError("READ_TRIES is 0")


def each(place: Place, what: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`what` of each item, in order; several at once where each means a request over the network."""
    if place.local or len(items) < 2:
        return [what(item) for item in items]
    with ThreadPoolExecutor(min(REMOTE_REQUESTS, len(items))) as pool:
        return list(pool.map(what, items))


def reference(root: Place, value: str) -> Place:
    """The place that a row's path names, checked: RowError `remote_url` or `outside_input` when it may not be read.

    Relative paths start at `root`; absolute ones and URIs are fine as long as they lead below it. Local links are
    followed before the check, so that a link cannot lead out either.
    """
    match = SCHEME.match(value)
    scheme = "data" if value[:5].lower() == "data:" else match[1].lower() if match else ""
    if scheme in WEB:
        raise RowError("remote_url", f"{value[:200]!r} is a web address; curate never fetches from the web")
    if "\0" in value:
        raise RowError("missing_file", f"{value[:200]!r} holds a NUL character")
    if scheme == "file":
        rest, scheme = unquote(re.sub(r"^file://(localhost)?", "", value)), ""
    else:
        rest = value[match.end() :] if match else value
    if root.local:
        top = os.path.realpath(root.path)
        path = os.path.realpath(Path(top, rest))
    else:
        top = root.path
        path = posixpath.normpath(rest if scheme else posixpath.join(top, rest))
    if (match and scheme != root.scheme) or not path.startswith(top.rstrip("/") + "/"):
        raise RowError("outside_input", f"{value[:200]!r} leads out of {root.uri}; see input.root")
    return root.at(path)


def picture(place: Place) -> bytes:
    """The bytes of a picture file; raises RowError `missing_file`, `unreadable` or `empty`."""
    try:
        if place.local and not stat.S_ISREG(Path(place.path).stat().st_mode):
            raise RowError("missing_file", f"{place.path} is no regular file")
        data = read(place)
    except (FileNotFoundError, NotADirectoryError) as failure:
        raise RowError("missing_file", f"{place.path} does not exist") from failure
    except (OSError, pa.ArrowException) as failure:
        raise RowError("unreadable", f"{place.path}: {reason(failure)}") from failure
    if not data:
        raise RowError("empty", f"{place.path} has no bytes")
    return data


def reason(failure: BaseException) -> str:
    """An exception's text on one line."""
    return " ".join(str(failure).split())[:500] or type(failure).__name__
