"""Pictures to latents, and their cache: mean and standard deviation, so that every epoch draws anew.

    cache/latents/VAE/ab/abcd....safetensors      mean, std: float16 [4, h, w]; 131 kB each at 1024 px

The key is the content, how it was cut (bucket, resized, crop, mirrored) and the autoencoder: what the UNet is told of
size and crop is what the latent shows. (diffusers' SDXL script caches one random crop and reports another.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError
from curate.train.checkpoint import load_cached, save_tensors
from curate.train.keyed import digest

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

CUT = ("bucket", "resized", "crop", "flipped")


@dataclass(frozen=True)
class Moments:
    """What the autoencoder says of a picture: a Gaussian with `mean` and `std`, float32 [channels, h, w], unscaled."""

    mean: torch.Tensor
    std: torch.Tensor


def encode(vae: AutoencoderKL, image: torch.Tensor, row_id: str) -> Moments:
    """The moments of one picture, uint8 [3, h, w]; raises CurateError when they are not finite.

    One at a time: within a batch the last bits depend on its other pictures, and a run that was killed while it filled
    the cache would not end bit-equal to one that was not.
    """
    import torch

    with torch.inference_mode():
        pixels = image.to(vae.device)[None].to(torch.float32) / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        mean, std = posterior.mean[0].half().cpu(), posterior.std[0].half().cpu()
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise CurateError(f"row {row_id}: the autoencoder's output is not finite in float16")
    # Rounded as the cache rounds them, so that a run learns the same with and without it.
    return Moments(mean.float(), std.float())


class LatentCache:
    """Moments by content, cut and autoencoder."""

    def __init__(self, folder: Path, vae_name: str) -> None:
        self.folder = folder / "latents" / vae_name

    def path(self, item: Mapping[str, Any]) -> Path:
        """Where the moments of an item of MixDataset lie."""
        key = digest(item["sha256"], *(str(_plain(item[name])) for name in CUT)).hex()
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, item: Mapping[str, Any]) -> Moments | None:
        """The moments of an item, or None when they are not there."""
        found = load_cached(self.path(item))
        return Moments(found["mean"], found["std"]) if found else None

    def put(self, item: Mapping[str, Any], moments: Moments) -> None:
        """Keep the moments of an item."""
        facts = {"row_id": str(item["row_id"]), "sha256": str(item["sha256"])}
        facts |= {name: str(_plain(item[name])) for name in CUT}
        tensors = {"mean": moments.mean.half(), "std": moments.std.half()}
        save_tensors(self.path(item), tensors, facts, durable=False)


def _plain(value: Any) -> Any:
    """A pair as a tuple of int, so that its text is the same whatever container it came in."""
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else bool(value)
