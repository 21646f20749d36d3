"""Means by captioner, differences between captioners and agreement with people, each with an interval over pictures.

Intervals are 95 %, by resampling pictures: one draw of pictures serves every captioner, criterion and judge, so that
differences are paired. A captioner is compared with the best one of its language over the pictures that both have
described.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from curate.evaluate.proxies import AVERAGED, CRITERIA
from curate.rate import agreement
from curate.rate.agreement import LEAST_IMAGES, Figure
from curate.store.captioners import Captioner

Real = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float32]

DRAWS = 1000
FEWER_DRAWS = 200  # of more than MANY pictures, whose intervals are narrow anyway
MANY = 50_000
AT_ONCE = 4_000_000  # weights in memory
COLUMNS = (*CRITERIA, "mean")
ENOUGH = 300  # items from which on a judge may be trusted with a gate
CLOSE = 0.05  # of kappa below that of people among themselves


@dataclass(frozen=True)
class Line:
    """One captioner under one judge: pictures, and a figure for each of COLUMNS."""

    captioner: Captioner
    pictures: int
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Difference:
    """A captioner minus the best one, over the pictures of both."""

    captioner: Captioner
    against: Captioner
    pictures: int
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Block:
    """What one judge says of captions in one language: the lines of all captioners, differences from the best, and what
    the mean is of."""

    by: str
    language: str
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    averaged: tuple[str, ...]

    @property
    def label(self) -> str:
        """Judge and language: `proxies, en`."""
        return f"{self.by}, {self.language}"


@dataclass(frozen=True)
class Agreement:
    """How far judges and people agree on one criterion: quadratic-weighted kappa, and ordinal alpha of the people."""

    criterion: str
    judges: dict[str, Figure]
    people: Figure
    """Each person against the median of the others."""
    alpha: Figure


@dataclass
class Votes:
    """Single votes of people: caption, picture, criterion, rater, score; one entry each."""

    caption: list[int] = field(default_factory=list)
    picture: list[int] = field(default_factory=list)
    criterion: list[int] = field(default_factory=list)
    rater: list[int] = field(default_factory=list)
    score: list[int] = field(default_factory=list)

    def add(self, caption: int, picture: int, criterion: int, rater: int, score: int) -> None:
        """One vote more."""
        self.caption.append(caption)
        self.picture.append(picture)
        self.criterion.append(criterion)
        self.rater.append(rater)
        self.score.append(score)


def block(
    by: str, language: str, scores: Scores, who: Sequence[Captioner], seed: int = 0, blind_to: str | None = None
) -> Block | None:
    """One judge's table of the captioners of a language from `scores` (pictures, captioners, criteria), NaN where there
    is none; None if all are.

    The mean is of those criteria that every principal captioner has on half of its pictures or more. Captions of the
    engine `blind_to` are shown and not compared. The best one has seen half as many pictures as any other, at least.
    """
    present = ~np.isnan(scores)
    here = [at for at in range(len(who)) if present[:, at].any()]
    if not here:
        return None
    pictures = present.any(axis=2).sum(axis=0)
    mostly = present.sum(axis=0) >= pictures[:, None] / 2
    main = [who.index(captioner) for captioner in principal([who[at] for at in here])]
    averaged = tuple(name for name in AVERAGED if all(mostly[at, CRITERIA.index(name)] for at in main))
    drawn = means(scores, seed)
    lines = []
    for at in here:
        counts = [int(present[:, at, c].sum()) for c in range(len(CRITERIA))]
        own = averaged if all(mostly[at, CRITERIA.index(name)] for name in averaged) else ()
        figures = _figures(_mean(scores[:, at]), drawn[:, at], counts, own)
        lines.append(Line(who[at], int(pictures[at]), figures))
    able = [at for at in here if who[at].engine is None or who[at].engine != blind_to]
    ranked = [
        (value, -at) for line, at in zip(lines, here, strict=True)
        if at in able and (value := line.figures[-1].value) is not None and 2 * pictures[at] >= pictures[able].max()
    ]  # fmt: skip
    differences = []
    if ranked:
        against = -max(ranked)[1]
        for at in able:
            if at != against:
                gap = scores[:, at] - scores[:, against]
                common = ~np.isnan(gap)
                if not common.any():  # a raw caption and the translation of one: never of the same picture
                    continue
                counts = [int(common[:, c].sum()) for c in range(len(CRITERIA))]
                both = tuple(name for name in averaged if counts[CRITERIA.index(name)])
                figures = _figures(_mean(gap), means(gap[:, None], seed)[:, 0], counts, both)
                differences.append(Difference(who[at], who[against], int(common.any(axis=1).sum()), figures))
    return Block(by, language, tuple(lines), tuple(differences), averaged)


def principal(who: Sequence[Captioner]) -> list[Captioner]:
    """Those whose captions are of any picture, or all when there are none: no translated raw captions, no posters'."""
    return [captioner for captioner in who if captioner.kind in ("raw", "synthetic")] or list(who)


def means(scores: Scores, seed: int) -> Real:
    """(draws, captioners, criteria): means of scores over resampled pictures; NaN where a draw has none."""
    pictures = len(scores)
    flat = scores.reshape(pictures, -1)
    there = ~np.isnan(flat)
    filled = np.where(there, flat, 0).astype(np.float32)
    counted = there.astype(np.float32)
    out = []
    for weights in _draws(pictures, seed):
        with np.errstate(invalid="ignore"):
            out.append((weights @ filled).astype(np.float64) / (weights @ counted))
    return np.concatenate(out).reshape(-1, *scores.shape[1:])


