"""`curate train RECIPE`: prepare, train, and leave a model, its samples and its losses.

    OUTPUT/  recipe.toml  metrics.jsonl  checkpoints/  validation/  grids/  model/ or lora/  finished.json

The same command goes on with a run that was interrupted, and does nothing to one that is finished.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from curate.errors import UsageError
from curate.mix import MixDataset
from curate.train import checkpoint, evaluate, export, grid, launch, loop, models, recipe, tiny
from curate.train.checkpoint import State, averaged, write_bytes
from curate.train.data import Place, Tools, manifest_of
from curate.train.log import read_metrics
from curate.train.recipe import Recipe
from curate.train.schedule import Prediction

EVERY_ROW = 1 << 62
CAPTION_ROWS = 20_000  # rows whose captions teach the tiny tokenizer


def run(wanted: Recipe, console: Console) -> None:
    """Train what the recipe describes, here or on Ray."""
    for mix in {phase.mix or wanted.data.mix for phase in wanted.phases} if not wanted.arms else ():
        manifest_of(mix)  # a mistake is said here, and not by every worker
    if wanted.train.engine == "ray":
        if wanted.arms:
            raise UsageError("train.engine = 'ray' trains one run; arms are compared in this process or by torchrun")
        launch.on_ray(lambda place: run_one(wanted, place, Console(stderr=True)), wanted.train.workers, wanted.folder)
        return
    with launch.Here() as place:
        prepare_libraries(wanted)
        if wanted.arms:
            from curate.train import compare

            compare.run_arms(wanted, place, console)
        else:
            run_one(wanted, place, console)


def run_one(wanted: Recipe, place: Place, console: Console) -> None:
    """One run, whole: raises UsageError for what does not fit, CurateError when training cannot go on."""
    prepare_libraries(wanted)
    if finished(wanted.folder) and place.rank == 0:
        console.print(f"{wanted.folder}: finished already", highlight=False)
    if finished(wanted.folder):
        return
    mixes = [phase.mix or wanted.data.mix for phase in wanted.phases]
    if place.rank == 0:
        write_bytes(wanted.folder / "recipe.toml", recipe.to_toml(wanted).encode())
        register(wanted)
    base = prepare_base(wanted, mixes, place)
    unet, state, tools = loop.train(wanted, mixes, base, place, console)
    with averaged(state):
        losses = measure_all(wanted, mixes[-1], unet, tools, place)
    if place.rank == 0:
        leave(wanted, unet, state, tools, base, place, losses, console)
    loop.barrier(place)


def prepare_base(wanted: Recipe, mixes: list[str], place: Place) -> Path:
    """The folder of models: the recipe's, or the tiny ones, made by rank 0 while the others wait."""
    if wanted.model.base:
        base = Path(wanted.model.base)
        if not (base / "model_index.json").is_file():
            raise UsageError(f"model.base = {wanted.model.base!r}: no model_index.json there; name a diffusers folder")
        return base
    base = wanted.folder / "base"
    if place.rank == 0:
        tiny.make_tiny(base, captions(mixes), wanted.train.seed)
    loop.barrier(place)
    return base


def captions(mixes: list[str]) -> set[str]:
    """Captions of the mixes, of every kind and language."""
    found: set[str] = set()
    for mix in dict.fromkeys(mixes):
        rows = MixDataset(mix, seed=0, decode=False, crop="center", columns=evaluate.CAPTIONS)
        for number in range(min(rows.steps(0), CAPTION_ROWS)):
            item = rows.batch(0, number)
            found.update(text for column in evaluate.CAPTIONS for text in item[column])
    return found


def measure_all(wanted: Recipe, mix: str, unet: Any, tools: Tools, place: Place) -> pa.Table | None:
    """The loss of every row of the mix under every kind of caption and none, for the store; all ranks take part."""
    if not (wanted.measure.write_back and wanted.data.store):
        return None
    phase = wanted.phases[-1]
    some = [
        probe
        for split in evaluate.splits(mix)
        for probe in evaluate.probes(mix, split, EVERY_ROW, phase.buckets, tools, place)
        if probe.item["pool"] != "text"  # rendered text comes from another store
    ]
    return evaluate.measure(
        unet, some, tools, place, name=phase.schedule, prediction=cast(Prediction, wanted.model.prediction),
        kinds=evaluate.KINDS, noises=wanted.measure.noises, precision=wanted.model.precision,
    )  # fmt: skip


