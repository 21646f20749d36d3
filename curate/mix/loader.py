"""MixDataset: the training set that `curate mix` wrote, one keyed order an epoch, single pictures read where they lie.

The order of an epoch, its batches, captions and crops are functions of (seed, epoch, entry), so the whole state is an
epoch and a step. Blocks of consecutive entries come in keyed order, and within a window of blocks the entries do: that
shuffles 16,384 entries at a time thoroughly and all of them roughly, and reads stay near each other. Each rank and
worker reads only the pictures that it serves.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from curate.errors import CurateError, UsageError, nearest
from curate.mix import buckets as bucket_lists
from curate.mix import manifest, pixels, shards
from curate.mix.choose import POOLS, SPLITS
from curate.mix.decide import LANGUAGES, SOURCES, Cell, Entries, Policy, decide
from curate.mix.keyed import mixed, uniform
from curate.mix.settings import from_json
from curate.read import InputError
from curate.read.files import Place, each, locate
from curate.store.files import open_files
from schemas.errors import RowError

if TYPE_CHECKING:
    from curate.synth.spec import World

BLOCK = 256
WINDOW = 64  # blocks shuffled together
CHUNK = 32  # single entries read at once
TEXT_GROUPS = 128  # row groups whose captions are kept in memory, about 400 kB each
OPEN_SHARDS = 128
MOST_WORKERS = 1024  # of one DataLoader

Longs = npt.NDArray[np.int64]
Leftovers = Literal["base", "short", "drop"]


@dataclass(frozen=True)
class Order:
    """One epoch: batch i has the entries `entries[starts[i]:starts[i + 1]]` at bucket `bucket[i]`."""

    entries: Longs
    starts: Longs
    bucket: Longs
    left_over: int


class MixDataset(IterableDataset[dict[str, Any]]):
    """The items and batches of a training set; the package's docstring is the description of the interface.

    Raises UsageError for a folder without a finished mix, or for arguments that do not fit it.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        split: str = "train",
        seed: int | None = None,
        batch_size: int | None = None,
        leftovers: Leftovers = "short",
        rank: int = 0,
        world: int = 1,
        buckets: str | None = None,
        crop: Literal["random", "center"] = "random",
        flip: bool = False,
        shuffle: bool = True,
        decode: bool = True,
        columns: Sequence[str] = (),
    ) -> None:
        self.uri = str(uri)
        files = open_files(self.uri)
        found = manifest.read(files)
        if found is None:
            raise UsageError(f"{self.uri}: no finished mix here; make one with: curate mix STORE -o {self.uri}")
        self.manifest = found
        self.manifest_hash: str = found["tree"]
        self.settings = from_json({"store": "", "text": "", **found["settings"]})
        if self.settings.format == "folder":
            raise UsageError(f"{self.uri}: a folder layout is for other trainers; export as parquet or webdataset")
        if split not in found["splits"]:
            raise UsageError(f"split {split!r}: not in {self.uri}{nearest(split, found['splits'] or SPLITS)}")
        if not 0 <= rank < world:
            raise UsageError(f"rank {rank} of world {world}: ranks are 0 to world - 1")
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: at least 1, or None for single rows")
        if leftovers not in ("base", "short", "drop") or crop not in ("random", "center"):
            raise UsageError(f"leftovers {leftovers!r}, crop {crop!r}: base, short or drop; random or center")
        if buckets is not None and self.settings.resize:
            raise UsageError("buckets: the pictures of this export are cropped to its own buckets")
        self.split, self.batch_size, self.leftovers, self.rank, self.world = split, batch_size, leftovers, rank, world
        self.seed = self.settings.seed if seed is None else seed
        self.crop, self.flip, self.shuffle, self.decode = crop, flip, shuffle, decode
        self.columns = tuple(columns)
        self.buckets = tuple((w, h) for w, h in found["buckets"]) if buckets is None else bucket_lists.parse(buckets)
        asked = self.settings.policy
        self.policy = Policy(asked.ratio, asked.english, asked.mode, self.seed)
        self.cells = tuple(Cell(*cell) for cell in found["splits"][split]["cells"])
        self._open(uri=files.uri, named=buckets is not None)
        facts = [self.manifest_hash, split, self.seed, leftovers, self.buckets, crop, flip, shuffle]
        facts += [batch_size and batch_size * world, None if batch_size else world]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self._order: tuple[int, Order] | None = None
        self._open_files: tuple[int, _Reader] | None = None
        self._drawn_with: World | None = None
        self._epoch, self._step = 0, 0
        # How often each worker of a DataLoader went through an epoch: its copy of this object ends with it.
        passes = torch.zeros(MOST_WORKERS, dtype=torch.int64)
        self._passes: torch.Tensor | None = passes.share_memory_()  # type: ignore[no-untyped-call]  # torch's own gap

    def _open(self, uri: str, named: bool) -> None:
        """Read the index of the first epoch's shards: every other epoch is computed."""
        names = [s["name"] for s in self.manifest["splits"][self.split]["shards"] if s["epoch"] == 0]
        root = locate(uri)
        suffix = shards.SUFFIX[self.settings.format]
        self.shards = [root.at(f"{root.path}/{self.split}/{name}{suffix}") for name in names]
        try:
            tables = each(root, lambda name: _table(root.at(f"{root.path}/index/{name}.parquet")), names)
        except (OSError, pa.ArrowException, InputError) as why:
            raise CurateError(
                f"{self.uri}: the index does not read: {why}; see: curate mix verify {self.uri}"
            ) from None
        self.of_shard = np.repeat(np.arange(len(tables), dtype=np.int32), [table.num_rows for table in tables])
        table = pa.concat_tables(tables).combine_chunks()
        self.entries = shards.entries_of(table)
        self.copy = table["copy"].to_numpy()
        self.pool = table["pool"].to_numpy()
        self.size = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)
        self.place = {name: table[name].to_numpy() for name in shards.PLACED}
        self.bucket = table["bucket"].to_numpy().astype(np.int64)
        if named:
            near = bucket_lists.assign(self.size[:, 0], self.size[:, 1], self.buckets)
            self.bucket = np.where(near < 0, bucket_lists.base(self.buckets), near).astype(np.int64)

    def __len__(self) -> int:
        """What this rank gets in the current epoch: batches, or rows when batch_size is None."""
        return self.steps(self._epoch)

    # The order ----------------------------------------------------------------------------------------------------

    def order(self, epoch: int) -> Order:
        """The batches of an epoch for all ranks together (with batch_size=None: one entry each)."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, _order(self, epoch)
        return self._order[1]

    def steps(self, epoch: int) -> int:
        """Batches of this rank in the epoch, or its rows when batch_size is None."""
        batches = len(self.order(epoch).bucket)
        return batches if self.batch_size else len(range(self.rank, batches, self.world))

    def left_over(self, epoch: int) -> int:
        """Entries that no rank gets in the epoch, since they fill no batch."""
        return self.order(epoch).left_over

    def _mine(self, order: Order, step: int) -> tuple[Longs, Longs, int]:
        """Entries of this rank's batch, their places in the epoch, and their bucket."""
        if not self.batch_size:
            step = self.rank + step * self.world
            return order.entries[step : step + 1], np.array([step]), int(order.bucket[step])
        first, stop = int(order.starts[step]), int(order.starts[step + 1])
        low, high = (first + (stop - first) * r // self.world for r in (self.rank, self.rank + 1))
        return order.entries[low:high], np.arange(low, high), int(order.bucket[step])

    # Iteration ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """What is left of the epoch; in a worker of a DataLoader every n-th step, so that the order is the same."""
        worker = get_worker_info()
        epoch, first = self._epoch, self._step
        if worker is not None and self._passes is not None and (passes := int(self._passes[worker.id])):
            epoch, first = epoch + passes, 0
        steps = (
            range(first, self.steps(epoch))
            if worker is None
            else range(first + worker.id, self.steps(epoch), worker.num_workers)
        )
        for step, item in self._items(epoch, steps):
            self._step = step + 1
            yield item
        if worker is None:
            self._epoch, self._step = epoch + 1, 0
        elif self._passes is not None:
            self._passes[worker.id] += 1

    def _items(self, epoch: int, steps: range) -> Iterator[tuple[int, dict[str, Any]]]:
        order = self.order(epoch)
        if self.batch_size:
            yield from ((step, self._load(epoch, *self._mine(order, step))) for step in steps)
            return
        for at in range(0, len(steps), CHUNK):
            chunk = steps[at : at + CHUNK]
            places = np.array([self.rank + step * self.world for step in chunk])
            rows = order.entries[places]
            decided = self._decided(epoch, rows, self.bucket[rows])
            read = self._read(rows)
            for i, step in enumerate(chunk):
                yield step, self._item(epoch, int(rows[i]), int(places[i]), decided, i, *read[i])

    def batch(self, epoch: int, step: int) -> dict[str, Any]:
        """The batch (or item) of this rank at a step of an epoch: what the iterator yields there."""
        if not 0 <= step < self.steps(epoch):
            raise IndexError(f"step {step} of epoch {epoch}: this rank has {self.steps(epoch)} steps")
        return next(item for _, item in self._items(epoch, range(step, step + 1)))

    def _load(self, epoch: int, rows: Longs, places: Longs, bucket: int) -> dict[str, Any]:
        decided = self._decided(epoch, rows, np.full(len(rows), bucket))
        width, height = self.buckets[bucket]
        image = torch.empty((len(rows), height, width, 3), dtype=torch.uint8) if self.decode else None
        read = self._read(rows)
        items = [
            self._item(epoch, int(row), int(places[i]), decided, i, *read[i], into=None if image is None else image[i])
            for i, row in enumerate(rows)
        ]
        names = items[0] if items else _NAMES | dict.fromkeys(self.columns)
        batch: dict[str, Any] = {name: [item[name] for item in items] for name in names}
        # (rows, 3, height, width) in channels-last memory: no copy, and what convolutions like best.
        return batch | {"image": None if image is None else image.permute(0, 3, 1, 2)}

    # One entry ----------------------------------------------------------------------------------------------------

    def _decided(self, epoch: int, rows: Longs, bucket: Longs) -> _Decided:
        """Captions, crops and mirrors of some entries in an epoch."""
        few = self.entries
        chosen = Entries(
            few.key[rows], few.options[rows], few.raws[rows], few.variants_en[rows], few.variants_zh[rows],
            few.cell[rows], few.rank[rows],
        )  # fmt: skip
        choice = decide(self.policy, self.cells, chosen, epoch)
        where = None
        if self.crop == "random" and not self.settings.resize:
            draws = (uniform(chosen.key, self.seed, epoch, side) for side in ("left", "top"))
            where = np.stack(list(draws), axis=1)
        flipped = np.zeros(len(rows), np.bool_)
        if self.flip:
            flipped = uniform(chosen.key, self.seed, epoch, "flip") < 0.5
            flipped &= self.pool[rows] != POOLS.index("text")
        return _Decided(choice.source, choice.language, choice.variant, bucket, where, flipped)

    def _item(
        self, epoch: int, row: int, place: int, decided: _Decided, i: int, data: bytes, text: dict[str, Any],
        into: torch.Tensor | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        bucket = self.buckets[int(decided.bucket[i])]
        size = int(self.size[row, 0]), int(self.size[row, 1])
        where = None if decided.where is None else (float(decided.where[i, 0]), float(decided.where[i, 1]))
        # What is stored: the whole picture, or its centre crop at the size of its own bucket.
        stored = self.buckets[int(self.bucket[row])] if self.settings.resize else size
        scaled = pixels.covering(stored, bucket)
        cut = pixels.cropped(scaled, bucket, where)
        resized, (left, top) = scaled, cut
        if self.settings.resize:  # said of the original, of which two cuts in one are shown
            resized, (left, top) = pixels.twice(size, stored, scaled, cut)
        flipped = bool(decided.flipped[i])
        lists = [text[f"captions_{kind}"] for kind in ("raw", *LANGUAGES)]
        variant = int(decided.variant[i])
        caption, language = shards.caption(lists, int(decided.source[i]), int(decided.language[i]), variant)
        image = None
        if self.decode:
            image = self._pixels(data, text["row_id"], scaled, cut, bucket, flipped, into)
        item = {
            "image": image,
            "caption": caption,
            "caption_source": SOURCES[decided.source[i]],
            "language": language,
            "variant": variant,
            "pool": POOLS[self.pool[row]],
            "row_id": text["row_id"],
            "copy": int(self.copy[row]),
            "sha256": text["sha256"],
            "epoch": epoch,
            "index": place,
            "bucket": bucket,
            "original_size": size[::-1],
            "resized": resized[::-1],
            "crop": (top, left),
            "target_size": bucket[::-1],
            "flipped": flipped,
        }
        return item | {name: text[name] for name in self.columns}

    def _pixels(
        self, data: bytes, row_id: str, scaled: tuple[int, int], cut: tuple[int, int], bucket: tuple[int, int],
        flipped: bool, into: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        if data.startswith(b"{"):  # the spec of rendered text: no picture begins so
            from curate.synth.sample import rendered_again

            data = rendered_again(self._world(), data.decode())
        try:
            found = pixels.fitted(data, scaled, cut, bucket)
        except RowError as why:
            raise CurateError(f"{self.uri}: row {row_id}: {why.message}; see: curate mix verify {self.uri}") from None
        if into is None:
            into = torch.empty((bucket[1], bucket[0], 3), dtype=torch.uint8)
        np.copyto(into.numpy(), found[:, ::-1] if flipped else found)
        return into.permute(2, 0, 1)

    def _read(self, rows: Longs) -> list[tuple[bytes, dict[str, Any]]]:
        """Encoded picture (empty when not decoded) and texts of some entries; several requests at once over S3."""
        if not len(rows):
            return []
        reader = self._reader()

        def one(row: int) -> tuple[bytes, dict[str, Any]]:
            offset, size, rest, rest_size = (int(self.place[name][row]) for name in shards.PLACED)
            shard = int(self.of_shard[row])
            return reader.span(shard, offset, size) if self.decode else b"", reader.text(shard, rest, rest_size)

        try:
            return each(self.shards[0], one, [int(row) for row in rows])
        except KeyError as why:
            raise UsageError(f"columns: the shards of {self.uri} have no column {why}; add it with --columns") from None
        except (OSError, pa.ArrowException) as why:
            raise CurateError(f"{self.uri}: a shard does not read: {why}; see: curate mix verify {self.uri}") from None

    def _reader(self) -> _Reader:
        """The open files of this process; a forked worker opens its own."""
        if self._open_files is None or self._open_files[0] != os.getpid():
            self._open_files = os.getpid(), _Reader(self.shards, self.settings.format, self.columns)
        return self._open_files[1]

    def _world(self) -> World:
        """What specs are drawn with; a forked worker shares it."""
        if self._drawn_with is None:
            from curate.synth.shards import open_world

            files = open_files(self.uri)
            with tempfile.TemporaryDirectory() as folder:
                for name in manifest.WORLD:
                    (Path(folder) / name).write_bytes(files.read(f"{manifest.SPECS}/{name}"))
                self._drawn_with = open_world(Path(folder))
        return self._drawn_with

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open_files": None, "_drawn_with": None}

    # State --------------------------------------------------------------------------------------------------------

    def seek(self, epoch: int, step: int = 0) -> None:
        """Go on at this step of this epoch; UsageError when there is none."""
        if epoch < 0 or step < 0:
            raise UsageError(f"epoch {epoch}, step {step}: both are counted from 0")
        self._epoch, self._step = epoch, step
        if self._passes is not None:
            self._passes.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands: the first batch that was not yielded yet."""
        return {"epoch": self._epoch, "step": self._step, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` says; UsageError when it belongs to another mix or other settings."""
        if set(state) != {"epoch", "step", "fingerprint"}:
            raise UsageError(f"{self.uri}: no state of a MixDataset: it has {', '.join(map(str, state)) or 'nothing'}")
        if state["fingerprint"] != self.fingerprint:
            raise UsageError(
                f"{self.uri}: the state is of another mix, or of other settings (seed, global batch, buckets, ...); "
                "resume with the same ones"
            )
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch >= 0 and step > self.steps(epoch):
            raise UsageError(f"{self.uri}: step {step} of epoch {epoch}, which has {self.steps(epoch)} steps")
        self.seek(epoch, step)

    def loader(self, num_workers: int = 0, **options: Any) -> MixLoader:
        """A DataLoader over this dataset that knows how far it was consumed; `options` go to torch's DataLoader."""
        return MixLoader(self, num_workers, options)


@dataclass(frozen=True)
class _Decided:
    source: npt.NDArray[np.uint8]
    language: npt.NDArray[np.uint8]
    variant: npt.NDArray[np.uint8]
    bucket: Longs
    where: npt.NDArray[np.float64] | None
    flipped: npt.NDArray[np.bool_]


# The keys of a batch that has no rows (a rank of a short batch).
_NAMES: dict[str, Any] = dict.fromkeys(
    (
        "image", "caption", "caption_source", "language", "variant", "pool", "row_id", "copy", "sha256", "epoch",
        "index", "bucket", "original_size", "resized", "crop", "target_size", "flipped",
    )
)  # fmt: skip


class MixLoader:
    """A DataLoader whose state is that of what was handed out, not of what its workers have read ahead."""

    def __init__(self, data: MixDataset, num_workers: int, options: dict[str, Any]) -> None:
        self.data, self.num_workers, self.options = data, num_workers, options

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """What is left of the epoch; the next `for` is the next epoch."""
        if not self.num_workers:
            yield from self.data
            return
        epoch, step = self.data._epoch, self.data._step
        counted = copy.copy(self.data)
        counted._passes = None  # the state is kept here
        loader = DataLoader(counted, batch_size=None, num_workers=self.num_workers, **self.options)
        for done, batch in enumerate(loader, start=step + 1):
            self.data.seek(epoch, done)
            yield batch
        self.data.seek(epoch + 1)

    def __len__(self) -> int:
        """Steps of the current epoch."""
        return len(self.data)

    def state_dict(self) -> dict[str, Any]:
        """As MixDataset.state_dict."""
        return self.data.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As MixDataset.load_state_dict."""
        self.data.load_state_dict(state)


def _order(data: MixDataset, epoch: int) -> Order:
    count = len(data.bucket)
    order = np.arange(count)
    if data.shuffle:
        blocks = np.arange(-(-count // BLOCK), dtype=np.uint64)
        turn = np.empty(len(blocks), np.uint64)
        turn[np.argsort(mixed(blocks, data.seed, epoch, "blocks"), kind="stable")] = blocks
        window = turn[order // BLOCK] // np.uint64(WINDOW)
        order = np.lexsort((mixed(data.entries.key, data.seed, epoch, "order"), window))
    bucket = data.bucket[order]
    if not data.batch_size:
        return Order(order, np.arange(count + 1), bucket, 0)
    whole = data.batch_size * data.world
    by_bucket = np.argsort(bucket, kind="stable")  # places in `order`, bucket by bucket
    sizes = np.bincount(bucket, minlength=len(data.buckets))
    batches: list[tuple[int, int, Longs]] = []  # (place at which it is full, bucket, places)
    rest: list[tuple[int, Longs]] = []
    for number, (first, size) in enumerate(zip(np.cumsum(sizes) - sizes, sizes, strict=True)):
        places = by_bucket[first : first + size]
        full = size - size % whole
        batches += [(int(p[-1]), number, p) for p in places[:full].reshape(-1, whole)]
        rest.append((number, places[full:]))
    batches.sort(key=lambda batch: batch[0])
    over = np.sort(np.concatenate([places for _, places in rest]))
    left = len(over)
    if data.leftovers == "short":
        batches += [(count, number, places) for number, places in rest if len(places)]
        left = 0
    elif data.leftovers == "base":
        left = len(over) % whole
        base = bucket_lists.base(data.buckets)
        batches += [(count, base, places) for places in over[: len(over) - left].reshape(-1, whole)]
    flat = np.concatenate([p for _, _, p in batches]) if batches else np.zeros(0, np.int64)
    starts = np.concatenate(([0], np.cumsum([len(p) for _, _, p in batches], dtype=np.int64)))
    return Order(order[flat], starts, np.array([number for _, number, _ in batches], np.int64), left)


class _Reader:
    """Spans and texts of the shards."""

    def __init__(self, places: Sequence[Place], format: str, columns: Sequence[str]) -> None:
        self.places, self.format = places, format
        self.columns = ["row_id", "sha256", "captions_raw", "captions_en", "captions_zh", *columns]
        self.files: OrderedDict[int, Any] = OrderedDict()
        self.group = functools.lru_cache(maxsize=TEXT_GROUPS)(self._group)

    def file(self, shard: int) -> Any:
        """The open shard: the descriptor of a local file, so that reads share no position, or a remote file."""
        if shard not in self.files:
            place = self.places[shard]
            self.files[shard] = (
                os.open(place.path, os.O_RDONLY) if place.local else place.fs.open_input_file(place.path)
            )
            if len(self.files) > OPEN_SHARDS:
                self._close(self.files.popitem(last=False)[1])
        else:
            self.files.move_to_end(shard)
        return self.files[shard]

    def _close(self, file: Any) -> None:
        if isinstance(file, int):
            os.close(file)

    def __del__(self) -> None:
        for file in self.files.values():
            self._close(file)

    def span(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard; OSError when it ends before."""
        file = self.file(shard)
        data = os.pread(file, size, offset) if self.places[shard].local else bytes(file.read_at(size, offset))
        if len(data) != size:
            raise OSError(f"{self.places[shard].uri} ends after {len(data)} of the {size} bytes at {offset}")
        return data

    def text(self, shard: int, rest: int, rest_size: int) -> dict[str, Any]:
        """Captions and other columns of an entry."""
        if self.format == "webdataset":
            values = json.loads(self.span(shard, rest, rest_size))
            return {name: values[name] for name in self.columns}
        return {name: column[rest_size] for name, column in self.group(shard, rest).items()}

    def _group(self, shard: int, group: int) -> dict[str, list[Any]]:
        place = self.places[shard]
        file = pq.ParquetFile(place.path if place.local else place.fs.open_input_file(place.path))
        if missing := [name for name in self.columns if name not in file.schema_arrow.names]:
            raise KeyError(missing[0])
        columns: dict[str, list[Any]] = file.read_row_group(group, columns=self.columns, use_threads=False).to_pydict()
        return columns


def _table(place: Place) -> pa.Table:
    with place.fs.open_input_file(place.path) as file:
        return pq.read_table(file)
