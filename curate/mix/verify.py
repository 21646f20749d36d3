"""`curate mix verify DIR`: is the training set what its manifest says, and does the manifest prove what was asked.

Nothing is believed: every file is hashed, every caption decided again from the index, every count and ratio summed
again, every picture compared with its row's SHA-256, and both splits searched for content that they share.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from curate.errors import UsageError
from curate.mix import buckets, card, jobs, manifest, plan, shards
from curate.mix.decide import LANGUAGES, SOURCES, Cell, Choice, bilingual, celled, choosable, decide, ranked
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
    if manifest.tree(found) != found.get("tree"):
        return [f"{manifest.NAME} has changed since it was written: its hash is not `tree`"]
    try:
        return _problems(files, found, kind, workers)
    except (KeyError, TypeError, IndexError, AttributeError) as why:  # a forger's manifest may hold anything
        return [f"{manifest.NAME} does not hold what the manifest of a mix does: {type(why).__name__} {why}"]


def _problems(files: Files, found: Mapping[str, Any], kind: str, workers: int) -> list[str]:
    problems = []
    settings = from_json({"store": "", "text": "", **found["settings"]})
    version = found["store"] | {"policy": found["policy"], "operators": found["operators"]}
    if plan.fingerprint(settings, version) != found["fingerprint"]:
        problems.append("the fingerprint is not that of settings, policy, operators and store")
    there = {path.removeprefix("./") for path in files.list("")}
    there = {path for path in there if not any(name.startswith(".") for name in path.split("/"))}
    known = {manifest.NAME, card.NAME, *found["files"], *_summed(files, found)}
    problems += [f"{path} is not in the manifest" for path in sorted(there - known)]
    checks = [(files.uri, path) for path in sorted(found["files"])]
    counts: dict[tuple[str, int], list[list[Any]]] = defaultdict(list)
    shown: dict[str, list[npt.NDArray[np.uint64]]] = defaultdict(list)
    broken = len(problems)
    with jobs.Workers(kind, workers) as pool:
        for checked in pool.run(check, checks):
            problems += checked.problems
            for (split, epoch), counted in checked.counts:
                counts[split, epoch] += counted
                shown[split].append(checked.shown)
    if len(problems) == broken:
        made = card.card(found, card.schema(files, found)).encode()
        if not files.exists(card.NAME) or files.read(card.NAME) != made:
            problems.append(f"{card.NAME} is not what the manifest makes of it")
        problems += _totals(found, counts) + _order(files, found)
    digests = [np.concatenate(of_split) for of_split in shown.values()]
    if len(digests) == 2 and len(same := np.intersect1d(digests[0], digests[1])):
        problems.append(f"{len(same)} pictures stand in both splits, byte for byte")
    return sorted(problems)


@dataclass(frozen=True)
class Checked:
    """What the check of one file found."""

    problems: list[str]
    counts: list[tuple[tuple[str, int], list[list[Any]]]] = field(default_factory=list)
    """For shards: (split, epoch) and counts as a receipt has them."""
    shown: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """The first 64 bits of the SHA-256 of each original picture."""


def check(uri: str, path: str) -> Checked:
    """Check one listed file: its hash, and for a shard every entry."""
    files = open_files(uri)
    found = manifest.read(files)
    assert found is not None
    if not files.exists(path):
        return Checked([f"{path} is missing"])
    if path.startswith("sums/"):
        return Checked(_sums(files, path))
    local = files.local(path)
    # Once, since every read of an object store is a transfer.
    data: Any = pa.memory_map(str(local)) if local else pa.BufferReader(files.read(path))
    if _digest(data) != found["files"][path]["blake3"]:
        return Checked([f"{path} has changed since it was written"])
    split, _, name = path.partition("/")
    if split not in found["splits"]:
        return Checked([])
    listed = found["splits"][split]["shards"]
    if found["settings"]["format"] == "folder":
        lines = iter(bytes(data.read()).decode().splitlines())
        return _together([_shard(files, found, split, shard, lines) for shard in listed], path)
    shard = next(s for s in listed if s["name"] == name.rpartition(".")[0])
    return _together([_shard(files, found, split, shard, data)], path)


def _together(checked: Sequence[Checked], path: str) -> Checked:
    problems = [f"{path}: {problem}" for one in checked for problem in one.problems[:MOST_PROBLEMS]]
    counts = [counted for one in checked for counted in one.counts]
    return Checked(problems, counts, np.concatenate([one.shown for one in checked]))


def _digest(data: Any) -> str:
    digest: str = blake3(data.read_buffer()).hexdigest()
    data.seek(0)
    return digest


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
        elif blake3(files.read(name)).hexdigest() != digest:
            problems.append(f"{name} has changed since it was written")
    return problems


def _shard(files: Files, found: Mapping[str, Any], split: str, shard: Mapping[str, Any], data: Any) -> Checked:
    """Entries of a shard, out of its file or of the lines of a folder layout, against its index and the rules."""
    settings = from_json({"store": "", "text": "", **found["settings"]})
    index = pq.read_table(pa.BufferReader(files.read(f"index/{shard['name']}.parquet")))
    cells = tuple(Cell(*cell) for cell in found["splits"][split]["cells"])
    choice = decide(settings.policy, cells, shards.entries_of(index), shard["epoch"])
    problems: list[str] = []
    counted: Counter[tuple[Any, ...]] = Counter()
    shown: list[int] = []
    sizes = tuple((w, h) for w, h in found["buckets"])
    first = 0
    if settings.format == "folder":
        parts = _single(files, split, list(islice(data, shard["entries"])))
    else:
        parts = _entries(data, index, settings.format)
    for rows, images in parts:
        part = index.slice(first, len(rows))
        chosen = Choice(*(getattr(choice, n)[first : first + len(rows)] for n in ("source", "language", "variant")))
        digests = [hashlib.sha256(image).hexdigest() for image in images]
        if settings.resize:  # the originals are not here
            digests = [row["sha256"] or "" for row in rows]
        problems += _rows(rows, digests, part, chosen, shard["epoch"], sizes)
        shown += [int(digest[:16], 16) for digest in digests if digest]
        free = choosable(part["options"].to_numpy()).tolist()
        several = bilingual(part["options"].to_numpy()).tolist()
        concepts = part["concept"].to_pylist()
        for row, both, two, concept in zip(rows, free, several, concepts, strict=True):
            size = f"{row['bucket_width']}x{row['bucket_height']}"
            name = found["concepts"][concept]
            counted[row["pool"], size, name, row["caption_source"], row["language"], both, two] += 1
        first += len(rows)
    if first != index.num_rows or first != shard["entries"]:
        problems.append(f"{first} entries, {index.num_rows} in its index, {shard['entries']} in the manifest")
    counts = [[*key, count] for key, count in sorted(counted.items())]
    return Checked(problems, [((split, shard["epoch"]), counts)], np.unique(np.array(shown, np.uint64)))


Entries = Iterator[tuple[list[dict[str, Any]], list[bytes]]]


def _single(files: Files, split: str, lines: Sequence[str]) -> Entries:
    """Rows and pictures of a folder layout, some at a time."""
    for low in range(0, len(lines), ROWS):
        rows = [json.loads(line) for line in lines[low : low + ROWS]]
        paths = [f"{split}/{row['file_name']}" for row in rows]
        yield rows, [files.read(path) if files.exists(path) else b"" for path in paths]


def _entries(data: Any, index: pa.Table, format: str) -> Entries:
    """Rows of a shard and their pictures, read at the places that the index names, some at a time."""
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
    rows: list[dict[str, Any]], digests: list[str], index: pa.Table, choice: Choice, epoch: int,
    sizes: tuple[buckets.Size, ...],
) -> list[str]:  # fmt: skip
    """What is wrong with some entries; `digests` are the SHA-256 of their pictures."""
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
        if row["sha256"] and digests[at] != row["sha256"]:
            problems.append(f"{row['row_id']}: the picture is not the original one")
    return problems


def _totals(found: Mapping[str, Any], counts: Mapping[tuple[str, int], list[list[Any]]]) -> list[str]:
    """Counts against the manifest, and quotas of sources and languages against what was asked, in every bucket and
    concept."""
    problems = []
    policy = from_json({"store": "", "text": "", **found["settings"]}).policy
    quotas = (("raw", "synthetic", policy.ratio), ("english", "chinese", policy.english))
    for split, of in found["splits"].items():
        for epoch, listed in of["achieved"].items():
            got = json.loads(json.dumps(manifest.achieved(counts[split, int(epoch)])))
            if got != listed:
                problems.append(f"{split}, epoch {epoch}: the manifest's counts are not those of the shards")
            tables = {"all": got} | got["by_bucket"] | got["by_concept"]
            for name, table in tables.items() if policy.mode == "quota" else ():
                for one, other, share in quotas:
                    both = table[one] + table[other]
                    if abs(table[one] - share * both) >= 1:
                        where = f"{split}, epoch {epoch}, {name}"
                        problems.append(f"{where}: {table[one]} {one} of {both}, asked {share}")
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
