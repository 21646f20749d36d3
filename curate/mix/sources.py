"""Where rows come from: a store, or a folder of shards with rendered text; both answer the same SQL, shard by shard.

A row's identity in the mix is its `row_id`, with `text/` before it when it comes from the source of rendered text.
"""

from __future__ import annotations

import io
import json
import threading
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import CurateError, StoreError, UsageError
from curate.mix import old
from curate.mix.settings import Settings
from curate.policy import repeatable
from curate.read import InputError, InputSpec, Reader, Shard, discover, identity, index
from curate.read.pages import Column, LocalFile, Piece, in_memory
from curate.read.parquet import ParquetReader
from curate.read.webdataset import TarReader
from curate.store import Store, query
from curate.store.files import open_files
from curate.store.parts import Version, parts_of, read_parts, read_table
from schemas.errors import RowError
from schemas.rows import identifier

if TYPE_CHECKING:
    from curate.synth.spec import World

HAN = "[\\x{4e00}-\\x{9fff}]"  # as the view `captions` tells Chinese
TOP_TIER = 5
# Columns that say why a caption must not be used (NULL: nothing is wrong with it), when the store has them.
CAPTIONS = ("caption_raw", "caption_raw_en", "caption_raw_zh", "caption_en", "caption_zh")
REASONS: dict[str, tuple[str, ...]] = {caption: (f"{caption}_reason",) for caption in CAPTIONS}
REASONS["caption_en"] += ("caption_en_alike_reason",)
REASONS["caption_zh"] += ("caption_en_alike_reason",)  # its translation
# Columns that shards have anyway, whatever --columns names.
ALWAYS = ("row_id", "sha256", "width", "height", "concept")
SIZE_BATCH = 64
LIGHT_ROWS = 200_000  # whose light columns are asked for at once
MEMORY = "256MB"  # for the pages of the index that are kept, and what is sorted


@dataclass(frozen=True)
class Place:
    """All that a worker needs to read the pictures of a source; travels in the plan."""

    uri: str
    kind: str
    """`store`, `folder`, or `specs`: a folder of rendered text without pictures."""
    mark: str
    """Fingerprint of the operator `input` (store); whether specs stay as they are: `keep` or `draw`."""
    spec: InputSpec
    shards: dict[str, tuple[str, str]]
    """Shard -> (URI, format)."""

    def pictures(self, name: str) -> Pictures | Specs:
        """The pictures of one shard."""
        return Specs(self, name) if self.kind == "specs" else Pictures(self, name)


class Pictures:
    """Original bytes of one shard's rows, ascending, where they lie."""

    def __init__(self, place: Place, name: str) -> None:
        if name not in place.shards:
            raise StoreError(
                f"{place.uri}: shard {name} is not among those of the last run, so its pictures cannot be found; "
                "run the main job over all shards again (nothing is computed twice)"
            )
        self.name = name
        uri, format = place.shards[name]
        shard = Shard(name, uri, format, place.spec)
        try:
            self.reader = Reader(shard)
            self.locators = _locators(place, shard)
            self.lying = _lying(self.reader.source, self.locators)
        except InputError as why:
            raise CurateError(f"shard {name}: {why.message}") from None
        except OSError as why:
            raise CurateError(f"shard {name}: {uri}: {why.strerror}") from None
        self.rows = self.locators["row"].to_numpy()

    def read(self, rows: Sequence[int]) -> list[Piece]:
        """Where the bytes of the rows lie; CurateError names the first that cannot be read."""
        found: Sequence[Piece | None] = [None] * len(rows)
        if isinstance(self.lying, Column):
            found = [self.lying.at(row) for row in rows]
        elif self.lying:
            here = self.locators.take(pa.array(np.searchsorted(self.rows, rows)))
            spans = zip(here["_offset"].to_pylist(), here["_size"].to_pylist(), strict=True)
            found = [self.lying.piece(at, size) if at and size else None for at, size in spans]
        others = [row for row, piece in zip(rows, found, strict=True) if piece is None or not piece.size]
        read = iter(self._bytes(others) if others else [])
        return [piece if piece and piece.size else in_memory(next(read)) for piece in found]

    def _bytes(self, rows: Sequence[int]) -> list[bytes]:
        at = np.searchsorted(self.rows, rows)
        found = self.reader.read(list(rows), self.locators.take(pa.array(at)))
        for row, data in zip(rows, found, strict=True):
            if isinstance(data, RowError):
                raise CurateError(
                    f"{self.name}:{row} cannot be read any more ({data.message}); bring the file back, "
                    "or leave the row out with --where"
                )
        return [data for data in found if isinstance(data, bytes)]


