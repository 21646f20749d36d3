"""`curate train RECIPE`: prepare, train, and leave a model, its samples and its losses.

    OUTPUT/  recipe.toml  metrics.jsonl  checkpoints/  validation/  grids/  model/ or lora/  finished.json

The same command goes on with a run that was interrupted, and does nothing to one that is finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from curate.errors import UsageError
from curate.mix import MixDataset
from curate.train import checkpoint, evaluate, export, grid, launch, loop, recipe, tiny
from curate.train.checkpoint import State, averaged, write_bytes
from curate.train.data import Place, Tools, manifest_of, seed_of
from curate.train.keyed import digest
from curate.train.log import read_metrics
from curate.train.recipe import Recipe
from curate.train.schedule import Prediction
from curate.train.scores import clip_score, kid_score

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
    mixes = [phase.mix or wanted.data.mix for phase in wanted.phases]
    base = prepare_base(wanted, mixes, place)
    facts = loop.facts_of(wanted, mixes, base)
    done = is_done(wanted, facts)
    loop.barrier(place)  # all have looked before one writes
    if place.rank == 0:
        if done:
            console.print(f"{wanted.folder}: finished already", highlight=False, soft_wrap=True)
        else:
            (wanted.folder / "finished.json").unlink(missing_ok=True)
            write_bytes(wanted.folder / "recipe.toml", recipe.to_toml(wanted).encode())
            register(wanted)
    if done:
        return
    unet, state, tools = loop.train(wanted, mixes, base, place, console)

    def said(text: str) -> None:
        if place.rank == 0:
            console.print(text, highlight=False, soft_wrap=True)

    scores: dict[str, Any] = {}
    with averaged(state):
        losses = measure_all(wanted, mixes[-1], unet, state.step, tools, place, said)
        if wanted.measure.clip and wanted.measure.kid_samples:
            scores = kid_score(unet, wanted, mixes[-1], tools, place, said)
    if place.rank == 0:
        leave(wanted, unet, state, tools, base, place, losses, facts | scores, console)
    loop.barrier(place)


def is_done(wanted: Recipe, facts: Mapping[str, str]) -> bool:
    """Whether the run has left everything that the recipe asks for; a finished one may go on to more steps.

    Raises UsageError, before anything is written, when the folder holds a run of another recipe, model or data.
    """
    folder = wanted.folder
    saved = checkpoint.checkpoints(folder / "checkpoints")
    ended = json.loads((folder / "finished.json").read_bytes()) if finished(folder) else {}
    began = {key: value for key, value in ended.items() if key in facts} or (saved and checkpoint.facts_in(saved[-1]))
    if not began:
        return False
    if began.get("recipe") != facts["recipe"] and (folder / "recipe.toml").is_file():
        then = recipe.load(folder / "recipe.toml")
        changed = [f"{k} was {a!r} and is {b!r}" for k, (a, b) in recipe.differences(then, wanted).items()]
        if changed:
            raise UsageError(
                f"{folder}: {'; '.join(changed)}. A run goes on only with what it began with: restore that, or choose "
                "another output.uri"
            )
    checkpoint.refuse_other(began, facts, folder)
    if ended and ended["steps"] > wanted.steps:
        raise UsageError(f"{folder}: has {ended['steps']} steps already, more than the {wanted.steps} of the recipe")
    return bool(ended) and ended["steps"] == wanted.steps


def prepare_base(wanted: Recipe, mixes: list[str], place: Place) -> Path:
    """The folder of models: the recipe's, or the tiny ones, made by rank 0 while the others wait."""
    if wanted.model.base:
        base = Path(wanted.model.base)
        if not (base / "model_index.json").is_file():
            raise UsageError(f"model.base = {wanted.model.base!r}: no model_index.json there; name a diffusers folder")
        return base
    base = wanted.folder / "base"
    if place.rank == 0:
        tiny.make_tiny(base, lambda: captions(mixes), wanted.train.seed)
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


def measure_all(
    wanted: Recipe, mix: str, unet: Any, step: int, tools: Tools, place: Place, said: Callable[[str], None]
) -> Path | None:
    """Losses of rows of the mix under every kind of caption and none, for the store; all ranks take part.

    The folder of their files, or None when none are asked for. Killed, it goes on where it was.
    """
    if not (wanted.measure.write_back and wanted.data.store):
        return None
    count = wanted.measure.write_back_rows
    return measured(wanted, mix, unet, step, tools, place, said, "losses", evaluate.splits(mix), count, evaluate.KINDS)


