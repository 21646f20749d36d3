"""The learned tier: from a few thousand images that people rated to every row of the store.

    curate fit STORE

An ordinal model (ordinal.py) over all numeric scores, and embeddings where the store has them, is trained on the tiers
that people decided, checked by cross-validation and calibrated on the out-of-fold scores. It writes the derived
operator `predicted`: `predicted_tier`, `predicted_score`, `predicted_keep`, with a fingerprint of its own, and a report
with what it can be trusted for. Campaigns can then sample by predicted tier or where the model is least sure, and the
policy may use the columns.

Near duplicates (PDQ) are never on both sides of a fold: they would make the model look better than it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.errors import UsageError
from curate.rate import agreement, ordinal
from curate.rate.campaign import near_groups
from curate.rate.ledger import Ledger
from curate.store import Store
from curate.store.derived import publish
from curate.store.files import Files
from schemas.columns import DERIVED, OPERATORS, operator_of

Real = npt.NDArray[np.float64]

VERSION = 1
REPORT = "reports/predicted.json"
FOLDS = 5
LEAST = 40  # rated images
LEAST_FILLED = 0.5  # share of the rated images that must have a score for it to be used
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
COMPONENTS = 32  # of the embeddings
QUANTILES = 65
DRAWS = 400
RECALL = 0.9
BATCH = 50_000
# Numbers that say where a picture came from or what was made of it, and not how good it is.
NOT_SCORES = frozenset(
    {"row", "caption_tokens_in", "caption_tokens_out", "caption_seconds", "exif_orientation", "frames", "pdq_quality"}
)


@dataclass(frozen=True)
class Features:
    """How scores become inputs: each by its distribution's quantiles to a common scale, with three bends."""

    columns: tuple[str, ...]
    quantiles: Real  # (columns, QUANTILES)
    mean: Real | None = None  # of embeddings, (E,)
    axes: Real | None = None  # (E, COMPONENTS), scaled to unit variance

    def of(self, values: Real, embeddings: Real | None) -> Real:
        """(N, d) inputs of raw scores (N, columns) and embeddings (N, E), NaN where missing."""
        blocks = []
        grid = np.linspace(0.0, 1.0, self.quantiles.shape[1])
        for at in range(len(self.columns)):
            missing: npt.NDArray[np.bool_] = np.asarray(np.isnan(values[:, at]))
            place = np.interp(values[:, at], self.quantiles[at], grid)
            z = np.where(missing, 0.0, 3.4 * (place - 0.5))  # about unit variance
            blocks += [z, *(np.where(missing, 0.0, np.maximum(z - bend, 0.0)) for bend in (-0.85, 0.0, 0.85))]
            blocks.append(missing.astype(np.float64))
        if self.axes is not None and self.mean is not None:
            vectors = np.full((len(values), len(self.mean)), np.nan) if embeddings is None else embeddings
            e = (vectors - self.mean) @ self.axes
            without: npt.NDArray[np.bool_] = np.asarray(np.isnan(e).any(axis=1))
            blocks += [*np.where(without[:, None], 0.0, e).T, without.astype(np.float64)]
        return np.stack(blocks, axis=1) if blocks else np.zeros((len(values), 0))


@dataclass(frozen=True)
class Rated:
    """Images with the tier that people decided."""

    sha256: list[str]
    tier: npt.NDArray[np.int64]
    values: Real
    embeddings: Real | None
    groups: npt.NDArray[np.int64]  # near duplicates have the same number


