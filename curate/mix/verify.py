"""`curate mix verify DIR`: is the training set what its manifest says, and does the manifest prove what was asked.

Nothing is believed: every file is hashed, every caption decided again from the index, every count and ratio summed
again, every picture compared with its row's SHA-256, and both splits searched for content that they share.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import UsageError
from curate.mix import buckets, jobs, manifest, shards
from curate.mix.decide import LANGUAGES, SOURCES, Cell, Choice, celled, choosable, decide, ranked
from curate.mix.keyed import key_of, uniform
from curate.mix.settings import from_json
from curate.store.files import Files, open_files

MOST_PROBLEMS = 20  # shown of one kind
ROWS = 200  # read at once


def verify(uri: str, kind: str = "processes", workers: int = 0) -> list[str]:
    """Everything that is wrong with the training set at `uri`, a line each; nothing when all agrees."""
    files = open_files(uri)
    found = manifest.read(files)
    if found is None:
        raise UsageError(f"{uri}: no {manifest.NAME} here; name the folder that `curate mix STORE -o DIR` finished")
    problems = []
    if manifest.tree(found["files"]) != found["tree"]:
        problems.append("the hash tree is not that of the listed files")
    folders = (*found["splits"], "index", "metadata", "sums")
    there = {path for folder in folders for path in files.list(folder)}
    known = set(found["files"]) | _summed(files, found)
    problems += [f"{path} is not in the manifest" for path in sorted(there - known)]
    checks = [(files.uri, path) for path in sorted(found["files"])]
    counts: dict[tuple[str, int], list[list[Any]]] = defaultdict(list)
    for checked in jobs.run(check, checks, kind, workers):
        problems += checked.problems
        if checked.where:
            counts[checked.where] += checked.counts
    if not problems and found["settings"]["format"] != "folder":
        problems += _totals(found, counts) + _order(files, found)
    return sorted(problems)


@dataclass(frozen=True)
class Checked:
    """What the check of one file found; for a shard its split, epoch and counts too."""

    problems: list[str]
    where: tuple[str, int] | None = None
    counts: list[list[Any]] = field(default_factory=list)


def check(uri: str, path: str) -> Checked:
    """Check one listed file: its hash, and for a shard every entry."""
    files = open_files(uri)
    found = manifest.read(files)
    assert found is not None
    listed = found["files"][path]
    if not files.exists(path):
        return Checked([f"{path} is missing"])
    if path.startswith("sums/"):
        return Checked(_sums(files, path))
    if _digest(files, path) != listed["sha256"]:
        return Checked([f"{path} has changed since it was written"])
    split = path.split("/")[0]
    if split not in found["splits"] or found["settings"]["format"] == "folder":
        return Checked([])
    name = path.split("/")[1].rpartition(".")[0]
    shard = next(s for s in found["splits"][split]["shards"] if s["name"] == name)
    problems, counts = _shard(files, found, split, shard, path)
    return Checked([f"{path}: {problem}" for problem in problems[:MOST_PROBLEMS]], (split, shard["epoch"]), counts)


def _digest(files: Files, path: str) -> str:
    local = files.local(path)
    if local is None:
        return hashlib.sha256(files.read(path)).hexdigest()
    with local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _summed(files: Files, found: Mapping[str, Any]) -> set[str]:
    """The single files of a folder layout."""
    lists = [path for path in found["files"] if path.startswith("sums/") and files.exists(path)]
    return {line.split("  ", 1)[1] for path in lists for line in files.read(path).decode().splitlines()}


def _sums(files: Files, path: str) -> list[str]:
    problems = []
    for line in files.read(path).decode().splitlines():
        digest, name = line.split("  ", 1)
        if not files.exists(name):
            problems.append(f"{name} is missing")
        elif hashlib.sha256(files.read(name)).hexdigest() != digest:
            problems.append(f"{name} has changed since it was written")
    return problems


def _shard(
    files: Files, found: Mapping[str, Any], split: str, shard: Mapping[str, Any], path: str
) -> tuple[list[str], list[list[Any]]]:
    """Entries of a shard against its index and the rules; problems, and counts as a receipt has them."""
    settings = from_json({"store": "", "text": "", **found["settings"]})
    index = pq.read_table(pa.BufferReader(files.read(f"index/{shard['name']}.parquet")))
    cells = tuple(Cell(*cell) for cell in found["splits"][split]["cells"])
    choice = decide(settings.policy, cells, shards.entries_of(index), shard["epoch"])
    problems: list[str] = []
    counted: Counter[tuple[Any, ...]] = Counter()
    sizes = tuple((w, h) for w, h in found["buckets"])
    first = 0
    for rows, images in _entries(files, path, index, found["settings"]["format"]):
        part = index.slice(first, len(rows))
        chosen = Choice(*(getattr(choice, n)[first : first + len(rows)] for n in ("source", "language", "variant")))
        problems += _rows(rows, images, part, chosen, shard["epoch"], sizes, settings.resize)
        free = choosable(part["options"].to_numpy()).tolist()
        concepts = part["concept"].to_pylist()
        for row, both, concept in zip(rows, free, concepts, strict=True):
            size = f"{row['bucket_width']}x{row['bucket_height']}"
            name = found["concepts"][concept]
            counted[row["pool"], size, name, row["caption_source"], row["language"], both] += 1
        first += len(rows)
    if first != index.num_rows or first != shard["entries"]:
        problems.append(f"{first} entries, {index.num_rows} in its index, {shard['entries']} in the manifest")
    return problems, [[*key, count] for key, count in sorted(counted.items())]


def _entries(files: Files, path: str, index: pa.Table, format: str) -> Any:
    """Rows of a shard and their pictures, read at the places that the index names, some at a time."""
    local = files.local(path)
    data = pa.memory_map(str(local)) if local else pa.BufferReader(files.read(path))
    table = pq.ParquetFile(data) if format == "parquet" else None
    places = {name: index[name].to_pylist() for name in shards.PLACED}
    groups = index["rest"].to_numpy()
    starts = np.flatnonzero(np.diff(groups, prepend=-1)) if table else np.arange(0, index.num_rows, ROWS)
    for low, high in zip(starts.tolist(), [*starts[1:].tolist(), index.num_rows], strict=True):
        if table:
            names = [name for name in table.schema_arrow.names if name != "image"]
            rows = table.read_row_group(int(groups[low]), columns=names).to_pylist()
        else:
            spans = zip(places["rest"][low:high], places["rest_size"][low:high], strict=True)
            rows = [json.loads(data.read_at(size, offset)) for offset, size in spans]
        spans = zip(places["offset"][low:high], places["size"][low:high], strict=True)
        yield rows, [bytes(data.read_at(size, offset)) for offset, size in spans]


def _rows(
    rows: list[dict[str, Any]], images: list[bytes], index: pa.Table, choice: Choice, epoch: int,
    sizes: tuple[buckets.Size, ...], resized: bool,
) -> list[str]:  # fmt: skip
    """What is wrong with some entries."""
    problems = []
    near = buckets.assign(index["width"].to_numpy(), index["height"].to_numpy(), sizes)
    keys = index["key"].to_pylist()
    for at, row in enumerate(rows):
        source, language, variant = int(choice.source[at]), int(choice.language[at]), int(choice.variant[at])
        lists = [row[f"captions_{kind}"] for kind in ("raw", *LANGUAGES)]
        try:
            right = (*shards.caption(lists, source, language, variant), SOURCES[source], variant, epoch)
        except IndexError:
            right = ("", "", SOURCES[source], variant, epoch)
        if right != tuple(row[name] for name in ("caption", "language", "caption_source", "variant", "epoch")):
            problems.append(f"{row['row_id']}: the rule chooses another caption ({SOURCES[source]}, {variant})")
        if (row["bucket_width"], row["bucket_height"]) != sizes[near[at]]:
            problems.append(f"{row['row_id']}: {row['width']}x{row['height']} px belongs to another bucket")
        if row["copy"] == 0 and key_of(row["row_id"]) != keys[at]:
            problems.append(f"{row['row_id']}: the index holds another row's key")
        if not resized and row["sha256"] and hashlib.sha256(images[at]).hexdigest() != row["sha256"]:
            problems.append(f"{row['row_id']}: the picture is not the original one")
    return problems


def _totals(found: Mapping[str, Any], counts: Mapping[tuple[str, int], list[list[Any]]]) -> list[str]:
    """Counts against the manifest, and for quotas the ratio that was asked, in every bucket and concept."""
    problems = []
    ratio = Fraction(str(found["settings"]["ratio"]))
    for split, of in found["splits"].items():
        for epoch, listed in of["achieved"].items():
            got = json.loads(json.dumps(manifest.achieved(counts[split, int(epoch)])))
            if got != listed:
                problems.append(f"{split}, epoch {epoch}: the manifest's counts are not those of the shards")
            tables = {"all": got} | got["by_bucket"] | got["by_concept"]
            for name, table in tables.items():
                both = table["raw"] + table["synthetic"]
                off = abs(table["raw"] - ratio * both)
                if found["settings"]["mode"] == "quota" and off >= 1:
                    problems.append(f"{split}, epoch {epoch}, {name}: {table['raw']} raw of {both}, asked {ratio}")
    return problems


def _order(files: Files, found: Mapping[str, Any]) -> list[str]:
    """Of each split: every entry once an epoch, cells and ranks as the seed has them, no content in two splits."""
    problems = []
    seed = found["settings"]["seed"]
    contents: list[Any] = []
    for split, of in found["splits"].items():
        for epoch in range(found["settings"]["epochs"]):
            names = [shard["name"] for shard in of["shards"] if shard["epoch"] == epoch]
            tables = [pq.read_table(pa.BufferReader(files.read(f"index/{name}.parquet"))) for name in names]
            index = pa.concat_tables(tables)
            key, cell = index["key"].to_numpy(), index["cell"].to_numpy()
            if len(np.unique(key)) != len(key):
                problems.append(f"{split}, epoch {epoch}: an entry comes twice")
            bucket, concept = index["bucket"].to_numpy(), index["concept"].to_numpy()
            options = index["options"].to_numpy()
            again, cells = celled(bucket, concept, options, len(found["concepts"]))
            if [list(vars(c).values()) for c in cells] != of["cells"] or not np.array_equal(again, cell):
                problems.append(f"{split}, epoch {epoch}: cells are not those of the entries")
            if not np.array_equal(ranked(key, cell, seed), index["rank"].to_numpy()):
                problems.append(f"{split}, epoch {epoch}: ranks are not those of the seed")
            content = np.unique(index["content"].to_numpy())
            drawn = uniform(content, seed, "split") < found["settings"]["validation"]
            if not np.all(drawn == (split == "validation")):
                problems.append(f"{split}, epoch {epoch}: content that belongs to the other split")
        contents.append(content)
    if len(contents) == 2 and len(np.intersect1d(*contents)):
        problems.append("train and validation share content")
    return problems
