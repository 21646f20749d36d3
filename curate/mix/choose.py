"""Which rows a mix takes, how often, and their cells and ranks, in memory that does not grow with the rows.

Light columns of all rows go, some shards at a time, into tables of a DuckDB database of its own, which puts on the disk
what MEMORY does not hold. Draws are the hashes of curate/mix/keyed.py, as SQL.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.mix import buckets
from curate.mix.decide import EN, RAW, ZH, Cell
from curate.mix.keyed import salt
from curate.mix.settings import Settings
from curate.mix.sources import Source, coded

SPLITS = ("train", "validation")
POOLS = ("natural", "top", "text")
DERIVED = ("dedup", "balance")
MEMORY = "384MB"
THREADS = 1  # each needs blocks of its own where pieces of a sort meet
AT_ONCE = 10_000  # entries that are handed out
# Of an average picture, where the store does not know lengths (MB are 10^6 bytes).
GUESSED_BYTES = 100_000
MOST_BYTES = (1 << 32) - 1
NO_SIZE = -2  # in place of a bucket
REASONS = ("", "no usable caption", "no size", "too far from every bucket")

Arrays = dict[str, npt.NDArray[Any]]

# SplitMix64 as keyed.mixed and keyed.uniform have it; 128 bits hold sums and products.
KEYED = """
CREATE MACRO low64(x) AS (x & 18446744073709551615::UHUGEINT)::UBIGINT;
CREATE MACRO times64(a, b) AS low64(a::UHUGEINT * b::UHUGEINT);
CREATE MACRO mixed1(x) AS times64(xor(x, x >> 30), 13787848793156543929);
CREATE MACRO mixed2(x) AS times64(xor(x, x >> 27), 10723151780598845931);
CREATE MACRO mixed3(x) AS xor(x, x >> 31);
CREATE MACRO mixed(key, salt) AS
    mixed3(mixed2(mixed1(low64(xor(key, salt::UBIGINT)::UHUGEINT + 11400714819323198485::UHUGEINT))));
