"""The concept of each row, and a draw that brings the concepts into balance.

    curate balance demo/store --cap 1000

concepts.py       the taxonomy, and what captions and measurements say
taxonomy.v1.toml  fourteen concepts in English and Chinese
weights.py        caps, targets, and which rows they keep
show.py           before and after, and what was given up

Nothing is deleted: columns of the derived operator `balance` say how often a row is to be used (docs/balance.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.balance import weights
from curate.balance.concepts import OTHER, Taxonomy, judge, load
from curate.errors import UsageError, nearest
from curate.mix.keyed import mixed
from curate.policy import repeatable
from curate.store import Store
from curate.store.derived import publish
from curate.store.parts import Version
from curate.store.query import first_line

VERSION = 1
BATCH = 20_000
ENGINES = ("auto", "keywords", "embedding")
KEYWORDS, EMBEDDING = range(2)


@dataclass(frozen=True)
class Settings:
    """The taxonomy, the aim and the draw. With a `cap` the shares are of no account."""

    taxonomy: str = "taxonomy.v1"
    engine: str = "auto"
    """auto: CLIP's concept where it is sure enough, else keywords; keywords; embedding: CLIP's or none."""
    least: float = 0.3
    """Probability of CLIP's concept, at least."""
    cap: int = 0
    """Rows of a concept, at most; 0: shares instead."""
    alpha: float = 0.5
    """Shares go by count ** alpha: 1 leaves them as they are, 0 makes them equal."""
    target: dict[str, float] = field(default_factory=dict)
    """Shares of some concepts, 0..1; the others share the rest by alpha."""
    rows: int = 0
    """Uses of an epoch; 0: as many as there are rows to balance."""
    repeat: float = 2.0
    """Uses of one row in an epoch, at most."""
    where: str = "keep AND dedup_keep IS NOT FALSE"
    """SQL: rows to balance. All rows get a concept."""
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine}{nearest(self.engine, ENGINES)}")
        repeats = math.isfinite(self.repeat) and self.repeat >= 1
        if self.cap < 0 or self.rows < 0 or not repeats or not 0 <= self.alpha <= 1:
            raise UsageError("--cap and --rows are at least 0, --repeat at least 1, --alpha 0 to 1")
        if not 0 <= self.least <= 1:
            raise UsageError(f"--least {self.least:g}: a probability, 0 to 1")
        if self.cap and self.target:
            raise UsageError("--cap and --target are two aims; name one")
        if not all(share >= 0 for share in self.target.values()) or not sum(self.target.values()) <= 1 + 1e-9:
            raise UsageError(
                f"--target: shares are at least 0 and add up to at most 1, not {sum(self.target.values()):g}"
            )


@dataclass(frozen=True)
class Line:
    """One concept, before and after: rows, share, uses that were aimed at, rows kept, uses, rows given up."""

    concept: str
    rows: int
    share: float
    kept: int
    uses: float
    share_after: float

    @property
    def sacrificed(self) -> int:
        """Rows that are not used."""
        return self.rows - self.kept


@dataclass(frozen=True)
class Outcome:
    """What one run did: a line for each concept of the rows to balance, and the version it was published as."""

    lines: tuple[Line, ...]
    rows: int
    by_engine: dict[str, int]
    version: Version


def shares_of(words: Sequence[str]) -> dict[str, float]:
    """`CONCEPT=SHARE` words as a mapping; raises UsageError that names the odd one."""
    shares = {}
    for word in words:
        name, _, share = word.partition("=")
        try:
            value = float(share)
        except ValueError:
            raise UsageError(f"--target {word!r}: write CONCEPT=SHARE, e.g. people=0.3") from None
        if name.strip() in shares:
            raise UsageError(f"--target {word!r}: {name.strip()} has a share already")
        shares[name.strip()] = value
    return shares


def balance(store: Store, settings: Settings) -> Outcome:
    """Give every row a concept, draw the rows to balance, and publish the columns of operator `balance`."""
    taxonomy = load(settings.taxonomy)
    names = (*taxonomy.concepts, OTHER)
    for name in settings.target:
        if name not in names:
            raise UsageError(f"--target: no concept {name!r}{nearest(name, names)}")
    judged = classify(store, taxonomy, settings)
    concept = judged["number"].to_numpy()
    eligible = np.asarray(judged["eligible"]).astype(np.bool_)
    if not eligible.any():
        raise UsageError(f"{store.uri}: no row to balance where {settings.where}; say which with --where")
    counts = np.bincount(concept[eligible], minlength=len(names))
    if settings.cap:
        aim = weights.capped(counts, settings.cap)
    else:
        share = weights.shares(counts, names, settings.alpha, settings.target)
        aim = weights.uses(counts, share, settings.rows or int(counts.sum()), settings.repeat)
    rate = np.divide(aim, counts, out=np.zeros(len(names)), where=counts > 0)
    keep = np.where(rate < 1, np.rint(aim), counts).astype(np.int64)
    drawn = np.zeros(len(concept), np.bool_)
    keys = mixed(judged["key"].to_numpy().astype(np.uint64), settings.seed, "balance")
    drawn[eligible] = weights.drawn(concept[eligible], keys[eligible], keep)
    weight = np.where(drawn, np.maximum(rate[concept], 1.0), 0.0)
    version = publish(store.files, "balance", _facts(settings), _table(judged, names, eligible, rate, weight, drawn))
    after = np.bincount(concept[eligible], weights=weight[eligible], minlength=len(names))
    lines = [
        Line(name, int(n), float(n / counts.sum()), int(k), float(u), float(u / max(after.sum(), 1e-12)))
        for name, n, k, u in zip(names, counts, keep, after, strict=True)
        if n
    ]
    engines = np.bincount(judged["engine"].to_numpy(), minlength=2)
    by_engine = {"keywords": int(engines[KEYWORDS]), "embedding": int(engines[EMBEDDING])}
    return Outcome(tuple(sorted(lines, key=lambda line: -line.rows)), int(eligible.sum()), by_engine, version)


