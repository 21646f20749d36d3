"""Ordinal regression: the proportional-odds model (McCullagh, 1980) with a ridge penalty, by Newton's method.

    P(tier <= k | x) = F(c_k - x.w),      F the logistic function, c_1 < c_2 < c_3 < c_4

The penalised likelihood is concave in (w, c), so Newton with halved steps finds its one maximum. Half an observation of
each tier at x = 0 keeps the cuts apart and finite when a tier was never given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]

STEPS = 60
TOLERANCE = 1e-9
PRIOR_COUNT = 0.5


@dataclass(frozen=True)
class Ordinal:
    """Weights (d,) and cuts (4,)."""

    weights: Real
    cuts: Real

    def score(self, x: Real) -> Real:
        """x.w of each row of (N, d)."""
        return np.asarray(x @ self.weights)

    def probabilities(self, x: Real) -> Real:
        """P(tier = 1..5) of each row, (N, 5)."""
        return probabilities(self.score(x), self.cuts)


def probabilities(score: Real, cuts: Real) -> Real:
    """P(tier = 1..5) at scores (N,), (N, 5)."""
    below = _logistic(cuts[None, :] - score[:, None])
    edges = np.concatenate([np.zeros((len(score), 1)), below, np.ones((len(score), 1))], axis=1)
    return np.asarray(np.diff(edges, axis=1))


def fit(x: Real, tier: npt.ArrayLike, ridge: float, weight: Real | None = None) -> Ordinal:
    """The model of tiers 1..5 given rows of (N, d), with the penalty ridge/2 |w|^2."""
    y = np.asarray(tier, np.int64)
    share = np.ones(len(y)) if weight is None else weight
    d = x.shape[1]
    # The pseudo-observations stand at the mean of the data.
    centre = np.average(x, axis=0, weights=share) if len(y) else np.zeros(d)
    rows = np.vstack([x - centre, np.zeros((5, d))])
    classes = np.append(y, np.arange(1, 6))
    share = np.append(share, np.full(5, PRIOR_COUNT))
    upper, lower = _design(rows, classes), _design(rows, classes - 1)
    first, last = classes == 1, classes == 5
    penalty = np.append(np.full(d, ridge), np.zeros(4))

    def loss(at: Real) -> float:
        if (np.diff(at[d:]) <= 0).any():
            return np.inf
        p = np.where(last, 1.0, _logistic(upper @ at)) - np.where(first, 0.0, _logistic(lower @ at))
        return float(-(share * np.log(np.maximum(p, 1e-300))).sum() + 0.5 * (penalty * at**2).sum())

    cumulative = np.cumsum(np.bincount(classes, weights=share, minlength=6)[1:])
    odds = cumulative[:4] / (cumulative[4] - cumulative[:4])
    at = np.append(np.zeros(d), np.log(odds))
    now = loss(at)
    for _ in range(STEPS):
        f_up, f_low = np.where(last, 1.0, _logistic(upper @ at)), np.where(first, 0.0, _logistic(lower @ at))
        p = np.maximum(f_up - f_low, 1e-12)
        d_up, d_low = f_up * (1 - f_up), f_low * (1 - f_low)
        g_up, g_low = d_up / p, -d_low / p
        h_up = d_up * (1 - 2 * f_up) / p - g_up**2
        h_low = -d_low * (1 - 2 * f_low) / p - g_low**2
        h_both = d_up * d_low / p**2
        gradient = upper.T @ (share * g_up) + lower.T @ (share * g_low) - penalty * at
        cross = (upper * (share * h_both)[:, None]).T @ lower
        hessian = (
            (upper * (share * h_up)[:, None]).T @ upper
            + (lower * (share * h_low)[:, None]).T @ lower
            + cross
            + cross.T
            - np.diag(penalty + 1e-9)
        )
        step = np.linalg.solve(hessian, -gradient)
        size = 1.0
        while size > 1e-6 and loss(at + size * step) > now:
            size /= 2
        new = loss(at + size * step)
        if not new < now - TOLERANCE * max(1.0, abs(now)):
            break
        at, now = at + size * step, new
    return Ordinal(at[:d], at[d:] + float(centre @ at[:d]))


def _design(rows: Real, classes: npt.NDArray[np.int64]) -> Real:
    """Rows of d(c_k - x.w)/d(w, c) for k = classes; those of k = 0 and k = 5 have no cut and are not used."""
    cuts = np.zeros((len(rows), 4))
    inner = (classes >= 1) & (classes <= 4)
    cuts[np.nonzero(inner)[0], classes[inner] - 1] = 1.0
    return np.where(inner[:, None], np.hstack([-rows, cuts]), 0.0)


def _logistic(z: Real) -> Real:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))
