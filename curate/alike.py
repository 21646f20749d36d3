"""English captions that say nearly the same of different pictures: what a captioner writes when it did not look.

    curate alike STORE

Needs the whole store, so it is a derived operator (curate/store/derived.py): a run cannot know what other shards say.
Copies of one picture (`dedup_group`, else the same bytes) may have one caption and count once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import duckdb
import numpy as np
import pyarrow as pa

from curate.dedup.forest import Forest, Ints, equal
from curate.dedup.text import join_captions
from curate.errors import UsageError
from curate.store import Store
from curate.store.derived import publish
from curate.store.parts import Version
from curate.store.query import first_line

VERSION = 1
BATCH = 10_000
REASON = "near_identical"


@dataclass(frozen=True)
class Settings:
    """What nearly the same is, and how often it may be said."""

    least: float = 0.9
    """Jaccard index of two captions' runs of four characters, at least."""
    most: int = 3
    """Different pictures that may share a caption; with more none of them is used."""
    where: str = ""
    """SQL: the rows whose captions are compared."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 < self.least <= 1:
            raise UsageError(f"--least {self.least:g}: a Jaccard index above 0 and at most 1")
        if self.most < 1:
            raise UsageError(f"--most {self.most}: at least 1 picture has a caption")


@dataclass(frozen=True)
class Outcome:
    """What was found: captions compared, those with a reason, and the most common ones with their pictures."""

    captions: int
    refused: int
    common: tuple[tuple[int, str], ...]
    version: Version


def alike(store: Store, settings: Settings) -> Outcome:
    """Find captions that more than `settings.most` different pictures share; publish the columns of `alike`."""
    table = _read(store, settings.where)
    captions = table["caption"].to_pylist()
    forest = Forest(len(captions))
    _, first, code = np.unique(_codes(table["caption"]), return_index=True, return_inverse=True)
    heads = first[code]  # of equal captions the first is compared with others
    forest.add(equal(heads, np.arange(len(heads)), "caption"))
    leaders = [caption if head == i else None for i, (caption, head) in enumerate(zip(captions, heads, strict=True))]
    join_captions(forest, leaders, settings.least)
    pictures = _codes(table["picture"])
    pairs = np.unique(np.stack([forest.root, pictures], axis=1), axis=0)
    shared = np.bincount(pairs[:, 0], minlength=len(captions))[forest.root]
    refused = shared > settings.most
    ids = table["row_id"].combine_chunks()
    columns = {
        "shard": table["shard"],
        "row": table["row"].cast(pa.int64()),
        "caption_en_alike": pa.array(shared - 1, pa.int32()),
        "caption_en_alike_first": ids.take(pa.array(forest.root)),
        "caption_en_alike_reason": pa.array([REASON if bad else None for bad in refused], pa.string()),
    }
    facts = {"version": VERSION, "engine": "curate", "revision": str(VERSION), **asdict(settings)}
    version = publish(store.files, "alike", facts, pa.table(columns))
    roots = np.unique(forest.root[refused])
    common = sorted(((int(shared[root]), captions[root]) for root in roots), key=lambda pair: (-pair[0], pair[1]))
    return Outcome(len(captions), int(refused.sum()), tuple(common[:10]), version)


def _codes(column: pa.ChunkedArray) -> Ints:
    """A number for each distinct text."""
    codes: Ints = column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes


def _read(store: Store, where: str) -> pa.Table:
    """Captions with the identity of their picture; raises UsageError for wrong SQL or a store without captions."""
    names = {row[0] for row in store.rows("DESCRIBE samples")}
    picture = "coalesce(dedup_group, sha256, row_id)" if "dedup_group" in names else "coalesce(sha256, row_id)"
    text = (
        f"SELECT shard, row, row_id, {picture} AS picture, caption_en AS caption FROM samples "
        f"WHERE nullif(trim(caption_en), '') IS NOT NULL AND ({where or 'TRUE'}\n) ORDER BY shard, row"
    )
    try:
        table = store.connection().execute(text).to_arrow_reader(BATCH).read_all()
    except duckdb.Error as why:
        raise UsageError(f"--where: {first_line(why)}") from None
    if not table.num_rows:
        raise UsageError(f"{store.uri}: no row has an English caption{' where ' + where if where else ''}")
    return table
