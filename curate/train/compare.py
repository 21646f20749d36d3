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
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from curate.errors import UsageError
from curate.mix.export import export as export_mix
from curate.mix.plan import preview, rows_to_train_on
from curate.mix.settings import Settings, parse_languages
from curate.store import Store
from curate.train import evaluate, loop, recipe, run, tiny
from curate.train.checkpoint import averaged, write_bytes
from curate.train.data import Place, manifest_of
from curate.train.keyed import generator
from curate.train.recipe import Arm, Phase, Recipe, arms_in_order

Reals = npt.NDArray[np.float64]
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
        make_mixes(wanted, console)
        write_bytes(folder / "recipe.toml", recipe.to_toml(wanted).encode())
        if not wanted.model.base:
            neutral = str(folder / "mixes" / "neutral")
            tiny.make_tiny(folder / "base", lambda: run.captions([neutral]), wanted.train.seed)
    loop.barrier(place)
    for arm in wanted.arms:
        for seed in range(wanted.compare.seeds):
            one = recipe_of(wanted, arm, seed)
            run.run_one(one, place, console)
            measure_arm(one, folder, wanted.measure.write_back and arm == wanted.arms[0] and not seed, place, console)
    if place.rank == 0:
        compare_folders([folder / "arms" / arm.name for arm in wanted.arms], console, folder)


NEUTRAL = Arm(name="neutral", ignore_policy=True, ratio=0.5, languages="en=0.5,zh=0.5")


def make_mixes(wanted: Recipe, console: Console) -> None:
    """The neutral rows, then the training set of each arm."""
    sizes: dict[str, int] = {}
    for arm in (NEUTRAL, *arms_of(wanted)):
        settings = settings_of(wanted, arm, sizes, rendered_text(wanted, arm, console))
        try:
            made = export_mix(settings, str(mix_of(wanted, arm)), kind="inline")
        except UsageError as why:
            raise UsageError(f"arms.{arm.name}: {why} (for arms: choose another output.uri)") from None
        counts = {name: split["rows"] for name, split in made["splits"].items()}
        sizes[arm.name] = counts["train"]
        if arm == NEUTRAL and "validation" not in counts:
            raise UsageError(
                f"compare.validation = {wanted.compare.validation:g} keeps no row of {wanted.data.store} back; "
                "set a larger share"
            )
        kept = f"{counts['validation']} rows to measure on" if arm == NEUTRAL else f"{counts['train']} rows to train on"
        console.print(f"{arm.name}: {kept}", highlight=False)


def arms_of(wanted: Recipe) -> list[Arm]:
    """The arms, each after the one whose size it takes."""
    found = arms_in_order(wanted.arms)
    assert found is not None, "the recipe refuses circles"
    return found


def settings_of(wanted: Recipe, arm: Arm, sizes: Mapping[str, int], text: str) -> Settings:
    """How an arm is mixed; `sizes` has the rows to train on of the arms before it."""
    store = Store(wanted.data.store)
    store.require()
    known = {name for (name,) in store.rows("SELECT column_name FROM (DESCRIBE samples)")}
    settings = Settings(
        store=wanted.data.store,
        ratio=arm.ratio,
        languages=parse_languages(arm.languages),
        where=arm.where,
        ignore_policy=arm.ignore_policy,
        text=text,
        text_cap=arm.text_cap if arm.text or arm.text_rows else 0.0,
        validation=wanted.compare.validation,
        buckets=next((phase.buckets for phase in wanted.phases if phase.buckets), "novelai-1024"),
        columns=tuple(name for name in ("tier",) if name in known),
        seed=wanted.train.seed,
    )
    if not arm.size_of:
        return settings
    return dataclasses.replace(settings, rows=rows_to_train_on(settings, sizes[arm.size_of]))


def plan_of_arms(wanted: Recipe) -> list[str]:
    """What `--dry-run` says of arms: rows, buckets, epochs and left-overs of each; rendered text is not made for it."""
    sizes: dict[str, int] = {}
    found = []
    for arm in (NEUTRAL, *arms_of(wanted)):
        rows = preview(settings_of(wanted, arm, sizes, arm.text))
        sizes[arm.name] = sum(rows["train"].values())
        if arm == NEUTRAL:
            kept = sum(rows["validation"].values())
            measured = min(kept, wanted.compare.rows or kept)
            found.append(f"every arm is measured on {measured} of the {kept} rows that none trains on")
            continue
        text = f", and up to {arm.text_rows} pictures of rendered text" if arm.text_rows and not arm.text else ""
        shown = ", ".join(f"{w}x{h}: {n}" for (w, h), n in sorted(rows["train"].items()))
        found.append(f"arm {arm.name}: {sizes[arm.name]} rows to train on ({shown}){text}")
        for phase in wanted.phases:
            batch = phase.batch or wanted.train.batch
            epochs = phase.steps * batch / max(sizes[arm.name], 1)
            left = f"{sizes[arm.name] % batch} rows" if wanted.data.leftovers == "base" else "those of each bucket"
            found.append(
                f"  phase {phase.name}: {phase.steps} steps of {batch} rows, schedule {phase.schedule}; {epochs:.1f} "
                f"epochs, {left} left over in each"
            )
    return [*found, f"{len(wanted.arms) * wanted.compare.seeds} runs in all"]