class Specs:
    """Specs of one shard of rendered text as bytes, or the pictures that are drawn from them."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.texts = pq.read_table(place.shards[name][0], columns=["synth_spec"])["synth_spec"]

    def read(self, rows: Sequence[int]) -> list[Piece]:
        """The rows' specs or pictures."""
        texts = self.texts.take(pa.array(rows)).to_pylist()
        if self.place.mark == "keep":
            return [in_memory(text.encode()) for text in texts]
        from curate.synth.sample import rendered_again

        with _drawing:
            world = _world(self.place.uri)
            return [in_memory(rendered_again(world, text)) for text in texts]


def _lying(source: object, locators: pa.Table) -> Column | LocalFile | None:
    """What tells where pictures lie in a local Parquet file or archive; None: they have to be read to be had."""
    if isinstance(source, ParquetReader) and source.place.local and source.columns.kind != "path":
        leaf = source.columns.image + (".bytes" if source.columns.kind == "struct" else "")
        return Column(source.place.path, source.file, leaf)
    if isinstance(source, TarReader) and source.place.local and "_error" not in locators.column_names:
        return LocalFile(source.place.path)
    return None


_drawing = threading.Lock()  # inline jobs are threads, and a world holds fonts


@lru_cache(maxsize=1)
def _world(uri: str) -> World:
    from curate.synth.shards import open_world

    return open_world(Path(uri))


def _locators(place: Place, shard: Shard) -> pa.Table:
    """`row` and the private columns that the reader asks for, sorted by row."""
    if place.kind == "folder":
        table = _indexed(shard)
        return table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    files = open_files(place.uri)
    parts = parts_of(files, Version("input", place.mark), shard.id)
    if not parts:
        raise StoreError(f"{place.uri}: no part of operator input for shard {shard.id}")
    part = read_table(files, parts[0].path, [])
    before = (part.schema.metadata or {}).get(b"shard_identity", b"").decode()
    if before and _identity(shard) not in (before, ""):
        raise CurateError(
            f"shard {shard.id}: {shard.uri} is not the file that was scored, and its pictures may be others; bring "
            f"that file back, or score this one under another name (curate store forget {place.uri} {shard.id})"
        )
    private = [name for name in part.column_names if name.startswith("_")]
    table = read_parts(files, parts, ["row", *private])
    assert table is not None
    return table


@lru_cache(maxsize=64)  # a shard of the export often begins where another one ended
def _identity(shard: Shard) -> str:
    return identity(shard)


@lru_cache(maxsize=4)
def _indexed(shard: Shard) -> pa.Table:
    return index(shard).table