def fit(store: Store, ledger: Ledger, *, keep_tier: int = 4, seed: int = 0) -> dict[str, Any]:
    """Train, check, write `predicted` for all rows; returns the report. Raises UsageError when too little was rated."""
    tiers = _consensus(ledger)
    columns = score_columns(store)
    rated, columns, features = _rated(store, tiers, columns)
    x = features.of(rated.values, rated.embeddings)
    fold = _folds(rated.groups, seed)
    ridge, out = _cross_validated(x, rated.tier, fold)
    calibration = ordinal.fit(out[:, None], rated.tier, 1e-6)
    model = ordinal.fit(x, rated.tier, ridge)
    scale, cuts = float(calibration.weights[0]), calibration.cuts
    # Each fold's calibration is fitted on the others: the report judges nothing by what it has seen.
    honest = np.zeros((len(out), 5))
    for k in range(FOLDS):
        rest = ordinal.fit(out[fold != k, None], rated.tier[fold != k], 1e-6)
        honest[fold == k] = rest.probabilities(out[fold == k, None])
    report = _report(rated, columns, honest, keep_tier, seed)
    table = _predict(store, columns, features, model, scale, cuts, keep_tier)
    facts = {
        "engine": "proportional odds",
        "revision": VERSION,
        "keep_tier": keep_tier,
        "ridge": ridge,
        "columns": list(columns),
        "embeddings": features.axes is not None,
        "ratings": hashlib.sha256(json.dumps(sorted(tiers.items())).encode()).hexdigest(),
        "seed": seed,
    }
    version = publish(store.files, "predicted", facts, table)
    kept = table["predicted_keep"].to_numpy()
    report |= {"facts": facts, "fingerprint": version.fingerprint, "rows": table.num_rows, "at_ms": ledger.clock()}
    report["yield"] = _yield(kept, honest, rated.tier, keep_tier)
    predicted = np.asarray(table["predicted_tier"].to_numpy(zero_copy_only=False), np.int64)
    report["predicted"] = np.bincount(predicted, minlength=6)[1:].tolist()
    store.files.replace(REPORT, json.dumps(report, ensure_ascii=False, indent=1).encode())
    return report


def last(files: Files) -> dict[str, Any] | None:
    """The report of the last fit."""
    if not files.exists(REPORT):
        return None
    found: dict[str, Any] = json.loads(files.read(REPORT))
    return found


def score_columns(store: Store) -> tuple[str, ...]:
    """The numeric columns of operators that look at one picture."""
    known = {row[0]: row[1] for row in store.rows("DESCRIBE samples")}
    found = []
    for operator, declared in OPERATORS.items():
        if operator in DERIVED or operator == "input":
            continue
        for column in declared:
            numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            if numeric and column.name in known and column.name not in NOT_SCORES:
                found.append(column.name)
    return tuple(found)


def _consensus(ledger: Ledger) -> dict[str, int]:
    """Tier of each image that is decided, of the newest campaign that decided it; gold images with their own."""
    rows = ledger.read().execute(
        "SELECT sha256, coalesce(gold_tier, tier) AS tier FROM items WHERE tier IS NOT NULL OR gold_tier IS NOT NULL "
        "ORDER BY campaign_id, id"
    )
    return {row["sha256"]: row["tier"] for row in rows}


def _rated(store: Store, tiers: dict[str, int], columns: Sequence[str]) -> tuple[Rated, tuple[str, ...], Features]:
    listed = ", ".join(f'"{name}"::DOUBLE' for name in columns)
    rows = store.rows(
        f"SELECT sha256, shard, row, pdq, pdq_quality, {listed} FROM samples WHERE error IS NULL AND sha256 IN "
        "(SELECT unnest($1::VARCHAR[])) QUALIFY row_number() OVER (PARTITION BY sha256 ORDER BY shard, row) = 1 "
        "ORDER BY sha256",
        [list(tiers)],
    )
    tier = np.array([tiers[row[0]] for row in rows], np.int64)
    if len(rows) < LEAST or len(set(tier.tolist())) < 2:
        raise UsageError(
            f"{len(rows)} rated images with {len(set(tier.tolist()))} different tiers: a model "
            f"needs at least {LEAST} images "
            "and two tiers; rate more (docs/rating.md)"
        )
    values = np.array([[np.nan if v is None else v for v in row[5:]] for row in rows], np.float64)
    filled = (~np.isnan(values)).mean(axis=0) >= LEAST_FILLED
    varies = np.array([len(np.unique(v[~np.isnan(v)])) > 1 for v in values.T], bool) if len(columns) else filled
    used = filled & varies
    chosen = tuple(name for name, yes in zip(columns, used, strict=True) if yes)
    quantiles = _quantiles(store, chosen)
    embeddings = _embeddings_of(store, [(row[1], row[2]) for row in rows])
    mean = axes = None
    if embeddings is not None:
        mean, axes = _axes(embeddings)
    hashes = np.zeros((len(rows), 32), np.uint8)
    sound = [at for at, row in enumerate(rows) if row[3] and (row[4] or 0) >= 50]
    for at in sound:
        hashes[at] = list(bytes.fromhex(rows[at][3]))
    groups = np.arange(len(rows))
    for group in near_groups(np.ascontiguousarray(hashes[sound])):
        groups[[sound[at] for at in group]] = sound[group[0]]
    rated = Rated([row[0] for row in rows], tier, values[:, used], embeddings, groups)
    return rated, chosen, Features(chosen, quantiles, mean, axes)


