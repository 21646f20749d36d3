"""Which rows a mix takes, in which split, bucket and cell, and which shard of the export holds them.

The plan reads light columns of all rows, then writes one small Parquet file for each
shard of the export with all that the shard holds but the pictures: `.plan/train-00000.parquet`. From there on every
shard is made by itself, on any worker, and the same plan gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import UsageError
from curate.mix import buckets
from curate.mix.decide import EN, RAW, ZH, Cell, celled, ranked
from curate.mix.keyed import mixed, salt, uniform
from curate.mix.settings import Settings, described, from_json
from curate.mix.sources import Place, Source, coded, folder, is_store, specs
from curate.read import InputSpec, Shard, index
from curate.store import Store
from curate.store.files import Files
from curate.store.parts import Version, list_parts

VERSION = 2  # of all that decides the bytes of a mix beside its settings and rows
FOLDER = ".plan"
SPLITS = ("train", "validation")
POOLS = ("natural", "top", "text")
DERIVED = ("dedup", "balance")
ROTATING = ("caption", "translate")  # operators whose inactive versions `--synthetic all` shows
# Keys of a recipe that name places and machines, and decide nothing.
PLACES = ("uri", "root", "python", "endpoint", "requests", "timeout_s", "retries", "device")
# What the plan's files say of each entry beside what stands in the shards; with `_` before the name.
PLANNED = (
    "source", "row", "key", "content", "copy", "options", "cell", "rank", "raw", "en", "zh", "bucket", "concept",
    "pool", "length",
)  # fmt: skip
MOST_AT_ONCE = 10_000  # rows whose captions are in memory
# Of an average picture, where the store does not know lengths (MB are 10^6 bytes).
GUESSED_BYTES = 100_000
NO_SIZE = -2  # in place of a bucket
MOST_BYTES = (1 << 32) - 1


@dataclass(frozen=True)
class Job:
    """One shard of the export."""

    split: str
    epoch: int
    number: int
    entries: int

    @property
    def rows(self) -> str:
        """File of the plan with the shard's rows; the epochs share it."""
        return f"{FOLDER}/{self.split}-{self.number:05d}.parquet"

    @property
    def name(self) -> str:
        """The shard's name below its split, without suffix."""
        return f"{self.split}-e{self.epoch:02d}-{self.number:05d}"


@dataclass(frozen=True)
class Plan:
    """All that workers and the manifest need beside the rows of the single shards."""

    settings: Settings
    fingerprint: str
    places: tuple[Place, ...]
    buckets: tuple[buckets.Size, ...]
    concepts: tuple[str, ...]
    cells: dict[str, tuple[Cell, ...]]
    """Of each split."""
    jobs: tuple[Job, ...]
    left_out: dict[str, int]
    """Rows that passed `where` and the policy and are not in the mix, by reason."""
    unseen: dict[str, int]
    """Rows in the mix that `dedup` or `balance` ran without: they came later, or its `--where` left them out."""
    version: dict[str, Any]
    """What the store was: its fingerprint, operators, policy and last run."""

    def to_json(self) -> bytes:
        """The plan as `load` reads it."""
        values = {**asdict(self), "settings": self.settings.to_json()}
        return json.dumps(values, ensure_ascii=False, sort_keys=True).encode()


def load(files: Files) -> Plan | None:
    """The plan that was written in a folder, or None."""
    try:
        values = json.loads(files.read(f"{FOLDER}/plan.json"))
    except FileNotFoundError:
        return None
    places = tuple(
        Place(p["uri"], p["kind"], p["mark"], InputSpec(**p["spec"]), {k: (a, b) for k, (a, b) in p["shards"].items()})
        for p in values["places"]
    )
    return Plan(
        from_json(values["settings"]),
        values["fingerprint"],
        places,
        tuple((w, h) for w, h in values["buckets"]),
        tuple(values["concepts"]),
        {split: tuple(Cell(**cell) for cell in cells) for split, cells in values["cells"].items()},
        tuple(Job(**job) for job in values["jobs"]),
        values["left_out"],
        values["unseen"],
        values["version"],
    )


