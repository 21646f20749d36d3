"""Tiny random CogVLM checkpoints in the published layout, with a byte-level tokenizer, for the tests of that model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# Matrices of width 48 gain nothing from threads, and threads of a busy machine wait for each other.
torch.set_num_threads(1)


def config_of(second: bool = False, **changes: Any) -> dict[str, Any]:
    """A config.json as published, at a size and shape that the golden set does not have."""
    config: dict[str, Any] = {
        "architectures": ["CogVLMForCausalLM"],
        "hidden_act": "silu",
        "template_version": "chat",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "vocab_size": 300,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 297,
        "bos_token_id": 298,
        "eos_token_id": 299,
        "vision_config": {
            "dropout_prob": 0.0,
            "hidden_act": "gelu",
            "in_channels": 3,
            "patch_size": 7,
            "hidden_size": 40,
            "num_hidden_layers": 2,
            "num_heads": 5,
            "intermediate_size": 56,
            "image_size": 42,
            "num_positions": 37,
            "layer_norm_eps": 1e-6,
        },
    }
    if second:
        config["num_multi_query_heads"] = 2
    vision = changes.pop("vision_config", {})
    config |= changes
    config["vision_config"] |= vision
    return config


def tensors_of(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the published names; norms and biases far from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, around: float = 0.0, scale: float | None = None) -> Tensor:
        return around + torch.randn(shape, generator=generator) * (scale or 1.2 / shape[-1] ** 0.5)

    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    second = "num_multi_query_heads" in config
    qkv = hidden + 2 * hidden // heads * config.get("num_multi_query_heads", heads)
    vision = config["vision_config"]
    wide, tall = vision["hidden_size"], vision["intermediate_size"]
    tower, adapter = "model.vision.transformer.layers", "model.vision.linear_proj"
    tensors = {
        "model.embed_tokens.weight": random(config["vocab_size"], hidden, scale=1.0),
        "model.norm.weight": random(hidden, around=1.0, scale=0.3),
        "lm_head.weight": random(config["vocab_size"], hidden, scale=0.5),
        "model.vision.boi": random(1, 1, hidden, scale=1.0),
        "model.vision.eoi": random(1, 1, hidden, scale=1.0),
        "model.vision.patch_embedding.cls_embedding": random(1, wide, scale=1.0),
        "model.vision.patch_embedding.position_embedding.weight": random(vision["num_positions"], wide, scale=0.5),
        "model.vision.patch_embedding.proj.weight": random(wide, 3, *[vision["patch_size"]] * 2, scale=0.1),
        "model.vision.patch_embedding.proj.bias": random(wide, scale=0.2),
        f"{adapter}.linear_proj.weight": random(hidden, wide),
        f"{adapter}.norm1.weight": random(hidden, around=1.0, scale=0.3),
        f"{adapter}.norm1.bias": random(hidden, scale=0.3),
        f"{adapter}.gate_proj.weight": random(inner, hidden),
        f"{adapter}.dense_h_to_4h.weight": random(inner, hidden),
        f"{adapter}.dense_4h_to_h.weight": random(hidden, inner),
    }
    if second:
        tensors["model.vision.conv.weight"] = random(wide, wide, 2, 2, scale=0.1)
        tensors["model.vision.conv.bias"] = random(wide, scale=0.2)
    for i in range(vision["num_hidden_layers"]):
        shapes = {
            "attention.query_key_value": (3 * wide, wide), "attention.dense": (wide, wide),
            "mlp.fc1": (tall, wide), "mlp.fc2": (wide, tall),
        }  # fmt: skip
        for name, shape in shapes.items():
            tensors[f"{tower}.{i}.{name}.weight"] = random(*shape)
            tensors[f"{tower}.{i}.{name}.bias"] = random(shape[0], scale=0.2)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{tower}.{i}.{name}.weight"] = random(wide, around=1.0, scale=0.3)
            tensors[f"{tower}.{i}.{name}.bias"] = random(wide, scale=0.2)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = random(hidden, around=1.0, scale=0.3)
        for expert in ("vision", "language"):
            tensors[f"{layer}.self_attn.{expert}_expert_query_key_value.weight"] = random(qkv, hidden)
            tensors[f"{layer}.self_attn.{expert}_expert_dense.weight"] = random(hidden, hidden)
            tensors[f"{layer}.mlp.{expert}_mlp.gate_proj.weight"] = random(inner, hidden)
            tensors[f"{layer}.mlp.{expert}_mlp.up_proj.weight"] = random(inner, hidden)
            tensors[f"{layer}.mlp.{expert}_mlp.down_proj.weight"] = random(hidden, inner)
        if second:
            tensors[f"{layer}.self_attn.vision_expert_query_key_value.bias"] = random(qkv, scale=0.3)
    return tensors


def write_checkpoint(
    folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None, shards: int = 1
) -> Path:
    """Write config.json, the weights in `shards` files (with an index from two on) and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config or config_of()
    tensors = tensors_of(config) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        names = sorted(tensors)
        where: dict[str, str] = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            save_file({name: tensors[name] for name in names[i::shards]}, folder / file)
            where |= dict.fromkeys(names[i::shards], file)
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json whose ids are the UTF-8 bytes of a text, as in the golden set."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
