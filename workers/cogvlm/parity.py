"""Compare the model with a folder of golden vectors: `python -m workers.cogvlm.parity DIR [--device cuda]`.

DIR holds config.json, model.safetensors, inputs.safetensors, expected.safetensors, and where present
masks_positions.json, prompts.json and image_case.*; or it holds such folders. tests/data/cogvlm/README.md describes the
layout. Prints the largest absolute difference of every tensor in float32 beside its tolerance, then how often lower
precisions choose the same greedy token. Exit 1 when a tensor is beyond its tolerance or was not compared, 2 when a
folder is incomplete or damaged.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workers.cogvlm.config import CheckpointError
from workers.cogvlm.decoder import Model, Rotary, causal
from workers.cogvlm.generate import Generator, Request
from workers.cogvlm.golden import Golden, read_golden
from workers.cogvlm.load import load
from workers.cogvlm.prompt import chat, sequence
from workers.cogvlm.sequence import expert_mask, pack, position_ids
from workers.cogvlm.vision import normalize, resize

# First pattern that matches the whole name; from the README of the golden set, section Tolerances.
TOLERANCES: tuple[tuple[str, float], ...] = (
    (r".*\.generated|masks_positions.*|prompts.*|image_case\.resized_uint8.*", 0.0),
    (r"image_case\.pixel_values", 1e-6),
    (r"vision\.patch_embed", 5e-5),
    (r"vision\.layer0\.(attn_out|mlp_out)", 5e-6),
    (r"vision\.(layer\.\d+|tower|conv|adapter_norm)", 3e-4),
    (r"vision\.(adapter_linear|adapter|features)|.*\.embeds", 1e-5),
    (r"seq\d+\.layer0\..*", 3e-4),
    (r".*\.hidden\.\d+", 6e-4),
    (r".*\.norm", 3e-4),
    (r".*logits", 1e-3),
    (r"rope128\.bf16_.*", 0.0),
    (r"rope128\..*", 4e-3),
    (r"rope\..*", 7e-4),
)
# Lower precisions whose agreement is reported: label, dtype of activations and matrices, format of the decoder's.
PRECISIONS = (
    ("bf16", torch.bfloat16, "none"),
    ("bf16, int8 weights", torch.bfloat16, "int8"),
    ("bf16, fp8 weights", torch.bfloat16, "fp8"),
    ("float32, int8 weights", torch.float32, "int8"),
    ("float32, fp8 weights", torch.float32, "fp8"),
)


@dataclass(frozen=True)
class Result:
    """One compared tensor: largest absolute difference (infinite when the shapes differ) and what is allowed."""

    name: str
    worst: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within the tolerance."""
        return self.worst <= self.tolerance


def tolerance_of(name: str) -> float:
    """Allowed absolute difference of the tensor `name`; 0 for a name that no pattern knows."""
    return next((limit for pattern, limit in TOLERANCES if re.fullmatch(pattern, name)), 0.0)


def compare(name: str, found: Tensor, expected: Tensor) -> Result:
    """Result of one tensor."""
    worst = float("inf")
    if found.shape == expected.shape:
        difference = (found.double().cpu() - expected.double().cpu()).abs()
        worst = float(difference.max()) if difference.numel() else 0.0
    return Result(name, worst, tolerance_of(name))


@torch.inference_mode()
def check(folder: Path, device: str = "cpu") -> list[Result]:
    """Every comparison that the folder's files allow, in float32."""
    golden = read_golden(folder)
    inputs, expected, count = golden.inputs, golden.expected, golden.count
    model = load(folder, dtype=torch.float32, device=device)
    low = load(folder, dtype=torch.float32, device=device, rotary="bfloat16")
    found: dict[str, Tensor] = {}
    found |= _vision(model, inputs)
    for i in range(count):
        found |= _forward(model, inputs, f"seq{i}")
        found[f"seq{i}.bf16rope_logits"] = _forward(low, inputs, f"seq{i}")[f"seq{i}.logits"]
    found |= _forward(model, inputs, "batch")
    found |= _generated(model, inputs, expected, count)
    found |= _rope(model, expected)
    results = [
        compare(name, found[name], tensor) if name in found else Result(f"{name} (not compared)", float("nan"), 0.0)
        for name, tensor in sorted(expected.items())
        if not _is_input(name)
    ]
    return [*_sequences(golden), *_prompts(golden), *_image(golden, model), *results]


