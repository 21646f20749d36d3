"""From a mix to batches: what step s of a phase trains on, a function of (seed, step) and of nothing else.

    data = PhaseData(recipe, phase, tools, place)
    for batch in data.stream(start, stop): ...        made ahead in a thread

The mix says which rows a step has, in which bucket and with which caption. All else that is drawn for a sample (its
timestep, noise, latent, whether its caption is dropped) is keyed by (seed, phase, epoch, place in the epoch), so that
ranks, workers and restarts cannot change it.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import UsageError
from curate.mix import MixDataset, manifest
from curate.store.files import open_files
from curate.train.keyed import digest, generator
from curate.train.latents import LatentCache, Moments, encode
from curate.train.recipe import Phase, Recipe
from curate.train.schedule import SCHEDULES
from curate.train.text import Encoded, TextCache, TextEncoder, padded
from curate.train.text import encode as encode_text

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

EMPTY_EPOCHS = 64  # epochs without a single batch before we say that there are too few rows


@dataclass(frozen=True)
class Place:
    """Where this process stands: all that the loop knows of the machine."""

    rank: int
    world: int
    device: torch.device


@dataclass
class Tools:
    """The frozen models and the caches. `encoder` and `vae` are loaded when something is not cached."""

    vae: AutoencoderKL
    encoder: TextEncoder
    latents: LatentCache | None
    texts: TextCache | None
    encoded: int = 0
    """Pictures that went through the autoencoder."""

    def moments(self, item: Mapping[str, Any], image: torch.Tensor) -> Moments:
        """Encode a picture and keep what came out."""
        found = encode(self.vae, image, str(item["row_id"]))
        self.encoded += 1
        if self.latents:
            self.latents.put(item, found)
        return found

    def text(self, caption: str) -> Encoded:
        """The encoding of a caption, from the cache when there is one."""
        found = self.texts.get(caption) if self.texts else None
        if found is None:
            found = encode_text(self.encoder, caption)
            if self.texts:
                self.texts.put(caption, found)
        return found


@dataclass
class Batch:
    """This rank's share of a step: n samples of one size, on the CPU (pinned when the device is a GPU)."""

    step: int
    row_ids: list[str]
    captions: list[str]
    kinds: list[str]
    """`raw`, `synthetic`, or `dropped` where the sample sees the empty caption."""
    mean: torch.Tensor
    std: torch.Tensor
    sample: torch.Tensor
    """Standard normal draws for the latent: z = mean + std * sample."""
    noise: torch.Tensor
    timesteps: torch.Tensor
    hidden: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    """[n, 6]: original height and width, crop top and left, target height and width; SDXL's order."""
    bucket: tuple[int, int]
    moved: Mapping[str, torch.Tensor] = field(default_factory=dict)

    TENSORS = ("mean", "std", "sample", "noise", "timesteps", "hidden", "pooled", "time_ids")

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        for name in self.TENSORS:
            setattr(self, name, getattr(self, name).to(device, non_blocking=True))
        return self

    def pin(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU do not wait."""
        for name in self.TENSORS:
            setattr(self, name, getattr(self, name).pin_memory())
        return self

    def part(self, start: int, stop: int) -> Batch:
        """Samples start..stop: a micro-batch."""
        tensors = {name: getattr(self, name)[start:stop] for name in self.TENSORS}
        lists = {name: getattr(self, name)[start:stop] for name in ("row_ids", "captions", "kinds")}
        return Batch(step=self.step, bucket=self.bucket, **lists, **tensors)


class PhaseData:
    """The batches of one phase for one rank. Steps count from 0 within the phase."""

    def __init__(self, recipe: Recipe, number: int, mix: str, tools: Tools, place: Place) -> None:
        phase: Phase = recipe.phases[number]
        batch = phase.batch or recipe.train.batch
        if batch % place.world:
            raise UsageError(f"train.batch = {batch} cannot be dealt evenly to {place.world} processes")
        self.recipe, self.phase, self.number, self.tools, self.place = recipe, phase, number, tools, place
        self.share = batch // place.world
        self.steps = SCHEDULES[phase.schedule].steps
        settings: dict[str, Any] = {
            "seed": seed_of(recipe, number),
            "batch_size": self.share,
            "leftovers": recipe.data.leftovers,
            "rank": place.rank,
            "world": place.world,
            "crop": recipe.data.crop,
            "buckets": phase.buckets or None,
        }
        self.rows = MixDataset(mix, decode=False, **settings)
        self.open_pictures = functools.cache(functools.partial(MixDataset, mix, decode=True, **settings))
        self.begins = [0]  # first step of each epoch that is known
        self.seen: Counter[str] = Counter()

    def place_of(self, step: int) -> tuple[int, int]:
        """(epoch, step within it) of a step of the phase."""
        while self.begins[-1] <= step:
            self.begins.append(self.begins[-1] + self.rows.steps(len(self.begins) - 1))
            if len(self.begins) > EMPTY_EPOCHS and self.begins[-1] == self.begins[-1 - EMPTY_EPOCHS]:
                raise UsageError(
                    f"phase {self.phase.name}: the mix has no full batch of {self.share} rows for each rank"
                )
        epoch = int(np.searchsorted(self.begins, step, side="right")) - 1
        return epoch, step - self.begins[epoch]

    def batch(self, step: int) -> Batch:
        """What this rank trains on at a step of the phase."""
        import torch

        epoch, within = self.place_of(step)
        rows = items(self.rows.batch(epoch, within))
        moments = self._moments(rows, epoch, within)
        draws = [self._draw(item, found) for item, found in zip(rows, moments, strict=True)]
        captions = ["" if drawn["dropped"] else str(item["caption"]) for item, drawn in zip(rows, draws, strict=True)]
        hidden, pooled = padded(
            [self.tools.text(caption) for caption in captions], self.tools.encoder.length, self.tools.encoder.pad_left
        )
        kinds = [
            "dropped" if drawn["dropped"] else str(item["caption_source"])
            for item, drawn in zip(rows, draws, strict=True)
        ]
        made = Batch(
            step=step,
            row_ids=[str(item["row_id"]) for item in rows],
            captions=captions,
            kinds=kinds,
            mean=torch.stack([m.mean for m in moments]),
            std=torch.stack([m.std for m in moments]),
            sample=torch.from_numpy(np.stack([drawn["sample"] for drawn in draws])),
            noise=torch.from_numpy(np.stack([drawn["noise"] for drawn in draws])),
            timesteps=torch.tensor([drawn["timestep"] for drawn in draws]),
            hidden=hidden,
            pooled=pooled,
            time_ids=time_ids(rows),
            bucket=(int(rows[0]["bucket"][0]), int(rows[0]["bucket"][1])),
        )
        return made.pin() if self.place.device.type == "cuda" else made

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start..stop in order, made ahead in a thread."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(self.recipe.data.prefetch)
        over = threading.Event()

        def put(found: Batch | BaseException) -> None:
            while not over.is_set():
                try:
                    ready.put(found, timeout=0.2)
                    return
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for step in range(start, stop):
                    if over.is_set():
                        return
                    put(self.batch(step))
            except BaseException as why:  # raised again where the batch is awaited
                put(why)

        thread = threading.Thread(target=work, name="batches", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                found = ready.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            over.set()
            thread.join()

    def _moments(self, rows: list[dict[str, Any]], epoch: int, within: int) -> list[Moments]:
        cache = self.tools.latents
        found = [cache.get(item) if cache else None for item in rows]
        if all(one is not None for one in found):
            return [one for one in found if one is not None]
        images = self.open_pictures().batch(epoch, within)["image"]
        return [one or self.tools.moments(item, image) for one, item, image in zip(found, rows, images, strict=True)]

    def _draw(self, item: Mapping[str, Any], moments: Moments) -> dict[str, Any]:
        """Everything random about one sample, keyed by its place in the epoch."""
        train = self.recipe.train
        draw = generator(train.seed, self.number, int(item["epoch"]), int(item["index"]))
        shape = tuple(moments.mean.shape)
        drawn: dict[str, Any] = {
            "timestep": int(draw.integers(self.steps)),
            "dropped": bool(draw.random() < train.caption_dropout),
            "sample": draw.standard_normal(shape, dtype=np.float32),
            "noise": draw.standard_normal(shape, dtype=np.float32),
        }
        if train.noise_offset:
            drawn["noise"] += np.float32(train.noise_offset) * draw.standard_normal((shape[0], 1, 1), dtype=np.float32)
        return drawn


def seed_of(recipe: Recipe, number: int) -> int:
    """The seed of a phase's order and captions: those of two runs with neighbouring seeds have nothing in common."""
    return int.from_bytes(digest("order", recipe.train.seed, number, size=4))


def manifest_of(mix: str) -> dict[str, Any]:
    """The manifest of a mix: cheap beside opening it, which reads the index of all its rows."""
    return manifest.read(open_files(mix)) or MixDataset(mix).manifest  # the latter says what is wrong


def items(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch of MixDataset, without pictures."""
    names = [name for name in batch if name != "image"]
    return [dict(zip(names, row, strict=True)) for row in zip(*(batch[name] for name in names), strict=True)]


def time_ids(rows: list[dict[str, Any]]) -> torch.Tensor:
    """SDXL's micro-conditioning, [n, 6]: original (h, w), crop (top, left), target (h, w)."""
    import torch

    return torch.tensor(
        [[*item["original_size"], *item["crop"], *item["target_size"]] for item in rows], dtype=torch.float32
    )


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that it was waited for."""
    while True:
        clock = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - clock