def rendered_text(wanted: Recipe, arm: Arm, console: Console) -> str:
    """The rendered text of an arm: what the recipe names, or shards that are made here; empty when it has none."""
    if arm.text or not arm.text_rows:
        return arm.text
    from curate.synth.shards import generate, load_recipe

    out = wanted.folder / f"text-{arm.text_rows}"  # a folder of rendered text is never made smaller
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


def measure_arm(one: Recipe, folder: Path, whole: bool, place: Place, console: Console) -> None:
    """The losses of a finished arm on the neutral rows; with `whole`, of rows of all the store, for the store."""
    neutral = str(folder / "mixes" / "neutral")
    path = one.folder / "neutral.parquet"
    ended = json.loads((one.folder / "finished.json").read_bytes())
    facts = {"steps": ended["steps"], "neutral": manifest_of(neutral)["tree"], "rows": one.compare.rows,
             "noises": one.measure.noises, "whole": whole}  # fmt: skip
    mark = json.dumps(facts, sort_keys=True).encode()
    if path.exists() and (pq.read_schema(path).metadata or {}).get(b"measured") == mark:
        return

    def said(text: str) -> None:
        if place.rank == 0:
            console.print(text, highlight=False, soft_wrap=True)

    unet, state, tools = loop.restore(one, Path(one.model.base), place)
    with averaged(state):
        parts = run.measured(
            one, neutral, unet, state.step, tools, place, said, "neutral", ["validation"], one.compare.rows,
            evaluate.KINDS[:3],
        )  # fmt: skip
        if whole:
            back = dataclasses.replace(one, measure=dataclasses.replace(one.measure, write_back=True))
            losses = run.measure_all(back, neutral, unet, state.step, tools, place, said)
            if losses is not None and place.rank == 0:
                from curate.train.write_back import publish

                publish(back, losses, state.step)
    if place.rank == 0:
        table = pa.concat_tables(
            [pq.read_table(part, schema=evaluate.SCHEMA) for part in sorted(parts.glob("*.parquet"))]
        )
        temporary = path.with_suffix(".tmp")
        pq.write_table(table.replace_schema_metadata({"measured": mark}), temporary)
        temporary.replace(path)


