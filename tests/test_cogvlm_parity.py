"""The model against golden vectors of the reference, and against a loop in NumPy at shapes that these do not have."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cogvlm_tiny import config_of, tensors_of, write_checkpoint
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from workers.cogvlm.golden import FIELDS
from workers.cogvlm.load import load
from workers.cogvlm.parity import agreement, check, main
from workers.cogvlm.sequence import pack

GOLDEN = Path(__file__).parent / "data" / "cogvlm"
Array = Any  # NumPy's own types lose the dtype in every second operation


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_golden_tensor_mask_prompt_and_token_is_reproduced_in_float32(version: str) -> None:
    results = check(GOLDEN / version)
    assert [f"{r.name}: {r.worst} > {r.tolerance}" for r in results if not r.passed] == []
    compared = {result.name for result in results}
    inputs = (".positions", ".x", ".bf16_inv_freq")
    expected = {name for name in load_file(GOLDEN / version / "expected.safetensors") if not name.endswith(inputs)}
    assert expected <= compared
    assert len(compared) == len(results) > 120


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own gap
    """Records the names of the operations that run under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_the_tower_runs_no_convolution_which_a_gpu_would_round_to_tf32() -> None:
    vision = load(GOLDEN / "v2", dtype=torch.float32).vision
    pixels = load_file(GOLDEN / "v2" / "inputs.safetensors")["batch.pixel_values"]
    with torch.inference_mode(), Operations() as operations:
        vision(pixels)
    assert [name for name in operations.names if "conv" in name] == []


def test_the_patch_embedding_equals_the_convolution_in_float64() -> None:
    embedding = load(GOLDEN / "v1", dtype=torch.float32).vision.patch_embedding
    side = embedding.proj.kernel_size[0] * 4
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    embedding.position_embedding.weight = torch.nn.Parameter(torch.zeros(17, embedding.proj.out_channels))
    with torch.inference_mode():
        found = embedding(pixels)
    expected = embedding.proj.double()(pixels.double()).flatten(2).transpose(1, 2)
    assert float((found[:, 1:] - expected).abs().max()) < 1e-5


def test_bf16_chooses_the_same_token_at_95_percent_of_the_golden_steps() -> None:
    counts = [agreement(GOLDEN / version, dtype=torch.bfloat16) for version in ("v1", "v2")]
    same, steps = sum(c[0] for c in counts), sum(c[1] for c in counts)
    assert steps == 96
    assert same >= 0.95 * steps


def test_int8_weights_choose_the_same_token_at_95_percent_of_the_golden_steps() -> None:
    counts = [agreement(GOLDEN / version, dtype=torch.float32, weight_format="int8") for version in ("v1", "v2")]
    assert sum(c[0] for c in counts) >= 0.95 * sum(c[1] for c in counts)


