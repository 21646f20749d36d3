"""CLIP score and KID of a sample grid, when the weights of a CLIP model are there.

    [measure]
    clip = "weights/clip-vit-large-patch14"        a CLIPModel in the layout of transformers

CLIP score: cosine of picture and prompt, mean (Hessel et al. 2021, without the factor 2.5). KID: squared maximum mean
discrepancy with the cubic kernel (Binkowski et al. 2018) between samples and held-out pictures, on CLIP's features; it
is unbiased at any size, and not comparable with figures on Inception's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate.errors import UsageError
from curate.mix import MixDataset
from curate.train.data import Place
from curate.train.evaluate import SEED, splits
from curate.train.grid import Sampled

if TYPE_CHECKING:
    import torch

Reals = npt.NDArray[np.float64]
REAL_PICTURES = 5000  # held-out pictures that samples are held against, at most


def score(drawn: Sequence[Sampled], mix: str, folder: str, place: Place) -> dict[str, float]:
    """`clip_score` of the samples, and `kid` with its standard error against held-out pictures."""
    clip = Clip(folder, place.device)
    fake = clip.pictures([one.pixels for one in drawn])
    said = clip.texts([one.prompt for one in drawn])
    found = {"clip_score": round(float((_unit(fake) * _unit(said)).sum(1).mean()), 5)}
    split = "validation" if "validation" in splits(mix) else "train"
    real = MixDataset(mix, split=split, seed=SEED, crop="center")
    pixels = [real.batch(0, n)["image"].permute(1, 2, 0).numpy() for n in range(min(real.steps(0), REAL_PICTURES))]
    if min(len(pixels), len(fake)) >= 2:
        value, error = kid(fake, clip.pictures(pixels))
        found |= {"kid": round(value, 6), "kid_error": round(error, 6)}
    return found


class Clip:
    """Features of pictures and texts, float64 [n, d]."""

    def __init__(self, folder: str, device: torch.device) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        if not (Path(folder) / "config.json").is_file():
            raise UsageError(f"measure.clip = {folder!r}: no config.json there; name the folder of a CLIPModel")
        self.device = device
        self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval().to(device)
        self.processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def pictures(self, some: Sequence[npt.NDArray[np.uint8]], batch: int = 32) -> Reals:
        """Features of pictures, uint8 [h, w, 3]."""
        import torch
        from PIL import Image

        found = []
        for start in range(0, len(some), batch):
            images = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in some[start : start + batch]]
            inputs = self.processor(images=images, return_tensors="pt")["pixel_values"].to(self.device)
            with torch.inference_mode():
                found.append(_tensor(self.model.get_image_features(pixel_values=inputs)))
        return np.concatenate(found)

    def texts(self, some: Sequence[str]) -> Reals:
        """Features of texts, cut at CLIP's length."""
        import torch

        inputs = self.tokenizer(list(some), padding=True, truncation=True, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            return _tensor(self.model.get_text_features(**inputs))


def kid(a: Reals, b: Reals, subsets: int = 100, size: int = 1000) -> tuple[float, float]:
    """Kernel inception distance of two sets of features [n, d], and its standard error: means over random subsets."""
    draw = np.random.default_rng(0)
    count = min(size, len(a), len(b))
    values = [
        _mmd(a[draw.choice(len(a), count, replace=False)], b[draw.choice(len(b), count, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values) / np.sqrt(subsets))


def _mmd(a: Reals, b: Reals) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3."""

    def kernel(x: Reals, y: Reals) -> Reals:
        found: Reals = (x @ y.T / x.shape[1] + 1) ** 3
        return found

    n = len(a)
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(a, a), kernel(b, b)))
    return float(within - 2 * kernel(a, b).mean())


def _unit(x: Reals) -> Reals:
    found: Reals = x / np.linalg.norm(x, axis=1, keepdims=True)
    return found


def _tensor(output: Any) -> Reals:
    """Newer versions of transformers wrap the features in an output object."""
    tensor = getattr(output, "pooler_output", output)
    found: Reals = tensor.double().cpu().numpy()
    return found
