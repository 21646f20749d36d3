"""Which shard of the export holds which rows: a folder `.plan/` in the export.

    plan.json              what all shards share, written first
    train-00000.parquet    for each shard of the export all that it holds but the pictures, one after the other
    jobs.json              the list of shards, written last

Rows are chosen by curate/mix/choose.py. A shard can be made as soon as its file is there, by itself, on any worker, and
the same plan gives the same bytes. Killed before the last file, the plan is made again: the same rows, the same files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from curate.errors import CurateError, UsageError
from curate.mix import buckets
from curate.mix.choose import SPLITS, Arrays, Chosen
from curate.mix.decide import Cell
from curate.mix.keyed import salt
from curate.mix.settings import Settings, described, from_json
from curate.mix.sources import Place, Source, folder, is_store, specs
from curate.read import InputSpec, Shard, index
from curate.store import Store
from curate.store.files import Files
from curate.store.parts import Version, list_parts

VERSION = 3  # of all that decides the bytes of a mix beside its settings and rows
FOLDER = ".plan"
ROTATING = ("caption", "translate")  # operators whose inactive versions `--synthetic all` shows
# Keys of a recipe that name places and machines, and decide nothing.
PLACES = ("uri", "root", "python", "endpoint", "requests", "timeout_s", "retries", "device")
# What the plan's files say of each entry beside what stands in the shards; with `_` before the name.
PLANNED = (
    "source", "row", "key", "content", "copy", "options", "cell", "rank", "raw", "en", "zh", "bucket", "concept",
    "pool", "length",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One shard of the export."""

    split: str
    epoch: int
    number: int
    entries: int
    digest: str
    """Of the file with its rows: a receipt for other rows is none."""

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


@contextmanager
def scratch(files: Files) -> Iterator[Path]:
    """A folder for unfinished files: inside a local export, so that publishing is a rename; else the system's."""
    local = files.local(FOLDER)
    if local:
        local.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=local, prefix="half-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def claimed(files: Files) -> Iterator[None]:
    """Nobody else writes this export meanwhile; leaves nothing in a folder into which nothing was written.

    UsageError when somebody does, or when there can be no such folder. An object store has no locks: there two writers
    of one mix write the same bytes, and the second of two mixes meets the first one's plan.json.
    """
    lock = files.local(f"{FOLDER}/lock")
    if lock is None:
        yield
        return
    here = [lock.parent, lock.parent.parent]
    new = [folder for folder in here if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as why:
        raise UsageError(f"--out {here[1]}: cannot be written ({why.strerror}); name another path") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--out {here[1]}: another process is writing here; wait for it") from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # gone, or not empty
                if [path.name for path in lock.parent.iterdir()] == [lock.name]:
                    lock.unlink()
                    for folder in new:
                        folder.rmdir()


@contextmanager
def made(
    settings: Settings, files: Files, version: Mapping[str, Any] | None = None
) -> Iterator[tuple[Plan, Iterator[Job]]]:
    """Choose rows and write the plan to `files`, its jobs one after the other as their files are written.

    `version`: that of `version_of`, when the caller looked. UsageError when nothing is left to mix, CurateError when
    the store has changed or another export is written in the folder.
    """
    version = dict(version or version_of(settings))
    with scratch(files) as folder, _chosen(settings, folder) as (rows, sources):
        if version["index"] != _indexes(settings):  # the sources see the index as it was when they were opened
            raise CurateError(f"{settings.store} was changed while rows were chosen; run the same command again")
        cells = rows.cells()
        if not cells:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in (+rows.left_out).items())
            raise UsageError(
                f"{settings.store}: no row is left to mix ({reasons or 'none passes the policy'}); "
                "see --where, --languages"
            )
        if "train" not in cells:
            raise UsageError(f"--validation {settings.validation:g} leaves nothing to train on")
        plan = Plan(
            settings, fingerprint(settings, version), tuple(source.place for source in sources), rows.sizes,
            rows.concepts, cells, dict(+rows.left_out), dict(+rows.unseen), version,
        )  # fmt: skip
        if not files.create(f"{FOLDER}/plan.json", plan.to_json()):
            there = load(files)
            if there is None or (there.fingerprint, there.cells) != (plan.fingerprint, plan.cells):
                raise CurateError(f"{files.uri}: another mix is being written here; name a new folder")
            plan = there
        yield plan, _jobs(plan, rows, sources, files)


