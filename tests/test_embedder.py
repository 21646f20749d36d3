"""Embeddings, heads, concepts and caption similarity, on tiny checkpoints of the published layouts."""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from clip_tiny import write_clip, write_head, write_siglip
from PIL import Image
from rich.console import Console

from curate import pipeline
from curate.errors import UsageError
from curate.progress import Display
from curate.recipe import Embed, Recipe, from_tables
from curate.store import Store
from schemas.errors import RowError
from workers.embedder import (
    Aesthetic,
    Concepts,
    Embedder,
    OpenClip,
    Siglip,
    Similarity,
    WeightsError,
    fold,
    revision,
    taxonomy,
)
from workers.sample import Sample
from workers.sentences import sentences

torch.set_num_threads(1)


def encoded(seed: int, size: tuple[int, int] = (90, 50)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, "PNG")
    return file.getvalue()


def samples_of(count: int, **values: Any) -> list[Sample]:
    return [Sample(i, encoded(i), dict(values)) for i in range(count)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder, quick_gelu=False)
    return write_clip(folder)


@pytest.fixture(scope="module")
def clip(weights: Path) -> OpenClip:
    return OpenClip(weights, str(weights.with_name("tiny-quickgelu.json")))


def test_vectors_are_those_of_open_clip_with_its_own_transform(clip: OpenClip, weights: Path) -> None:
    import open_clip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _, transform = open_clip.create_model_and_transforms("tiny-quickgelu", pretrained=str(weights))
    samples = samples_of(5)
    pixels = torch.stack([transform(Image.open(io.BytesIO(sample.bytes)).convert("RGB")) for sample in samples])
    with torch.inference_mode():
        expected = model.eval().encode_image(pixels, normalize=True).numpy()
        words = model.encode_text(open_clip.get_tokenizer("tiny-quickgelu")(["a red gate"]), normalize=True).numpy()
    embedder = Embedder(clip, rows=2)
    found = embedder.images(samples)
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(embedder.texts(["a red gate"]) - words).max() < 1e-6


def test_plain_gelu_gives_other_vectors_and_is_refused_for_openai_s_weights(
    clip: OpenClip, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = OpenClip(weights, str(weights.with_name("tiny-gelu.json")))
    samples = samples_of(4)
    assert np.abs(Embedder(clip).images(samples) - Embedder(other).images(samples)).max(-1).min() > 1e-3
    (tmp_path / "table.toml").write_text(
        f'[clip-vit-l-14]\nabout = "x"\nrepo = "a/b"\nfiles = {{ "{weights.name}" = "" }}\nfile = "{weights.name}"\n'
        'bytes = 1\noperators = ["embed.weights"]\nlicence = "MIT"\narchitecture = "ViT-L-14-quickgelu"\n'
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "clip-vit-l-14").symlink_to(weights.parent)
    monkeypatch.setenv("CURATE_MODELS_TABLE", str(tmp_path / "table.toml"))
    monkeypatch.setenv("CURATE_MODELS", str(tmp_path / "models"))
    recipe = from_tables({"input": {"uri": "x"}, "store": {"uri": "y"}})
    for architecture, refused in (("ViT-L-14", True), ("ViT-L-14-quickgelu", False)):
        keys = Embed(engine="open_clip", architecture=architecture)
        if refused:
            with pytest.raises(UsageError, match=r"trained with QuickGELU.*use ViT-L-14-quickgelu"):
                pipeline._embed_facts(dataclasses.replace(recipe, embed=keys))
        else:
            assert pipeline._embed_facts(dataclasses.replace(recipe, embed=keys))["model"] == architecture


@pytest.mark.parametrize(
    ("numbers", "prefix"), [((), ""), ((0, 2, 4, 6, 7), "layers"), ((0, 2, 4, 6, 8), "scoring_head")]
)
def test_a_folded_head_scores_as_its_layers_do(numbers: tuple[int, ...], prefix: str, tmp_path: Path) -> None:
    head = write_head(tmp_path / "head.pth", 16, numbers, prefix)
    tensors = torch.load(head, weights_only=True)
    x = torch.nn.functional.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)))
    expected = x
    for number in numbers or (None,):
        name = "" if number is None else f"{prefix}.{number}."
        expected = torch.nn.functional.linear(expected, tensors[f"{name}weight"], tensors[f"{name}bias"])
    weight, bias = fold(head)
    scale = float(expected.abs().max())
    assert np.abs(x.double().numpy() @ weight + bias - expected[:, 0].numpy()).max() < 1e-5 * scale


