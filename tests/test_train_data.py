from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_tiny import BUCKETS, console, make_mix, recipe

from curate.errors import UsageError
from curate.mix.pixels import cropped
from curate.pictures import originals
from curate.store import Store
from curate.train import loop, models, run, text
from curate.train.data import Batch, PhaseData, Place, items, seed_of
from curate.train.export import export_model
from curate.train.grid import Sampled
from curate.train.keyed import generator, mixed
from curate.train.latents import encode
from curate.train.log import read_metrics
from curate.train.scores import clip_score, kid_score
from curate.train.text import load_text, padded
from curate.train.tiny import VAE, make_tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def data(mix: Path, base: Path, cache: Path, rank: int = 0, world: int = 1, **sections: Any) -> PhaseData:
    places = {"cache": str(cache)} | sections.pop("data", {})
    wanted = recipe(cache.parent / "out", mix, model={"base": str(base)}, data=places, **sections)
    place = Place(rank, world, CPU)
    return PhaseData(wanted, 0, str(mix), loop.load_tools(wanted, base, place), place)


def same(a: Batch, b: Batch) -> bool:
    return a.row_ids == b.row_ids and all(torch.equal(getattr(a, name), getattr(b, name)) for name in Batch.TENSORS)


def test_a_step_is_a_function_of_its_number(train_mix: Path, train_base: Path, tmp_path: Path) -> None:
    forward = data(train_mix, train_base, tmp_path / "a")
    streamed = list(forward.stream(0, 9))
    backward = data(train_mix, train_base, tmp_path / "b")
    asked = {step: backward.batch(step) for step in reversed(range(9))}
    assert [batch.step for batch in streamed] == list(range(9))
    assert all(same(batch, asked[batch.step]) for batch in streamed)
    assert not same(streamed[0], streamed[1])


def test_ranks_share_out_the_step_of_one(train_mix: Path, train_base: Path, tmp_path: Path) -> None:
    whole = data(train_mix, train_base, tmp_path / "cache")
    ranks = [data(train_mix, train_base, tmp_path / "cache", rank, 2) for rank in (0, 1)]
    for step in range(6):
        one, parts = whole.batch(step), [rank.batch(step) for rank in ranks]
        assert one.row_ids == parts[0].row_ids + parts[1].row_ids
        assert parts[0].bucket == parts[1].bucket == one.bucket
        for name in Batch.TENSORS:
            assert torch.equal(getattr(one, name), torch.cat([getattr(part, name) for part in parts]))


def test_an_epoch_serves_each_row_once_but_for_those_left_over(
    train_mix: Path, train_base: Path, tmp_path: Path
) -> None:
    found = data(train_mix, train_base, tmp_path / "cache")
    for epoch in range(2):
        steps = range(found.rows.steps(epoch))
        served = [row for step in steps for row in found.rows.batch(epoch, step)["row_id"]]
        assert len(served) == len(set(served)) == len(found.rows.bucket) - found.rows.left_over(epoch)
    assert [found.place_of(step) for step in (0, len(steps) - 1, len(steps))] == [(0, 0), (0, len(steps) - 1), (1, 0)]


@pytest.mark.parametrize("crop", ["center", "random"])
def test_the_latent_shows_the_crop_that_is_reported(
    train_mix: Path, train_base: Path, finished_once: Path, tmp_path: Path, crop: str
) -> None:
    from PIL import Image

    from workers.picture import Limits, decode

    found = data(train_mix, train_base, tmp_path / "cache", data={"crop": crop})
    batch = found.batch(1)
    rows = items(found.rows.batch(*found.place_of(1)))
    bytes_of = originals(Store(str(finished_once / "store")), batch.row_ids)
    sharp = 0
    for number, item in enumerate(rows):
        raw = bytes_of[item["row_id"]]
        assert isinstance(raw, bytes)
        rgb = decode(raw, Limits()).rgb
        assert tuple(item["original_size"]) == rgb.shape[:2]
        (height, width), (top, left), (tall, wide) = item["resized"], item["crop"], item["target_size"]
        assert batch.time_ids[number].tolist() == [*rgb.shape[:2], top, left, tall, wide]
        resized = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS))
        cut = torch.from_numpy(resized[top : top + tall, left : left + wide].copy()).permute(2, 0, 1)
        again = encode(found.tools.vae, cut, item["row_id"])
        elsewhere = encode(found.tools.vae, cut.roll(5, 2), item["row_id"])
        apart = float((again.mean - batch.mean[number]).abs().mean())
        # The loader's resampling filter is its own; the place of the cut is what matters. Some pictures are flat.
        other = float((elsewhere.mean - batch.mean[number]).abs().mean())
        assert apart <= 0.5 * other
        sharp += other > 0.05
        if crop == "center":
            assert (left, top) == cropped((width, height), (wide, tall), None)
    assert sharp


