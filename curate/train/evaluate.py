"""Validation loss that can be compared: fixed timesteps, noise keyed by the picture; training's draws are not touched.

    table = measure(unet, probes, ...)       row_id, split, caption, timestep, loss, category, tier, ...

The same weights always give the same figures, whatever the step, the rank or the run; so do two runs that are compared.
The same number of training rows is measured alike: the gap between the two is a gap and no artefact of the timesteps.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.mix import MixDataset
from curate.train import schedule
from curate.train.checkpoint import State, averaged
from curate.train.data import Place, Tools, manifest_of, time_ids
from curate.train.keyed import digest, generator
from curate.train.latents import Moments
from curate.train.log import Log
from curate.train.loss import squared_errors
from curate.train.recipe import Phase, Recipe
from curate.train.text import padded

if TYPE_CHECKING:
    import torch

KINDS = ("raw", "en", "zh", "none")
"""Raw caption, synthetic English and Chinese one, and none at all."""
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("split", pa.string()),
        ("caption", pa.string()),
        ("timestep", pa.int32()),
        ("loss", pa.float64()),
        ("category", pa.string()),
        ("tier", pa.int32()),
        ("sha256", pa.string()),
        ("said", pa.string()),
    ]
)
"""`sha256` is the picture's and `said` a hash of the caption: what runs over different stores are paired by."""
CHUNK = 64  # rows that are measured between two files
CAPTIONS = ("captions_raw", "captions_en", "captions_zh")
SAID_EVERY_S = 10.0
SEED = 20240706  # of the noises: part of the definition of the measure and no setting


@dataclass(frozen=True)
class Probe:
    """A row that is measured."""

    item: Mapping[str, Any]
    split: str
    moments: Moments
    captions: Mapping[str, str]
    """By kind; those that the row has."""
    category: str | None
    tier: int | None


def timesteps(name: str) -> tuple[int, ...]:
    """Eight steps over a schedule: dense where the loss tells most, and 50 before the end."""
    return (50, 150, 300, 450, 600, 750, 900, schedule.SCHEDULES[name].steps - 50)


class Rows:
    """At most `count` rows of a split (0: all) in a keyed order, encoded as they are asked for."""

    def __init__(self, mix: str, split: str, count: int, buckets: str, tools: Tools) -> None:
        there = manifest_of(mix)["settings"]["columns"]
        columns = (*CAPTIONS, *(name for name in ("concept", "tier") if name in there))
        settings: dict[str, Any] = {"split": split, "seed": SEED, "crop": "center", "buckets": buckets or None}
        self.split, self.tools = split, tools
        self.rows = MixDataset(mix, decode=False, columns=columns, **settings)
        self.open_pictures = functools.cache(functools.partial(MixDataset, mix, decode=True, **settings))
        self.count = min(count or self.rows.steps(0), self.rows.steps(0))

    def probe(self, number: int) -> Probe:
        """One row with its latent."""
        item = self.rows.batch(0, number)
        moments = self.tools.latents.get(item) if self.tools.latents else None
        if moments is None:
            moments = self.tools.moments(item, self.open_pictures().batch(0, number)["image"])
        tier = item.get("tier")
        category = item.get("concept")
        return Probe(
            item, self.split, moments, captions_of(item), category or None, None if tier is None else int(tier)
        )


def probes(mix: str, split: str, count: int, buckets: str, tools: Tools, place: Place) -> list[Probe]:
    """At most `count` rows of a split, chosen by key, this rank's share of them: every rank measures some."""
    rows = Rows(mix, split, count, buckets, tools)
    return [rows.probe(number) for number in range(place.rank, rows.count, place.world)]


