"""The path of a run, as one table, and the run itself.

    python -m curate.pipeline deploy/recipes/embedded.toml [--set a.b=c] [--dry-run]

The same entry as `curate run`; on a Ray cluster: `ray job submit -- python -m curate.pipeline RECIPE`.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from curate import log, metrics, models, read
from curate.engine import Engine
from curate.engine.driver import Progress, drive
from curate.engine.tasks import Index, Survey
from curate.engine.worker import Worker as RangeWorker
from curate.errors import DONE, FAILED, TOO_MANY_FAILED_ROWS, CurateError, UsageError
from curate.plan import Operator, Plan, Pool, Worker, describe, make_plan, version_of
from curate.progress import Display
from curate.recipe import HEADS, TRANSLATORS, Caption, Recipe, Translate, to_toml
from curate.store.files import Files, NoBucketError, open_files
from curate.store.parts import Version, list_parts, parts_of, read_table
from schemas.columns import FAILURE, ROW
from workers import aesthetic, facts, poster

if TYPE_CHECKING:
    from workers.embedder import Embedder
    from workers.endpoint import Endpoint
    from workers.quality import Captioner, Checked

INPUT_VERSION = 1  # of what `input` parts hold; the next one reads every shard again


def _size(recipe: Recipe) -> Worker:
    from workers.size import size

    return size


def _identity(recipe: Recipe) -> Worker:
    from workers.identity import identity

    return identity


def _sharpness(recipe: Recipe) -> Worker:
    from workers.sharpness import sharpness

    return partial(sharpness, long_side_px=recipe.sharpness.long_side_px)


def _photometry(recipe: Recipe) -> Worker:
    from workers.photometry import photometry

    return partial(photometry, luma_px=recipe.photometry.luma_px, color_px=recipe.photometry.color_px)


def _aesthetic(recipe: Recipe) -> Worker:
    return aesthetic.photometric


def _embedder(recipe: Recipe) -> Embedder:
    from workers.embedder import OpenClip, opened

    keys = recipe.embed
    return opened(OpenClip, models.locate("embed.weights", keys.weights), keys.architecture, keys.dtype)


def _embed(recipe: Recipe) -> Worker:
    from workers.embedder import Embed

    facts = _embed_facts(recipe)
    return Embed(_embedder(recipe), facts["model"], facts["revision"])


def _head(recipe: Recipe) -> Worker:
    from workers.embedder import Aesthetic, Siglip, opened

    keys = recipe.aesthetic
    embedder = _embedder(recipe) if keys.engine != "siglip-v2.5" else opened(
        Siglip, models.locate("aesthetic.backbone", keys.backbone), recipe.embed.dtype
    )  # fmt: skip
    return Aesthetic(embedder, models.locate("aesthetic.weights", keys.weights), keys.engine)


def _concepts(recipe: Recipe) -> Worker:
    from workers.embedder import Concepts, taxonomy

    return Concepts(_embedder(recipe), taxonomy(recipe.embed.concepts))


def _similarity(recipe: Recipe) -> Worker:
    from workers.embedder import Similarity

    return Similarity(_embedder(recipe))


def _faces(recipe: Recipe) -> Worker:
    from workers import faces

    keys = recipe.faces
    if keys.engine == "yunet":
        return faces.YuNet(models.locate("faces.weights", keys.weights), min_side=keys.min_side)
    return faces.Haar(min_side=keys.min_side)


def _ocr(recipe: Recipe) -> Worker:
    from workers.ocr import RapidOcr

    if recipe.ocr.engine == "paddleocr":
        from workers.paddle import PaddleOcr

        keys = recipe.ocr
        return PaddleOcr(
            python=keys.python, detector=keys.detector, recogniser=keys.recogniser, device=keys.device,
            min_confidence=keys.min_confidence,
        )  # fmt: skip
    return RapidOcr(
        pixels=recipe.ocr.pixels, min_confidence=recipe.ocr.min_confidence, device=recipe.ocr.device
    )  # fmt: skip


def _caption(recipe: Recipe) -> Worker:
    return facts.FactsCaptioner(prompt=recipe.caption.prompt)


@lru_cache(1)  # `poster` asks the same model again
def _cogvlm(recipe: Recipe) -> Worker:
    from workers.cogvlm.captioner import CogVLM

    keys = recipe.caption
    captioner = CogVLM(
        weights=models.locate("caption.weights", keys.weights),
        tokenizer=_cogvlm_tokenizer(recipe),
        prompt=keys.prompt,
        max_new_tokens=keys.max_new_tokens,
        rows=keys.rows,
        temperature=keys.temperature,
        top_k=keys.top_k,
        top_p=keys.top_p,
        seed=keys.seed,
        dtype=keys.dtype,
        rotary=keys.rotary,
        weight_format=keys.weight_format,
    )
    return _checked(captioner, recipe)


def _checked(captioner: Captioner, recipe: Recipe) -> Checked:
    from workers.quality import Checked

    keys = recipe.quality
    return Checked(captioner, attempts=recipe.caption.attempts, min_words=keys.min_words, max_words=keys.max_words)


def _checked_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import quality

    keys = recipe.quality
    return {"version": quality.VERSION, "attempts": recipe.caption.attempts, "words": [keys.min_words, keys.max_words]}


def _quality(recipe: Recipe) -> Worker:
    from workers.quality import Quality

    keys = recipe.quality
    return Quality(
        min_words=keys.min_words, max_words=keys.max_words, min_quotes=keys.min_quotes,
        min_similarity=keys.min_similarity,
    )  # fmt: skip


def _quality_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import quality

    return {"version": quality.VERSION, **asdict(recipe.quality)}


def _cogvlm_tokenizer(recipe: Recipe) -> Path:
    if name := models.tokenizer_of(recipe):
        return models.locate("caption.tokenizer", name)
    return models.locate("caption.weights", recipe.caption.weights)


@lru_cache(1)
def _vlm(recipe: Recipe) -> Worker:
    from workers.cogvlm.prompt import caption_prompt
    from workers.vlm import TransformersCaptioner

    keys, found = recipe.caption, _vlm_facts(recipe)
    captioner = TransformersCaptioner(
        models.locate("caption.weights", keys.weights), caption_prompt(keys.prompt), name=found["model"],
        revision=found["revision"], max_new_tokens=keys.max_new_tokens, rows=keys.rows or 8,
        temperature=keys.temperature, top_k=keys.top_k, top_p=keys.top_p, seed=keys.seed, dtype=keys.dtype,
        max_side_px=keys.max_side_px,
    )  # fmt: skip
    return _checked(captioner, recipe)


def _endpoint(keys: Caption | Translate) -> Endpoint:
    from workers.endpoint import Endpoint

    return Endpoint(keys.endpoint, keys.model, requests=keys.requests, timeout_s=keys.timeout_s, retries=keys.retries)


def _openai(recipe: Recipe) -> Worker:
    from workers.cogvlm.prompt import caption_prompt
    from workers.endpoint import EndpointCaptioner

    keys = recipe.caption
    captioner = EndpointCaptioner(
        _endpoint(keys), caption_prompt(keys.prompt), max_side_px=keys.max_side_px, max_tokens=keys.max_new_tokens,
        temperature=keys.temperature, top_p=keys.top_p, seed=keys.seed,
    )  # fmt: skip
    return _checked(captioner, recipe)


def _poster(recipe: Recipe) -> Worker:
    from workers.cogvlm.prompt import caption_prompt
    from workers.poster import PosterCaptioner

    keys, captioner = recipe.poster, None
    if recipe.caption.engine != "facts":
        loaders: dict[str, Callable[[Recipe], Any]] = {"cogvlm": _cogvlm, "transformers": _vlm, "openai": _openai}
        captioner = copy.copy(loaders[recipe.caption.engine](recipe))  # the same weights under another prompt
        captioner.prompt = caption_prompt(keys.prompt)
    return PosterCaptioner(
        captioner, min_confidence=keys.min_confidence, min_area=keys.min_area, max_area=keys.max_area,
        min_line_px=keys.min_line_px, covered=keys.covered, rendered=keys.rendered,
    )  # fmt: skip


def _translate(recipe: Recipe) -> Worker:
    return facts.FactsTranslator()


def _translator(recipe: Recipe) -> Worker:
    from workers.spans import glossary
    from workers.translator import CausalLM, Seq2Seq, Translator

    keys, found = recipe.translate, _translator_facts(recipe)
    model: Any
    if keys.engine == "openai":
        from workers.endpoint import EndpointModel

        model = EndpointModel(_endpoint(keys))
    elif keys.engine == "causal-lm":
        model = CausalLM(models.locate("translate.weights", keys.weights), dtype=keys.dtype, rows=keys.rows)
    else:
        model = Seq2Seq(models.locate("translate.weights", keys.weights), keys.engine, dtype=keys.dtype, rows=keys.rows)
    return Translator(
        model, engine=keys.engine, name=found["model"], revision=found["revision"], terms=glossary(keys.glossary),
        raw=keys.raw,
    )  # fmt: skip


def _input_facts(recipe: Recipe) -> dict[str, Any]:
    keys = ("format", "image_column", "caption_column", "root")
    return {"version": INPUT_VERSION, **{key: getattr(recipe.input, key) for key in keys}}


def _size_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import picture, size

    return {"version": size.VERSION, "decoder": picture.VERSION, "max_megapixels": recipe.decode.max_megapixels}


def _identity_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import identity, picture

    return {"version": identity.VERSION, "decoder": picture.VERSION, "max_megapixels": recipe.decode.max_megapixels}


def _sharpness_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import picture, sharpness

    return {
        "version": sharpness.VERSION,
        "decoder": picture.VERSION,
        "long_side_px": recipe.sharpness.long_side_px,
    }


def _photometry_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import photometry, picture

    return {
        "version": photometry.VERSION,
        "decoder": picture.VERSION,
        "luma_px": recipe.photometry.luma_px,
        "color_px": recipe.photometry.color_px,
    }


def _aesthetic_facts(recipe: Recipe) -> dict[str, Any]:
    return {"version": aesthetic.VERSION, "engine": "photometric"}


def _embed_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import embedder, picture

    keys = recipe.embed
    weights, model = models.locate("embed.weights", keys.weights), models.known().get(keys.weights)
    if model and model.architecture and not embedder.quick_gelu(keys.architecture):
        raise UsageError(
            f"embed.architecture = {keys.architecture!r}: {model.name} was trained with QuickGELU, and without it "
            f"embeddings are silently off; use {model.architecture}"
        )
    return {
        "version": embedder.VERSION,
        "decoder": picture.VERSION,
        "model": keys.architecture if weights.is_file() else weights.name,
        "revision": embedder.revision(weights),
        "dtype": keys.dtype,
    }


def _head_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import embedder, picture

    keys = recipe.aesthetic
    head = models.locate("aesthetic.weights", keys.weights)
    facts = {"engine": keys.engine, "head": embedder.revision(head), "version": embedder.VERSION}
    if keys.engine != "siglip-v2.5":
        return facts | {"embed": _embed_facts(recipe)}
    backbone = embedder.revision(models.locate("aesthetic.backbone", keys.backbone))
    return facts | {"decoder": picture.VERSION, "backbone": backbone, "dtype": recipe.embed.dtype}


def _concepts_facts(recipe: Recipe) -> dict[str, Any]:
    from workers.embedder import taxonomy

    return {"embed": _embed_facts(recipe), "taxonomy": asdict(taxonomy(recipe.embed.concepts))}


def _similarity_facts(recipe: Recipe) -> dict[str, Any]:
    return {"version": 2, "embed": _embed_facts(recipe)}


def _faces_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import faces, picture

    engine, weights = recipe.faces.engine, recipe.faces.weights
    return {
        "version": faces.VERSION,
        "decoder": picture.VERSION,
        "engine": engine,
        "model": engine,
        "revision": faces.revision(engine, models.locate("faces.weights", weights) if engine == "yunet" else None),
        "min_side": recipe.faces.min_side,
    }


def _ocr_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import ocr, picture

    if recipe.ocr.engine == "paddleocr":
        from workers import paddle

        return {
            "version": paddle.VERSION,
            "decoder": picture.VERSION,
            "engine": "paddleocr",
            "revision": paddle.revision(recipe.ocr.detector, recipe.ocr.recogniser),
            "min_confidence": recipe.ocr.min_confidence,
        }
    return {
        "version": ocr.VERSION,
        "decoder": picture.VERSION,
        "engine": recipe.ocr.engine,
        "model": "PP-OCRv6-small",
        "revision": ocr.revision(),
        "pixels": recipe.ocr.pixels,
        "min_confidence": recipe.ocr.min_confidence,
    }


def _caption_facts(recipe: Recipe) -> dict[str, Any]:
    from workers.cogvlm.prompt import caption_prompt

    prompt = recipe.caption.prompt
    if re.search(r"\.toml$|\.v\d+$|^\s*$", prompt):  # meant as a file or a shipped prompt: then it must exist
        caption_prompt(prompt)
    return {"engine": "facts", "model": facts.MODEL, "revision": str(facts.VERSION), "prompt": recipe.caption.prompt}


def _cogvlm_facts(recipe: Recipe) -> dict[str, Any]:
    from workers.cogvlm.captioner import check_files, model_name, revision
    from workers.cogvlm.prompt import caption_prompt, tokenizer_revision

    keys = recipe.caption
    weights, tokenizer = models.locate("caption.weights", keys.weights), _cogvlm_tokenizer(recipe)
    check_files(weights, tokenizer)
    sampling = ("temperature", "top_k", "top_p", "seed") if keys.temperature else ()
    return {
        "version": 1,
        "engine": "cogvlm",
        "checked": _checked_facts(recipe),
        "model": model_name(weights),
        "revision": revision(weights),
        "tokenizer": tokenizer_revision(tokenizer),
        "prompt": asdict(caption_prompt(keys.prompt)),
        **{key: getattr(keys, key) for key in ("max_new_tokens", "dtype", "rotary", "weight_format", *sampling)},
    }


def _vlm_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import picture, vlm
    from workers.cogvlm.captioner import model_name
    from workers.cogvlm.prompt import caption_prompt
    from workers.embedder import revision

    keys = recipe.caption
    weights = models.locate("caption.weights", keys.weights)
    sampling = ("temperature", "top_k", "top_p", "seed") if keys.temperature else ()
    return {
        "version": vlm.VERSION,
        "decoder": picture.VERSION,
        "engine": "transformers",
        "checked": _checked_facts(recipe),
        "model": model_name(weights),
        "revision": revision(weights),
        "prompt": asdict(caption_prompt(keys.prompt)),
        **{key: getattr(keys, key) for key in ("max_new_tokens", "dtype", "max_side_px", *sampling)},
    }


def _openai_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import endpoint, picture
    from workers.cogvlm.prompt import caption_prompt

    keys = recipe.caption
    return {
        "version": endpoint.VERSION,
        "decoder": picture.VERSION,
        "engine": "openai",
        "checked": _checked_facts(recipe),
        "prompt": asdict(caption_prompt(keys.prompt)),
        **{
            key: getattr(keys, key)
            for key in ("model", "max_new_tokens", "temperature", "top_p", "seed", "max_side_px")
        },
    }


def _poster_facts(recipe: Recipe) -> dict[str, Any]:
    """The thresholds, and what decides the captioner's answers."""
    own = {key: value for key, value in asdict(recipe.poster).items() if key != "engine"}
    if recipe.caption.engine == "facts":
        return {"version": poster.VERSION, **own}
    asked = replace(recipe, caption=replace(recipe.caption, prompt=recipe.poster.prompt))
    facts_of = {"cogvlm": _cogvlm_facts, "transformers": _vlm_facts, "openai": _openai_facts}[recipe.caption.engine]
    return {**facts_of(asked), "version": poster.VERSION, **own}


