"""One job of the plan to one shard of the export: pictures read, captions chosen, file written, hashed, published.

    parquet      train/train-e00-00000.parquet     picture column uncompressed and plain: each picture in one piece
    webdataset   train/train-e00-00000.tar         members json, txt and picture of each entry, in this order
    folder       train/1_natural/e00-00000-0000000.jpg + .txt (kohya), train/metadata.jsonl (diffusers, datasets)

Beside each shard of the first two lies an index, `index/train-e00-00000.parquet`: key, sizes, bucket, cell and rank of
each entry, and where in the shard its picture lies, so that a loader reads single pictures in any order. When shard and
index are published, a receipt says so in `.plan/`; a job with a receipt is not done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.mix import names
from curate.mix.decide import LANGUAGES, SOURCES, Choice, Entries, bilingual, choosable, decide
from curate.mix.plan import FOLDER, POOLS, Job, Plan, load
from curate.mix.sources import Pictures, Specs
from curate.store.files import Files, ObjectFiles, open_files

BATCH_BYTES = 8_000_000  # pictures in memory at once, about; at 32 MB fresh pages took a third of the time
READ_ROWS = 32
HEAD_BYTES = 2048  # of a picture, enough to tell its format
MOST_NOUNS = 5_000  # of one shard; rarer ones of a larger shard are not reported
SUFFIX = {"parquet": ".parquet", "webdataset": ".tar", "folder": ".jsonl"}
HAN = re.compile("[\u4e00-\u9fff]")

# What stands first in every shard, in this order.
FIRST = (
    "row_id", "image", "caption", "caption_source", "language", "epoch", "bucket_width", "bucket_height", "pool",
)  # fmt: skip
INDEXED = (
    ("key", pa.uint64()), ("content", pa.uint64()), ("copy", pa.int32()), ("options", pa.uint8()),
    ("cell", pa.int32()), ("rank", pa.int32()),
    ("raw", pa.uint8()), ("en", pa.uint8()), ("zh", pa.uint8()), ("bucket", pa.int32()), ("concept", pa.int32()),
    ("pool", pa.uint8()),
)  # fmt: skip
# Of the picture: byte span in the shard. Of the rest: WebDataset the byte span of the json member; Parquet row group
# and row in it.
PLACED = ("offset", "size", "rest", "rest_size")


@dataclass(frozen=True)
class Receipt:
    """What a finished job wrote and counted."""

    job: Job
    files: dict[str, dict[str, Any]]
    """Path below the export -> sha256, bytes, rows."""
    counts: list[list[Any]]
    """[pool, bucket, concept, source, language, both kinds were there, both languages were there, entries]."""
    nouns: list[list[Any]]
    """[proper noun, entries, example row_id]."""
    characters: str
    """Chinese characters that the rendered text of the shard shows."""

    def to_json(self) -> bytes:
        """The receipt as `receipt` reads it."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True).encode()


def receipt(files: Files, job: Job) -> Receipt | None:
    """The receipt of a job that is done, or None."""
    try:
        values = json.loads(files.read(f"{FOLDER}/{job.name}.json"))
    except FileNotFoundError:
        return None
    return Receipt(Job(**values.pop("job")), **values)


@lru_cache(maxsize=2)
def _plan(uri: str, mark: str) -> Plan:
    plan = load(open_files(uri))
    assert plan is not None
    assert plan.fingerprint == mark
    return plan


def entries_of(table: pa.Table, prefix: str = "") -> Entries:
    """The columns of an index, or of a plan's file (prefix `_`), that decide captions."""
    return Entries(*(table[prefix + name].to_numpy() for name in ("key", "options", "raw", "en", "zh", "cell", "rank")))


