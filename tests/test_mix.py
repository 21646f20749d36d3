"""`curate mix`: export, manifest, verify, layouts; properties over random stores."""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import mixed_store
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mixed_store import Row, picture
from typer.testing import CliRunner

from curate import cli
from curate.errors import CurateError, UsageError
from curate.mix import MixDataset, buckets, manifest, plan, shards
from curate.mix.export import export, finish
from curate.mix.settings import Settings
from curate.mix.verify import verify
from curate.store.files import LocalFiles, open_files

SIZES = ((64, 64), (96, 64), (64, 128), (70, 66), (200, 64))
ROWS = st.builds(
    Row,
    seed=st.integers(0, 30),
    size=st.sampled_from(SIZES),
    raw=st.sampled_from([None, "", "a dog in Beijing", "一只狗", "an old bridge"]),
    en=st.sampled_from([None, "a synthetic dog", "  "]),
    zh=st.sampled_from([None, "合成的狗"]),
    concept=st.sampled_from(["animals", "people", "other"]),
    group=st.sampled_from([None, None, 1, 2]),
)


def read(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """All entries of a Parquet export, in order."""
    return [row for path in sorted((folder / split).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an export."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def usable(row: Row) -> tuple[bool, bool]:
    """Whether a row has a raw and a synthetic caption."""
    return bool((row.raw or "").strip()), bool((row.en or "").strip() or (row.zh or "").strip())


# Without shrinking: an example takes a second or more.
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(
    rows=st.lists(st.lists(ROWS, min_size=1, max_size=25), min_size=1, max_size=3),
    ratio=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    mode=st.sampled_from(["quota", "quota", "coin"]),
    validation=st.sampled_from([0.0, 0.3]),
    format=st.sampled_from(["parquet", "webdataset"]),
    world=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_over_random_stores_a_mix_is_exact_replayable_and_whole(
    rows: list[list[Row]], ratio: float, mode: str, validation: float, format: str, world: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = Settings(
            str(mixed_store.make(folder, [[Row(), *shard] for shard in rows])), ratio, mode=mode, epochs=3,
            validation=validation, format=format, seed=seed, shard_rows=11, buckets="64x64,96x64,64x128",
        )  # fmt: skip
        try:
            made = export(asked, str(folder / "one"), "inline")
        except UsageError as why:  # all content may fall to validation
            assert "nothing to train on" in str(why) and validation
            return
        assert verify(str(folder / "one"), "inline") == []

        # The same bytes whoever does which job when.
        files = LocalFiles(folder / "two")
        planned = plan.make(asked, files)
        receipts = [shards.make(files.uri, planned.fingerprint, job) for job in reversed(planned.jobs)]
        finish(files, planned, receipts)
        files.delete(plan.FOLDER)
        assert hashes(folder / "one") == hashes(folder / "two")

        by_id = {f"part-{n:03d}:{i}": row for n, shard in enumerate(rows) for i, row in enumerate([Row(), *shard])}
        wanted = {row_id for row_id, row in by_id.items() if any(usable(row))}
        served: dict[str, set[str]] = {}
        for split in made["splits"]:
            for epoch in range(3):
                got = [item for rank in range(world) for item in epoch_of(folder / "one", split, epoch, rank, world)]
                served.setdefault(split, set()).update(item["row_id"] for item in got)
                assert len(got) == len({item["row_id"] for item in got})  # none repeated in an epoch
                assert {item["row_id"] for item in got} == served[split]  # none lost in an epoch
                assert sorted(item["index"] for item in got) == list(range(len(got)))
                check_ratio(got, by_id, Fraction(str(ratio)) if mode == "quota" else None)
        assert set().union(*served.values()) == wanted
        groups = [{by_id[row_id].group for row_id in ids} - {None} for ids in served.values()]
        assert len(groups) == 1 or not groups[0] & groups[1]  # copies never straddle the splits

        # Resume in the middle equals no interruption, and the export's third epoch is the loader's.
        whole = list(keys(MixDataset(folder / "one", decode=False, batch_size=2, leftovers="short")))
        first = MixDataset(folder / "one", decode=False, batch_size=2, leftovers="short")
        begun = list(islice(keys(first), len(whole) // 2))
        state = json.loads(json.dumps(first.state_dict()))
        assert len(json.dumps(state)) < 200
        again = MixDataset(folder / "one", decode=False, batch_size=2, leftovers="short")
        again.load_state_dict(state)
        assert begun + list(keys(again)) == whole
        if format == "parquet":
            third = {row["row_id"]: row["caption"] for row in read(folder / "one") if row["epoch"] == 2}
            assert third == {item["row_id"]: item["caption"] for item in epoch_of(folder / "one", "train", 2, 0, 1)}


def epoch_of(folder: Path, split: str, epoch: int, rank: int, world: int) -> list[dict[str, Any]]:
    """What one rank is served in an epoch, without pixels."""
    data = MixDataset(folder, split=split, rank=rank, world=world, decode=False)
    data.seek(epoch)
    return list(data)


def keys(data: MixDataset) -> Iterator[list[tuple[str, str]]]:
    """Row ids and captions of each batch."""
    return (list(zip(batch["row_id"], batch["caption"], strict=True)) for batch in data)


def check_ratio(items: Sequence[dict[str, Any]], by_id: dict[str, Row], ratio: Fraction | None) -> None:
    """Captions are the row's own, and quotas hold overall, in every bucket and in every concept."""
    raw: Counter[Any] = Counter()
    both: Counter[Any] = Counter()
    for item in items:
        row = by_id[item["row_id"]]
        texts = {"raw": [row.raw], "synthetic": [row.en, row.zh]}[item["caption_source"]]
        assert item["caption"] in [(text or "").strip() for text in texts]
        assert item["language"] == ("zh" if "狗" in item["caption"] or "合" in item["caption"] else "en")
        if all(usable(row)):
            for label in ("all", item["bucket"], row.concept):
                both[label] += 1
                raw[label] += item["caption_source"] == "raw"
    if ratio is not None:
        assert all(abs(raw[label] - ratio * count) < 1 for label, count in both.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 60 rows with everything, and a plain export of it in `plain`."""
    folder = tmp_path_factory.mktemp("mix")
    rows = [Row(i, SIZES[i % 5], f"raw {i} of Beijing", f"synthetic {i}", f"合成 {i}", "ab"[i % 2]) for i in range(60)]
    mixed_store.make(folder, [rows[:25], rows[25:]])
    export(plain(folder), str(folder / "plain"), "inline")
    return folder


def plain(folder: Path, **others: Any) -> Settings:
    """Settings for the store in `folder`, with small buckets and several shards."""
    return Settings(**{"store": str(folder / "store"), "buckets": "64x64,96x64,64x128", "shard_rows": 16} | others)


def test_columns_come_in_the_promised_order(folder: Path) -> None:
    names = pq.read_schema(next((folder / "plain" / "train").glob("*.parquet"))).names
    assert names[:9] == [
        "row_id", "image", "caption", "caption_source", "language", "epoch", "bucket_width", "bucket_height", "pool",
    ]  # fmt: skip


def test_pictures_are_the_original_bytes(folder: Path) -> None:
    rows = read(folder / "plain")
    assert len(rows) == 60
    assert {row["image"] for row in rows} == {picture(i, SIZES[i % 5]) for i in range(60)}


@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_workers_and_engine_do_not_change_a_byte(folder: Path, tmp_path: Path, kind: str, request: Any) -> None:
    if kind == "ray":
        request.getfixturevalue("ray_cluster")
    export(plain(folder), str(tmp_path / "out"), kind, 2)
    assert hashes(tmp_path / "out") == hashes(folder / "plain")


def test_a_second_run_has_nothing_to_do_and_another_mix_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "plain", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    said: list[str] = []
    export(plain(folder), str(tmp_path / "out"), "inline", told=said.append)
    assert "already" in said[-1] and before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    with pytest.raises(UsageError, match="another mix"):
        export(plain(folder, seed=9), str(tmp_path / "out"), "inline")


def test_an_export_that_failed_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    rows = [Row(i, (64, 64), f"raw {i}", f"synthetic {i}", None) for i in range(40)]
    mixed_store.make(source, [rows[:20], rows[20:]])
    second = source / "shards" / "part-001.parquet"
    second.rename(source / "hidden")
    with pytest.raises(CurateError, match="part-001"):
        export(plain(source), str(tmp_path / "out"), "inline")
    done = {p.name: p.stat().st_ino for p in (tmp_path / "out" / "train").iterdir()}
    assert done and not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(UsageError, match="no finished mix"):
        MixDataset(tmp_path / "out")
    with pytest.raises(UsageError, match="another mix"):
        export(plain(source, seed=5), str(tmp_path / "out"), "inline")
    (source / "hidden").rename(second)
    moved: list[int] = []
    export(plain(source), str(tmp_path / "out"), "inline", moved=lambda at, of: moved.append(at))
    assert moved[0] > 0
    assert {name: (tmp_path / "out" / "train" / name).stat().st_ino for name in done} == done
    export(plain(source), str(tmp_path / "whole"), "inline")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_row_whose_picture_is_gone_stops_the_export_with_its_name(tmp_path: Path) -> None:
    mixed_store.make(tmp_path, [[Row(1), Row(2)]])
    shard = tmp_path / "shards" / "part-000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.set_column(0, "image", pa.array([b"", b""], pa.binary())), shard)
    with pytest.raises(CurateError, match="part-000:0 cannot be read any more"):
        export(plain(tmp_path), str(tmp_path / "out"), "inline")


def test_verify_finds_what_was_tampered_with(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def problems(change: Any) -> str:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder / "plain", out)
        change(sorted((out / "train").iterdir())[0])
        return "\n".join(verify(str(out), "inline"))

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def rewrite(path: Path, column: str, value: Any) -> None:
        table = pq.read_table(path)
        values = [value, *table[column].to_pylist()[1:]]
        at = table.schema.get_field_index(column)
        changed = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
        index_path = out / "index" / f"{path.stem}.parquet"
        index = pq.read_table(index_path)
        pq.write_table(changed, path, compression="NONE", row_group_size=table.num_rows, use_dictionary=["pool"])
        images = changed["image"].to_pylist()
        with path.open("rb") as file:
            start = pq.read_metadata(path).row_group(0).column(1).data_page_offset
            offsets = shards.spans(file, start, [len(i) for i in images], [i[:32] for i in images])
        index = index.set_column(index.schema.get_field_index("offset"), "offset", pa.array(offsets, pa.int64()))
        pq.write_table(index, index_path)
        forge(out)

    assert problems(lambda path: None) == ""
    assert "has changed" in problems(flip)
    assert "is missing" in problems(lambda path: path.unlink())
    assert "not in the manifest" in problems(lambda path: shutil.copy(path, path.with_name("more.parquet")))
    # A forger who mends all hashes is found by what the files say.
    assert problems(lambda path: rewrite(path, "variant", 0)) == ""
    assert "another caption" in problems(lambda path: rewrite(path, "caption", "an advertisement"))
    assert "not the original" in problems(lambda path: rewrite(path, "image", picture(99, (64, 64))))
    assert "another bucket" in problems(lambda path: rewrite(path, "bucket_width", 999))


def forge(out: Path) -> None:
    """Make the hashes of a manifest those of the files."""
    found = json.loads((out / "manifest.json").read_text("utf-8"))
    for path in found["files"]:
        found["files"][path]["sha256"] = hashlib.sha256((out / path).read_bytes()).hexdigest()
    found["tree"] = manifest.tree(found["files"])
    (out / "manifest.json").write_bytes(manifest.encode(found))


def test_verify_finds_a_forged_count(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "plain", tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"raw": 30', '"raw": 31', 1), "utf-8")
    assert verify(str(tmp_path / "out"), "inline") == [
        "train, epoch 0: the manifest's counts are not those of the shards"
    ]


def test_the_manifest_proves_what_was_asked(folder: Path) -> None:
    found = json.loads((folder / "plain" / "manifest.json").read_text("utf-8"))
    got = found["splits"]["train"]["achieved"]["0"]
    assert (got["entries"], got["raw"], got["synthetic"], got["raw_share"]) == (60, 30, 30, 0.5)
    assert got["by_caption"] == {"raw en": 30, "synthetic en": 15, "synthetic zh": 15}
    assert sum(of["entries"] for of in got["by_bucket"].values()) == 60
    assert set(got["by_concept"]) == {"a", "b"}
    assert found["settings"]["seed"] == 0 and "[input]" in found["recipe"]
    assert {o["operator"] for o in found["operators"]} == set(mixed_store.VERSIONS)
    assert len(found["tree"]) == 64


def test_proper_nouns_that_only_raw_captions_have_are_listed(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((folder / "plain" / "proper_nouns.csv").read_text("utf-8"))))
    assert rows[0] == {"proper_noun": "Beijing", "rows": "60", "example_row_id": "part-000:0"}


def test_where_and_unknown_columns_are_checked_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = export(plain(folder, where="row < 10", columns=("row", "shard")), str(out), "inline")
    assert found["splits"]["train"]["rows"] == 20
    assert {row["row"] for row in read(out)} == set(range(10))
    for wrong in ({"where": "widht > 3"}, {"where": "1 +"}, {"columns": ("nothing",)}, {"top": "nothing = 1"}):
        with pytest.raises(UsageError, match="--"):
            export(plain(folder, **wrong), str(tmp_path / "other"), "inline")
    with pytest.raises(UsageError, match="no row is left"):
        export(plain(folder, where="FALSE"), str(tmp_path / "other"), "inline")
    assert not (tmp_path / "other").exists()


def test_only_the_languages_that_were_asked_for(folder: Path, tmp_path: Path) -> None:
    found = export(plain(folder, languages=(("zh", 1.0),)), str(tmp_path / "out"), "inline")
    got = found["splits"]["train"]["achieved"]["0"]
    assert got["by_caption"] == {"synthetic zh": 60}  # the raw captions are English
    assert got["fallback_synthetic"] == 60 and got["raw_share"] is None


def test_a_caption_with_a_reason_against_it_is_never_used(tmp_path: Path) -> None:
    rows = [
        Row(i, (64, 64), f"raw {i}", f"english {i}", f"汉 {i}", bad=("raw", "en", "zh", "")[i % 4]) for i in range(40)
    ]
    store = mixed_store.make(tmp_path, [rows])
    found = export(Settings(str(store), buckets="64x64", epochs=4), str(tmp_path / "out"), "inline")
    for row in read(tmp_path / "out"):
        said = {"r": "raw", "e": "en", "汉": "zh"}[row["caption"][0]]
        assert said != rows[int(row["row_id"].split(":")[1])].bad
    got = found["splits"]["train"]["achieved"]["0"]
    assert (got["raw"], got["synthetic"], got["fallback_synthetic"]) == (15, 15, 10)


def test_rows_of_the_highest_tier_come_as_often_as_their_weight_says(folder: Path, tmp_path: Path) -> None:
    found = export(plain(folder, top="row % 5 = 0", top_weight=2.5), str(tmp_path / "out"), "inline")
    rows = read(tmp_path / "out")
    times = Counter(row["row_id"] for row in rows)
    top = {row["row_id"] for row in rows if row["pool"] == "top"}
    assert len(top) == 12
    assert {times[row_id] for row_id in top} == {2, 3} and {times[r] for r in set(times) - top} == {1}
    assert found["splits"]["train"]["achieved"]["0"]["by_pool"]["top"]["entries"] == sum(times[r] for r in top)
    served = [(item["row_id"], item["copy"]) for item in MixDataset(tmp_path / "out", decode=False)]
    assert len(served) == len(set(served)) == len(rows)
    assert verify(str(tmp_path / "out"), "inline") == []


def test_weights_of_balance_and_copies_of_dedup_count(tmp_path: Path) -> None:
    rows = [Row(i, weight=[0.0, 1.0, 3.0][i % 3]) for i in range(30)]
    store = mixed_store.make(tmp_path, [rows])
    export(Settings(str(store), buckets="64x64"), str(tmp_path / "out"), "inline")
    times = Counter(int(row["row_id"].split(":")[1]) for row in read(tmp_path / "out"))
    assert times == {i: i % 3 * 2 - 1 for i in range(30) if i % 3}
    export(Settings(str(store), buckets="64x64", ignore_policy=True), str(tmp_path / "all"), "inline")
    assert len(read(tmp_path / "all")) == 30


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """A folder of rendered text as `curate synth` writes it; one row is infeasible."""
    (tmp_path / "synth").mkdir()
    count = 40
    table = pa.table(
        {
            "image": pa.array([picture(1000 + i, (64, 64)) for i in range(count - 1)] + [None], pa.binary()),
            "caption": [f"文字 {i}" for i in range(count)],
            "synth_caption_zh": [f"写着“你好{chr(0x4E00 + i)}”的牌子" for i in range(count)],
            "synth_caption_en": [f"a sign that says 你好{i}" for i in range(count)],
            "synth_texts": [[f"你好{chr(0x4E00 + i)}"] for i in range(count)],
            "synth_reason": [None] * (count - 1) + ["too long"],
        }
    )
    pq.write_table(table, tmp_path / "synth" / "synth-00000.parquet")
    return tmp_path / "synth"


@pytest.mark.parametrize(("cap", "most"), [(0.1, 6), (0.25, 20), (0.9, 39)])
def test_rendered_text_is_capped(folder: Path, tmp_path: Path, rendered: Path, cap: float, most: int) -> None:
    asked = plain(folder, text=str(rendered), text_cap=cap)
    found = export(asked, str(tmp_path / "out"), "inline")
    rows = read(tmp_path / "out")
    text = [row for row in rows if row["pool"] == "text"]
    assert len(text) == most <= cap * len(rows) or most == 39
    assert {row["caption_source"] for row in text} == {"synthetic"}
    assert all(row["row_id"].startswith("text/synth-00000:") for row in text)
    assert found["characters"] == len({c for row in text for c in row["captions_zh"][0]} - set("写着“”的牌子"))
    assert verify(str(tmp_path / "out"), "inline") == []


def test_the_export_loads_in_datasets(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    export(plain(folder, validation=0.2), str(tmp_path / "out"), "inline")
    import datasets

    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert sorted(found) == ["train", "validation"]
    rows = {row["row_id"]: row for split in ("train", "validation") for row in read(tmp_path / "out", split)}
    assert sum(len(split) for split in found.values()) == len(rows) == 60
    for item in found["validation"]:
        own = rows[item["row_id"]]
        assert item["image"].size == (own["width"], own["height"]) and item["caption"] == own["caption"]
    raw = found["validation"].cast_column("image", datasets.Image(decode=False))[0]
    assert raw["image"]["bytes"] == rows[raw["row_id"]]["image"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_export_loads_in_webdataset(folder: Path, tmp_path: Path) -> None:
    export(plain(folder, format="webdataset"), str(tmp_path / "out"), "inline")
    import webdataset

    shards_ = sorted(str(path) for path in (tmp_path / "out" / "train").glob("*.tar"))
    assert len(shards_) == 4
    found = list(webdataset.WebDataset(shards_, shardshuffle=False))
    rows = {row["row_id"]: row for row in read(folder / "plain")}
    assert len(found) == 60
    for sample in found:
        values = json.loads(sample["json"])
        assert sample["jpg"] == rows[values["row_id"]]["image"]
        assert sample["txt"].decode() == values["caption"] == rows[values["row_id"]]["caption"]
    gc.collect()  # webdataset leaves its archives to the collector


def test_the_folder_layout_is_what_kohya_and_imagefolder_read(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(plain(folder, format="folder", top="row < 3"), str(out), "inline")
    assert sorted(path.name for path in (out / "train").iterdir()) == ["1_natural", "1_top", "metadata.jsonl"]
    pictures = sorted((out / "train").glob("*/*.jpg"))
    assert len(pictures) == 60
    lines = [json.loads(line) for line in (out / "train" / "metadata.jsonl").read_text("utf-8").splitlines()]
    by_file = {line["file_name"]: line["text"] for line in lines}
    for path in pictures:
        assert path.with_suffix(".txt").read_text("utf-8") == by_file[path.relative_to(out / "train").as_posix()]
    assert verify(str(out), "inline") == []
    pictures[0].write_bytes(b"other")
    assert [p for p in verify(str(out), "inline") if "has changed" in p]
    import datasets

    found = datasets.load_dataset("imagefolder", data_dir=str(out / "train"), cache_dir=str(tmp_path / "c"))["train"]
    assert len(found) == 60 and set(found["text"]) == set(by_file.values())
    with pytest.raises(UsageError, match="other trainers"):
        MixDataset(out)


def test_a_resized_export_has_pictures_of_bucket_size(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    export(plain(folder, resize=True), str(tmp_path / "out"), "inline")
    for row in read(tmp_path / "out"):
        assert Image.open(io.BytesIO(row["image"])).size == (row["bucket_width"], row["bucket_height"])
    item = next(iter(MixDataset(tmp_path / "out", crop="random")))
    assert item["image"].shape == (3, *item["target_size"])
    room = [a - b for a, b in zip(item["resized"], item["target_size"], strict=True)]
    assert list(item["crop"]) == [side // 2 for side in room]
    assert verify(str(tmp_path / "out"), "inline") == []


def test_the_command_makes_and_verifies(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = str(tmp_path / "out")
    store = str(folder / "store")
    done = runner.invoke(cli.app, ["mix", store, "-o", out, "--engine", "inline", "--ratio", "0.25", "--seed", "3"])
    assert done.exit_code == 0 and "0.2500" in done.output
    assert runner.invoke(cli.app, ["mix", "verify", out, "--engine", "inline"]).exit_code == 0
    (tmp_path / "out" / "proper_nouns.csv").unlink()
    broken = runner.invoke(cli.app, ["mix", "verify", out, "--engine", "inline"])
    assert isinstance(broken.exception, CurateError) and "proper_nouns.csv is missing" in broken.output
    for wrong in (["mix", store], ["mix", store, "x", "-o", out], ["mix", store, "-o", out, "--engine", "slurm"]):
        assert isinstance(runner.invoke(cli.app, wrong).exception, UsageError)


def test_old_versions_of_captions_rotate_when_asked(tmp_path: Path) -> None:
    store = mixed_store.make(tmp_path, [[Row(i, en=f"new {i}", zh=None) for i in range(20)]])
    files = LocalFiles(store)
    old = dict(mixed_store.VERSIONS) | {"caption": type(mixed_store.VERSIONS["caption"])("caption", "f" * 16)}
    before, mixed_store.VERSIONS["caption"] = mixed_store.VERSIONS["caption"], old["caption"]
    try:
        rows = [Row(i, en=f"old {i}", zh=None) for i in range(20)]
        table = pq.read_table(next((store / "parts" / f"input@{0:016x}").glob("*.parquet")))
        mixed_store.publish_rows(files, "part-000", rows, table.drop_columns(["shard", "row", "error", "message"]))
    finally:
        mixed_store.VERSIONS["caption"] = before
    export(Settings(str(store), 0.0, synthetic="all", buckets="64x64", epochs=9), str(tmp_path / "out"), "inline")
    said: dict[str, set[str]] = {}
    for row in read(tmp_path / "out"):
        said.setdefault(row["row_id"], set()).add(row["caption"].split()[0])
    assert all(words == {"old", "new"} for words in said.values())


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3 server on loopback with an empty bucket, and the environment that points at it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_ALLOW_HTTP="true", AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test", AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1",
    )  # fmt: skip
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="bucket")
    client.close()
    yield "s3://bucket"
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_an_object_store_holds_and_serves_the_same_bytes(folder: Path, tmp_path: Path, s3: str, format: str) -> None:
    uri = f"{s3}/{format}"
    export(plain(folder, format=format), uri, "inline")
    export(plain(folder, format=format), str(tmp_path / "local"), "inline")
    files = open_files(uri)
    local = hashes(tmp_path / "local")
    assert {path: hashlib.sha256(files.read(path)).hexdigest() for path in files.list("")} == local
    assert verify(uri, "inline") == []
    remote = list(MixDataset(uri, batch_size=4))
    here = list(MixDataset(tmp_path / "local", batch_size=4))
    assert [batch["caption"] for batch in remote] == [batch["caption"] for batch in here]
    assert all(np.array_equal(a["image"].numpy(), b["image"].numpy()) for a, b in zip(remote, here, strict=True))


def test_named_buckets_are_parsed_as_sizes() -> None:
    assert buckets.parse("square-512") == ((512, 512),)
    assert buckets.parse("512x512, 640x448") == ((512, 512), (640, 448))
