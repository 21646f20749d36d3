"""What the tests of the trainer share: a small mix, and recipes over it. Everything is real, and small."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from curate.mix.export import export
from curate.mix.settings import Settings
from curate.train.recipe import Recipe, from_tables

BUCKETS = "32x32,48x32"
STEPS = 6


def make_mix(store: Path, out: Path, **settings: Any) -> Path:
    """A mix of all rows that decode, a third of them kept back."""
    chosen = {"ratio": 0.5, "validation": 0.34, "ignore_policy": True, "buckets": BUCKETS, **settings}
    export(Settings(store=str(store), **chosen), str(out), kind="inline")
    return out


def tables(out: Path, mix: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """The tables of a recipe of STEPS steps."""
    found: dict[str, Any] = {
        "output": {"uri": str(out)},
        "data": {"mix": str(mix), "cache": str(mix.parent / "cache"), "prefetch": 2},
        "train": {"batch": 4, "lr": 1e-3, "ema": 0.9},
        "checkpoint": {"every": 2, "export": False},
        "measure": {"rows": 2, "every": 0, "grid_seeds": 0},
        "log": {"every": 1},
        "phase": [{"steps": STEPS, "buckets": BUCKETS}],
    }
    for name, section in sections.items():
        found[name] = found[name] | section if isinstance(found.get(name), dict) else section
    return found


def recipe(out: Path, mix: Path, **sections: Any) -> Recipe:
    """A recipe of STEPS steps over `mix`."""
    return from_tables(tables(out, mix, **sections))


def console() -> Console:
    """A console that writes nowhere."""
    return Console(file=io.StringIO(), width=200)


def train_in_process(wanted: Recipe, rank: int = 0, world: int = 1, port: int = 0) -> None:
    """The body of a child process: one rank of a run."""
    from curate.train import run

    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run.run(wanted, console())