def classify(store: Store, taxonomy: Taxonomy, settings: Settings) -> pa.Table:
    """The concept of every row that did not fail: `shard, row, key, eligible, number, score, engine, terms`."""
    facts = [f"coalesce(TRY(({sql}\n)), FALSE)" for sql, _, _ in taxonomy.facts]
    text = (
        "SELECT shard, row, md5_number_lower(row_id) AS key, "
        f"coalesce({repeatable(settings.where, f'--where {settings.where!r}')}, FALSE) AS eligible, caption_raw, "
        # Captions composed of measured facts say "landscape format" and "warm colors"; the facts speak for themselves.
        "CASE WHEN caption_engine <> 'facts' THEN caption_en END AS caption_en, "
        "CASE WHEN translate_engine <> 'facts' THEN caption_zh END AS caption_zh, "
        f"[{', '.join(facts)}]::BOOLEAN[] AS facts, clip_concept, clip_concept_score FROM samples WHERE error IS NULL"
    )
    if not store.rows("SELECT 1 FROM (DESCRIBE samples) WHERE column_name = 'clip_concept'"):
        store.ingest()  # an index of an older layout
    try:
        tables = [
            _judged(batch, taxonomy, settings) for batch in store.connection().execute(text).to_arrow_reader(BATCH)
        ]
    except duckdb.Error as why:
        raise UsageError(f"--where or the taxonomy's facts: {first_line(why)}") from None
    if not tables:
        raise UsageError(f"{store.uri}: no rows")
    return pa.concat_tables(tables)


def _judged(batch: pa.RecordBatch, taxonomy: Taxonomy, settings: Settings) -> pa.Table:
    number = np.full(batch.num_rows, len(taxonomy.concepts), np.int64)
    score = np.zeros(batch.num_rows, np.float32)
    engine = np.full(batch.num_rows, KEYWORDS, np.int64)
    terms: list[tuple[str, ...]] = [()] * batch.num_rows
    places = {name: i for i, name in enumerate(taxonomy.concepts)}
    columns = [batch.column(name).to_pylist() for name in ("caption_raw", "caption_en", "caption_zh")]
    seen = zip(batch["clip_concept"].to_pylist(), batch["clip_concept_score"].to_pylist(), strict=True)
    holds = batch.column("facts").to_pylist()
    for i, (captions, (name, sure)) in enumerate(zip(zip(*columns, strict=True), seen, strict=True)):
        if settings.engine != "keywords" and name in places and (sure or 0) >= settings.least:
            number[i], score[i], engine[i] = places[name], sure, EMBEDDING
        elif settings.engine != "embedding":
            verdict = judge(taxonomy, captions, holds[i])
            if verdict.concept >= 0:
                number[i], score[i], terms[i] = verdict.concept, verdict.score, verdict.terms
        else:
            engine[i] = EMBEDDING
    return pa.table(
        {
            "shard": batch["shard"], "row": batch["row"], "key": batch["key"], "eligible": batch["eligible"],
            "number": number, "score": score, "engine": engine, "terms": pa.array(terms, pa.list_(pa.string())),
        }
    )  # fmt: skip


def _table(
    judged: pa.Table,
    names: tuple[str, ...],
    eligible: npt.NDArray[np.bool_],
    rate: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
    drawn: npt.NDArray[np.bool_],
) -> pa.Table:
    """The columns of operator `balance` (schemas/columns.py)."""
    number = judged["number"].to_numpy()
    return pa.table(
        {
            "shard": judged["shard"],
            "row": judged["row"].cast(pa.int64()),
            "concept": pa.array(names).take(pa.array(number)),
            "concept_score": judged["score"],
            "concept_engine": pa.array(["keywords", "embedding"]).take(judged["engine"].combine_chunks()),
            "concept_terms": judged["terms"],
            "balance_probability": pa.array(np.minimum(rate, 1.0)[number].astype(np.float32), mask=~eligible),
            "balance_weight": pa.array(weight.astype(np.float32), mask=~eligible),
            "balance_keep": pa.array(drawn, mask=~eligible),
        }
    )


def _facts(settings: Settings) -> dict[str, object]:
    return {"version": VERSION, "engine": settings.engine, "model": settings.taxonomy, "settings": asdict(settings)}
