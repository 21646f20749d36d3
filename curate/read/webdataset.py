"""WebDataset shards: a tar whose neighbouring members share a key (path up to the first dot of the file name).

Members are read where they stand and never extracted, so names with `..` or a leading `/` are keys like others.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from curate.read import sidecars
from curate.read.files import Place, RemoteFile, each, locate, read, reason
from curate.read.shards import PICTURE_SUFFIXES, TEXT_SUFFIXES, InputError, Shard, ShardIndex, assemble
from schemas.columns import TEXT
from schemas.errors import RowError

# webdataset's own pattern (tariterators.base_plus_ext): key, then everything after the first dot of the file name.
NAME = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Headers are read through a window: over S3 a request for each would take longer than reading the archive.
WINDOW_BYTES = 8 << 20


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Add data."""


@dataclass
class Group:
    """The members of one sample: suffix -> header, and what its text members say."""

    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    text: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    message: str | None = None

    def fail(self, error: str, message: str) -> None:
        """Note the first thing that is wrong with the sample."""
        if not self.error:
            self.error, self.message = error, sidecars.clean(message)


def index(shard: Shard) -> ShardIndex:
    """Keys, captions, metadata and the places of the pictures; one pass over the headers of the archive."""
    place = locate(shard.uri)
    try:
        with open_archive(place) as file:
            refuse_packed(file.read(6), place.uri)
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            digest = hashlib.sha256(str(size).encode())
            groups = grouped(file, size, digest)
    except (OSError, pa.ArrowException, tarfile.TarError) as failure:
        raise InputError("shard_unreadable", f"{place.uri}: no readable tar archive: {reason(failure)}") from failure
    return tabulate(groups, shard, place.uri, size, digest.hexdigest()[:16])


def open_archive(place: Place) -> BinaryIO:
    """The archive as a seekable file that reads ahead."""
    if place.local:
        return Path(place.path).open("rb")
    return io.BufferedReader(RemoteFile(place), WINDOW_BYTES)


def refuse_packed(head: bytes, name: str) -> None:
    """InputError for a compressed archive."""
    for magic, packer in PACKED.items():
        if head.startswith(magic):
            raise InputError(
                "shard_unreadable",
                f"{name}: the archive is compressed with {packer}, so its members cannot be read by position; unpack "
                "it to a plain .tar (pictures gain nothing by it)",
            )


def tabulate(groups: list[Group], shard: Shard, name: str, size: int, identity: str) -> ShardIndex:
    """The index of the samples of an archive of `size` bytes."""
    wanted = shard.spec.image_column
    chosen = [choose(group, wanted) for group in groups]
    if wanted and groups and not any(chosen):
        known = ", ".join(sorted({suffix for group in groups for suffix in group.members}))
        raise InputError("no_image_column", f"{name}: no member .{wanted} (input.image_column); known: {known}")
    for group, suffix in zip(groups, chosen, strict=True):
        if suffix:
            usable(group, group.members[suffix], size)
        else:
            group.fail("empty", f"no picture among the members of {group.key!r} ({', '.join(group.members)})")
    pictures = [group.members[suffix] if suffix else None for group, suffix in zip(groups, chosen, strict=True)]
    metadata = [group.metadata for group in groups]
    captions, source = sidecars.captions([group.text for group in groups], metadata, shard.spec, name)
    keys = pa.array([sidecars.clean(group.key) or None for group in groups], TEXT)
    locators = {
        "_offset": pa.array([picture and picture.offset_data for picture in pictures], pa.int64()),
        "_size": pa.array([picture and picture.size for picture in pictures], pa.int64()),
        "_error": pa.array([group.error for group in groups], TEXT),
        "_message": pa.array([group.message for group in groups], TEXT),
    }
    table = assemble(captions, locators, sidecars.columns("key", keys, metadata))
    return ShardIndex(table, identity, wanted or next(filter(None, chosen), ""), source)


