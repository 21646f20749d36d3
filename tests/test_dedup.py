"""Copies with known answers: what is found, what is not, which copy is kept and why."""

from __future__ import annotations

import dataclasses
import io
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from small_store import run
from typer.testing import CliRunner

from curate import pipeline
from curate.cli import app
from curate.dedup import Outcome, Settings, dedup, groups
from curate.dedup.forest import Edges, Forest, Ints
from curate.dedup.near import Words, blocks, differing, near
from curate.dedup.rows import Embeddings
from curate.dedup.semantic import ALL_PAIRS, join_semantic
from curate.dedup.show import edges_of, explain, show
from curate.dedup.text import join_captions
from curate.dedup.turns import TURNS, turn_hashes
from curate.errors import CurateError, UsageError
from curate.plan import Operator
from curate.progress import Display
from curate.recipe import Aesthetic, Caption, Engine, Faces, Input, Ocr, Recipe, Run, StoreAt, Translate
from curate.store import Store
from curate.store.derived import withdraw
from curate.store.parts import list_parts, read_table

Made = dict[str, list[tuple[str, bytes, str]]]


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


def slope(angle: float, dark: tuple[int, int, int], light: tuple[int, int, int]) -> Image.Image:
    y, x = np.mgrid[0:180, 0:240]
    t = np.cos(angle) * x / 240 + np.sin(angle) * y / 180
    t = ((t - t.min()) / np.ptp(t))[..., None]
    return Image.fromarray((np.array(dark) * (1 - t) + np.array(light) * t).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs() -> dict[str, Image.Image]:
    skimage = pytest.importorskip("skimage")
    folder = Path(skimage.__file__).parent / "data"
    photos = {name: Image.open(folder / f"{name}.png").convert("RGB") for name in ("astronaut", "chelsea", "coffee")}
    for photo in photos.values():
        photo.thumbnail((320, 320))
    return photos


@pytest.fixture(scope="module")
def made(photographs: dict[str, Image.Image]) -> Made:
    """Shards of (name, bytes, caption); the same first word of names means one picture."""
    astronaut, cat, coffee = (photographs[name] for name in ("astronaut", "chelsea", "coffee"))
    one = {
        "astronaut original": saved(astronaut),
        "astronaut pixels": saved(astronaut, "BMP"),
        "astronaut jpeg": saved(astronaut, "JPEG", quality=60),
        "astronaut half": saved(astronaut.resize((160, 160)), "JPEG", quality=80),
        "astronaut crop1": saved(cropped(astronaut, 0.01), "JPEG", quality=85),
        "astronaut brighter": saved(astronaut.point(lambda x: min(255, round(x * 1.15))), "JPEG", quality=85),
        "cat original": saved(cat),
        "tac otherside": saved(Image.fromarray(np.asarray(cat)[:, :, ::-1])),  # red and blue change places
        "flat white": saved(Image.new("RGB", (200, 200), "white")),
        "fla2 white": saved(Image.new("RGB", (300, 200), "white")),
        "bad bytes": saved(cat)[:900],
    }
    two = {
        "astronaut bytes": saved(astronaut),
        "astronaut mirrored": saved(astronaut.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=80),
        "astronaut rotated": saved(astronaut.transpose(Image.Transpose.ROTATE_270), "JPEG", quality=80),
        "astronau crop20": saved(cropped(astronaut, 0.2)),
        "cat jpeg": saved(cat.resize((200, round(200 * cat.height / cat.width))), "JPEG", quality=70),
        "cup original": saved(coffee),
        "slope1 grey": saved(slope(0.7, (0, 0, 0), (255, 255, 255))),
        "slope2 red": saved(slope(0.7, (255, 0, 0), (0, 0, 255))),
        "slope3 other": saved(slope(0.9, (0, 0, 0), (255, 255, 255))),
        "slope4 down": saved(slope(1.5, (20, 90, 40), (240, 250, 200))),
        "bad again": saved(cat)[:900],
    }
    return {
        "a-0": [(name, data, f"caption of {name}") for name, data in one.items()],
        "b-0": [(name, data, f"caption of {name}") for name, data in two.items()],
    }


def write(folder: Path, made: Made) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard, rows in made.items():
        names, images, captions = zip(*rows, strict=True)
        table = pa.table({"image": pa.array(images, pa.binary()), "caption": captions, "label": names})
        pq.write_table(table, folder / f"{shard}.parquet")


def recipe(folder: Path) -> Recipe:
    return dataclasses.replace(
        Recipe(),
        input=Input(uri=str(folder / "shards")), store=StoreAt(uri=str(folder / "store")),
        engine=Engine(kind="inline"), run=Run(max_failed_share=1.0), aesthetic=Aesthetic(engine="photometric"),
        faces=Faces(engine="none"), ocr=Ocr(engine="none"), caption=Caption(engine="none"),
        translate=Translate(engine="none"), policy=(("size", "width >= 150"),),
    )  # fmt: skip


def make(folder: Path, made: Made) -> Store:
    write(folder / "shards", made)
    assert run(recipe(folder)) == 0
    return Store(folder / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Store:
    return make(tmp_path_factory.mktemp("dedup"), made)


@pytest.fixture(scope="module")
def found(store: Store) -> dict[str, dict[str, Any]]:
    dedup(store, Settings())
    return columns(store)


def columns(store: Store) -> dict[str, dict[str, Any]]:
    """The columns of `dedup` by the row's name; row_ids are put as names."""
    names = dict(store.rows("SELECT row_id, label FROM samples"))
    table = store.sql("SELECT label, COLUMNS('^dedup_') FROM samples").to_arrow_table()
    rows = {}
    for row in table.to_pylist():
        for key in ("dedup_group", "dedup_keeper"):
            row[key] = names.get(row[key])
        label = row.pop("label")
        rows[label] = {key.removeprefix("dedup_"): value for key, value in row.items()}
    return rows


def group_names(found: dict[str, dict[str, Any]]) -> set[frozenset[str]]:
    members = defaultdict(set)
    for name, row in found.items():
        members[row["group"]].add(name)
    return {frozenset(names) for names in members.values()}


def test_copies_are_one_group_and_pictures_that_only_look_alike_are_not(found: dict[str, dict[str, Any]]) -> None:
    first_words = defaultdict(set)
    for name in found:
        first_words[name.split()[0]].add(name)
    assert group_names(found) == {frozenset(names) for names in first_words.values()}
    assert {row["size"] for name, row in found.items() if name.startswith("astronaut")} == {9}
    assert found["cup original"] == {
        "group": "cup original", "size": 1, "keep": True, "keeper": "cup original", "reason": None, "turn": None,
        "distance": 0, "similarity": None, "captions": None,
    }  # fmt: skip


def test_every_row_says_why_it_is_a_copy_and_how_far_it_is_from_its_keeper(found: dict[str, dict[str, Any]]) -> None:
    (keeper,) = {row["keeper"] for name, row in found.items() if name.startswith("astronaut")}
    assert keeper == "astronaut brighter"  # the baseline of aesthetics likes light
    reasons = {name: row["reason"] for name, row in found.items() if row["reason"]}
    assert reasons["astronaut mirrored"] == reasons["astronaut rotated"] == "turned"
    assert found["astronaut mirrored"]["turn"] == "mirrored"
    assert found["astronaut rotated"]["turn"] == "rotated 270"  # turned back it looks like its keeper
    assert reasons["astronaut half"] == reasons["astronaut crop1"] == "pdq"
    assert reasons["bad again"] == "bytes"
    assert found["bad again"]["distance"] is None
    for name, row in found.items():
        assert row["keep"] == (row["keeper"] == name) == (row["reason"] is None)
        assert row["distance"] is None or 0 <= row["distance"] <= 31


def test_the_same_bytes_and_the_same_pixels_are_told_apart(store: Store) -> None:
    dedup(store, Settings(prefer=("label = 'astronaut original'",)))
    found = columns(store)
    assert found["astronaut bytes"]["reason"] == "bytes"
    assert found["astronaut pixels"]["reason"] == "pixels"
    assert found["astronaut pixels"]["distance"] == 0
    assert {row["keeper"] for name, row in found.items() if name.startswith("astronaut")} == {"astronaut original"}


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        (Settings(turned=False), {"astronaut mirrored", "astronaut rotated"}),
        (Settings(bits=-1), {"astronaut jpeg", "astronaut mirrored", "cat jpeg"}),
        (Settings(where="label <> 'astronaut half'"), {"astronaut half"}),
    ],
)
def test_settings_say_what_counts_as_a_copy(store: Store, settings: Settings, apart: set[str]) -> None:
    dedup(store, settings)
    found = columns(store)
    assert {name for name in apart if found[name]["group"] in (name, None)} == apart
    assert found["astronaut bytes"]["group"] == "astronaut original"


