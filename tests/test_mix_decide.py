"""Buckets, controlled rounding and the choice of captions: known answers and properties."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import UsageError
from curate.mix import buckets
from curate.mix.decide import EN, RAW, ZH, Cell, Choice, Entries, Policy, celled, choosable, decide, ranked
from curate.mix.keyed import key_of, mixed, uniform, van_der_corput
from curate.mix.names import missing
from curate.mix.rounding import rounded
from curate.mix.settings import Settings, parse_languages

NOVELAI_512 = {
    (256, 1024), (320, 1024), (384, 1024), (384, 960), (384, 896), (448, 832), (512, 768), (512, 704), (576, 640),
}  # fmt: skip


def test_novelai_buckets_are_the_published_lists() -> None:
    mirrored = {(h, w) for w, h in NOVELAI_512}
    assert set(buckets.NAMED["novelai-512"]) == NOVELAI_512 | mirrored | {(512, 512)}
    assert len(buckets.NAMED["novelai-512"]) == 19
    assert len(buckets.NAMED["novelai-1024"]) == 33
    sdxl = buckets.NAMED["sdxl"]
    assert len(set(sdxl)) == 40
    assert (704, 1344) in sdxl and (1344, 704) not in sdxl
    assert all(0.9 < w * h / 1024**2 <= 1 and w % 64 == h % 64 == 0 for w, h in sdxl)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1000, 1000), (512, 512)), ((3000, 2000), (768, 512)), ((2000, 3000), (512, 768)), ((1920, 1080), (832, 448)),
     ((100, 400), (256, 1024)), ((100, 790), (256, 1024))],
)  # fmt: skip
def test_a_picture_goes_to_the_nearest_log_aspect(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    sizes = buckets.NAMED["novelai-512"]
    found = buckets.assign(np.array([size[0]]), np.array([size[1]]), sizes)
    assert sizes[found[0]] == wanted


def test_log_and_not_linear_aspect_decides() -> None:
    # The middle of 1:1 and 1:2 is 1:1.414 in logarithms; linear, 1:1.4 = 0.714 would already be nearer to 0.5.
    sizes = ((100, 100), (100, 200))
    assert buckets.assign(np.array([1000]), np.array([1450]), sizes).tolist() == [1]
    assert buckets.assign(np.array([1000]), np.array([1400]), sizes).tolist() == [0]


def test_panoramas_belong_to_no_bucket() -> None:
    sizes = buckets.NAMED["novelai-512"]
    assert buckets.assign(np.array([801, 100, 0, 799]), np.array([100, 801, 5, 100]), sizes).tolist()[:3] == [
        -1,
        -1,
        -1,
    ]
    assert buckets.assign(np.array([799]), np.array([100]), sizes)[0] >= 0


def test_of_two_buckets_of_one_aspect_the_larger_is_taken() -> None:
    assert buckets.assign(np.array([10]), np.array([10]), ((256, 256), (512, 512))).tolist() == [1]


@pytest.mark.parametrize("text", ["novelai", "512", "512x", "square-", "10x10", "512x512,512x512"])
def test_unknown_buckets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--buckets"):
        buckets.parse(text)


def test_keys_are_those_of_duckdb() -> None:
    for text in ("a:0", "train-00001:17", "text/语料:3"):
        found = duckdb.sql(f"SELECT md5_number_lower('{text}')").fetchone()
        assert found is not None and found[0] == key_of(text)


def test_draws_depend_on_every_fact_and_look_uniform() -> None:
    keys = np.array(
        [int.from_bytes(hashlib.md5(bytes([i, j])).digest()[:8]) for i in range(64) for j in range(64)], "u8"
    )
    draws = uniform(keys, 1, 0, "source")
    assert abs(draws.mean() - 0.5) < 0.02 and abs(np.var(draws) - 1 / 12) < 0.005
    for other in ((2, 0, "source"), (1, 1, "source"), (1, 0, "language")):
        assert abs(np.corrcoef(draws, uniform(keys, *other))[0, 1]) < 0.05


def test_van_der_corput_fills_every_block_of_powers() -> None:
    assert [van_der_corput(i) for i in range(4)] == [0, 0.5, 0.25, 0.75]
    for base, power in ((2, 3), (3, 2)):
        size = base**power
        for first in (0, size, 5 * size):
            cells = sorted(int(van_der_corput(i, base) * size + 1e-9) for i in range(first, first + size))
            assert cells == list(range(size))


@settings(max_examples=150, deadline=None)
@given(
    cells=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=40),
    share=st.fractions(0, 1, max_denominator=20),
    seed=st.integers(0, 2**32),
)
def test_controlled_rounding_is_within_one_in_every_margin(
    cells: list[tuple[int, int, int]], share: Fraction, seed: int
) -> None:
    counts, rows, columns = (np.array(x) for x in zip(*cells, strict=True))
    found = rounded(counts, share, rows, columns, seed)
    assert all(abs(int(got) - int(n) * share) < 1 for got, n in zip(found, counts, strict=True))
    for labels in (rows, columns, np.zeros(len(counts), int)):
        for label in set(labels.tolist()):
            here = labels == label
            assert abs(int(found[here].sum()) - int(counts[here].sum()) * share) < 1


def test_controlled_rounding_is_unbiased() -> None:
    counts, rows, columns = np.array([1, 1, 3, 2]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 2])
    mean = np.mean([rounded(counts, Fraction(3, 10), rows, columns, seed) for seed in range(3000)], axis=0)
    assert np.abs(mean - counts * 0.3).max() < 0.04


def entries(count: int, seed: int = 0, options: int | None = None) -> tuple[Entries, tuple[Cell, ...], np.ndarray]:
    """Entries with random buckets, concepts and kinds of captions."""
    noise = np.random.default_rng(seed)
    key = mixed(np.arange(count, dtype=np.uint64), seed)
    kinds = noise.choice([RAW | EN | ZH, RAW | EN, RAW | ZH, EN | ZH, RAW, ZH], count).astype(np.uint8)
    if options is not None:
        kinds[:] = options
    bucket, concept = noise.integers(0, 5, count).astype(np.int32), noise.integers(0, 3, count).astype(np.int32)
    cell, cells = celled(bucket, concept, kinds, 3)
    ones = np.ones(count, np.uint8)
    found = Entries(key, kinds, ones, ones * 3, ones, cell, ranked(key, cell, 7))
    return found, cells, np.stack([bucket, concept])


def policy(ratio: str = "1/2", english: str = "1/2", mode: str = "quota") -> Policy:
    return Policy(Fraction(ratio), Fraction(english), mode, 7)


@pytest.mark.parametrize("ratio", ["1/2", "3/10", "0", "1", "1/7"])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_quota_is_exact_overall_and_in_every_bucket_and_concept(ratio: str, epoch: int) -> None:
    some, cells, labels = entries(997)
    choice = decide(policy(ratio), cells, some, epoch)
    free = choosable(some.options)
    groups = [free] + [free & (labels[axis] == v) for axis in (0, 1) for v in np.unique(labels[axis])]
    for here in groups:
        assert abs(int((choice.source[here] == 0).sum()) - Fraction(ratio) * int(here.sum())) < 1
    both = (choice.source == 1) & ((some.options & (EN | ZH)) == EN | ZH)
    for here in [both] + [both & (labels[axis] == v) for axis in (0, 1) for v in np.unique(labels[axis])]:
        assert abs(int((choice.language[here] == 0).sum()) - Fraction(1, 2) * int(here.sum())) < 1


@pytest.mark.parametrize("mode", ["quota", "coin"])
def test_only_captions_that_there_are_are_chosen(mode: str) -> None:
    some, cells, _ = entries(500)
    for epoch in range(3):
        choice = decide(policy("1/2", mode=mode), cells, some, epoch)
        bit = np.where(choice.source == 0, RAW, np.where(choice.language == 0, EN, ZH))
        assert np.all(some.options & bit)


def test_every_entry_sees_both_sources_in_two_epochs_and_both_languages_in_four() -> None:
    some, cells, _ = entries(4000, options=RAW | EN | ZH)
    epochs = [decide(policy(), cells, some, epoch) for epoch in range(8)]
    for first in (0, 2, 4, 6):
        raw = (epochs[first].source == 0).astype(int) + (epochs[first + 1].source == 0)
        assert (raw == 1).mean() > 0.98  # a cell of odd size lets single entries of each epoch slip
    for first in (0, 4):
        seen = [e.language[e.source == 1] for e in epochs[first : first + 4]]
        assert all(0.45 < language.mean() < 0.55 for language in seen)
        chinese = sum(((e.source == 1) & (e.language == 1)).astype(int) for e in epochs[first : first + 4])
        assert (np.asarray(chinese) == 1).mean() > 0.95


def test_variants_rotate_over_the_epochs_in_which_an_entry_is_synthetic() -> None:
    some, cells, _ = entries(300, options=RAW | EN)
    seen: list[set[int]] = [set() for _ in range(300)]
    for epoch in range(18):
        choice: Choice = decide(policy(), cells, some, epoch)
        for i in np.flatnonzero(choice.source == 1):
            seen[i].add(int(choice.variant[i]))
    assert np.mean([variants == {0, 1, 2} for variants in seen]) > 0.97


@pytest.mark.parametrize("mode", ["quota", "coin"])
def test_a_decision_does_not_depend_on_the_company_it_is_made_in(mode: str) -> None:
    some, cells, _ = entries(400)
    whole = decide(policy(mode=mode), cells, some, 3)
    few = np.array([399, 7, 123])
    part = Entries(*(getattr(some, name)[few] for name in Entries.__dataclass_fields__))
    found = decide(policy(mode=mode), cells, part, 3)
    for name in ("source", "language", "variant"):
        assert np.array_equal(getattr(found, name), getattr(whole, name)[few])


def test_the_coin_is_fair_on_average_and_differs_by_epoch() -> None:
    some, cells, _ = entries(20_000, options=RAW | EN | ZH)
    raw = [decide(policy("3/10", mode="coin"), cells, some, epoch).source == 0 for epoch in (0, 1)]
    assert all(abs(r.mean() - 0.3) < 0.015 for r in raw)
    assert abs((raw[0] & raw[1]).mean() - 0.09) < 0.01


def test_ranks_of_a_cell_count_its_entries() -> None:
    some, cells, _ = entries(1000)
    for number, cell in enumerate(cells):
        assert sorted(some.rank[some.cell == number].tolist()) == list(range(cell.entries))
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(ranked(some.key[shuffled], some.cell[shuffled], 7), some.rank[shuffled])


def test_proper_nouns_that_the_synthetic_side_lacks() -> None:
    raw = "Sunset. The Forbidden City in Beijing, seen from Jingshan Park"
    assert missing([raw], ["a red palace in Beijing"]) == ["Forbidden City", "Jingshan Park"]
    assert missing(["游客在《清明上河图》前合影"], ["人们站在一幅画前"]) == ["清明上河图"]
    assert missing(["A dog. It runs. The end"], ["a cat"]) == []


def test_languages_are_shares_of_those_named() -> None:
    assert parse_languages("zh=3,en=1") == (("en", 1.0), ("zh", 3.0))
    assert parse_languages("zh") == (("zh", 1.0),)
    assert parse_languages("en=1,zh=0") == (("en", 1.0),)
    assert Settings("s", languages=(("en", 1.0), ("zh", 3.0))).policy.english == Fraction(1, 4)
    for wrong in ("de=1", "en=x", "en=0,zh=0", "en=1,en=1", "en=-1"):
        with pytest.raises(UsageError, match="--languages"):
            parse_languages(wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ratio", 1.5), ("ratio", -0.1), ("text_cap", 1.0), ("validation", 2.0), ("format", "zip"), ("mode", "dice"),
     ("epochs", 0), ("top_weight", 0.5), ("top_weight", float("nan")), ("buckets", "big"), ("seed", -1)],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        Settings("store", **{name: value})  # type: ignore[arg-type]
