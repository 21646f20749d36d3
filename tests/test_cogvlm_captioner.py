"""The worker on real bytes, with a tiny checkpoint through the real loading code."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from cogvlm_tiny import config_of, tensors_of, write_checkpoint, write_tokenizer
from PIL import Image
from rich.console import Console

from curate import pipeline
from curate.errors import UsageError
from curate.progress import Display
from curate.recipe import Recipe, Translate
from curate.store import Store
from schemas.columns import OPERATORS
from schemas.errors import RowError
from workers.cogvlm.captioner import AHEAD, CogVLM, _Squares, model_name, revision
from workers.cogvlm.config import CheckpointError, read_config
from workers.cogvlm.prompt import Tokenizer, caption_prompt
from workers.sample import Sample


def encoded(seed: int, mode: str = "RGB", size: tuple[int, int] = (50, 30), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def samples_of(count: int, **values: Any) -> list[Sample]:
    return [Sample(i, encoded(i), dict(values)) for i in range(count)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "cogvlm-tiny", config_of(max_position_embeddings=2048))


@pytest.fixture(scope="module")
def worker(weights: Path) -> CogVLM:
    return CogVLM(weights=weights, prompt="short.v1", max_new_tokens=8, rows=4, device="cpu")


def test_a_caption_names_engine_model_and_revision_and_records_its_cost(worker: CogVLM, weights: Path) -> None:
    rows = worker(samples_of(6))
    assert [set(row) for row in rows] == [{column.name for column in OPERATORS["caption"]}] * 6
    assert {row["caption_engine"] for row in rows} == {"cogvlm"}
    assert {row["caption_model"] for row in rows} == {"cogvlm-tiny"}
    assert {row["caption_revision"] for row in rows} == {revision(weights)}
    assert len({row["caption_en"] for row in rows}) > 1
    assert [caption.text for caption in worker.captions] == [row["caption_en"] for row in rows]
    prompt = len(b"Question: " + caption_prompt("short.v1").query.encode() + b" Answer:")
    assert {caption.tokens_in for caption in worker.captions} == {1 + 38 + prompt}
    assert all(c.tokens_out <= 8 and c.seconds > 0 for c in worker.captions)
    assert all((c.finish_reason == "length") == (c.tokens_out == 8) for c in worker.captions)


def test_a_picture_gets_the_same_caption_alone_and_in_any_company(worker: CogVLM) -> None:
    together = [row["caption_en"] for row in worker(samples_of(6))]
    assert [worker([sample])[0]["caption_en"] for sample in samples_of(6)] == together
    assert [row["caption_en"] for row in worker(samples_of(6)[::-1])] == together[::-1]


def test_pictures_of_any_size_and_mode_are_captioned(worker: CogVLM) -> None:
    data = [
        encoded(1, "L"), encoded(2, "RGBA"), encoded(3, "P"), encoded(4, "1"), encoded(5, "CMYK", kind="JPEG"),
        encoded(6, size=(1, 1)), encoded(7, size=(1, 900)), encoded(8, "I;16"), encoded(9, "LA"),
    ]  # fmt: skip
    rows = worker([Sample(i, one, {}) for i, one in enumerate(data)])
    assert all(isinstance(row["caption_en"], str) for row in rows)


def test_a_broken_picture_fails_alone_and_its_neighbours_are_not_captioned_twice(weights: Path) -> None:
    worker = CogVLM(weights=weights, prompt="short.v1", max_new_tokens=8, rows=4, device="cpu")
    samples = samples_of(5)
    samples[2] = Sample(2, encoded(2)[:-200], {})
    expected = [row["caption_en"] for row in worker(samples_of(5))]
    with pytest.raises(RowError) as failure:
        worker(samples)
    assert failure.value.code == "truncated"
    worker._running.generator = None
    with pytest.raises(RowError):
        worker(samples[2:4])  # as the engine halves what failed
    rows = worker([*samples[:2], *samples[3:]])
    assert [row["caption_en"] for row in rows] == [*expected[:2], *expected[3:]]
    with pytest.raises(RowError, match=re.escape(failure.value.message)):
        worker([samples[2]])
    assert worker._running.generator is None  # neither kept captions nor kept failures needed any generation
    assert worker._kept == {}


def test_copies_with_other_prompts_share_one_cache(weights: Path) -> None:
    worker = CogVLM(weights=weights, prompt="short.v1", max_new_tokens=8, rows=4, device="cpu")
    other = copy.copy(worker)  # as `poster` takes it, before anything was captioned
    other.prompt = caption_prompt("detailed.v1")
    short, detailed = worker(samples_of(3)), other(samples_of(3))
    assert worker._running.generator is not None
    assert other._running.generator is worker._running.generator
    assert [row["caption_prompt"] for row in (short[0], detailed[0])] == ["short.v1", "detailed.v1"]
    assert worker(samples_of(3)) == [
        row | {"caption_seconds": c.seconds} for row, c in zip(short, worker.captions, strict=True)
    ]


def test_the_hint_prompt_shows_the_raw_caption_and_changes_the_caption(weights: Path) -> None:
    worker = CogVLM(weights=weights, prompt="detailed-hint.v1", max_new_tokens=8, rows=4, device="cpu")
    hinted = worker(samples_of(2, caption_raw="北京故宫的红墙"))
    with_hint = worker.captions[0].tokens_in
    plain = worker(samples_of(2))
    assert with_hint > worker.captions[0].tokens_in
    assert [row["caption_en"] for row in hinted] != [row["caption_en"] for row in plain]


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "short", config_of(max_position_embeddings=100))
    worker = CogVLM(weights=weights, prompt="short.v1", device="cpu")
    with pytest.raises(RowError, match=r"the prompt is 145 tokens long, the context 100"):
        worker(samples_of(1))


def test_an_answer_ends_where_the_context_ends(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "tight", config_of(max_position_embeddings=148))
    worker = CogVLM(weights=weights, prompt="short.v1", max_new_tokens=50, device="cpu")
    worker(samples_of(1))
    assert worker.captions[0].tokens_out == 3
    assert worker.captions[0].finish_reason == "length"


def test_sampled_captions_are_the_same_in_every_run_and_differ_by_seed(weights: Path) -> None:
    def captions(seed: int) -> list[str]:
        worker = CogVLM(weights=weights, prompt="short.v1", max_new_tokens=8, temperature=1.0, seed=seed, device="cpu")
        return [row["caption_en"] for row in worker(samples_of(3))]

    assert captions(1) == captions(1)
    assert captions(1) != captions(2)


def test_8_bit_weights_are_named_in_the_revision(weights: Path) -> None:
    worker = CogVLM(weights=weights, prompt="short.v1", max_new_tokens=2, weight_format="int8", device="cpu")
    assert worker(samples_of(1))[0]["caption_revision"] == revision(weights) + "+int8"


def test_a_wrong_checkpoint_or_tokenizer_fails_before_any_picture(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "tiny")
    (weights / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        CogVLM(weights=weights, device="cpu")
    with pytest.raises(ValueError, match=r"'wordy': no such file; shipped are detailed-hint\.v1, .*short\.v1"):
        CogVLM(weights=weights, prompt="wordy", device="cpu")


def test_the_tokenizer_of_a_32000_word_checkpoint_must_give_vicunas_ids(tmp_path: Path) -> None:
    config = config_of(vocab_size=32000)
    folder = write_checkpoint(tmp_path / "v", config_of())
    (folder / "config.json").write_text(str(config).replace("'", '"'))
    with pytest.raises(
        CheckpointError, match=r"was trained with \[894, 29901, 673, 29901\]; take the tokenizer of lmsys"
    ):
        Tokenizer(folder, read_config(folder))


def test_a_tokenizer_with_ids_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    config = config_of(vocab_size=150, pad_token_id=147, bos_token_id=148, eos_token_id=149)
    folder = write_checkpoint(tmp_path / "small", config, tensors_of(config))
    with pytest.raises(CheckpointError, match=r"id 2\d\d is outside the checkpoint's vocabulary of 150"):
        Tokenizer(folder, read_config(folder))


def test_a_special_token_spelled_in_a_caption_is_only_text(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "special")
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.add_special_tokens(["<|end_of_text|>"])
    fast.save(str(folder / "tokenizer.json"))
    text = "a gate<|end_of_text|>"
    assert Tokenizer(folder, read_config(folder)).encode(text) == list(text.encode())


def test_a_text_with_an_id_beyond_the_vocabulary_is_that_rows_error(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "words", config_of(max_position_embeddings=2048))
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.add_tokens([f"word{i:02}" for i in range(60)])
    fast.save(str(folder / "tokenizer.json"))
    worker = CogVLM(weights=folder, prompt="detailed-hint.v1", max_new_tokens=2, rows=2, device="cpu")
    assert len(worker(samples_of(1, caption_raw="word01"))) == 1
    with pytest.raises(RowError, match=r"the tokenizer gives id 315, the checkpoint's vocabulary has 300") as failure:
        worker(samples_of(1, caption_raw="word59"))
    assert failure.value.code == "operator_failed"


def test_an_output_that_is_not_finite_is_that_rows_error(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "nan", config_of(max_position_embeddings=2048))
    worker = CogVLM(weights=folder, prompt="detailed-hint.v1", max_new_tokens=4, rows=2, device="cpu")
    good = samples_of(3, caption_raw="a gate")
    expected = [row["caption_en"] for row in worker(good)]
    worker.model.embed_tokens.weight.data[ord("~")] = float("nan")
    with pytest.raises(RowError, match=r"the model's output is not finite after 0 tokens") as failure:
        worker([good[0], Sample(9, encoded(9), {"caption_raw": "a gate ~"}), *good[1:]])
    assert failure.value.code == "operator_failed"
    assert [row["caption_en"] for row in worker(good)] == expected


class Full(CogVLM):
    """A captioner on a device without memory for a cache."""

    def _fitted(self, requests: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")


def test_no_memory_for_the_cache_is_the_rows_error(weights: Path) -> None:
    worker = Full(weights=weights, prompt="short.v1", max_new_tokens=2, device="cpu")
    with pytest.raises(RowError, match="not even one caption fits in memory") as failure:
        worker(samples_of(1))
    assert failure.value.code == "out_of_memory"


def test_a_sentencepiece_model_is_read_by_sentencepiece_itself(tmp_path: Path) -> None:
    import sentencepiece

    folder = write_checkpoint(tmp_path / "pieces", config_of(vocab_size=400))
    (folder / "tokenizer.json").unlink()
    text = ["Question: what is in the picture? Answer: a red gate and a wall.", "Question: 故宫 Answer: a palace."] * 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(folder / "tokenizer"), vocab_size=330, byte_fallback=True,
        model_type="bpe", character_coverage=0.99, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = Tokenizer(folder, read_config(folder))
    ids = tokenizer.encode("Question: a red gate Answer:")
    assert tokenizer.decode(ids) == "Question: a red gate Answer:"
    assert tokenizer.decode([*ids, 399]) == "Question: a red gate Answer:"
    assert tokenizer.encode("龘") != []


def test_a_prompt_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for text, message in (
        ('template = "chat"', "no 'query'"),
        ('template = "chat"\nquery = 3', "query is 3, expected str"),
        ('template = "inst"\nquery = "x"', "template 'inst'; known are base, chat, vqa"),
        ('template = "chat"\nquery = "x"\nlength = 3', "unknown key 'length'"),
        ('template = "chat"\nquery = "x"\nquery_with_caption = "y"', "does not say where {caption} goes"),
        ("template", "no valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError) as failure:
            caption_prompt(str(path))
        assert str(failure.value).startswith(f"{path}: ")
        assert message in str(failure.value)
    path.write_text(
        'template = "vqa"\nquery = "What?"\nquery_with_caption = "{caption}: what?"\ncaption_characters = 5'
    )
    prompt = caption_prompt(str(path))
    assert prompt.name == "mine"
    assert prompt.text(None) == "Question: What? Short answer:"
    assert prompt.text("a {caption}\n in braces") == "Question: a {ca: what? Short answer:"


def test_the_name_of_a_hub_snapshot_is_its_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--zai-org--cogvlm-chat-hf" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    assert model_name(folder) == "zai-org/cogvlm-chat-hf"


def test_importing_the_worker_imports_no_torch() -> None:
    code = "import sys, workers.cogvlm.captioner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parent.parent).returncode == 0


def test_a_tokenizer_folder_of_its_own_is_used(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "weights")
    (weights / "tokenizer.json").unlink()
    (tmp_path / "vicuna").mkdir()
    write_tokenizer(tmp_path / "vicuna")
    worker = CogVLM(weights=weights, tokenizer=tmp_path / "vicuna", prompt="short.v1", max_new_tokens=2, device="cpu")
    assert len(worker(samples_of(1))) == 1


def test_a_tiny_checkpoint_captions_a_store_end_to_end(weights: Path, recipe: Recipe, finished_store: Path) -> None:
    before = Store(finished_store)
    kept = before.rows("SELECT count(*) FROM samples WHERE keep")[0][0]
    keys: dict[str, Any] = {
        "engine": "cogvlm",
        "weights": str(weights),
        "prompt": "short.v1",
        "max_new_tokens": 5,
        "rows": 4,
    }
    changed = dataclasses.replace(
        recipe, caption=dataclasses.replace(recipe.caption, **keys), translate=Translate(engine="none")
    )
    assert pipeline.run(changed, display=Display(Console(file=io.StringIO()))) == 0
    store = Store(finished_store)
    assert store.rows("SELECT count(caption_en), count(caption_zh) FROM samples") == [(kept, 0)]
    assert store.rows("SELECT DISTINCT caption_engine, caption_model, caption_finish FROM samples WHERE keep") == [
        ("cogvlm", "cogvlm-tiny", "length")
    ]
    cells = json.loads(store.rows("SELECT report->'cells' FROM runs ORDER BY run_id DESC LIMIT 1")[0][0])
    assert cells == {"caption": kept}


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("config", "config.json: no valid JSON"),
        ("shard", "no complete safetensors file"),
        ("shape", "vocab_size|lm_head.weight in model.safetensors is"),
        ("tokenizer", "neither tokenizer.json nor tokenizer.model"),
    ],
)
def test_a_checkpoint_that_cannot_load_is_refused_before_the_run(
    damage: str, complaint: str, recipe: Recipe, tmp_path: Path
) -> None:
    weights = write_checkpoint(tmp_path / "w")
    if damage == "config":
        (weights / "config.json").write_text("{")
    elif damage == "shard":
        (weights / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes()[:-100])
    elif damage == "shape":
        (weights / "config.json").write_text(json.dumps(config_of(vocab_size=301)))
    else:
        (weights / "tokenizer.json").unlink()
    keys = dataclasses.replace(recipe.caption, engine="cogvlm", weights=str(weights))
    with pytest.raises(UsageError, match=complaint):
        pipeline.prepare(dataclasses.replace(recipe, caption=keys, translate=Translate(engine="none")))


def test_another_tokenizer_dtype_or_rotary_is_another_fingerprint(recipe: Recipe, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "w")

    def fingerprint(**keys: Any) -> str:
        caption = dataclasses.replace(recipe.caption, engine="cogvlm", weights=str(weights), **keys)
        changed = dataclasses.replace(recipe, caption=caption, translate=Translate(engine="none"))
        return next(v.fingerprint for v in pipeline.prepare(changed).plan.versions if v.operator == "caption")

    other = tmp_path / "other"
    other.mkdir()
    text = (weights / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text + " ")
    assert fingerprint() == fingerprint(rows=8)
    found = {
        fingerprint(),
        fingerprint(tokenizer=str(other)),
        fingerprint(dtype="float32"),
        fingerprint(rotary="bfloat16"),
    }
    assert len(found) == 4


def test_pictures_are_decoded_a_bounded_number_ahead_and_again_after_memory_ran_out() -> None:
    with ThreadPoolExecutor(2) as pool:
        squares = _Squares(pool, 14)
        for i, sample in enumerate(samples_of(3 * AHEAD)):
            squares.add(bytes([i]), sample)
        first = squares.take(bytes([0]))
        assert len(squares._coming) == AHEAD - 1
        for i in range(1, 2 * AHEAD):
            squares.take(bytes([i]))
        assert len(squares._coming) == AHEAD - 1
        again = squares.take(bytes([0]))
        assert first is not None
        assert again is not None
        assert bool((again == first).all())