def test_colors_tell_pictures_apart_unless_they_may_differ(store: Store) -> None:
    dedup(store, Settings(color=255))
    assert columns(store)["tac otherside"]["group"] == "cat original"


def test_a_copy_that_the_policy_keeps_stands_for_a_better_one_that_it_drops(tmp_path: Path, made: Made) -> None:
    store = make(tmp_path, {"a-0": made["a-0"]})
    assert run(dataclasses.replace(recipe(tmp_path), policy=(("label", "label = 'astronaut jpeg'"),))) == 0
    dedup(store, Settings())
    found = columns(store)
    assert found["astronaut original"]["keeper"] == "astronaut jpeg"
    assert [name for name, row in found.items() if row["keep"] and name.startswith("astronaut")] == ["astronaut jpeg"]


def test_taking_it_back_leaves_no_trace_in_samples_and_every_part_in_the_store(store: Store) -> None:
    dedup(store, Settings())
    parts = list_parts(store.files)
    assert withdraw(store.files, "dedup")
    assert store.rows("SELECT count(dedup_group), count(dedup_keep) FROM samples") == [(0, 0)]
    assert list_parts(store.files) == parts
    assert not withdraw(store.files, "dedup")


def test_a_store_that_has_grown_gets_what_it_would_have_got_from_scratch(tmp_path: Path, made: Made) -> None:
    grown = make(tmp_path / "grown", {"b-0": made["b-0"]})
    dedup(grown, Settings())
    before = {row["group"] for row in columns(grown).values()}
    write(tmp_path / "grown" / "shards", {"a-0": made["a-0"]})
    assert run(recipe(tmp_path / "grown")) == 0
    scratch = make(tmp_path / "scratch", made)
    one, other = dedup(grown, Settings()), dedup(scratch, Settings())
    assert one.version == other.version
    assert columns(grown) == columns(scratch)
    assert {row["group"] for row in columns(grown).values()} != before
    tables = [read_table(s.files, groups.edges_path(o.version)) for s, o in ((grown, one), (scratch, other))]
    assert tables[0].equals(tables[1])
    count = len(list_parts(grown.files))
    assert dedup(grown, Settings()).version == one.version
    assert len(list_parts(grown.files)) == count