def leave(
    wanted: Recipe, unet: Any, state: State, tools: Tools, base: Path, place: Place, losses: pa.Table | None,
    console: Console,
) -> None:  # fmt: skip
    """Write what a finished run leaves; the averaged weights are exported."""
    folder = wanted.folder
    with averaged(state):
        if wanted.checkpoint.export and wanted.model.lora_rank:
            export.export_lora(unet, folder / "lora")
        elif wanted.checkpoint.export:
            export.export_model(unet, wanted, base, folder / "model")
    facts: dict[str, Any] = {"steps": state.step, "recipe": recipe.fingerprint(wanted), "base": models.identity(base)}
    if wanted.measure.grid_seeds:
        mix = wanted.phases[-1].mix or wanted.data.mix
        drawn, scores = grid.sheets(unet, state, wanted, mix, tools, place)
        facts |= scores
        if wanted.measure.clip:
            from curate.train.scores import score

            facts |= score(drawn, mix, wanted.measure.clip, place)
    if losses is not None:
        from curate.train.write_back import publish

        pq.write_table(losses, folder / "losses.parquet")
        facts["losses"] = publish(wanted, losses, state.step)
    write_bytes(folder / "finished.json", json.dumps(facts, indent=1).encode())
    for line in summary(folder):
        console.print(line, highlight=False, soft_wrap=True)


def finished(folder: Path) -> bool:
    """Whether a run has left everything."""
    return (folder / "finished.json").is_file()


def summary(folder: Path) -> list[str]:
    """What a finished run reached, in a few lines."""
    lines = read_metrics(folder / "metrics.jsonl")
    checks = [line for line in lines if line["kind"] == "validation" and line["loss"] is not None]
    found = [f"{folder}: finished"]
    for split in ("validation", "train"):
        some = [line for line in checks if line["split"] == split]
        for weights in ("raw", "ema"):
            ends = [line for line in some if line["weights"] == weights]
            if ends:
                first, last = some[0], ends[-1]
                found.append(
                    f"  {split} loss, {weights} weights: {first['loss']:.4f} -> {last['loss']:.4f} "
                    f"({last['loss'] / first['loss'] - 1:+.1%}; {last['rows']} rows)"
                )
    return found


def register(wanted: Recipe) -> None:
    """Tell the store where the run is, so that `curate serve` can show it."""
    if not wanted.data.store:
        return
    from curate.store.files import open_files

    name = "-".join(wanted.folder.absolute().parts[-3:]).replace(" ", "_")
    line = {"folder": str(wanted.folder.absolute()), "steps": wanted.steps}
    open_files(wanted.data.store).replace(f"training/{name}.json", json.dumps(line).encode())


def prepare_libraries(wanted: Recipe) -> None:
    """As many threads as the recipe says, and no progress bars and hints of libraries between our lines."""
    import diffusers
    import torch
    import transformers

    torch.set_num_threads(wanted.train.cpu_threads)

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def show_plan(wanted: Recipe, console: Console) -> None:
    """`--dry-run`: the resolved recipe, and steps, buckets and captions of each phase."""
    console.print(recipe.to_toml(wanted), highlight=False, markup=False, soft_wrap=True)
    for phase in wanted.phases:
        mix = phase.mix or wanted.data.mix
        batch = phase.batch or wanted.train.batch
        if wanted.arms:
            console.print(f"phase {phase.name}: {phase.steps} steps of {batch} rows, schedule {phase.schedule}")
            continue
        settings: dict[str, Any] = {"buckets": phase.buckets or None, "leftovers": wanted.data.leftovers}
        rows = MixDataset(mix, decode=False, batch_size=batch, **settings)
        per_epoch = rows.steps(0)
        used = dict.fromkeys(rows.buckets, 0)
        for step in rows.order(0).bucket:
            used[rows.buckets[int(step)]] += 1
        shown = ", ".join(f"{w}x{h}: {n}" for (w, h), n in used.items() if n)
        console.print(
            f"phase {phase.name}: {phase.steps} steps of {batch} rows, schedule {phase.schedule}; an epoch of {mix} is "
            f"{per_epoch} steps ({phase.steps / max(per_epoch, 1):.1f} epochs), {rows.left_over(0)} rows left over; "
            f"batches by bucket: {shown}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    saved = checkpoint.checkpoints(wanted.folder / "checkpoints")
    if saved:
        console.print(f"would go on from {saved[-1].name}", highlight=False)
