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
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from curate.errors import CurateError
from curate.mix import names, parquet
from curate.mix.choose import POOLS, SPLITS
from curate.mix.decide import LANGUAGES, SOURCES, Choice, Entries, bilingual, choosable, decide
from curate.mix.plan import FOLDER, Job, Plan, cuts, load, scratch
from curate.mix.sources import Pictures, Specs
from curate.mix.stream import Stream
from curate.read.pages import Piece, in_memory
from curate.store.files import Files, open_files

METADATA = f"{FOLDER}/metadata"  # of each shard of a folder layout, until the export is finished
GROUP_BYTES = 32_000_000  # of the pictures of a row group, about
READ_ROWS = 32  # pictures in memory at once, where they have to be read or drawn first
HEAD_BYTES = 2048  # of a picture, enough to tell its format
MOST_NOUNS = 5_000  # of one shard; rarer ones of a larger shard are not reported
BLOCK = 512  # of an archive
# A member's header around its name, size and sum: mode, owner and group; time; type. The sum counts itself as blanks.
OWNED = b"0000644\0" + 2 * b"0000000\0"
TIMED = b"\0" + 11 * b"0" + b"\0"
TYPED = b"\0 0" + bytes(100) + b"ustar\x0000" + bytes(247)
HEADER_SUM = sum(OWNED + TIMED + TYPED) - sum(b"\0 ") + 8 * ord(" ")
SUFFIX = {"parquet": ".parquet", "webdataset": ".tar", "folder": ".jsonl"}
json_of = json.JSONEncoder(ensure_ascii=False).encode
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
    """Path below the export -> blake3, bytes, rows."""
    counts: list[list[Any]]
    """[pool, bucket, concept, source, language, both kinds were there, both languages were there, entries]."""
    nouns: list[list[Any]]
    """[proper noun, entries, example row_id]."""
    characters: str
    """Chinese characters that the rendered text of the shard shows."""

    def to_json(self) -> bytes:
        """The receipt as `receipt` reads it."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True).encode()


def receipts(files: Files) -> list[Receipt]:
    """The receipts of all jobs that are done."""
    found = []
    for path in files.list(FOLDER):
        if Path(path).name.startswith(tuple(f"{split}-e" for split in SPLITS)) and path.endswith(".json"):
            values = json.loads(files.read(path))
            found.append(Receipt(Job(**values.pop("job")), **values))
    return found


@lru_cache(maxsize=2)
def _plan(uri: str, mark: str) -> Plan:
    plan = load(open_files(uri))
    if plan is None or plan.fingerprint != mark:
        raise _gone(uri)
    return plan


def _gone(uri: str) -> CurateError:
    return CurateError(f"{uri}: another process has finished this export or writes another one here; run it again")


def entries_of(table: pa.Table, prefix: str = "") -> Entries:
    """The columns of an index, or of a plan's file (prefix `_`), that decide captions."""
    return Entries(*(table[prefix + name].to_numpy() for name in ("key", "options", "raw", "en", "zh", "cell", "rank")))


def make(uri: str, mark: str, job: Job) -> Receipt:
    """Do one job of the plan in the folder `uri`; runs in any process on any machine that reaches it."""
    files = open_files(uri)
    plan = _plan(uri, mark)
    try:
        rows = files.read(job.rows)
    except FileNotFoundError:
        raise _gone(uri) from None
    if blake3(rows).hexdigest()[: len(job.digest)] != job.digest:
        raise _gone(uri)
    table = pq.read_table(pa.BufferReader(rows))
    choice = decide(plan.settings.policy, plan.cells[job.split], entries_of(table, "_"), job.epoch)
    shown = _shown(table, choice, job.epoch)
    pictures = _pictures(plan, table)
    if plan.settings.resize:
        pictures = _resized(pictures, shown)
    made: dict[str, dict[str, Any]] = {}
    placed: dict[str, Any] = {}
    with scratch(files) as folder:
        if plan.settings.format == "folder":
            made |= _folder(files, job, shown, pictures)
        else:
            name = f"{job.split}/{job.name}{SUFFIX[plan.settings.format]}"
            with Stream(folder / "shard") as stream:
                if plan.settings.format == "parquet":
                    placed = _parquet(stream, shown, table["_length"], pictures)
                else:
                    placed = _tar(stream, shown, pictures)
                digest, size = stream.close()
            files.adopt(name, folder / "shard")
            made[name] = {"blake3": digest, "bytes": size, "rows": job.entries}
        decided = {name: table[f"_{name}"].cast(kind) for name, kind in INDEXED}
        sizes = {name: table[name] for name in ("width", "height")}
        name = f"index/{job.name}.parquet"
        with Stream(folder / "index") as stream:
            out = pa.BufferOutputStream()
            pq.write_table(pa.table(decided | sizes | placed), out, compression="zstd")
            stream.put(memoryview(out.getvalue()).cast("B"))
            digest, size = stream.close()
        files.adopt(name, folder / "index")
        made[name] = {"blake3": digest, "bytes": size, "rows": job.entries}
    done = Receipt(
        job, made, _counts(plan, table, choice, shown["language"].to_pylist()), _nouns(table), _characters(table)
    )
    files.replace(f"{FOLDER}/{job.name}.json", done.to_json())
    return done


