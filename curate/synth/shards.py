"""The run of `curate synth`: what it needs is collected once beside the shards, then workers make shard after shard.

    DIR/synth.toml             the recipe
    DIR/lexicon.tsv            words
    DIR/photographs.arrow    backgrounds
    DIR/shards/synth-00000.parquet ...
    DIR/manifest.json          seed, recipe, faces, versions, counts, hashes

A shard is put in place whole. A second call makes what is missing: a kill costs the shards under way, and a larger N
adds shards. A smaller N is refused: nothing that was made is taken away, and after an exit code of 0 nobody would
think that the folder brings more rows into a mix than it was asked for. The bytes of a shard depend on recipe, seed,
fonts and libraries, not on the workers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import features
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from curate.errors import CurateError, UsageError
from curate.recipe import read_tables, section
from curate.synth import fonts, photographs, words
from curate.synth.pool import worked
from curate.synth.sample import SCHEMA, SPEC_SCHEMA, sample
from curate.synth.spec import SIZES, SPEC_VERSION, Synth, World, sizes

ROW_GROUP_ROWS = 128
MADE_OF = (
    "backgrounds",
    "photographs",
    "fonts",
    "system_fonts",
    "lexicon",
    "words",
    "block",
    "quarantine",
    "rows_per_shard",
)


def load_recipe(path: str | None, overrides: Iterable[str] = ()) -> Synth:
    """The section [synth] of a TOML file, or of nothing, with `synth.key=value` overrides."""
    tables = read_tables(path or os.devnull, overrides)
    where = path or "--set"
    unknown = set(tables) - {"synth"}
    if unknown:
        raise UsageError(f"{where}: unknown section [{sorted(unknown)[0]}]; a recipe of curate synth has [synth] only")
    if isinstance(tables.get("synth"), dict) and not isinstance(tables["synth"].get("sizes", ""), str):
        raise UsageError(f"{where}: synth.sizes is not text: {SIZES}")  # TOML reads 0x0 as a hexadecimal number
    recipe: Synth = section("synth", Synth, tables.get("synth", {}), where)
    sizes(recipe)
    if recipe.pure + recipe.composed + recipe.structured <= 0:
        raise UsageError(f"{where}: synth.pure, synth.composed and synth.structured are all 0; give one a weight")
    if recipe.quality > 100 or recipe.english > 1:
        raise UsageError(f"{where}: synth.quality is at most 100 and synth.english at most 1")
    return recipe


def generate(out: Path, rows: int, seed: int, synth: Synth, workers: int, specs_only: bool, console: Console) -> World:
    """Make `rows` rows of `out`/shards and the manifest; returns the world that they come from.

    UsageError when `out` has rows beyond them: shards are made longer and never shorter.
    """
    world = prepare(out, seed, synth, console)
    digest = digest_of(world, seed, specs_only)
    claim(
        out, digest, f"{out}: fonts, words, photographs, --specs-only or curate's version are not those of its shards"
    )
    if (there := rows_there(out, synth.rows_per_shard)) > rows:
        raise UsageError(
            f"{out} has shards up to row {there} already, and none is taken away: say -n {there} or more, or choose "
            "another -o"
        )
    wanted = [(number, min(synth.rows_per_shard, rows - number * synth.rows_per_shard))
              for number in range(-(-rows // synth.rows_per_shard))]  # fmt: skip
    (out / "shards").mkdir(exist_ok=True)
    missing = [(number, count) for number, count in wanted if (rows_of(_shard(out, number)) or 0) < count]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("rows", total=rows, completed=rows - sum(count for _, count in missing))
            tasks = [(out, seed, number, count, specs_only) for number, count in missing]
            with closing(worked(_work, tasks, workers, _load, out, world.synth, world.faces)) as done:
                for made in done:
                    progress.advance(task, made)
    finally:
        sweep(out / "shards")
    write_manifest(out, world, seed, rows, digest, specs_only)
    return world


def prepare(out: Path, seed: int, synth: Synth, console: Console) -> World:
    """Lexicon, faces and photographs; the first and the last are kept in `out` and found there again."""
    quarantine = read_quarantine(synth.quarantine)
    out.mkdir(parents=True, exist_ok=True)
    described = out / "synth.toml"
    text = to_toml(synth, seed)
    # synth.toml is written last: without it, words and photographs are those of a call that failed or was killed.
    known = described.exists()
    if known and described.read_text("utf-8") != text:
        raise UsageError(
            f"{out} holds samples of another seed or recipe ({described}); choose another -o, or remove that folder"
        )
    if not known or not (out / "lexicon.tsv").exists():
        block = words.block_list(Path(synth.block)) if synth.block else []
        saved = Path(synth.lexicon)
        if saved.is_file() and saved.suffix == ".tsv" and saved.read_text("utf-8").startswith("# "):
            lexicon = words.load(saved).without([*words.sensitive(), *block])
        else:
            lexicon = words.build(synth.lexicon, synth.words, block)
        lexicon.save(out / "lexicon.tsv")
    lexicon = words.load(out / "lexicon.tsv")
    if not known or not (out / "photographs.arrow").exists():
        side = max(min(pair) for pair in sizes(synth))
        count = photographs.collect(synth.backgrounds, out / "photographs.arrow", side, synth.photographs)
        if not count and synth.composed:
            console.print(
                "no photographs: the tier `composed` is left out; name some with --backgrounds", highlight=False
            )
    folder = Path(synth.fonts) if synth.fonts else None
    faces = fonts.find(lexicon.characters(), folder, synth.system_fonts)
    if not known:
        partial = out / f".synth.toml.{os.getpid()}"
        partial.write_text(text, "utf-8")
        partial.replace(described)
    return World(lexicon, faces, photographs.Photographs(out / "photographs.arrow"), synth, quarantine)


def open_world(out: Path) -> World:
    """The world of a finished run, for rendering its specs again; CurateError when fonts are not the same."""
    try:
        manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError) as why:
        raise UsageError(f"{out}: no manifest.json of curate synth there ({why})") from None
    if manifest.get("spec_version") != SPEC_VERSION:
        raise CurateError(
            f"{out}: another version of curate drew these rows (specs of version {manifest.get('spec_version')}, here "
            f"{SPEC_VERSION}): it would draw other pictures; use that one, or make the rows anew"
        )
    synth = load_recipe(str(out / "synth.toml"))
    lexicon = words.load(out / "lexicon.tsv")
    faces = fonts.find(lexicon.characters(), Path(synth.fonts) if synth.fonts else None, synth.system_fonts)
    lacking = {face["id"]: face["family"] for face in manifest["faces"]}
    for face in faces:
        lacking.pop(face.id, None)
    if lacking:
        raise CurateError(
            f"{out}: fonts of this run are not installed in the same version: {', '.join(lacking.values())}"
        )
    pictures = photographs.Photographs(out / "photographs.arrow")
    return World(lexicon, faces, pictures, synth, read_quarantine(synth.quarantine))


def read_quarantine(path: str) -> frozenset[tuple[str, str, str]]:
    """The cells that a quarantine.json names."""
    if not path:
        return frozenset()
    try:
        cells = json.loads(Path(path).read_text("utf-8"))["cells"]
        return frozenset((cell["face"], cell["effect"], cell["size"]) for cell in cells)
    except (OSError, ValueError, KeyError, TypeError) as why:
        raise UsageError(f"synth.quarantine = {path!r}: no quarantine.json of curate synth ({why})") from None


def digest_of(world: World, seed: int, specs_only: bool) -> str:
    """Hash of everything that decides the rows, but for the versions of libraries."""
    synth = {key: value for key, value in dataclasses.asdict(world.synth).items() if key not in MADE_OF}
    pictures = hashlib.sha256()
    for item in world.photographs.items:
        pictures.update(f"{item.id} {item.width} {item.height} {item.en} {item.zh} {item.avoid}".encode())
        pictures.update(item.thumb.tobytes())
    facts = {
        "spec_version": SPEC_VERSION, "seed": seed, "synth": synth, "lexicon": world.lexicon.sha256,
        "faces": [(face.id, hashlib.sha256(face.missing.encode()).hexdigest()) for face in world.faces],
        "photographs": pictures.hexdigest(), "quarantine": sorted(world.quarantine), "specs_only": specs_only,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def shard_rows(world: World, seed: int, first: int, count: int, specs_only: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a shard, in order."""
    return (sample(world, seed, index, encoded=not specs_only) for index in range(first, first + count))


