"""A folder of pictures with .txt and .json files of the same name beside them."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from curate.read import sidecars
from curate.read.discover import PICTURES, matcher
from curate.read.files import Place, each, listing, locate, picture, read, reason, reference
from curate.read.shards import TEXT_SUFFIXES, InputError, Shard, ShardIndex, assemble
from schemas.columns import TEXT
from schemas.errors import RowError


def index(shard: Shard) -> ShardIndex:
    """File names, captions and metadata of the pictures in a folder itself, sorted by name."""
    place = locate(shard.uri)
    root = locate(shard.spec.root) if shard.spec.root else place
    asked = matcher(locate(shard.spec.uri))
    try:
        files = {posixpath.basename(e.path): e for e in listing(place, recursive=False)}
    except (OSError, pa.ArrowException) as failure:
        raise InputError("shard_unreadable", f"{place.uri}: cannot be listed: {reason(failure)}") from failure
    names = sorted(name for name, e in files.items() if name.lower().endswith(PICTURES) and asked(e.path))
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{files[name].size}\n".encode("utf-8", "surrogateescape"))

    rows = each(place, lambda name: beside(root, place, name, set(files)), names)
    for row in rows:
        digest.update(hashlib.sha256(row.raw).digest())
    metadata = [row.metadata for row in rows]
    captions, source = sidecars.captions([row.text for row in rows], metadata, shard.spec, place.uri)
    file_names = pa.array([sidecars.clean(name) for name in names], TEXT)
    locators = {
        "_path": file_names,
        "_error": pa.array([row.error for row in rows], TEXT),
        "_message": pa.array([row.message for row in rows], TEXT),
    }
    own = sidecars.columns("file_name", file_names, metadata)
    return ShardIndex(assemble(captions, locators, own), digest.hexdigest()[:16], "file_name", source)


@dataclass
class Beside:
    """What the files beside a picture say; `raw` are their bytes."""

    text: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    raw: bytes = b""
    error: str | None = None
    message: str | None = None


def beside(root: Place, place: Place, name: str, files: set[str]) -> Beside:
    """Read the .txt and .json files beside a picture."""
    found = Beside()
    stem = name.rpartition(".")[0]
    for suffix in (*TEXT_SUFFIXES, "json"):
        if f"{stem}.{suffix}" not in files:
            continue
        try:
            data = read(below(root, place, f"{stem}.{suffix}"))
            found.raw += data
            if suffix == "json":
                found.metadata = sidecars.decode_json(data)
            else:
                found.text = found.text or sidecars.decode_text(data)
        except RowError as failure:
            found.error, found.message = failure.code, sidecars.clean(failure.message)
        except (OSError, pa.ArrowException) as failure:
            found.error, found.message = "unreadable", sidecars.clean(f"{stem}.{suffix}: {reason(failure)}")
        except ValueError as failure:
            found.error, found.message = (
                "unreadable",
                sidecars.clean(f"{stem}.json is no JSON: {reason(failure)}"),
            )
    return found


def below(root: Place, folder: Place, name: str) -> Place:
    """The place of a file in the folder; RowError `outside_input` when it is a link that leads out of `root`."""
    path = f"{folder.path.rstrip('/')}/{name}"
    return reference(root, path if folder.local else f"{folder.scheme}://{path}")


class FolderReader:
    """Pictures of one folder. A link may lead no further than input.root, or the folder itself."""

    def __init__(self, shard: Shard) -> None:
        self.place = locate(shard.uri)
        self.root = locate(shard.spec.root) if shard.spec.root else self.place

    def read(self, rows: Sequence[int], locators: pa.Table) -> list[bytes | RowError]:
        """Bytes of the rows, or why there are none."""
        return each(self.place, self.follow, locators.column("_path").to_pylist())

    def follow(self, name: str) -> bytes | RowError:
        """Bytes of one file of the folder."""
        try:
            return picture(below(self.root, self.place, name))
        except RowError as failure:
            return failure
