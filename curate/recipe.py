"""The recipe of a run: one frozen, typed value, read from TOML by a strict loader.

    curate run deploy/recipes/embedded.toml --set policy.sharp="sharpness_tile >= 40" --dry-run

An unknown key names the nearest known one. A knob exists because someone turned it; its unit and reason stand beside
it and in docs/recipe.md, which is written from this file. Relative paths start at the current directory.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from curate.errors import UsageError, nearest


def knob(default: Any, about: str, choices: tuple[str, ...] = (), at_least: float | None = None) -> Any:
    """A recipe key with its default, meaning, and allowed values or lower bound."""
    return field(default=default, metadata={"about": about, "choices": choices, "at_least": at_least})


@dataclass(frozen=True)
class Input:
    uri: str = knob("", "file, folder or glob of the shards: local path, s3:// or gs:// (required)")
    format: str = knob("auto", "layout of the input", ("auto", "parquet", "webdataset", "folder"))
    image_column: str = knob("", "column with the pictures; empty: found among the usual names")
    caption_column: str = knob("", "column with the raw captions; empty: found among the usual names")
    root: str = knob("", "where image paths start and the only place they may lead to; empty: beside the shard")


@dataclass(frozen=True)
class StoreAt:
    uri: str = knob("", "folder of parts, runs and the DuckDB index: local path or s3:// (required)")


@dataclass(frozen=True)
class Engine:
    kind: str = knob("ray", "ray: actors on this machine or a cluster; inline: this process", ("ray", "inline"))
    workers: int = knob(0, "CPU workers at most; 0: one for each CPU of the machine or cluster", at_least=0)
    gpu_workers: int = knob(0, "GPU workers at most; 0: as many as the GPUs hold, or one without any", at_least=0)
    gpu_share: float = knob(1.0, "GPU that one GPU worker takes; 0.5: two workers share one", at_least=0.01)
    endpoint_workers: int = knob(1, "workers that ask endpoints (engine openai), at most", at_least=1)
    min_workers: int = knob(1, "workers of each pool that stay while they have nothing to do", at_least=1)
    worker_memory_gb: float = knob(
        0.0, "GB that a CPU worker may take beyond what it starts with; 0: any", at_least=0.0
    )
    range_rows: int = knob(64, "rows of one task: what a crash costs at most, per worker", at_least=1)
    open_shards: int = knob(0, "shards under work at once; 0: two for each worker", at_least=0)
    batch_timeout_s: float = knob(60.0, "seconds an operator may take for 16 rows; longer is a hang", at_least=0.1)
    max_crashes_per_shard: int = knob(20, "rows of one shard that may kill a worker before the shard fails", at_least=0)


@dataclass(frozen=True)
class Run:
    exhaustive: bool = knob(False, "score rejected rows with the costly operators too")
    max_failed_share: float = knob(0.01, "share of rows, 0..1, that may fail before the exit code is 3", at_least=0.0)
    log: str = knob("text", "text: for people; json: one object a line on standard error", ("text", "json"))
    metrics: str = knob("", "host:port at which Prometheus finds the run, e.g. 0.0.0.0:9464; empty: nowhere")


@dataclass(frozen=True)
class Decode:
    max_megapixels: float = knob(100.0, "larger pictures are refused by their header, megapixels", at_least=0.001)


@dataclass(frozen=True)
class Sharpness:
    long_side_px: int = knob(1024, "canonical size at which sharpness is measured, px", at_least=64)


@dataclass(frozen=True)
class Photometry:
    luma_px: int = knob(1024, "canonical size at which light is measured, px", at_least=64)
    color_px: int = knob(256, "canonical size at which colors are measured, px", at_least=64)


@dataclass(frozen=True)
class Embed:
    engine: str = knob("none", "open_clip: embeddings, concepts, caption similarity; none", ("open_clip", "none"))
    weights: str = knob("clip-vit-l-14", "model of `curate models list`, a weights file, or a folder of open_clip")
    architecture: str = knob("ViT-L-14-quickgelu", "open_clip's name, or a .json in its form, for a weights file")
    dtype: str = knob("bfloat16", "of the model; float32 on a CPU is faster", ("bfloat16", "float16", "float32"))
    concepts: str = knob("concepts.v1", "shipped taxonomy or .toml file; empty: no concepts")
    similarity: bool = knob(True, "compare captions with the picture (text tower)")


@dataclass(frozen=True)
class Aesthetic:
    engine: str = knob(
        "photometric", "photometric: classical baseline; laion-v1, laion-v2: heads on [embed]; siglip-v2.5; none",
        ("photometric", "laion-v1", "laion-v2", "siglip-v2.5", "none"),
    )  # fmt: skip
    weights: str = knob("", "the head: model of `curate models list` or file; empty: the engine's own")
    backbone: str = knob("siglip-so400m", "model of the list, or folder (siglip-v2.5)")


@dataclass(frozen=True)
class Faces:
    engine: str = knob("haar", "haar: embedded; yunet: ONNX weights; none: not counted", ("haar", "yunet", "none"))
    weights: str = knob("yunet", "model of `curate models list`, or an ONNX file (yunet)")
    min_side: float = knob(0.05, "smallest face side as a share of the picture's short side", at_least=0.0)


@dataclass(frozen=True)
class Ocr:
    engine: str = knob(
        "rapidocr", "rapidocr: PP-OCRv6 inside its wheel; paddleocr: PaddleOCR 3.x in a process of its own; none",
        ("rapidocr", "paddleocr", "none"),
    )  # fmt: skip
    pixels: int = knob(196_608, "size of the detector's input, px; more finds smaller print, slower", at_least=1024)
    min_confidence: float = knob(0.6, "lines that are read with less are left out, 0..1", at_least=0.0)
    python: str = knob("", "interpreter of an environment that has paddleocr; empty: this one (paddleocr)")
    detector: str = knob("", "model folder of PaddleOCR; empty: the models in RapidOCR's wheel (paddleocr)")
    recogniser: str = knob("", "the same (paddleocr)")
    device: str = knob(
        "cpu", "cpu; gpu or gpu:0, by onnxruntime-gpu (rapidocr) or PaddlePaddle's GPU wheel (paddleocr)"
    )


@dataclass(frozen=True)
class Caption:
    engine: str = knob(
        "facts", "facts: composed from what was measured; cogvlm, transformers: a model; openai: an endpoint; none",
        ("facts", "cogvlm", "transformers", "openai", "none"),
    )  # fmt: skip
    prompt: str = knob("detailed.v1", "shipped prompt, .toml file or text; `facts` only draws its wording from it")
    weights: str = knob("", "model of `curate models list`, or the folder of a checkpoint (cogvlm, transformers)")
    tokenizer: str = knob("", "the same of the tokenizer, where it is not the checkpoint's or the one the list names")
    max_new_tokens: int = knob(256, "longest caption, tokens", at_least=1)
    rows: int = knob(
        0, "captions generated at once; 0: what fits in memory, by measurement (cogvlm), or 8, halved when memory "
        "runs out (transformers)", at_least=0,
    )  # fmt: skip
    temperature: float = knob(0.0, "0: the likeliest token; above: sampled, keyed by seed and content", at_least=0.0)
    top_k: int = knob(0, "sample from the k likeliest tokens; 0: all", at_least=0)
    top_p: float = knob(1.0, "sample from the likeliest tokens of this mass, 0..1", at_least=0.001)
    seed: int = knob(0, "of sampling", at_least=0)
    dtype: str = knob(
        "bfloat16", "of matrices and cache; the same on every machine, since captions depend on it",
        ("bfloat16", "float16", "float32"),
    )  # fmt: skip
    rotary: str = knob(
        "float32", "rotary angles; bfloat16 repeats the reference's rounding (cogvlm)", ("float32", "bfloat16")
    )
    weight_format: str = knob("none", "8-bit weights: less memory, other captions", ("none", "int8", "fp8"))
    attempts: int = knob(2, "further tries, sampled, for a caption that fails its checks; not for facts", at_least=0)
    endpoint: str = knob("", "address that ends in /v1 (openai); its key: CURATE_API_KEY")
    model: str = knob("", "name of the model there (openai)")
    requests: int = knob(16, "requests in flight, for each of engine.endpoint_workers (openai)", at_least=1)
    timeout_s: float = knob(120.0, "seconds that one request may take (openai)", at_least=0.1)
    retries: int = knob(5, "further tries after 429, 5xx and broken answers (openai)", at_least=0)
    max_side_px: int = knob(2048, "larger pictures are shown smaller (openai, transformers)", at_least=64)


@dataclass(frozen=True)
class Translate:
    engine: str = knob(
        "auto", "facts: Chinese of `facts` captions; marian, nllb, causal-lm: a model; openai: an endpoint; none; "
        "auto: facts for `facts` captions, else none",
        ("auto", "facts", "marian", "nllb", "causal-lm", "openai", "none"),
    )  # fmt: skip
    weights: str = knob("", "model of `curate models list` or folder; empty: the engine's own")
    glossary: str = knob("glossary.v1", "shipped glossary or .toml file of names that must survive; empty: none")
    raw: bool = knob(False, "translate raw captions, too")
    dtype: str = knob("float32", "of the model", ("float32", "bfloat16", "float16"))
    rows: int = knob(64, "texts translated at once (marian, nllb, causal-lm)", at_least=1)
    endpoint: str = knob("", "address that ends in /v1 (openai); its key: CURATE_API_KEY")
    model: str = knob("", "name of the model there (openai)")
    requests: int = knob(16, "requests in flight, for each of engine.endpoint_workers (openai)", at_least=1)
    timeout_s: float = knob(120.0, "seconds that one request may take (openai)", at_least=0.1)
    retries: int = knob(5, "further tries after 429, 5xx and broken answers (openai)", at_least=0)


@dataclass(frozen=True)
class Quality:
    engine: str = knob(
        "auto", "rules: checks of raw, English and Chinese captions; none; auto: rules when a model or an endpoint "
        "captions or translates, else none", ("auto", "rules", "none"),
    )  # fmt: skip
    min_words: int = knob(5, "shortest English caption, words", at_least=0)
    max_words: int = knob(400, "longest English caption, words", at_least=1)
    min_quotes: float = knob(0.5, "least share of quoted parts that OCR must have read, 0..1", at_least=0.0)
    min_similarity: float = knob(0.0, "least similarity_en, -1..1 (needs [embed])")


TRANSLATORS = {"marian": "opus-mt-en-zh", "nllb": "nllb-200-distilled-600m", "causal-lm": "hy-mt1.5-1.8b"}
HEADS = {
    "laion-v1": "laion-aesthetic-v1",
    "laion-v2": "laion-aesthetic-v2",
    "siglip-v2.5": "siglip-aesthetic-v2.5",
}


@dataclass(frozen=True)
class Poster:
    engine: str = knob("none", "caption: [caption]'s engine is told the text that OCR read; none", ("caption", "none"))
    prompt: str = knob("poster.v1", "shipped prompt or .toml file; its {caption} stands for the text and its places")
    min_confidence: float = knob(0.9, "mean confidence of OCR, 0..1", at_least=0.0)
    min_area: float = knob(0.01, "share of the picture under text, from", at_least=0.0)
    max_area: float = knob(0.6, "and up to; denser text is no poster", at_least=0.0)
    min_line_px: float = knob(24.0, "height of a line below which it is small print, px", at_least=0.0)
    covered: float = knob(0.8, "share of the text that a caption must quote, 0..1; else it is appended", at_least=0.0)
    rendered: float = knob(0.2, "share of rendered text (curate synth) that a model captions anew, 0..1", at_least=0.0)


@dataclass(frozen=True)
class Recipe:
    """One run, resolved. `policy` holds (name, predicate) in the order in which they judge."""

    input: Input = Input()
    store: StoreAt = StoreAt()
    engine: Engine = Engine()
    run: Run = Run()
    decode: Decode = Decode()
    sharpness: Sharpness = Sharpness()
    photometry: Photometry = Photometry()
    embed: Embed = Embed()
    aesthetic: Aesthetic = Aesthetic()
    faces: Faces = Faces()
    ocr: Ocr = Ocr()
    caption: Caption = Caption()
    translate: Translate = Translate()
    quality: Quality = Quality()
    poster: Poster = Poster()
    policy: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Put what `auto` stands for in its place: past this door nothing asks again."""
        if self.translate.engine == "auto":
            fitting = "facts" if self.caption.engine == "facts" else "none"
            object.__setattr__(self, "translate", replace(self.translate, engine=fitting))
        if self.quality.engine == "auto":
            written = self.caption.engine not in ("facts", "none") or self.translate.engine not in ("facts", "none")
            object.__setattr__(self, "quality", replace(self.quality, engine="rules" if written else "none"))
        if self.translate.engine in TRANSLATORS and not self.translate.weights:
            object.__setattr__(self, "translate", replace(self.translate, weights=TRANSLATORS[self.translate.engine]))
        if self.aesthetic.engine in HEADS and not self.aesthetic.weights:
            object.__setattr__(self, "aesthetic", replace(self.aesthetic, weights=HEADS[self.aesthetic.engine]))