def make(uri: str, mark: str, job: Job) -> Receipt:
    """Do one job of the plan in the folder `uri`; runs in any process on any machine that reaches it."""
    files = open_files(uri)
    plan = _plan(uri, mark)
    table = pq.read_table(pa.BufferReader(files.read(job.rows)))
    choice = decide(plan.settings.policy, plan.cells[job.split], entries_of(table, "_"), job.epoch)
    shown = _shown(table, choice, job.epoch)
    kind = plan.settings.format
    with _scratch(files) as folder:
        path = folder / f"shard{SUFFIX[kind]}"
        written: _Parquet | _Tar | _Folder = _Folder(files, job)
        if kind != "folder":
            written = _Parquet(path) if kind == "parquet" else _Tar(path)
        first = 0
        for images in _pictures(plan, table):
            if plan.settings.resize:
                rows = zip(images.to_pylist(), _rows(shown, first), strict=False)
                images = pa.chunked_array([[_resized(data, row) for data, row in rows]], pa.binary())
            written.write(shown.slice(first, len(images)), images)
            first += len(images)
        made = written.close()
        if not isinstance(written, _Folder):
            name = f"{job.split}/{job.name}{SUFFIX[kind]}"
            made[name] = _published(files, name, path, first)
        decided = {name: table[f"_{name}"].cast(kind) for name, kind in INDEXED}
        sizes = {name: table[name] for name in ("width", "height")}
        index = pa.table(decided | sizes | written.placed())
        name = f"index/{job.name}.parquet"
        pq.write_table(index, folder / "index.parquet", compression="zstd")
        made[name] = _published(files, name, folder / "index.parquet", first)
    done = Receipt(
        job, made, _counts(plan, table, choice, shown["language"].to_pylist()), _nouns(table), _characters(table)
    )
    files.replace(f"{FOLDER}/{job.name}.json", done.to_json())
    return done


def _pictures(plan: Plan, table: pa.Table) -> Iterator[pa.ChunkedArray]:
    """Original bytes of the entries, some at a time; a row that comes again at once is read once."""
    source, row = table["_source"].to_numpy(), table["_row"].to_numpy()
    shard = table["_shard"].to_pylist()
    open_now: tuple[int, str] | None = None
    reader: Pictures | Specs | None = None
    held: list[pa.Array] = []
    first, size = 0, 0
    while first < len(row):
        here = int(source[first]), shard[first]
        stop = first + 1
        while stop < len(row) and stop - first < READ_ROWS and (int(source[stop]), shard[stop]) == here:
            stop += 1
        if reader is None or here != open_now:
            reader, open_now = plan.places[here[0]].pictures(here[1]), here
        wanted, at = np.unique(row[first:stop], return_inverse=True)
        found = pa.chunked_array(reader.read(wanted.tolist()), pa.binary())
        found = found if len(wanted) == stop - first else found.take(pa.array(at))
        held += found.chunks
        size += pc.sum(pc.binary_length(found)).as_py()
        first = stop
        if size >= BATCH_BYTES:
            yield pa.chunked_array(held)
            held, size = [], 0
    if held:
        yield pa.chunked_array(held)


def _shown(table: pa.Table, choice: Choice, epoch: int) -> pa.Table:
    """What the shard holds of each entry beside the picture: FIRST without `image`, then what is passed through."""
    count = table.num_rows
    sources = np.array(SOURCES, object)[choice.source]
    said = captions(table, choice)
    pools = np.array(POOLS, object)[table["_pool"].to_numpy()]
    first = {
        "row_id": table["row_id"],
        "caption": pa.array([text for text, _ in said], pa.string()),
        "caption_source": pa.array(sources, pa.string()),
        "language": pa.array([language for _, language in said], pa.string()),
        "epoch": pa.array(np.full(count, epoch, np.int32)),
        "bucket_width": table["_bucket_width"].cast(pa.int32()),
        "bucket_height": table["_bucket_height"].cast(pa.int32()),
        "pool": pa.array(pools, pa.string()),
        "variant": pa.array(choice.variant.astype(np.int32)),
        "copy": table["_copy"],
    }
    rest = [name for name in table.column_names if not name.startswith("_") and name not in first]
    return pa.table(first | {name: table[name] for name in rest})


