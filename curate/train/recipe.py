"""The recipe of a training run: one frozen, typed value, read from TOML by the same strict loader as the main job's.

    curate train deploy/recipes/train-tiny.toml --set train.lr=2e-4 --dry-run

[[phase]] are trained one after the other; `concept` and `quality` bring Kolors' settings. [arms.NAME] are training sets
to compare, all mixed from `data.store` and trained alike. Relative paths start at the current directory.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from curate.errors import UsageError, nearest
from curate.recipe import knob, read_tables, section
from curate.train.models import UNETS
from curate.train.schedule import SCHEDULES


@dataclass(frozen=True)
class Output:
    uri: str = knob("", "local folder of checkpoints, logs, grids and the exported model (required)")


@dataclass(frozen=True)
class Data:
    store: str = knob("", "store that arms are mixed from and losses are written back to")
    mix: str = knob("", "training set that `curate mix` wrote; not needed when there are arms")
    cache: str = knob("", "folder of cached latents and texts; empty: OUTPUT/cache. Runs may share one")
    cache_latents: bool = knob(True, "false: encode pictures at every step, for crops that never come back")
    cache_text: bool = knob(True, "false: encode captions at every step (0.66 MB a caption otherwise, ChatGLM3)")
    crop: str = knob("center", "random: another crop in every epoch", ("center", "random"))
    leftovers: str = knob(
        "base", "rows that fill no batch of their bucket: join the base bucket, or are left out", ("base", "drop")
    )
    prefetch: int = knob(4, "batches made ahead of the step", at_least=1)


@dataclass(frozen=True)
class Model:
    base: str = knob("", "folder in the layout of diffusers; empty: the tiny models, made here")
    unet: str = knob("trained", "shape of a UNet drawn anew; trained: the base's own", ("trained", *UNETS))
    prediction: str = knob("epsilon", "what the UNet predicts", ("epsilon", "v_prediction"))
    lora_rank: int = knob(0, "rank of LoRA matrices on the attention; 0: all weights are trained", at_least=0)
    lora_alpha: float = knob(4.0, "LoRA's scale times its rank", at_least=0.0)
    gradient_checkpointing: bool = knob(False, "less memory, a third more work")
    compile: bool = knob(False, "torch.compile of the UNet")
    precision: str = knob(
        "float32", "bfloat16: autocast; weights, moments and EMA stay float32", ("float32", "bfloat16")
    )


@dataclass(frozen=True)
class Train:
    engine: str = knob("local", "local: this process or those of torchrun; ray: Ray Train", ("local", "ray"))
    workers: int = knob(1, "processes that Ray Train starts", at_least=1)
    seed: int = knob(0, "of everything that is drawn", at_least=0)
    cpu_threads: int = knob(1, "threads of PyTorch on a CPU; sums depend on it, so it is a setting", at_least=1)
    batch: int = knob(16, "rows of one step over all processes", at_least=1)
    micro_batch: int = knob(0, "rows of one forward pass in a process; 0: its whole share", at_least=0)
    lr: float = knob(1e-4, "highest learning rate", at_least=0.0)
    warmup_steps: int = knob(0, "steps of linear warm-up", at_least=0)
    decay: str = knob("constant", "learning rate after the warm-up", ("constant", "cosine"))
    weight_decay: float = knob(0.01, "of AdamW", at_least=0.0)
    beta2: float = knob(0.999, "of AdamW", at_least=0.0)
    clip: float = knob(1.0, "norm that gradients are clipped to; 0: not clipped", at_least=0.0)
    ema: float = knob(
        0.9999, "decay of the averaged weights, reached by min(ema, (1 + step) / (10 + step)); 0: none", at_least=0.0
    )
    min_snr_gamma: float = knob(5.0, "min-SNR weighting; 0: off", at_least=0.0)
    noise_offset: float = knob(0.0, "noise common to a latent channel (0.05 is usual)", at_least=0.0)
    caption_dropout: float = knob(0.1, "share of samples that see the empty caption, 0..1", at_least=0.0)
    max_skipped: int = knob(10, "steps in a row that may be skipped for gradients that are not finite", at_least=0)


@dataclass(frozen=True)
class Checkpoint:
    every: int = knob(500, "steps between checkpoints; one is written at the end in any case", at_least=1)
    keep: int = knob(3, "newest checkpoints that are kept; 0: all", at_least=0)
    export: bool = knob(True, "write OUTPUT/model, a folder for diffusers, at the end")


@dataclass(frozen=True)
class Measure:
    every: int = knob(500, "steps between validation losses; 0: only at the start and the end", at_least=0)
    rows: int = knob(256, "held-out rows that are measured, and as many of the training rows", at_least=1)
    noises: int = knob(1, "noises for each row and timestep", at_least=1)
    grid_every: int = knob(0, "steps between sample grids; 0: only at the end", at_least=0)
    prompts: str = knob("", "text file, one prompt a line; text in quotes is read back by OCR; empty: the shipped ones")
    grid_seeds: int = knob(2, "pictures of each prompt; 0: no grids", at_least=0)
    sampling_steps: int = knob(25, "Euler steps of a sample", at_least=1)
    guidance: float = knob(5.0, "classifier-free guidance of samples", at_least=0.0)
    clip: str = knob("", "folder of a CLIPModel for CLIP score and KID; empty: neither is computed")
    kid_samples: int = knob(
        0, "pictures drawn from held-out captions for KID, 100 or more (5000 to publish); 0: no KID", at_least=0
    )
    write_back: bool = knob(True, "write losses of rows to data.store as operator `loss` at the end")
    write_back_rows: int = knob(
        10_000,
        "rows of a split whose losses are written back, drawn by key; 0: all. 32 forward passes each",
        at_least=0,
    )


@dataclass(frozen=True)
class Log:
    every: int = knob(10, "steps between log lines", at_least=1)
    tensorboard: bool = knob(False, "TensorBoard files beside metrics.jsonl (pip install tensorboard)")


@dataclass(frozen=True)
class Compare:
    seeds: int = knob(1, "runs of each arm, with different seeds", at_least=1)
    validation: float = knob(0.1, "share of the store's contents that no arm trains on, 0..1", at_least=0.0)
    rows: int = knob(2000, "of those, rows that arms are measured on, drawn by key; 0: all", at_least=0)


@dataclass(frozen=True)
class Phase:
    """One phase; empty text and 0 stand for what its name brings or, for `batch`, `lr` and `mix`, the run's own."""

    name: str = knob("train", "concept, quality, or a name of your own")
    steps: int = knob(1000, "optimizer steps", at_least=1)
    schedule: str = knob("", "noise schedule; empty: by the name, else sdxl", ("", *SCHEDULES))
    buckets: str = knob("", "square-512, novelai-1024, sdxl, ...; empty: by the name, else those of the mix")
    mix: str = knob("", "training set of this phase; empty: data.mix")
    batch: int = knob(0, "rows of a step; 0: train.batch", at_least=0)
    lr: float = knob(0.0, "learning rate; 0: train.lr", at_least=0.0)


