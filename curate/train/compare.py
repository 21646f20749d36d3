"""Did curation help? Arms that differ in their data alone, measured on the same held-out rows.

    curate train deploy/recipes/train-tiny.toml          trains the arms of the recipe, then compares them
    curate train --compare RUN_A RUN_B                   compares finished runs

All arms have the same models, first weights, steps, batch and seeds. They are measured on rows that were set aside by
content before any filter, under their raw and under their synthetic captions. Arms are compared within a column only: a
caption that says more makes every model's error smaller. Intervals are paired bootstraps over pictures.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from curate.errors import UsageError
from curate.mix.export import export as export_mix
from curate.mix.settings import Settings, parse_languages
from curate.store import Store
from curate.train import evaluate, loop, recipe, run, tiny
from curate.train.checkpoint import averaged, write_bytes
from curate.train.data import Place
from curate.train.keyed import generator
from curate.train.recipe import Arm, Recipe
from curate.train.schedule import Prediction

RESAMPLES = 10_000
COLUMNS = (("raw", ("raw",)), ("synthetic", ("en", "zh")))
"""What a column of the report is called, and the kinds of captions that it takes together."""


@dataclass(frozen=True)
class Contrast:
    """Loss of `arm` minus that of `against` on the same rows: below 0 the arm is better."""

    arm: str
    against: str
    column: str
    rows: int
    difference: float
    low: float
    high: float
    steps_agreeing: int
    """Timesteps, of eight, whose own interval leaves out 0 on the same side."""
    seeds_agreeing: bool

    @property
    def claim(self) -> bool:
        """Whether it may be said: the interval and 6 of 8 timesteps leave out 0, and all seeds have one sign."""
        return (self.low > 0 or self.high < 0) and self.steps_agreeing >= 6 and self.seeds_agreeing

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not shown`."""
        return ("better" if self.difference < 0 else "worse") if self.claim else "not shown"


def run_arms(wanted: Recipe, place: Place, console: Console) -> None:
    """Mix, train and measure every arm and seed, write the losses of all rows to the store, and the report."""
    folder = wanted.folder
    if place.rank == 0:
        write_bytes(folder / "recipe.toml", recipe.to_toml(wanted).encode())
        make_mixes(wanted, console)
        if not wanted.model.base:
            tiny.make_tiny(folder / "base", run.captions([str(folder / "mixes" / "neutral")]), wanted.train.seed)
    loop.barrier(place)
    for arm in wanted.arms:
        for seed in range(wanted.compare.seeds):
            one = recipe_of(wanted, arm, seed)
            run.run_one(one, place, console)
            measure_arm(one, folder, wanted.measure.write_back and arm == wanted.arms[0] and not seed, place)
    if place.rank == 0:
        compare_folders([folder / "arms" / arm.name for arm in wanted.arms], console, folder)


def make_mixes(wanted: Recipe, console: Console) -> None:
    """The neutral rows, then the training set of each arm; an arm that takes another's size comes after it."""
    store = Store(wanted.data.store)
    store.require()
    known = {name for (name,) in store.rows("SELECT column_name FROM (DESCRIBE samples)")}
    buckets = next((phase.buckets for phase in wanted.phases if phase.buckets), "novelai-1024")
    sizes: dict[str, int] = {}
    order = sorted(wanted.arms, key=lambda arm: bool(arm.size_of))
    for arm in (Arm(name="neutral", ignore_policy=True, ratio=0.5, languages="en=0.5,zh=0.5"), *order):
        settings = Settings(
            store=wanted.data.store,
            ratio=arm.ratio,
            languages=parse_languages(arm.languages),
            where=arm.where,
            ignore_policy=arm.ignore_policy,
            text=rendered_text(wanted, arm, console),
            text_cap=arm.text_cap if arm.text or arm.text_rows else 0.0,
            rows=sizes[arm.size_of] if arm.size_of else 0,
            validation=wanted.compare.validation,
            buckets=buckets,
            columns=tuple(name for name in ("tier",) if name in known),
            seed=wanted.train.seed,
        )
        made = export_mix(settings, str(mix_of(wanted, arm)), kind="inline")
        counts = {name: split["rows"] for name, split in made["splits"].items()}
        sizes[arm.name] = sum(counts.values())
        if "validation" not in counts:
            raise UsageError(
                f"compare.validation = {wanted.compare.validation:g} keeps no row of {wanted.data.store} back; "
                "set a larger share"
            )
        console.print(f"{arm.name}: {counts['train']} rows to train on", highlight=False)


def rendered_text(wanted: Recipe, arm: Arm, console: Console) -> str:
    """The rendered text of an arm: what the recipe names, or shards that are made here; empty when it has none."""
    if arm.text or not arm.text_rows:
        return arm.text
    from curate.synth.shards import generate, load_recipe

    out = wanted.folder / "text"
    generate(out, arm.text_rows, wanted.train.seed, load_recipe(None), 1, False, console)
    return str(out)