def test_a_second_epoch_encodes_nothing_again(train_mix: Path, train_base: Path, tmp_path: Path) -> None:
    first = data(train_mix, train_base, tmp_path / "cache")
    steps = first.rows.steps(0) + first.rows.steps(1)
    list(first.stream(0, steps))
    assert first.tools.encoded > 0
    second = data(train_mix, train_base, tmp_path / "cache")
    list(second.stream(0, steps))
    assert second.tools.encoded == 0
    some = next((tmp_path / "cache" / "latents").rglob("*.safetensors"))
    some.write_bytes(some.read_bytes()[:100])
    third = data(train_mix, train_base, tmp_path / "cache")
    list(third.stream(0, steps))
    assert third.tools.encoded == 1


def test_captions_are_dropped_as_often_as_asked_and_timesteps_are_even(
    train_mix: Path, train_base: Path, tmp_path: Path
) -> None:
    found = data(train_mix, train_base, tmp_path / "cache", train={"caption_dropout": 0.25, "noise_offset": 0.5})
    batches = list(found.stream(0, 100))
    kinds = [kind for batch in batches for kind in batch.kinds]
    assert abs(kinds.count("dropped") / len(kinds) - 0.25) < 4 * (0.25 * 0.75 / len(kinds)) ** 0.5
    assert {c == "" for b in batches for c, k in zip(b.captions, b.kinds, strict=True) if k == "dropped"} == {True}
    t = torch.cat([batch.timesteps for batch in batches]).double()
    assert abs(float(t.mean()) - 499.5) < 4 * 1000 / (12 * len(t)) ** 0.5
    offsets = torch.cat([batch.noise.mean((2, 3)) for batch in batches])
    assert abs(float(offsets.std()) - 0.5) < 0.05


def test_a_mix_too_small_for_a_batch_is_one_line(train_mix: Path, train_base: Path, tmp_path: Path) -> None:
    found = data(train_mix, train_base, tmp_path / "cache", train={"batch": 500}, data={"leftovers": "drop"})
    with pytest.raises(UsageError, match="no full batch of 500 rows"):
        found.batch(0)
    with pytest.raises(UsageError, match="cannot be dealt evenly to 3 processes"):
        data(train_mix, train_base, tmp_path / "cache", 0, 3)


def test_what_goes_wrong_while_batches_are_made_is_raised_where_they_are_awaited(
    train_base: Path, finished_once: Path, tmp_path: Path
) -> None:
    mix = make_mix(finished_once / "store", tmp_path / "mix")
    found = data(mix, train_base, tmp_path / "cache")
    for shard in (mix / "train").rglob("*.parquet"):
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(Exception, match="curate mix verify"):
        list(found.stream(0, 3))


def test_chatglm_is_read_as_the_pipeline_reads_it_and_its_padding_is_one_vector(train_base: Path) -> None:
    from diffusers import KolorsPipeline

    encoder = load_text(train_base, CPU)
    captions = ["a red bus", "一辆红色的公共汽车在街上", "", "word " * 200]
    found = encoder(captions)
    hidden, pooled = padded(found, encoder.length, encoder.pad_left)
    pipeline = KolorsPipeline.from_pretrained(train_base)
    theirs, _, theirs_pooled, _ = pipeline.encode_prompt(
        captions, max_sequence_length=encoder.length, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(hidden, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, theirs_pooled, atol=1e-5, rtol=1e-5)
    assert len(found[2].tokens) == 2  # [gMASK] and sop
    assert len(found[3].tokens) == encoder.length
    assert encoder.pad_left


LETTERS = [chr(n) for n in range(ord("a"), ord("z") + 1)]
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
CLIP_TEXT = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 12, "projection_dim": 24, "bos_token_id": len(WORDS) - 2,
    "eos_token_id": len(WORDS) - 1, "pad_token_id": len(WORDS) - 1,
}  # fmt: skip


