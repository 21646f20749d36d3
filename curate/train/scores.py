"""CLIP score and KID of a sample grid, when the weights of a CLIP model are there.

    [measure]
    clip = "weights/clip-vit-large-patch14"        a CLIPModel in the layout of transformers

    kid_samples = 5000

CLIP score: cosine of picture and prompt of the grid, mean (Hessel et al. 2021, without the factor 2.5). KID: squared
maximum mean discrepancy with the cubic kernel (Binkowski et al. 2018) between held-out pictures and as many samples of
their captions as asked for, on CLIP's features; it is unbiased at any size, its error shrinks with the number of
pictures, and it is not comparable with figures on Inception's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate.errors import UsageError
from curate.mix import MixDataset
from curate.train.data import Place, Tools
from curate.train.evaluate import SEED, splits
from curate.train.grid import Sampled, sample
from curate.train.recipe import KID_LEAST, Recipe

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

Reals = npt.NDArray[np.float64]
REAL_PICTURES = 5000  # held-out pictures that samples are held against, at most


def clip_score(drawn: Sequence[Sampled], folder: str, place: Place) -> dict[str, float]:
    """`clip_score` of the samples of a grid."""
    clip = Clip(folder, place.device)
    fake, said = clip.pictures([one.pixels for one in drawn]), clip.texts([one.prompt for one in drawn])
    return {"clip_score": round(float((_unit(fake) * _unit(said)).sum(1).mean()), 5)}


def kid_score(
    unet: UNet2DConditionModel, wanted: Recipe, mix: str, tools: Tools, place: Place, said: Callable[[str], None],
    least: int = KID_LEAST,
) -> dict[str, float]:  # fmt: skip
    """`kid` of drawn pictures against held-out ones, with its standard error; ranks draw their shares of both.

    A mix with fewer than `least` held-out rows has no KID: that is said, and nothing comes back.
    """
    phase = wanted.phases[-1]
    split = "validation" if "validation" in splits(mix) else "train"
    held_out = MixDataset(mix, split=split, seed=SEED, crop="center", buckets=phase.buckets or None)
    there = min(held_out.steps(0), REAL_PICTURES)
    if there < least:
        said(f"no KID: {there} held-out pictures in {mix}, {least} are needed (curate mix --validation)")
        return {}
    clip, unet_training = Clip(wanted.measure.clip, place.device), unet.training
    real, fake = [], []
    for number in range(place.rank, there, place.world):
        real.append(clip.pictures([held_out.batch(0, number)["image"].permute(1, 2, 0).numpy()]))
    unet.eval()
    for number in range(place.rank, wanted.measure.kid_samples, place.world):
        item = held_out.batch(0, number % there)
        drawn = sample(unet, str(item["caption"]), number // there, wanted, tools, place, phase, item["bucket"])
        fake.append(clip.pictures([drawn]))
    unet.train(unet_training)
    value, error = kid(gathered(fake, place), gathered(real, place))
    return {"kid": round(value, 6), "kid_error": round(error, 6), "kid_pictures": wanted.measure.kid_samples}


def gathered(mine: Sequence[Reals], place: Place) -> Reals:
    """The rows of all ranks, on every rank."""
    own = np.concatenate(mine) if mine else np.zeros((0, 0))
    everyone = [own] * place.world
    if place.world > 1:
        import torch.distributed as dist

        dist.all_gather_object(everyone, own)
    return np.concatenate([part for part in everyone if len(part)])


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


def kid(a: Reals, b: Reals) -> tuple[float, float]:
    """Kernel inception distance of two sets of features [n, d], 3 or more each, and its standard error over pictures.

    The unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, and its jackknife over single
    pictures of both sets (Efron & Stein 1981); near 0 it is up to 1.5 times too large. Means over subsets, the usual
    error, tell of the subsets and not of the pictures.
    """
    n, m = len(a), len(b)
    within_a, within_b = (_kernel(x, x) for x in (a, b))
    np.fill_diagonal(within_a, 0)
    np.fill_diagonal(within_b, 0)
    across = _kernel(a, b)
    of_a, of_b, between = within_a.sum(), within_b.sum(), across.sum()
    mean_a, mean_b = of_a / (n * (n - 1)), of_b / (m * (m - 1))
    without_a = (of_a - 2 * within_a.sum(1)) / ((n - 1) * (n - 2)) - 2 * (between - across.sum(1)) / ((n - 1) * m)
    without_b = (of_b - 2 * within_b.sum(1)) / ((m - 1) * (m - 2)) - 2 * (between - across.sum(0)) / (n * (m - 1))
    variance = (n - 1) * without_a.var() + (m - 1) * without_b.var()
    return float(mean_a + mean_b - 2 * between / (n * m)), float(np.sqrt(variance))


def _kernel(x: Reals, y: Reals) -> Reals:
    found: Reals = (x @ y.T / x.shape[1] + 1) ** 3
    return found


def _unit(x: Reals) -> Reals:
    found: Reals = x / np.linalg.norm(x, axis=1, keepdims=True)
    return found


def _tensor(output: Any) -> Reals:
    """Newer versions of transformers wrap the features in an output object."""
    tensor = getattr(output, "pooler_output", output)
    found: Reals = tensor.double().cpu().numpy()
    return found