def test_the_edges_link_exactly_the_rows_of_each_group(store: Store) -> None:
    outcome = dedup(store, Settings())
    again = Forest(len(outcome.rows))
    again.join(outcome.edges.a, outcome.edges.b)
    assert (again.root == outcome.grouped.root).all()
    assert len(outcome.edges) == (outcome.grouped.size > 1).sum() - len(
        np.unique(outcome.grouped.root[outcome.grouped.size > 1])
    )
    (group,) = {row[0] for row in store.rows("SELECT dedup_group FROM samples WHERE label = 'cat original'")}
    assert [(edge["reason"], edge["distance"] <= 31) for edge in edges_of(store, group)] == [("pdq", True)]


def printed(call: Callable[[Console], None]) -> str:
    out = io.StringIO()
    call(Console(file=out, width=100))
    return out.getvalue()


def test_the_summary_counts_and_the_story_of_a_row_names_its_keeper_and_the_way_to_it(store: Store) -> None:
    outcome: Outcome = dedup(store, Settings())
    text = printed(lambda console: show(store, outcome, console))
    assert "22 rows: 10 are copies, in 3 groups; 12 are kept" in text
    ids = dict(store.rows("SELECT label, row_id FROM samples"))
    told = printed(lambda console: explain(store, ids["astronaut rotated"], console))
    assert f"{ids['astronaut rotated']} is one of 9 copies; {ids['astronaut brighter']} stands for it" in told
    assert "turned" in told
    assert "bits" in told.split("how they are linked:")[1]
    assert "has no copies" in printed(lambda console: explain(store, ids["cup original"], console))
    with pytest.raises(UsageError, match="no row 'x:1'"):
        explain(store, "x:1")
    withdraw(store.files, "dedup")
    with pytest.raises(UsageError, match="has not looked at it"):
        explain(store, ids["cup original"])