@torch.inference_mode()
def agreement(folder: Path, *, dtype: torch.dtype, weight_format: str = "none", device: str = "cpu") -> tuple[int, int]:
    """Teacher-forced steps at which this precision chooses the golden greedy token, and all steps."""
    golden = read_golden(folder)
    inputs, expected = golden.inputs, golden.expected
    model = load(folder, dtype=dtype, device=device, weight_format=weight_format)
    same = steps = 0
    for name in sorted(expected):
        if re.fullmatch(r"seq\d+\.generated", name):
            row, tokens = name.split(".")[0], expected[name]
            prompt = len(inputs[f"{row}.input_ids"])
            longer = {
                f"{row}.input_ids": torch.cat((inputs[f"{row}.input_ids"], tokens[:-1])),
                f"{row}.token_type_ids": torch.cat((inputs[f"{row}.token_type_ids"], torch.zeros_like(tokens[:-1]))),
            }
            if f"{row}.pixel_values" in inputs:
                longer[f"{row}.pixel_values"] = inputs[f"{row}.pixel_values"]
            chosen = _forward(model, longer, row)[f"{row}.logits"][prompt - 1 :].argmax(-1).cpu()
            same += int((chosen == tokens).sum())
            steps += len(tokens)
    return same, steps


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """While it is open, every output of the named modules is appended under its name."""
    outputs: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str) -> Any:
        return lambda _module, _inputs, output: outputs[name].append(output.clone())

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _vision(model: Model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    tower = model.vision
    modules: dict[str, nn.Module] = {
        "vision.patch_embed": tower.patch_embedding,
        "vision.layer0.attn_out": tower.layers[0].get_submodule("attention"),
        "vision.layer0.mlp_out": tower.layers[0].get_submodule("mlp"),
        "vision.adapter_linear": tower.adapter.linear_proj,
        "vision.adapter_norm": tower.adapter.norm1,
        "vision.adapter": tower.adapter,
        "vision.features": tower,
    }
    modules |= {f"vision.layer.{k}": layer for k, layer in enumerate(tower.layers)}
    if tower.conv is not None:
        modules["vision.conv"] = tower.conv
    with recorded(modules) as outputs:
        tower(inputs["batch.pixel_values"].to(model.device))
    found = {name: tensors[0] for name, tensors in outputs.items()}
    found["vision.tower"] = found[f"vision.layer.{len(tower.layers) - 1}"][:, 1:]
    return found


def _forward(model: Model, inputs: dict[str, Tensor], row: str) -> dict[str, Tensor]:
    """Everything inside the decoder for `seq{i}` or `batch`, in the golden set's names and shapes."""
    single = row != "batch"

    def given(name: str) -> Tensor | None:
        tensor = inputs.get(f"{row}.{name}")
        return tensor[None] if tensor is not None and single else tensor

    ids, types = given("input_ids"), given("token_type_ids")
    assert ids is not None and types is not None
    packing = pack(types, given("attention_mask"), given("position_ids"), model.device)
    pixels = given("pixel_values")
    embeds = model.embed(ids.to(model.device), packing, None if pixels is None else pixels.to(model.device))
    first = model.layers[0]
    modules: dict[str, nn.Module] = {f"hidden.{k}": layer for k, layer in enumerate(model.layers)}
    modules |= {
        "layer0.input_norm": first.get_submodule("input_layernorm"),
        "layer0.post_norm": first.get_submodule("post_attention_layernorm"),
        "rotary": model.rotary,
    }
    for expert in ("vision", "language"):
        modules[f"{expert}.dense"] = first.get_submodule(f"{expert}.dense")
        modules[f"{expert}.down"] = first.get_submodule(f"{expert}.down")
    with recorded(modules) as outputs:
        hidden = model.decode(embeds, packing.vision, packing.positions, causal(packing))
    packed = {name: tensors[0] for name, tensors in outputs.items() if name.startswith(("hidden", "layer0"))}
    packed |= {"embeds": embeds, "norm": hidden, "logits": model.lm_head(hidden)}
    for branch, linear in (("attn_out", "dense"), ("mlp_out", "down")):
        packed[f"layer0.{branch}"] = torch.cat(outputs[f"vision.{linear}"] + outputs[f"language.{linear}"])
    packed["layer0.q_rot"], packed["layer0.k_rot"] = outputs["rotary"][:2]
    found: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        batch = packing.unpack(tensor)
        tensor = batch[0] if single else batch
        found[f"{row}.{name}"] = tensor.transpose(0, 1) if name.endswith("_rot") and single else tensor
    return found


def _generated(model: Model, inputs: dict[str, Tensor], expected: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Greedy tokens of each sequence alone, and of all together in fewer rows than sequences."""
    found: dict[str, Tensor] = {}
    requests = []
    for i in range(count):
        pixels = inputs.get(f"seq{i}.pixel_values")
        requests.append(
            Request(
                input_ids=inputs[f"seq{i}.input_ids"].tolist(),
                token_types=inputs[f"seq{i}.token_type_ids"].tolist(),
                pixels=None if pixels is None else pixels.clone,
                max_new_tokens=len(expected[f"seq{i}.generated"]) if f"seq{i}.generated" in expected else 1,
            )
        )
    columns = max(len(request.input_ids) + request.max_new_tokens for request in requests)
    for i, request in enumerate(requests):
        alone = Generator(model, rows=1, columns=columns, eos=None, keep_logits=True)
        (answer,) = alone([request])
        found[f"seq{i}.generated"] = torch.tensor(answer.tokens)
        found[f"seq{i}.step_logits"] = torch.stack(answer.logits)
    together = Generator(model, rows=max(1, count - 1), columns=columns, chunk=2, eos=None)
    found["batch.generated"] = torch.tensor([answer.tokens for answer in together(requests)])
    return found


def _rope(model: Model, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for prefix in ("rope", "rope128"):
        if f"{prefix}.x" not in expected:
            continue
        x, positions = expected[f"{prefix}.x"], expected[f"{prefix}.positions"]
        rotary = Rotary(x.shape[-1], model.config.rope_base)
        cos, sin = rotary.table(positions)
        found[f"{prefix}.inv_freq"] = rotary.inv_freq
        found[f"{prefix}.cos"], found[f"{prefix}.sin"] = cos[:, 0], sin[:, 0]
        found[f"{prefix}.x_rotated"] = rotary(x.transpose(0, 1), cos, sin).transpose(0, 1)
        if f"{prefix}.bf16_inv_freq" in expected:
            rotary.inv_freq = expected[f"{prefix}.bf16_inv_freq"].to(torch.bfloat16)
            cos, sin = rotary.table(positions)
            found[f"{prefix}.bf16_cos"], found[f"{prefix}.bf16_sin"] = cos[:, 0], sin[:, 0]
    return found


def _is_input(name: str) -> bool:
    """Whether an expected tensor is itself given to the model under test."""
    return name.endswith((".positions", ".x", ".bf16_inv_freq"))


def _sequences(golden: Golden) -> Iterable[Result]:
    for case in golden.masks:
        types = torch.tensor([case["token_type_ids"]])
        mask = None if case["attention_mask"] is None else torch.tensor([case["attention_mask"]])
        name = f"masks_positions.{case['name']}"
        yield compare(f"{name}.mask", expert_mask(types)[0], torch.tensor(case["vision_expert_mask"]))
        yield compare(f"{name}.positions", position_ids(types, mask)[0], torch.tensor(case["position_ids"]))


def _prompts(golden: Golden) -> Iterable[Result]:
    """The stub tokenizer of the golden set: the ids of a text are its UTF-8 bytes."""
    for i, case in enumerate(golden.prompts):
        history = [(asked, answered) for asked, answered in case["history"]]
        text = chat(case["query"], history, case["template"] or golden.config.template_version)
        ids, types = sequence(golden.config, list(text.encode()), image=case["image"])
        right = text == case["prompt"] and ids == case["input_ids"] and types == case["token_type_ids"]
        yield Result(f"prompts.{i}", 0.0 if right else float("inf"), 0.0)


def _image(golden: Golden, model: Model) -> Iterable[Result]:
    picture, case = golden.picture, golden.image_case
    if picture is None:
        return
    yield compare("image_case.raw_uint8", torch.tensor(picture), case["raw_uint8"])
    square = torch.tensor(resize(picture, golden.config.vision.image_size))
    yield compare("image_case.resized_uint8", square, case["resized_uint8"])
    for name, expected in case.items():
        if other := re.fullmatch(r"resized_uint8_(\d{2,4})", name):
            yield compare(f"image_case.{name}", torch.tensor(resize(picture, int(other[1]))), expected)
    pixels = normalize(square[None].to(model.device))[0]
    yield compare("image_case.pixel_values", pixels, case["pixel_values"])


def _folders(folder: Path) -> list[Path]:
    if (folder / "config.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    if not found:
        raise CheckpointError(f"{folder}: no config.json here or one folder below")
    return found


def _no_device(name: str) -> str:
    """Why there is no device of this name, or nothing."""
    try:
        torch.zeros(1, device=name).tolist()
    # A torch without CUDA raises AssertionError.
    except (RuntimeError, AssertionError) as failure:
        return f"--device {name}: {str(failure).splitlines()[0]}"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers.cogvlm.parity", description="Compare with golden vectors.")
    parser.add_argument("folder", type=Path, help="folder in the golden layout, or a folder of such folders")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    options = parser.parse_args(arguments)
    if problem := _no_device(options.device):
        parser.error(problem)
    # TF32 keeps ten bits of a float32 product and would fail by itself.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    write, failed = sys.stdout.write, 0
    try:
        for folder in _folders(options.folder):
            write(f"{folder}\n  {'tensor':<56}{'largest difference':>20}{'tolerance':>12}\n")
            results = check(folder, options.device)
            for result in results:
                verdict = "" if result.passed else "  FAIL"
                write(f"  {result.name:<56}{result.worst:>20.2e}{result.tolerance:>12.0e}{verdict}\n")
            beyond = sum(not result.passed for result in results)
            write(f"  {len(results) - beyond} of {len(results)} within tolerance\n")
            failed += beyond
            for label, dtype, weight_format in PRECISIONS:
                same, steps = agreement(folder, dtype=dtype, weight_format=weight_format, device=options.device)
                write(f"  {label}: same token at {same} of {steps} steps ({same / max(1, steps):.1%})\n")
    except CheckpointError as failure:
        sys.stderr.write(f"{failure}\n")
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