def _translator_facts(recipe: Recipe) -> dict[str, Any]:
    from workers import endpoint, translator
    from workers.cogvlm.captioner import model_name
    from workers.embedder import revision
    from workers.spans import glossary

    keys = recipe.translate
    found = {"version": translator.VERSION, "engine": keys.engine, "glossary": glossary(keys.glossary), "raw": keys.raw}
    if keys.engine == "openai":
        return found | {"model": keys.model, "revision": "", "endpoint_version": endpoint.VERSION}
    weights = models.locate("translate.weights", keys.weights)
    return found | {"model": model_name(weights), "revision": revision(weights), "dtype": keys.dtype}


def _translate_facts(recipe: Recipe) -> dict[str, Any]:
    return {"version": 2, "engine": "facts", "model": facts.MODEL, "revision": str(facts.VERSION)}


def _no_worker(recipe: Recipe) -> Worker:
    raise AssertionError("`input` is written when a shard is indexed")


# The path: cheap operators first; costly ones see what the policy has not rejected by then. Consecutive operators of
# one pool run in one pass over pictures that were decoded once.
PATH: tuple[Operator, ...] = (
    Operator("input", _no_worker, _input_facts, image="none"),
    Operator("size", _size, _size_facts),
    Operator("identity", _identity, _identity_facts, image="bytes"),
    Operator("sharpness", _sharpness, _sharpness_facts),
    Operator("photometry", _photometry, _photometry_facts),
    Operator(
        "aesthetic", _aesthetic, _aesthetic_facts, image="none", needs=aesthetic.NEEDS,
        wanted=lambda recipe: recipe.aesthetic.engine == "photometric",
    ),
    # On a GPU: the model decodes for itself, by threads, and one embedding serves all four of its operators.
    Operator(
        "embed", _embed, _embed_facts, image="encoded", costly=True, pool="gpu", batch=256,
        wanted=lambda recipe: recipe.embed.engine != "none",
    ),
    Operator(
        "aesthetic", _head, _head_facts, image="encoded", costly=True, pool="gpu", batch=256,
        wanted=lambda recipe: recipe.aesthetic.engine in HEADS,
    ),
    Operator(
        "concepts", _concepts, _concepts_facts, image="encoded", costly=True, pool="gpu", batch=256,
        wanted=lambda recipe: recipe.embed.engine != "none" and recipe.embed.concepts != "",
    ),
    Operator("faces", _faces, _faces_facts, costly=True, wanted=lambda recipe: recipe.faces.engine != "none"),
    Operator(
        "ocr", _ocr, _ocr_facts, costly=True,
        wanted=lambda recipe: recipe.ocr.engine != "none" and recipe.ocr.device == "cpu",
    ),
    Operator(
        "ocr", _ocr, _ocr_facts, costly=True, pool="gpu",
        wanted=lambda recipe: recipe.ocr.engine != "none" and recipe.ocr.device != "cpu",
    ),
    Operator(
        "caption", _caption, _caption_facts, image="none", needs=facts.NEEDS, costly=True,
        wanted=lambda recipe: recipe.caption.engine == "facts",
    ),
    Operator(
        "caption", _cogvlm, _cogvlm_facts, image="encoded", needs=("caption_raw",), costly=True, pool="gpu", batch=1024,
        # Several times the captions generated at once (256 at most): the batch drains at the end of a task only.
        wanted=lambda recipe: recipe.caption.engine == "cogvlm",
    ),
    Operator(
        "caption", _vlm, _vlm_facts, image="encoded", needs=("caption_raw",), costly=True, pool="gpu", batch=64,
        wanted=lambda recipe: recipe.caption.engine == "transformers",
    ),
    Operator(
        "caption", _openai, _openai_facts, image="encoded", needs=("caption_raw",), costly=True, pool="net",
        batch=256, wanted=lambda recipe: recipe.caption.engine == "openai",
    ),
    Operator(
        "translate", _translator, _translator_facts, image="none", needs=("caption_en", "caption_raw"), costly=True,
        pool="gpu", batch=256, wanted=lambda recipe: recipe.translate.engine in TRANSLATORS,
    ),
    Operator(
        "translate", _translator, _translator_facts, image="none", needs=("caption_en", "caption_raw"), costly=True,
        pool="net", batch=256, wanted=lambda recipe: recipe.translate.engine == "openai",
    ),
    Operator(
        "translate", _translate, _translate_facts, image="none", needs=("caption_en", "caption_engine", *facts.NEEDS),
        costly=True, wanted=lambda recipe: recipe.translate.engine == "facts" and recipe.caption.engine == "facts",
    ),
    # A second question to the captioner; with `facts`, whose captions are composed, the row's captions are mended.
    Operator(
        "poster", _poster, _poster_facts, image="none", needs=poster.NEEDS, costly=True,
        wanted=lambda recipe: recipe.poster.engine != "none" and recipe.caption.engine == "facts",
    ),
    Operator(
        "poster", _poster, _poster_facts, image="encoded", needs=poster.NEEDS, costly=True, pool="gpu", batch=256,
        wanted=lambda recipe: recipe.poster.engine != "none" and recipe.caption.engine in ("cogvlm", "transformers"),
    ),
    Operator(
        "poster", _poster, _poster_facts, image="encoded", needs=poster.NEEDS, costly=True, pool="net", batch=256,
        wanted=lambda recipe: recipe.poster.engine != "none" and recipe.caption.engine == "openai",
    ),
    Operator(
        "similarity", _similarity, _similarity_facts, image="encoded", needs=("caption_raw", "caption_en"), costly=True,
        pool="gpu", batch=256, wanted=lambda recipe: recipe.embed.engine != "none" and recipe.embed.similarity,
    ),
    Operator(
        "quality", _quality, _quality_facts, image="none", costly=True, needs=(
            "caption_raw", "caption_en", "caption_zh", "caption_finish", "caption_raw_zh", "caption_raw_en",
            "translate_lost", "translate_cut", "translate_raw_lost", "translate_raw_cut", "ocr_text", "ocr_scores",
            "similarity_en",
        ),
        wanted=lambda recipe: recipe.quality.engine != "none",
    ),
)  # fmt: skip