def captions(table: pa.Table, choice: Choice) -> list[tuple[str, str]]:
    """The chosen text of each entry and its language, out of columns captions_raw, captions_en and captions_zh."""
    lists = (table[f"captions_{kind}"].to_pylist() for kind in ("raw", *LANGUAGES))
    chosen = (values.tolist() for values in (choice.source, choice.language, choice.variant))
    return [caption(row[:3], *row[3:]) for row in zip(*lists, *chosen, strict=True)]


def caption(lists: Sequence[list[str]], source: int, language: int, variant: int) -> tuple[str, str]:
    """Text and language of a choice among an entry's raw, English and Chinese captions."""
    if source == SOURCES.index("raw"):
        text = lists[0][variant]
        return text, "zh" if HAN.search(text) else "en"
    return lists[1 + language][variant], LANGUAGES[language]


class _Parquet:
    """A Parquet shard: one row group for each write, so that a reader needs little memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: pq.ParquetWriter | None = None
        self.sizes: list[npt.NDArray[np.int64]] = []
        self.images: list[list[bytes]] = []
        self.offsets: list[int] = []
        self.flushed = 0

    def write(self, shown: pa.Table, images: pa.ChunkedArray) -> None:
        """Add entries with their pictures."""
        at = FIRST.index("image")
        table = shown.add_column(at, pa.field("image", pa.binary(), nullable=False), images)
        if self.writer is None:
            schema = table.schema.remove_metadata()
            self.writer = pq.ParquetWriter(
                self.path, schema, compression="NONE", write_statistics=["row_id"], version="2.6",
                use_dictionary=["caption_source", "language", "pool"], write_page_index=False,
            )  # fmt: skip
        self.writer.write_table(table.cast(self.writer.schema), row_group_size=table.num_rows)
        self.flushed = _flushing(self.path, self.flushed)
        self.sizes.append(pc.binary_length(images).to_numpy().astype(np.int64))
        self.images.append([bytes(piece.as_buffer()[:32]) for piece in images])

    def close(self) -> dict[str, dict[str, Any]]:
        """Finish the file and find where each picture lies in it."""
        assert self.writer is not None
        self.writer.close()
        meta = pq.read_metadata(self.path)
        with self.path.open("rb") as file:
            for group, (sizes, heads) in enumerate(zip(self.sizes, self.images, strict=True)):
                chunk = meta.row_group(group).column(FIRST.index("image"))
                self.offsets += spans(file, chunk.data_page_offset, sizes.tolist(), heads)
        return {}

    def placed(self) -> dict[str, Any]:
        """The columns PLACED."""
        groups = [np.full(len(sizes), group) for group, sizes in enumerate(self.sizes)]
        places = [np.arange(len(sizes)) for sizes in self.sizes]
        columns = (np.array(self.offsets), np.concatenate(self.sizes), np.concatenate(groups), np.concatenate(places))
        return dict(zip(PLACED, (pa.array(c, pa.int64()) for c in columns), strict=True))


def spans(file: BinaryIO, start: int, sizes: list[int], heads: list[bytes]) -> list[int]:
    """Offsets of plainly encoded byte strings of a column chunk that begins at `start`.

    Before each stands its length (4 bytes, little end first); where a data page ends, a page header of some 20 to 100
    bytes lies between. `heads` are the first bytes of each string, at most 32.
    """
    found = []
    at = start
    for size, head in zip(sizes, heads, strict=True):
        mark = size.to_bytes(4, "little") + head
        file.seek(at)
        skip = 0 if (near := file.read(len(mark) + 4096)).startswith(mark) else near.find(mark)
        if skip < 0:
            raise ValueError("the picture is not where the Parquet file should hold it")
        found.append(at + skip + 4)
        at += skip + 4 + size
    return found


class _Tar:
    """A WebDataset shard; the same bytes always, so no times and no owners."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.places: list[tuple[int, int, int, int]] = []
        self.flushed = 0

    def write(self, shown: pa.Table, images: pa.ChunkedArray) -> None:
        """Add entries with their pictures."""
        for values, image in zip(shown.to_pylist(), images, strict=True):
            data = image.as_buffer()
            key = f"{len(self.places):07d}"
            text = json.dumps(values, ensure_ascii=False).encode()
            rest = self._member(f"{key}.json", text)
            self._member(f"{key}.txt", values["caption"].encode())
            offset = self._member(f"{key}.{suffix(bytes(data[:HEAD_BYTES]))}", data)
            self.places.append((offset, data.size, rest, len(text)))
        self.flushed = _flushing(self.path, self.flushed)

    def _member(self, name: str, data: bytes | pa.Buffer) -> int:
        size = memoryview(data).nbytes
        self.file.write(_header(name, size))
        offset = self.file.tell()
        self.file.write(data)
        self.file.write(bytes(-size % 512))
        return offset

    def close(self) -> dict[str, dict[str, Any]]:
        """Finish the file."""
        self.file.write(bytes(1024))
        self.file.close()
        return {}

    def placed(self) -> dict[str, Any]:
        """The columns PLACED."""
        columns = np.array(self.places, np.int64).reshape(-1, 4).T
        return dict(zip(PLACED, (pa.array(column) for column in columns), strict=True))