def to_toml(synth: Synth, seed: int) -> str:
    """The recipe as TOML; `load_recipe` reads it back."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in dataclasses.asdict(synth).items()]
    return "\n".join([f"# curate synth --seed {seed}", "[synth]", *lines]) + "\n"


def claim(out: Path, digest: str, other: str) -> None:
    """Note that the shards of `out` are made of what `digest` stands for; UsageError `other` when they are not."""
    path = out / "world.sha256"
    if not path.exists():
        path.write_text(digest + "\n", "utf-8")
    elif path.read_text("utf-8").strip() != digest:
        raise UsageError(f"{other}; choose another -o")


def sweep(folder: Path) -> None:
    """Remove the halves of shards that a killed worker leaves."""
    for left_over in folder.glob(".synth-*"):
        left_over.unlink(missing_ok=True)


def _shard(out: Path, number: int) -> Path:
    return out / "shards" / f"synth-{number:05d}.parquet"


def rows_there(out: Path, rows_per_shard: int) -> int:
    """Where the last row of `out` stands, counted from 1; 0 when there is none. Shards before it may be missing."""
    for path in reversed(shard_files(out)):
        if rows := rows_of(path):
            return int(path.stem.removeprefix("synth-")) * rows_per_shard + rows
    return 0


def shard_files(out: Path) -> list[Path]:
    """The shards of `out`, by their numbers."""
    found = [path for path in (out / "shards").glob("synth-*.parquet") if path.stem.removeprefix("synth-").isdigit()]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def rows_of(path: Path) -> int | None:
    """Rows of a finished shard; None when there is none, or half of one."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException):
        return None