def fingerprint(settings: Settings, version: Mapping[str, Any]) -> str:
    """Hash of all that decides the mix: what was asked, and the store's active parts, tiers and policy.

    Not the run and not its recipe: a run that computed nothing leaves the mix what it was. `version` is that of
    `version_of`.
    """
    decides = {key: version[key] for key in ("parts", "tiers", "text", "policy", "operators")}
    facts = {**decides, "mix": VERSION, "settings": described(settings)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def make(settings: Settings, files: Files, version: Mapping[str, Any] | None = None) -> Plan:
    """Choose rows, write the files of the plan to `files` and return it; UsageError when nothing is left to mix."""
    version = dict(version or version_of(settings))
    mark = fingerprint(settings, version)
    sources = _sources(settings)
    sizes = buckets.parse(settings.buckets)
    left_out: Counter[str] = Counter()
    unseen: Counter[str] = Counter()
    rows, concepts = _rows(sources, settings, sizes, left_out, unseen)
    if not len(rows["key"]):
        raise UsageError(f"{settings.store}: no row is left to mix ({_reasons(left_out)}); see --where, --languages")
    entries = _entries(rows, settings, left_out)
    cells: dict[str, tuple[Cell, ...]] = {}
    jobs: list[Job] = []
    for split, name in enumerate(SPLITS):
        here = entries["split"] == split
        if not here.any():
            continue
        part = {column: values if here.all() else values[here] for column, values in entries.items()}
        part["cell"], cells[name] = celled(part["bucket"], part["concept"], part["options"], len(concepts))
        part["rank"] = ranked(part["key"], part["cell"], settings.seed)
        counts = _write(name, part, sources, settings, sizes, files)
        jobs += [Job(name, e, n, count) for e in range(settings.epochs) for n, count in enumerate(counts)]
    if "train" not in cells:
        raise UsageError(f"--validation {settings.validation:g} leaves nothing to train on")
    places = tuple(source.place for source in sources)
    plan = Plan(
        settings, mark, places, sizes, concepts, cells, tuple(jobs), dict(+left_out), dict(+unseen), version
    )  # fmt: skip
    files.replace(f"{FOLDER}/plan.json", plan.to_json())
    return plan


Arrays = dict[str, npt.NDArray[Any]]


def _rows(
    sources: list[Source], settings: Settings, sizes: tuple[buckets.Size, ...], left_out: Counter[str],
    unseen: Counter[str],
) -> tuple[Arrays, tuple[str, ...]]:  # fmt: skip
    """Light columns of the rows of the mix, in the order of source, shard and row, and the concepts.

    Counts who was left out, and who is in without a verdict of dedup or balance.
    """
    parts: list[Arrays] = []
    concepts: dict[str, int] = {}
    pools = {name: number for number, name in enumerate(POOLS)}
    for number, source in enumerate(sources):
        for first, stop in source.together():
            light = source.light(first, stop)
            count = len(light["row"])
            options = (light["raw"] > 0) * RAW + (light["en"] > 0) * EN + (light["zh"] > 0) * ZH
            for name in DERIVED:
                unseen[name] += int(light.pop(f"unseen_{name}").sum())
            width, height = light.pop("width"), light.pop("height")
            bucket = np.where((width > 0) & (height > 0), buckets.assign(width, height, sizes), NO_SIZE)
            concept, pool = coded(light.pop("concept"), concepts), coded(light.pop("pool"), dict(pools))
            light |= {"concept": concept, "pool": pool.astype(np.uint8), "options": options.astype(np.uint8)}
            light |= {"source": np.full(count, number, np.uint8), "row": light["row"].astype(np.int32)}
            light |= {"bytes": light["bytes"].clip(0, MOST_BYTES).astype(np.uint32), "bucket": bucket.astype(np.int16)}
            parts.append(light)
    rows: Arrays = {"key": np.zeros(0, np.uint64)}
    if parts:  # a column at a time, so that hardly more than all of them is in memory
        rows = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    if not len(rows["key"]):
        return rows, ()
    order = sorted(concepts)
    rows["concept"] = np.array([order.index(name) for name in concepts], np.int32)[rows["concept"]]
    rows["content"] = contents(rows.pop("group"), rows.pop("digest"), rows["key"])

    def keep(reason: str, good: npt.NDArray[np.bool_]) -> None:
        if not good.all():
            left_out[reason] += int(len(good) - good.sum())
            for name in rows:
                rows[name] = rows[name][good]

    keep("no usable caption", (rows["options"] & (RAW | EN | ZH)) != 0)
    keep("no size", rows["bucket"] != NO_SIZE)
    keep("too far from every bucket", rows["bucket"] >= 0)
    rows["weight"][rows["pool"] == POOLS.index("top")] *= settings.top_weight
    if settings.rows:
        text = rows["pool"] == POOLS.index("text")
        few = min(int(text.sum()), math.floor(Fraction(str(settings.text_cap)) * settings.rows))
        place = _place(rows["key"], text, settings.seed, "text") + _place(rows["key"], ~text, settings.seed, "rows")
        keep("beyond rows", place < np.where(text, few, settings.rows - few))
    return rows, tuple(order)


def contents(group: npt.NDArray[np.uint64], digest: npt.NDArray[np.uint64], key: npt.NDArray[np.uint64]) -> Any:
    """A key for each row that rows share when they are of one group of copies or have the same bytes, by any chain.

    `group` and `digest` are hashes of the group's name and of the SHA-256, 0 where there is none.
    """
    from curate.dedup.forest import Forest, first_equal  # here, since workers need the plan and not this

    bytes_ = np.where(digest != 0, digest, key)
    name = np.where(group != 0, group, bytes_)
    linked = np.flatnonzero(_repeated(name) | _repeated(bytes_))  # the others are alone
    forest = Forest(len(linked))
    for shared in (name, bytes_):
        forest.join(first_equal(shared[linked][:, None]), np.arange(len(linked)))
    name[linked] = name[linked[forest.root]]
    return name


def _repeated(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Where a key stands that comes more than once."""
    order = np.sort(keys)
    found: npt.NDArray[np.bool_] = np.isin(keys, np.unique(order[1:][order[1:] == order[:-1]]))
    return found


def _place(key: npt.NDArray[np.uint64], of: npt.NDArray[np.bool_], *facts: object) -> npt.NDArray[np.int64]:
    """The place of each row in the keyed order of the rows `of`; 0 for all others."""
    chosen = np.flatnonzero(of)
    place = np.zeros(len(key), np.int64)
    place[chosen[np.argsort(mixed(key[chosen], *facts), kind="stable")]] = np.arange(len(chosen))
    return place


def preview(settings: Settings) -> dict[str, Counter[buckets.Size]]:
    """Entries by split and bucket that `make` would choose; nothing is written."""
    sizes = buckets.parse(settings.buckets)
    rows, _ = _rows(_sources(settings), settings, sizes, Counter(), Counter())
    found: dict[str, Counter[buckets.Size]] = {name: Counter() for name in SPLITS}
    if len(rows["key"]):
        entries = _entries(rows, settings, Counter())
        for split, bucket in zip(entries["split"].tolist(), entries["bucket"].tolist(), strict=True):
            found[SPLITS[split]][sizes[bucket]] += 1
    return found


def rows_to_train_on(settings: Settings, count: int) -> int:
    """The value of `rows` with which `count` rows are left to train on after the split by content; 0: all.

    Of a mix without rendered text.
    """
    sizes = buckets.parse(settings.buckets)
    rows, _ = _rows(_sources(settings), replace(settings, rows=0), sizes, Counter(), Counter())
    if not len(rows["key"]):
        return 0
    order = np.argsort(_place(rows["key"], np.ones(len(rows["key"]), np.bool_), settings.seed, "rows"))
    trained = np.cumsum(uniform(rows["content"], settings.seed, "split")[order] >= settings.validation)
    return int(np.searchsorted(trained, count)) + 1 if trained[-1] > count else 0


def _sources(settings: Settings) -> list[Source]:
    natural = [Source(settings.store, settings, "natural")]
    return natural + ([Source(settings.text, settings, "text")] if settings.text else [])


def _entries(rows: Arrays, settings: Settings, left_out: Counter[str]) -> Arrays:
    """Rows to entries: each with its split, and as often as its weight says (in validation once). Empties `rows`.

    In each split the rows of rendered text that are first in keyed order stay, as far as the cap goes.
    """
    split = (uniform(rows["content"], settings.seed, "split") < settings.validation).astype(np.uint8)
    weight = rows.pop("weight")
    whole = np.floor(weight).astype(np.int32)
    extra = uniform(rows["key"], settings.seed, "copies") < weight - whole
    times = np.where(split == 0, whole + extra, 1)
    cap = Fraction(str(settings.text_cap))
    text = rows["pool"] == POOLS.index("text")
    for number in range(len(SPLITS)):
        here = np.flatnonzero(text & (split == number))
        here = here[np.argsort(mixed(rows["key"][here], settings.seed, "text"), kind="stable")]
        most = math.floor(cap * int(times[~text & (split == number)].sum()) / (1 - cap))
        beyond = here[np.cumsum(times[here]) > most]
        times[beyond] = 0
        left_out["beyond text-cap"] += len(beyond)
    rows["split"] = split
    once = bool((times == 1).all())
    # `rows` is emptied on the way: it and the entries would be twice the memory.
    entries = {name: rows.pop(name) if once else np.repeat(rows.pop(name), times) for name in list(rows)}
    entries["copy"] = np.zeros(len(entries["key"]), np.int32)
    if not once:
        entries["copy"] = (np.arange(len(entries["key"])) - np.repeat(np.cumsum(times) - times, times)).astype(np.int32)
    again = entries["copy"] > 0
    copy = entries["copy"][again].astype(np.uint64)
    entries["key"][again] = mixed(entries["key"][again] ^ mixed(copy, "copy"), "entry")
    return entries


def cuts(size: npt.NDArray[Any], limit: int, most: int) -> list[int]:
    """Where shards (or row groups) end, so that each has `limit` bytes and `most` entries at most, or one entry."""
    held = np.cumsum(size, dtype=np.int64)
    ends = [0]
    while ends[-1] < len(size):
        before = held[ends[-1] - 1] if ends[-1] else 0
        stop = int(np.searchsorted(held, before + limit, "right"))
        ends.append(min(max(stop, ends[-1] + 1), ends[-1] + most, len(size)))
    return ends[1:]


def _write(
    split: str, part: Arrays, sources: list[Source], settings: Settings, sizes: tuple[buckets.Size, ...], files: Files
) -> list[int]:
    """Write the plan's files of one split; returns the number of entries of each shard."""
    length = part.pop("bytes")
    if settings.resize:
        length = np.array([w * h // 4 for w, h in sizes], np.uint32)[part["bucket"]]
    part["length"] = np.where(length > 0, length, np.uint32(GUESSED_BYTES))
    ends = cuts(part["length"], settings.shard_mb * 1_000_000, settings.shard_rows)
    held: list[pa.Table] = []
    count, number, first = 0, 0, 0
    for table in _full(part, sources, sizes):
        while table.num_rows:
            room = ends[number] - first - count
            held.append(table.slice(0, room))
            count += held[-1].num_rows
            table = table.slice(held[-1].num_rows)
            if first + count == ends[number]:
                out = io.BytesIO()
                pq.write_table(pa.concat_tables(held, promote_options="permissive"), out, compression="zstd")
                files.replace(f"{FOLDER}/{split}-{number:05d}.parquet", out.getvalue())
                number, first, count, held = number + 1, ends[number], 0, []
    return [stop - start for start, stop in pairwise([0, *ends])]


def _full(part: Arrays, sources: list[Source], sizes: tuple[buckets.Size, ...]) -> Iterator[pa.Table]:
    """The entries with everything that stands in shards but the picture, one source shard after the other."""
    first, count = 0, len(part["row"])
    while first < count:
        source = sources[int(part["source"][first])]
        same = part["shard" if source.rotates else "source"][first : first + MOST_AT_ONCE]
        here = slice(first, first + int(np.searchsorted(same, same[0], "right")))
        pairs, at = np.unique(part["shard"][here].astype(np.int64) << 32 | part["row"][here], return_inverse=True)
        of, numbers = pairs >> 32, pairs & 0xFFFFFFFF
        rows = {int(shard): numbers[of == shard].tolist() for shard in np.unique(of)}
        table = source.full(rows).take(pa.array(at)).drop_columns(["_row"])
        width, height = np.array(sizes, np.int32)[part["bucket"][here]].T
        fixed = {name: part[name][here] for name in PLANNED} | {"bucket_width": width, "bucket_height": height}
        names = pa.array(np.array(source.names, object)[part["shard"][here]], pa.string())
        private = {f"_{name}": column for name, column in fixed.items()}
        yield pa.table({"_shard": names, **private, **dict(zip(table.column_names, table.columns, strict=True))})
        first = here.stop


def version_of(settings: Settings) -> dict[str, Any]:
    """What the store is now: active operators and a hash of their parts, tiers, policy, and the last run's recipe."""
    store = Store(settings.store)
    operators = store.rows(
        "SELECT operator, fingerprint, engine, model, revision FROM operators WHERE active ORDER BY operator"
    )
    # A training writes its losses back: a mix that does not ask for them is the same mix afterwards.
    asked = " ".join((settings.where, settings.top, *settings.columns))
    operators = [row for row in operators if row[0] != "loss" or "train_" in asked]
    names = ("operator", "fingerprint", "engine", "model", "revision")
    runs = store.rows("SELECT recipe FROM runs ORDER BY run_id DESC LIMIT 1")
    policy = store.rows("SELECT name, predicate FROM policy ORDER BY position")
    active = {Version(row[0], row[1]) for row in operators}
    rotate = ROTATING if settings.synthetic == "all" else ()
    used = [p.path for p in list_parts(store.files) if p.version in active or p.version.operator in rotate]
    parts = hashlib.sha256("\n".join(used).encode()).hexdigest()[:16]
    tables = {name for (name,) in store.rows("SELECT table_name FROM information_schema.tables")}
    tiers = ""
    if "consensus" in tables:
        rated = store.rows("SELECT sha256, tier FROM consensus ORDER BY ALL")
        tiers = f"{salt(*rated):016x}"
    store.close()
    return {
        "parts": parts,
        "tiers": tiers,
        "operators": [dict(zip(names, row, strict=True)) for row in operators],
        "policy": dict(policy),
        "recipe": _recipe(runs[0][0]) if runs else {},
        "text": _text_version(settings),
    }


def _text_version(settings: Settings) -> str:
    if not settings.text:
        return ""
    if is_store(settings.text):
        store = Store(settings.text)
        active = {Version(*row) for row in store.rows("SELECT operator, fingerprint FROM operators WHERE active")}
        paths = [part.path for part in list_parts(store.files) if part.version in active]
        store.close()
    else:
        place = specs(settings.text, settings) or folder(settings.text)
        if place.kind == "specs":
            return hashlib.sha256((Path(place.uri) / "manifest.json").read_bytes()).hexdigest()[:16]
        shards = [Shard(name, uri, format, place.spec) for name, (uri, format) in place.shards.items()]
        paths = [f"{shard.id} {index(shard).identity}" for shard in shards]
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()[:16]


def _recipe(text: str) -> dict[str, Any]:
    """The recipe of a run without what says where and how it ran: the same decisions are the same words."""
    sections = tomllib.loads(text)
    return {
        name: {key: value for key, value in keys.items() if key not in PLACES}
        for name, keys in sections.items()
        if name not in ("store", "engine", "run")
    }


def _reasons(left_out: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count:,}" for reason, count in left_out.items()) or "none passes the policy"