def compare_folders(folders: Sequence[Path], console: Console, out: Path | None = None) -> list[Contrast]:
    """Print the comparison of finished runs, and write OUT/comparison.html and .json when `out` is given.

    Each folder is an arm (with seed-0, seed-1, ...) or a run. Raises UsageError for runs that no loss can compare:
    another schedule, prediction, autoencoder, or another amount of training.
    """
    if len({folder.name for folder in folders}) < len(folders):
        raise UsageError("--compare: the folders need different names")
    arms = {folder.name: _tables(folder) for folder in folders}
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
    shown = {(c.arm, c.against) for c in contrasts}
    for arm, others in against.items():
        for other in others:
            if (arm, other) not in shown:
                console.print(f"{arm}, {other}: no held-out picture and caption in common", highlight=False)
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
    pictures. None when no picture was measured in both under the same caption.
    """
    found = [paired(a, b, kinds) for a, b in zip(tables, others, strict=False)]
    common = sorted(set.intersection(*(set(pair) for pair in found))) if found else []
    if not common:
        return None
    pairs = np.array([[pair[picture] for picture in common] for pair in found])  # [seeds, pictures, timesteps]
    steps = pairs.mean(0)
    resampled = bootstrap(steps, resamples, generator("bootstrap", arm, against, column))
    low, high = np.percentile(resampled.mean(1), (2.5, 97.5))
    lows, highs = np.percentile(resampled, (2.5, 97.5), axis=0)
    difference = float(steps.mean())
    agreeing = int(((highs < 0) if difference < 0 else (lows > 0)).sum())
    signs = {bool(pair.mean() < 0) for pair in pairs}
    return Contrast(arm, against, column, len(steps), difference, float(low), float(high), agreeing, len(signs) == 1)


def bootstrap(steps: Reals, resamples: int, draw: np.random.Generator, at_once: int = 64) -> Reals:
    """Means of `steps` [pictures, timesteps] over pictures drawn with replacement: [resamples, timesteps].

    By counts, so that memory does not grow with resamples times pictures.
    """
    n = len(steps)
    found = np.empty((resamples, steps.shape[1]))
    for start in range(0, resamples, at_once):
        many = range(start, min(start + at_once, resamples))
        counts = np.stack([np.bincount(draw.integers(0, n, n), minlength=n) for _ in many])
        found[start : many.stop] = counts @ steps / n
    return found


def paired(a: pa.Table, b: pa.Table, kinds: Sequence[str]) -> dict[str, Reals]:
    """Loss of `a` minus loss of `b` by picture, [timesteps], over the captions under which both measured it."""
    first, second = _by_caption(a, kinds), _by_caption(b, kinds)
    found: dict[str, list[Reals]] = {}
    for key in sorted(first.keys() & second.keys()):
        found.setdefault(key[0], []).append(first[key] - second[key])
    return {picture: np.mean(several, axis=0) for picture, several in found.items()}


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
    table = Table("arm - other", "captions", "loss", "95 % interval", "steps", "", box=box.SIMPLE_HEAD)
    table.show_edge, table.padding = False, (0, 1, 0, 0)  # so that a line has 80 columns
    for found in contrasts:
        table.add_row(
            f"{found.arm} - {found.against}", found.column, f"{found.difference:+.5f}",
            f"{found.low:+.5f} {found.high:+.5f}", f"{found.steps_agreeing}/8", found.verdict,
        )  # fmt: skip
    console.print(table)


def _by_caption(table: pa.Table, kinds: Sequence[str]) -> dict[tuple[str, str, str], Reals]:
    """Losses by picture, kind of caption and caption, a vector over timesteps: mean over noises and copies."""
    kept = table.filter(pc.is_in(table["caption"], pa.array(kinds)))
    by = ["sha256", "caption", "said", "timestep"]
    groups = kept.group_by(by).aggregate([("loss", "mean")]).sort_by([(name, "ascending") for name in by])
    found: dict[tuple[str, str, str], list[float]] = {}
    for *key, _, loss in zip(*(groups[name].to_pylist() for name in (*by, "loss_mean")), strict=True):
        found.setdefault((key[0], key[1], key[2]), []).append(loss)
    return {key: np.array(losses) for key, losses in found.items()}


def _mean(tables: Sequence[pa.Table], kinds: Sequence[str]) -> float | None:
    losses = [loss.mean() for table in tables for loss in _by_caption(table, kinds).values()]
    return float(np.mean(losses)) if losses else None


def _tables(folder: Path) -> list[pa.Table]:
    """What was measured on held-out rows at the end of a run, or of each seed of an arm."""
    runs = sorted(folder.glob("seed-*")) or [folder]
    found = []
    for one in runs:
        neutral = one / "neutral.parquet"
        phases = recipe_at(one).phases if (one / "recipe.toml").is_file() else [Phase()]
        checks = one / "validation" / phases[-1].name
        last = sorted(checks.glob("step-*-ema.parquet")) or sorted(checks.glob("step-*.parquet"))
        if not run.finished(one) or not (neutral.exists() or last):
            raise UsageError(f"--compare {folder}: not a finished run; train it first")
        table = pq.read_table(neutral if neutral.exists() else last[-1])
        found.append(table.filter(pc.equal(table["split"], "validation")))
    return found


def recipe_at(folder: Path) -> Recipe:
    """The recipe of a run, or of the first seed of an arm."""
    return recipe.load(next(iter(sorted(folder.glob("seed-*/recipe.toml"))), folder / "recipe.toml"))


def _refuse_unlike(folders: Sequence[Path]) -> None:
    """Raise UsageError when anything but data and seed differs: a key that decides what is computed, or the models."""

    def facts(folder: Path) -> tuple[Recipe, dict[str, Any]]:
        one = recipe_at(folder)
        ends = next(iter(sorted(folder.glob("seed-*/finished.json"))), folder / "finished.json")
        done = json.loads(ends.read_bytes())
        return one, {"steps": done["steps"], "model.base": done["base"], "measure.noises": one.measure.noises}

    first, measured = facts(folders[0])
    for folder in folders[1:]:
        one, also = facts(folder)
        apart = recipe.differences(first, one, {"train.seed"})
        apart |= {name: (measured[name], value) for name, value in also.items() if measured[name] != value}
        for name, (a, b) in apart.items():
            raise UsageError(
                f"--compare {folders[0]} {folder}: {name} is {a} in one and {b} in the other; "
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