def mix_of(wanted: Recipe, arm: Arm) -> Path:
    """Where the training set of an arm lies."""
    return wanted.folder / "mixes" / arm.name


def recipe_of(wanted: Recipe, arm: Arm, seed: int) -> Recipe:
    """The recipe of one arm and seed: all that is not data is the same."""
    folder = wanted.folder
    return dataclasses.replace(
        wanted,
        output=recipe.Output(str(folder / "arms" / arm.name / f"seed-{seed}")),
        data=dataclasses.replace(wanted.data, mix=str(mix_of(wanted, arm)), cache=str(wanted.cache)),
        model=dataclasses.replace(wanted.model, base=wanted.model.base or str(folder / "base")),
        train=dataclasses.replace(wanted.train, seed=wanted.train.seed + seed),
        measure=dataclasses.replace(wanted.measure, write_back=False),
        arms=(),
    )


def measure_arm(one: Recipe, folder: Path, whole: bool, place: Place) -> None:
    """The losses of a finished arm on the neutral rows; with `whole`, of all rows of the store, for the store."""
    path = one.folder / "neutral.parquet"
    if path.exists():
        return
    neutral = str(folder / "mixes" / "neutral")
    unet, state, tools = loop.restore(one, Path(one.model.base), place)
    phase = one.phases[-1]
    with averaged(state):
        some = evaluate.probes(neutral, "validation", run.EVERY_ROW, phase.buckets, tools, place)
        table = evaluate.measure(
            unet, some, tools, place, name=phase.schedule, prediction=cast(Prediction, one.model.prediction),
            noises=one.measure.noises, precision=one.model.precision,
        )  # fmt: skip
        if whole:
            back = dataclasses.replace(one, measure=dataclasses.replace(one.measure, write_back=True))
            losses = run.measure_all(back, neutral, unet, tools, place)
            if losses is not None and place.rank == 0:
                from curate.train.write_back import publish

                publish(back, losses, state.step)
    if place.rank == 0:
        pq.write_table(table, path)


def compare_folders(folders: Sequence[Path], console: Console, out: Path | None = None) -> list[Contrast]:
    """Print the comparison of finished runs, and write OUT/comparison.html and .json when `out` is given.

    Each folder is an arm (with seed-0, seed-1, ...) or a run. Raises UsageError for runs that no loss can compare:
    another schedule, prediction, autoencoder, or another amount of training.
    """
    arms = {folder.name: _tables(folder) for folder in folders}
    if len(arms) < len(folders):
        raise UsageError("--compare: the folders need different names")
    _refuse_unlike(folders)
    against = _against(folders)
    means = {(arm, column): _mean(tables, kinds) for arm, tables in arms.items() for column, kinds in COLUMNS}
    contrasts = [
        found
        for arm, others in against.items()
        for other in others
        for column, kinds in COLUMNS
        if (found := contrast(arm, arms[arm], other, arms[other], column, kinds))
    ]
    show(arms, means, contrasts, console)
    if out:
        from curate.train.comparison_page import page

        values = [dataclasses.asdict(found) | {"verdict": found.verdict} for found in contrasts]
        write_bytes(out / "comparison.json", json.dumps(values, indent=1).encode())
        write_bytes(out / "comparison.html", page(folders, arms, means, contrasts).encode())
        console.print(f"wrote {out / 'comparison.html'}", highlight=False)
    return contrasts


def contrast(
    arm: str,
    tables: Sequence[pa.Table],
    against: str,
    others: Sequence[pa.Table],
    column: str,
    kinds: Sequence[str],
    resamples: int = RESAMPLES,
) -> Contrast | None:
    """Paired difference of two arms under some kinds of captions, over rows, with a 95 % bootstrap interval.

    Seeds are paired in order; the resampled unit is the picture, so that more seeds or timesteps feign no more
    pictures. None when no row was measured in both.
    """
    pairs = [paired(a, b, kinds) for a, b in zip(tables, others, strict=False)]
    if not pairs or not pairs[0].size:
        return None
    steps = np.mean(pairs, axis=0)  # [rows, timesteps]
    draw = generator("bootstrap", arm, against, column)
    picks = draw.integers(0, len(steps), (resamples, len(steps)))
    resampled = steps[picks].mean(1)  # [resamples, timesteps]
    low, high = np.percentile(resampled.mean(1), (2.5, 97.5))
    lows, highs = np.percentile(resampled, (2.5, 97.5), axis=0)
    difference = float(steps.mean())
    agreeing = int(((highs < 0) if difference < 0 else (lows > 0)).sum())
    signs = {bool(pair.mean() < 0) for pair in pairs}
    return Contrast(arm, against, column, len(steps), difference, float(low), float(high), agreeing, len(signs) == 1)