def agree(scores: dict[str, Scores], people: Scores, votes: Votes, seed: int = 0) -> list[Agreement]:
    """Agreement on each criterion that people rated; `people` has their median scores, `scores` those of the others.

    All of shape (pictures, captioners, criteria); scores of proxies are rounded.
    """
    found = []
    criterion = np.asarray(votes.criterion, np.int64)
    for c, name in enumerate(CRITERIA):
        said = ~np.isnan(people[:, :, c])
        if not said.any():
            continue
        judges = {}
        for by, given in scores.items():
            both = said & ~np.isnan(given[:, :, c])
            picture = np.nonzero(both)[0]
            judges[by] = kappa(picture, np.rint(given[:, :, c][both]), people[:, :, c][both], seed)
        mine = criterion == c
        caption, picture, rater, score = (
            np.asarray(x, np.int64)[mine] for x in (votes.caption, votes.picture, votes.rater, votes.score)
        )
        pairs = agreement.leave_one_out(caption, rater, score)
        at = dict(zip(caption.tolist(), picture.tolist(), strict=True))
        order = [at[unit] for unit in _units(caption)]
        among = kappa(np.asarray(order, np.int64), [p[1] for p in pairs], [p[2] for p in pairs], seed)
        if among.value is None and not pairs:
            among = Figure(None, why="no caption has two ratings")
        whole = agreement.alpha(caption, score, cluster=picture, seed=seed)
        if whole.value is None and not whole.count:
            whole = Figure(None, why="no caption has two ratings")
        found.append(Agreement(name, judges, among, whole))
    return found


def kappa(picture: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike, seed: int = 0) -> Figure:
    """Quadratic-weighted kappa of two scores of the same captions, with an interval over pictures."""
    plain = agreement.kappa(a, b)
    if plain.value is None:
        return Figure(None, count=plain.count, why=plain.why.replace("image", "caption").replace("tier", "score"))
    _, unit = np.unique(np.asarray(picture, np.int64), return_inverse=True)
    pictures = int(unit.max()) + 1
    if pictures < LEAST_IMAGES:
        return plain
    tables = np.zeros((pictures, 25), np.float32)
    cell = (np.asarray(a, np.int64) - 1) * 5 + np.asarray(b, np.int64) - 1
    np.add.at(tables, (unit, cell), 1)
    weight = (np.arange(5)[:, None] - np.arange(5)[None, :]) ** 2
    values = []
    for weights in _draws(pictures, seed):
        drawn = (weights @ tables).reshape(-1, 5, 5).astype(np.float64)
        chance = drawn.sum(axis=2)[:, :, None] * drawn.sum(axis=1)[:, None, :] / drawn.sum(axis=(1, 2))[:, None, None]
        expected = (weight * chance).sum(axis=(1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(1 - (weight * drawn).sum(axis=(1, 2)) / expected)
    drawn_values = np.concatenate(values)
    sound = drawn_values[np.isfinite(drawn_values)]
    if len(sound) < len(drawn_values) / 2:
        return plain
    low, high = np.quantile(sound, [0.025, 0.975])
    return Figure(plain.value, float(low), float(high), plain.count)


def trust(agreement: Agreement, by: str) -> str:
    """Whether a judge may stand for people on a criterion, in words."""
    judge, people = agreement.judges[by], agreement.people
    if judge.value is None or people.value is None:
        return "undefined"
    if judge.count < ENOUGH:
        return f"too few captions to say ({judge.count} of {ENOUGH})"
    return "as people do" if judge.value >= people.value - CLOSE else "less than people do"


def _figures(mean: Real, drawn: Real, counts: Sequence[int], averaged: Sequence[str]) -> tuple[Figure, ...]:
    """A figure for each criterion, and for the mean of those `averaged`."""
    found = []
    for c, count in enumerate(counts):
        if not count:
            found.append(Figure(None, why="no caption has this score"))
        else:
            found.append(_figure(float(mean[c]), drawn[:, c], count))
    among = [CRITERIA.index(name) for name in averaged]
    if not among:
        return (*found, Figure(None, why="it lacks a criterion that others have"))
    return (*found, _figure(float(mean[among].mean()), drawn[:, among].mean(axis=1), min(counts[c] for c in among)))


def _figure(value: float, drawn: Real, count: int) -> Figure:
    sound = drawn[np.isfinite(drawn)]
    if count < LEAST_IMAGES or len(sound) < len(drawn) / 2:
        return Figure(value, count=count)
    low, high = np.quantile(sound, [0.025, 0.975])
    return Figure(value, float(low), float(high), count)


def _mean(scores: Scores) -> Real:
    """Means of columns without their NaN; NaN for a column of nothing else."""
    there = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        found: Real = np.where(there, scores, 0).sum(axis=0, dtype=np.float64) / there.sum(axis=0)
    return found


def _draws(pictures: int, seed: int) -> Iterator[Weights]:
    """How often each picture is in each draw, (draws, pictures) in pieces; the same for the same number and seed."""
    random = np.random.default_rng(seed)
    left = FEWER_DRAWS if pictures > MANY else DRAWS
    while left:
        count = min(left, max(1, AT_ONCE // max(pictures, 1)))
        yield np.stack(
            [np.bincount(random.integers(0, pictures, pictures), minlength=pictures) for _ in range(count)]
        ).astype(np.float32)
        left -= count


def _units(caption: npt.NDArray[np.int64]) -> list[int]:
    """The captions of agreement.leave_one_out's pairs, in its order."""
    order = np.argsort(caption, kind="stable")
    edges = np.nonzero(np.diff(caption[order]))[0] + 1
    return [int(caption[at]) for group in np.split(order, edges) if len(group) >= 2 for at in group.tolist()]
