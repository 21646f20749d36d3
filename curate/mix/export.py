"""`curate mix STORE -o DIR`: plan, shards on all workers, manifest.

Killed anywhere, the same command goes on: the plan is kept in DIR/.plan, finished shards have receipts there, and the
manifest comes last. A folder that holds another mix is refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.errors import UsageError
from curate.mix import card, jobs, manifest, plan, shards
from curate.mix.settings import Settings
from curate.store.files import Files, open_files
from curate.store.parts import read_table

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
    mark, _ = plan.fingerprint(settings)
    there = manifest.read(files)
    if there and there["fingerprint"] == mark:
        told(f"{out} holds this mix already")
        return there
    planned = plan.load(files)
    if there or (planned and planned.fingerprint != mark):
        raise UsageError(f"--out {out} holds another mix (other settings, or the store has changed); name a new folder")
    if not planned:
        told("choosing rows")
        planned = plan.make(settings, files)
    done = {job: found for job in planned.jobs if (found := shards.receipt(files, job))}
    todo = [job for job in planned.jobs if job not in done]
    total = sum(job.entries for job in planned.jobs)
    told(f"{total:,} entries in {len(planned.jobs)} shards" + (f", {len(done)} of them done before" if done else ""))
    count = sum(job.entries for job in done)
    moved(count, total)
    for receipt in jobs.run(shards.make, [(files.uri, mark, job) for job in todo], kind, workers):
        done[receipt.job] = receipt
        count += receipt.job.entries
        moved(count, total)
    made = finish(files, planned, [done[job] for job in planned.jobs])
    files.delete(plan.FOLDER)
    return made


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
            names = [path for path in made["files"] if path.startswith(f"metadata/{split}-")]
            extra[f"{split}/metadata.jsonl"] = b"".join(files.read(name) for name in names)
            for name in names:
                del made["files"][name]
                files.delete(name)
    for name, data in extra.items():
        files.replace(name, data)
        made["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    made["tree"] = manifest.tree(made["files"])
    files.replace("README.md", card.card(made, _schema(files, made)).encode())
    files.replace(manifest.NAME, manifest.encode(made))
    return made


def _schema(files: Files, made: dict[str, Any]) -> pa.Schema | None:
    """The columns of the first Parquet shard."""
    shard = next((path for path in made["files"] if path.startswith("train/") and path.endswith(".parquet")), None)
    return read_table(files, shard, []).schema if shard else None


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
