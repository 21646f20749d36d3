"""`curate mix STORE -o DIR`: plan, shards on all workers, manifest.

Killed anywhere, the same command goes on: the plan is kept in DIR/.plan, finished shards have receipts there, and the
manifest comes last. A folder that holds another mix is refused.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from curate.errors import CurateError, UsageError
from curate.mix import card, jobs, manifest, plan, shards
from curate.mix.settings import Settings
from curate.store.files import Files, LocalFiles, open_files

Told = Callable[[str], None]
Moved = Callable[[int, int], None]


def export(
    settings: Settings,
    out: str,
    kind: str = "processes",
    workers: int = 0,
    told: Told = lambda text: None,
    moved: Moved = lambda done, of: None,
) -> dict[str, Any]:
    """Write the training set to the folder or s3:// URI `out` and return its manifest.

    `told` hears what is going on, `moved` how many entries are done of how many.
    """
    files = open_files(out)
    version = plan.version_of(settings)
    mark = plan.fingerprint(settings, version)
    there, _ = _look(files, settings, out, mark)  # before anything is written
    if there and not any(True for _ in files.list(plan.FOLDER)):
        told(f"{out} holds this mix already")
        return there
    with plan.claimed(files), jobs.Workers(kind, workers, shards.__name__) as pool:
        there, planned = _look(files, settings, out, mark)
        if there:
            told(f"{out} holds this mix already")
            _clear(files, swept=True)
            return there
        resumed = planned is not None
        if planned and (listed := plan.listed(files)):
            receipts = _shards(files, planned, listed, pool, told, moved)
        else:
            told("choosing rows")
            with plan.made(settings, files, version) as (planned, coming):
                receipts = _shards(files, planned, coming, pool, told, moved)
        made = finish(files, planned, receipts)
        _clear(files, swept=resumed)
    return made


def _look(files: Files, settings: Settings, out: str, mark: str) -> tuple[dict[str, Any] | None, plan.Plan | None]:
    """The manifest and the plan that are there; UsageError when the folder holds anything else."""
    there, planned = manifest.read(files), plan.load(files)
    if (there and there["fingerprint"] != mark) or (not there and planned and planned.fingerprint != mark):
        raise UsageError(f"--out {out} holds another mix (other settings, or the store has changed); name a new folder")
    if not there and not planned:
        _free(files, settings, out)
    return there, planned


def _clear(files: Files, *, swept: bool) -> None:
    """Remove what a finished export no longer needs; with `swept` also what writers that were killed left behind."""
    if swept and isinstance(files, LocalFiles):
        files.sweep()
    files.delete(plan.FOLDER)


def _shards(
    files: Files, planned: plan.Plan, listed: Iterable[plan.Job], pool: jobs.Workers, told: Told, moved: Moved
) -> list[shards.Receipt]:
    """Make the shards that have no receipt yet, as they are listed; returns the receipts of all."""
    for operator, count in planned.unseen.items():
        told(
            f"{count:,} rows are in the mix that `{operator}` has not judged (they came later, or its --where left out "
            f"what they are); run again: curate {operator} {planned.settings.store}"
        )
    known = {receipt.job: receipt for receipt in shards.receipts(files)}
    done: list[shards.Receipt] = []
    total = sum(cell.entries for cells in planned.cells.values() for cell in cells) * planned.settings.epochs
    told(f"{total:,} entries" + (f", {len(known)} shards of them done before" if known else ""))
    count = sum(job.entries for job in known)
    moved(count, total)

    def missing() -> Iterator[tuple[str, str, plan.Job]]:
        for job in listed:
            if job in known:
                done.append(known[job])
            else:
                yield files.uri, planned.fingerprint, job

    for receipt in pool.run(shards.make, missing()):
        done.append(receipt)
        count += receipt.job.entries
        moved(count, total)
    if (held := sum(receipt.job.entries for receipt in done)) != total:
        raise CurateError(f"{files.uri}: {held:,} entries were written of {total:,}; name a new folder")
    return done


def _free(files: Files, settings: Settings, out: str) -> None:
    """UsageError when the folder holds anything, or lies inside the store: an export writes to a folder of its own."""
    store = open_files(settings.store).uri.rstrip("/")
    if f"{files.uri.rstrip('/')}/".startswith(f"{store}/"):
        raise UsageError(f"--out {out} lies in the store {settings.store}; name a folder beside it")
    for path in files.list(""):
        if not path.removeprefix("./").startswith(f"{plan.FOLDER}/"):
            path = path.removeprefix("./")
            raise UsageError(f"--out {out} is in use: {path} is there and belongs to no mix; name a new folder")


def finish(files: Files, planned: plan.Plan, receipts: list[shards.Receipt]) -> dict[str, Any]:
    """Write what covers all shards: the proper nouns, the lists of a folder layout, the card, and last the manifest."""
    receipts = sorted(receipts, key=lambda done: (done.job.split, done.job.epoch, done.job.number))
    made = manifest.build(planned, receipts)
    extra = {"proper_nouns.csv": _nouns(receipts)}
    for place in planned.places:
        if place.kind == "specs" and place.mark == "keep":  # what MixDataset draws the pictures with, beside the fonts
            extra |= {f"{manifest.SPECS}/{name}": (Path(place.uri) / name).read_bytes() for name in manifest.WORLD}
    if planned.settings.format == "folder":
        for split in planned.cells:
            names = [path for path in made["files"] if path.startswith(f"{shards.METADATA}/{split}-")]
            extra[f"{split}/metadata.jsonl"] = b"".join(files.read(name) for name in names)
            for name in names:
                del made["files"][name]
    for name, data in extra.items():
        files.replace(name, data)
        made["files"][name] = {"blake3": blake3(data).hexdigest(), "bytes": len(data)}
    made["tree"] = manifest.tree(made)
    files.replace(card.NAME, card.card(made, card.schema(files, made)).encode())
    files.replace(manifest.NAME, manifest.encode(made))
    return made


def _nouns(receipts: list[shards.Receipt]) -> bytes:
    """Proper nouns that only raw captions have, most frequent first."""
    counted: Counter[str] = Counter()
    example: dict[str, str] = {}
    for receipt in receipts:
        if receipt.job.epoch == 0:
            for noun, count, row_id in receipt.nouns:
                counted[noun] += count
                example.setdefault(noun, row_id)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("proper_noun", "rows", "example_row_id"))
    writer.writerows((n, c, example[n]) for n, c in sorted(counted.items(), key=lambda item: (-item[1], item[0])))
    return out.getvalue().encode()
