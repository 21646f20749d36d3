"""A checkpoint that is not right is refused with the file and the key, and a right one is read as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvlm_tiny import config_of, tensors_of, write_checkpoint
from safetensors.torch import load_file, save_file

from workers.cogvlm.config import CheckpointError, read_config, revision
from workers.cogvlm.load import checkpoint_keys, load
from workers.cogvlm.quantize import QuantLinear

GOLDEN = Path(__file__).parent / "data" / "cogvlm"


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as failure:
        load(folder, dtype=torch.float32)
    message = str(failure.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_published_names_are_exactly_the_expected_ones(version: str) -> None:
    names = {name for name in load_file(GOLDEN / version / "model.safetensors") if not name.endswith("inv_freq")}
    assert set(checkpoint_keys(read_config(GOLDEN / version))) == names


def test_shards_and_one_file_give_the_same_weights(tmp_path: Path) -> None:
    one = load(write_checkpoint(tmp_path / "one"), dtype=torch.float32).state_dict()
    three = load(write_checkpoint(tmp_path / "three", shards=3), dtype=torch.float32).state_dict()
    assert one.keys() == three.keys()
    assert all(torch.equal(one[name], three[name]) for name in one)


def test_matrices_take_the_asked_dtype_and_norms_stay_float32(tmp_path: Path) -> None:
    model = load(write_checkpoint(tmp_path), dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["layers.0.vision.qkv.weight"] == torch.bfloat16
    assert dtypes["embed_tokens.weight"] == torch.bfloat16
    assert dtypes["layers.0.input_layernorm.weight"] == torch.float32
    assert dtypes["vision.patch_embedding.proj.weight"] == torch.float32
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = refused(folder)
    assert "model.safetensors.index.json: 1 of 3 shards are missing: model-00002-of-00003.safetensors" in message


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=2)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    message = refused(folder)
    assert str(shard) in message
    assert "no complete safetensors file" in message


def test_nan_and_infinite_weights_are_named(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        tensors = tensors_of(config_of())
        key = "model.layers.1.mlp.vision_mlp.up_proj.weight"
        tensors[key][3, 4] = value
        folder = write_checkpoint(tmp_path / str(value), tensors=tensors)
        assert f"model.safetensors: {key} holds NaN or infinite values" in refused(folder)


def test_missing_unknown_and_misshapen_keys_are_listed_together(tmp_path: Path) -> None:
    tensors = tensors_of(config_of())
    del tensors["model.layers.1.self_attn.vision_expert_dense.weight"]
    tensors["model.layers.9.stray.weight"] = torch.zeros(2)
    tensors["model.norm.weight"] = torch.ones(7)
    message = refused(write_checkpoint(tmp_path, tensors=tensors))
    assert "1 missing: model.layers.1.self_attn.vision_expert_dense.weight" in message
    assert "1 unknown: model.layers.9.stray.weight (model.safetensors)" in message
    assert "model.norm.weight in model.safetensors is [7], config.json asks for [48]" in message


def test_weights_of_the_other_version_do_not_fit(tmp_path: Path) -> None:
    first, second = config_of(), config_of(second=True)
    assert "vision.conv" in refused(write_checkpoint(tmp_path / "a", second, tensors_of(first)))
    message = refused(write_checkpoint(tmp_path / "b", first, tensors_of(second)))
    assert "unknown: model.layers.0.self_attn.vision_expert_query_key_value.bias" in message
    assert "is [80, 48], config.json asks for [144, 48]" in message


def test_a_key_in_two_shards_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(shard) | {"lm_head.weight": tensors_of(config_of())["lm_head.weight"]}, shard)
    assert "lm_head.weight stands in model-00001-of-00002.safetensors and in model-00002" in refused(folder)


def test_a_folder_without_weights_or_config_says_so(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors file" in refused(folder)
    (folder / "config.json").unlink()
    assert f"{folder / 'config.json'}: no such file" in refused(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vision_config": {"num_positions": 50}}, "num_positions is 50, the 6 x 6 patches need 37"),
        ({"num_attention_heads": 5}, "hidden_size 48 is no multiple of num_attention_heads 5"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', expected int"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, expected a positive number"),
        ({"eos_token_id": 300}, "a special token is outside the vocabulary of 300"),
        ({"template_version": "llama"}, "template_version is 'llama'"),
    ],
)
def test_an_impossible_config_names_the_field(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "config.json").write_text(json.dumps(config_of(**change)))
    assert expected in refused(folder)


def test_another_models_config_is_recognised(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 48}))
    assert "no `vision_config`, so this is no CogVLM checkpoint (architectures: ['LlamaForCausalLM'])" in refused(
        folder
    )
    config = config_of()
    del config["intermediate_size"], config["vision_config"]["num_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "missing vision_config.num_heads" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "no valid JSON" in refused(folder)


def test_a_rotary_buffer_of_another_base_is_refused_and_the_right_one_accepted(tmp_path: Path) -> None:
    tensors = tensors_of(config_of())
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    right = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    accepted = write_checkpoint(tmp_path / "right", tensors=tensors | {key: right.to(torch.bfloat16)})
    assert load(accepted, dtype=torch.float32).rotary.inv_freq.dtype == torch.float32
    low = load(accepted, dtype=torch.float32, rotary="bfloat16")
    assert torch.equal(low.rotary.inv_freq, right.to(torch.bfloat16))
    wrong = write_checkpoint(tmp_path / "wrong", tensors=tensors | {key: 500_000.0 ** (-torch.arange(0, 8, 2) / 8)})
    assert f"{key} does not follow rotary base 10000" in refused(wrong)


@pytest.mark.parametrize(("weight_format", "relative"), [("int8", 0.005), ("fp8", 0.07)])
def test_8_bit_weights_are_within_half_a_step_of_the_originals(
    tmp_path: Path, weight_format: str, relative: float
) -> None:
    folder = write_checkpoint(tmp_path)
    exact, small = load(folder, dtype=torch.float32), load(folder, dtype=torch.float32, weight_format=weight_format)
    for name in ("layers.1.vision.gate_up", "layers.0.language.qkv"):
        linear, wide = small.get_submodule(name), exact.get_submodule(name).get_parameter("weight")
        assert isinstance(linear, QuantLinear)
        assert linear.weight.dtype.itemsize == 1
        error = (linear.weight.float() * linear.scale[:, None] - wide).abs()
        largest = wide.abs().amax(1, keepdim=True)
        assert bool((error <= relative * largest).all())


def test_the_revision_follows_the_content_and_needs_no_loading(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", shards=2)
    first = revision(folder)
    assert first == revision(write_checkpoint(tmp_path / "b", shards=2))
    assert first != revision(write_checkpoint(tmp_path / "c", tensors=tensors_of(config_of(), seed=1), shards=2))
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = write_checkpoint(tmp_path / "models--zai-org--cogvlm-chat-hf" / "snapshots" / commit)
    assert revision(hub) == commit[:12]


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of(config_of())
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int32)
    assert "lm_head.weight in model.safetensors is I32; weights are BF16" in refused(
        write_checkpoint(tmp_path, tensors=tensors)
    )


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": null}'])
def test_an_odd_index_is_named(tmp_path: Path, index: str) -> None:
    folder = write_checkpoint(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json: no index of safetensors shards" in refused(folder)


def test_a_missing_folder_and_a_config_that_is_a_folder_say_so(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: no such folder" in refused(tmp_path / "none")
    (tmp_path / "config.json").mkdir()
    assert f"{tmp_path / 'config.json'}: cannot be read: Is a directory" in refused(tmp_path)


def test_the_revision_changes_with_every_single_tensor(tmp_path: Path) -> None:
    tensors = tensors_of(config_of())
    # Larger than what is read of one tensor at a time, so that start and middle are pieces of their own.
    tensors["lm_head.weight"] = torch.zeros(4096, 48)
    folder = write_checkpoint(tmp_path, tensors=tensors)
    seen = {revision(folder)}
    for name, tensor in tensors.items():
        save_file(tensors | {name: tensor + 1e-3}, folder / "model.safetensors")
        seen.add(revision(folder))
    assert len(seen) == 1 + len(tensors)
    (folder / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError, match="no safetensors header"):
        revision(folder)
