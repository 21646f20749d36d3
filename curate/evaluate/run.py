"""`evaluate`: the captions of some pictures, scored by all judges there are, compared and published."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from curate.balance.concepts import load as load_taxonomy
from curate.errors import UsageError
from curate.evaluate import compare, judge, people, proxies
from curate.evaluate.compare import Agreement, Block
from curate.evaluate.lexicon import load as load_lexicon
from curate.evaluate.proxies import CRITERIA
from curate.store import Store
from curate.store.captioners import Captioner, captioners
from curate.store.derived import publish
from curate.store.parts import Version
from curate.store.query import condition

VERSION = 1
PROXIES, PEOPLE = "proxies", "people"
CHUNK = 2000  # rows whose captions are in memory at a time
TAXONOMY = "taxonomy.v1"


@dataclass(frozen=True)
class Settings:
    """Which pictures and captioners, and who judges."""

    rows: int = 500
    """Pictures, drawn by key: those that people or judges have seen first, then those that most captioners described;
    0: all."""
    where: str = "TRUE"
    """SQL over samples: pictures that take part."""
    captioners: tuple[str, ...] = ()
    """Words of curate.store.captioners; none: all."""
    lexicon: str = "lexicon.v1"
    judge: judge.Settings | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.rows < 0:
            raise UsageError(f"--rows {self.rows}: at least 0")


@dataclass(frozen=True)
class Outcome:
    """What one evaluation found."""

    pictures: int
    captions: int
    blocks: tuple[Block, ...]
    agreement: tuple[Agreement, ...]
    correlation: dict[str, str]
    """Language -> what the proxies' correlation rests on: `similarity` or `claims`."""
    unscored: dict[str, dict[str, int]]
    """Judge -> reason (its first word) -> captions without scores."""
    usage: judge.Usage | None
    version: Version


def evaluate(
    store: Store, settings: Settings, progress: Callable[[int, int], None] = lambda done, total: None
) -> Outcome:
    """Score the captions of some pictures by all judges there are, compare the captioners and publish the scores.

    `progress` is told how many captions more the judge has answered, now or before, and of how many. Raises UsageError.
    """
    who = captioners(store, settings.captioners)
    if not who:
        raise UsageError(f"{store.uri}: no captions to evaluate; see: curate sql {store.uri} 'from captions'")
    lexicon, taxonomy = load_lexicon(settings.lexicon), load_taxonomy(TAXONOMY)
    asked = judge.Judge(store, settings.judge) if settings.judge else None
    judges = [
        one for one in judge.kept(store.files) if one.answers and not (asked and asked.fingerprint == one.fingerprint)
    ]
    judges += [asked.kept] if asked else []
    votes = people.votes(store.files)
    seen = {key[0] for key in votes} | {line["row_id"] for one in judges for line in one.answers.values()}
    chosen = _chosen(store, settings, who, seen)
    if not chosen:
        raise UsageError(f"{store.uri}: no picture with a caption where {settings.where}")
    basis = _basis(store, who, chosen)
    board = _Board(len(chosen), who, _names(judges))
    total = _count(store, who, chosen) if asked else 0
    tables = []
    for start in range(0, len(chosen), CHUNK):
        rows = _captions(store, who, chosen[start : start + CHUNK])
        if asked:
            asks = [
                _ask(row, captioner, text) for row in rows for _, captioner, text in row["captions"] if text.strip()
            ]
            asked.ask(asks, lambda done: progress(done, total))
        for place, row in enumerate(rows, start):
            for at, captioner, text in row["captions"]:
                similarity = _similarity(row, captioner, basis)
                found = proxies.score(text, captioner.language, row, lexicon, taxonomy, similarity)
                board.enter(place, at, PROXIES, found.values, found=found.found)
                key = _ask(row, captioner, text).key
                for name, one in zip(board.judges, judges, strict=True):
                    if (line := one.answers.get(key)) is not None:
                        said = judge.verdict(line)
                        board.enter(place, at, name, said.scores, said.reason, said.found)
                if said_by := votes.get((row["row_id"], captioner.item, captioner.language)):
                    board.people(place, at, said_by)
        tables.append(board.table(rows))
    facts = {
        "version": VERSION, "proxies": proxies.VERSION, "engine": PROXIES, "model": lexicon.name,
        "revision": lexicon.mark, "judges": [one.fingerprint for one in judges], "taxonomy": TAXONOMY,
    }  # fmt: skip
    version = publish(store.files, "evaluate", facts, pa.concat_tables(tables))
    blocks = []
    for by, scores in board.scores.items():
        for language in sorted({captioner.language for captioner in who}):
            at = [place for place, captioner in enumerate(who) if captioner.language == language]
            blind = by == PROXIES  # to captions of the `facts` engine, which say what the proxies ask for
            own = [who[place] for place in at]
            if made := compare.block(by, language, scores[:, at], own, settings.seed, "facts" if blind else None):
                blocks.append(made)
    others = {by: board.scores[by] for by in (*board.judges, PROXIES)}
    agreement = compare.agree(others, board.median, board.votes, settings.seed) if board.votes.score else []
    return Outcome(
        len(chosen), board.captions, tuple(blocks), tuple(agreement), basis, board.unscored,
        asked.usage if asked else None, version,
    )  # fmt: skip