def _flushing(path: Path, flushed: int) -> int:
    """Let the disk begin with what was written to a file since `flushed`; returns how far that is.

    Else it would wait for the fsync at the end of the shard, and then the processor for the disk. The advice drops
    pages that are clean, but those are not yet.
    """
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), flushed, end - flushed, os.POSIX_FADV_DONTNEED)
    return end


def _header(name: str, size: int) -> bytes:
    """The USTAR header of a member; as tarfile writes it, at a tenth of its time."""
    if size >= 8**11 or len(name) > 100:
        header = tarfile.TarInfo(name)
        header.size = size
        return header.tobuf(tarfile.GNU_FORMAT)
    octal = (f"{0o644:07o}", f"{0:07o}", f"{0:07o}", f"{size:011o}", f"{0:011o}")  # mode, owner, group, size, time
    block = bytearray(name.encode().ljust(100, b"\0"))
    block += b"".join(field.encode() + b"\0" for field in octal) + b" " * 8 + b"0" + bytes(100) + b"ustar\x0000"
    block += bytes(247)
    block[148:156] = f"{sum(block):06o}".encode() + b"\0 "
    return bytes(block)


class _Folder:
    """Single files, as kohya's trainers and diffusers' scripts read them; one list of them for each shard."""

    def __init__(self, files: Files, job: Job) -> None:
        self.files, self.job = files, job
        self.lines: list[str] = []
        self.hashes: list[str] = []

    def write(self, shown: pa.Table, images: pa.ChunkedArray) -> None:
        """Add entries with their pictures."""
        for values, data in zip(shown.to_pylist(), images.to_pylist(), strict=True):
            stem = f"1_{values['pool']}/e{self.job.epoch:02d}-{self.job.number:05d}-{len(self.lines):07d}"
            name = f"{stem}.{suffix(data)}"
            text = values["caption"].encode()
            self.files.replace(f"{self.job.split}/{name}", data)
            self.files.replace(f"{self.job.split}/{stem}.txt", text)
            for path, content in ((name, data), (f"{stem}.txt", text)):
                self.hashes.append(f"{hashlib.sha256(content).hexdigest()}  {self.job.split}/{path}")
            self.lines.append(json.dumps({"file_name": name, "text": values["caption"], **values}, ensure_ascii=False))

    def close(self) -> dict[str, dict[str, Any]]:
        """Write the two lists of this shard: metadata, and sums as `sha256sum -c` reads them."""
        made = {}
        for name, lines in ((f"metadata/{self.job.name}.jsonl", self.lines), (f"sums/{self.job.name}", self.hashes)):
            data = ("\n".join(lines) + "\n").encode()
            self.files.replace(name, data)
            made[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "rows": len(self.lines)}
        return made

    def placed(self) -> dict[str, Any]:
        """No columns PLACED: every picture is a file."""
        return {}