def measured(
    wanted: Recipe, mix: str, unet: Any, step: int, tools: Tools, place: Place, said: Callable[[str], None],
    name: str, splits: Sequence[str], count: int, kinds: Sequence[str],
) -> Path:  # fmt: skip
    """Losses of at most `count` rows of each split; their folder below OUTPUT/NAME is named for what they depend on."""
    phase = wanted.phases[-1]
    key = digest(manifest_of(mix)["tree"], phase.buckets, phase.schedule, count, *kinds, wanted.measure.noises, size=4)
    folder = wanted.folder / name / f"step-{step:08d}-{key.hex()}"
    for split in splits:
        evaluate.measure_rows(
            unet, evaluate.Rows(mix, split, count, phase.buckets, tools), folder, place, said,
            name=phase.schedule, prediction=cast(Prediction, wanted.model.prediction), kinds=kinds,
            noises=wanted.measure.noises, precision=wanted.model.precision,
        )  # fmt: skip
    loop.barrier(place)
    return folder


def leave(
    wanted: Recipe, unet: Any, state: State, tools: Tools, base: Path, place: Place, losses: Path | None,
    facts: dict[str, Any], console: Console,
) -> None:  # fmt: skip
    """Write what a finished run leaves; the averaged weights are exported."""
    folder = wanted.folder
    with averaged(state):
        if wanted.checkpoint.export and wanted.model.lora_rank:
            export.export_lora(unet, folder / "lora")
        elif wanted.checkpoint.export:
            export.export_model(unet, wanted, base, folder / "model")
    facts = {"steps": state.step, **facts}
    if wanted.measure.grid_seeds:
        mix = wanted.phases[-1].mix or wanted.data.mix
        drawn, scores = grid.sheets(unet, state, wanted, wanted.phases[-1], mix, tools, place)
        facts |= scores
        if wanted.measure.clip:
            facts |= clip_score(drawn, wanted.measure.clip, place)
    if losses is not None:
        from curate.train.write_back import publish

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
    checks = [line for line in checks if line["phase"] == checks[-1]["phase"]]  # other phases have other schedules
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
    """`--dry-run`: the resolved recipe, then steps, rows, buckets and left-overs of each phase, or of each arm."""
    console.print(recipe.to_toml(wanted), highlight=False, markup=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if wanted.arms:
        from curate.train.compare import plan_of_arms

        for line in plan_of_arms(wanted):
            say(line)
        return
    images = sum(phase.steps * (phase.batch or wanted.train.batch) for phase in wanted.phases)
    for number, phase in enumerate(wanted.phases):
        mix = phase.mix or wanted.data.mix
        batch = phase.batch or wanted.train.batch
        settings: dict[str, Any] = {"buckets": phase.buckets or None, "leftovers": wanted.data.leftovers}
        rows = MixDataset(mix, decode=False, batch_size=batch, seed=seed_of(wanted, number), **settings)
        per_epoch = rows.steps(0)
        used = dict.fromkeys(rows.buckets, 0)
        for step in rows.order(0).bucket:
            used[rows.buckets[int(step)]] += 1
        shown = ", ".join(f"{w}x{h}: {n}" for (w, h), n in used.items() if n)
        say(
            f"phase {phase.name}: {phase.steps} steps of {batch} rows, schedule {phase.schedule}; an epoch of {mix} is "
            f"{per_epoch} steps ({phase.steps / max(per_epoch, 1):.1f} epochs), {rows.left_over(0)} rows left over; "
            f"batches by bucket: {shown}"
        )
    if wanted.measure.write_back and wanted.data.store:
        splits = [split["rows"] for split in manifest_of(mix)["splits"].values()]
        rows_back = sum(min(n, wanted.measure.write_back_rows or n) for n in splits)
        passes = rows_back * len(evaluate.KINDS) * len(evaluate.timesteps(phase.schedule)) * wanted.measure.noises
        say(f"losses of {rows_back:,} rows go back to {wanted.data.store}: at most {passes:,} forward passes; the "
            f"training sees {images:,} pictures")  # fmt: skip
    saved = checkpoint.checkpoints(wanted.folder / "checkpoints")
    if saved:
        say(f"would go on from {saved[-1].name}")