KID_LEAST = 100  # pictures: with fewer the interval is as wide as what one looks for
KOLORS_PHASES = {
    "concept": {"schedule": "sdxl", "buckets": "square-512"},
    "quality": {"schedule": "kolors_released", "buckets": "novelai-1024"},
}


@dataclass(frozen=True)
class Arm:
    """One training set of a comparison: what `curate mix` is told, and how large it may be."""

    name: str = knob("", "name of the arm")
    where: str = knob("", "SQL condition over `samples`: rows that it trains on; empty: all that the policy keeps")
    ignore_policy: bool = knob(False, "take rows that the policy drops, too")
    ratio: float = knob(1.0, "share of raw captions, 0..1", at_least=0.0)
    languages: str = knob("en=1.0", "languages of synthetic captions, e.g. en=0.5,zh=0.5")
    size_of: str = knob("", "name of another arm: a random subset of its size")
    against: str = knob("", "names of the arms that it is held against, with commas between")
    text: str = knob("", "store or shards of rendered text that is added")
    text_rows: int = knob(0, "pictures of rendered text to make for it when `text` is empty", at_least=0)
    text_cap: float = knob(0.1, "largest share of rendered text, 0..1", at_least=0.0)


@dataclass(frozen=True)
class Recipe:
    """One training run, resolved."""

    output: Output = Output()
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    measure: Measure = Measure()
    log: Log = Log()
    compare: Compare = Compare()
    phases: tuple[Phase, ...] = (Phase(),)
    arms: tuple[Arm, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.output.uri)

    @property
    def cache(self) -> Path:
        """Where latents and texts are cached."""
        return Path(self.data.cache) if self.data.cache else self.folder / "cache"

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)