def test_the_parity_command_prints_every_tensor_and_exits_1_when_one_weight_is_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(GOLDEN / "v1")]) == 0
    printed = capsys.readouterr().out
    assert "seq0.layer0.q_rot" in printed
    assert "129 of 129 within tolerance" in printed
    folder = tmp_path / "off"
    shutil.copytree(GOLDEN / "v1", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.language_mlp.down_proj.weight"][3, 5] += 0.1
    save_file(weights, folder / "model.safetensors")
    assert main([str(folder)]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert "seq0.hidden.2" in failed
    assert "seq0.hidden.1" not in failed


def refusal(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses `folder`."""
    assert main([str(folder)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(folder) in line
    return line.removeprefix(f"{folder}/").removeprefix(str(folder))


def test_a_folder_without_vectors_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "tiny")
    assert refusal(tmp_path, capsys) == "tiny/inputs.safetensors: no such file; a folder of golden vectors has it\n"
    assert refusal(tmp_path / "nowhere", capsys) == ": no config.json here or one folder below\n"


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "v1").iterdir() if path.suffix != ".md"))
def test_a_cut_file_is_one_clear_line_that_names_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(GOLDEN / "v1", tmp_path / "cut"))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) * 2 // 3])
    if name == "meta.json":  # for people; nothing reads it
        assert main([str(folder)]) == 0
        return
    assert name in refusal(folder, capsys)
    (folder / name).write_bytes(b"")
    assert name in refusal(folder, capsys)


INPUTS = load_file(GOLDEN / "v1" / "inputs.safetensors")
EXPECTED = load_file(GOLDEN / "v1" / "expected.safetensors")


@pytest.mark.parametrize(
    ("file", "name", "value", "complaint"),
    [
        *(
            ("inputs", name, None, name)
            for name in sorted(INPUTS)
            # Masks and positions have defaults, and a sequence without pixels is text.
            if not name.endswith(
                (".attention_mask", ".position_ids", ".image_row", "seq0.pixel_values", "seq1.pixel_values")
            )
        ),
        *(
            ("inputs", name, tensor.float()[..., :3], name)
            for name, tensor in INPUTS.items()
            if "image_row" not in name
        ),
        ("inputs", "seq0.input_ids", INPUTS["seq0.input_ids"] + 10**6, "outside the vocabulary"),
        ("inputs", "seq0.input_ids", INPUTS["seq0.input_ids"] - 10**6, "outside the vocabulary"),
        ("inputs", "seq0.token_type_ids", INPUTS["seq0.token_type_ids"] + 1, "other than 0 (text) and 1"),
        ("inputs", "seq0.token_type_ids", INPUTS["seq0.token_type_ids"] * 0, "has 0 image tokens"),
        ("inputs", "batch.token_type_ids", INPUTS["batch.token_type_ids"] * 0, "batch.pixel_values is"),
        ("inputs", "batch.attention_mask", INPUTS["batch.attention_mask"] * 0, "a row of padding alone"),
        ("expected", "rope.positions", None, "rope.x without rope.positions"),
        ("expected", "rope.x", EXPECTED["rope.x"][0], "rope.x and .positions are"),
        ("expected", "rope128.bf16_inv_freq", EXPECTED["rope.inv_freq"][:2], "rope128.bf16_inv_freq is [2]"),
        ("expected", "seq0.generated", EXPECTED["seq0.generated"].float(), "expected token ids"),
        ("expected", "seq0.generated", EXPECTED["seq0.generated"][:0], "expected token ids"),
        ("expected", "seq0.generated", EXPECTED["seq0.generated"][None], "expected [T]"),
        ("image_case", "pixel_values", None, "no pixel_values"),
    ],
)
def test_a_missing_or_odd_tensor_is_one_clear_line(
    file: str, name: str, value: torch.Tensor | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(GOLDEN / "v1", tmp_path / "odd"))
    tensors = load_file(folder / f"{file}.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value.contiguous()
    save_file(tensors, folder / f"{file}.safetensors")
    assert complaint in refusal(folder, capsys)


@pytest.mark.parametrize("file", ["masks_positions.json", "prompts.json"])
def test_a_json_entry_without_a_key_or_with_another_type_is_one_clear_line(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(GOLDEN / "v1", tmp_path / "odd"))
    cases = json.loads((folder / file).read_bytes())
    for key in FIELDS[file]:
        (folder / file).write_text(json.dumps([{k: v for k, v in cases[0].items() if k != key}, *cases[1:]]))
        assert refusal(folder, capsys) == f"{file}: entry 0 has no {key!r}\n"
        for odd in (3.5, ["x"]):
            (folder / file).write_text(json.dumps([cases[0] | {key: odd}]))
            assert refusal(folder, capsys).startswith(f"{file}: entry 0: {key} is ")
    for text in ("{}", "[1]"):
        (folder / file).write_text(text)
        assert file in refusal(folder, capsys)


def test_a_device_that_is_not_there_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("meta", "no-such-device"):
        with pytest.raises(SystemExit) as ended:
            main([str(GOLDEN / "v1"), "--device", name])
        assert ended.value.code == 2
        assert f"error: --device {name}: " in capsys.readouterr().err


@pytest.mark.parametrize("second", [False, True])
def test_other_dimensions_equal_a_naive_loop_and_pass_the_parity_command(tmp_path: Path, second: bool) -> None:
    config = config_of(second)
    tensors = tensors_of(config, seed=3)
    folder = write_checkpoint(tmp_path / "tiny", config, tensors, shards=3)
    weights = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(3, 42, 42, generator=generator)
    count = (9 if second else 36) + 2
    ids = [298, *[297] * count, *b"Question: a gate? Answer:"]
    types = [0, *[1] * count, *[0] * 25]
    tokens: list[int] = []
    logits = naive_logits(config, weights, ids, types, pixels.double().numpy())
    first = logits
    for _ in range(4):
        tokens.append(int(logits[-1].argmax()))
        longer = ids + tokens
        logits = naive_logits(config, weights, longer, types + [0] * len(tokens), pixels.double().numpy())

    model = load(folder, dtype=torch.float32)
    packing = pack(torch.tensor([types]))
    found = packing.unpack(model(torch.tensor([ids]), packing, pixels[None]))[0]
    assert np.abs(found.numpy() - first).max() < 1e-4

    sequence = {"input_ids": torch.tensor(ids), "token_type_ids": torch.tensor(types), "pixel_values": pixels}
    batch = {f"batch.{name}": tensor[None].clone() for name, tensor in sequence.items()}
    save_file(batch | {f"seq0.{name}": tensor for name, tensor in sequence.items()}, folder / "inputs.safetensors")
    expected = {"seq0.logits": torch.tensor(first).float(), "seq0.generated": torch.tensor(tokens)}
    save_file(expected, folder / "expected.safetensors")
    assert main([str(folder)]) == 0


def naive_logits(
    config: dict[str, Any], weights: dict[str, Array], ids: list[int], types: list[int], pixels: Array
) -> Array:
    """Logits [L, V] of one sequence with one picture: float64, one token and one head at a time, straight from the text
    of tests/data/cogvlm/README.md."""
    vision, second = config["vision_config"], "num_multi_query_heads" in config

    def layer_norm(x: Array, name: str, eps: float) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    def rms_norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean() + config["rms_norm_eps"]) * weights[f"{name}.weight"]

    def gelu(x: Array) -> Array:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def silu(x: Array) -> Array:
        return x / (1 + np.exp(-x))

    def softmax(x: Array) -> Array:
        e = np.exp(x - x.max())
        return e / e.sum()

    # Tower.
    size, grid = vision["patch_size"], vision["image_size"] // vision["patch_size"]
    embedding = "model.vision.patch_embedding"
    kernel = weights[f"{embedding}.proj.weight"].reshape(vision["hidden_size"], -1)
    tokens = [weights[f"{embedding}.cls_embedding"][0]]
    for row in range(grid):
        for column in range(grid):
            patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            tokens.append(kernel @ patch.reshape(-1) + weights[f"{embedding}.proj.bias"])
    x = np.stack(tokens) + weights[f"{embedding}.position_embedding.weight"]
    width = vision["hidden_size"] // vision["num_heads"]
    for i in range(vision["num_hidden_layers"]):
        name = f"model.vision.transformer.layers.{i}"
        joined = x @ weights[f"{name}.attention.query_key_value.weight"].T
        joined = (joined + weights[f"{name}.attention.query_key_value.bias"]).reshape(len(x), 3, -1, width)
        mixed = np.zeros((len(x), vision["num_heads"], width))
        for head in range(vision["num_heads"]):
            for t in range(len(x)):
                shares = softmax(joined[:, 1, head] @ joined[t, 0, head] / math.sqrt(width))
                mixed[t, head] = shares @ joined[:, 2, head]
        out = mixed.reshape(len(x), -1) @ weights[f"{name}.attention.dense.weight"].T
        out = out + weights[f"{name}.attention.dense.bias"]
        x = x + layer_norm(out, f"{name}.input_layernorm", vision["layer_norm_eps"])
        inner = gelu(x @ weights[f"{name}.mlp.fc1.weight"].T + weights[f"{name}.mlp.fc1.bias"])
        out = inner @ weights[f"{name}.mlp.fc2.weight"].T + weights[f"{name}.mlp.fc2.bias"]
        x = x + layer_norm(out, f"{name}.post_attention_layernorm", vision["layer_norm_eps"])
    x = x[1:]
    if second:
        cells = x.reshape(grid, grid, -1)
        blocks = []
        for row in range(0, grid, 2):
            for column in range(0, grid, 2):
                block = cells[row : row + 2, column : column + 2]
                blocks.append(
                    np.einsum("oiyx,yxi->o", weights["model.vision.conv.weight"], block)
                    + weights["model.vision.conv.bias"]
                )
        x = np.stack(blocks)
    adapter = "model.vision.linear_proj"
    x = gelu(layer_norm(x @ weights[f"{adapter}.linear_proj.weight"].T, f"{adapter}.norm1", 1e-5))
    x = silu(x @ weights[f"{adapter}.gate_proj.weight"].T) * (x @ weights[f"{adapter}.dense_h_to_4h.weight"].T)
    x = x @ weights[f"{adapter}.dense_4h_to_h.weight"].T
    features = iter([weights["model.vision.boi"][0, 0], *x, weights["model.vision.eoi"][0, 0]])

    # Decoder, token by token.
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    shared, width = config.get("num_multi_query_heads", heads), hidden // heads
    base = 500_000.0 if second else 10_000.0
    angles = base ** (-np.arange(0, width, 2) / width)
    count = types.count(1)
    positions = [0, 1, *[2] * (count - 2), *range(3, 3 + len(ids) - count)]
    h = [
        next(features) if kind else weights["model.embed_tokens.weight"][i] for i, kind in zip(ids, types, strict=True)
    ]
    experts = ["vision" if types[t : t + 2] == [1, 1] else "language" for t in range(len(ids))]

    def turned(x: Array, position: int) -> Array:
        turn = (x[: width // 2] + 1j * x[width // 2 :]) * np.exp(1j * position * angles)
        return np.concatenate((turn.real, turn.imag))

    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}"
        keys: list[list[Array]] = []
        values: list[list[Array]] = []
        for t, expert in enumerate(experts):
            attention = f"{name}.self_attn.{expert}_expert"
            qkv = weights[f"{attention}_query_key_value.weight"] @ rms_norm(h[t], f"{name}.input_layernorm")
            qkv = qkv + weights.get(f"{attention}_query_key_value.bias", 0.0)
            parts = qkv.reshape(-1, width)
            keys.append([turned(part, positions[t]) for part in parts[heads : heads + shared]])
            values.append(list(parts[heads + shared :]))
            mixed_heads = []
            for head in range(heads):
                group = head // (heads // shared)
                query = turned(parts[head], positions[t])
                shares = softmax(np.array([query @ keys[s][group] for s in range(t + 1)]) / math.sqrt(width))
                mixed_heads.append(sum(share * values[s][group] for s, share in enumerate(shares)))
            h[t] = h[t] + weights[f"{attention}_dense.weight"] @ np.concatenate(mixed_heads)
            mlp, y = f"{name}.mlp.{expert}_mlp", rms_norm(h[t], f"{name}.post_attention_layernorm")
            inner = silu(weights[f"{mlp}.gate_proj.weight"] @ y) * (weights[f"{mlp}.up_proj.weight"] @ y)
            h[t] = h[t] + weights[f"{mlp}.down_proj.weight"] @ inner
    return np.stack([weights["lm_head.weight"] @ rms_norm(token, "model.norm") for token in h])


def test_the_golden_files_are_small_and_complete() -> None:
    for version in ("v1", "v2"):
        files = {path.name for path in (GOLDEN / version).iterdir()}
        assert {"config.json", "model.safetensors", "inputs.safetensors", "expected.safetensors"} <= files
        assert json.loads((GOLDEN / version / "meta.json").read_text())["new_tokens"] == 16
    assert max(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 2 << 20