def _quantiles(store: Store, columns: Sequence[str]) -> Real:
    """Of each column over the whole store, (columns, QUANTILES), made strictly rising for interpolation."""
    grid = np.linspace(0, 1, QUANTILES)
    listed = ", ".join(str(q) for q in grid.tolist())
    found = []
    for name in columns:
        row = store.rows(f'SELECT quantile_cont("{name}"::DOUBLE, [{listed}]) FROM samples WHERE error IS NULL')[0][0]
        values = np.asarray(row, np.float64)
        span = max(float(values[-1] - values[0]), 1e-12)
        found.append(np.maximum.accumulate(values) + np.arange(QUANTILES) * span * 1e-12)
    return np.array(found).reshape(len(columns), QUANTILES)


def _embeddings_of(store: Store, rows: Sequence[tuple[str, int]]) -> Real | None:
    """Embeddings of rows, (N, E), NaN where one has none; None when the store has none."""
    if "embed" not in OPERATORS:
        return None
    place: dict[str, dict[int, int]] = {}
    for at, (shard, row) in enumerate(rows):
        place.setdefault(shard, {})[row] = at
    found: Real | None = None
    for table in store.cells("embed", ["embedding"]):
        wanted = place.get(table["shard"][0].as_py(), {}) if table.num_rows else {}
        if not wanted:
            continue
        for row, value in zip(table["row"].to_pylist(), table["embedding"], strict=True):
            if row in wanted and value.is_valid:
                vector = np.asarray(value.values.to_numpy(zero_copy_only=False), np.float64)
                if found is None:
                    found = np.full((len(rows), len(vector)), np.nan)
                found[wanted[row]] = vector
    return found