SECTIONS = {f.name: type(f.default) for f in dataclasses.fields(Recipe) if f.name not in ("phases", "arms")}
# What may differ when a run goes on: it decides what is written and where, not what is computed.
FREE = {"output", "checkpoint", "log", "compare"}
FREE_KEYS = {("data", k) for k in ("store", "mix", "cache", "prefetch", "cache_latents", "cache_text")} | {
    ("train", "engine"), ("train", "workers"), ("train", "micro_batch"), ("train", "max_skipped"), ("model", "compile"),
    ("model", "gradient_checkpointing"), ("model", "base"),
} | {("measure", f.name) for f in dataclasses.fields(Measure)}  # fmt: skip


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in the TOML file `path` with `a.b=c` overrides; raises UsageError that names key, value and fix."""
    return from_tables(read_tables(path, overrides), where=str(path))


def from_tables(tables: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe that the parsed TOML `tables` describe."""
    values: dict[str, Any] = {}
    for name, value in tables.items():
        if name == "phase":
            if not isinstance(value, list) or not value:
                raise UsageError(f"{where}: write each phase as [[phase]] and its keys below")
            values["phases"] = tuple(_phase(table, where) for table in value)
        elif name == "arms":
            if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
                raise UsageError(f"{where}: write each arm as [arms.NAME] and its keys below")
            values["arms"] = tuple(
                section("arms." + arm, Arm, {**table, "name": arm}, where) for arm, table in value.items()
            )
        elif name in SECTIONS:
            values[name] = section(name, SECTIONS[name], value, where)
        else:
            raise UsageError(f"{where}: unknown section [{name}]{nearest(name, [*SECTIONS, 'phase', 'arms'])}")
    values.setdefault("phases", (_phase({}, where),))
    recipe = Recipe(**values)
    _check(recipe, where)
    return recipe


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load` reads it back to an equal value."""
    tables = [(f"[{name}]", getattr(recipe, name)) for name in SECTIONS]
    tables += [("[[phase]]", phase) for phase in recipe.phases]
    tables += [(f"[arms.{json.dumps(arm.name)}]", arm) for arm in recipe.arms]
    lines: list[str] = []
    for head, table in tables:
        keys = [f.name for f in dataclasses.fields(table) if not (head.startswith("[arms.") and f.name == "name")]
        lines += [head, *(f"{k} = {json.dumps(getattr(table, k), ensure_ascii=False)}" for k in keys), ""]
    return "\n".join(lines)


def decisive(recipe: Recipe) -> dict[str, Any]:
    """All keys that decide what is computed, `section.key` to value; models and data are hashed by their content."""
    found: dict[str, Any] = {}
    for number, phase in enumerate(recipe.phases):
        table = dataclasses.asdict(phase)
        del table["mix"]
        if recipe.train.decay == "constant" and number == len(recipe.phases) - 1:
            del table["steps"]  # a longer last phase only goes on
        found |= {f"phase[{number}].{key}": value for key, value in table.items()}
    for name in SECTIONS:
        if name not in FREE:
            for key, value in dataclasses.asdict(getattr(recipe, name)).items():
                if (name, key) not in FREE_KEYS:
                    found[f"{name}.{key}"] = value
    return found


def fingerprint(recipe: Recipe) -> str:
    """Hash of all keys that decide what is computed: a checkpoint goes on under no other."""
    return sha256(json.dumps(decisive(recipe), sort_keys=True).encode()).hexdigest()[:16]


def differences(then: Recipe, now: Recipe, but: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """The keys of `decisive` that two recipes have different values for, without those named in `but`."""
    a, b = decisive(then), decisive(now)
    return {k: (a.get(k), b.get(k)) for k in sorted(a | b) if k not in but and a.get(k) != b.get(k)}


def _phase(table: Any, where: str) -> Phase:
    phase: Phase = section("phase", Phase, table, where)
    preset = KOLORS_PHASES.get(phase.name, {"schedule": "sdxl"})
    lacking = {key: value for key, value in preset.items() if not getattr(phase, key)}
    return dataclasses.replace(phase, **lacking)  # type: ignore[arg-type]


def _check(recipe: Recipe, where: str) -> None:
    """Raise UsageError for keys that do not go together."""

    def refuse(problem: str) -> None:
        raise UsageError(f"{where}: {problem}")

    if not recipe.output.uri:
        refuse("output.uri is missing; set it in the file or with --set output.uri=FOLDER")
    if "://" in recipe.output.uri:
        refuse(f"output.uri = {recipe.output.uri!r} must be a local or mounted folder")
    if recipe.arms and not recipe.data.store:
        refuse("arms are mixed from a store: data.store is missing")
    if not recipe.arms and not recipe.data.mix and not all(phase.mix for phase in recipe.phases):
        refuse("data.mix is missing: name a folder that `curate mix` wrote, or a store and [arms.NAME]")
    if not recipe.model.base and recipe.model.unet not in ("trained", "tiny"):
        refuse(f"model.unet = {recipe.model.unet!r} needs model.base, a folder with vae, text_encoder and tokenizer")
    for name, share in (("train.caption_dropout", recipe.train.caption_dropout), ("train.ema", recipe.train.ema)):
        if share > 1:
            refuse(f"{name} = {share} must be at most 1")
    if 0 < recipe.measure.kid_samples < KID_LEAST:
        refuse(
            f"measure.kid_samples = {recipe.measure.kid_samples} says nothing: at least {KID_LEAST}, or 0 for no KID"
        )
    for kind, called in (("phase", [p.name for p in recipe.phases]), ("arms", [arm.name for arm in recipe.arms])):
        for name in called:
            if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
                refuse(f"{kind}: the name {name!r} becomes a folder; use letters, digits, '-', '_' and '.'")
            if called.count(name) > 1:
                refuse(f"{kind}: two are named {name!r}; name them apart")
    for phase in recipe.phases:
        if phase.schedule == "zero_snr" and recipe.model.prediction == "epsilon":
            refuse(
                "schedule 'zero_snr' ends in pure noise, where epsilon says nothing: "
                "set model.prediction='v_prediction'"
            )
    names = [arm.name for arm in recipe.arms]
    for arm in recipe.arms:
        if arm.size_of and (arm.size_of == arm.name or arm.size_of not in names):
            refuse(f"arms.{arm.name}.size_of = {arm.size_of!r}{nearest(arm.size_of, set(names) - {arm.name})}")
        for other in filter(None, (name.strip() for name in arm.against.split(","))):
            if other not in names:
                refuse(f"arms.{arm.name}.against: {other!r}{nearest(other, set(names) - {arm.name})}")
        if arm.ratio > 1 or arm.text_cap > 1:
            refuse(f"arms.{arm.name}: ratio and text_cap are shares, 0..1")
    if arms_in_order(recipe.arms) is None:
        refuse("arms: size_of goes round in a circle; one of them must have a size of its own")


def arms_in_order(arms: Sequence[Arm]) -> list[Arm] | None:
    """The arms, each after the one whose size it takes; None when that goes round in a circle."""
    done: list[Arm] = []
    while ready := [a for a in arms if a not in done and (not a.size_of or a.size_of in {d.name for d in done})]:
        done += ready
    return done if len(done) == len(arms) else None
