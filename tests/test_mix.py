"""`curate mix`: export, manifest, verify, layouts; properties over random stores."""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
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
from blake3 import blake3
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mixed_store import Row, picture
from small_ledger import Clock, people
from typer.testing import CliRunner

from curate import cli
from curate.dedup import Settings as Settings_of_dedup
from curate.dedup import dedup
from curate.errors import CurateError, UsageError
from curate.mix import MixDataset, buckets, card, manifest, plan, shards, sources
from curate.mix.export import export, finish
from curate.mix.jobs import Workers
from curate.mix.settings import Settings
from curate.mix.verify import verify
from curate.rate import campaign, queue, votes
from curate.rate.ledger import Ledger
from curate.read import pages
from curate.store import Store
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
    weight=st.sampled_from([None, None, 0.0, 1.0, 1.5]),
    bad=st.sampled_from(["", "", "", "raw", "en", "zh"]),
    seen=st.sampled_from([True, True, True, False]),
    pooled=st.sampled_from([(), (), ("a dog in Beijing", "an old bridge")]),
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


def said(row: Row, bad: set[str]) -> tuple[set[str], set[str]]:
    """The raw and the synthetic captions that a row may show; `bad` are captions with a reason of rows of its group."""
    texts = {kind: (getattr(row, kind) or "").strip() for kind in ("raw", "en", "zh") if kind != row.bad}
    pooled = {text for text in row.pooled if text not in bad}
    return {texts.get("raw", ""), *pooled} - {""}, {texts.get("en", ""), texts.get("zh", "")} - {""}


def usable(row: Row, bad: set[str]) -> tuple[bool, bool]:
    """Whether a row has a raw and a synthetic caption."""
    raw, synthetic = said(row, bad)
    return bool(raw), bool(synthetic)