SECTIONS: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(Recipe) if f.name != "policy"}


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in the TOML file `path` with `a.b=c` overrides; raises UsageError that names key, value and fix."""
    return from_tables(read_tables(path, overrides), where=str(path))


def read_tables(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The tables of the TOML file `path` with `a.b=c` overrides, unchecked."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as why:
        raise UsageError(f"recipe {path}: {why.strerror or why}") from None
    except UnicodeDecodeError as why:
        raise UsageError(f"recipe {path}: not UTF-8 text ({why.reason} at byte {why.start})") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise UsageError(f"recipe {path}: not valid TOML: {why}") from None
    for override in overrides:
        _override(tables, override)
    return tables


def from_tables(tables: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe that the parsed TOML `tables` describe."""
    sections: dict[str, Any] = {}
    for name, value in tables.items():
        if name == "policy":
            sections["policy"] = _policy(value, where)
        elif name in SECTIONS:
            sections[name] = section(name, SECTIONS[name], value, where)
        else:
            raise UsageError(f"{where}: unknown section [{name}]{nearest(name, [*SECTIONS, 'policy'])}")
    recipe = Recipe(**sections)
    for key, value in (("input.uri", recipe.input.uri), ("store.uri", recipe.store.uri)):
        if not value:
            raise UsageError(f"{where}: {key} is missing; set it in the file or with --set {key}=PATH")
    if recipe.aesthetic.engine in ("laion-v1", "laion-v2") and recipe.embed.engine == "none":
        raise UsageError(
            f"{where}: aesthetic.engine={recipe.aesthetic.engine!r} scores the embedding; set embed.engine='open_clip'"
        )
    for name, keys in (("caption", recipe.caption), ("translate", recipe.translate)):
        if keys.engine == "openai" and not (keys.endpoint and keys.model):
            raise UsageError(f"{where}: {name}.engine='openai' needs {name}.endpoint (ends in /v1) and {name}.model")
    if recipe.translate.engine == "facts" and recipe.caption.engine != "facts":
        raise UsageError(
            f"{where}: translate.engine='facts' only translates captions of caption.engine='facts', "
            f"not {recipe.caption.engine!r}; set translate.engine='none' or another translator"
        )
    return recipe


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load` reads it back to an equal value."""
    lines: list[str] = []
    for name in SECTIONS:
        lines.append(f"[{name}]")
        section = getattr(recipe, name)
        lines += [f"{f.name} = {_toml(getattr(section, f.name))}" for f in dataclasses.fields(section)]
        lines.append("")
    lines.append("[policy]")
    lines += [f"{_toml(name)} = {_toml(predicate)}" for name, predicate in recipe.policy]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _override(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not section or not name:
        raise UsageError(f"--set {override!r}: write it as section.key=value, e.g. --set engine.kind=inline")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: nobody wants to quote for the shell and for TOML
    table = tables.setdefault(section, {})
    if not isinstance(table, dict):
        raise UsageError(f"--set {override!r}: {section!r} is not a section{nearest(section, [*SECTIONS, 'policy'])}")
    table[name] = value


def section(name: str, kind: type, values: Any, where: str) -> Any:
    """The dataclass `kind`, whose fields are knobs, from the TOML table `values`; raises UsageError."""
    if not isinstance(values, dict):
        raise UsageError(f"{where}: {name} = {values!r} must be a section: write [{name}] and its keys below")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    types = get_type_hints(kind)
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise UsageError(f"{where}: unknown key {name}.{key}{nearest(key, fields)}")
        checked[key] = _value(f"{where}: {name}.{key}", types[key], value, fields[key].metadata)
    return kind(**checked)


def _value(where: str, kind: Any, value: Any, metadata: Mapping[str, Any]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{where} = {value!r} must be {_KINDS[kind]}, not {type(value).__name__}")
    if metadata["choices"] and value not in metadata["choices"]:
        raise UsageError(f"{where} = {value!r} is not known{nearest(str(value), metadata['choices'])}")
    if metadata["at_least"] is not None and not value >= metadata["at_least"]:
        raise UsageError(f"{where} = {value!r} must be at least {metadata['at_least']}")
    return value


_KINDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _policy(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise UsageError(f'{where}: policy must be a section of lines like sharp = "sharpness_tile >= 40"')
    for name, predicate in value.items():
        if not isinstance(predicate, str) or not predicate.strip():
            raise UsageError(f"{where}: policy.{name} = {predicate!r} must be a SQL predicate in quotes")
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UsageError(f"{where}: policy name {name!r} may have letters, digits, '_' and '-' only")
    return tuple(value.items())