def _pictures(plan: Plan, table: pa.Table) -> Iterator[Piece]:
    """The original picture of each entry, where it lies; a row that comes again at once is read once."""
    source, row = table["_source"].to_numpy(), table["_row"].to_numpy()
    shard = table["_shard"].to_pylist()
    open_now: tuple[int, str] | None = None
    reader: Pictures | Specs | None = None
    first = 0
    while first < len(row):
        here = int(source[first]), shard[first]
        stop = first + 1
        while stop < len(row) and stop - first < READ_ROWS and (int(source[stop]), shard[stop]) == here:
            stop += 1
        if reader is None or here != open_now:
            reader, open_now = plan.places[here[0]].pictures(here[1]), here
        wanted, at = np.unique(row[first:stop], return_inverse=True)
        found = reader.read(wanted.tolist())
        yield from (found[i] for i in at.tolist())
        first = stop


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


def _parquet(stream: Stream, shown: pa.Table, length: pa.ChunkedArray, pictures: Iterator[Piece]) -> dict[str, Any]:
    """Write a Parquet shard; returns the columns PLACED. Row groups are small, so that a reader needs little memory."""
    ends = cuts(length.to_numpy(), GROUP_BYTES, shown.num_rows)
    groups = np.diff(ends, prepend=0)
    offsets, sizes = parquet.write(stream, shown, FIRST.index("image"), groups.tolist(), pictures)
    places = np.concatenate([np.arange(rows) for rows in groups])
    columns = (offsets, sizes, np.repeat(np.arange(len(groups)), groups), places)
    return dict(zip(PLACED, (pa.array(column, pa.int64()) for column in columns), strict=True))


def _tar(stream: Stream, shown: pa.Table, pictures: Iterator[Piece]) -> dict[str, Any]:
    """Write a WebDataset shard; the same bytes always, so no times and no owners. Returns the columns PLACED."""
    places = []
    for number, (values, piece) in enumerate(zip(shown.to_pylist(), pictures, strict=True)):
        name = f"{number:07d}"
        rest, caption = json_of(values).encode(), values["caption"].encode()
        before = stream.size + BLOCK
        head = _header(f"{name}.{suffix(piece.head(HEAD_BYTES))}", piece.size)
        stream.put(_member(f"{name}.json", rest) + _member(f"{name}.txt", caption) + head)
        places.append((stream.size, piece.size, before, len(rest)))
        stream.copy(piece)
        stream.put(bytes(-piece.size % BLOCK))
    stream.put(bytes(2 * BLOCK))
    columns = np.array(places, np.int64).reshape(-1, 4).T
    return dict(zip(PLACED, (pa.array(column) for column in columns), strict=True))


def _member(name: str, data: bytes) -> bytes:
    """A file of an archive."""
    return _header(name, len(data)) + data + bytes(-len(data) % BLOCK)


def _header(name: str, size: int) -> bytes:
    """The USTAR header of a member; as tarfile writes it, at a thirtieth of its time."""
    if size >= 8**11 or len(name) > 100:
        header = tarfile.TarInfo(name)
        header.size = size
        return header.tobuf(tarfile.GNU_FORMAT)
    named, sized = name.encode(), b"%011o" % size
    total = HEADER_SUM + sum(named) + sum(sized)
    return b"%b%b%b%b%06o%b" % (named.ljust(100, b"\0"), OWNED, sized, TIMED, total, TYPED)


def _folder(files: Files, job: Job, shown: pa.Table, pictures: Iterator[Piece]) -> dict[str, dict[str, Any]]:
    """Write single files, as kohya's trainers and diffusers' scripts read them.

    Returns what the manifest says of the two lists of this shard: metadata, and sums as `b3sum -c` reads them.
    """
    lines, hashes = [], []
    for number, (values, piece) in enumerate(zip(shown.to_pylist(), pictures, strict=True)):
        data = piece.read()
        stem = f"1_{values['pool']}/e{job.epoch:02d}-{job.number:05d}-{number:07d}"
        name = f"{stem}.{suffix(data)}"
        for path, content in ((name, data), (f"{stem}.txt", values["caption"].encode())):
            files.replace(f"{job.split}/{path}", content)
            hashes.append(f"{blake3(content).hexdigest()}  {job.split}/{path}")
        lines.append(json.dumps({"file_name": name, "text": values["caption"], **values}, ensure_ascii=False))
    made = {}
    for path, of in ((f"{METADATA}/{job.name}.jsonl", lines), (f"sums/{job.name}", hashes)):
        content = ("\n".join(of) + "\n").encode()
        files.replace(path, content)
        made[path] = {"blake3": blake3(content).hexdigest(), "bytes": len(content), "rows": len(of)}
    return made


def suffix(data: bytes) -> str:
    """The usual suffix of an encoded picture."""
    from workers.picture import sniff

    return sniff(data).lower().replace("jpeg", "jpg")


def _resized(pictures: Iterator[Piece], shown: pa.Table) -> Iterator[Piece]:
    """The pictures cropped to their buckets."""
    from curate.mix.pixels import encoded  # OpenCV, which only this needs

    rows = shown.select(["width", "height", "bucket_width", "bucket_height"]).to_pylist()
    for piece, row in zip(pictures, rows, strict=True):
        size, bucket = (row["width"], row["height"]), (row["bucket_width"], row["bucket_height"])
        yield in_memory(encoded(piece.read(), size, bucket))


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