# What one worker of each pool takes from the cluster; how many there are at least and at most is the recipe's [engine].
# A worker on a GPU mostly waits for it: with half a CPU there is room for one of each pool on two cores. All models of
# a recipe live in one worker: in workers apart, the one that is idle would keep its share of a GPU from the other.
def pools(recipe: Recipe) -> dict[str, Pool]:
    """The resources of each kind of worker.

    A worker that asks an endpoint is on several ranges at once, so that the end of one leaves no request unused: eight
    times as many rows as requests. A range ends with its slowest answer and the further tries of what failed, some
    six times the usual time of one; with three times as many rows all requests but a few idled at every such end.
    """
    asked = [keys.requests for keys in (recipe.caption, recipe.translate) if keys.engine == "openai"]
    ranges = -(-8 * max(asked, default=1) // recipe.engine.range_rows) + 3
    return {
        "cpu": Pool(cpus=1),
        "gpu": Pool(cpus=0.5, gpus=recipe.engine.gpu_share, tasks=2),  # one reads and saves while the other computes
        "net": Pool(cpus=0.5, tasks=min(ranges, MOST_RANGES), alone=False, most=recipe.engine.endpoint_workers),
    }


MOST_RANGES = 32  # threads of a worker that asks an endpoint
LOOK_FIRST = 64  # shards that are looked at before an engine is started


@dataclass(frozen=True)
class Prepared:
    """A run that was checked and can start: the plan and its shards."""

    plan: Plan
    shards: tuple[read.Shard, ...]


def prepare(recipe: Recipe, path: Sequence[Operator] = PATH) -> Prepared:
    """Check everything that can be checked before a row is touched: weights, input, store, policy."""
    models.require(recipe)
    spec = read.InputSpec(
        recipe.input.uri, recipe.input.format, recipe.input.image_column, recipe.input.caption_column, recipe.input.root
    )
    try:
        shards = tuple(read.discover(spec))
    except read.InputError as why:
        raise UsageError(f"input.uri = {recipe.input.uri!r}: {why.message}") from None
    files = open_files(_reachable(recipe.store.uri))
    try:
        schema = _input_schema(shards, files, version_of(path[0], recipe))
    except NoBucketError as why:
        raise UsageError(f"store.uri = {recipe.store.uri!r}: {str(why).partition(': ')[2]}; make it first") from None
    try:
        plan = make_plan(recipe, path, schema, files, pools(recipe))
    except (FileNotFoundError, ValueError) as why:  # weights that a fingerprint is taken of
        raise UsageError(str(why)) from None
    return Prepared(plan, shards)


def _reachable(uri: str) -> str:
    """`uri` of the store; raises UsageError in a Ray job for a path of the job's own temporary folder."""
    in_a_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # Ray takes RAY_JOB_ID away from what a job starts
    if in_a_job and "://" not in uri and not Path(uri).is_absolute():
        raise UsageError(
            f"store.uri = {uri!r}: in a Ray job this is a folder that Ray deletes; name an absolute path or s3:// URI "
            "that all nodes share"
        )
    return uri


def run(
    recipe: Recipe,
    *,
    path: Sequence[Operator] = PATH,
    make_engine: Callable[[Plan], Engine] | None = None,
    display: Display | None = None,
) -> int:
    """Run the main job and bring the store's index up to date; returns the exit code (curate/errors.py)."""
    display = display or Display()
    prepared = prepare(recipe, path)
    plan, shards = prepared.plan, prepared.shards
    progress = Progress(len(shards))
    with metrics.served(recipe.run.metrics, progress):
        record = _begin(plan, shards)
        with log.written(recipe.run.log, record["run_id"]):
            started = time.monotonic()
            with _recorded(plan, record):
                with display.running(plan, progress, record["run_id"]), _Signals(display) as stopping:
                    _compute(plan, shards, progress, display, stopping, make_engine or _engine)
                return _finish(plan, record, progress, display, time.monotonic() - started)


def _compute(
    plan: Plan,
    shards: Sequence[read.Shard],
    progress: Progress,
    display: Display,
    stopping: _Signals,
    make_engine: Callable[[Plan], Engine],
) -> None:
    """Do all that is pending."""
    with display.waiting(plan, progress, "a look at what is done"):
        if _nothing_to_do(plan, shards, progress):
            return
    if silent := [need.problem for need in models.endpoints(plan.recipe) if need.problem]:
        raise CurateError("; ".join(silent))
    kind = "Ray" if plan.recipe.engine.kind == "ray" else "operators"
    with display.waiting(plan, progress, f"{kind} to start"):
        engine = make_engine(plan)
    stopping.listen()  # Ray took SIGTERM for itself when it started: it would abort
    try:
        drive(plan, engine, shards, progress, lambda p: display.show(plan, p), stopping)
    finally:
        engine.close()


def _nothing_to_do(plan: Plan, shards: Sequence[read.Shard], progress: Progress) -> bool:
    """Whether every shard is complete, found here for a few shards: Ray and models take longer to start than this."""
    if len(shards) > LOOK_FIRST or not all(parts_of(plan.files, plan.versions[0], shard.id) for shard in shards):
        return False
    worker = RangeWorker(plan, isolated=False)
    rows = 0
    for shard in shards:
        found = worker.run(Index(shard))
        if found.shard_error:
            return False
        surveys = [worker.run(Survey(shard, stage.index)) for stage in plan.stages]
        if any(survey.ranges or survey.staged for survey in surveys):
            return False
        rows += found.rows
    progress.shards_done, progress.rows_known, progress.rows_done = len(shards), rows, rows
    return True


def _engine(plan: Plan) -> Engine:
    if plan.recipe.engine.kind == "inline":
        from curate.engine.inline import Inline

        return Inline(plan)
    from curate.engine.cluster import Cluster

    return Cluster(plan)


def _input_schema(shards: Sequence[read.Shard], files: Files, version: Version) -> pa.Schema:
    """Columns of the first shard that opens: a policy is checked against them before the run starts.

    From its published part where there is one, since indexing an archive reads all of it.
    """
    for shard in shards:
        if parts := parts_of(files, version, shard.id):
            schema = read_table(files, parts[0].path, []).schema
        else:
            try:
                schema = read.index(shard).table.schema
            except read.InputError as why:
                if why.code == "no_image_column" and shard.spec.image_column:
                    raise UsageError(why.message) from None
                continue
        fixed = {column.name for column in (*ROW, *FAILURE)}
        return pa.schema([f for f in schema if f.name not in fixed and not f.name.startswith("_")])
    return pa.schema([pa.field("caption_raw", pa.string())])


def _begin(plan: Plan, shards: Sequence[read.Shard]) -> dict[str, Any]:
    """Write what this run is before it starts: the recipe, the versions, and what each fingerprint stands for."""
    files = plan.files
    try:
        for i, version in enumerate(plan.versions):
            text = json.dumps(describe(plan, i), indent=1, ensure_ascii=False, sort_keys=True)
            files.create(f"{version.folder}/operator.json", text.encode())
        now = datetime.now(UTC)
        record = {
            "run_id": _run_id(plan, now),
            "started": now.isoformat(timespec="seconds"),
            "state": "running",
            "recipe": to_toml(plan.recipe),
            "policy": [list(p) for p in plan.recipe.policy],
            "predicates": [
                {"name": p.name, "sql": p.sql, "columns": sorted(p.columns), "after": p.after} for p in plan.predicates
            ],
            "types": _types(plan),
            "versions": [{"operator": v.operator, "fingerprint": v.fingerprint} for v in plan.versions],
            "shards": [{"shard": s.id, "uri": s.uri, "format": s.format} for s in shards],
        }
        files.replace(f"runs/{record['run_id']}/recipe.toml", str(record["recipe"]).encode())
        _write(plan, record)
    except OSError as why:
        raise _not_written(plan, why) from None
    return record


@contextmanager
def _recorded(plan: Plan, record: dict[str, Any]) -> Iterator[None]:
    """Write into the run's record that it failed, when it does.

    The record of one that is killed stays `running`; the index knows better (curate/store/index.py).
    """
    try:
        yield
    except BaseException as why:
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError):  # a disk that is full has no room for this either
            _write(plan, record | {"state": "failed", "finished": finished, "exit_code": FAILED})
        if isinstance(why, OSError | duckdb.IOException):
            raise _not_written(plan, why) from None
        raise