def _jobs(plan: Plan, rows: Chosen, sources: list[Source], files: Files) -> Iterator[Job]:
    """Write the plan's file of each shard, and then list them; of each shard the jobs of all epochs."""
    done: list[Job] = []
    for split in plan.cells:
        for number, table in enumerate(_shards(rows.entries(split), sources, plan)):
            out = io.BytesIO()
            pq.write_table(table, out, compression="zstd")
            digest = blake3(out.getbuffer()).hexdigest()[:16]
            jobs = [Job(split, epoch, number, table.num_rows, digest) for epoch in range(plan.settings.epochs)]
            files.replace(jobs[0].rows, out.getvalue())
            done += jobs
            yield from jobs
    files.replace(f"{FOLDER}/jobs.json", json.dumps([asdict(job) for job in done]).encode())


def listed(files: Files) -> tuple[Job, ...] | None:
    """All jobs of the plan in a folder; None when it was not finished."""
    try:
        return tuple(Job(**job) for job in json.loads(files.read(f"{FOLDER}/jobs.json")))
    except FileNotFoundError:
        return None


def preview(settings: Settings) -> dict[str, Counter[buckets.Size]]:
    """Entries by split and bucket that an export would choose; nothing is written."""
    found: dict[str, Counter[buckets.Size]] = {name: Counter() for name in SPLITS}
    with tempfile.TemporaryDirectory() as folder, _chosen(settings, Path(folder)) as (rows, _):
        for split, cells in rows.cells().items():
            for cell in cells:
                found[split][rows.sizes[cell.bucket]] += cell.entries
    return found


def rows_to_train_on(settings: Settings, count: int) -> int:
    """The value of `rows` with which `count` rows are left to train on after the split by content; 0: all.

    Of a mix without rendered text.
    """
    settings = replace(settings, rows=0)
    with tempfile.TemporaryDirectory() as folder, _chosen(settings, Path(folder)) as (rows, _):
        return rows.needed_for(count)


@contextmanager
def _chosen(settings: Settings, folder: Path) -> Iterator[tuple[Chosen, list[Source]]]:
    """The rows of a mix and their sources; `folder` is for what memory does not hold."""
    sources = [Source(settings.store, settings, "natural", str(folder / "store"))]
    if settings.text:
        sources.append(Source(settings.text, settings, "text", str(folder / "text")))
    with Chosen(sources, settings, folder) as rows:
        yield rows, sources


def cuts(size: npt.NDArray[Any], limit: int, most: int) -> list[int]:
    """Where shards (or row groups) end, so that each has `limit` bytes and `most` entries at most, or one entry."""
    held = np.cumsum(size, dtype=np.int64)
    ends = [0]
    while ends[-1] < len(size):
        before = held[ends[-1] - 1] if ends[-1] else 0
        stop = int(np.searchsorted(held, before + limit, "right"))
        ends.append(min(max(stop, ends[-1] + 1), ends[-1] + most, len(size)))
    return ends[1:]


def _shards(entries: Iterable[Arrays], sources: list[Source], plan: Plan) -> Iterator[pa.Table]:
    """The entries of a split with all that stands in shards but the picture, cut by bytes and rows as `cuts` does."""
    limit, most = plan.settings.shard_mb * 1_000_000, plan.settings.shard_rows
    held: list[pa.Table] = []
    rows = size = 0
    for table in (table for batch in entries for table in _full(batch, sources, plan.buckets)):
        while table.num_rows:
            lengths = np.cumsum(table["_length"].to_numpy(), dtype=np.int64) + size
            fits = int(np.searchsorted(lengths, limit, "right"))
            fits = min(max(fits, not rows), most - rows, table.num_rows)
            if fits:
                held.append(table.slice(0, fits))
                rows, size = rows + fits, int(lengths[fits - 1])
            if fits < table.num_rows:
                yield pa.concat_tables(held, promote_options="permissive")
                held, rows, size = [], 0, 0
            table = table.slice(fits)
    if held:
        yield pa.concat_tables(held, promote_options="permissive")