class _Board:
    """All scores of an evaluation as arrays (pictures, captioners, criteria), and the rows to be published."""

    def __init__(self, pictures: int, who: Sequence[Captioner], judges: Sequence[str]) -> None:
        self.who = who
        self.judges = judges
        shape = pictures, len(who), len(CRITERIA)
        self.scores = {by: np.full(shape, np.nan, np.float32) for by in (PROXIES, *judges, PEOPLE)}
        self.median = np.full(shape, np.nan, np.float32)
        self.votes = compare.Votes()
        self.unscored: dict[str, dict[str, int]] = {}
        self.captions = 0
        self._entries: list[list[dict[str, Any]]] = []
        self._place = -1

    def enter(
        self, place: int, at: int, by: str, values: Sequence[float | None] | None, reason: str = "",
        found: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """The scores of picture `place` and captioner `at` by one judge; None for the reason given."""
        if place != self._place:
            self._entries.append([])
            self._place = place
        self.captions += by == PROXIES
        if values is None:
            word = reason.partition(":")[0]
            counts = self.unscored.setdefault(by, {})
            counts[word] = counts.get(word, 0) + 1
            values = [None] * len(CRITERIA)
        self.scores[by][place, at] = [np.nan if value is None else value for value in values]
        captioner = self.who[at]
        entry: dict[str, Any] = {
            "caption": captioner.fingerprint, "kind": captioner.kind, "language": captioner.language, "scorer": by
        }  # fmt: skip
        entry |= dict(zip(CRITERIA, values, strict=True))
        self._entries[-1].append({**entry, "reason": reason or None, "found": "; ".join(found) or None})

    def people(self, place: int, at: int, said: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """What people said of a caption: (rater, score) pairs by criterion. Their mean is entered."""
        means: dict[str, float] = {}
        for name, pairs in said.items():
            c = CRITERIA.index(name)
            given = sorted(score for _, score in pairs)
            means[name] = sum(given) / len(given)
            self.median[place, at, c] = given[(len(given) - 1) // 2]  # the lower middle one, as the vote has it
            for rater, score in pairs:
                self.votes.add(place * len(self.who) + at, place, c, rater, score)
        self.enter(place, at, PEOPLE, [means.get(name) for name in CRITERIA])

    def table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """The columns of operator `evaluate` (schemas/columns.py) for the rows entered since the last table."""
        entries, self._entries = self._entries, []
        texts, reals = pa.list_(pa.string()), pa.list_(pa.float32())
        fixed = {"shard": [row["shard"] for row in rows], "row": pa.array([row["row"] for row in rows], pa.int64())}
        return pa.table(
            fixed
            | {
                f"evaluate_{name}": pa.array(
                    [[entry[name] for entry in own] for own in entries], reals if name in CRITERIA else texts
                )
                for name in ("caption", "kind", "language", "scorer", *CRITERIA, "reason", "found")
            }
        )


def _names(judges: Sequence[judge.Kept]) -> list[str]:
    """Names of judges, with the beginning of the fingerprint where two have the same."""
    names = [one.by for one in judges]
    return [f"{one.by}@{one.fingerprint[:4]}" if names.count(one.by) > 1 else one.by for one in judges]


def _chosen(store: Store, settings: Settings, who: Sequence[Captioner], first: set[str]) -> list[tuple[str, int, str]]:
    """(shard, row, row_id) of the pictures to evaluate, sorted; `first` are those that must be among them."""
    db = store.connection()
    where = condition(db, settings.where)
    marks, kinds, languages = ([c.key[part] for c in who] for part in range(3))
    limit = f"LIMIT {max(settings.rows, 1)}" if settings.rows else ""
    try:
        return db.execute(
            f"""
            WITH wanted AS (
                SELECT unnest($marks::VARCHAR[]) AS fingerprint, unnest($kinds::VARCHAR[]) AS kind,
                    unnest($languages::VARCHAR[]) AS language),
            described AS (
                SELECT row_id, count(*) AS captioners FROM captions SEMI JOIN wanted USING (fingerprint, kind, language)
                GROUP BY row_id),
            able AS (
                SELECT shard, row, row_id, row_id IN (SELECT unnest($first::VARCHAR[])) AS first, captioners
                FROM samples JOIN described USING (row_id)
                WHERE coalesce(pixels_hash, pdq) IS NOT NULL AND sha256 IS NOT NULL AND {where}), -- it decodes
            drawn AS (
                SELECT * FROM able ORDER BY first DESC, captioners DESC, md5(row_id || '{settings.seed}') {limit})
            SELECT shard, row, row_id FROM drawn ORDER BY shard, row""",
            {"marks": marks, "kinds": kinds, "languages": languages, "first": sorted(first)},
        ).fetchall()
    except duckdb.Error as why:
        raise UsageError(f"--where: {str(why).splitlines()[0]}") from None


def _count(store: Store, who: Sequence[Captioner], chosen: Sequence[tuple[str, int, str]]) -> int:
    """Captions that a judge is to see."""
    marks, kinds, languages = ([c.key[part] for c in who] for part in range(3))
    [(count,)] = store.rows(
        "SELECT count(*) FROM captions WHERE trim(text) <> '' AND row_id IN (SELECT unnest($1::VARCHAR[])) AND "
        "(fingerprint, kind, language) IN "
        "(SELECT (unnest($2::VARCHAR[]), unnest($3::VARCHAR[]), unnest($4::VARCHAR[])))",
        [[row_id for _, _, row_id in chosen], marks, kinds, languages],
    )
    return int(count)


def _basis(store: Store, who: Sequence[Captioner], chosen: Sequence[tuple[str, int, str]]) -> dict[str, str]:
    """Language -> whether correlation is by similarity: only when all captioners that can have it, have it everywhere.

    The operator `similarity` does not look at translated raw captions and at those of posters.
    """
    found = {}
    for language in sorted({captioner.language for captioner in who}):
        own = compare.principal([captioner for captioner in who if captioner.language == language])
        found[language] = "claims"
        if all(captioner.similarity for captioner in own):
            ids = [row_id for _, _, row_id in chosen]
            rows = (
                _captions(store, own, chosen[:CHUNK])
                if len(ids) <= CHUNK
                else _captions(store, own, chosen[:: len(ids) // CHUNK])
            )
            values = [
                _similarity(row, captioner, {language: "similarity"})
                for row in rows
                for _, captioner, _ in row["captions"]
            ]
            if values and sum(value is None for value in values) <= 0.02 * len(values):
                found[language] = "similarity"
    return found


def _captions(store: Store, who: Sequence[Captioner], chosen: Sequence[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """Measurements of the rows in their order, with (place in `who`, captioner, text) of each caption under `captions`
    and cosines by (version of `similarity`, raw or en) under `similarities`."""
    ids = [row_id for _, _, row_id in chosen]
    rows = store.connection().execute(
        f"SELECT shard, row, row_id, sha256, {', '.join(proxies.NEEDS)}, similarity_raw, similarity_en FROM wide "
        "WHERE row_id IN (SELECT unnest($1::VARCHAR[]))", [ids],
    )  # fmt: skip
    names = [column[0] for column in rows.description]
    by_id = {row["row_id"]: row for values in rows.fetchall() for row in [dict(zip(names, values, strict=True))]}
    place = {captioner.key: at for at, captioner in enumerate(who)}
    texts: dict[str, list[tuple[int, Captioner, str]]] = {row_id: [] for row_id in ids}
    for row_id, *key, text in store.rows(
        "SELECT row_id, fingerprint, kind, language, text FROM captions "
        "WHERE row_id IN (SELECT unnest($1::VARCHAR[]))", [ids]
    ):  # fmt: skip
        if (at := place.get(tuple(key))) is not None:
            texts[row_id].append((at, who[at], text))
    active = dict(store.rows("SELECT operator, fingerprint FROM operators WHERE active"))
    former: dict[str, dict[tuple[str, str], float]] = {row_id: {} for row_id in ids}
    if any(captioner.similarity not in (None, active.get("similarity")) for captioner in who):
        for row_id, mark, raw, english in store.rows(
            "SELECT n.shard || ':' || (f._id & 4294967295), f._fingerprint, f.similarity_raw, f.similarity_en FROM "
            " former_similarity AS f JOIN shard_numbers AS n ON n.number = f._id >> 32 "
            "WHERE n.shard || ':' || (f._id & 4294967295) IN (SELECT unnest($1::VARCHAR[]))", [ids]
        ):  # fmt: skip
            former[row_id] |= {(mark, kind): v for kind, v in (("raw", raw), ("en", english)) if v is not None}
    found = []
    for row_id in ids:
        row = by_id[row_id]
        now = {(active.get("similarity", ""), kind): row[f"similarity_{kind}"] for kind in ("raw", "en")}
        found.append(
            {**row, "captions": sorted(texts[row_id], key=lambda one: one[0]), "similarities": former[row_id] | now}
        )
    return found


def _similarity(row: dict[str, Any], captioner: Captioner, basis: dict[str, str]) -> float | None:
    """The cosine of a row's picture and one captioner's caption; None when correlation does not rest on it.

    NaN where it should and there is none: then there is no correlation.
    """
    if basis[captioner.language] != "similarity":
        return None
    if not captioner.similarity:
        return math.nan
    value: float | None = row["similarities"].get((captioner.similarity, "raw" if captioner.kind == "raw" else "en"))
    return value


def _ask(row: Mapping[str, Any], captioner: Captioner, text: str) -> judge.Ask:
    return judge.Ask(row["row_id"], row["sha256"], captioner.fingerprint, text)