def paired(a: pa.Table, b: pa.Table, kinds: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Loss of `a` minus loss of `b`, [rows, timesteps], for rows and kinds of captions that both have."""
    first, second = _by_row(a, kinds), _by_row(b, kinds)
    common = sorted(first.keys() & second.keys())
    return np.array([first[key] - second[key] for key in common])


def show(
    arms: Mapping[str, Sequence[pa.Table]],
    means: Mapping[tuple[str, str], float | None],
    contrasts: Sequence[Contrast],
    console: Console,
) -> None:
    """The table of arms by validation captions, and the contrasts with their intervals."""
    names = [column for column, _ in COLUMNS]
    table = Table(
        "trained on",
        *(f"loss, {name} captions" for name in names),
        title="compare within a column only",
        box=box.SIMPLE_HEAD,
    )
    for arm in arms:
        table.add_row(arm, *("" if means[arm, name] is None else f"{means[arm, name]:.5f}" for name in names))
    console.print(table)
    table = Table("difference", "captions", "loss", "95 % interval", "timesteps", "", box=box.SIMPLE_HEAD)
    for found in contrasts:
        table.add_row(
            f"{found.arm} - {found.against}", found.column, f"{found.difference:+.5f}",
            f"{found.low:+.5f} {found.high:+.5f}", f"{found.steps_agreeing}/8", found.verdict,
        )  # fmt: skip
    console.print(table)


def _by_row(table: pa.Table, kinds: Sequence[str]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Losses by row, a vector over timesteps: mean over kinds of captions and noises."""
    kept = table.filter(pc.is_in(table["caption"], pa.array(kinds)))
    groups = kept.group_by(["row_id", "timestep"]).aggregate([("loss", "mean")])
    groups = groups.sort_by([("row_id", "ascending"), ("timestep", "ascending")])
    found: dict[str, list[float]] = {}
    for row_id, loss in zip(groups["row_id"].to_pylist(), groups["loss_mean"].to_pylist(), strict=True):
        found.setdefault(row_id, []).append(loss)
    return {row_id: np.array(losses) for row_id, losses in found.items()}


def _mean(tables: Sequence[pa.Table], kinds: Sequence[str]) -> float | None:
    rows = [losses.mean() for table in tables for losses in _by_row(table, kinds).values()]
    return float(np.mean(rows)) if rows else None


def _tables(folder: Path) -> list[pa.Table]:
    """What was measured on held-out rows at the end of a run, or of each seed of an arm."""
    runs = sorted(folder.glob("seed-*")) or [folder]
    found = []
    for one in runs:
        neutral = one / "neutral.parquet"
        last = sorted((one / "validation").glob("step-*-ema.parquet")) or sorted(
            (one / "validation").glob("step-*.parquet")
        )
        if not run.finished(one) or not (neutral.exists() or last):
            raise UsageError(f"--compare {folder}: not a finished run; train it first")
        table = pq.read_table(neutral if neutral.exists() else last[-1])
        found.append(table.filter(pc.equal(table["split"], "validation")))
    return found


def recipe_at(folder: Path) -> Recipe:
    """The recipe of a run, or of the first seed of an arm."""
    return recipe.load(next(iter(sorted(folder.glob("seed-*/recipe.toml"))), folder / "recipe.toml"))


def _refuse_unlike(folders: Sequence[Path]) -> None:
    def facts(folder: Path) -> dict[str, Any]:
        one = recipe_at(folder)
        done = json.loads(
            next(iter(sorted(folder.glob("seed-*/finished.json"))), folder / "finished.json").read_bytes()
        )
        batches = sorted({phase.batch or one.train.batch for phase in one.phases})
        return {
            "schedule": one.phases[-1].schedule, "model.prediction": one.model.prediction, "steps": done["steps"],
            "train.batch": batches, "model.base": done["base"],
        }  # fmt: skip

    first = facts(folders[0])
    for folder in folders[1:]:
        for name, value in facts(folder).items():
            if value != first[name]:
                raise UsageError(
                    f"--compare {folders[0]} {folder}: {name} is {first[name]} in one and {value} in the other; "
                    "losses compare data only where all else is equal"
                )


def _against(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Which arms each arm is held against: those that the recipe of the arms names, else all before it."""
    names = [folder.name for folder in folders]
    whole = folders[0].parent.parent / "recipe.toml"
    told = {}
    if folders[0].parent.name == "arms" and whole.is_file():
        told = {arm.name: [n.strip() for n in arm.against.split(",") if n.strip()] for arm in recipe.load(whole).arms}
    return {name: [n for n in told.get(name, names[:i]) if n in names] for i, name in enumerate(names)}