CREATE MACRO uniform(key, salt) AS (mixed(key, salt) >> 11)::DOUBLE / 9007199254740992::DOUBLE;
"""
ROWS = {
    "source": "UTINYINT", "shard": "INTEGER", "row": "INTEGER", "key": "UBIGINT", "name": "UBIGINT",
    "content": "UBIGINT", "reason": "UTINYINT", "options": "UTINYINT", "raw": "UTINYINT", "en": "UTINYINT",
    "zh": "UTINYINT", "bucket": "SMALLINT", "concept": "INTEGER", "pool": "UTINYINT", "length": "UINTEGER",
    "weight": "DOUBLE",
}  # fmt: skip
TEXT = f"pool = {POOLS.index('text')}"


class Chosen:
    """The rows of a mix; to be left with `with`, which forgets them. `folder` is for what memory does not hold."""

    def __init__(self, sources: list[Source], settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.sizes = buckets.parse(settings.buckets)
        self.left_out: Counter[str] = Counter()
        """Rows that passed `where` and the policy and are not in the mix, by reason."""
        self.unseen: Counter[str] = Counter()
        """Rows that `dedup` or `balance` ran without."""
        self.concepts: tuple[str, ...] = ()
        self.db = duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(folder), "threads": THREADS})
        self.db.execute("SET preserve_insertion_order = false")
        self.db.execute(KEYED)
        self._read(sources)
        self._limit()

    def __enter__(self) -> Chosen:
        return self

    def __exit__(self, *why: object) -> None:
        self.db.close()

    def _read(self, sources: list[Source]) -> None:
        """Make the table `rows`: light columns of all rows, and `content`, the same for rows with the same content."""
        self.db.execute(f"CREATE TABLE rows ({', '.join(map(' '.join, ROWS.items()))})")
        concepts: dict[str, int] = {}
        grouped = False
        for number, source in enumerate(sources):
            for first, stop in source.together():
                rows = source.light(first, stop)
                for name in DERIVED:
                    self.unseen[name] += int(rows.pop(f"unseen_{name}").sum())
                grouped = grouped or bool(rows["group"].any())
                self._insert(number, rows, concepts)
        for reason, count in self.db.execute("SELECT reason, count(*) FROM rows GROUP BY 1 ORDER BY 1").fetchall():
            if reason:
                self.left_out[REASONS[reason]] += count
        order = sorted(concepts)
        self.concepts = tuple(order)
        if list(concepts) != order:
            places = [order.index(name) for name in concepts]
            self.db.execute(f"UPDATE rows SET concept = list_extract({places}, concept + 1)")
        if grouped:
            self._link()

    def _insert(self, number: int, rows: Arrays, concepts: dict[str, int]) -> None:
        settings = self.settings
        count = len(rows["row"])
        options = (rows["raw"] > 0) * RAW + (rows["en"] > 0) * EN + (rows["zh"] > 0) * ZH
        sized = (rows["width"] > 0) & (rows["height"] > 0)
        bucket = np.where(sized, buckets.assign(rows["width"], rows["height"], self.sizes), NO_SIZE)
        reason = np.select([options == 0, bucket == NO_SIZE, bucket < 0], [1, 2, 3], 0)
        pool = coded(rows["pool"], {name: place for place, name in enumerate(POOLS)})
        length = rows["bytes"].clip(0, MOST_BYTES)
        if settings.resize:
            length = np.array([w * h // 4 for w, h in self.sizes])[bucket]
        content = np.where(rows["digest"] != 0, rows["digest"], rows["key"])
        made = {
            "source": np.full(count, number), "shard": rows["shard"], "row": rows["row"], "key": rows["key"],
            "name": np.where(rows["group"] != 0, rows["group"], content), "content": content, "reason": reason,
            "options": options, "raw": rows["raw"], "en": rows["en"], "zh": rows["zh"], "bucket": bucket,
            "concept": coded(rows["concept"], concepts), "pool": pool,
            "length": np.where(length > 0, length, GUESSED_BYTES),
            "weight": rows["weight"] * np.where(pool == POOLS.index("top"), settings.top_weight, 1),
        }  # fmt: skip
        self.db.register("batch", pa.table(made))
        self.db.execute(f"INSERT INTO rows SELECT {', '.join(ROWS)} FROM batch")
        self.db.unregister("batch")

    def _link(self) -> None:
        """Make `content` the same for rows of one group of copies or with the same bytes, by any chain.

        `name` is a row's group, or its bytes where it has none; names that share bytes are one, by the least of them.
        """
        from curate.dedup.forest import Forest  # here, since few mixes need it

        shared = self.db.execute(
            "SELECT DISTINCT content, name FROM rows WHERE content IN "
            "(SELECT content FROM rows GROUP BY 1 HAVING min(name) <> max(name)) ORDER BY content, name"
        ).to_arrow_table()
        content = shared["content"].to_numpy()
        names, at = np.unique(shared["name"].to_numpy(), return_inverse=True)
        same = np.flatnonzero(content[1:] == content[:-1])
        forest = Forest(len(names))
        forest.join(at[same], at[same + 1])
        self.db.execute("UPDATE rows SET content = name")
        self.db.register("renamed", pa.table({"name": names, "least": names[forest.root]}))
        self.db.execute("UPDATE rows SET content = least FROM renamed WHERE rows.name = renamed.name")
        self.db.unregister("renamed")

    def _limit(self) -> None:
        """Make the table `chosen`: the rows of the mix with their split, and `times`, the entries of each.

        `--rows` that are first in keyed order stay; of rendered text in each split, as far as its cap goes.
        """
        settings = self.settings
        cap = Fraction(str(settings.text_cap))
        where = "reason = 0"
        if settings.rows:
            few = min(
                self._number(f"SELECT count(*) FROM rows WHERE {where} AND {TEXT}"), math.floor(cap * settings.rows)
            )
            draws = f"CASE WHEN {TEXT} THEN {self._mixed('text')} ELSE {self._mixed('rows')} END"
            within = [
                self._first(draws, f"{where} AND {text}", most)
                for text, most in ((TEXT, few), (f"NOT {TEXT}", settings.rows - few))
            ]
            allowed = f"CASE WHEN {TEXT} THEN {draws} < {within[0]} ELSE {draws} < {within[1]} END"
            before = self._number(f"SELECT count(*) FROM rows WHERE {where}")
            where += f" AND {allowed}"
            self.left_out["beyond rows"] += before - self._number(f"SELECT count(*) FROM rows WHERE {where}")
        self.db.execute(f"""
            CREATE TABLE chosen AS
            SELECT * EXCLUDE (name, reason, weight), CASE WHEN split = 1 THEN 1 ELSE floor(weight)::INTEGER
                + (uniform(key, {salt(settings.seed, "copies")}) < weight - floor(weight))::INTEGER END AS times
            FROM (
                SELECT *, (uniform(content, {salt(settings.seed, "split")}) < {settings.validation}::DOUBLE)::UTINYINT
                    AS split
                FROM rows WHERE {where}
            )""")
        self.db.execute("DROP TABLE rows")
        if self._number(f"SELECT count(*) FROM chosen WHERE {TEXT}"):
            for split in range(len(SPLITS)):
                self._cap(split, cap)

    def _cap(self, split: int, cap: Fraction) -> None:
        """Take rendered text beyond its share of a split out: of its rows the last in keyed order."""
        draw = self._mixed("text")
        others = self._number(f"SELECT coalesce(sum(times), 0) FROM chosen WHERE split = {split} AND NOT {TEXT}")
        beyond = self.db.execute(f"""
            SELECT min(draw)
            FROM (
                SELECT draw, sum(times) OVER (ORDER BY draw ROWS UNBOUNDED PRECEDING) AS total
                FROM (SELECT {draw} AS draw, times FROM chosen WHERE split = {split} AND {TEXT})
            )
            WHERE total > {math.floor(cap * others / (1 - cap))}""").fetchone()
        if beyond and beyond[0] is not None:
            where = f"split = {split} AND {TEXT} AND {draw} >= {beyond[0]}"
            self.left_out["beyond text-cap"] += self._number(f"SELECT count(*) FROM chosen WHERE {where}")
            self.db.execute(f"UPDATE chosen SET times = 0 WHERE {where}")

    def cells(self) -> dict[str, tuple[Cell, ...]]:
        """The cells of each split that has entries, in the order of bucket, concept and options."""
        found: dict[str, list[Cell]] = {}
        for split, *cell in self.db.execute(
            f"SELECT split, bucket, concept, options & {RAW | EN | ZH}, sum(times) FROM chosen WHERE times > 0 "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            found.setdefault(SPLITS[split], []).append(Cell(*(int(value) for value in cell)))
        return {split: tuple(cells) for split, cells in found.items()}

    def entries(self, split: str) -> Iterator[Arrays]:
        """The entries of a split in the order of source, shard, row and copy, AT_ONCE at most: columns of `rows`, and
        `copy`, `cell` and `rank` (its place among the entries of its cell, in keyed order)."""
        number = SPLITS.index(split)
        key = "key"
        if self._number("SELECT coalesce(max(times), 0) FROM chosen") > 1:
            copied = f"mixed(xor(key, mixed(copy::UBIGINT, {salt('copy')})), {salt('entry')})"
            key = f"CASE WHEN copy = 0 THEN key ELSE {copied} END"
        cells = self.cells()[split]
        table = {"bucket": pa.int16(), "concept": pa.int32(), "options": pa.uint8()}
        columns = {name: pa.array([getattr(cell, name) for cell in cells], kind) for name, kind in table.items()}
        self.db.register("cells", pa.table({**columns, "cell": pa.array(range(len(cells)), pa.int32())}))
        text = f"""
            SELECT * EXCLUDE (draw),
                (row_number() OVER (PARTITION BY cell ORDER BY draw, source, shard, row) - 1)::INTEGER AS rank
            FROM (
                SELECT *, {self._mixed("rank")} AS draw
                FROM (
                    SELECT chosen.* EXCLUDE (times, split)
                        REPLACE ({key} AS key), cell
                    FROM (SELECT *, unnest(range(times))::INTEGER AS copy FROM chosen WHERE split = {number}) AS chosen
                    JOIN cells ON chosen.bucket = cells.bucket AND chosen.concept = cells.concept
                        AND chosen.options & {RAW | EN | ZH} = cells.options
                )
            )
            ORDER BY source, shard, row, copy"""
        for batch in self.db.execute(text).to_arrow_reader(AT_ONCE):
            yield {name: batch[name].to_numpy() for name in batch.schema.names}
        self.db.unregister("cells")

    def needed_for(self, count: int) -> int:
        """The value of `rows` with which `count` rows are left to train on; 0: all."""
        places = f"SELECT split, row_number() OVER (ORDER BY {self._mixed('rows')}) AS place FROM chosen"
        found = self.db.execute(
            f"SELECT place FROM ({places}) WHERE split = 0 ORDER BY place LIMIT 1 OFFSET {count - 1}"
        ).fetchone()
        trained = self._number("SELECT count(*) FROM chosen WHERE split = 0")
        return int(found[0]) if found and trained > count else 0

    def _mixed(self, purpose: str) -> str:
        return f"mixed(key, {salt(self.settings.seed, purpose)})"

    def _first(self, draw: str, where: str, most: int) -> int:
        """The draw from which on rows are beyond the first `most`."""
        found = self.db.execute(
            f"SELECT {draw} AS d FROM rows WHERE {where} ORDER BY d LIMIT 1 OFFSET {most}"
        ).fetchone()
        return int(found[0]) if found else 1 << 64

    def _number(self, text: str) -> int:
        found = self.db.execute(text).fetchone()
        assert found is not None
        return int(found[0])
