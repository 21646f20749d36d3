"""Captions by transformers, on a tiny LLaVA of the published layout."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cogvlm_tiny import write_tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file

from curate import pipeline
from curate.progress import Display
from curate.recipe import Recipe
from curate.store import Store
from schemas.columns import OPERATORS
from schemas.errors import RowError
from workers.cogvlm.prompt import caption_prompt
from workers.embedder import WeightsError
from workers.quality import without_opening
from workers.sample import Sample
from workers.vlm import TransformersCaptioner, _picture

torch.set_num_threads(1)
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("vlm") / "llava-tiny"
    folder.mkdir()
    write_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<end>", pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(3)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def captioner(weights: Path, rows: int = 3, **options: object) -> TransformersCaptioner:
    return TransformersCaptioner(
        weights, caption_prompt("detailed-hint.v1"), name="tiny", revision="1", max_new_tokens=6, rows=rows,
        dtype="float32", device="cpu", **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_caption_does_not_depend_on_its_batch_though_prompts_differ_in_length(weights: Path) -> None:
    samples = [Sample(i, encoded(i), {"caption_raw": "a gate " * i}) for i in range(4)]
    together = captioner(weights, rows=4)(samples)
    alone = [captioner(weights, rows=1)([sample])[0] for sample in samples]
    assert [row["caption_en"] for row in together] == [row["caption_en"] for row in alone]
    assert [row["caption_tokens_in"] for row in together] == [row["caption_tokens_in"] for row in alone]
    assert {row["caption_finish"] for row in together} <= {"length", "stop"}
    assert all(set(row) == {column.name for column in OPERATORS["caption"]} for row in together)


def test_a_broken_picture_costs_its_neighbours_nothing(weights: Path) -> None:
    caption = captioner(weights)
    samples = [Sample(0, encoded(0), {}), Sample(1, encoded(1)[:90], {}), Sample(2, encoded(2), {})]
    first, broken, last = caption(samples)
    assert isinstance(broken, RowError)
    alone = caption([samples[0], samples[2]])
    assert [row["caption_en"] for row in (first, last)] == [row["caption_en"] for row in alone]


def test_a_batch_that_does_not_fit_in_memory_is_halved_and_large_pictures_are_shown_smaller(weights: Path) -> None:
    caption = captioner(weights, rows=4, max_side_px=32)
    generate, seen = caption._model.generate, []

    def tight(**inputs: Any) -> Any:
        seen.append(len(inputs["input_ids"]))
        if seen[-1] > 2:
            raise RuntimeError("CUDA out of memory")
        return generate(**inputs)

    caption._model.generate = tight
    samples = [Sample(i, encoded(i), {}) for i in range(5)]
    assert len(caption(samples)) == 5
    assert seen == [4, 2, 2, 1]
    assert _picture(samples[0], 32).size == (32, 21)


def test_a_run_captions_by_a_model_of_transformers(
    weights: Path, captioned: Callable[..., Recipe], quiet: Callable[[], Display]
) -> None:
    keys = {"engine": "transformers", "weights": str(weights), "dtype": "float32", "max_new_tokens": 6, "rows": 2}
    recipe = captioned(["a gate", None, "two dogs"], caption={**keys, "prompt": "detailed-hint.v1", "attempts": 1})
    recipe = replace(recipe, quality=replace(recipe.quality, engine="rules"))
    assert pipeline.run(recipe, display=quiet()) == 0
    store = Store(recipe.store.uri)
    found = store.rows("SELECT caption_en, caption_engine, caption_model, caption_tokens_out FROM samples ORDER BY row")
    data = pq.read_table(Path(recipe.input.uri) / "a.parquet").to_pylist()
    samples = [Sample(i, row["image"], {"caption_raw": row["caption"]}) for i, row in enumerate(data)]
    alone = [without_opening(row["caption_en"])[0] for row in captioner(weights)(samples)]
    assert [row[0] for row in found] == alone
    assert {row[1:3] for row in found} == {("transformers", "llava-tiny")}
    # Babble is asked for again, and says in the end what is wrong with it.
    assert store.rows("SELECT count(caption_en_reason), min(len(caption_attempts)) FROM samples") == [(3, 1)]
    smaller = replace(recipe, caption=replace(recipe.caption, max_side_px=64))
    cells = {version.operator: version.fingerprint for version in pipeline.prepare(recipe).plan.versions}
    others = {version.operator: version.fingerprint for version in pipeline.prepare(smaller).plan.versions}
    assert {name for name in cells if cells[name] != others[name]} == {"caption", "quality"}


def test_a_folder_that_does_not_load_is_one_clear_line(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot load it"):
        captioner(tmp_path)
    folder = Path(shutil.copytree(weights, tmp_path / "lacking"))
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if "q_proj" in name)]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"weights missing .*q_proj"):
        captioner(folder)
    folder = Path(shutil.copytree(weights, tmp_path / "mute"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(WeightsError, match="no chat template"):
        captioner(folder)
