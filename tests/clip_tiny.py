"""A tiny random CLIP in open_clip's published layout, and one of SigLIP, for the tests of embeddings."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def write_clip(folder: Path, quick_gelu: bool = True) -> Path:
    """NAME.json and open_clip_model.safetensors in `folder`; returns the latter, which does not depend on the GELU."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    name = f"tiny-{'quickgelu' if quick_gelu else 'gelu'}"
    (folder / f"{name}.json").write_text(json.dumps(CONFIG | {"quick_gelu": quick_gelu}))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(name)
    # Large enough in the MLPs for the two GELUs to differ by more than rounding.
    tensors = {key: (value * (30 if "c_proj" in key else 1)).contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"


def write_siglip(folder: Path) -> Path:
    """config.json, preprocessor_config.json and model.safetensors as transformers saves a SigLIP; returns `folder`."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    torch.manual_seed(1)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def write_head(path: Path, width: int, numbers: tuple[int, ...], prefix: str = "layers", seed: int = 2) -> Path:
    """A random aesthetic head of the published layout: 1024-128-64-16-1 shrunk, layers of these numbers."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (width, 20, 12, 8, 4, 1) if numbers else (width, 1)
    tensors = {}
    for i, number in enumerate(numbers or (None,)):
        name = "" if number is None else f"{prefix}.{number}."
        tensors[f"{name}weight"] = torch.randn(sizes[i + 1], sizes[i], generator=generator)
        tensors[f"{name}bias"] = torch.randn(sizes[i + 1], generator=generator)
    torch.save(tensors, path)
    return path