def grouped(file: BinaryIO, size: int, digest: Digest) -> list[Group]:
    """Members by key, in order of appearance. What cannot be read any more is one last row, `unreadable`.

    A suffix that comes a second time under the same key begins a new sample: archives that were joined may repeat keys.
    """
    groups: list[Group] = []
    current: dict[str, Group] = {}
    archive = tarfile.TarFile(fileobj=file, mode="r")
    end, lost = 0, ""
    while True:
        try:
            member = archive.next()
        except tarfile.TarError as failure:
            # When the cut lies within the data of the last member, `usable` marks its sample.
            lost = "" if end > size else reason(failure)
            break
        if member is None:
            # tarfile ends without a word at a header that it cannot read, as it does at the end marker.
            file.seek(archive.offset)
            block = file.read(512)
            if block.strip(b"\0"):
                lost = "its header is cut off" if len(block) < 512 else "bad header"
            break
        end = member.offset_data + member.size
        digest.update(f"{member.name}\0{member.size}\0{member.mtime}\n".encode("utf-8", "surrogateescape"))
        match = NAME.match(member.name)
        if not match or member.isdir():
            continue
        key, suffix = match[1], match[2].lower()
        group = current.get(key)
        if group is None or suffix in group.members:
            group = current[key] = Group(key)
            groups.append(group)
        group.members[suffix] = member
        if (suffix in TEXT_SUFFIXES or suffix == "json") and usable(group, member, size):
            file.seek(member.offset_data)
            data = file.read(member.size)
            digest.update(data)
            take_in(group, suffix, data)
    if lost:
        groups.append(Group(""))
        groups[-1].fail("unreadable", f"the archive is damaged at byte {archive.offset} ({lost}); the rest is not read")
    return groups


def take_in(group: Group, suffix: str, data: bytes) -> None:
    """Add what a text member says to its sample."""
    if suffix != "json":
        group.text = group.text or sidecars.decode_text(data)
        return
    try:
        group.metadata = sidecars.decode_json(data)
    except ValueError as failure:
        group.fail("unreadable", f"{group.key}.json is no valid JSON: {reason(failure)}")


def choose(group: Group, wanted: str) -> str:
    """Suffix of the picture: the named one, or the first of the usual ones, alone (`jpg`) before last (`seg.jpg`)."""
    if wanted:
        return wanted.lower() if wanted.lower() in group.members else ""
    alone = next((suffix for suffix in PICTURE_SUFFIXES if suffix in group.members), "")
    return alone or next((s for s in group.members if s.rpartition(".")[2] in PICTURE_SUFFIXES), "")


def usable(group: Group, member: tarfile.TarInfo, size: int) -> bool:
    """Whether the member's bytes lie in the archive; otherwise the sample is marked."""
    if not member.isreg() or member.issparse():
        group.fail("unreadable", f"{member.name} is no plain file; links in an archive are not followed")
    elif member.offset_data + member.size > size:
        there = max(0, size - member.offset_data)
        group.fail("truncated", f"the archive ends after {there} of the {member.size} bytes of {member.name}")
    else:
        return True
    return False


class TarReader:
    """Pictures of one archive, read at the offsets that the index found."""

    def __init__(self, shard: Shard) -> None:
        self.place = locate(shard.uri)

    def read(self, rows: Sequence[int], locators: pa.Table) -> list[bytes | RowError]:
        """Bytes of the rows, or why there are none."""
        spans = zip(locators.column("_offset").to_pylist(), locators.column("_size").to_pylist(), strict=True)
        if not self.place.local:
            return each(self.place, self.span, list(spans))
        try:
            with Path(self.place.path).open("rb", buffering=0) as file:
                return [self.span(span, file) for span in spans]
        except OSError as failure:
            return [RowError("unreadable", f"{self.place.uri}: {reason(failure)}") for _ in rows]

    def span(self, span: tuple[int | None, int | None], file: io.FileIO | None = None) -> bytes | RowError:
        """The bytes at an offset and of a size."""
        offset, size = span
        if offset is None or not size:
            return RowError("empty", "the picture has no bytes")
        try:
            if file:
                file.seek(offset)
            data = file.read(size) if file else read(self.place, offset, size)
        except (OSError, pa.ArrowException) as failure:
            return RowError("unreadable", f"{self.place.uri}: {reason(failure)}")
        return data if len(data) == size else RowError("unreadable", f"{self.place.uri} has become shorter")