def _full(part: Arrays, sources: list[Source], sizes: tuple[buckets.Size, ...]) -> Iterator[pa.Table]:
    """The entries with everything that stands in shards but the picture, one source shard after the other."""
    first, count = 0, len(part["row"])
    while first < count:
        source = sources[int(part["source"][first])]
        same = part["shard" if source.rotates else "source"][first:]
        here = slice(first, first + int(np.argmin(np.append(same == same[0], False))))
        table = source.full(part["shard"][here], part["row"][here])
        width, height = np.array(sizes, np.int32)[part["bucket"][here]].T
        fixed = {name: part[name][here] for name in PLANNED} | {"bucket_width": width, "bucket_height": height}
        names = pa.array(np.array(source.names, object)[part["shard"][here]], pa.string())
        private = {f"_{name}": column for name, column in fixed.items()}
        yield pa.table({"_shard": names, **private, **dict(zip(table.column_names, table.columns, strict=True))})
        first = here.stop


def version_of(settings: Settings) -> dict[str, Any]:
    """What the store is now: active operators and a hash of their parts, tiers, policy, and the last run's recipe."""
    seen = _indexes(settings)
    store = Store(settings.store)
    runs = store.rows("SELECT recipe FROM runs ORDER BY run_id DESC LIMIT 1")
    recipe = _recipe(runs[0][0]) if runs else {}
    found = {**_deciding(store, settings), "recipe": recipe, "text": _text_version(settings), "index": seen}
    store.close()
    return found


def _indexes(settings: Settings) -> list[int]:
    """Numbers of the index files, of which an ingest makes new ones."""
    stores = [settings.store, *([settings.text] if settings.text and is_store(settings.text) else [])]
    return [Store(uri).path.stat().st_ino for uri in stores]


def _deciding(store: Store, settings: Settings) -> dict[str, Any]:
    """All of a store that decides which rows and captions a mix takes from it."""
    operators = store.rows(
        "SELECT operator, fingerprint, engine, model, revision FROM operators WHERE active ORDER BY operator"
    )
    # A training writes its losses back: a mix that does not ask for them is the same mix afterwards.
    asked = " ".join((settings.where, settings.top, *settings.columns))
    operators = [row for row in operators if row[0] != "loss" or "train_" in asked]
    names = ("operator", "fingerprint", "engine", "model", "revision")
    policy = store.rows("SELECT name, predicate FROM policy ORDER BY position")
    active = {Version(row[0], row[1]) for row in operators}
    rotate = ROTATING if settings.synthetic == "all" else ()
    used = [p.path for p in list_parts(store.files) if p.version in active or p.version.operator in rotate]
    tables = {name for (name,) in store.rows("SELECT table_name FROM information_schema.tables")}
    tiers = ""
    if "consensus" in tables:
        rated = store.rows("SELECT sha256, tier FROM consensus ORDER BY ALL")
        tiers = f"{salt(*rated):016x}"
    return {
        "parts": _hash(used),
        "tiers": tiers,
        "operators": [dict(zip(names, row, strict=True)) for row in operators],
        "policy": dict(policy),
    }


def _text_version(settings: Settings) -> str:
    if not settings.text:
        return ""
    if is_store(settings.text):
        store = Store(settings.text)
        found = _deciding(store, settings)
        store.close()
        return _hash([json.dumps(found, sort_keys=True, ensure_ascii=False)])
    place = specs(settings.text, settings) or folder(settings.text)
    if place.kind == "specs":
        return hashlib.sha256((Path(place.uri) / "manifest.json").read_bytes()).hexdigest()[:16]
    shards = [Shard(name, uri, format, place.spec) for name, (uri, format) in place.shards.items()]
    return _hash([f"{shard.id} {index(shard).identity}" for shard in shards])


def _hash(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _recipe(text: str) -> dict[str, Any]:
    """The recipe of a run without what says where and how it ran: the same decisions are the same words."""
    sections = tomllib.loads(text)
    return {
        name: {key: value for key, value in keys.items() if key not in PLACES}
        for name, keys in sections.items()
        if name not in ("store", "engine", "run")
    }