def test_captions_of_a_group_are_gathered_at_its_keeper(store: Store) -> None:
    dedup(store, Settings(pool_captions=True))
    found = columns(store)
    pooled = found["astronaut brighter"]["captions"]
    assert pooled[0] == "caption of astronaut brighter"
    assert len(pooled) == len(set(pooled)) == 9
    assert found["astronaut half"]["captions"] is None


# chains


def shifted(words: Words, bits: range) -> Words:
    out = words.copy()
    for bit in bits:
        out[0, bit // 32] ^= np.uint32(1 << (bit % 32))
    return out


def test_a_chain_is_one_group_and_the_keeper_linkage_drops_direct_copies_only(tmp_path: Path, made: Made) -> None:
    store = make(tmp_path, {"a-0": made["a-0"][:3]})
    first = np.random.default_rng(0).integers(0, 1 << 32, (1, 8), np.uint32)
    links = [first, shifted(first, range(20)), shifted(first, range(40))]
    hashes = [link.tobytes().hex() for link in links]
    (part,) = [part for part in list_parts(store.files) if part.version.operator == "identity"]
    table = read_table(store.files, part.path)
    rows = [
        row | {"sha256": f"{i:064x}", "pixels_hash": f"{i + 1:032x}", "pdq": hashes[i], "pdq_centred": hashes[i]}
        for i, row in enumerate(table.to_pylist())
    ]
    looks = [row | {"look": rows[0]["look"], "pdq_quality": 100} for row in rows]
    store.files.delete(part.path)
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(looks, schema=table.schema), out)
    store.files.create(part.path, out.getvalue())
    store.rebuild()
    rank = ("CASE row WHEN 0 THEN 3 WHEN 2 THEN 2 ELSE 1 END",)
    dedup(store, Settings(prefer=rank))
    assert store.rows("SELECT row, dedup_keep, dedup_reason, dedup_distance, dedup_size FROM samples ORDER BY row") == [
        (0, True, None, 0, 3), (1, False, "pdq", 20, 3), (2, False, "chain", 40, 3),
    ]  # fmt: skip
    dedup(store, Settings(prefer=rank, linkage="keeper"))
    assert store.rows("SELECT row, dedup_keep, dedup_reason, dedup_keeper FROM samples ORDER BY row") == [
        (0, True, None, "a-0:0"), (1, False, "pdq", "a-0:0"), (2, True, None, "a-0:2"),
    ]  # fmt: skip


# hashes


def everything(a: Ints, b: Ints, turn: Any) -> Any:
    return np.ones(len(a), np.bool_)


