"""The models of a run, by the classes of diffusers, from a local folder in the layout of diffusers.

    base/  model_index.json  unet/  vae/  text_encoder/  tokenizer/  [text_encoder_2/  tokenizer_2/]  scheduler/

`UNETS` holds the shapes; a UNet of one of them is drawn anew when the recipe asks for no trained one. Weights are
safetensors only; nothing is downloaded and no code of a checkpoint is run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.errors import UsageError

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
UNETS: dict[str, dict[str, Any]] = {
    "sdxl": SDXL,
    # ChatGLM3's 4096 channels are projected to SDXL's 2048; its last token stands for the pooled text.
    "kolors": SDXL
    | {
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "projection_class_embeddings_input_dim": 4096 + 6 * 256,
    },
    # Kolors in miniature: the same parts and the same conditioning, 1.3 million parameters.
    "tiny": SDXL
    | {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 64,
        "norm_num_groups": 8,
        "encoder_hid_dim": 64,
        "encoder_hid_dim_type": "text_proj",
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 64 + 6 * 16,
    },
}


COUNTED = {".json", ".model", ".safetensors", ".txt"}  # suffixes of what decides what a model says
BLOCK, BLOCKS = 1 << 16, 256  # bytes, and how many of them are read of a large file
VARIANT = ".fp16"  # as published folders name half-precision files: diffusion_pytorch_model.fp16.safetensors


def make_unet(shape: str, seed: int) -> UNet2DConditionModel:
    """A UNet of a shape of UNETS with random weights that `seed` decides."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**UNETS[shape])


def load_unet(base: Path) -> UNet2DConditionModel:
    """The UNet of a diffusers folder, float32."""
    import torch
    from diffusers import UNet2DConditionModel

    folder = _part(base, "unet")
    with readable(folder):
        return UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32, **weights(folder))


def load_vae(base: Path) -> AutoencoderKL:
    """The autoencoder of a diffusers folder, float32 (SDXL's overflows in float16) and frozen."""
    import torch
    from diffusers import AutoencoderKL

    folder = _part(base, "vae")
    with readable(folder):
        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, **weights(folder))
    return vae.requires_grad_(False).eval()


def other_prediction(base: Path, unet: str, prediction: str) -> str:
    """What to say when a trained UNet was taught to predict something else than the recipe asks for; else empty."""
    path = base / "scheduler" / "scheduler_config.json"
    if unet != "trained" or not path.is_file():
        return ""
    theirs = json.loads(path.read_text("utf-8")).get("prediction_type", "epsilon")
    if theirs == prediction:
        return ""
    return (
        f"model.prediction = {prediction!r}, but the UNet of {base} predicts {theirs!r} (scheduler/"
        "scheduler_config.json): it has to learn anew what it says"
    )


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: float, seed: int) -> None:
    """Freeze the UNet and add trainable low-rank matrices to its attention, as Kolors' own trainer does."""
    import torch
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(
                r=rank,
                lora_alpha=alpha,
                init_lora_weights="gaussian",
                target_modules=["to_k", "to_q", "to_v", "to_out.0"],
            )
        )


def trainable(unet: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name, in the model's order."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def identity(folder: Path) -> str:
    """Names the models of a folder without reading gigabytes: names, sizes, contents (16 MiB of large files).

    Training changes all weights, so blocks over the whole file tell. Cards, licences and pictures do not count.
    """
    found = sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in COUNTED):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder).as_posix()}:{size}:".encode())
        with path.open("rb") as file:
            whole = size <= BLOCKS * BLOCK
            spread = [(size - BLOCK) * n // (BLOCKS - 1) for n in range(BLOCKS)]
            for start in range(0, size, BLOCK) if whole else spread:
                file.seek(start)
                found.update(file.read(BLOCK))
    return found.hexdigest()[:16]


def weights(folder: Path) -> dict[str, Any]:
    """How the weights in a folder are loaded: safetensors only, of the half-precision variant where nothing else is.

    Raises UsageError when there are none.
    """
    names = [path.name for path in folder.glob("*.safetensors")]
    if not names:
        raise UsageError(f"{folder}: no *.safetensors there (.bin files are not read); convert the weights")
    plain = [name for name in names if VARIANT not in name]
    return {"use_safetensors": True, "local_files_only": True, "variant": None if plain else VARIANT[1:]}


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raise UsageError for what diffusers and transformers cannot load from a folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError) as why:
        raise UsageError(f"{folder}: does not load: {' '.join(str(why).split())[:300]}") from None


def _part(base: Path, name: str) -> Path:
    folder = base / name
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"model.base = {str(base)!r}: no {name}/config.json there; name a folder in the layout of diffusers "
            "(unet, vae, text_encoder, tokenizer), or leave model.base empty for the tiny models"
        )
    return folder
