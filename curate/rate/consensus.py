"""From votes to a tier: the vote with its tie rule, and an ordinal model of images and raters.

**The vote.** The most frequent tier. When two tiers share that place there is one more vote, up to `extra` of them;
then the median, and of an even number of votes the lower of the two in the middle: a draw does not promote a picture.
An image whose votes are settled gets one more vote, too, when that vote could carry it over the keep line or back.

**The model.** A Dawid-Skene model (Dawid & Skene, 1979) for ordered classes: rater j reports tier k of an image of true
tier t with probability

    P(k | t, j) = F((c_k - t + b_j) / s_j) - F((c_{k-1} - t + b_j) / s_j),      F the logistic function,
    c_k = k + 1/2, c_0 = -inf, c_5 = inf,

so a rater has two numbers in place of 20: a severity b_j (positive: rates lower than others) and a noise s_j. EM over
the true tiers, with weak priors b ~ N(0, 1), log s ~ N(log 0.6, 0.7) so that a rater with three votes is near the
average. Five votes of a careful rater and five of a careless one are then not worth the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]

CUTS = np.array([1.5, 2.5, 3.5, 4.5])
ROUNDS = 60
TOLERANCE = 1e-4
SEVERITIES = np.linspace(-1.6, 1.6, 33)
NOISES = np.geomspace(0.15, 2.4, 15)


@dataclass(frozen=True)
class VoteRule:
    """How many votes an image gets, and where the line lies above which it is kept."""

    votes: int
    extra: int
    keep_tier: int


@dataclass(frozen=True)
class Decision:
    """`tier` with the rule that gave it (majority, median); None while `wanted` votes are not there yet."""

    tier: int | None
    rule: str | None
    wanted: int


def decide(votes: Sequence[int], rule: VoteRule) -> Decision:
    """What follows from an image's votes, in any order."""
    cast = len(votes)
    if cast < rule.votes:
        return Decision(None, None, rule.votes)
    tier, how = _settled(votes)
    most = rule.votes + rule.extra
    if cast < most and (how != "majority" or _could_flip(votes, tier, rule.keep_tier)):
        return Decision(None, None, cast + 1)
    return Decision(tier, how, cast)


def _settled(votes: Sequence[int]) -> tuple[int, str]:
    counts = Counter(votes).most_common()
    if len(counts) == 1 or counts[0][1] > counts[1][1]:
        return counts[0][0], "majority"
    return sorted(votes)[(len(votes) - 1) // 2], "median"


def _could_flip(votes: Sequence[int], tier: int, keep_tier: int) -> bool:
    return any((_settled([*votes, more])[0] >= keep_tier) != (tier >= keep_tier) for more in range(1, 6))


@dataclass(frozen=True)
class Model:
    """Posterior tiers of images (I, 5), and each rater's severity and noise in tiers (J,)."""

    posterior: Real
    severity: Real
    noise: Real

    @property
    def tier(self) -> npt.NDArray[np.int64]:
        """The median of each posterior: the tier that is least wrong in absolute terms."""
        return np.asarray(1 + (np.cumsum(self.posterior, axis=1) < 0.5).sum(axis=1), np.int64)

    def at_least(self, tier: int) -> Real:
        """Probability that the true tier is `tier` or better."""
        return np.asarray(self.posterior[:, tier - 1 :].sum(axis=1))


def fit_model(image: npt.ArrayLike, rater: npt.ArrayLike, tier: npt.ArrayLike) -> Model:
    """Fit the ordinal model to votes: `image` and `rater` number images and raters from 0, `tier` is 1..5."""
    i, j, k = (np.asarray(a, np.int64) for a in (image, rater, tier))
    images, raters = int(i.max(initial=-1)) + 1, int(j.max(initial=-1)) + 1
    if not images:
        return Model(np.zeros((0, 5)), np.zeros(0), np.zeros(0))
    counts = np.zeros((images, 5))
    np.add.at(counts, (i, k - 1), 1.0)
    posterior = _normalised(np.log(counts + 0.3))
    severity, noise = np.zeros(raters), np.full(raters, 0.6)
    grid = np.log(np.maximum(_reports(SEVERITIES[:, None], NOISES[None, :]), 1e-9))  # (B, S, true, reported)
    prior = -0.5 * SEVERITIES[:, None] ** 2 - 0.5 * ((np.log(NOISES[None, :]) - np.log(0.6)) / 0.7) ** 2
    for _ in range(ROUNDS):
        share = posterior.mean(axis=0)
        # M step: what each rater reported against what the images are now thought to be, (J, true, reported).
        table = np.zeros((raters, 5, 5))
        for true in range(5):
            np.add.at(table[:, true], (j, k - 1), posterior[i, true])
        score = np.tensordot(table, grid, axes=([1, 2], [2, 3])) + prior  # (J, B, S)
        best = score.reshape(raters, -1).argmax(axis=1)
        severity = SEVERITIES[best // len(NOISES)]
        # Severities are known up to a shift of all tiers: the average rater is neither strict nor mild.
        weight = np.bincount(j, minlength=raters)
        severity = severity - (np.average(severity, weights=weight) if weight.sum() else 0.0)
        noise = NOISES[best % len(NOISES)]
        # E step.
        reports = np.log(np.maximum(_reports(severity, noise), 1e-9))  # (J, true, reported)
        logs = np.tile(np.log(share + 1e-3), (images, 1))
        np.add.at(logs, i, reports[j, :, k - 1])
        new = _normalised(logs)
        change = float(np.abs(new - posterior).max(initial=0.0))
        posterior = new
        if change < TOLERANCE:
            break
    return Model(posterior, severity, noise)


def _reports(severity: Real, noise: Real) -> Real:
    """P(reported | true), shape of the arguments + (5 true, 5 reported)."""
    true = np.arange(1.0, 6.0)
    b, s = np.broadcast_arrays(severity, noise)
    z = (CUTS - true[:, None] + b[..., None, None]) / s[..., None, None]
    below = 1 / (1 + np.exp(-np.clip(z, -40, 40)))
    edges = np.concatenate([np.zeros((*below.shape[:-1], 1)), below, np.ones((*below.shape[:-1], 1))], axis=-1)
    return np.asarray(np.diff(edges, axis=-1))


def _normalised(logs: Real) -> Real:
    shifted = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
