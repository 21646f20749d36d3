"""Sample grids: fixed prompts, fixed seeds, raw and averaged weights; text in prompts is read back by OCR.

    grids/step-00001000-ema.png, .json       a row a prompt, a column a seed; what was asked and what was read

Every picture has a generator of its own, keyed by prompt and seed, so that a longer list of prompts changes no picture.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from curate.errors import UsageError
from curate.mix.buckets import parse
from curate.train.checkpoint import State, averaged, write_bytes
from curate.train.data import Place, Tools, manifest_of
from curate.train.keyed import generator
from curate.train.recipe import Phase, Recipe
from curate.train.schedule import Prediction, scheduler_config
from curate.train.text import padded

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

Pixels = npt.NDArray[np.uint8]
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|「([^」]+)」')


@dataclass(frozen=True)
class Sampled:
    """One picture of a grid. `text` is what the prompt asks to be written, `read` what OCR reads, `match` 0..1."""

    prompt: str
    seed: int
    pixels: Pixels
    text: str | None = None
    read: str | None = None
    match: float | None = None


def prompts(path: str) -> list[str]:
    """The prompts of a file, one a line, or the shipped ones; lines that begin with # are for the reader."""
    try:
        text = (
            Path(path).read_text("utf-8") if path else files("curate.train").joinpath("prompts.txt").read_text("utf-8")
        )
    except (OSError, UnicodeDecodeError) as why:
        raise UsageError(f"measure.prompts = {path!r}: {why}") from None
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found:
        raise UsageError(f"measure.prompts = {path!r}: no prompt in it")
    return found


def sample(
    unet: UNet2DConditionModel,
    prompt: str,
    seed: int,
    wanted: Recipe,
    tools: Tools,
    place: Place,
    phase: Phase,
    size: tuple[int, int],
) -> Pixels:
    """One picture, uint8 [h, w, 3]: Euler steps of a phase's schedule, with guidance against the empty caption.

    `size` is (width, height) in pixels.
    """
    import torch
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**scheduler_config(phase.schedule, cast(Prediction, wanted.model.prediction)))
    scheduler.set_timesteps(wanted.measure.sampling_steps, device=place.device)
    factor = 2 ** (len(tools.vae.config.block_out_channels) - 1)
    shape = (1, int(unet.config["in_channels"]), size[1] // factor, size[0] // factor)
    noise = generator(prompt, seed).standard_normal(shape, dtype=np.float32)
    latent = torch.from_numpy(noise).to(place.device) * scheduler.init_noise_sigma
    hidden, pooled = padded([tools.text(""), tools.text(prompt)], tools.encoder.length, tools.encoder.pad_left)
    ids = torch.tensor([[size[1], size[0], 0, 0, size[1], size[0]]] * 2, dtype=torch.float32)
    said = {"text_embeds": pooled.to(place.device), "time_ids": ids.to(place.device)}
    with (
        torch.inference_mode(),
        torch.autocast(place.device.type, torch.bfloat16, enabled=wanted.model.precision == "bfloat16"),
    ):
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latent, latent]), t)
            free, guided = unet(both, t, hidden.to(place.device), added_cond_kwargs=said).sample.float().chunk(2)
            step = scheduler.step(free + wanted.measure.guidance * (guided - free), t, latent, return_dict=False)
            latent = cast("torch.Tensor", step[0])
    with torch.inference_mode():
        pixels = tools.vae.decode(latent / tools.vae.config.scaling_factor).sample[0]
    clear: Pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return clear


def draw(
    unet: UNet2DConditionModel, wanted: Recipe, tools: Tools, place: Place, phase: Phase, size: tuple[int, int]
) -> list[Sampled]:
    """Every prompt with every seed."""
    was_training = unet.training
    unet.eval()
    found = [
        Sampled(prompt, seed, sample(unet, prompt, seed, wanted, tools, place, phase, size))
        for prompt in prompts(wanted.measure.prompts)
        for seed in range(wanted.measure.grid_seeds)
    ]
    unet.train(was_training)
    return [read_back(one) for one in found]


def sheets(
    unet: UNet2DConditionModel, state: State, wanted: Recipe, phase: Phase, mix: str, tools: Tools, place: Place
) -> tuple[list[Sampled], dict[str, float]]:
    """Write the sheets of a step in the phase's size, with raw and with averaged weights; the last, and scores."""
    buckets = parse(phase.buckets) if phase.buckets else [(w, h) for w, h in manifest_of(mix)["buckets"]]
    drawn: list[Sampled] = []
    scores: dict[str, float] = {}
    for weights in ("raw", "ema") if state.ema else ("raw",):
        with averaged(state) if weights == "ema" else contextlib.nullcontext():
            drawn = draw(unet, wanted, tools, place, phase, square(buckets))
        path = wanted.folder / "grids" / f"step-{state.step:08d}-{weights}"
        scores = write(drawn, path, wanted.measure.grid_seeds)
    return drawn, scores


def read_back(one: Sampled) -> Sampled:
    """The picture with what OCR reads of the text that its prompt quotes."""
    quoted = QUOTED.search(one.prompt)
    if not quoted:
        return one
    text = next(group for group in quoted.groups() if group)
    read = "".join(line.text for line in _reader().lines(_picture(one.pixels)) if line.accepted)
    return Sampled(one.prompt, one.seed, one.pixels, text, read, text_match(text, read))


def text_match(wanted: str, read: str) -> float:
    """Share of characters in common order, 0..1, without regard to case and white space; 1 is a perfect rendering."""
    a, b = ("".join(text.split()).casefold() for text in (wanted, read))
    return round(SequenceMatcher(None, a, b, autojunk=False).ratio(), 4)


def square(buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket nearest to a square: (width, height) of samples."""
    return min(buckets, key=lambda size: (abs(math.log(size[0] / size[1])), -size[0]))


def write(some: Sequence[Sampled], path: Path, columns: int) -> dict[str, float]:
    """Write PATH.png and PATH.json; the means of what was scored."""
    from io import BytesIO

    from PIL import Image

    height, width = some[0].pixels.shape[:2]
    rows = -(-len(some) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for number, one in enumerate(some):
        sheet.paste(Image.fromarray(one.pixels), (number % columns * width, number // columns * height))
    out = BytesIO()
    sheet.save(out, "PNG")
    write_bytes(path.with_suffix(".png"), out.getvalue())
    lines = [
        {"prompt": one.prompt, "seed": one.seed, "text": one.text, "read": one.read, "match": one.match} for one in some
    ]
    write_bytes(path.with_suffix(".json"), json.dumps(lines, indent=1, ensure_ascii=False).encode())
    matches = [one.match for one in some if one.match is not None]
    return {"text_match": round(float(np.mean(matches)), 4)} if matches else {}


def _picture(pixels: Pixels) -> Any:
    from io import BytesIO

    from PIL import Image

    from workers.picture import Limits, decode

    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return decode(out.getvalue(), Limits())


@functools.cache
def _reader() -> Any:
    """One OCR engine a process: it takes a second to load."""
    from workers.ocr import RapidOcr

    return RapidOcr()