def test_the_published_v2_head_folded_equals_its_mlp_within_1e_4(shared: Path) -> None:
    path = shared / "weights" / "sac+logos+ava1-l14-linearMSE.pth"
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    x = torch.nn.functional.normalize(torch.randn(200, 768, generator=torch.Generator().manual_seed(0)))
    expected = x
    for number in (0, 2, 4, 6, 7):
        expected = torch.nn.functional.linear(
            expected, tensors[f"layers.{number}.weight"], tensors[f"layers.{number}.bias"]
        )
    weight, bias = fold(path)
    assert np.abs(x.double().numpy() @ weight + bias - expected[:, 0].numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("relu", "layers [0, 3, 6, 9, 11] are no known aesthetic head"),
        ("garbage", "no weights"),
        ("absent", "no such file"),
        ("other", "belongs to no aesthetic head"),
    ],
)
def test_a_file_that_is_no_affine_head_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    if content == "relu":
        write_head(path, 16, (0, 3, 6, 9, 11))
    elif content == "garbage":
        path.write_bytes(b"garbage" * 100)
    elif content == "other":
        torch.save({"encoder.weights": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=re.escape(complaint)):
        fold(path)


def test_siglip_s_head_scores_its_pooled_vectors(tmp_path: Path) -> None:
    folder = write_siglip(tmp_path / "siglip")
    head = write_head(tmp_path / "v2.5.pth", 24, (0, 2, 4, 6, 8), "scoring_head")
    samples = samples_of(3)
    rows = Aesthetic(Embedder(Siglip(folder)), head, "siglip-v2.5")(samples)
    assert {row["aesthetic_engine"] for row in rows} == {"siglip-v2.5"}
    from transformers import SiglipImageProcessorPil, SiglipModel

    model, processor = SiglipModel.from_pretrained(folder), SiglipImageProcessorPil.from_pretrained(folder)
    pictures = [Image.open(io.BytesIO(sample.bytes)) for sample in samples]
    with torch.inference_mode():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        pooled = torch.nn.functional.normalize(model.vision_model(pixel_values=pixels).pooler_output)
    weight, bias = fold(head)
    expected = pooled.double().numpy() @ weight + bias
    assert np.abs(np.array([row["aesthetic"] for row in rows]) - expected).max() < 1e-4
    with pytest.raises(WeightsError, match="the head takes 16 numbers, the embedding has 24"):
        Aesthetic(Embedder(Siglip(folder)), write_head(tmp_path / "v1.pth", 16, ()), "laion-v1")(samples)


def test_a_broken_picture_costs_its_neighbours_nothing(clip: OpenClip) -> None:
    embedder = Embedder(clip)
    samples = [*samples_of(3), Sample(3, encoded(3)[:60], {})]
    with pytest.raises(RowError) as failure:
        embedder.images(samples)
    assert failure.value.code in ("truncated", "corrupt")
    assert embedder.computed == 3
    embedder.images(samples[:3])
    assert embedder.computed == 3


def test_concepts_are_chosen_by_the_mean_vector_of_their_phrases(clip: OpenClip, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(
        'templates = ["{}"]\n[concepts]\na = ["red gate"]\nb = ["green sea", "blue sky"]\n'
        '[flags.watermark]\nyes = ["mark"]\nno = ["clean"]\n'
    )
    embedder = Embedder(clip)
    samples = samples_of(6)
    rows = Concepts(embedder, taxonomy(str(tmp_path / "two.toml")))(samples)
    a, *b = embedder.texts(["red gate", "green sea", "blue sky"])
    mean = np.mean(b, 0)
    both = np.stack([a, mean / np.linalg.norm(mean)])
    scores = 100 * embedder.images(samples) @ both.T
    for row, score in zip(rows, scores, strict=True):
        assert row["clip_concept"] == "ab"[int(score.argmax())]
        assert row["clip_concept_score"] == pytest.approx(1 / (1 + np.exp(-abs(score[0] - score[1]))), abs=1e-4)
        assert 0 <= row["clip_watermark"] <= 1
        assert row["clip_nsfw"] is None
    shipped = taxonomy("concepts.v1")
    assert len(shipped.concepts) == 14
    assert set(shipped.flags) == {"nsfw", "watermark"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[concepts]\na = ['x']\nb = ['y']", "templates must be"),
        ("templates = ['{}']\n[concepts]\na = ['x']", "two or more"),
        ("templates = ['{}']\n[concepts]\na = ['x']\nb = ['y']\n[flags.n]\nyes = ['z']", "a flag is a section"),
        ("templates = [", "no valid TOML"),
    ],
)
def test_a_taxonomy_that_is_odd_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(WeightsError, match=complaint):
        taxonomy(str(tmp_path / "t.toml"))
    with pytest.raises(WeightsError, match=r"shipped are concepts\.v1"):
        taxonomy("nope")


def test_a_long_caption_is_scored_sentence_by_sentence(clip: OpenClip) -> None:
    embedder = Embedder(clip)
    caption = "A red gate stands open. Mr. Li walks past it! Is it 3.5 m wide?"
    (row, bare, chinese) = Similarity(embedder)(
        [
            Sample(0, encoded(0), {"caption_raw": "gate", "caption_en": caption}),
            Sample(1, encoded(1), {"caption_raw": None, "caption_en": " "}),
            Sample(2, encoded(2), {"caption_raw": "一座红色的大门", "caption_en": None}),
        ]
    )
    vector = embedder.images(samples_of(1))[0]
    expected = [float(vector @ meaning) for meaning in embedder.texts(sentences(caption))]
    assert row["similarity_en_sentences"] == pytest.approx(expected, abs=1e-4)
    assert row["similarity_en"] == pytest.approx(sum(expected) / 3, abs=1e-4)
    assert row["similarity_en_least"] == pytest.approx(min(expected), abs=1e-4)
    assert row["similarity_raw"] == pytest.approx(float(vector @ embedder.texts(["gate"])[0]), abs=1e-4)
    assert set(bare.values()) == set(chinese.values()) == {None}  # CLIP's text tower knows no Chinese


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat. A dog.", ["A cat.", "A dog."]),
        ('He said "No." Then left.', ['He said "No."', "Then left."]),
        ("Dr. Wu paid 3.50 at St. Mary, e.g. cash. Fine.", ["Dr. Wu paid 3.50 at St. Mary, e.g. cash.", "Fine."]),
        ("J. R. Smith and I. Then more", ["J. R. Smith and I.", "Then more"]),
        ("红门开着。门前有人！“好。”他说", ["红门开着。", "门前有人！", "“好。”", "他说"]),
        ("one\n\ntwo", ["one", "two"]),
        ("  ", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_the_revision_changes_with_the_weights(weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / weights.name
    data = bytearray(weights.read_bytes())
    copy.write_bytes(data)
    assert revision(copy) == revision(weights)
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    assert revision(copy) != revision(weights)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_weights_that_do_not_fit_are_one_clear_line(damage: str, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    if damage == "cut":
        path.write_bytes(weights.read_bytes()[:-50])
        architecture = str(weights.with_name("tiny-quickgelu.json"))
    else:
        path.write_bytes(weights.read_bytes())
        architecture = "ViT-B-32-quickgelu"
    with pytest.raises(WeightsError) as refusal:
        OpenClip(path, architecture)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_run_scores_by_siglip_s_head(
    captioned: Callable[..., Recipe], quiet: Callable[[], Display], tmp_path: Path
) -> None:
    folder = write_siglip(tmp_path / "siglip")
    head = write_head(tmp_path / "v2.5.pth", 24, (0, 2, 4, 6, 8), "scoring_head")
    recipe = captioned(
        [None] * 3, embed={"dtype": "float32"},
        aesthetic={"engine": "siglip-v2.5", "weights": str(head), "backbone": str(folder)},
    )  # fmt: skip
    assert pipeline.run(recipe, display=quiet()) == 0
    rows = Store(recipe.store.uri).rows("SELECT aesthetic, aesthetic_engine FROM samples ORDER BY row")
    data = pq.read_table(Path(recipe.input.uri) / "a.parquet")["image"].to_pylist()
    alone = Aesthetic(Embedder(Siglip(folder)), head, "siglip-v2.5")([Sample(i, d, {}) for i, d in enumerate(data)])
    assert [row[0] for row in rows] == pytest.approx([row["aesthetic"] for row in alone], abs=1e-5)
    assert {row[1] for row in rows} == {"siglip-v2.5"}


def test_a_run_embeds_scores_and_compares_with_one_pass_through_the_model(
    weights: Path, recipe: Recipe, finished_store: Path, tmp_path: Path
) -> None:
    head = write_head(tmp_path / "head.pth", 16, (0, 2, 4, 6, 7))
    changed = dataclasses.replace(
        recipe,
        embed=Embed(
            engine="open_clip", weights=str(weights), architecture=str(weights.with_name("tiny-quickgelu.json")),
            dtype="float32",
        ),
        aesthetic=dataclasses.replace(recipe.aesthetic, engine="laion-v2", weights=str(head)),
    )  # fmt: skip
    assert pipeline.run(changed, display=Display(Console(file=io.StringIO()))) == 0
    store = Store(finished_store)
    kept = store.rows("SELECT count(*) FROM samples WHERE keep")[0][0]
    assert kept
    assert store.rows(
        "SELECT count(aesthetic), count(clip_concept), count(similarity_raw), count(similarity_en), "
        "count(DISTINCT aesthetic_engine) FROM samples WHERE keep"
    ) == [(kept, kept, kept, kept, 1)]
    part = next(path for path in finished_store.glob("parts/embed@*/*.parquet"))
    table = pq.read_table(part)
    vectors = np.stack([np.asarray(v, np.float32) for v in table["embedding"].to_pylist() if v])
    assert vectors.shape[1] == 16
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-2
    assert "embedding" not in [row[0] for row in store.rows("DESCRIBE samples")]
