"""The ordinal model against known truth, and `curate fit` over a real store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from small_ledger import Clock, people

from curate.errors import UsageError
from curate.rate import campaign, fit, ordinal, queue, votes
from curate.rate.campaign import near_groups
from curate.rate.ledger import Ledger
from curate.rate.votes import Action
from curate.store import Store


def simulated(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    weights, cuts = np.array([1.5, -0.7, 0.0]), np.array([-2.0, -0.5, 0.6, 2.2])
    x = draw.normal(size=(count, 3))
    p = ordinal.probabilities(x @ weights, cuts)
    tier = 1 + (p.cumsum(axis=1) < draw.random(count)[:, None]).sum(axis=1)
    return x, np.minimum(tier, 5), weights, cuts


def test_the_ordinal_model_finds_the_weights_that_made_the_data() -> None:
    x, tier, weights, cuts = simulated(6000)
    model = ordinal.fit(x, tier, 1e-6)
    assert np.abs(model.weights - weights).max() < 0.1
    assert np.abs(model.cuts - cuts).max() < 0.12
    assert np.allclose(model.probabilities(x).sum(axis=1), 1)


def test_its_probabilities_are_calibrated() -> None:
    x, tier, *_ = simulated(4000)
    model = ordinal.fit(x[:2000], tier[:2000], 1.0)
    keep = model.probabilities(x[2000:])[:, 3:].sum(axis=1)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (keep >= low) & (keep < low + 0.25)
        assert abs(keep[inside].mean() - (tier[2000:][inside] >= 4).mean()) < 0.07


def test_the_gradient_is_zero_at_the_answer() -> None:
    x, tier, *_ = simulated(300)
    model = ordinal.fit(x, tier, 2.0)

    def loss(weights: np.ndarray) -> float:
        p = ordinal.probabilities(x @ weights, model.cuts)
        return float(-np.log(p[np.arange(300), tier - 1]).sum() + weights @ weights)

    for at in range(3):
        step = np.eye(3)[at] * 1e-4
        assert abs(loss(model.weights + step) - loss(model.weights - step)) / 2e-4 < 0.6  # the pseudo-counts' share


def test_tiers_that_were_never_given_keep_their_place() -> None:
    model = ordinal.fit(np.linspace(-1, 1, 60)[:, None], [2] * 30 + [5] * 30, 1.0)
    assert (np.diff(model.cuts) > 0).all()
    assert np.isfinite(model.cuts).all()


def rated_store(finished_store: Path, ledger: Ledger, tiers: dict[str, int]) -> Store:
    """The store with one campaign over all its images, rated by one person."""
    store = Store(finished_store)
    made = campaign.create(ledger, store, campaign.Plan("all", where="TRUE", votes=1, gold_every=0, repeat_every=0))
    (user,) = people(ledger, 1)
    while tasks := ledger.write(lambda db: queue.lease(db, made, user, 8, [], 0)):
        for task in tasks:
            row = ledger.read().execute(
                "SELECT sha256 FROM leases JOIN items ON items.id = item_id WHERE leases.id = ?", [task.lease]
            )
            action = Action(f"vote-{task.lease}", "vote", lease=task.lease, tier=tiers[row.fetchone()[0]])
            ledger.write(lambda db, a=action: votes.apply(db, made, user, a, 0))  # type: ignore[misc]
    return store


def truth(store: Store) -> dict[str, int]:
    """Sharp pictures are better; a keyed coin moves some of them by one."""
    found = {}
    for sha256, tile in store.rows("SELECT sha256, sharpness_tile FROM samples WHERE error IS NULL"):
        noise = hashlib.sha256(sha256.encode()).digest()[0] % 5 == 0
        found[sha256] = (5 if tile >= 60 else 2) - noise
    return found


def test_fit_writes_the_tier_of_every_row(finished_store: Path) -> None:
    ledger = Ledger(finished_store / "ratings.sqlite", Clock())
    store = rated_store(finished_store, ledger, truth(Store(finished_store)))
    report = fit.fit(store, ledger)
    rows = store.rows("SELECT sha256, sharpness_tile, predicted_tier, predicted_keep FROM samples WHERE error IS NULL")
    assert all(tier is not None for *_, tier, _ in rows)
    right = sum((tier >= 4) == (tile >= 60) for _, tile, tier, _ in rows)
    assert right >= 0.95 * len(rows)
    assert store.rows("SELECT count(*) FROM samples WHERE error IS NOT NULL AND predicted_tier IS NOT NULL") == [(0,)]
    assert report["auc"] > 0.95
    assert report["log_loss"] < report["log_loss_base"]
    assert {"sharpness", "sharpness_tile", "tenengrad"} & {entry["column"] for entry in report["thresholds"][:4]}
    assert fit.last(store.files) is not None
    sampled = campaign.create(ledger, store, campaign.Plan("next", where="TRUE", size=10, sample="uncertain"))
    assert ledger.read().execute("SELECT images FROM campaigns WHERE id = ?", [sampled]).fetchone()[0] == 10
    assert fit.fit(store, ledger)["fingerprint"] == report["fingerprint"], "the same ratings are the same version"
    ledger.close()


def test_too_few_ratings_are_said_in_one_line(finished_store: Path) -> None:
    ledger = Ledger(finished_store / "ratings.sqlite", Clock())
    with pytest.raises(UsageError, match="at least 40 images"):
        fit.fit(Store(finished_store), ledger)
    ledger.close()


def test_thousands_of_equal_and_near_hashes_are_groups_at_once() -> None:
    draw = np.random.default_rng(0)
    base = draw.integers(0, 256, (3, 32), np.uint8)
    template = np.repeat(base[:1], 20_000, axis=0)  # screenshots of one page: a few bits of one byte differ
    template[10_000:, 5] = draw.integers(0, 256, 10_000, np.uint8)
    far = base[1:2].copy()
    near_it = far.copy()
    near_it[0, :31] ^= 1  # 31 bits, one in each byte: no band of two bytes is equal
    groups = near_groups(np.concatenate([template, far, base[2:], near_it]))
    assert sorted(map(len, groups)) == [2, 20_000]
    assert next(group for group in groups if len(group) == 2) == [20_000, 20_002]
    assert near_groups(np.zeros((0, 32), np.uint8)) == []


def test_near_duplicates_are_on_one_side_of_a_fold() -> None:
    groups = np.array([0, 1, 1, 3, 1, 5, *range(6, 60)])
    fold = fit._folds(groups, 0)
    assert len({fold[1], fold[2], fold[4]}) == 1
    assert len(set(fold.tolist())) == fit.FOLDS


def test_campaigns_sample_as_they_are_told(finished_store: Path) -> None:
    ledger = Ledger(finished_store / "ratings.sqlite", Clock())
    store = Store(finished_store)

    def images(name: str, **plan: object) -> list[float]:
        made = campaign.create(ledger, store, campaign.Plan(name, where="TRUE", **plan))  # type: ignore[arg-type]
        ids = [
            r[0]
            for r in ledger.read().execute("SELECT row_id FROM items WHERE campaign_id = ? ORDER BY position", [made])
        ]
        known = dict(store.rows("SELECT row_id, sharpness_tile FROM samples"))
        return [known[row_id] for row_id in ids]

    near = images("near", size=5, sample="near:sharpness_tile")
    everything = sorted(abs(v - 60) for v in images("all"))
    assert sorted(abs(v - 60) for v in near) == everything[:5], "the cut is the policy's"
    strata = images("strata", size=20, sample="stratified:sharpness_tile")
    whole = images("whole")
    assert sum(v < 60 for v in strata) / 20 < sum(v < 60 for v in whole) / len(whole), "the crowd at 0 is one stratum"
    assert images("again", size=10) == images("and again", size=10), "a sample is keyed by its seed"
    assert images("other", size=10, seed=1) != images("once more", size=10)
    for bad in (
        "near:nothing", "predicted", "disagreeing", "best", "near:sharpness_tile:x", "near:caption_raw:3", "random:foo",
        "near:caption_raw", "stratified",
    ):  # fmt: skip
        with pytest.raises(UsageError, match="sample"):
            images(bad, sample=bad)
    for condition in ("caption_raw::INTEGER > 3", "sha256 = (SELECT sha256 FROM samples)"):
        with pytest.raises(UsageError, match="--where"):
            campaign.create(ledger, store, campaign.Plan("odd", where=condition))
    with pytest.raises(UsageError, match="there already"):
        images("near")
    ledger.close()
