"""A folder of golden vectors, read and checked before the model runs: what is damaged or missing is named in one line.

tests/data/cogvlm/README.md describes the layout.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workers.cogvlm.config import CheckpointError, Config, read_config, some
from workers.cogvlm.sequence import IMAGE, TEXT

# A JSON value's allowed types; a list is a list of whole numbers.
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "masks_positions.json": {
        "name": (str,),
        "token_type_ids": (list,),
        "attention_mask": (list, type(None)),
        "vision_expert_mask": (list,),
        "position_ids": (list,),
    },
    "prompts.json": {
        "template": (str, type(None)),
        "history": (list,),
        "query": (str,),
        "image": (bool,),
        "prompt": (str,),
        "input_ids": (list,),
        "token_type_ids": (list,),
    },
}
IMAGE_CASE = ("raw_uint8", "resized_uint8", "pixel_values")


@dataclass(frozen=True)
class Golden:
    """What the folder holds; `masks`, `prompts` and `picture` are empty or None where it has no such file."""

    config: Config
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    count: int
    masks: list[dict[str, Any]]
    prompts: list[dict[str, Any]]
    picture: npt.NDArray[np.uint8] | None
    image_case: dict[str, Tensor]


def read_golden(folder: Path) -> Golden:
    """The vectors in `folder`. Raises CheckpointError that names the file, the tensor or key, and what is wrong."""
    config = read_config(folder)
    inputs, expected = _tensors(folder / "inputs.safetensors"), _tensors(folder / "expected.safetensors")
    count = _check_inputs(folder / "inputs.safetensors", inputs, config)
    _check_expected(folder / "expected.safetensors", expected)
    picture, image_case = _image_case(folder)
    masks, prompts = _cases(folder / "masks_positions.json"), _cases(folder / "prompts.json")
    for i, case in enumerate(masks):
        lengths = {len(case[key]) for key in FIELDS["masks_positions.json"] if isinstance(case[key], list)}
        if len(lengths) != 1 or 0 in lengths:
            raise CheckpointError(
                f"{folder / 'masks_positions.json'}: entry {i}: its lists differ in length or are empty"
            )
    for i, case in enumerate(prompts):
        if case["template"] not in (None, "base", "chat", "vqa"):
            raise CheckpointError(f"{folder / 'prompts.json'}: entry {i}: template {case['template']!r} is not known")
    return Golden(config, inputs, expected, count, masks, prompts, picture, image_case)


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a folder of golden vectors has it")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as failure:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: no complete safetensors file ({failure}; {size} bytes); copy it again"
        ) from None


def _check_inputs(path: Path, inputs: dict[str, Tensor], config: Config) -> int:
    """Names, shapes and values of the inputs; returns the number of sequences."""
    count = max((int(found[1]) + 1 for name in inputs if (found := re.match(r"seq(\d{1,3})\.", name))), default=1)
    rows = [*(f"seq{i}" for i in range(count)), "batch"]
    missing = [f"{row}.{name}" for row in rows for name in ("input_ids", "token_type_ids")]
    missing = [name for name in [*missing, "batch.pixel_values"] if name not in inputs]
    if missing:
        raise CheckpointError(f"{path}: no {some(missing)}")
    for row in rows:
        _check_row(path, inputs, config, row)
    return count


def _check_row(path: Path, inputs: dict[str, Tensor], config: Config, row: str) -> None:
    def refuse(name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{path}: {row}.{name} {what}")

    ids = inputs[f"{row}.input_ids"]
    if ids.dim() != (2 if row == "batch" else 1) or not ids.numel():
        raise refuse("input_ids", f"is {list(ids.shape)}, expected [{'B, ' if row == 'batch' else ''}L]")
    for name in ("input_ids", "token_type_ids", "attention_mask", "position_ids"):
        given = inputs.get(f"{row}.{name}")
        if given is None:
            continue
        if given.is_floating_point() or given.shape != ids.shape:
            raise refuse(name, f"is {given.dtype} {list(given.shape)}, expected whole numbers {list(ids.shape)}")
        if name == "token_type_ids" and not bool(((given == TEXT) | (given == IMAGE)).all()):
            raise refuse(name, "holds values other than 0 (text) and 1 (picture)")
        if name == "input_ids" and not bool(((given >= 0) & (given < config.vocab_size)).all()):
            raise refuse(name, f"holds ids outside the vocabulary of {config.vocab_size}")
    mask = inputs.get(f"{row}.attention_mask")
    if mask is not None and not bool(mask.bool().any(-1).all()):
        raise refuse("attention_mask", "has a row of padding alone")
    pixels, side = inputs.get(f"{row}.pixel_values"), config.vision.image_size
    image = inputs[f"{row}.token_type_ids"] == IMAGE
    wanted = int((image if mask is None else image & mask.bool()).sum()) // config.image_tokens
    shape = [wanted, 3, side, side] if row == "batch" else [3, side, side]
    if pixels is not None and (list(pixels.shape) != shape or not pixels.is_floating_point()):
        raise refuse("pixel_values", f"is {pixels.dtype} {list(pixels.shape)}, expected float {shape}")
    tokens = int((image if mask is None else image & mask.bool()).sum())
    pictures = 0 if pixels is None else len(pixels) if row == "batch" else 1
    if pictures and tokens != pictures * config.image_tokens:
        raise refuse("token_type_ids", f"has {tokens} image tokens, its pictures have {pictures * config.image_tokens}")


def _check_expected(path: Path, expected: dict[str, Tensor]) -> None:
    if not expected:
        raise CheckpointError(f"{path}: holds no tensor")
    for name, tensor in expected.items():
        if name.endswith(".generated") and (tensor.is_floating_point() or not tensor.numel()):
            raise CheckpointError(f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, expected token ids")
        if re.fullmatch(r"seq\d+\.generated", name) and tensor.dim() != 1:
            raise CheckpointError(f"{path}: {name} is {list(tensor.shape)}, expected [T]")
    for prefix in ("rope", "rope128"):
        if f"{prefix}.x" not in expected:
            continue
        x, positions = expected[f"{prefix}.x"], expected.get(f"{prefix}.positions")
        if positions is None:
            raise CheckpointError(f"{path}: {prefix}.x without {prefix}.positions")
        if x.dim() != 3 or x.shape[-1] % 2 or positions.shape != x.shape[1:2]:
            shapes = f"{list(x.shape)} and {list(positions.shape)}"
            raise CheckpointError(f"{path}: {prefix}.x and .positions are {shapes}, expected [heads, T, d] and [T]")
        low = expected.get(f"{prefix}.bf16_inv_freq")
        if low is not None and low.shape != (x.shape[-1] // 2,):
            raise CheckpointError(f"{path}: {prefix}.bf16_inv_freq is {list(low.shape)}, expected [{x.shape[-1] // 2}]")


def _cases(path: Path) -> list[dict[str, Any]]:
    """The entries of one of the JSON files, every key there and of its type; none where there is no file."""
    if not path.is_file():
        return []
    try:
        cases = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as failure:
        raise CheckpointError(f"{path}: no valid JSON: {failure}") from None
    if not isinstance(cases, list):
        raise CheckpointError(f"{path}: expected a list of entries")
    for i, case in enumerate(cases):
        for key, kinds in FIELDS[path.name].items():
            value = case.get(key, ...) if isinstance(case, dict) else ...
            if value is ...:
                raise CheckpointError(f"{path}: entry {i} has no {key!r}")
            if not isinstance(value, kinds) or not _plain(key, value):
                names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
                raise CheckpointError(f"{path}: entry {i}: {key} is {str(value)[:60]!r}, expected {names}")
    return cases


def _plain(key: str, value: Any) -> bool:
    """Whether a list holds what it should: pairs of texts in `history`, whole numbers elsewhere."""
    if not isinstance(value, list):
        return True
    if key == "history":
        return all(
            isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn) for turn in value
        )
    return all(isinstance(number, int) for number in value)


def _image_case(folder: Path) -> tuple[npt.NDArray[np.uint8] | None, dict[str, Tensor]]:
    path, picture = folder / "image_case.safetensors", folder / "image_case.png"
    if not path.is_file():
        return None, {}
    case = _tensors(path)
    if missing := [name for name in IMAGE_CASE if name not in case]:
        raise CheckpointError(f"{path}: no {some(missing)}")
    try:
        with Image.open(picture) as opened:
            rgb = np.asarray(opened.convert("RGB"))
    # Pillow raises SyntaxError for a damaged PNG chunk.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as failure:
        raise CheckpointError(f"{picture}: no picture that decodes ({failure}); copy it again") from None
    return rgb, case