class Source:
    """Rows of a store or folder as a DuckDB relation `samples`, one shard at a time."""

    def __init__(self, uri: str, settings: Settings, pool: str, spill: str = "") -> None:
        self.uri, self.settings, self.pool = uri, settings, pool
        self.prefix = "text/" if pool == "text" else ""
        self.store: Store | None = Store(uri, memory=MEMORY, spill=spill) if is_store(uri) else None
        if self.store is None and pool != "text":
            Store(uri).require()
        if self.store is None:
            self.place = specs(uri, settings) or folder(uri)
            self.db = duckdb.connect(config={"threads": 1})
            for name in self.place.shards:
                self._register(name)
            if not self.place.shards:
                raise UsageError(f"--text {uri!r}: no store and no shards here; make some with: curate synth -o {uri}")
        else:
            self.db = self.store.connection()
            self.place = _place(self.store)
        counts = self._all("SELECT shard, count(*) FROM samples GROUP BY 1 ORDER BY 1")
        self.names = [name for name, _ in counts]
        self.counts = dict(counts)
        self.columns = {row[0]: row[1] for row in self._all("DESCRIBE samples")}
        tables = {row[0] for row in self._all("SELECT table_name FROM information_schema.tables")}
        self.consensus = "consensus" in tables and "tier" not in self.columns and "sha256" in self.columns
        self.active: set[str] = set()
        if self.store is not None:
            self.active = {name for (name,) in self._all("SELECT operator FROM operators WHERE active")}
        self.where = repeatable(settings.where, f"--where {settings.where!r}") if settings.where else ""
        self.top = repeatable(settings.top, f"--top {settings.top!r}") if settings.top else ""
        self._check()
        self._tables()

    def together(self) -> Iterator[tuple[int, int]]:
        """First and last+1 of the shards that are asked for at once: each query takes some 30 ms to be understood."""
        first = held = 0
        for at, name in enumerate(self.names):
            if at > first and (held + self.counts[name] > LIGHT_ROWS or self.rotates):
                yield first, at
                first, held = at, 0
            held += self.counts[name]
        if self.names:
            yield first, len(self.names)

    @property
    def rotates(self) -> bool:
        """Whether old captions are shown, which are found shard by shard."""
        return self.settings.synthetic == "all" and self.store is not None

    def light(self, first: int, stop: int) -> dict[str, Any]:
        """What the plan reads of each usable row of some shards, as NumPy arrays (text as Arrow's), in order."""
        raw, english, chinese = self._captions()
        group, digest = "NULL", "sha256" if self._has("sha256") else "NULL"
        if "dedup" in self.active:
            group = f"'{self.prefix}dedup ' || coalesce(dedup_group, known_group)"
        select = f"""
            shard, row, md5_number_lower({self._id()}) AS key,
            coalesce(md5_number_lower({group}), 0)::UBIGINT AS "group",
            coalesce(md5_number_lower({digest}), 0)::UBIGINT AS digest,
            {self._unseen("dedup")} AS unseen_dedup, {self._unseen("balance")} AS unseen_balance,
            coalesce(width, 0)::INTEGER AS width, coalesce(height, 0)::INTEGER AS height,
            coalesce({"bytes" if self._has("bytes") else "0"}, 0)::BIGINT AS bytes,
            least(len({raw}), 255)::UTINYINT AS raw,
            least(len({english}), 255)::UTINYINT AS en, least(len({chinese}), 255)::UTINYINT AS zh,
            {self._weight()} AS weight, {self._concept()} AS concept, {self._pool()} AS pool"""
        table = self._table(self.names[first:stop], select)
        numbers = {name: number for number, name in enumerate(self.names)}
        columns: dict[str, Any] = {
            name: table[name] if name in ("concept", "pool") else table[name].to_numpy()
            for name in table.column_names
            if name != "shard"
        }
        return columns | {"shard": coded(table["shard"], numbers)}

    def full(self, shards: npt.NDArray[np.int32], rows: npt.NDArray[np.int32]) -> pa.Table:
        """What the shards hold of rows beside picture and choice; names with `_` stay in the plan.

        `shards` are numbers in `names`, ascending, and so are the rows of each; a row that comes again is read once.
        """
        raw, english, chinese = self._captions()
        select = f"""
            {self._id()} AS row_id,
            {raw} AS captions_raw, {english} AS captions_en, {chinese} AS captions_zh,
            {"sha256" if self._has("sha256") else "NULL::VARCHAR"} AS sha256,
            coalesce(width, 0)::INTEGER AS width, coalesce(height, 0)::INTEGER AS height,
            {self._concept()} AS concept, {self._drawn()} AS _drawn"""
        for name in self.settings.columns:
            if name in ALWAYS:
                continue
            known = self._has(name) or (name == "tier" and self.consensus)
            select += f", {identifier(name) if known else 'NULL'} AS {identifier(name)}"
        pairs, at = np.unique(shards.astype(np.int64) << 32 | rows, return_inverse=True)
        names = pa.array(np.array(self.names, object)[pairs >> 32], pa.string())
        self.db.register("wanted", pa.table({"wanted_shard": names, "wanted_row": pairs & 0xFFFFFFFF}))
        here = [self.names[number] for number in np.unique(shards)]
        table = self._table(here, select, "JOIN wanted ON shard = wanted_shard AND row = wanted_row")
        self.db.unregister("wanted")
        return table.take(pa.array(at))

    def _table(self, shards: Sequence[str], select: str, chosen: str = "") -> pa.Table:
        # The shards stand in the text: for a parameter DuckDB imports pandas where it is installed, half a second.
        chosen = chosen or f"WHERE {self._where()}"
        text = f"SELECT {select} FROM ({self._rows(shards)}) {chosen} ORDER BY shard, row"
        try:
            found = self.db.execute(text).to_arrow_table()
        except duckdb.Error as why:
            where = f"shard {shards[0]}" + (f" to {shards[-1]}" if len(shards) > 1 else "")
            raise UsageError(f"{self.uri}: {where}, --where or --top: {query.first_line(why)}") from None
        return found.cast(pa.schema([_plain(field) for field in found.schema]))

    def _rows(self, shards: Sequence[str]) -> str:
        """SQL of the rows of some shards, with all that other tables say of them."""
        text, add = f"SELECT * FROM samples WHERE shard IN ({', '.join(map(literal, shards))})", ""
        if self.consensus:
            text = f"SELECT s.*, c.tier FROM ({text}) AS s LEFT JOIN (SELECT sha256, max(tier) AS tier FROM consensus "
            text += "GROUP BY sha256) AS c ON c.sha256 = s.sha256"
        if self.rotates:
            assert self.store is not None
            self.db.register("old_captions", old.captions(self.store, shards[0]))
            add += "LEFT JOIN (SELECT row AS old_row, others_en, others_zh FROM old_captions) ON old_row = row "
        if "dedup" in self.active:
            add += "LEFT JOIN known_groups ON known_sha = md5_number_lower(sha256) "
        if self._pools():
            add += "LEFT JOIN bad_raw ON bad_group = dedup_group "
        return f"SELECT * FROM ({text}) {add}" if add else text

    def _where(self) -> str:
        chosen = ["TRUE"]
        if self.store is not None:
            chosen.append("error IS NULL")
            if not self.settings.ignore_policy:
                chosen.append("keep")
                chosen += [f"coalesce({c}, TRUE)" for c in ("dedup_keep", "balance_keep") if self._has(c)]
        elif "synth_reason" in self.columns:
            chosen.append("synth_reason IS NULL")
        if self.settings.where and self.pool != "text":
            chosen.append(self.where)
        return " AND ".join(chosen)

    def _captions(self) -> tuple[str, str, str]:
        """SQL of the lists of raw captions and of English and Chinese synthetic ones, usable ones only."""
        settings = self.settings
        # A raw caption's translation says what people said, in the other language: raw, too.
        said = [name for name in ("caption_raw", "caption_raw_en", "caption_raw_zh") if self._has(name)]
        raw = f"[{', '.join(self._usable(name) for name in said)}]"
        if self._pools():
            # What dedup gathered is held against what the checks say now, of every row of the group.
            bad = "list_contains(coalesce(bad_raws, []), x)"
            if self._has(reason := REASONS["caption_raw"][0]):
                bad += f" OR (x = caption_raw AND {reason} IS NOT NULL)"
            pooled = f"list_filter(coalesce(dedup_captions, []), lambda x: ({bad}) IS NOT TRUE)"
            raw = f"list_concat({raw}, list_transform({pooled}, lambda x: trim(x)))"
            raw = f"list_sort(list_distinct({raw}))"
        spoken = " OR ".join(
            f"{'' if language == 'zh' else 'NOT '}regexp_matches(x, '{HAN}')"
            for language in ("en", "zh")
            if settings.speaks(language)
        )
        none = "[]::VARCHAR[]"
        kept = f"list_filter({raw}, lambda x: nullif(trim(x), '') IS NOT NULL AND ({spoken}))"
        raw = kept if self._has("caption_raw") else none
        drawn = self._has("synth_caption_en") or self._has("synth_caption_zh")
        if self.pool == "text":
            raw = none  # the `caption` of rendered text is one of its synthetic ones
        elif drawn:
            raw = f"CASE WHEN {self._pool()} = 'text' THEN {none} ELSE {raw} END"
        lists = []
        for language in ("en", "zh"):
            # What quotes the text of a picture comes first: a poster's caption, then what rendered text was drawn with.
            own = [
                f"{kind}_caption_{language}" for kind in ("poster", "synth") if self._has(f"{kind}_caption_{language}")
            ]
            texts = f"[coalesce({', '.join([*own, self._usable(f'caption_{language}')])})]"
            if self.rotates:
                texts = f"list_distinct(list_concat({texts}, coalesce(others_{language}, [])))"
                texts = f"list_sort({texts})"
            kept = f"list_filter({texts}, lambda x: nullif(trim(x), '') IS NOT NULL)"
            lists.append(kept if settings.speaks(language) else none)
        return raw, lists[0], lists[1]

    def _usable(self, column: str) -> str:
        """SQL of a caption, NULL when it is empty or a quality check gives a reason against it."""
        if not self._has(column):
            return "NULL::VARCHAR"
        good = f"nullif(trim({column}), '')"
        reasons = " AND ".join(f"{reason} IS NULL" for reason in REASONS[column] if self._has(reason))
        return f"CASE WHEN {reasons} THEN {good} END" if reasons else good

    def _concept(self) -> str:
        return "coalesce(concept::VARCHAR, 'none')" if self._has("concept") else "'none'"

    def _weight(self) -> str:
        if self.settings.ignore_policy or not self._has("balance_weight"):
            return "1.0::DOUBLE"
        return "coalesce(balance_weight, 1)::DOUBLE"

    def _drawn(self) -> str:
        """SQL of the text that a row of rendered text is known to show."""
        if self._has("synth_texts"):
            return "array_to_string(synth_texts, '\n')"
        return "NULL::VARCHAR"

    def _pool(self) -> str:
        if self.pool == "text":
            return "'text'"
        top = self.top or (f"tier = {TOP_TIER}" if self.consensus or self._has("tier") else "FALSE")
        drawn = "WHEN source = 'synth' THEN 'text'" if self._has("source") and self._has("synth_spec_sha") else ""
        return f"CASE {drawn} WHEN ({top}) THEN 'top' ELSE 'natural' END"

    def _pools(self) -> bool:
        """Whether keepers have captions of their copies."""
        return "dedup" in self.active and self._has("dedup_captions")

    def _unseen(self, operator: str) -> str:
        """SQL that tells whether a derived operator that ran has not judged the row: it came later, perhaps."""
        return f"{operator}_keep IS NULL" if operator in self.active else "FALSE"

    def _tables(self) -> None:
        """Small tables beside `samples`: groups of contents that dedup has seen in other rows; bad captions of groups.

        A row that came after dedup belongs to the group of its bytes: its twin must not stand in the other split.
        """
        if "dedup" in self.active:  # hashes of hashes, since those of millions of rows are in memory
            self.db.execute(
                "CREATE OR REPLACE TEMP TABLE known_groups AS SELECT md5_number_lower(sha256) AS known_sha, "
                "min(dedup_group) AS known_group FROM samples WHERE dedup_group IS NOT NULL AND "
                "md5_number_lower(sha256) IN (SELECT md5_number_lower(sha256) FROM samples WHERE dedup_group IS NULL "
                "AND sha256 IS NOT NULL) GROUP BY 1"
            )
        if self._pools():
            bad = "caption_raw_reason IS NOT NULL" if self._has("caption_raw_reason") else "FALSE"
            self.db.execute(
                "CREATE OR REPLACE TEMP TABLE bad_raw AS SELECT dedup_group AS bad_group, list(DISTINCT caption_raw) "
                f"AS bad_raws FROM samples WHERE {bad} AND caption_raw IS NOT NULL AND dedup_size > 1 GROUP BY 1"
            )

    def _id(self) -> str:
        return f"'{self.prefix}' || row_id" if self.prefix else "row_id"

    def _has(self, name: str) -> bool:
        return name in self.columns

    def _all(self, text: str) -> list[tuple[Any, ...]]:
        return self.db.execute(text).fetchall()

    def _check(self) -> None:
        """UsageError for SQL and columns that the store does not understand, before anything is read."""
        for option, text in (("--where", self.settings.where), ("--top", self.settings.top)):
            if not text or self.pool == "text":
                continue
            try:
                joined = "LEFT JOIN (SELECT sha256, tier FROM consensus) USING (sha256)" if self.consensus else ""
                self.db.execute(f"SELECT 1 FROM samples {joined} WHERE ({text}\n) LIMIT 0")
            except duckdb.Error as why:
                raise UsageError(f"{option} {text!r}: {query.first_line(why)}") from None
        for name in self.settings.columns:
            if not self._has(name) and self.pool != "text" and not (name == "tier" and self.consensus):
                raise UsageError(f"--columns: {self.uri} has no column {name!r}; curate sql STORE 'DESCRIBE samples'")

    def _register(self, name: str) -> None:
        """Add a shard of a folder to the relation `samples`; its pictures' headers are read for their sizes."""
        uri, format = self.place.shards[name]
        if self.place.kind == "specs":
            self._insert(name, *_sized(uri, keep=self.place.mark == "keep"))
            return
        shard = Shard(name, uri, format, self.place.spec)
        try:
            table = _indexed(shard)
            sizes = _sizes(Reader(shard), table)
        except InputError as why:
            raise CurateError(f"--text: {why.message}") from None
        self._insert(name, table, sizes)

    def _insert(self, name: str, table: pa.Table, sizes: dict[str, pa.Array]) -> None:
        own = [column for column in table.column_names if not column.startswith("_")]
        fixed = {
            "row_id": pa.array([f"{name}:{row}" for row in range(table.num_rows)]),
            "shard": pa.array([name] * table.num_rows),
            "row": pa.array(range(table.num_rows), pa.int64()),
            **sizes,
        }
        self.db.register("one", pa.table({**fixed, **{c: table[c] for c in own if c not in fixed}}))
        known = self._all("SELECT 1 FROM information_schema.tables WHERE table_name = 'samples'")
        self.db.execute("INSERT INTO samples BY NAME FROM one" if known else "CREATE TABLE samples AS FROM one")


