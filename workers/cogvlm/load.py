"""Checkpoint folder to model: headers first, then one tensor at a time into its final place.

The published names are matched one by one; a name that is missing, unknown or of another shape is an error that lists
it, before anything is allocated. The model is built on the meta device and each tensor is read straight into its
parameter, so that memory never holds the weights twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workers.cogvlm.config import CheckpointError, Config, read_config, shard_files, some
from workers.cogvlm.decoder import Model, inverse_frequencies
from workers.cogvlm.quantize import FORMATS, QuantLinear, quantize


@dataclass(frozen=True)
class Target:
    """The parameter that a checkpoint tensor fills: all of it, or half 0 or 1 of a fused gate-and-up matrix."""

    parameter: str
    half: int | None = None


def checkpoint_keys(config: Config) -> dict[str, Target]:
    """Published tensor name -> parameter of `Model`."""
    keys = {
        "model.embed_tokens.weight": Target("embed_tokens.weight"),
        "model.norm.weight": Target("norm.weight"),
        "lm_head.weight": Target("lm_head.weight"),
        "model.vision.boi": Target("vision.boi"),
        "model.vision.eoi": Target("vision.eoi"),
        "model.vision.patch_embedding.cls_embedding": Target("vision.patch_embedding.cls_embedding"),
        "model.vision.patch_embedding.position_embedding.weight": Target(
            "vision.patch_embedding.position_embedding.weight"
        ),
        "model.vision.linear_proj.linear_proj.weight": Target("vision.adapter.linear_proj.weight"),
        "model.vision.linear_proj.gate_proj.weight": Target("vision.adapter.gate_up.weight", half=0),
        "model.vision.linear_proj.dense_h_to_4h.weight": Target("vision.adapter.gate_up.weight", half=1),
        "model.vision.linear_proj.dense_4h_to_h.weight": Target("vision.adapter.down.weight"),
    }
    for kind in ("weight", "bias"):
        keys[f"model.vision.patch_embedding.proj.{kind}"] = Target(f"vision.patch_embedding.proj.{kind}")
        keys[f"model.vision.linear_proj.norm1.{kind}"] = Target(f"vision.adapter.norm1.{kind}")
        if config.second:
            keys[f"model.vision.conv.{kind}"] = Target(f"vision.conv.{kind}")
        for i in range(config.vision.num_hidden_layers):
            for name in (
                "attention.query_key_value", "attention.dense", "mlp.fc1", "mlp.fc2",
                "input_layernorm", "post_attention_layernorm",
            ):  # fmt: skip
                keys[f"model.vision.transformer.layers.{i}.{name}.{kind}"] = Target(f"vision.layers.{i}.{name}.{kind}")
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            keys[f"{layer}.{name}.weight"] = Target(f"layers.{i}.{name}.weight")
        for expert in ("vision", "language"):
            ours = f"layers.{i}.{expert}"
            keys[f"{layer}.self_attn.{expert}_expert_query_key_value.weight"] = Target(f"{ours}.qkv.weight")
            keys[f"{layer}.self_attn.{expert}_expert_dense.weight"] = Target(f"{ours}.dense.weight")
            keys[f"{layer}.mlp.{expert}_mlp.gate_proj.weight"] = Target(f"{ours}.gate_up.weight", half=0)
            keys[f"{layer}.mlp.{expert}_mlp.up_proj.weight"] = Target(f"{ours}.gate_up.weight", half=1)
            keys[f"{layer}.mlp.{expert}_mlp.down_proj.weight"] = Target(f"{ours}.down.weight")
        if config.second:
            keys[f"{layer}.self_attn.vision_expert_query_key_value.bias"] = Target(f"layers.{i}.vision.qkv.bias")
    return keys


def inv_freq_keys(config: Config) -> list[str]:
    """The rotary buffers that published checkpoints carry beside the parameters: accepted, and not required."""
    return [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(config.num_hidden_layers)]


def build(
    config: Config,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    rotary: str = "float32",
    weight_format: str = "none",
    inv_freq: Tensor | None = None,
) -> Model:
    """The model with uninitialised weights on `device`.

    `rotary` is `float32` (exact) or `bfloat16` (the reference's rounding, with the checkpoint's own `inv_freq` where it
    has one). `weight_format` is `none`, `int8` or `fp8`.
    """
    if rotary not in ("float32", "bfloat16"):
        raise ValueError(f"rotary is {rotary!r}; known are float32 and bfloat16")
    if weight_format not in ("none", *FORMATS):
        raise ValueError(f"weight_format is {weight_format!r}; known are none, {', '.join(FORMATS)}")
    with torch.device("meta"):
        model = Model(config, dtype)
        if weight_format != "none":
            quantize(model, weight_format)
    model.to_empty(device=device)
    exact = inverse_frequencies(config.head_dim, config.rope_base)
    low = (exact if inv_freq is None else inv_freq).to(torch.bfloat16)
    model.rotary.inv_freq = (exact if rotary == "float32" else low).to(device)
    return model.eval().requires_grad_(False)


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    rotary: str = "float32",
    weight_format: str = "none",
) -> Model:
    """The model of a checkpoint folder, ready to run.

    Raises CheckpointError that names the file and the key: missing or truncated shard, missing, unknown or misshapen
    keys, a value that is NaN or infinite, a rotary base that is not this architecture's.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:
        # Graphs, events, streams and memory figures are the current device's.
        torch.cuda.set_device(device)
    check_checkpoint(folder)
    config, files = read_config(folder), shard_files(folder)
    targets = checkpoint_keys(config)
    inv_freq = _inv_freq(config, files, set(inv_freq_keys(config)))
    model = build(config, dtype=dtype, device=device, rotary=rotary, weight_format=weight_format, inv_freq=inv_freq)
    for file in files:
        with _opened(file, device) as shard:
            for key in shard.keys():  # noqa: SIM118 (safe_open is no mapping)
                if key in targets:
                    tensor = shard.get_tensor(key)
                    if not bool(torch.isfinite(tensor).all()):
                        raise CheckpointError(f"{file}: {key} holds NaN or infinite values; fetch the file again")
                    _put(model, targets[key], tensor)
    return model