def letter_tokenizer(folder: Path) -> Any:
    """A tokenizer of CLIP with a vocabulary of letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_clip_score_and_kid_are_there_when_a_clip_model_is(train_mix: Path, train_base: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    clip = tmp_path / "clip"
    CLIPModel(CLIPConfig(text_config=CLIP_TEXT, vision_config=vision, projection_dim=24)).save_pretrained(clip)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(clip)
    letter_tokenizer(tmp_path / "letters").save_pretrained(clip)
    wanted = recipe(
        tmp_path / "out", train_mix, model={"base": str(train_base)}, data={"cache": str(tmp_path / "cache")},
        measure={"clip": str(clip), "kid_samples": 100, "sampling_steps": 1}, phase=[{"steps": 1, "buckets": "32x32"}],
    )  # fmt: skip
    place = Place(0, 1, CPU)
    unet, _, tools = loop.assemble(wanted, train_base, place)
    said: list[str] = []
    assert kid_score(unet, wanted, str(train_mix), tools, place, said.append) == {}
    assert "100 are needed" in said[0]
    found = kid_score(unet, wanted, str(train_mix), tools, place, said.append, least=5)
    assert found["kid_pictures"] == 100
    assert found["kid"] > 0  # an untrained model draws noise
    assert found["kid_error"] > 0
    red = Sampled("a red bus", 0, np.full((32, 32, 3), 200, np.uint8))
    assert abs(clip_score([red], str(clip), place)["clip_score"]) < 1


def clip_base(folder: Path) -> Path:
    """A tiny SDXL: two CLIP encoders with a vocabulary of letters, and a UNet of their width."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizers = [letter_tokenizer(folder) for _ in range(2)]
    config = CLIPTextConfig(**CLIP_TEXT)
    torch.manual_seed(0)
    shape = models.UNETS["tiny"] | {
        "encoder_hid_dim": None, "encoder_hid_dim_type": None, "cross_attention_dim": 64,
        "projection_class_embeddings_input_dim": 24 + 6 * 16,
    }  # fmt: skip
    from curate.train.models import load_vae

    shutil.copytree(VAE, folder / "made" / "vae")
    pipeline = StableDiffusionXLPipeline(
        vae=load_vae(folder / "made"), text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config), tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
        unet=UNet2DConditionModel(**shape), scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def test_an_sdxl_base_trains_and_comes_back_as_an_sdxl_pipeline(train_mix: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    base = clip_base(tmp_path / "sdxl")
    encoder = load_text(base, CPU)
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    theirs, _, theirs_pooled, _ = pipeline.encode_prompt(["a red bus", ""], do_classifier_free_guidance=False)
    hidden, pooled = padded(encoder(["a red bus", ""]), encoder.length, encoder.pad_left)
    torch.testing.assert_close(hidden, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, theirs_pooled, atol=1e-5, rtol=1e-5)
    # A dropped caption is what the pipeline takes for none: zeros for SDXL, and not the encoding of "".
    _, without, _, pooled_without = pipeline.encode_prompt("a red bus", do_classifier_free_guidance=True)
    dropped, pooled_dropped = padded([text.encode(encoder, "")], encoder.length, encoder.pad_left)
    torch.testing.assert_close(dropped, without)
    torch.testing.assert_close(pooled_dropped, pooled_without)

    wanted = recipe(
        tmp_path / "out", train_mix, model={"base": str(base)}, data={"cache": str(tmp_path / "cache")},
        checkpoint={"export": True}, phase=[{"steps": 1, "buckets": BUCKETS, "lr": 1e-2}], train={"ema": 0.0},
    )  # fmt: skip
    run.run(wanted, console())
    exported = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out" / "model")
    unet, _, _ = loop.restore(wanted, base, Place(0, 1, CPU))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    said = {"text_embeds": pooled[:1], "time_ids": torch.zeros(1, 6)}
    with torch.inference_mode():
        ours = unet.eval()(x, 500, hidden[:1], added_cond_kwargs=said).sample
        again = exported.unet(x, 500, hidden[:1], added_cond_kwargs=said).sample
        before = pipeline.unet(x, 500, hidden[:1], added_cond_kwargs=said).sample
    torch.testing.assert_close(ours, again, atol=1e-6, rtol=1e-6)
    assert (ours - before).abs().max() > 1e-4


def test_a_t5_encoder_gives_zeros_for_padding_and_a_unet_trains_on_it(train_mix: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "bus": 4, "</s>": 5}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 5)])  # as T5's ends a text
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        tmp_path / "tokenizer"
    )
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=6, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "text_encoder"
    )
    encoder = load_text(tmp_path, CPU)
    alone, long = encoder(["a red bus", "a red bus a red bus"])
    assert (len(alone.tokens), len(long.tokens)) == (4, 7)
    hidden, pooled = padded([alone, long], encoder.length, encoder.pad_left)
    assert (hidden.shape, pooled.shape) == ((2, text.T5_TOKENS, 16), (2, 16))
    assert not hidden[0, 4:].any()
    torch.testing.assert_close(encoder(["a red bus"])[0].tokens, alone.tokens, atol=1e-5, rtol=1e-5)

    shape = models.UNETS["tiny"] | {
        "encoder_hid_dim": None, "encoder_hid_dim_type": None, "cross_attention_dim": 16,
        "projection_class_embeddings_input_dim": 16 + 6 * 16,
    }  # fmt: skip
    UNet2DConditionModel(**shape).save_pretrained(tmp_path / "unet")
    shutil.copytree(VAE, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    wanted = recipe(
        tmp_path / "out", train_mix, model={"base": str(tmp_path)}, data={"cache": str(tmp_path / "cache")},
        phase=[{"steps": 1, "buckets": BUCKETS}], train={"ema": 0.0}, measure={"rows": 1},
    )  # fmt: skip
    run.run(wanted, console())
    (line,) = [line for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if line["kind"] == "train"]
    assert (line["skipped"], line["loss"] > 0.1) == (0, True)


def test_published_folders_with_half_precision_files_load_and_others_are_one_line(
    train_base: Path, tmp_path: Path
) -> None:
    from diffusers import KolorsPipeline

    half = Path(shutil.copytree(train_base, tmp_path / "half"))
    for path in half.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    for ours, theirs in ((models.load_unet(half), models.load_unet(train_base)),
                         (models.load_vae(half), models.load_vae(train_base))):  # fmt: skip
        assert all(torch.equal(p, theirs.state_dict()[name]) for name, p in ours.state_dict().items())
    captions = ["a red bus"]
    assert torch.equal(load_text(half, CPU)(captions)[0].pooled, load_text(train_base, CPU)(captions)[0].pooled)
    wanted = recipe(tmp_path / "out", tmp_path, model={"base": str(half)})
    KolorsPipeline.from_pretrained(export_model(models.load_unet(half), wanted, half, tmp_path / "model"))

    weights = next((half / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match="vae: does not load"):
        models.load_vae(half)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UsageError, match=r"vae: no \*.safetensors there"):
        models.load_vae(half)


def test_a_folder_of_models_is_known_by_its_weights_and_not_by_its_card(train_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(train_base / "unet", tmp_path / "unet"))
    first = models.identity(base)
    (base / "README.md").write_text("a card")
    assert models.identity(base) == first
    weights = next(base.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    assert models.identity(base) != first


def test_a_base_that_predicts_something_else_is_said(train_base: Path) -> None:
    assert "predicts 'epsilon'" in models.other_prediction(train_base, "trained", "v_prediction")
    assert models.other_prediction(train_base, "trained", "epsilon") == ""
    assert models.other_prediction(train_base, "tiny", "v_prediction") == ""  # drawn anew


def test_tiny_models_that_are_there_read_no_captions(train_base: Path) -> None:
    def captions() -> list[str]:
        raise AssertionError("captions were read")

    assert make_tiny(train_base, captions, 0) == train_base


def test_phases_of_runs_with_neighbouring_seeds_have_orders_of_their_own(train_mix: Path, tmp_path: Path) -> None:
    phases = [{"name": name, "steps": 1} for name in ("a", "b")]
    seeds = {
        seed_of(recipe(tmp_path, train_mix, train={"seed": seed}, phase=phases), number)
        for seed in range(3) for number in (0, 1)
    }  # fmt: skip
    assert len(seeds) == 6


def test_the_shapes_are_those_of_sdxl_and_kolors() -> None:
    from diffusers import UNet2DConditionModel

    counts = {}
    for name in ("sdxl", "kolors"):
        with torch.device("meta"):
            unet = UNet2DConditionModel(**models.UNETS[name])
        counts[name] = sum(p.numel() for p in unet.parameters())
        if name == "kolors":
            assert tuple(unet.encoder_hid_proj.weight.shape) == (2048, 4096)
            assert unet.add_embedding.linear_1.in_features == 5632
    # SDXL's UNet has 2,567,463,684 parameters; Kolors adds a projection and a wider embedding.
    assert counts == {"sdxl": 2_567_463_684, "kolors": 2_567_463_684 + 4096 * 2048 + 2048 + (5632 - 2816) * 1280}


def test_draws_depend_on_their_key_alone() -> None:
    assert generator(1, "a", 2).integers(1 << 60) == generator(1, "a", 2).integers(1 << 60)
    assert generator(1, "a", 2).integers(1 << 60) != generator(1, "a2").integers(1 << 60)
    assert generator(1, 2).integers(1 << 60) != generator(1, "2").integers(1 << 60)
    keys = np.arange(100_000, dtype=np.uint64)
    shuffled = mixed(keys, 0, "order")
    assert len(np.unique(shuffled)) == len(keys)
    assert abs(float((shuffled >> np.uint64(63)).mean()) - 0.5) < 0.01
