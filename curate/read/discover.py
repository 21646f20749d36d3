"""Which shards an input has: one listing, no file opened but a single one whose name does not tell its format."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pyarrow import fs

from curate.read.files import Entry, Place, listing, locate, read, reason, visible
from curate.read.shards import PICTURE_SUFFIXES, InputError, InputSpec, Shard

PARQUET = (".parquet", ".parq", ".pq")
TAR = (".tar",)
# Listed so that they fail by name: members of a compressed archive cannot be read by position.
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
PICTURES = tuple(f".{suffix}" for suffix in PICTURE_SUFFIXES)
MAGIC = re.compile(r"[*?\[]")
FORMATS = ("auto", "parquet", "webdataset", "folder")


def discover(spec: InputSpec) -> list[Shard]:
    """The shards of the input, sorted by id; raises InputError with one clear line when there are none."""
    if spec.format not in FORMATS:
        raise InputError("shard_unreadable", f"input.format {spec.format!r} is none of {', '.join(FORMATS)}")
    if not spec.uri:
        raise InputError("shard_unreadable", "input.uri is empty; name a file, a folder or a glob")
    try:
        place = locate(spec.uri)
        base, found = expand(place)
        files = recognise(base, found) if spec.format == "auto" else named(place, found, spec.format)
    except OSError as failure:
        raise InputError("shard_unreadable", f"input.uri {spec.uri}: cannot be listed: {reason(failure)}") from failure
    sizes = {entry.path: entry.size for entry in found}
    shards = [
        Shard(shard_id(relative(base, path)), base.at(path).uri, format, spec, sizes[path]) for path, format in files
    ]
    if not shards and spec.format in ("auto", "folder"):
        shards = folders(base, found, spec)
    if not shards:
        what = {
            "parquet": "Parquet files (.parquet)",
            "webdataset": "WebDataset archives (.tar)",
            "folder": "pictures",
            "auto": "Parquet files, WebDataset archives or pictures",
        }[spec.format]
        raise InputError("shard_unreadable", f"input.uri {spec.uri}: no {what} found")
    return sorted(shards, key=lambda shard: shard.id)


def expand(place: Place) -> tuple[Place, list[Entry]]:
    """The folder that ids are relative to, and the files that a file, folder or glob names."""
    info = place.fs.get_file_info(place.path)
    if info.is_file:
        return place.parent, [Entry(place.path, info.size)]
    found = MAGIC.search(place.path)
    if info.type == fs.FileType.Directory:
        return place, list(listing(place))
    if not found:
        raise InputError("shard_unreadable", f"input.uri {place.uri}: there is no such file or folder")
    base = place.at(posixpath.dirname(place.path[: found.start()]) or "/")
    if not place.local:
        matches = matcher(place)
        return base, [entry for entry in listing(base) if matches(entry.path)]
    # Only the folders that the glob names are walked, and not all that lies below its base.
    files: dict[str, Entry] = {}
    for path in sorted(Path(base.path).glob(relative(base, place.path))):
        if not all(map(visible, relative(base, str(path)).split("/"))):
            continue
        if path.is_dir():
            files |= {e.path: e for e in listing(place.at(str(path))) if e.path not in files}
        else:
            files[str(path)] = Entry(str(path), path.stat().st_size if path.exists() else 0)
    return base, list(files.values())


class matcher:
    """Whether the glob (or plain path) of a place names a file or a folder above it. `**` stands for any folders."""

    def __init__(self, place: Place) -> None:
        tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", place.path)
        known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        parts = (known.get(t) or (t.replace("[!", "[^") if t.startswith("[") else re.escape(t)) for t in tokens)
        self.pattern = re.compile("".join(parts) + "(?:/.*)?")
        self.literal = place.path

    def __call__(self, path: str) -> bool:
        return path == self.literal or path.startswith(self.literal + "/") or bool(self.pattern.fullmatch(path))


def named(place: Place, found: list[Entry], format: str) -> list[tuple[str, str]]:
    """Path and format of the files of one format; a single file may have any name."""
    if format == "folder":
        return []
    suffixes = PARQUET if format == "parquet" else TAR + PACKED
    return [(e.path, format) for e in found if e.path == place.path or e.path.lower().endswith(suffixes)]


def recognise(base: Place, found: list[Entry]) -> list[tuple[str, str]]:
    """Path and format of the Parquet files and archives; loose pictures count only where there are none.

    img2dataset writes N.parquet beside N.tar or beside the folder N of pictures: that Parquet file is a record of
    the download and no shard. Pictures beside other Parquet files are taken for what their paths name.
    """
    paths = {entry.path for entry in found}
    above = {posixpath.dirname(path) for path in paths if path.lower().endswith(PICTURES)}
    files = []
    for path in paths:
        stem = path.rpartition(".")[0]
        if path.lower().endswith(TAR + PACKED):
            files.append((path, "webdataset"))
        elif path.lower().endswith(PARQUET) and stem not in above and f"{stem}.tar" not in paths:
            files.append((path, "parquet"))
    if not files and len(found) == 1:
        head = read(base.at(found[0].path), 0, 265)
        if head[:4] == b"PAR1":
            return [(found[0].path, "parquet")]
        if head[257:262] == b"ustar":
            return [(found[0].path, "webdataset")]
    return files


def folders(base: Place, found: Iterable[Entry], spec: InputSpec) -> list[Shard]:
    """One shard for each folder that holds pictures itself."""
    sizes: Counter[str] = Counter()
    for entry in found:
        if entry.path.lower().endswith(PICTURES):
            sizes[posixpath.dirname(entry.path)] += entry.size
    top = posixpath.basename(base.path) or "pictures"
    return [
        Shard(shard_id(top), base.uri, "folder", spec, size) if path == base.path
        # A folder `a/a` would get the id of its parent `a`: it gets the long one.
        else Shard(shard_id(name := relative(base, path), plain=name != top), base.at(path).uri, "folder", spec, size)
        for path, size in sorted(sizes.items())
    ]  # fmt: skip


def relative(base: Place, path: str) -> str:
    """The path below `base`."""
    return path[len(base.path.rstrip("/")) + 1 :]


def shard_id(path: str, plain: bool = True) -> str:
    """The id of a relative path: `a/b-00001.parquet` is `a=b-00001`.

    It depends on nothing but the path, so that a shard keeps its id when others come and go. What an id cannot spell
    (other characters, a `=` of its own, more than 200 characters) is replaced, and ten hex digits of the path's
    SHA-256 keep such ids apart.
    """
    stem = re.sub(r"\.(parquet|tar)$", "", path)
    if plain and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._/-]{0,199}", stem):
        return stem.replace("/", "=")
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    cleaned = re.sub(r"[^A-Za-z0-9._=-]", "_", stem.replace("/", "="))[:180].lstrip(".")
    return f"{cleaned}-{digest}"