def suffix(data: bytes) -> str:
    """The usual suffix of an encoded picture."""
    from workers.picture import sniff

    return sniff(data).lower().replace("jpeg", "jpg")


def _resized(data: bytes, row: dict[str, Any]) -> bytes:
    from curate.mix.pixels import encoded  # OpenCV, which only this needs

    return encoded(data, (row["width"], row["height"]), (row["bucket_width"], row["bucket_height"]))


def _rows(shown: pa.Table, first: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        shown.select(["width", "height", "bucket_width", "bucket_height"]).slice(first).to_pylist()
    )
    return rows


def _counts(plan: Plan, table: pa.Table, choice: Choice, languages: list[str]) -> list[list[Any]]:
    """Entries by all that the manifest reports."""
    free = choosable(table["_options"].to_numpy())
    several = bilingual(table["_options"].to_numpy())
    columns = (
        [POOLS[i] for i in table["_pool"].to_numpy()],
        [f"{w}x{h}" for w, h in (plan.buckets[i] for i in table["_bucket"].to_numpy())],
        [plan.concepts[i] for i in table["_concept"].to_numpy()],
        [SOURCES[i] for i in choice.source],
        languages,
        free.tolist(),
        several.tolist(),
    )
    counted = Counter(zip(*columns, strict=True))
    return [[*key, count] for key, count in sorted(counted.items())]


def _nouns(table: pa.Table) -> list[list[Any]]:
    """Proper nouns of raw captions that the synthetic side lacks, most frequent first, with a row that has each."""
    counted: Counter[str] = Counter()
    example: dict[str, str] = {}
    columns = ("row_id", "_copy", "captions_raw", "captions_en", "captions_zh")
    for row_id, copy, raw, english, chinese in zip(*(table[name].to_pylist() for name in columns), strict=True):
        if raw and not copy and (english or chinese):
            for noun in names.missing(raw, [*english, *chinese]):
                counted[noun] += 1
                example.setdefault(noun, row_id)
    frequent = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST_NOUNS]
    return [[noun, count, example[noun]] for noun, count in frequent]


def _characters(table: pa.Table) -> str:
    """The Chinese characters that the rendered text shows (its captions, where the text itself is not known)."""
    text = table.filter(pa.array(table["_pool"].to_numpy() == POOLS.index("text")))
    said = zip(text["_drawn"].to_pylist(), text["captions_zh"].to_pylist(), strict=True)
    return "".join(sorted({c for drawn, zh in said for c in drawn or "".join(zh) if HAN.match(c)}))


@contextmanager
def _scratch(files: Files) -> Iterator[Path]:
    """A folder for unfinished files: inside a local export, so that publishing is a rename; else the system's."""
    local = files.local(FOLDER)
    if local:
        local.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=local, prefix="half-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _published(files: Files, name: str, path: Path, rows: int) -> dict[str, Any]:
    """Put a finished local file in its place, whole or not at all, and return what the manifest says of it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, io.SEEK_END)
    put(files, name, path)
    return {"sha256": digest, "bytes": size, "rows": rows}


def put(files: Files, name: str, path: Path) -> None:
    """Move a local file to `name`: synced and renamed on a local disk, uploaded in pieces to an object store."""

    local = files.local(name)
    if local is None:
        assert isinstance(files, ObjectFiles)
        files.store.put(name, path)
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(local)
    handle = os.open(local.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
