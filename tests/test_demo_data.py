"""The sample shards: what is in them, that every case is what it says, and that they come out the same again."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate.demo_data import SCHEMA, Row, carried, cjk_font, make_samples, samples, texts, write_samples
from curate.errors import UsageError
from curate.read import InputSpec, Reader, discover, index
from schemas.errors import RowError
from workers.picture import Limits, decode

# Case -> the error that its rows end with.
ERRORS = {
    "truncated": "truncated", "zero_bytes": "empty", "null": "empty", "text": "not_an_image", "html": "not_an_image",
    "psd": "unsupported_format", "ico": "unsupported_format", "bomb": "too_large", "damaged": "corrupt",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three Parquet shards."""
    folder = tmp_path_factory.mktemp("samples")
    make_samples(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of the three shards."""
    return [row for path in sorted(folder.iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def drawn_again() -> list[Row]:
    """The rows, made a second time."""
    return list(samples(cjk_font()))


def test_there_are_three_shards_of_about_120_rows_and_the_first_has_several_row_groups(folder: Path) -> None:
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == ["demo-00000.parquet", "demo-00001.parquet", "demo-00002.parquet"]
    assert all(pq.read_schema(path).equals(SCHEMA) for path in paths)
    groups = [pq.read_metadata(path).num_row_groups for path in paths]
    assert groups[0] >= 3
    assert groups[1:] == [1, 1]
    assert 110 <= sum(pq.read_metadata(path).num_rows for path in paths) <= 135


def test_every_case_decodes_or_fails_as_it_is_meant_to(rows: list[dict[str, Any]]) -> None:
    large = 0
    for row in rows:
        try:
            if not row["image"]:
                raise RowError("empty", "no bytes")
            picture = decode(row["image"], Limits())
        except RowError as failure:
            assert failure.code == ERRORS.get(row["case"]), row["case"]
        else:
            assert row["case"] not in ERRORS
            large += min(picture.header.width, picture.header.height) >= 512
    assert {row["case"] for row in rows} > set(ERRORS)
    assert large > len(rows) / 2


def test_pictures_of_a_case_have_its_properties(rows: list[dict[str, Any]]) -> None:
    def pictures(case: str) -> list[Any]:
        return [decode(row["image"], Limits()) for row in rows if row["case"] == case]

    assert sorted(picture.header.format for picture in pictures("cmyk")) == ["JPEG", "TIFF"]
    assert {picture.header.mode for picture in pictures("cmyk")} == {"CMYK"}
    assert {picture.header.mode for picture in pictures("alpha")} == {"RGBA"}
    assert [picture.header.mode for picture in pictures("sixteen_bit")] == ["I;16"]
    assert [picture.header.mode for picture in pictures("one_bit")] == ["1"]
    assert [picture.header.frames for picture in pictures("animated")] == [3, 3]
    assert sorted(picture.header.exif_orientation for picture in pictures("exif_rotated")) == [3, 6, 8]
    turned = [picture.rgb.astype(int) for picture in pictures("exif_rotated")]
    assert {rgb.shape for rgb in turned} == {(800, 641, 3)}
    assert max(abs(rgb - turned[0]).mean() for rgb in turned) < 3
    assert {picture.header.format for case in ("webp", "avif", "bmp", "tiff") for picture in pictures(case)} == {
        "WEBP", "AVIF", "BMP", "TIFF",
    }  # fmt: skip


def test_each_duplicate_has_its_original(rows: list[dict[str, Any]]) -> None:
    counts = Counter(hashlib.sha256(row["image"]).hexdigest() for row in rows if row["image"])
    twice = [row for row in rows if row["case"] == "duplicate"]
    assert len(twice) == 3
    assert all(counts[hashlib.sha256(row["image"]).hexdigest()] == 2 for row in twice)
    assert all(counts[hashlib.sha256(row["image"]).hexdigest()] == 1 for row in rows if row["case"] == "near_duplicate")


def test_captions_are_in_both_languages_and_some_are_missing(rows: list[dict[str, Any]]) -> None:
    languages = Counter(row["language"] for row in rows)
    assert languages["en"] > 40
    assert languages["zh"] > 25
    assert all((row["caption"] is None) == (row["language"] is None) for row in rows)
    assert all(any("\u4e00" <= c <= "\u9fff" for c in row["caption"]) for row in rows if row["language"] == "zh")
    assert all(row["caption"].isascii() for row in rows if row["language"] == "en")
    assert languages[None] >= 3


def test_without_a_chinese_font_the_posters_are_english_only() -> None:
    cases = Counter(case for case, *_ in texts(None))
    assert cases == {"poster": 3, "sign": 3, "screenshot": 2}
    assert all(decode(data or b"", Limits()).header.height for _, data, *_ in texts(None))


def test_other_layouts_hold_the_same_rows(folder: Path, drawn_again: list[Row], tmp_path: Path) -> None:
    """Without the rows whose picture is null: a folder has no file for these, a tar has an error."""

    def of(path: Path) -> dict[str, int]:
        found: Counter[str] = Counter()
        for shard in discover(InputSpec(str(path))):
            table = index(shard).table
            pictures = Reader(shard).read(range(table.num_rows), table)
            for data, case in zip(pictures, table["case"].to_pylist(), strict=True):
                found[f"{case} {data.code if isinstance(data, RowError) else hashlib.sha256(data).hexdigest()}"] += 1
        return dict(found)

    paths = write_samples(drawn_again, tmp_path / "tar", 0, "webdataset")
    assert [path.name for path in paths] == ["demo-00000.tar", "demo-00001.tar", "demo-00002.tar"]
    write_samples(drawn_again, tmp_path / "folder", 0, "folder")
    wanted = of(folder)
    assert of(tmp_path / "tar") == wanted
    assert of(tmp_path / "folder") == {row: count for row, count in wanted.items() if not row.startswith("null")}


def test_the_same_seed_gives_the_same_bytes_and_another_another_order(
    folder: Path, drawn_again: list[Row], tmp_path: Path
) -> None:
    first = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert [path.read_bytes() for path in write_samples(drawn_again, tmp_path / "again", 0, "parquet")] == first
    assert [path.read_bytes() for path in write_samples(drawn_again, tmp_path / "again", 1, "parquet")] != first


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(UsageError, match=r"pip install 'curate\[demo\]'"):
        carried("a_package_that_is_not_installed", "x.png")
    with pytest.raises(UsageError, match=r"scikit-image does not carry gone\.png"):
        carried("skimage", "gone.png")