def _not_written(plan: Plan, why: OSError | duckdb.IOException) -> CurateError:
    """Readers turn what is wrong with the input into errors of rows and shards: what is left is the store."""
    reason = getattr(why, "strerror", None) or str(why).splitlines()[0]
    return CurateError(f"store {plan.files.uri}: {reason}; nothing is lost: mend that and run the same command")


def _types(plan: Plan) -> dict[str, str]:
    """DuckDB's types of the columns that the policy reads, as it was checked."""
    names = sorted(set().union(*(p.columns for p in plan.predicates)))
    if not names:
        return {}
    with duckdb.connect() as db:
        db.register("rows_in", plan.schema.empty_table().select(names))
        return {row[0]: row[1] for row in db.execute("DESCRIBE rows_in").fetchall()}


def _run_id(plan: Plan, now: datetime) -> str:
    """Time-ordered and unique in the store, whatever the clock does: never before the newest run there is."""
    ids = sorted({path.split("/")[1] for path in plan.files.list("runs")})
    run_id = now.strftime("%Y%m%dT%H%M%S")
    latest = ids[-1] if ids else ""
    if run_id <= latest:
        stem, _, count = latest.partition("+")
        run_id = f"{stem}+{int(count or 0) + 1:04d}"
    return run_id


def _write(plan: Plan, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1, ensure_ascii=False)
    plan.files.replace(f"runs/{record['run_id']}/run.json", text.encode())


