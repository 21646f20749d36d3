"""MixDataset: order, batches, crops, workers and resume, on a small export."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import mixed_store
import numpy as np
import pytest
import torch
from mixed_store import Row, picture

from curate.errors import CurateError, UsageError
from curate.mix import MixDataset
from curate.mix.export import export
from curate.mix.keyed import van_der_corput
from curate.mix.pixels import covering, cropped, fitted
from curate.mix.settings import Settings

SIZES = ((64, 64), (96, 64), (64, 128), (150, 140), (200, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of 61 rows as Parquet, in several shards."""
    folder = tmp_path_factory.mktemp("loader")
    rows = [Row(i, SIZES[i % 5], f"raw {i}", f"synthetic {i}", f"合成 {i}", "ab"[i % 2]) for i in range(61)]
    store = mixed_store.make(folder, [rows])
    asked = Settings(str(store), buckets="64x64,96x64,64x128", shard_rows=9, columns=("concept",), top="row % 9 = 0")
    export(asked, str(folder / "out"), "inline")
    export(dataclasses.replace(asked, format="webdataset"), str(folder / "tar"), "inline")
    return folder


def ids(data: Any) -> list[Any]:
    return [item["row_id"] for item in data]


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(folder: Path) -> None:
    data = MixDataset(folder / "out", decode=False)
    first, second = ids(data), ids(data)
    assert sorted(first) == sorted(second) == sorted({f"part-000:{i}" for i in range(61)})
    assert first != second and first != sorted(first)
    data.seek(0)
    assert ids(data) == first
    assert ids(MixDataset(folder / "out", decode=False, seed=5)) != first
    plain = ids(MixDataset(folder / "out", decode=False, shuffle=False))
    assert plain == [f"part-000:{i}" for i in range(61)]


def test_an_item_is_what_the_interface_says(folder: Path) -> None:
    data = MixDataset(folder / "out", columns=("concept",))
    for item in data:
        number = int(item["row_id"].split(":")[1])
        width, height = item["bucket"]
        assert item["image"].dtype == torch.uint8 and item["image"].shape == (3, height, width)
        assert item["original_size"] == SIZES[number % 5][::-1] and item["target_size"] == (height, width)
        wanted = {"raw": f"raw {number}", "en": f"synthetic {number}", "zh": f"合成 {number}"}
        assert item["caption"] == wanted["raw" if item["caption_source"] == "raw" else item["language"]]
        assert item["concept"] == "ab"[number % 2] and item["pool"] == ("natural" if number % 9 else "top")
        assert item["epoch"] == 0 and 0 <= item["index"] < 61


