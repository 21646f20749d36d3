"""What compaction costs as packs grow, and what reading one packed part costs: `python -m benchmarks.packs`.

    --parts N ...   sizes of one pack, in parts of 300 rows (default 250 500 1000 2000)

Twice each: on a local disk in seconds of processor time, and as an object store sees it, in requests and bytes (the
same files behind an interface in which nothing can be opened in place). Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.store import packs
from curate.store.files import LocalFiles
from curate.store.parts import Part, Version, encode, parts_of, read_parts

V = Version("size", "0123456789abcdef")
LOOKED_UP = 20


class Counted(LocalFiles):
    """Local files as an object store has them; counts requests and bytes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests = self.bytes = 0

    def local(self, path: str) -> None:
        return None

    def exists(self, path: str) -> bool:
        self.requests += 1
        return super().exists(path)

    def sizes(self, folder: str) -> dict[str, int]:
        self.requests += 1
        return super().sizes(folder)

    def read(self, path: str) -> bytes:
        return self._noted(super().read(path))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        return self._noted(super().read_range(path, start, length))

    def _noted(self, data: bytes) -> bytes:
        self.requests += 1
        self.bytes += len(data)
        return data


def main() -> None:
    """Print a table and the RESULT line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=int, nargs="+", default=[250, 500, 1000, 2000])
    found = [measure(count) for count in parser.parse_args().parts]
    print("RESULT " + json.dumps({"benchmark": "packs", "packs": found}))


def measure(count: int) -> dict[str, Any]:
    """Compact `count` parts, then read some of them."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        here, there = LocalFiles(Path(one)), Counted(Path(two))
        written = sum(write(files, count) for files in (here, there)) // 2
        began = time.process_time()
        packs.compact(here)
        compacted = time.process_time() - began
        began = time.process_time()
        look_up(here, count)
        read = (time.process_time() - began) / LOOKED_UP
        packs.compact(there)
        requests, fetched = there.requests, there.bytes
        there.requests = there.bytes = 0
        look_up(there, count)
        figures = {
            "parts": count, "mb": round(written / 1e6, 2), "compact_cpu_s": round(compacted, 2),
            "compact_requests_a_part": round(requests / count, 2), "compact_bytes_ratio": round(fetched / written, 2),
            "read_cpu_ms": round(1000 * read, 2), "read_requests": round(there.requests / LOOKED_UP, 2),
            "read_kb": round(there.bytes / LOOKED_UP / 1e3, 1),
        }  # fmt: skip
    print("  ".join(f"{name} {value:,}" for name, value in figures.items()), flush=True)
    return figures


def write(files: LocalFiles, count: int) -> int:
    """Parts of 300 made-up rows; bytes of all."""
    noise = np.random.default_rng(0)
    (files.root / V.folder).mkdir(parents=True)
    size = 0
    for i in range(count):
        shard = f"s{i:06d}"
        data = encode(pa.table({"shard": [shard] * 300, "row": list(range(300)), "x": noise.random(300)}))
        (files.root / Part(V, shard).path).write_bytes(data)  # without fsync: that is not what is measured
        size += len(data)
    return size


def look_up(files: LocalFiles, count: int) -> None:
    """Find and read some parts, as a run that goes on over a packed store does."""
    for i in range(LOOKED_UP):
        table = read_parts(files, parts_of(files, V, f"s{i * count // LOOKED_UP:06d}"))
        assert table is not None
        assert table.num_rows == 300


if __name__ == "__main__":
    main()
