"""Agreement figures against known values, and the words for what is undefined."""

from __future__ import annotations

import numpy as np
import pytest

from curate.rate.agreement import alpha, bias, confusion, kappa, leave_one_out, share, trend
from curate.rate.consensus import fit_model

# The canonical data of Krippendorff (2011), as in the help page of R's irr::kripp.alpha: 4 raters, 12 units.
NA = 0
CANONICAL = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NA, NA, NA],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NA, 3],
        [NA, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NA],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NA],
    ]
)


def long(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    raters, units = np.nonzero(table)
    return units, table[raters, units]


def test_alpha_is_the_ordinal_one_of_the_canonical_data() -> None:
    figure = alpha(*long(CANONICAL))
    assert figure.value == pytest.approx(0.8154, abs=5e-5)
    assert figure.count == 11
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < 0.8154 < figure.high


def test_alpha_agrees_with_an_independent_implementation() -> None:
    krippendorff = pytest.importorskip("krippendorff")
    draw = np.random.default_rng(3)
    true = draw.choice(5, 300, p=[0.02, 0.08, 0.2, 0.5, 0.2])
    table = np.clip(true + draw.integers(-1, 2, (4, 300)), 0, 4) + 1.0
    table[draw.random(table.shape) < 0.3] = np.nan
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal", value_domain=[1, 2, 3, 4, 5])
    assert alpha(*long(np.nan_to_num(table).astype(int))).value == pytest.approx(expected, abs=1e-9)


def test_alpha_without_variation_is_undefined_and_says_so() -> None:
    figure = alpha([0, 0, 1, 1], [4, 4, 4, 4])
    assert figure.value is None
    assert "no variation" in str(figure)


def test_alpha_of_one_rater_is_undefined_and_says_so() -> None:
    assert "no image has two ratings" in str(alpha([0, 1, 2], [1, 2, 3]))
    assert "no image has two ratings" in str(alpha([], []))


def test_kappa_has_quadratic_weights() -> None:
    a, b = [1, 2, 3, 4, 5, 3, 3, 2], [1, 2, 3, 5, 4, 3, 2, 2]
    sklearn = pytest.importorskip("sklearn.metrics")
    expected = sklearn.cohen_kappa_score(a, b, weights="quadratic", labels=[1, 2, 3, 4, 5])
    assert kappa(a, b).value == pytest.approx(expected)
    assert kappa([3, 3], [3, 3]).value is None
    assert kappa([], []).value is None


def test_leave_one_out_does_not_compare_people_with_themselves() -> None:
    found = leave_one_out([0, 0, 0, 1], [7, 8, 9, 7], [5, 1, 2, 4])
    assert found == [(7, 5, 1, 1.5), (8, 1, 2, 3.5), (9, 2, 1, 3.0)]


def test_bias_is_negative_for_the_strict() -> None:
    figure = bias([1, 2, 3, 2, 3, 1], [2, 3, 4, 3, 4, 2])
    assert figure.value == -1
    assert figure.high == -1


def test_a_share_of_nothing_is_said_in_words() -> None:
    assert share(0, 0, "none yet").why == "none yet"
    figure = share(9, 10)
    assert figure.low is not None
    assert figure.high is not None
    assert 0.5 < figure.low < 0.9 < figure.high < 1


def test_the_trend_shows_when_people_stopped_agreeing() -> None:
    draw = np.random.default_rng(0)
    image, tier, at = [], [], []
    for unit in range(200):
        true = int(draw.integers(1, 6))
        for _ in range(3):
            image.append(unit)
            tier.append(true if unit < 100 else int(draw.integers(1, 6)))
            at.append(unit * 1000)
    values = [figure.value for _, figure in trend(at, image, tier, parts=4)]
    assert values[:2] == [1.0, 1.0]
    assert max(v for v in values[2:] if v is not None) < 0.4


def test_confusion_counts_first_in_rows() -> None:
    assert confusion([1, 1, 5], [1, 2, 5])[0].tolist() == [1, 1, 0, 0, 0]


def test_the_ordinal_model_finds_severity_and_noise_and_beats_the_vote() -> None:
    draw = np.random.default_rng(1)
    images, raters = 600, 6
    true = draw.choice(5, images, p=[0.1, 0.15, 0.25, 0.3, 0.2]) + 1
    severity, noise = np.array([0, 0, 0.8, -0.8, 0, 0.0]), np.array([0.2, 0.25, 0.3, 0.3, 1.6, 1.6])
    image, rater, tier = [], [], []
    for unit in range(images):
        for who in draw.choice(raters, 3, replace=False):
            seen = true[unit] - severity[who] + draw.logistic(0, noise[who])
            image.append(unit)
            rater.append(int(who))
            tier.append(int(np.clip(np.rint(seen), 1, 5)))
    model = fit_model(image, rater, tier)
    assert model.severity[2] - model.severity[3] > 0.8
    assert model.noise[4:].min() > model.noise[:4].max()
    votes = np.array([sorted(np.array(tier)[np.array(image) == unit])[1] for unit in range(images)])
    assert np.abs(model.tier - true).mean() < np.abs(votes - true).mean()
    assert np.allclose(model.posterior.sum(axis=1), 1)
    assert ((model.at_least(4) >= 0) & (model.at_least(4) <= 1)).all()


def test_the_model_of_a_single_vote_is_that_vote() -> None:
    assert fit_model([0, 1, 2], [0, 0, 0], [2, 4, 5]).tier.tolist() == [2, 4, 5]