def test_the_crop_that_is_reported_is_the_one_that_was_cut(folder: Path) -> None:
    data = MixDataset(folder / "out")
    seen = set()
    for item in [*data, *data]:
        number = int(item["row_id"].split(":")[1])
        size, bucket = SIZES[number % 5], item["bucket"]
        assert item["resized"][::-1] == covering(size, bucket)
        top, left = item["crop"]
        again = fitted(picture(number, size), covering(size, bucket), (left, top), bucket)
        assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), again)
        assert 0 <= top <= item["resized"][0] - bucket[1] and 0 <= left <= item["resized"][1] - bucket[0]
        seen.add((item["row_id"], top, left))
    assert len(seen) > 61  # another crop in the other epoch
    centre = next(iter(MixDataset(folder / "out", crop="center")))
    assert centre["crop"] == tuple(np.subtract(centre["resized"], centre["target_size"]) // 2)


@pytest.mark.parametrize(
    ("size", "bucket", "wanted"),
    [((100, 100), (64, 64), (64, 64)), ((150, 140), (64, 64), (69, 64)), ((200, 64), (96, 64), (200, 64)),
     ((64, 200), (64, 128), (64, 200)), ((30, 20), (96, 64), (96, 64))],
)  # fmt: skip
def test_covering_keeps_the_aspect_and_just_covers(size: Any, bucket: Any, wanted: Any) -> None:
    assert covering(size, bucket) == wanted
    assert cropped(wanted, bucket, (0.999, 0.999)) == (wanted[0] - bucket[0], wanted[1] - bucket[1])
    assert cropped(wanted, bucket, (0.0, 0.0)) == (0, 0)


def test_mirrored_pictures_are_said_to_be(folder: Path) -> None:
    plain = {i["row_id"]: i["image"] for i in MixDataset(folder / "out")}
    flipped = list(MixDataset(folder / "out", flip=True))
    assert 15 < sum(item["flipped"] for item in flipped) < 46
    for item in flipped:
        image = item["image"].flip(2) if item["flipped"] else item["image"]
        assert torch.equal(image, plain[item["row_id"]])


@pytest.mark.parametrize("leftovers", ["base", "short", "drop"])
def test_batches_have_one_bucket_on_all_ranks_and_lose_only_what_is_counted(folder: Path, leftovers: Any) -> None:
    ranks = [
        MixDataset(folder / "out", batch_size=2, leftovers=leftovers, rank=rank, world=3, decode=False)
        for rank in range(3)
    ]
    assert len({data.steps(0) for data in ranks}) == 1
    steps = list(zip(*(list(data) for data in ranks), strict=True))
    assert len(steps) == ranks[0].steps(0)
    for step in steps:
        assert len({bucket for batch in step for bucket in batch["bucket"]}) == 1
        if leftovers != "short":
            assert all(len(batch["row_id"]) == 2 for batch in step)
    served = [row_id for step in steps for batch in step for row_id in batch["row_id"]]
    assert len(served) == len(set(served)) == 61 - ranks[0].left_over(0)
    assert ranks[0].left_over(0) == {"base": 1, "short": 0}.get(leftovers, ranks[0].left_over(0))
    if leftovers == "base":  # who is left over changes from epoch to epoch
        missing = {ranks[0].order(0).entries.sum()} | {ranks[0].order(e).entries.sum() for e in range(1, 5)}
        assert len(missing) > 1


def test_the_global_batch_does_not_depend_on_the_number_of_ranks(folder: Path) -> None:
    one = MixDataset(folder / "out", batch_size=4)
    two = [MixDataset(folder / "out", batch_size=2, rank=rank, world=2) for rank in range(2)]
    for whole, *halves in zip(one, *two, strict=True):
        assert whole["row_id"] == halves[0]["row_id"] + halves[1]["row_id"]
        assert whole["crop"] == halves[0]["crop"] + halves[1]["crop"]
        assert torch.equal(whole["image"], torch.cat([half["image"] for half in halves]))
    assert one.fingerprint == two[0].fingerprint == two[1].fingerprint


def test_a_rank_of_a_short_batch_may_get_nothing(folder: Path) -> None:
    data = [MixDataset(folder / "out", batch_size=7, leftovers="short", rank=rank, world=9) for rank in range(9)]
    last = [d.batch(0, d.steps(0) - 1) for d in data]
    assert 0 < sum(len(batch["row_id"]) for batch in last) < 63
    for batch in last:
        assert batch["image"].shape[0] == len(batch["row_id"]) == len(batch["caption"])
        assert set(batch) == set(last[0])


def test_random_access_is_what_the_iterator_yields(folder: Path) -> None:
    data = MixDataset(folder / "out", batch_size=3, rank=1, world=2)
    data.seek(4)
    for step, batch in enumerate(list(data)):
        again = data.batch(4, step)
        assert again["row_id"] == batch["row_id"] and torch.equal(again["image"], batch["image"])
    with pytest.raises(IndexError, match="step"):
        data.batch(4, data.steps(4))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_workers_do_not_change_the_order(folder: Path, batch_size: int | None) -> None:
    alone = [(b["row_id"], b["caption"]) for b in MixDataset(folder / "out", batch_size=batch_size, decode=False)]
    loader = MixDataset(folder / "out", batch_size=batch_size, decode=False).loader(2)
    assert [(b["row_id"], b["caption"]) for b in loader] == alone
    assert loader.state_dict()["epoch"] == 1


def test_a_loader_resumes_at_the_batch_that_was_not_handed_out(folder: Path) -> None:
    make = lambda: MixDataset(folder / "out", batch_size=4, decode=False).loader(2)  # noqa: E731
    whole = ids(make())
    loader = make()
    begun = [batch["row_id"] for batch in islice(loader, 3)]
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["step"] == 3 and len(json.dumps(state)) < 200
    again = make()
    again.load_state_dict(state)
    assert begun + ids(again) == whole


def test_the_state_of_another_mix_is_refused(folder: Path) -> None:
    state = MixDataset(folder / "out", batch_size=4).state_dict()
    MixDataset(folder / "out", batch_size=2, world=2).load_state_dict(state)
    for others in ({"batch_size": 3}, {"batch_size": 4, "seed": 9}, {"batch_size": 4, "crop": "center"}):
        with pytest.raises(UsageError, match="another mix"):
            MixDataset(folder / "out", **others).load_state_dict(state)


def test_webdataset_and_parquet_serve_the_same(folder: Path) -> None:
    one, other = (MixDataset(folder / name, batch_size=5, columns=("concept",)) for name in ("out", "tar"))
    for a, b in zip(one, other, strict=True):
        assert {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
        assert torch.equal(a["image"], b["image"])


def test_other_buckets_change_pictures_and_not_captions(folder: Path) -> None:
    own = {item["row_id"]: item["caption"] for item in MixDataset(folder / "out", decode=False)}
    square = list(MixDataset(folder / "out", buckets="square-48"))
    assert {item["image"].shape for item in square} == {(3, 48, 48)}
    assert {item["row_id"]: item["caption"] for item in square} == own


def test_without_pixels_all_else_is_the_same(folder: Path) -> None:
    with_them = list(MixDataset(folder / "out", batch_size=4))
    without = list(MixDataset(folder / "out", batch_size=4, decode=False))
    assert all(batch["image"] is None for batch in without)
    assert [{**batch, "image": None} for batch in with_them] == without


def test_a_dataset_travels_to_another_process(folder: Path) -> None:
    data = MixDataset(folder / "out", batch_size=4)
    first = next(iter(data))
    again = next(iter(pickle.loads(pickle.dumps(MixDataset(folder / "out", batch_size=4)))))
    assert torch.equal(first["image"], again["image"])


def test_both_languages_and_sources_are_seen_in_four_epochs(folder: Path) -> None:
    data = MixDataset(folder / "out", decode=False)
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(4):
        seen.update((item["row_id"], item["caption"].split()[0]) for item in data)
    assert sum(count == 2 for (_, kind), count in seen.items() if kind == "raw") > 50
    assert sum(count == 1 for (_, kind), count in seen.items() if kind == "合成") > 45


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"split": "test"}, "train"), ({"rank": 2, "world": 2}, "rank 2"), ({"batch_size": 0}, "batch_size"),
     ({"crop": "left"}, "crop"), ({"buckets": "huge"}, "--buckets")],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(folder: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        MixDataset(folder / "out", **arguments)


def test_a_column_that_was_not_exported_is_named(folder: Path) -> None:
    for name in ("out", "tar"):
        with pytest.raises(UsageError, match="sharpness"):
            next(iter(MixDataset(folder / name, columns=("sharpness",))))


def test_a_damaged_shard_is_one_line(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder / "out", tmp_path / "out")
    for path in (tmp_path / "out" / "train").iterdir():
        data = path.read_bytes()
        path.write_bytes(data.replace(b"\xff\xd8\xff\xe0", b"\0\0\0\0"))
    with pytest.raises(CurateError, match=r"row part-000:.*curate mix verify"):
        list(MixDataset(tmp_path / "out"))


def test_a_resized_set_serves_no_squeezed_picture_and_says_what_it_cut(tmp_path: Path) -> None:
    from PIL import Image

    def striped(i: int) -> bytes:  # brightness says where a pixel came from
        pixels = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[:, None], 128, axis=1)
        out = io.BytesIO()
        Image.fromarray(np.stack([pixels] * 3, axis=2)).save(out, "PNG")
        return out.getvalue() + bytes([i])

    rows = [Row(i, (64, 64) if i % 2 else (64, 128)) for i in range(14)]
    store = mixed_store.make(tmp_path, [rows], lambda row: striped(row.seed) if row.size[1] == 128 else None)
    asked = Settings(str(store), buckets="64x64,64x128", resize=True)
    export(asked, str(tmp_path / "out"), "inline")
    found = {}
    for batch in MixDataset(tmp_path / "out", batch_size=4, leftovers="base"):
        for i, row_id in enumerate(batch["row_id"]):
            found[row_id, batch["bucket"][i]] = batch["image"][i], batch["resized"][i], batch["crop"][i]
    tall = [values for (row_id, bucket), values in found.items() if bucket == (64, 64) and not int(row_id[9:]) % 2]
    assert tall
    for image, resized, crop in tall:
        assert resized == (128, 64) and crop == (32, 0)
        shades = image[0].float().mean(dim=1)
        # 255 shades over 128 lines: 64 lines of the middle show the middle half of them, a squeezed picture all.
        assert abs(float(shades[0]) - 64) < 4 and abs(float(shades[-1]) - 191) < 4


