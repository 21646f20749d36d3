"""How far people agree: Krippendorff's alpha, weighted kappa, confusion, over ordered tiers.

    alpha([(image, tier), ...]) -> Figure(0.815, 0.71, 0.89)

A figure that the data do not define is None, with the reason in words: never NaN, and never the 1.0 that a set without
any variation would suggest.

Alpha uses the ordinal metric of Krippendorff (Computing Krippendorff's Alpha-Reliability, 2011),

    delta(c, k)^2 = (sum of n_g for g from c to k  -  (n_c + n_k) / 2)^2,       n_g: how often tier g was given,

and not |c - k|, which other tools call ordinal: on skewed tiers the two differ by more than a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

DRAWS = 400
LEAST_IMAGES = 5  # with fewer an interval by resampling means nothing


@dataclass(frozen=True)
class Figure:
    """A measure with its 95 % interval and what it rests on; `value` None: undefined, for the reason in `why`."""

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    why: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined: {self.why}"
        interval = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.3f}{interval} (n = {self.count})"


def alpha(
    image: npt.ArrayLike,
    tier: npt.ArrayLike,
    *,
    cluster: npt.ArrayLike | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Figure:
    """Krippendorff's ordinal alpha of ratings, with a bootstrap interval over images.

    `image` and `tier` have one entry a rating; any number of raters may miss any image. Images rated once do not count.
    `cluster`, one entry a rating too, names what is drawn together: the picture of several captions.
    """
    table = unit_table(image, tier)
    often = table.sum(axis=1) >= 2
    _, first = np.unique(np.asarray(image), return_index=True)
    belongs = np.unique(
        (np.asarray(image) if cluster is None else np.asarray(cluster))[first][often], return_inverse=True
    )[1]
    together = np.split(np.argsort(belongs, kind="stable"), np.cumsum(np.bincount(belongs))[:-1]) if often.any() else []
    table = table[often]
    pairs = len(table)
    if not pairs:
        return Figure(None, why="no image has two ratings")
    value = _alpha(table)
    if value is None:
        return Figure(None, count=pairs, why="no variation: every rating is the same")
    count = len(together)
    if count < LEAST_IMAGES or not draws:
        return Figure(value, count=pairs)
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = draw.integers(0, count, count)
        found.append(_alpha(table[drawn if count == pairs else np.concatenate([together[at] for at in drawn])]))
    kept = [f for f in found if f is not None]
    if len(kept) < draws / 2:
        return Figure(value, count=pairs)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Figure(value, float(low), float(high), pairs)


def unit_table(image: npt.ArrayLike, tier: npt.ArrayLike) -> Int:
    """How often each image (rows) was given each tier 1..5 (columns)."""
    _, at = np.unique(np.asarray(image), return_inverse=True)
    table = np.zeros((int(at.max(initial=-1)) + 1, 5), np.int64)
    np.add.at(table, (at, np.asarray(tier, np.int64) - 1), 1)
    return table


def _alpha(table: Int) -> float | None:
    sizes = table.sum(axis=1)
    weight = 1 / (sizes - 1)
    coincidence = (table * weight[:, None]).T @ table.astype(np.float64)
    coincidence -= np.diag((table * weight[:, None]).sum(axis=0))
    given = coincidence.sum(axis=1)
    total = float(given.sum())
    until = np.cumsum(given)
    middle = until - given / 2
    distance = (middle[:, None] - middle[None, :]) ** 2
    expected = float((np.outer(given, given) * distance).sum()) / (total - 1)
    if expected <= 0:
        return None
    return 1.0 - float((coincidence * distance).sum()) / expected


def kappa(a: npt.ArrayLike, b: npt.ArrayLike) -> Figure:
    """Cohen's kappa with quadratic weights between two ratings of the same images."""
    table = confusion(a, b)
    count = int(table.sum())
    if not count:
        return Figure(None, why="no image in common")
    weight = (np.arange(5)[:, None] - np.arange(5)[None, :]) ** 2
    chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / count
    expected = float((weight * chance).sum())
    if expected <= 0:
        return Figure(None, count=count, why="no variation: both gave the same tier throughout")
    return Figure(1 - float((weight * table).sum()) / expected, count=count)


def confusion(a: npt.ArrayLike, b: npt.ArrayLike) -> Int:
    """(5, 5) counts: `a` in rows, `b` in columns."""
    table = np.zeros((5, 5), np.int64)
    np.add.at(table, (np.asarray(a, np.int64) - 1, np.asarray(b, np.int64) - 1), 1)
    return table


def bias(a: npt.ArrayLike, b: npt.ArrayLike) -> Figure:
    """Mean of `a` - `b` in tiers, with its 95 % interval: negative is stricter than `b`."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if not len(difference):
        return Figure(None, why="no image in common")
    mean = float(difference.mean())
    if len(difference) < LEAST_IMAGES:
        return Figure(mean, count=len(difference))
    half = 1.96 * float(difference.std(ddof=1)) / np.sqrt(len(difference))
    return Figure(mean, mean - half, mean + half, len(difference))


def share(hits: int, count: int, nothing: str = "nothing to count") -> Figure:
    """A proportion with Wilson's 95 % interval."""
    if not count:
        return Figure(None, why=nothing)
    z = 1.96
    p = hits / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Figure(p, max(0.0, float(middle - half)), min(1.0, float(middle + half)), count)


def leave_one_out(image: npt.ArrayLike, rater: npt.ArrayLike, tier: npt.ArrayLike) -> list[tuple[int, int, int, float]]:
    """(rater, tier, median and mean of the others' tiers) for each rating of an image that others have rated, too.

    Of an even number of others the lower middle one, as in the vote; it is no measure of bias, the mean is.
    """
    images, raters, tiers = (np.asarray(x, np.int64) for x in (image, rater, tier))
    order = np.argsort(images, kind="stable")
    found: list[tuple[int, int, int, float]] = []
    edges = np.nonzero(np.diff(images[order]))[0] + 1
    for group in np.split(order, edges):
        if len(group) < 2:
            continue
        ordered = sorted(tiers[group].tolist())
        for at in group.tolist():
            others = list(ordered)
            others.remove(int(tiers[at]))
            found.append((int(raters[at]), int(tiers[at]), others[(len(others) - 1) // 2], sum(others) / len(others)))
    return found


def trend(at_ms: Sequence[int], image: Sequence[int], tier: Sequence[int], parts: int = 8) -> list[tuple[int, Figure]]:
    """Alpha over time: (start, alpha) of up to `parts` stretches with the same number of images, in order of their
    last vote.
    """
    last: dict[int, int] = {}
    for when, unit in zip(at_ms, image, strict=True):
        last[unit] = max(when, last.get(unit, 0))
    units = sorted(last, key=lambda unit: last[unit])
    size = max(LEAST_IMAGES, -(-len(units) // parts))
    images, tiers = np.asarray(image, np.int64), np.asarray(tier, np.int64)
    found = []
    for start in range(0, len(units), size):
        chosen = units[start : start + size]
        inside = np.isin(images, chosen)
        found.append((last[chosen[0]], alpha(images[inside], tiers[inside], draws=0)))
    return found