def literal(text: str) -> str:
    """Text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def coded(texts: pa.ChunkedArray, codes: dict[str, int]) -> npt.NDArray[np.int32]:
    """A number for each text, by a table to which new texts are added as they come."""
    encoded = texts.combine_chunks().dictionary_encode()
    numbers = [codes.setdefault(text, len(codes)) for text in encoded.dictionary.to_pylist()]
    found: npt.NDArray[np.int32] = np.array(numbers, np.int32)[encoded.indices.to_numpy()]
    return found


def _sizes(reader: Reader, table: pa.Table) -> dict[str, pa.Array]:
    """Width, height and length of each picture of a shard by its header; null for what is no picture."""
    from workers.picture import header_size

    sizes: list[tuple[int, int, int] | None] = []
    for first in range(0, table.num_rows, SIZE_BATCH):
        rows = range(first, min(first + SIZE_BATCH, table.num_rows))
        for data in reader.read(rows, table.slice(first, len(rows))):
            size = header_size(data) if isinstance(data, bytes) else None
            sizes.append(None if size is None or isinstance(data, RowError) else (*size, len(data)))
    names = ("width", "height", "bytes")
    return {name: pa.array([size and size[i] for size in sizes], pa.int64()) for i, name in enumerate(names)}


def _plain(field: pa.Field) -> pa.Field:
    """Types that every reader of Parquet knows: no views and no large offsets."""
    kind = field.type
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        kind = pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = pa.list_(_plain(kind.value_field).type)
    return pa.field(field.name, kind)


def is_store(uri: str) -> bool:
    """Whether a store lies there."""
    return any(True for _ in open_files(uri).list("runs"))


def specs(uri: str, settings: Settings) -> Place | None:
    """The place of a folder that `curate synth --specs-only` made, None when it is another one."""
    root = Path(uri)
    try:
        if not json.loads((root / "manifest.json").read_bytes())["specs_only"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    shards = {path.name: (str(path), "parquet") for path in sorted((root / "shards").glob("synth-*.parquet"))}
    return Place(uri, "specs", "keep" if settings.keep_specs else "draw", InputSpec(uri), shards)


def _sized(path: str, keep: bool) -> tuple[pa.Table, dict[str, pa.Array]]:
    """A shard of specs; width, height and length of each picture (or of its spec), null where a row is infeasible."""
    table = pq.read_table(path)
    sizes: list[tuple[int, int, int] | None] = []
    for text in table["synth_spec"].to_pylist():
        width, height = json.loads(text)["size"] if text else (0, 0)
        sizes.append((width, height, len(text.encode()) if keep else width * height * 2 // 7) if text else None)
    names = ("width", "height", "bytes")
    columns = {name: pa.array([size and size[i] for size in sizes], pa.int64()) for i, name in enumerate(names)}
    # What shards hold is the spec, and a picture is checked by its hash.
    return table, columns | ({"sha256": table["synth_spec_sha"]} if keep else {})


def folder(uri: str) -> Place:
    """A folder of shards; UsageError when there is none."""
    try:
        shards = discover(InputSpec(uri))
    except InputError as why:
        raise UsageError(f"--text {uri!r}: {why.message}") from None
    return Place(uri, "folder", "", InputSpec(uri), {s.id: (s.uri, s.format) for s in shards})


def _place(store: Store) -> Place:
    runs = store.rows("SELECT recipe FROM runs ORDER BY run_id DESC LIMIT 1")
    keys = tomllib.load(io.BytesIO(runs[0][0].encode())).get("input", {}) if runs else {}
    known = {field.name for field in fields(InputSpec)}
    marks = store.rows("SELECT fingerprint FROM operators WHERE operator = 'input' AND active")
    shards = store.rows("SELECT shard, uri, format FROM shards")
    spec = InputSpec(**{"uri": "", **{key: value for key, value in keys.items() if key in known}})
    mark = marks[0][0] if marks else ""
    return Place(str(store.files.uri), "store", mark, spec, {name: (uri, format) for name, uri, format in shards})
