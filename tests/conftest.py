"""Fixtures that several test files use."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from curate import pipeline
from curate.progress import Display
from curate.recipe import Recipe, from_tables

ROOT = Path(__file__).resolve().parent.parent
# Ray starts its workers at nice 15: beside another process of the tests they would hardly get a core.
os.environ.setdefault("RAY_worker_niceness", "0")
KILLS = int(os.environ.get("CURATE_KILLS", "3"))  # `make faults` kills more often

# Files that take longest, longest first: a worker that comes to one of them last would keep the others waiting.
LONG = ["cluster", "engine", "store", "train_ray", "train", "mix", "models", "s3_faults", "train_compare", "rate_web"]
LONG += ["rate_browser", "planner", "evaluate", "cogvlm_captioner", "cogvlm_benchmark", "synth", "endpoint", "dedup"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the long files to the front; pytest-xdist keeps that order with --no-loadscope-reorder."""
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures beside the checkout; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "images").is_dir():
        pytest.skip("no ../shared/images beside the checkout")
    return folder


@pytest.fixture(scope="session")
def pictures() -> Callable[[int, int], list[bytes]]:
    """`pictures(count, seed)`: small JPEGs, every one different, about half of them sharp and half of them flat."""

    def make(count: int, seed: int = 0) -> list[bytes]:
        made = []
        for i in range(count):
            noise = np.random.default_rng((seed, i))
            width, height = int(noise.integers(64, 120)), int(noise.integers(64, 120))
            ground = np.full((height, width, 3), noise.integers(40, 216, 3), np.uint8)
            if i % 2:
                ground = noise.integers(96, 160, (height, width, 3), np.uint8)  # louder costs the face finder 0.1 s
            out = io.BytesIO()
            Image.fromarray(ground).save(out, "JPEG", quality=90)
            made.append(out.getvalue())
        return made

    return make


def write_shards(folder: Path, pictures: Callable[[int, int], list[bytes]]) -> None:
    """Three Parquet shards with 20, 20 and 7 rows; row 3 of each is truncated, row 5 is empty."""
    folder.mkdir()
    for number, rows in enumerate((20, 20, 7)):
        data: list[bytes | None] = list(pictures(rows, number))
        data[3] = data[3][:200] if data[3] else None
        data[5] = b""
        table = pa.table(
            {
                "image": pa.array(data, pa.binary()),
                "caption": [f"caption {number}-{i}" for i in range(rows)],
                "license": ["cc0" if i % 3 else "cc-by" for i in range(rows)],
            }
        )
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=8)


def recipe_for(folder: Path) -> Recipe:
    """A recipe over `folder`/shards with the inline engine, no OCR and a policy that half of the rows pass."""
    return from_tables(
        {
            "input": {"uri": str(folder / "shards")},
            "store": {"uri": str(folder / "store")},
            "engine": {"kind": "inline", "range_rows": 6},
            "run": {"max_failed_share": 0.5},
            "sharpness": {"long_side_px": 64},  # no enlarging of the tiny pictures
            "photometry": {"luma_px": 64, "color_px": 64},
            "ocr": {"engine": "none"},
            "policy": {"sharp": "sharpness_tile >= 60", "faceless": "faces = 0"},
        }
    )


@pytest.fixture(scope="session")
def finished_once(
    tmp_path_factory: pytest.TempPathFactory,
    pictures: Callable[[int, int], list[bytes]],
    quiet: Callable[[], Display],
) -> Path:
    """A folder with shards and the store of a finished inline run over them, made once; tests get copies."""
    folder = tmp_path_factory.mktemp("finished")
    write_shards(folder / "shards", pictures)
    assert pipeline.run(recipe_for(folder), display=quiet()) == 0
    return folder


@pytest.fixture
def shards(tmp_path: Path, finished_once: Path) -> Path:
    """A folder of three small Parquet shards (see write_shards)."""
    return Path(shutil.copytree(finished_once / "shards", tmp_path / "shards"))


@pytest.fixture
def recipe(shards: Path) -> Recipe:
    """The recipe of recipe_for over `shards`; its store does not exist yet."""
    return recipe_for(shards.parent)


@pytest.fixture
def captioned(tmp_path: Path, pictures: Callable[[int, int], list[bytes]]) -> Callable[..., Recipe]:
    """`captioned(captions, section={...})`: a recipe over one shard with these raw captions and the engines named."""

    def make(captions: list[str | None], **sections: dict[str, object]) -> Recipe:
        (tmp_path / "captioned").mkdir()
        table = pa.table({"image": pa.array(pictures(len(captions), 7), pa.binary()), "caption": captions})
        pq.write_table(table, tmp_path / "captioned" / "a.parquet")
        without = {
            name: {"engine": "none"} for name in ("faces", "ocr", "aesthetic", "caption", "translate", "quality")
        }
        chosen = {name: {**without.get(name, {}), **keys} for name, keys in (without | sections).items()}
        return from_tables(
            {
                "input": {"uri": str(tmp_path / "captioned")},
                "store": {"uri": str(tmp_path / "store")},
                "engine": {"kind": "inline"},
                **chosen,
            }
        )

    return make


@pytest.fixture(scope="session")
def quiet() -> Callable[[], Display]:
    """Makes a display that writes nowhere."""
    return lambda: Display(Console(file=io.StringIO()))


def part_hashes(store: Path) -> dict[str, str]:
    """SHA-256 of every part of a local store, by path."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((store / "parts").rglob("*.parquet"))
    }


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small Ray on this machine for all tests that need it."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False
        )
    yield
    ray.shutdown()


@pytest.fixture
def finished_store(recipe: Recipe, finished_once: Path) -> Path:
    """The store of a finished run of `recipe`."""
    return Path(shutil.copytree(finished_once / "store", recipe.store.uri))


@pytest.fixture(scope="session")
def train_mix(tmp_path_factory: pytest.TempPathFactory, finished_once: Path) -> Path:
    """A mix of all rows of the finished run that decode, a third of them kept back: see tests/train_tiny.py."""
    from train_tiny import make_mix

    return make_mix(finished_once / "store", tmp_path_factory.mktemp("mix") / "mix")


@pytest.fixture(scope="session")
def train_base(train_mix: Path) -> Path:
    """Tiny models for it."""
    from curate.train import run, tiny

    return tiny.make_tiny(train_mix.parent / "base", lambda: run.captions([str(train_mix)]), 0)