_WORLDS: list[World] = []  # of a worker process: one


def _load(out: Path, synth: Synth, faces: tuple[fonts.Face, ...]) -> None:
    pictures = photographs.Photographs(out / "photographs.arrow")
    _WORLDS[:] = [World(words.load(out / "lexicon.tsv"), faces, pictures, synth, read_quarantine(synth.quarantine))]


def _work(task: tuple[Path, int, int, int, bool]) -> int:
    out, seed, number, count, specs_only = task
    return _write(out, _WORLDS[0], seed, number, count, specs_only)


def _write(out: Path, world: World, seed: int, number: int, count: int, specs_only: bool) -> int:
    """Make one shard and put it in place whole."""
    rows = shard_rows(world, seed, number * world.synth.rows_per_shard, count, specs_only)
    groups = iter(lambda: list(islice(rows, ROW_GROUP_ROWS)), [])
    write_shard(_shard(out, number), SPEC_SCHEMA if specs_only else SCHEMA, groups)
    return count


def write_shard(path: Path, schema: pa.Schema, groups: Iterable[list[dict[str, Any]]]) -> None:
    """Write groups of rows as one Parquet file that is there whole or not at all; CurateError when the disk refuses."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for group in groups:
                writer.write_table(pa.Table.from_pylist(group, schema))
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as why:
        raise CurateError(f"{path}: cannot be written: {why.strerror or why}") from None
    finally:
        partial.unlink(missing_ok=True)


def write_manifest(out: Path, world: World, seed: int, rows: int, digest: str, specs_only: bool) -> None:
    """manifest.json: what was made of what, and how often; CurateError when rows are not 0, 1, 2, ... without a gap."""
    counts: dict[str, Counter[str]] = {key: Counter() for key in ("tier", "layout", "attempts", "reason", "language")}
    refused, characters, shards, first = 0, Counter[str](), [], 0
    for path in shard_files(out):
        columns = [
            "synth_index",
            "synth_tier",
            "synth_layout",
            "synth_attempts",
            "synth_reason",
            "synth_refused",
            "synth_texts",
            "language",
        ]
        table = pq.read_table(path, columns=columns)
        indices = table["synth_index"].to_pylist()
        if indices != list(range(first, first + len(indices))):
            raise CurateError(f"{path}: its rows are not those from {first} on; remove it and run the command again")
        first += len(indices)
        for row in table.to_pylist():
            for key, column in zip(
                counts, ("synth_tier", "synth_layout", "synth_attempts", "synth_reason", "language"), strict=True
            ):
                if row[column] is not None:
                    counts[key][str(row[column])] += 1
            refused += row["synth_refused"]
            characters.update("".join(row["synth_texts"] or ()))
        shards.append(
            {"shard": path.name, "rows": table.num_rows, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        )
    floor = [characters[character] for character in words.FLOOR]
    manifest = {
        "seed": seed, "rows": sum(shard["rows"] for shard in shards), "specs_only": specs_only, "world": digest,
        "spec_version": SPEC_VERSION, "infeasible": sum(counts["reason"].values()),
        **{key: dict(sorted(found.items())) for key, found in counts.items()}, "refused_texts": refused,
        "characters": {"distinct": len(characters), "of_gb2312": sum(map(bool, floor)), "least": min(floor),
                       "total": sum(characters.values())},
        "lexicon": {"words": len(world.lexicon.words), "source": world.lexicon.source, "sha256": world.lexicon.sha256},
        "faces": [{"id": face.id, "family": face.family, "style": face.style, "kind": face.kind,
                   "file": Path(face.path).name,
                   "index": face.index, "sha256": face.sha256, "missing": len(face.missing)} for face in world.faces],
        "photographs": len(world.photographs.items), "versions": versions(), "shards": shards,
    }  # fmt: skip
    partial = out / f".manifest.json.{os.getpid()}"
    partial.write_text(json.dumps(manifest, ensure_ascii=False, indent=1), "utf-8")
    partial.replace(out / "manifest.json")


def versions() -> dict[str, str]:
    """Versions of what decides pixels."""
    found = {name: version(name) for name in ("pillow", "opencv-python-headless", "numpy")}
    return found | {"freetype": str(features.version("freetype2"))}
