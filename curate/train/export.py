"""The trained model as others load it: a folder for diffusers with safetensors, or LoRA matrices in PEFT's layout.

    KolorsPipeline.from_pretrained("OUTPUT/model")
    pipeline.load_lora_weights("OUTPUT/lora")          or  PeftModel.from_pretrained(unet, "OUTPUT/lora")

Weights are the averaged ones when the run keeps an average. The frozen parts are copied from the base as they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.train.models import VARIANT, weights
from curate.train.recipe import Recipe
from curate.train.schedule import scheduler_config

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "feature_extractor", "image_encoder")


def export_model(unet: UNet2DConditionModel, wanted: Recipe, base: Path, folder: Path) -> Path:
    """Write a diffusers folder around the UNet; whole or absent."""
    from diffusers import EulerDiscreteScheduler

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for part in PARTS:
        if (base / part).is_dir():
            copy_part(base / part, partial / part)
    unet.save_pretrained(partial / "unet", safe_serialization=True)
    config = scheduler_config(wanted.phases[-1].schedule, wanted.model.prediction)  # type: ignore[arg-type]
    EulerDiscreteScheduler(**config).save_pretrained(partial / "scheduler")
    index = json.loads((base / "model_index.json").read_text("utf-8"))
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (partial / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return folder


def copy_part(source: Path, out: Path) -> None:
    """Copy a frozen part of the base; where only half-precision files are, under the names that load by default."""
    only_half = any(source.glob(f"*{VARIANT}*")) and weights(source)["variant"]
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        name = path.relative_to(source).as_posix()
        copy = out / (name.replace(VARIANT, "") if only_half else name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if only_half and ".index" in name:  # which shard holds which tensor
            copy.write_text(path.read_text("utf-8").replace(VARIANT, ""), "utf-8")


def export_lora(unet: UNet2DConditionModel, folder: Path) -> Path:
    """Write the LoRA matrices twice: for diffusers (pytorch_lora_weights) and as PEFT's adapter_model."""
    from diffusers import StableDiffusionXLPipeline
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapter = unet.peft_config["default"]
    config: dict[str, Any] = {
        key: sorted(value) if isinstance(value, set) else value for key, value in adapter.to_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    matrices = get_peft_model_state_dict(unet, adapter_name="default")
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=matrices, unet_lora_adapter_metadata=config)
    whole = {f"base_model.model.{name}": matrix.cpu().contiguous() for name, matrix in matrices.items()}
    save_file(whole, folder / "adapter_model.safetensors", {"format": "pt"})
    adapter.save_pretrained(folder)
    return folder