def measure_rows(
    unet: torch.nn.Module, rows: Rows, folder: Path, place: Place, said: Callable[[str], None],
    *, chunk: int = CHUNK, **how: Any,
) -> None:  # fmt: skip
    """Measure many rows, `chunk` at a time, into FOLDER/SPLIT-NNNNNN.parquet; a file that is there is not made again.

    Ranks take turns; memory is that of one chunk. Rendered text is left out: its rows are another store's. `how` is
    what `measure` is told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clock = time.monotonic()
    for number in range(place.rank, -(-rows.count // chunk), place.world):
        path = folder / f"{rows.split}-{number:06d}.parquet"
        if path.exists():
            continue
        here = range(number * chunk, min((number + 1) * chunk, rows.count))
        some = [probe for probe in map(rows.probe, here) if probe.item["pool"] != "text"]
        temporary = path.with_name(f".{path.name}.tmp")
        pq.write_table(measure(unet, some, rows.tools, place, **how), temporary)
        temporary.replace(path)
        if time.monotonic() - clock > SAID_EVERY_S:
            clock = time.monotonic()
            said(f"losses of rows: {here.stop:,} of {rows.count:,} ({rows.split})")


def splits(mix: str) -> list[str]:
    """The splits that a mix has: train, and validation when it keeps rows back."""
    return sorted(manifest_of(mix)["splits"])


def captions_of(item: Mapping[str, Any]) -> dict[str, str]:
    """The captions of a row by kind: the first raw one, and the first synthetic one of each language."""
    return {kind: str(item[f"captions_{kind}"][0]) for kind in KINDS[:3] if item[f"captions_{kind}"]}


def measure(
    unet: torch.nn.Module,
    some: Sequence[Probe],
    tools: Tools,
    place: Place,
    *,
    name: str,
    prediction: schedule.Prediction,
    kinds: Sequence[str] = KINDS[:3],
    noises: int = 1,
    batch: int = 16,
    precision: str = "float32",
) -> pa.Table:
    """The loss of every probe under every kind of caption at every timestep: mean squared error, unweighted.

    Latents are means, not draws.
    """
    import torch

    bars = torch.tensor(schedule.alpha_bar(name), dtype=torch.float32, device=place.device)
    scaling = float(tools.vae.config.scaling_factor)
    jobs = [
        (probe, kind, t, noise)
        for probe in sorted(some, key=lambda p: (tuple(p.moments.mean.shape), str(p.item["row_id"])))
        for kind in kinds
        if kind == "none" or kind in probe.captions
        for t in timesteps(name)
        for noise in range(noises)
    ]
    lines: dict[str, list[Any]] = {field: [] for field in SCHEMA.names}
    was_training = unet.training
    unet.eval()
    with torch.inference_mode():
        for chunk in _same_size(jobs, batch):
            hidden, pooled = padded(
                [tools.text("" if kind == "none" else probe.captions[kind]) for probe, kind, _, _ in chunk],
                tools.encoder.length,
                tools.encoder.pad_left,
            )
            draws = [
                generator(SEED, probe.item["sha256"], t, number).standard_normal(
                    tuple(probe.moments.mean.shape), dtype=np.float32
                )
                for probe, _, t, number in chunk
            ]
            found = squared_errors(
                unet,
                clean=torch.stack([probe.moments.mean for probe, _, _, _ in chunk]).to(place.device) * scaling,
                noise=torch.from_numpy(np.stack(draws)).to(place.device),
                steps=torch.tensor([t for _, _, t, _ in chunk], device=place.device),
                bars=bars,
                hidden=hidden.to(place.device),
                pooled=pooled.to(place.device),
                time_ids=time_ids([dict(probe.item) for probe, _, _, _ in chunk]).to(place.device),
                prediction=prediction,
                precision=precision,
            )
            for (probe, kind, t, _), loss in zip(chunk, found.double().cpu().tolist(), strict=True):
                values = (
                    str(probe.item["row_id"]), probe.split, kind, t, loss, probe.category, probe.tier,
                    str(probe.item["sha256"]), digest(probe.captions.get(kind, ""), size=8).hex(),
                )  # fmt: skip
                for field, value in zip(SCHEMA.names, values, strict=True):
                    lines[field].append(value)
    unet.train(was_training)
    return pa.table(lines, schema=SCHEMA)


def summary(table: pa.Table) -> dict[str, Any]:
    """Mean loss over rows: overall, and by timestep, kind of caption, category and tier."""
    by: dict[str, dict[str, float]] = {}
    for column in ("timestep", "caption", "category", "tier"):
        groups = table.filter(pc.is_valid(table[column])).group_by(column).aggregate([("loss", "mean")])
        found = zip(groups[column].to_pylist(), groups["loss_mean"].to_pylist(), strict=True)
        by[column] = {str(key): round(value, 6) for key, value in sorted(found)}
    losses = np.asarray(table["loss"])
    return {"loss": round(float(losses.mean()), 6) if len(losses) else None, "by": by}


def _same_size(jobs: Sequence[Any], batch: int) -> list[list[Any]]:
    """Chunks of at most `batch` jobs whose latents have one size; jobs come sorted by size."""
    chunks: list[list[Any]] = []
    for job in jobs:
        shape = job[0].moments.mean.shape
        if not chunks or len(chunks[-1]) == batch or chunks[-1][0][0].moments.mean.shape != shape:
            chunks.append([])
        chunks[-1].append(job)
    return chunks


def _gathered(table: pa.Table, place: Place) -> pa.Table:
    if place.world == 1:
        return table
    import torch.distributed as dist

    parts: list[pa.Table | None] = [None] * place.world
    dist.gather_object(table, parts if place.rank == 0 else None)
    found = [part for part in parts if part is not None]
    whole = pa.concat_tables(found) if found else SCHEMA.empty_table()
    return whole.sort_by([("row_id", "ascending"), ("caption", "ascending"), ("timestep", "ascending")])


def validation_of(wanted: Recipe, phase: Phase) -> Path:
    """Where the tables of a phase lie: at the border of two phases each measures under its own schedule."""
    return wanted.folder / "validation" / phase.name


class Validation:
    """Fixed-timestep losses of held-out rows and of as many training rows, raw and averaged weights."""

    def __init__(self, wanted: Recipe, phase: Phase, mix: str, tools: Tools, place: Place) -> None:
        self.wanted, self.phase, self.mix, self.tools, self.place = wanted, phase, mix, tools, place

    @functools.cached_property
    def probes(self) -> list[Probe]:
        """The rows that are measured, read when that is first done: a restart is not held up."""
        wanted, phase = self.wanted, self.phase
        return [
            probe
            for split in splits(self.mix)
            for probe in probes(self.mix, split, wanted.measure.rows, phase.buckets, self.tools, self.place)
        ]

    def run(self, state: State, unet: torch.nn.Module, log: Log) -> None:
        """Measure and log; the tables go to OUTPUT/validation/PHASE."""
        for weights in ("raw", "ema") if state.ema and state.step else ("raw",):  # at first they are the same
            with averaged(state) if weights == "ema" else contextlib.nullcontext():
                own = measure(
                    unet, self.probes, self.tools, self.place, name=self.phase.schedule,
                    prediction=cast(schedule.Prediction, self.wanted.model.prediction),
                    noises=self.wanted.measure.noises, precision=self.wanted.model.precision,
                )  # fmt: skip
            table = _gathered(own, self.place)
            if self.place.rank == 0:
                path = validation_of(self.wanted, self.phase) / f"step-{state.step:08d}-{weights}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, path)
                for split in pc.unique(table["split"]).to_pylist():
                    some = table.filter(pc.equal(table["split"], split))
                    facts = {"weights": weights, "split": split, "phase": self.phase.name}
                    log.write("validation", state.step, **facts, rows=len(pc.unique(some["row_id"])), **summary(some))