def with_neighbours(seed: int, rows: int) -> Words:
    """Random hashes; a third are copies of others with 0 to 40 bits changed, and there is a clump around the first."""
    random = np.random.default_rng(seed)
    words = random.integers(0, 1 << 32, (rows, 8), np.uint32)
    for at in range(rows * 2 // 3, rows):
        source = 0 if at % 4 == 0 else int(random.integers(0, at))
        flipped = random.choice(256, int(random.integers(0, 41)), replace=False)
        words[at] = words[source]
        for bit in flipped:
            words[at, bit // 32] ^= np.uint32(1 << (bit % 32))
    return words


@pytest.mark.parametrize("groups_", [10, 16])
def test_any_three_groups_of_bits_lie_in_just_one_block(groups_: int) -> None:
    counts: dict[tuple[int, ...], int] = defaultdict(int)
    for block in blocks(groups_):
        for three in combinations(block, 3):
            counts[three] += 1
    assert set(counts.values()) == {1}
    assert len(counts) == len(list(combinations(range(groups_), 3)))


@pytest.mark.parametrize("bits", [0, 12, 31])
@pytest.mark.parametrize("seed", [0, 1])
def test_near_hashes_are_found_as_by_comparing_every_pair(seed: int, bits: int) -> None:
    words = with_neighbours(seed, 600)
    a, b = np.triu_indices(len(words), 1)
    close = differing(words[a], words[b]) <= bits
    wanted, found = Forest(len(words)), Forest(len(words))
    wanted.join(a[close], b[close])
    near(words, [], bits, found, everything, threads=2)
    assert (found.root == wanted.root).all()
    edges = found.edges()
    assert (differing(words[edges.a], words[edges.b]) == edges.value).all()
    assert (edges.value <= bits).all()


def test_turned_hashes_are_found_as_by_comparing_every_pair() -> None:
    words = with_neighbours(3, 200)
    words[150:] = np.concatenate([turn_hashes(words[i : i + 1], i % 8) for i in range(50)])
    turns = [(turn, turn_hashes(words, turn)) for turn in (1, 2, 3, 4, 5, 7)]
    a, b = np.triu_indices(len(words), 1)
    wanted, found = Forest(len(words)), Forest(len(words))
    for turn in range(1, len(TURNS)):
        close = differing(words[a], turn_hashes(words, turn)[b]) <= 31
        wanted.join(a[close], b[close])
    near(words, turns, 31, found, everything, threads=2)
    assert (found.root == wanted.root).all()
    edges = found.edges()
    for a, b, turn, value in zip(edges.a, edges.b, edges.turn, edges.value, strict=True):
        assert differing(words[[a]], turn_hashes(words[[b]], int(turn)))[0] == value


def test_the_edges_do_not_depend_on_the_number_of_threads() -> None:
    words = with_neighbours(5, 400)
    forests = [Forest(len(words)) for _ in range(2)]
    for forest, threads in zip(forests, (1, 4), strict=True):
        near(words, [], 31, forest, everything, threads)
    one, other = (forest.edges() for forest in forests)
    assert all((getattr(one, name) == getattr(other, name)).all() for name in ("a", "b", "value"))


def test_a_clump_of_near_copies_costs_as_many_edges_as_it_has_rows() -> None:
    random = np.random.default_rng(0)
    words = np.repeat(random.integers(0, 1 << 32, (1, 8), np.uint32), 4000, axis=0)
    words[np.arange(4000), random.integers(0, 8, 4000)] ^= np.uint32(1) << random.integers(0, 32, 4000, np.uint32)
    forest = Forest(4000)
    near(words, [], 31, forest, everything, threads=2)
    assert not forest.root.any()
    assert len(forest.edges()) == 3999


def test_joins_are_those_of_a_plain_union_find() -> None:
    random = np.random.default_rng(0)
    forest, plain = Forest(300), list(range(300))
    for _ in range(5):
        a, b = random.integers(0, 300, (2, 60))
        forest.add(Edges.of(a, b, "pdq", np.zeros(60)))
        for x, y in zip(a, b, strict=True):
            low, high = sorted((plain[x], plain[y]))
            plain = [low if group == high else group for group in plain]
    assert forest.root.tolist() == plain
    assert len(forest.edges()) == 300 - len(set(plain))


# embeddings and captions


def with_embeddings(folder: Path, made: Made, vectors: dict[str, list[float] | None]) -> Store:
    """A store whose operator `embed` says what `vectors` has for a row's label."""

    def embed(recipe: Recipe) -> Any:
        return lambda samples: [
            {"embedding": vectors.get(sample.values["label"]), "embedding_model": "given", "embedding_revision": "1"}
            for sample in samples
        ]

    write(folder / "shards", made)
    given = Operator("embed", embed, lambda recipe: {"version": 1}, image="none", needs=("label",))
    path = [operator for operator in pipeline.PATH if operator.name != "embed"]
    display = Display(Console(file=io.StringIO()))
    assert pipeline.run(recipe(folder), path=(*path[:3], given, *path[3:]), display=display) == 0
    return Store(folder / "store")


def test_embeddings_make_semantic_copies(tmp_path: Path, made: Made) -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=(4, 32))
    base[3] = base[1] + 0.1 * random.normal(size=32)
    rows = [made["a-0"][0], made["a-0"][6], made["b-0"][5], made["b-0"][3]]
    vectors = {row[0]: list(map(float, vector)) for row, vector in zip(rows, base, strict=True)}
    store = with_embeddings(tmp_path, {"a-0": rows[:3], "b-0": rows[3:]}, dict(vectors))
    dedup(store, Settings())
    found = columns(store)
    assert found["astronau crop20"]["group"] == "cat original"
    (copy,) = [row for row in found.values() if not row["keep"]]
    expected = base[1] @ base[3] / np.linalg.norm(base[1]) / np.linalg.norm(base[3])
    assert copy["reason"] == "semantic"
    assert copy["similarity"] == pytest.approx(expected, abs=1e-3)
    dedup(store, Settings(semantic=0))
    assert all(row["keep"] for row in columns(store).values())


def test_rows_without_an_embedding_take_no_part_and_lengths_must_agree(tmp_path: Path, made: Made) -> None:
    rows = [made["a-0"][0], made["b-0"][5], made["a-0"][6]]
    vectors = {"astronaut original": [1.0, 0.0], "cup original": [1.0, 0.0]}
    store = with_embeddings(tmp_path / "one", {"a-0": rows}, dict(vectors))
    dedup(store, Settings())
    assert {name for name, row in columns(store).items() if row["size"] == 2} == set(vectors)
    dedup(store, Settings(where="label <> 'astronaut original'"))
    assert {row["size"] for row in columns(store).values()} == {None, 1}
    other = with_embeddings(tmp_path / "two", {"a-0": rows}, vectors | {"cat original": [1.0, 0.0, 0.0]})
    with pytest.raises(CurateError, match="different lengths"):
        dedup(other, Settings())


def test_planted_neighbours_are_found_across_cells() -> None:
    random = np.random.default_rng(0)
    count = ALL_PAIRS + 2000
    vectors = random.normal(size=(count, 24)).astype(np.float32)
    copies = np.arange(500)
    vectors[copies + 5000] = vectors[copies] + 0.1 * random.normal(size=(500, 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    forest = Forest(count)
    join_semantic(forest, Embeddings(vectors.astype(np.float16), np.arange(count)), 0.97)
    edges = forest.edges()
    cosines = (vectors[edges.a] * vectors[edges.b]).sum(axis=1)
    assert (cosines >= 0.969).all()
    near_ones = (vectors[copies] * vectors[copies + 5000]).sum(axis=1) >= 0.971
    assert (forest.root[copies + 5000] == forest.root[copies])[near_ones].mean() >= 0.99


def test_captions_that_say_nearly_the_same_are_joined_and_short_ones_are_not() -> None:
    captions = [
        "A red car is parked in front of a small white house, under a clear blue sky.",
        "a red car is parked in front of a small white house, under a clear blue sky",
        "A blue bus waits for its passengers at the corner of the market square.",
        "一只橘色的猫坐在木桌上,望着窗外的雨,旁边放着一杯热气腾腾的咖啡和一本书。",
        "一只橘色的猫坐在木桌上,望着窗外的雨,旁边放着一杯热气腾腾的咖啡和一本书",
        "a cat", "a cat", None,
    ]  # fmt: skip
    forest = Forest(len(captions))
    join_captions(forest, captions, 0.8)
    assert forest.root.tolist() == [0, 0, 2, 3, 3, 5, 6, 7]
    assert set(forest.edges().value >= 0.8) == {True}


def test_captions_of_one_template_cost_a_line_each_and_their_copies_are_still_found() -> None:
    random = np.random.default_rng(0)
    captions = ["a photograph that was bought from the stock agency, editorial use only"] * 3000
    for first, second in random.integers(0, 10**12, (1500, 2)).tolist():
        captions.append(f"a photograph number {first} of something {second} else")
    captions += [caption.replace("a photograph", "the photograph") for caption in captions[3000:3100]]
    forest = Forest(len(captions))
    join_captions(forest, captions, 0.8)
    assert set(forest.root[:3000]) == {0} and np.array_equal(forest.root[4500:], np.arange(3000, 3100))
    assert len(forest.edges()) == 2999 + 100


# the command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bits", "40"], "--bits 40"),
        (["--semantic", "2"], "--semantic 2"),
        (["--linkage", "all"], "group or keeper"),
        (["--color", "-5"], "--color -5"),
        (["--quality", "900"], "--quality 900"),
        (["--where", "random() < 0.5"], "repeatable"),
        (["--prefer", "random()"], "repeatable"),
        (["--where", "nonsense > 1"], "--where or --prefer"),
        (["--where", "false"], "no row to compare"),
        (["--explain", "a-0"], "write it as shard:row"),
    ],
)
def test_a_wrong_argument_is_one_line(store: Store, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["dedup", store.uri, *arguments])
    assert isinstance(result.exception, UsageError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_the_command_finds_shows_and_takes_back(store: Store) -> None:
    runner = CliRunner()
    assert "are copies" in runner.invoke(app, ["dedup", store.uri]).output
    assert runner.invoke(app, ["dedup", store.uri, "--undo"]).output == "taken back\n"
    assert runner.invoke(app, ["dedup", store.uri, "--undo"]).output == "nothing to take back\n"