def _axes(embeddings: Real) -> tuple[Real, Real]:
    """Mean and the leading principal axes, scaled to unit variance."""
    known = embeddings[~np.isnan(embeddings).any(axis=1)]
    mean = known.mean(axis=0)
    _, spread, axes = np.linalg.svd(known - mean, full_matrices=False)
    count = min(COMPONENTS, len(spread), max(1, len(known) // 8))
    deviation = spread[:count] / np.sqrt(max(len(known) - 1, 1))
    return mean, axes[:count].T / np.maximum(deviation, 1e-9)


def _folds(groups: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    digest = [hashlib.blake2b(f"{seed}:{g}".encode(), digest_size=8).digest() for g in groups.tolist()]
    order = np.argsort(np.argsort([int.from_bytes(d, "big") for d in digest], kind="stable"), kind="stable")
    # Ranks and not hashes modulo FOLDS, so that the folds are of one size; a group takes the fold of its first member.
    fold = order % FOLDS
    return np.asarray(fold[groups], np.int64)


def _cross_validated(x: Real, tier: npt.NDArray[np.int64], fold: npt.NDArray[np.int64]) -> tuple[float, Real]:
    """The ridge with the best out-of-fold likelihood, and the out-of-fold scores under it, as log odds of the middle
    cut.
    """
    best: tuple[float, float, Real] | None = None
    for ridge in RIDGES:
        scores, loss = np.zeros(len(tier)), 0.0
        for k in range(FOLDS):
            inside = fold == k
            if not inside.any() or inside.all():
                continue
            model = ordinal.fit(x[~inside], tier[~inside], ridge)
            # Cuts of folds differ by a shift of the intercept, which the scores must not have.
            scores[inside] = model.score(x[inside]) - float(model.cuts.mean())
            p = model.probabilities(x[inside])
            loss -= float(np.log(np.maximum(p[np.arange(len(p)), tier[inside] - 1], 1e-12)).sum())
        if best is None or loss < best[0]:
            best = (loss, ridge, scores)
    assert best is not None
    return best[1], best[2]


def _predict(
    store: Store, columns: Sequence[str], features: Features, model: ordinal.Ordinal, scale: float, cuts: Real,
    keep_tier: int,
) -> pa.Table:  # fmt: skip
    listed = ", ".join(f'"{name}"::DOUBLE' for name in columns) or "NULL"
    tables = []
    embedded = features.axes is not None
    shards = [shard for (shard,) in store.rows("SELECT DISTINCT shard FROM samples WHERE error IS NULL ORDER BY shard")]
    for shard in shards:
        rows = store.rows(f"SELECT row, {listed} FROM samples WHERE shard = $1 AND error IS NULL ORDER BY row", [shard])
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            values = np.array([[np.nan if v is None else v for v in r[1:]] for r in part], np.float64)
            values = values[:, : len(columns)]
            vectors = _embeddings_of(store, [(shard, r[0]) for r in part]) if embedded else None
            score = (model.score(features.of(values, vectors)) - float(model.cuts.mean())) * scale
            p = ordinal.probabilities(score, cuts)
            tables.append(
                pa.table(
                    {
                        "shard": [shard] * len(part),
                        "row": pa.array([r[0] for r in part], pa.int64()),
                        "predicted_tier": pa.array(
                            np.minimum(1 + (np.cumsum(p, axis=1) < 0.5).sum(axis=1), 5), pa.int32()
                        ),
                        "predicted_score": pa.array(p @ np.arange(1.0, 6.0), pa.float32()),
                        "predicted_keep": pa.array(p[:, keep_tier - 1 :].sum(axis=1), pa.float32()),
                    }
                )
            )
    return pa.concat_tables(tables)


def _report(rated: Rated, columns: Sequence[str], p: Real, keep_tier: int, seed: int) -> dict[str, Any]:
    tier = rated.tier
    predicted = np.minimum(1 + (np.cumsum(p, axis=1) < 0.5).sum(axis=1), 5)
    keep = tier >= keep_tier
    chance = np.bincount(tier, minlength=6)[1:] / len(tier)
    own = p[np.arange(len(p)), tier - 1]
    probability = p[:, keep_tier - 1 :].sum(axis=1)
    bins: list[dict[str, Any]] = []
    for low in np.arange(0.0, 1.0, 0.1):
        inside = (probability >= low) & (probability < low + 0.1 + (low > 0.85))
        if inside.any():
            said, is_so = float(probability[inside].mean()), agreement.share(int(keep[inside].sum()), int(inside.sum()))
            bins.append(
                {"said": said, "is": is_so.value, "low": is_so.low, "high": is_so.high, "count": int(inside.sum())}
            )
    error = sum(b["count"] * abs(b["said"] - b["is"]) for b in bins) / len(tier)
    return {
        "images": len(tier),
        "tiers": np.bincount(tier, minlength=6)[1:].tolist(),
        "keep_tier": keep_tier,
        "kappa": _figure(agreement.kappa(predicted, tier)),
        "exact": _figure(agreement.share(int((predicted == tier).sum()), len(tier))),
        "within_one": _figure(agreement.share(int((np.abs(predicted - tier) <= 1).sum()), len(tier))),
        "auc": _auc(probability, keep),
        "log_loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
        "log_loss_base": float(-(chance[chance > 0] * np.log(chance[chance > 0])).sum()),
        "calibration": {"bins": bins, "error": error},
        "confusion": agreement.confusion(predicted, tier).tolist(),
        "scores": _scores(rated, columns),
        "thresholds": _thresholds(rated, columns, keep, seed),
    }


def _figure(figure: agreement.Figure) -> dict[str, Any]:
    return {"value": figure.value, "low": figure.low, "high": figure.high, "count": figure.count, "why": figure.why}


def _auc(score: Real, yes: npt.NDArray[np.bool_]) -> float | None:
    """Chance that an image to keep has a higher score than one that is not; None without both kinds."""
    if yes.all() or not yes.any():
        return None
    order = np.argsort(score, kind="stable")
    ranks = np.empty(len(score))
    ranks[order] = np.arange(1, len(score) + 1)
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.bincount(inverse, weights=ranks) / counts)[inverse]
    n = int(yes.sum())
    return float((ranks[yes].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def _scores(rated: Rated, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Quartiles of each score in each tier, those that tell the tiers apart best first."""
    found = []
    for at, name in enumerate(columns):
        known = ~np.isnan(rated.values[:, at])
        value, tier = rated.values[known, at], rated.tier[known]
        quartiles = [
            np.quantile(value[tier == t], [0.1, 0.25, 0.5, 0.75, 0.9]).tolist() if (tier == t).any() else None
            for t in range(1, 6)
        ]
        found.append(
            {"column": name, "operator": operator_of(name), "rank": _spearman(value, tier), "quartiles": quartiles}
        )
    return sorted(found, key=lambda entry: -abs(entry["rank"] or 0.0))


def _thresholds(rated: Rated, columns: Sequence[str], keep: npt.NDArray[np.bool_], seed: int) -> list[dict[str, Any]]:
    """For each telling score the cut that RECALL of the images to keep pass, its interval, and what it buys."""
    found: list[dict[str, Any]] = []
    draw = np.random.default_rng(seed)
    for at, name in enumerate(columns):
        known = ~np.isnan(rated.values[:, at])
        value, yes = rated.values[known, at], keep[known]
        rank = _spearman(value, rated.tier[known])
        if yes.sum() < 10 or (~yes).sum() < 10 or rank is None or abs(rank) < 0.1:
            continue
        up = rank > 0
        quantile = 1 - RECALL if up else RECALL
        cut = float(np.quantile(value[yes], quantile))
        cuts = [np.quantile(draw.choice(value[yes], int(yes.sum())), quantile) for _ in range(DRAWS)]
        passing = value >= cut if up else value <= cut
        precision = agreement.share(int((passing & yes).sum()), int(passing.sum()))
        low, high = np.quantile(cuts, [0.025, 0.975])
        found.append(
            {
                "column": name, "operator": ">=" if up else "<=", "cut": cut, "low": float(low), "high": float(high),
                "rank": rank, "recall": float((passing & yes).sum() / yes.sum()), "precision": _figure(precision),
                "before": float(yes.mean()), "passing": float(passing.mean()),
            }
        )  # fmt: skip
    return sorted(found, key=lambda entry: -((entry["precision"]["value"] or 0) - entry["before"]))[:12]


def _yield(kept: Real, honest: Real, tier: npt.NDArray[np.int64], keep_tier: int) -> list[dict[str, Any]]:
    """For cuts of `predicted_keep`: rows of the store above it, and how many of them are what they should be."""
    probability, yes = honest[:, keep_tier - 1 :].sum(axis=1), tier >= keep_tier
    found = []
    for cut in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        above = kept >= cut
        rated = probability >= cut
        found.append(
            {
                "cut": cut, "rows": int(above.sum()), "expected": float(kept[above].mean()) if above.any() else None,
                "measured": _figure(
                    agreement.share(int((rated & yes).sum()), int(rated.sum()), "no rated image is above")
                ),
                "recall": float((rated & yes).sum() / max(yes.sum(), 1)),
            }
        )  # fmt: skip
    return found


def _spearman(a: Real, b: npt.ArrayLike) -> float | None:
    x, y = _ranks(a), _ranks(np.asarray(b, np.float64))
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Real) -> Real:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
