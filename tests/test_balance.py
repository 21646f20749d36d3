"""Concepts by keywords and by CLIP, caps, targets and the draw."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import recipe_for
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from curate import pipeline
from curate.balance import Settings, balance, weights
from curate.balance.concepts import OTHER, Taxonomy, judge, load
from curate.balance.show import show, write_sacrificed
from curate.cli import app
from curate.errors import UsageError
from curate.plan import Operator
from curate.progress import Display
from curate.recipe import Recipe
from curate.store import Store
from curate.store.derived import withdraw
from schemas.columns import OPERATORS
from workers import embedder


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load("taxonomy.v1")


def concept(taxonomy: Taxonomy, *captions: str | None) -> str:
    verdict = judge(taxonomy, captions, [False] * len(taxonomy.facts))
    return taxonomy.concepts[verdict.concept] if verdict.concept >= 0 else OTHER


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man in a red jacket rides a bicycle", "people"),
        ("two puppies asleep on a sofa", "animals"),
        ("A plate of spaghetti with basil and cheese", "food"),
        ("Pink cherry blossoms and green leaves", "plants"),
        ("An old steam locomotive at the railway museum", "vehicles"),
        ("a pair of leather boots", "artifacts"),
        ("The living room with a fireplace and a carpet", "indoor"),
        ("Snowy mountains above a lake at sunrise", "outdoor"),
        ("The skyline of the city with a suspension bridge", "architecture"),
        ("An oil painting of a woman with a dog", "arts"),
        ("anime illustration of a cat girl", "illustration"),
        ("abstract geometric background", "abstract"),
        ("a poster of a cat", "design"),
        ("Chinese calligraphy on rice paper", "chinese"),
        ("一位穿红衣服的女士站在湖边", "people"),
        ("两只小狗在沙发上睡觉", "animals"),
        ("一碗热气腾腾的牛肉拉面", "food"),
        ("花园里的小路", "outdoor"),
        ("盛开的荷花和荷叶", "plants"),
        ("一辆红色的跑车", "vehicles"),
        ("水墨画风格的山水", "chinese"),
        ("音乐会海报，红底金字", "design"),
        ("IMG_2031.jpg", OTHER),
        ("carpet", "indoor"),  # no car, no pet
        (None, OTHER),
    ],
)
def test_captions_name_their_concept(taxonomy: Taxonomy, caption: str | None, expected: str) -> None:
    assert concept(taxonomy, caption) == expected


def test_the_one_that_is_named_first_wins_among_equals_and_all_captions_count(taxonomy: Taxonomy) -> None:
    assert concept(taxonomy, "a dog and a man") == "animals"
    assert concept(taxonomy, "a man and a dog") == "people"
    assert concept(taxonomy, "holiday", "a dog runs after a cat", "一个男人") == "animals"


def test_plurals_capitals_and_full_width_letters_are_understood(taxonomy: Taxonomy) -> None:
    assert {concept(taxonomy, text) for text in ("PUPPIES", "Ｄｏｇ", "foxes", "horses")} == {"animals"}


def test_a_verdict_names_its_terms_and_its_share_of_the_evidence(taxonomy: Taxonomy) -> None:
    verdict = judge(taxonomy, ["a dog, a cat and a man"], [False] * len(taxonomy.facts))
    assert verdict.terms == ("dog", "cat")
    assert verdict.score == pytest.approx(2.5 / 3.5)
    faces = [sql for sql, *_ in taxonomy.facts].index("faces >= 1 AND face_area >= 0.1")
    seen = judge(taxonomy, [None], [i == faces for i in range(len(taxonomy.facts))])
    assert (taxonomy.concepts[seen.concept], seen.score) == ("people", 1.0)
    assert seen.terms == ("faces >= 1 AND face_area >= 0.1",)


def test_the_shipped_taxonomy_has_the_concepts_that_clip_is_asked_for(taxonomy: Taxonomy) -> None:
    assert taxonomy.concepts == tuple(embedder.taxonomy("concepts.v1").concepts)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[concepts.a]\nen = ['x']\n[concepts.b]\nen = ['x']", "'x' is a term of a too"),
        ("[concepts.a]\nenglish = ['x']", "unknown key 'english'"),
        ("[concepts.a]\nen = 'x'", "must be a list of words"),
        ("[concepts.other]\nen = ['x']", "what rows get that fit no concept"),
        ("[concepts.a]\nfacts = 3", "table of SQL = weight"),
        ("[topics.a]\nen = ['x']", "wants tables [concepts.NAME]"),
        ("= =", "taxonomy"),
    ],
)
def test_an_odd_taxonomy_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"shipped: taxonomy\.v1"):
        load(str(tmp_path / "none.toml"))


# weights

COUNTS = st.lists(st.integers(0, 2000), min_size=1, max_size=15).filter(any).map(lambda c: np.array(c, np.int64))


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.floats(0, 1), st.floats(1, 8), st.floats(0.1, 3))
def test_uses_fill_the_epoch_as_far_as_rows_may_repeat(counts: Any, alpha: float, repeat: float, size: float) -> None:
    share = weights.shares(counts, [str(i) for i in range(len(counts))], alpha, {})
    rows = size * counts.sum()
    uses = weights.uses(counts, share, rows, repeat)
    assert (uses <= counts * repeat + 1e-6).all()
    assert uses.sum() == pytest.approx(min(rows, repeat * counts.sum()), rel=1e-9)
    free = (counts > 0) & (uses < counts * repeat - 1e-6)
    rates = uses[free] / share[free]
    assert not len(rates) or np.ptp(rates) <= 1e-6 * rates.max()  # whoever is not full has its share to the others'


def test_alpha_and_targets_say_the_shares() -> None:
    counts, names = np.array([900, 100, 0]), ["a", "b", "c"]
    assert weights.shares(counts, names, 1.0, {}).tolist() == pytest.approx([0.9, 0.1, 0])
    assert weights.shares(counts, names, 0.5, {}).tolist() == pytest.approx([0.75, 0.25, 0])
    assert weights.shares(counts, names, 0.0, {}).tolist() == pytest.approx([0.5, 0.5, 0])
    assert weights.shares(counts, names, 1.0, {"b": 0.6}).tolist() == pytest.approx([0.4, 0.6, 0])


def test_a_draw_is_exact_and_who_was_kept_stays_when_more_may_be() -> None:
    random = np.random.default_rng(0)
    concept, keys = random.integers(0, 3, 500), random.integers(0, 1 << 63, 500).astype(np.uint64)
    few, many = (weights.drawn(concept, keys, np.array(keep)) for keep in ([10, 20, 0], [10, 50, 5]))
    assert np.bincount(concept[few], minlength=3).tolist() == [10, 20, 0]
    assert np.bincount(concept[many], minlength=3).tolist() == [10, 50, 5]
    assert many[few].all()
    order = random.permutation(500)
    assert (weights.drawn(concept[order], keys[order], np.array([10, 20, 0])) == few[order]).all()


# the store

CAPTIONS = [
    *(f"a dog number {i}" for i in range(24)), *(f"a red car number {i}" for i in range(8)),
    *(f"a plate of noodles number {i}" for i in range(4)), *(f"IMG_{i}" for i in range(4)),
]  # fmt: skip


def make(folder: Path, captions: Sequence[str], images: Sequence[bytes], clip: dict[str, tuple[str, float]]) -> Store:
    """A store over these captions; `clip` is what CLIP says of some of them."""
    (folder / "shards").mkdir(parents=True)
    half = len(captions) // 2
    for name, part in (("a-0", slice(None, half)), ("b-0", slice(half, None))):
        table = pa.table({"image": pa.array(images[: len(captions)][part], pa.binary()), "caption": captions[part]})
        pq.write_table(table, folder / "shards" / f"{name}.parquet")

    def load_clip(recipe: Recipe) -> Any:
        def concepts(samples: Sequence[Any]) -> list[dict[str, Any]]:
            found = [clip.get(sample.values["caption_raw"], (None, None)) for sample in samples]
            nothing = dict.fromkeys(column.name for column in OPERATORS["concepts"])
            return [nothing | {"clip_concept": name, "clip_concept_score": score} for name, score in found]

        return concepts

    cheap = {"input", "size", "identity"}
    path = [operator for operator in pipeline.PATH if operator.name in cheap]
    given_ = Operator("concepts", load_clip, lambda recipe: {"version": 1}, image="none", needs=("caption_raw",))
    recipe = dataclasses.replace(recipe_for(folder), policy=())
    assert pipeline.run(recipe, path=(*path, given_), display=Display(Console(file=io.StringIO()))) == 0
    return Store(folder / "store")


@pytest.fixture(scope="module")
def images(pictures: Any) -> list[bytes]:
    return list(pictures(len(CAPTIONS), 5))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Store:
    return make(tmp_path_factory.mktemp("balance"), CAPTIONS, images, {})


def kept(store: Store) -> dict[str, int]:
    return dict(store.rows("SELECT concept, count(*) FILTER (balance_keep) FROM samples GROUP BY 1 ORDER BY 1"))


def test_a_cap_thins_what_is_above_it_and_nothing_else(store: Store) -> None:
    outcome = balance(store, Settings(cap=6))
    assert kept(store) == {"animals": 6, "food": 4, "other": 4, "vehicles": 6}
    lines = {line.concept: (line.rows, line.kept, line.sacrificed) for line in outcome.lines}
    assert lines["animals"] == (24, 6, 18)
    assert store.rows("SELECT DISTINCT balance_probability, concept_engine FROM samples WHERE concept = 'animals'") == [
        (0.25, "keywords")
    ]
    assert store.rows("SELECT count(*) FROM samples WHERE balance_keep <> (balance_weight > 0)") == [(0,)]


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(store: Store) -> None:
    query = "SELECT list(row_id ORDER BY row_id) FROM samples WHERE balance_keep"
    draws = []
    for seed in (1, 1, 2):
        balance(store, Settings(cap=6, seed=seed))
        draws.append(store.rows(query))
    assert draws[0] == draws[1] != draws[2]


def test_targets_repeat_what_is_rare_and_the_uses_have_the_shares(store: Store) -> None:
    outcome = balance(store, Settings(alpha=0.0, target={"other": 0.1}, repeat=3.0))
    shares = {line.concept: line.share_after for line in outcome.lines}
    assert shares == pytest.approx({"animals": 0.3, "vehicles": 0.3, "food": 0.3, "other": 0.1}, abs=0.01)
    ((uses,),) = store.rows("SELECT sum(balance_weight) FROM samples")
    assert uses == pytest.approx(40, abs=1)
    assert store.rows("SELECT DISTINCT balance_weight FROM samples WHERE concept = 'food'") == [(3.0,)]


def test_copies_and_rows_that_are_not_to_be_balanced_get_a_concept_and_no_weight(store: Store) -> None:
    balance(store, Settings(where="row % 2 = 0", alpha=1.0))
    odd, even = (
        store.rows(f"SELECT count(concept), count(balance_keep), count(*) FROM samples WHERE row % 2 = {rest}")[0]
        for rest in (1, 0)
    )
    assert odd[1] == 0
    assert odd[0] == odd[2] and even == (even[2],) * 3


def test_clip_decides_where_it_is_sure_and_knows_the_concept(tmp_path: Path, images: list[bytes]) -> None:
    captions = ["a dog", "a dog on a chair", "a dog in a car", "xyz"]
    clip = {"a dog": ("arts", 0.9), "a dog on a chair": ("arts", 0.1), "xyz": ("spaceships", 0.9)}
    store = make(tmp_path, captions, images, clip)
    query = "SELECT concept, concept_engine FROM samples ORDER BY shard, row"
    balance(store, Settings())
    assert store.rows(query) == [
        ("arts", "embedding"), ("animals", "keywords"), ("animals", "keywords"), (OTHER, "keywords"),
    ]  # fmt: skip
    balance(store, Settings(engine="keywords"))
    assert [name for name, _ in store.rows(query)] == ["animals", "animals", "animals", OTHER]
    balance(store, Settings(engine="embedding"))
    assert [name for name, _ in store.rows(query)] == ["arts", OTHER, OTHER, OTHER]


def test_it_is_shown_written_down_and_taken_back(store: Store, tmp_path: Path) -> None:
    outcome = balance(store, Settings(cap=6))
    out = io.StringIO()
    show(store, outcome, Console(file=out, width=100))
    text = out.getvalue()
    assert "40 rows to balance" in text
    (line,) = [line for line in text.splitlines() if line.startswith("animals")]
    assert line.split() == ["animals", "24", "60.0%", "6", "6", "30.0%", "18"]
    assert "the best of what was given up" in text
    assert write_sacrificed(store, tmp_path / "lost.csv") == 20
    with (tmp_path / "lost.csv").open() as file:
        lost = list(csv.DictReader(file))
    assert {row["concept"] for row in lost} == {"animals", "vehicles"}
    assert len({row["row_id"] for row in lost}) == 20
    assert withdraw(store.files, "balance")
    assert store.rows("SELECT count(concept), count(balance_keep) FROM samples") == [(0, 0)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "people"], "write CONCEPT=SHARE"),
        (["--target", "peple=0.2"], "did you mean 'people'?"),
        (["--target", "people=0.7", "--target", "food=0.7"], "add up to at most 1"),
        (["--target", "people=nan"], "add up to at most 1"),
        (["--target", "people=0.5", "--target", "people=0.7"], "has a share already"),
        (["--cap", "3", "--target", "people=0.5"], "name one"),
        (["--repeat", "nan"], "--repeat at least 1"),
        (["--least", "nan"], "--least nan"),
        (["--alpha", "2"], "--alpha 0 to 1"),
        (["--where", "random() < 0.5"], "repeatable"),
        (["--engine", "clip"], "--engine clip"),
        (["--where", "nonsense"], "--where or the taxonomy's facts"),
        (["--where", "false"], "no row to balance"),
        (["--taxonomy", "mine"], "shipped: taxonomy.v1"),
    ],
)
def test_a_wrong_argument_is_one_line(store: Store, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["balance", store.uri, *arguments])
    assert isinstance(result.exception, UsageError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_the_command_balances_and_takes_back(store: Store, tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["balance", store.uri, "--cap", "6", "--sacrificed", str(tmp_path / "lost.csv")])
    assert f"wrote 20 rows to {tmp_path}/lost.csv" in result.output
    assert runner.invoke(app, ["balance", store.uri, "--undo"]).output == "taken back\n"