def bad_of(rows: dict[str, Row]) -> dict[str, set[str]]:
    """For each row the raw captions with a reason against them in its group."""
    named = {row_id: row_id if row.group is None or not row.seen else str(row.group) for row_id, row in rows.items()}
    bad: dict[str, set[str]] = {}
    for row_id, row in rows.items():
        if row.bad == "raw" and row.raw is not None:
            bad.setdefault(named[row_id], set()).add(row.raw)
    return {row_id: bad.get(name, set()) for row_id, name in named.items()}


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
    most=st.sampled_from([0, 0, 0, 20]),
    drawn=st.sampled_from([0, 0, 15]),
    resize=st.sampled_from([False, False, True]),
)
def test_over_random_stores_a_mix_is_exact_replayable_and_whole(
    rows: list[list[Row]], ratio: float, mode: str, validation: float, format: str, world: int, seed: int, most: int,
    drawn: int, resize: bool,
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = mixed_store.make(folder / "drawn", [[Row(100 + i) for i in range(drawn)]]) if drawn else ""
        asked = Settings(
            str(mixed_store.make(folder, [[Row(), *shard] for shard in rows])), ratio, mode=mode, epochs=3,
            validation=validation, format=format, seed=seed, shard_rows=11, buckets="64x64,96x64,64x128",
            rows=most, text=str(text), text_cap=0.2, resize=resize,
        )  # fmt: skip
        try:
            made = export(asked, str(folder / "one"), "inline")
        except UsageError as why:  # all content may fall to validation
            assert "nothing to train on" in str(why) and validation
            return
        assert verify(str(folder / "one"), "inline") == []

        # The same bytes whoever does which job when.
        files = LocalFiles(folder / "two")
        with plan.made(asked, files) as (planned, coming):
            listed = list(coming)
        assert plan.listed(files) == tuple(listed)
        receipts = [shards.make(files.uri, planned.fingerprint, job) for job in reversed(listed)]
        finish(files, planned, receipts)
        files.delete(plan.FOLDER)
        assert hashes(folder / "one") == hashes(folder / "two")

        by_id = {f"part-{n:03d}:{i}": row for n, shard in enumerate(rows) for i, row in enumerate([Row(), *shard])}
        bad = bad_of(by_id)
        wanted = {row_id for row_id, row in by_id.items() if any(usable(row, bad[row_id])) and row.weight != 0}
        served: dict[str, set[tuple[str, int]]] = {}
        shown: dict[str, set[str]] = {}
        for split in made["splits"]:
            for epoch in range(3):
                got = [item for rank in range(world) for item in epoch_of(folder / "one", split, epoch, rank, world)]
                served.setdefault(split, set()).update((item["row_id"], item["copy"]) for item in got)
                shown.setdefault(split, set()).update(item["sha256"] for item in got)
                assert len(got) == len({(item["row_id"], item["copy"]) for item in got})  # none repeated in an epoch
                assert {(item["row_id"], item["copy"]) for item in got} == served[split]  # none lost in an epoch
                assert sorted(item["index"] for item in got) == list(range(len(got)))
                text_entries = [item for item in got if item["pool"] == "text"]
                assert len(text_entries) <= 0.2 * len(got)
                own = [item for item in got if item["pool"] != "text"]
                check_ratio(own, by_id, bad, Fraction(str(ratio)) if mode == "quota" else None)
        found = {row_id for ids in served.values() for row_id, _ in ids if not row_id.startswith("text/")}
        assert found == wanted if not most else found <= wanted and len(found) <= most
        groups = [
            {by_id[row_id].group for row_id, _ in ids if row_id in by_id and by_id[row_id].seen} - {None}
            for ids in served.values()
        ]
        assert len(groups) == 1 or not groups[0] & groups[1]  # copies never straddle the splits
        assert len(shown) == 1 or not shown["train"] & shown["validation"]  # nor do the same bytes

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
            third = {(r["row_id"], r["copy"]): r["caption"] for r in read(folder / "one") if r["epoch"] == 2}
            items = epoch_of(folder / "one", "train", 2, 0, 1)
            assert third == {(item["row_id"], item["copy"]): item["caption"] for item in items}


def epoch_of(folder: Path, split: str, epoch: int, rank: int, world: int) -> list[dict[str, Any]]:
    """What one rank is served in an epoch, without pixels."""
    data = MixDataset(folder, split=split, rank=rank, world=world, decode=False)
    data.seek(epoch)
    return list(data)


def keys(data: MixDataset) -> Iterator[list[tuple[str, str]]]:
    """Row ids and captions of each batch."""
    return (list(zip(batch["row_id"], batch["caption"], strict=True)) for batch in data)


def check_ratio(
    items: Sequence[dict[str, Any]], by_id: dict[str, Row], bad: dict[str, set[str]], ratio: Fraction | None
) -> None:
    """Captions are the row's own, and quotas hold overall, in every bucket and in every concept."""
    raw: Counter[Any] = Counter()
    both: Counter[Any] = Counter()
    for item in items:
        row = by_id[item["row_id"]]
        assert item["caption"] in said(row, bad[item["row_id"]])[item["caption_source"] == "synthetic"]
        assert item["language"] == ("zh" if "狗" in item["caption"] or "合" in item["caption"] else "en")
        if all(usable(row, bad[item["row_id"]])):
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


def test_a_source_shard_that_is_not_the_one_that_was_scored_is_refused(tmp_path: Path) -> None:
    for name, first in (("scored", 0), ("other", 6)):
        rows = [Row(i, (64, 64), f"raw {i}", f"synthetic {i}", None) for i in range(first, first + 6)]
        mixed_store.make(tmp_path / name, [rows])
    shard = Path("shards") / "part-000.parquet"
    (tmp_path / "other" / shard).replace(tmp_path / "scored" / shard)
    with pytest.raises(CurateError, match=r"part-000\.parquet is not the file that was scored"):
        export(plain(tmp_path / "scored"), str(tmp_path / "out"), "inline")


@pytest.mark.parametrize(("name", "size"), [("0000000.json", 0), ("x" * 100, 8**11 - 1), ("0000001.jpg", 123_456)])
def test_headers_of_an_archive_are_those_of_tarfile(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert shards._header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


def test_pictures_are_the_original_bytes(folder: Path) -> None:
    rows = read(folder / "plain")
    assert len(rows) == 60
    assert {row["image"] for row in rows} == {picture(i, SIZES[i % 5]) for i in range(60)}


@pytest.mark.parametrize(("kind", "workers"), [("processes", 1), ("processes", 3), ("ray", 2)])
def test_workers_and_engine_do_not_change_a_byte(
    folder: Path, tmp_path: Path, kind: str, workers: int, request: Any
) -> None:
    if kind == "ray":
        request.getfixturevalue("ray_cluster")
    export(plain(folder), str(tmp_path / "out"), kind, workers)
    assert hashes(tmp_path / "out") == hashes(folder / "plain")


def test_a_second_run_has_nothing_to_do_and_another_mix_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "plain", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    said: list[str] = []
    export(plain(folder), str(tmp_path / "out"), "inline", told=said.append)
    assert "already" in said[-1] and before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert not (tmp_path / "out" / ".plan").exists()
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
    with shard.open("r+b") as file:  # size and footer stay
        file.seek(4)
        file.write(bytes(200))
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
        images = pages.Column(str(path), pq.ParquetFile(path), "image")
        offsets = [piece and piece.at for piece in map(images.at, range(table.num_rows))]
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
        found["files"][path]["blake3"] = blake3((out / path).read_bytes()).hexdigest()
    found["tree"] = manifest.tree(found)
    (out / "README.md").write_text(card.card(found, card.schema(open_files(str(out)), found)), "utf-8")
    (out / "manifest.json").write_bytes(manifest.encode(found))


@pytest.mark.parametrize(
    "change",
    [{"licences": [{"for": "x"}]}, {"policy": {"a": "TRUE"}}, {"operators": []}, {"recipe": {}}, {"characters": 5},
     {"left_out": {"a": 9}}, {"fingerprint": "0" * 16}, {"store": {}}, {"tree": "0" * 64}],
)  # fmt: skip
def test_verify_finds_a_change_anywhere_in_the_manifest(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(folder / "plain", tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_bytes(manifest.encode(json.loads(path.read_text("utf-8")) | change))
    assert verify(str(tmp_path / "out"), "inline") == [
        "manifest.json has changed since it was written: its hash is not `tree`"
    ]


def test_a_forger_who_mends_the_hash_tree_is_found_by_what_the_shards_say(folder: Path, tmp_path: Path) -> None:
    def problems(change: Any) -> str:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(folder / "plain", tmp_path / "out")
        found = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
        change(found)
        found["tree"] = manifest.tree(found)
        (tmp_path / "out" / "manifest.json").write_bytes(manifest.encode(found))
        (tmp_path / "out" / "README.md").write_text(
            card.card(found, card.schema(open_files(str(tmp_path / "out")), found))
        )
        return "\n".join(verify(str(tmp_path / "out"), "inline"))

    assert problems(lambda found: None) == ""
    counts = problems(lambda found: found["splits"]["train"]["achieved"]["0"].update(raw=31))
    assert counts == "train, epoch 0: the manifest's counts are not those of the shards"
    assert "fingerprint" in problems(lambda found: found["settings"].update(where="aesthetic > 9"))
    assert "fingerprint" in problems(lambda found: found.update(policy={"all": "TRUE"}))
    assert "fingerprint" in problems(lambda found: found["store"].update(parts="0" * 16))
    spoken = problems(lambda found: found["settings"].update(languages={"en": 0.9, "zh": 0.1}))
    assert "another caption" in spoken
    assert "manifest.json does not hold" in problems(lambda found: found.update(concepts=None))


def test_verify_lists_the_whole_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder / "plain", out)
    (out / "foo").mkdir()
    (out / "foo" / "evil.parquet").write_text("1")
    (out / "extra.txt").write_text("x")
    (out / "README.md").write_text("bought")
    assert verify(str(out), "inline") == [
        "README.md is not what the manifest makes of it" if path == "README.md" else f"{path} is not in the manifest"
        for path in ("README.md", "extra.txt", "foo/evil.parquet")
    ]


def test_the_manifest_proves_what_was_asked(folder: Path) -> None:
    found = json.loads((folder / "plain" / "manifest.json").read_text("utf-8"))
    got = found["splits"]["train"]["achieved"]["0"]
    assert (got["entries"], got["raw"], got["synthetic"], got["raw_share"]) == (60, 30, 30, 0.5)
    assert got["by_caption"] == {"raw en": 30, "synthetic en": 15, "synthetic zh": 15}
    assert sum(of["entries"] for of in got["by_bucket"].values()) == 60
    assert set(got["by_concept"]) == {"a", "b"}
    assert found["settings"]["seed"] == 0 and found["recipe"]["policy"] == {}
    assert "uri" not in found["recipe"]["input"] and "store" not in found["recipe"]  # no place, no host
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


def test_captions_of_a_folder_layout_are_decided_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(plain(folder, format="folder", validation=0.2), str(out), "inline")
    assert verify(str(out), "inline") == []
    lines = (out / "train" / "metadata.jsonl").read_text("utf-8").splitlines()
    changed = [json.dumps(json.loads(lines[0]) | {"caption": "an advertisement"}), *lines[1:]]
    (out / "train" / "metadata.jsonl").write_text("\n".join(changed) + "\n", "utf-8")
    forge(out)
    assert [problem for problem in verify(str(out), "inline") if "another caption" in problem]


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
    store = mixed_store.make(tmp_path, [[Row(i, en=f"A new caption of row {i}.", zh=None) for i in range(20)]])
    files = LocalFiles(store)
    old = dict(mixed_store.VERSIONS) | {"caption": type(mixed_store.VERSIONS["caption"])("caption", "f" * 16)}
    before, mixed_store.VERSIONS["caption"] = mixed_store.VERSIONS["caption"], old["caption"]
    try:
        rows = [Row(i, en=f"An old caption of row {i}." if i else "An old", zh=None) for i in range(20)]
        table = pq.read_table(next((store / "parts" / f"input@{0:016x}").glob("*.parquet")))
        mixed_store.publish_rows(files, "part-000", rows, table.drop_columns(["shard", "row", "error", "message"]))
    finally:
        mixed_store.VERSIONS["caption"] = before
    export(Settings(str(store), 0.0, synthetic="all", buckets="64x64", epochs=9), str(tmp_path / "out"), "inline")
    said: dict[str, set[str]] = {}
    for row in read(tmp_path / "out"):
        said.setdefault(row["row_id"], set()).add(row["caption"].split()[1])
    assert said.pop("part-000:0") == {"new"}  # the old one was cut off: a check by rule says so
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


def test_pooled_captions_are_held_to_the_checks_of_the_rows_that_they_come_from(tmp_path: Path) -> None:
    rows = [Row(0, raw="a good caption"), Row(0, raw="BAD BAD BAD BAD", bad="raw"), Row(1, raw="x y z", bad="raw")]
    store = mixed_store.make(tmp_path, [rows])
    opened = Store(store)
    dedup(opened, Settings_of_dedup(pool_captions=True))
    assert opened.rows("SELECT DISTINCT unnest(dedup_captions) FROM samples") == [("a good caption",)]
    opened.close()
    export(Settings(str(store), 1.0, buckets="64x64"), str(tmp_path / "out"), "inline")
    assert [row["captions_raw"] for row in read(tmp_path / "out")] == [["a good caption"], []]


def test_a_pooled_caption_that_was_found_bad_later_is_not_used(tmp_path: Path) -> None:
    rows = [Row(0, group=1, pooled=("good", "BAD BAD")), Row(0, raw="BAD BAD", group=1, weight=0.0, bad="raw")]
    rows += [Row(1, raw="own BAD", bad="raw", pooled=("own BAD", "other"))]
    store = mixed_store.make(tmp_path, [rows])
    export(Settings(str(store), 1.0, buckets="64x64"), str(tmp_path / "out"), "inline")
    assert [row["captions_raw"] for row in read(tmp_path / "out")] == [["a raw caption", "good"], ["other"]]


def test_rows_that_dedup_has_not_seen_go_where_their_bytes_go_and_are_told(tmp_path: Path) -> None:
    rows = [Row(i // 2, raw=f"caption {i}", group=None if i % 2 else 1000 + i, seen=not i % 2) for i in range(120)]
    store = mixed_store.make(tmp_path, [rows])
    said: list[str] = []
    found = export(
        Settings(str(store), buckets="64x64", validation=0.3), str(tmp_path / "out"), "inline", told=said.append
    )
    train, validation = ({row["sha256"] for row in read(tmp_path / "out", split)} for split in found["splits"])
    assert len(train) + len(validation) == 60 and not train & validation
    assert found["unseen"]["dedup"] == 60
    assert any("60 rows" in line and "curate dedup" in line for line in said)
    assert verify(str(tmp_path / "out"), "inline") == []


@pytest.mark.parametrize("asked", [{}, {"rows": 20}, {"rows": 20, "seed": 2}, {"validation": 0.5, "seed": 5}])
def test_the_cap_of_rendered_text_holds_in_every_split_and_however_many_rows_are_drawn(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    store = mixed_store.make(tmp_path / "a", [[Row(i, raw=f"caption {i}") for i in range(120)]])
    text = mixed_store.make(tmp_path / "b", [[Row(1000 + i, weight=1.5) for i in range(60)]])
    found = export(Settings(str(store), buckets="64x64", text=str(text), **asked), str(tmp_path / "out"), "inline")
    for of in found["splits"].values():
        got = of["achieved"]["0"]
        assert 0.05 * got["entries"] < got["by_pool"]["text"]["entries"] <= 0.1 * got["entries"]
    assert sum(of["rows"] for of in found["splits"].values()) <= (asked.get("rows") or 200)


@pytest.mark.parametrize(
    ("asked", "says"),
    [({"where": "random() < 0.5"}, "random.*repeatable"), ({"top": "now() > '2020-01-01'"}, "--top.*repeatable"),
     ({"where": "row IN (SELECT 1)"}, "subqueries")],
)  # fmt: skip
def test_conditions_must_give_the_same_answer_again(
    folder: Path, tmp_path: Path, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        export(plain(folder, **asked), str(tmp_path / "out"), "inline")


def test_a_condition_that_a_row_cannot_answer_leaves_that_row_out(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no row is left"):
        export(plain(folder, where="caption_raw::INT > 3"), str(tmp_path / "none"), "inline")
    assert (
        export(plain(folder, where="row < 3 -- few"), str(tmp_path / "few"), "inline")["splits"]["train"]["rows"] == 6
    )
    odd = plain(folder, top="strptime(caption_raw, '%Y') IS NOT NULL")
    assert set(export(odd, str(tmp_path / "odd"), "inline")["splits"]["train"]["achieved"]["0"]["by_pool"]) == {
        "natural"
    }


def test_a_run_that_computes_nothing_leaves_the_mix_what_it_was(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    mixed_store.make(source, [[Row(i) for i in range(20)]])
    before = export(plain(source), str(tmp_path / "out"), "inline")
    run = json.loads((source / "store" / "runs" / "20260101T000000" / "run.json").read_text("utf-8"))
    run |= {"run_id": "20260202T000000", "recipe": run["recipe"].replace('kind = "ray"', 'kind = "inline"')}
    LocalFiles(source / "store").replace("runs/20260202T000000/run.json", json.dumps(run).encode())
    Store(source / "store").rebuild()
    said: list[str] = []
    assert export(plain(source), str(tmp_path / "out"), "inline", told=said.append) == before
    assert "already" in said[-1]
    assert export(plain(source), str(tmp_path / "again"), "inline")["tree"] == before["tree"]


def test_licences_are_those_of_what_wrote_columns() -> None:
    wrote = [
        {"operator": "size", "engine": None, "model": None},
        {"operator": "caption", "engine": "openai", "model": "some-model"},
        {"operator": "translate", "engine": "marian", "model": "opus"},
        {"operator": "faces", "engine": "haar", "model": "haar"},
        {"operator": "dedup", "engine": "curate", "model": None},
    ]
    recipe = {
        "embed": {"engine": "none", "weights": "clip-vit-l-14"},
        "caption": {"engine": "openai", "weights": ""},
        "translate": {"engine": "marian", "weights": "opus-mt-en-zh"},
    }
    found = {(of["for"], of["name"]): of["licence"] for of in manifest.licences(wrote, recipe)}
    assert set(found) == {
        ("caption", "some-model"), ("translate.weights", "opus-mt-en-zh"), ("faces", "haar"), ("dedup", "curate"),
    }  # fmt: skip
    assert found["caption", "some-model"] == "unknown" and "Apache" in found["faces", "haar"]


def test_a_folder_that_is_in_use_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(UsageError, match=r"in use: README\.md"):
        export(plain(folder), str(tmp_path), "inline")
    with pytest.raises(UsageError, match="lies in the store"):
        export(plain(folder), str(folder / "store" / "parts" / "new"), "inline")
    with pytest.raises(UsageError, match="is the store itself"):
        plain(folder, text=str(folder / "store"))
    assert (tmp_path / "README.md").read_text() == "my project" and len(list(tmp_path.iterdir())) == 1


KILLED = """
import json, os, signal, sys
from curate.mix.export import export
from curate.mix.settings import from_json
real, asked = os.fsync, from_json(json.loads(sys.argv[1]))
for number in map(int, sys.argv[3:]):
    pid = os.fork()
    if not pid:
        left = number
        def fsync(handle):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)
        os.fsync = fsync
        export(asked, f"{sys.argv[2]}/{number}", "inline")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("format", ["parquet", "folder"])
def test_an_export_that_is_killed_anywhere_goes_on_to_the_same_bytes(tmp_path: Path, format: str) -> None:
    rows = [Row(i, SIZES[i % 5], f"raw {i}", f"synthetic {i}", None) for i in range(6)]
    mixed_store.make(tmp_path, [rows[:3], rows[3:]])
    asked = plain(tmp_path, format=format, shard_rows=2)
    export(asked, str(tmp_path / "whole"), "inline")
    wanted = hashes(tmp_path / "whole")
    # At some of the durable steps: files that are not renamed yet, renamed and not listed yet, and so on.
    numbers = list(range(1, 90, 9 if format == "parquet" else 17))
    words = [sys.executable, "-c", KILLED, json.dumps(asked.to_json()), str(tmp_path / "killed")]
    done = subprocess.run([*words, *map(str, numbers)], capture_output=True, text=True, check=True)
    codes = [int(code) for code in done.stdout.split()]
    killed = codes.count(-9)
    assert codes == [-9] * killed + [0] * (len(codes) - killed) and killed > 3
    for number in numbers[:killed]:
        export(asked, str(tmp_path / "killed" / str(number)), "inline")
        assert hashes(tmp_path / "killed" / str(number)) == wanted


def test_two_exports_do_not_write_into_one_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = open_files(str(out))
    with plan.claimed(files):
        with pytest.raises(UsageError, match="another process is writing here"):
            export(plain(folder), str(out), "inline")
        # Where there are no locks, the second of two mixes meets the plan of the first one.
        with plan.made(plain(folder), files), pytest.raises(CurateError, match="another mix is being written"):  # noqa: SIM117
            with plan.made(plain(folder, seed=9), files):
                pass
    with pytest.raises(UsageError, match="cannot be written"):
        export(plain(folder), "/proc/curate", "inline")


def test_the_policy_of_the_rendered_text_decides_the_mix(folder: Path, tmp_path: Path) -> None:
    text = mixed_store.make(tmp_path / "text", [[Row(i, (64, 64), None, f"text {i}", None) for i in range(6)]])
    asked = plain(folder, text=str(text), text_cap=0.5)
    before = plan.fingerprint(asked, plan.version_of(asked))
    run = json.loads((text / "runs" / "20260101T000000" / "run.json").read_text("utf-8"))
    run |= {"predicates": [{"name": "first", "sql": "row < 3", "columns": ["row"], "after": 0}]}
    LocalFiles(text).replace("runs/20260102T000000/run.json", json.dumps(run | {"run_id": "20260102T000000"}).encode())
    Store(text).rebuild()
    assert plan.fingerprint(asked, plan.version_of(asked)) != before


def test_workers_see_the_environment_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv("CURATE_TEST", value)
        with Workers("processes", 1) as pool:
            assert list(pool.run(os.getenv, [("CURATE_TEST",)])) == [value]


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from curate.mix.jobs import Workers\n"
        "def wait(path):\n"
        "    open(path, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    with Workers('processes', 2) as pool:\n"
        "        list(pool.run(wait, [(name,) for name in sys.argv[1:]]))\n"
    )
    (tmp_path / "work.py").write_text(code)
    names = [tmp_path / "a", tmp_path / "b"]
    running = subprocess.Popen([sys.executable, str(tmp_path / "work.py"), *map(str, names)], stdout=subprocess.PIPE)
    while not all(name.exists() and name.read_text() for name in names):
        assert running.poll() is None
        os.sched_yield()
    running.kill()
    assert running.stdout is not None
    with running.stdout:  # all that inherited it must end first
        assert running.stdout.read() == b""
    running.wait()


def test_pictures_that_people_put_in_the_highest_tier_are_the_pool_top(tmp_path: Path) -> None:
    store = Store(mixed_store.make(tmp_path, [[Row(i) for i in range(6)], [Row(0), *(Row(i) for i in range(10, 15))]]))
    ledger = Ledger(tmp_path / "store" / "ratings.sqlite", Clock())
    made = campaign.create(ledger, store, campaign.Plan("all", where="TRUE", votes=2, gold_every=0, repeat_every=0))
    tiers: dict[str, list[int]] = {}
    leased = "SELECT sha256 FROM leases JOIN items ON items.id = item_id WHERE leases.id = ?"
    for user, least in zip(people(ledger, 2), ("6", "a"), strict=True):  # two who do not agree on everything
        while tasks := ledger.write(lambda db, u=user: queue.lease(db, made, u, 1, [], ledger.clock())):  # type: ignore[misc]
            (sha256,) = ledger.read().execute(leased, [tasks[0].lease]).fetchone()
            tiers.setdefault(sha256, []).append(5 if sha256 >= least else 2)
            action = votes.Action(f"{user}-{tasks[0].lease}", "vote", lease=tasks[0].lease, tier=tiers[sha256][-1])
            ledger.write(lambda db, u=user, a=action: votes.apply(db, made, u, a, 5))  # type: ignore[misc]
    ledger.close()
    before = plan.version_of(Settings(str(tmp_path / "store")))["tiers"]
    store.ingest()
    decided = dict(store.rows("SELECT sha256, tier FROM consensus"))
    store.close()
    highest = {sha256 for sha256, tier in decided.items() if tier == 5}
    assert highest >= {sha256 for sha256, of in tiers.items() if of == [5, 5]} and 0 < len(highest) < len(decided)
    asked = Settings(str(tmp_path / "store"), buckets="64x64", top_weight=3, columns=("tier",))
    assert plan.version_of(asked)["tiers"] != before  # a new vote is a new mix
    found = export(asked, str(tmp_path / "out"), "inline")
    rows = read(tmp_path / "out")
    assert {row["sha256"] for row in rows if row["pool"] == "top"} == highest
    assert all(row["tier"] == decided.get(row["sha256"]) for row in rows)
    pools = Counter((row["pool"], row["row_id"]) for row in rows)
    assert {times for (pool, _), times in pools.items() if pool == "top"} == {3} and len(pools) == 12
    assert found["splits"]["train"]["achieved"]["0"]["by_pool"]["top"]["entries"] == 3 * sum(
        pool == "top" for pool, _ in pools
    )
    assert verify(str(tmp_path / "out"), "inline") == []


@pytest.mark.parametrize("format", ["parquet", "struct", "webdataset", "folder"])
def test_original_bytes_come_from_any_kind_of_shard(tmp_path: Path, format: str) -> None:
    import tarfile

    images = [picture(i, SIZES[i % 5]) for i in range(9)]
    source = tmp_path / "source"
    source.mkdir()
    if format in ("parquet", "struct"):
        column = pa.array([*images, None], pa.binary())
        if format == "struct":  # as Hugging Face has it; the last one is a file
            (source / "p.jpg").write_bytes(picture(9, (64, 64)))
            column = pa.StructArray.from_arrays([column, pa.array(["p.jpg"] * 10)], ["bytes", "path"])
        pq.write_table(pa.table({"image": column, "caption": ["a"] * 10}), source / "a.parquet", row_group_size=4)
    elif format == "webdataset":
        with tarfile.open(source / "a.tar", "w") as archive:
            for i, data in enumerate(images):
                member = tarfile.TarInfo(f"{i:03d}.jpg")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for i, data in enumerate(images):
            (source / f"{i:03d}.jpg").write_bytes(data)
    place = sources.folder(str(source))
    (name,) = place.shards
    pictures = place.pictures(name)
    rows = [0, 3, 4, 8, 9] if format == "struct" else [0, 3, 4, 8]
    assert [piece.read() for piece in pictures.read(rows)] == [
        picture(i, SIZES[i % 5] if i < 9 else (64, 64)) for i in rows
    ]
    if format == "parquet":
        with pytest.raises(CurateError, match=r"a\.parquet:9|a:9"):
            pictures.read([8, 9])
    if format == "webdataset":
        (source / "a.tar").write_bytes((source / "a.tar").read_bytes()[:3000])
        with pytest.raises(CurateError, match="become shorter"):
            place.pictures(name).read([8])[0].read()
