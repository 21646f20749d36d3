"""The models of a run, by the classes of diffusers, from a local folder in the layout of diffusers.

    base/  model_index.json  unet/  vae/  text_encoder/  tokenizer/  [text_encoder_2/  tokenizer_2/]  scheduler/

`UNETS` holds the shapes; a UNet of one of them is drawn anew when the recipe asks for no trained one. Weights are
safetensors only; nothing is downloaded and no code of a checkpoint is run.
"""

from __future__ import annotations

import json
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

    return UNet2DConditionModel.from_pretrained(
        _part(base, "unet"), torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )


def load_vae(base: Path) -> AutoencoderKL:
    """The autoencoder of a diffusers folder, float32 (SDXL's overflows in float16) and frozen."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(
        _part(base, "vae"), torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return vae.requires_grad_(False).eval()


def vae_factor(base: Path) -> int:
    """Pixels for each latent along a side, by the autoencoder's configuration."""
    config = json.loads((_part(base, "vae") / "config.json").read_text("utf-8"))
    return int(2 ** (len(config["block_out_channels"]) - 1))


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
    """Names what a model folder holds, without reading gigabytes: each file's name, size, first and last MiB."""
    found = sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder).as_posix()}:{size}:".encode())
        with path.open("rb") as file:
            found.update(file.read(1 << 20))
            file.seek(max(size - (1 << 20), 0))
            found.update(file.read())
    return found.hexdigest()[:16]


def _part(base: Path, name: str) -> Path:
    folder = base / name
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"model.base = {str(base)!r}: no {name}/config.json there; name a folder in the layout of diffusers "
            "(unet, vae, text_encoder, tokenizer), or set model.preset = 'tiny'"
        )
    return folder