def check_checkpoint(folder: Path) -> None:
    """Raise CheckpointError unless every tensor is there, under its name and in its shape; reads headers alone."""
    config, files = read_config(folder), shard_files(folder)
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in Model(config, torch.bfloat16).named_parameters()}
    wanted = {key: _shape(shapes[target.parameter], target) for key, target in checkpoint_keys(config).items()}
    _check_headers(folder, config, files, wanted, set(inv_freq_keys(config)))


def _opened(file: Path, device: torch.device | str = "cpu") -> Any:
    try:
        return safe_open(file, framework="pt", device=str(device))
    except (SafetensorError, OSError) as failure:
        what = f"no complete safetensors file ({failure}; {file.stat().st_size} bytes)"
        raise CheckpointError(f"{file}: {what}; fetch it again") from None


def _check_headers(
    folder: Path, config: Config, files: list[Path], wanted: dict[str, tuple[int, ...]], buffers: set[str]
) -> None:
    found: dict[str, Path] = {}
    problems: list[str] = []
    for file in files:
        with _opened(file) as shard:
            for key in shard.keys():  # noqa: SIM118
                piece = shard.get_slice(key)
                shape, kind = tuple(piece.get_shape()), str(piece.get_dtype())
                if key in found:
                    problems.append(f"{key} stands in {found[key].name} and in {file.name}")
                elif (key in wanted or key in buffers) and kind not in ("BF16", "F16", "F32", "F64"):
                    problems.append(f"{key} in {file.name} is {kind}; weights are BF16, F16 or F32")
                elif key in wanted and shape != wanted[key]:
                    problems.append(f"{key} in {file.name} is {list(shape)}, config.json asks for {list(wanted[key])}")
                elif key in buffers and shape != (config.head_dim // 2,):
                    problems.append(f"{key} in {file.name} is {list(shape)}, expected [{config.head_dim // 2}]")
                found[key] = file
    missing = sorted(wanted.keys() - found.keys())
    unknown = sorted(found.keys() - wanted.keys() - buffers)
    if missing:
        problems.append(f"{len(missing)} missing: {some(missing)}")
    if unknown:
        problems.append(f"{len(unknown)} unknown: {some([f'{key} ({found[key].name})' for key in unknown])}")
    if problems:
        raise CheckpointError(f"{folder}: weights do not fit config.json: {some(problems, '; ')}")


def _inv_freq(config: Config, files: list[Path], buffers: set[str]) -> Tensor | None:
    """The checkpoint's first rotary buffer, if it has any; its base must be the architecture's."""
    exact = inverse_frequencies(config.head_dim, config.rope_base).double()
    for file in files:
        with _opened(file) as shard:
            for key in sorted(buffers.intersection(shard.keys())):
                stored: Tensor = shard.get_tensor(key)
                # bf16 values are off by up to 0.8 %; another base is off by far more.
                if not bool(((stored.double() / exact - 1).abs() < 0.02).all()):
                    raise CheckpointError(
                        f"{file}: {key} does not follow rotary base {config.rope_base:.0f} of this architecture"
                    )
                return stored
    return None


def _shape(parameter: tuple[int, ...], target: Target) -> tuple[int, ...]:
    return parameter if target.half is None else (parameter[0] // 2, *parameter[1:])


def _put(model: Model, target: Target, tensor: Tensor) -> None:
    path, _, name = target.parameter.rpartition(".")
    module = model.get_submodule(path)
    rows = slice(None)
    if target.half is not None:
        rows = slice(target.half * len(tensor), (target.half + 1) * len(tensor))
    if isinstance(module, QuantLinear) and name == "weight":
        module.store(rows, tensor)
    else:
        getattr(module, name)[rows].copy_(tensor)