def test_by_default_no_row_is_lost_in_an_epoch(folder: Path) -> None:
    data = MixDataset(folder / "out", batch_size=4, decode=False)
    served = [row_id for batch in data for row_id in batch["row_id"]]
    assert len(served) == len(set(served)) == 61 and data.left_over(0) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_data_loader_goes_on_to_the_next_epoch(folder: Path, workers: int) -> None:
    data = MixDataset(folder / "out", batch_size=4, decode=False)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)
    passes = [list(loader) for _ in range(3)]
    assert [{epoch for batch in batches for epoch in batch["epoch"]} for batches in passes] == [{0}, {1}, {2}]
    data.seek(1)
    assert [batch["row_id"] for batch in passes[1]] == [batch["row_id"] for batch in loader]


def test_its_length_is_the_number_of_batches(folder: Path) -> None:
    data = MixDataset(folder / "out", batch_size=4, decode=False)
    assert len(data) == len(torch.utils.data.DataLoader(data, batch_size=None)) == len(list(data))
    assert len(MixDataset(folder / "out", rank=1, world=2)) == 30


@pytest.mark.parametrize(
    ("change", "says"),
    [({"epoch": -1}, "from 0"), ({"step": -1}, "from 0"), ({"step": 999}, "step 999"), ({"more": 1}, "no state")],
)
def test_a_state_that_cannot_be_is_refused(folder: Path, change: dict[str, Any], says: str) -> None:
    data = MixDataset(folder / "out", batch_size=4)
    with pytest.raises(UsageError, match=says):
        data.load_state_dict(data.state_dict() | change)
    with pytest.raises(UsageError, match="no state"):
        data.load_state_dict({})
    with pytest.raises(ValueError, match="start at 0"):
        van_der_corput(-1)