def _finish(plan: Plan, record: dict[str, Any], progress: Progress, display: Display, seconds: float) -> int:
    """Bring the index up to date, write the run's record, show the table, and choose the exit code."""
    from curate import planner
    from curate.store import Store

    for shard in record["shards"]:
        if shard["shard"] in progress.shard_errors:
            shard["error"], shard["message"] = progress.shard_errors[shard["shard"]]
    tally = progress.tally
    record |= {
        "state": "interrupted" if progress.interrupted else "finished",
        "report": {
            "seconds": round(seconds, 3),
            "cells": dict(tally.cells),
            "operator_seconds": {name: round(value, 3) for name, value in tally.seconds.items()},
            "crashes": progress.crashes,
        },
    }
    planned = planner.compare(plan.files, [str(version) for version in plan.versions], record["report"])
    record["report"] |= {"planned": planned} if planned else {}
    _write(plan, record)
    outcome = DONE, 0.0
    ended: dict[str, int] = {}

    def close(counts: dict[str, int]) -> None:
        nonlocal outcome, ended
        ended = counts
        share = counts["failed"] / counts["rows"] if counts["rows"] else 0.0
        code = DONE
        if progress.interrupted:
            code = FAILED
        elif progress.shard_errors or share > plan.recipe.run.max_failed_share:
            code = TOO_MANY_FAILED_ROWS
        outcome = code, share
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        _write(plan, record | {"counts": counts, "finished": finished, "exit_code": code})

    store = Store(plan.recipe.store.uri, plan.files)
    with display.step("index"):
        store.ingest(closing=close, apart=plan.recipe.engine.kind == "ray")  # Ray's driver stays small
    progress.parts_not_indexed = 0
    code, share = outcome
    log.log.info(
        "run ended", extra={"fields": record["report"] | {"state": record["state"], "counts": ended, "exit_code": code}}
    )
    display.finished(plan, progress, store, seconds, code, share)
    return code


class _Signals:
    """The first SIGINT or SIGTERM finishes open ranges; the second one ends at once."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.received: list[int] = []
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self.listen()
        return self

    def __exit__(self, *why: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether the run is to stop."""
        return bool(self.received)

    def listen(self) -> None:
        """Take the signals, from whoever has them."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._note)

    def _note(self, signum: int, frame: Any) -> None:
        self.received.append(signum)
        if len(self.received) > 1:
            raise KeyboardInterrupt
        self.display.note("stopping: open ranges are being finished; once more ends at once")


def parts_done(plan: Plan) -> dict[str, int]:
    """For each operator the number of shards that have a part of its present version."""
    return {v.operator: len({p.shard for p in list_parts(plan.files, v)}) for v in plan.versions}


def main() -> None:
    """`python -m curate.pipeline RECIPE ...` is `curate run RECIPE ...`."""
    from curate.cli import main as cli

    sys.argv[1:1] = ["run"]
    cli()


if __name__ == "__main__":
    main()
