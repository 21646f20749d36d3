"""Reading: every layout of input, and what becomes of shards and rows that cannot be read."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from curate.read import InputError, InputSpec, Reader, Shard, discover, identity, index
from schemas.errors import RowError


def shards(uri: Path | str, **spec: str) -> list[Shard]:
    return discover(InputSpec(str(uri), **spec))


def only(uri: Path | str, **spec: str) -> Shard:
    found = shards(uri, **spec)
    assert len(found) == 1
    return found[0]


def everything(shard: Shard) -> tuple[dict[str, list[Any]], list[Any]]:
    """The index's columns, and the bytes of all rows or the codes of their errors."""
    found = index(shard)
    data = Reader(shard).read(range(found.table.num_rows), found.table)
    return found.table.to_pydict(), [d.code if isinstance(d, RowError) else d for d in data]


def write(path: Path, columns: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


# Parquet


def test_a_binary_column_gives_its_bytes_and_the_others_pass_through_with_their_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": pa.array([b"one", None, b""], pa.large_binary()),
            "caption": ["a cat", None, "一只猫"],
            "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
            "meta": pa.array([{"x": 1}, None, {"x": 2}], pa.struct([("x", pa.int16())])),
        }
    )
    shard = only(write(tmp_path / "a.parquet", table))
    found = index(shard)
    assert found.table.column_names == ["caption_raw", "tags", "meta"]
    assert found.table.schema.field("meta").type == pa.struct([("x", pa.int16())])
    assert found.table.select(["tags", "meta"]).equals(table.select(["tags", "meta"]))
    assert (found.image_column, found.caption_column) == ("image", "caption")
    columns, data = everything(shard)
    assert columns["caption_raw"] == ["a cat", None, "一只猫"]
    assert data == [b"one", "empty", "empty"]


def test_the_hugging_face_struct_gives_its_bytes_or_else_the_file_that_its_path_names(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"from the file")
    cells = [
        {"bytes": b"from the cell", "path": "a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns, data = everything(
        only(write(tmp_path / "a.parquet", {"image": pa.array(cells, kind), "text": list("abcde")}))
    )
    assert data == [b"from the cell", b"from the file", "missing_file", "empty", "empty"]
    assert [cell and cell["path"] for cell in columns["image"]] == ["a.jpg", "b.jpg", "gone.jpg", None, None]
    assert "bytes" not in columns["image"][0]


def test_a_path_may_not_lead_out_of_its_root(tmp_path: Path) -> None:
    inside = tmp_path / "data" / "pics"
    inside.mkdir(parents=True)
    (inside / "a.jpg").write_bytes(b"a")
    (tmp_path / "data-secret").write_bytes(b"secret")
    (inside / "link.jpg").symlink_to(tmp_path / "data-secret")
    os.mkfifo(inside / "pipe.jpg")
    wanted = {
        "pics/a.jpg": b"a",
        "pics/../pics/a.jpg": b"a",
        str(inside / "a.jpg"): b"a",
        f"file://{inside}/a.jpg": b"a",
        "../data-secret": "outside_input",
        "pics/link.jpg": "outside_input",
        "/etc/passwd": "outside_input",
        "s3://bucket/a.jpg": "outside_input",
        "https://example.org/a.jpg": "remote_url",
        "HTTP://example.org/a.jpg": "remote_url",
        "data:image/png;base64,AAAA": "remote_url",
        "pics/gone.jpg": "missing_file",
        "pics/a.jpg/b.jpg": "missing_file",
        "pics": "missing_file",
        "pics/pipe.jpg": "missing_file",
        "pics/a\0.jpg": "missing_file",
        "": "empty",
        None: "empty",
    }
    path = write(tmp_path / "data" / "a.parquet", {"file_name": pa.array(list(wanted)), "text": ["x"] * len(wanted)})
    columns, data = everything(only(path))
    assert dict(zip(wanted, data, strict=True)) == wanted
    assert columns["file_name"] == list(wanted)


def test_paths_start_at_the_root_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.jpg").write_bytes(b"a")
    path = write(tmp_path / "lists" / "a.parquet", {"image_path": ["a.jpg"]})
    assert everything(only(path))[1] == ["missing_file"]
    assert everything(only(path, root=str(tmp_path / "pics")))[1] == [b"a"]


def test_columns_with_reserved_names_get_a_prefix_until_they_are_unique(tmp_path: Path) -> None:
    names = ["jpg", "TEXT", "width", "Sha256", "input_width", "_offset", "keep"]
    path = write(tmp_path / "a.parquet", {name: [b"x"] if name == "jpg" else ["y"] for name in names})
    columns, _ = everything(only(path))
    assert list(columns) == [
        "caption_raw", "input_width", "input_Sha256", "input_input_width", "input__offset", "input_keep",
    ]  # fmt: skip
    assert columns["caption_raw"] == ["y"]


@pytest.mark.parametrize(
    ("columns", "image", "caption"),
    [
        ({"Image": b"x", "Caption": "c"}, "Image", "Caption"),
        ({"image": "a.jpg", "jpg": b"x", "txt": "c"}, "jpg", "txt"),
        ({"content": b"x", "alt": "c"}, "content", "alt"),
        ({"thumb": b"x", "text": "c"}, "thumb", "text"),
        ({"image_path": "a.jpg", "content": "prose", "text": "c"}, "image_path", "text"),
        ({"bytes": b"x", "captions": ["", "first", "second"]}, "bytes", "captions"),
        ({"png": b"x", "n": 1}, "png", ""),
    ],
)
def test_columns_are_found_among_the_usual_names(
    tmp_path: Path, columns: dict[str, Any], image: str, caption: str
) -> None:
    found = index(only(write(tmp_path / "a.parquet", {name: [value] for name, value in columns.items()})))
    assert (found.image_column, found.caption_column) == (image, caption)
    if caption == "captions":
        assert found.table.to_pydict() == {"caption_raw": ["first"], "captions": [["", "first", "second"]]}


@pytest.mark.parametrize(
    ("columns", "spec", "code", "says"),
    [
        ({"n": [1]}, {}, "no_image_column", "input.image_column"),
        ({"url": ["http://x/y.jpg"], "text": ["t"]}, {}, "no_image_column", "img2dataset"),
        ({"picture": [b"x"]}, {"image_column": "pictur"}, "no_image_column", "did you mean 'picture'?"),
        ({"picture": [b"x"], "n": [1]}, {"image_column": "n"}, "no_image_column", "'n' is int64"),
        ({"jpg": [b"x"], "words": ["w"]}, {"caption_column": "word"}, "shard_unreadable", "did you mean 'words'?"),
        ({"jpg": [b"x"], "n": [1]}, {"caption_column": "n"}, "shard_unreadable", "must hold strings"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_the_nearest_one(
    tmp_path: Path, columns: dict[str, Any], spec: dict[str, str], code: str, says: str
) -> None:
    with pytest.raises(InputError) as failure:
        index(only(write(tmp_path / "a.parquet", columns), **spec))
    assert failure.value.code == code
    assert says in failure.value.message
    assert "a.parquet" in failure.value.message


def test_the_named_columns_win_over_the_usual_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": [b"x"], "mine": [b"y"], "caption": ["no"], "words": ["yes"]})
    columns, data = everything(only(path, image_column="mine", caption_column="words"))
    assert data == [b"y"]
    assert columns == {"caption_raw": ["yes"], "jpg": [b"x"], "caption": ["no"]}


def rows_of(count: int) -> dict[str, list[Any]]:
    """Pictures that do not compress, 3 kB each, and captions."""
    return {
        "image": [bytes([n % 251]) * 8 + os.urandom(3000) for n in range(count)],
        "text": [str(n) for n in range(count)],
    }


def test_ranges_in_any_order_and_with_gaps_give_the_same_bytes(tmp_path: Path) -> None:
    rows = rows_of(300)
    shard = only(write(tmp_path / "a.parquet", rows, row_group_size=120))
    table = index(shard).table
    reader = Reader(shard)
    for wanted in ([0, 1, 2], range(3, 90), [100, 130, 299], [5], range(110, 260), [290], [245], []):
        assert reader.read(wanted, table.take(pa.array(wanted, pa.int64()))) == [rows["image"][row] for row in wanted]


def damage(path: Path, column: str, group: int) -> None:
    """Overwrite the pages of one column in one row group with ones."""
    meta = pq.read_metadata(path)
    chunk = meta.row_group(group).column(meta.schema.names.index(column))
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    rows = rows_of(300)
    path = write(tmp_path / "a.parquet", rows, row_group_size=100, use_dictionary=False)
    damage(path, "image", 1)
    columns, data = everything(only(path))
    assert data == rows["image"][:100] + ["unreadable"] * 100 + rows["image"][200:]
    assert columns["caption_raw"] == rows["text"]


def test_a_damaged_caption_page_is_an_error_and_no_missing_caption(tmp_path: Path) -> None:
    rows = rows_of(30)
    path = write(tmp_path / "a.parquet", rows, row_group_size=10, use_dictionary=False)
    damage(path, "text", 2)
    columns, data = everything(only(path))
    assert data == rows["image"][:20] + ["unreadable"] * 10
    assert columns["caption_raw"] == rows["text"][:20] + [None] * 10
    assert "column 'text'" in columns["_message"][20]


def test_a_large_row_group_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    picture = os.urandom(100_000)
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, use_dictionary=False, write_batch_size=64) as writer:
        writer.write_table(pa.table({"image": [picture] * 1500}, schema=schema))
    shard = only(tmp_path / "a.parquet")
    table = index(shard).table
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    before, reader, most = pa.total_allocated_bytes(), Reader(shard), 0
    for first in range(0, 1500, 50):
        assert reader.read(range(first, first + 50), table.slice(first, 50)) == [picture] * 50
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 40e6


def test_the_identity_changes_with_the_content_and_with_nothing_else(tmp_path: Path) -> None:
    first = index(only(write(tmp_path / "a.parquet", {"image": [b"x"], "text": ["a"]}))).identity
    os.utime(tmp_path / "a.parquet", (1, 1))
    assert index(only(tmp_path / "a.parquet")).identity == first
    (tmp_path / "b").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "b" / "c.parquet")
    assert index(only(tmp_path / "b")).identity == first == identity(only(tmp_path / "b"))
    assert index(only(write(tmp_path / "a.parquet", {"image": [b"y"], "text": ["a"]}))).identity != first


def test_wrong_utf8_in_a_text_column_shows_as_replacement_characters(tmp_path: Path) -> None:
    text = pa.array([b"caf\xe9", None, b"ok"], pa.binary()).view(pa.string())
    columns, _ = everything(only(write(tmp_path / "a.parquet", {"jpg": [b"x"] * 3, "caption": text, "alt": text})))
    assert columns["caption_raw"] == columns["alt"] == ["caf\ufffd", None, "ok"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"this is text, honestly", b"PAR1" + b"\0" * 100])
def test_a_file_that_is_no_parquet_fails_as_a_shard_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.parquet").write_bytes(content)
    for use in (index, Reader):
        with pytest.raises(InputError) as failure:
            use(only(tmp_path))
        assert failure.value.code == "shard_unreadable"
        assert "bad.parquet" in failure.value.message
        assert "\n" not in failure.value.message


def test_a_parquet_without_its_footer_fails_as_a_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.parquet", rows_of(10))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"cut\.parquet") as failure:
        index(only(path))
    assert failure.value.code == "shard_unreadable"


def test_an_empty_parquet_is_a_shard_without_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())})
    found = index(only(path))
    assert found.table.num_rows == 0


# WebDataset


def test_members_of_a_tar_are_grouped_by_key_and_json_keys_become_columns(tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "00000.tar",
        {
            "a/000.jpg": b"first",
            "a/000.txt": b"\xef\xbb\xbfa cat\n",
            "a/000.json": json.dumps({"w": 1, "tags": ["x"], "width": 9, "half": 1, "mix": "s"}).encode(),
            "a/001.v2.png": b"second",
            "a/001.json": json.dumps({"w": 2, "caption": "from json", "half": 0.5, "mix": 1, "bad": "\ud800"}).encode(),
            "a/._001.jpg": b"macOS leaves these",
            "a/002.webp": b"third",
        },
    )
    shard = only(path)
    assert (shard.id, shard.format) == ("00000", "webdataset")
    found = index(shard)
    columns, data = everything(shard)
    assert data == [b"first", b"second", b"third"]
    assert columns["caption_raw"] == ["a cat", "from json", None]
    assert columns["key"] == ["a/000", "a/001", "a/002"]
    assert columns["w"] == [1, 2, None]
    assert found.table.schema.field("w").type == pa.int64()
    assert columns["tags"] == ['["x"]', None, None]
    assert columns["half"] == [1.0, 0.5, None]
    assert columns["mix"] == ["s", "1", None]
    assert columns["bad"] == [None, "?", None]
    assert columns["input_width"] == [9, None, None]
    assert (found.image_column, found.caption_column) == ("jpg", "txt")


def test_a_cut_tar_keeps_the_rows_before_the_cut(tmp_path: Path) -> None:
    members = {f"{n}.{suffix}": bytes([n]) * 2000 for n in range(3) for suffix in ("jpg", "txt")}
    path = make_tar(tmp_path / "a.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        picture, text = tar.getmember("2.jpg"), tar.getmember("2.txt")
    good = [bytes([n]) * 2000 for n in range(3)]
    cuts = {
        picture.offset_data + 700: [*good[:2], "truncated"],
        text.offset_data + 700: [*good[:2], "truncated"],
        text.offset + 100: [*good, "unreadable"],
        picture.offset + 100: [*good[:2], "unreadable"],
        picture.offset: good[:2],
    }
    for cut, wanted in cuts.items():
        path.write_bytes(whole[:cut])
        columns, data = everything(only(path))
        assert data == wanted
        assert len(columns["_message"]) == len(wanted)
    assert "ends after 700 of the 2000 bytes" in str(everything_message(path, whole[: picture.offset_data + 700]))


def everything_message(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(index(only(path)).table.column("_message").to_pylist()[-1])


def test_a_damaged_header_is_one_row_that_says_that_the_rest_is_lost(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{n}.jpg": b"x" * 600 for n in range(4)})
    data = bytearray(path.read_bytes())
    data[2 * 1536 : 2 * 1536 + 512] = b"\xff" * 512
    path.write_bytes(data)
    columns, found = everything(only(path))
    assert found == [b"x" * 600, b"x" * 600, "unreadable"]
    assert columns["key"] == ["0", "1", None]
    assert "byte 3072" in columns["_message"][2]


def test_odd_members_of_a_tar_are_rows_with_errors_and_nothing_is_ever_extracted(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes = b"", **header: Any) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in header.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))

        add("dir.jpg", type=tarfile.DIRTYPE)
        add("../../up.jpg", b"up")
        add("/abs.jpg", b"abs")
        add("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.jpg", type=tarfile.LNKTYPE, linkname="/abs.jpg")
        add("device.jpg", type=tarfile.CHRTYPE)
        add("lonely.txt", b"no picture")
        add("zero.jpg")
        add("badjson.jpg", b"pixels")
        add("badjson.json", b"{not json")
        add("twice.jpg", b"one")
        add("twice.jpg", b"two")
    columns, data = everything(only(path))
    assert dict(zip(columns["key"], data, strict=True)) == {
        "../../up": b"up", "/abs": b"abs", "link": "unreadable", "hard": "unreadable", "device": "unreadable",
        "lonely": "empty", "zero": "empty", "badjson": "unreadable", "twice": b"two",
    }  # fmt: skip
    assert data[-2:] == [b"one", b"two"]
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.tar"]


def test_a_compressed_or_broken_archive_fails_as_a_shard(tmp_path: Path) -> None:
    for name, content, says in (
        ("a.tar.gz", b"\x1f\x8b\x08\0rest", "unpack it"),
        ("b.tar", b"", "empty file"),
        ("c.tar", b"neither tar nor anything" * 40, "no readable tar"),
        ("d.tar", b"\x28\xb5\x2f\xfd....", "zstd"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=says) as failure:
            index(only(tmp_path / name))
        assert failure.value.code == "shard_unreadable"
        assert name in failure.value.message


def test_a_tar_without_samples_has_no_rows(tmp_path: Path) -> None:
    assert everything(only(make_tar(tmp_path / "a.tar", {}))) == (
        {"caption_raw": [], "_offset": [], "_size": [], "_error": [], "_message": [], "key": []}, [],
    )  # fmt: skip


def test_the_named_member_is_the_picture(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"0.jpg": b"photo", "0.mask.png": b"mask", "0.json": b'{"blip": "words"}'})
    assert everything(only(path))[1] == [b"photo"]
    columns, data = everything(only(path, image_column="mask.png", caption_column="blip"))
    assert (columns["caption_raw"], data) == (["words"], [b"mask"])
    with pytest.raises(InputError, match=r"no member \.gif"):
        index(only(path, image_column="gif"))
    with pytest.raises(InputError, match="did you mean 'blip'"):
        index(only(path, caption_column="blib"))


def test_the_identity_of_a_tar_changes_with_its_members(tmp_path: Path) -> None:
    def of(members: dict[str, bytes]) -> str:
        return index(only(make_tar(tmp_path / "a.tar", members))).identity

    first = of({"0.jpg": b"x", "0.txt": b"a"})
    assert identity(only(tmp_path / "a.tar")) == first
    assert of({"0.jpg": b"x", "0.txt": b"a"}) == first
    assert of({"0.jpg": b"x", "0.txt": b"b"}) != first
    assert of({"1.jpg": b"x", "1.txt": b"a"}) != first


# Folders


def test_a_folder_of_pictures_is_one_shard_for_each_folder(tmp_path: Path) -> None:
    top = tmp_path / "photos"
    (top / "sub" / ".hidden").mkdir(parents=True)
    (top / "_DSC1.jpg").write_bytes(b"one")
    (top / "_DSC1.txt").write_text("a dog\n", encoding="utf-8")
    (top / "b.v2.PNG").write_bytes(b"two")
    (top / "b.v2.json").write_text('{"caption": "from json", "stars": 5}')
    (top / "c.psd").write_bytes(b"8BPS")
    (top / "truth.json").write_text("[]")
    (top / ".secret.jpg").write_bytes(b"no")
    (top / "sub" / ".hidden" / "x.jpg").write_bytes(b"no")
    (top / "sub" / "z.jpg").write_bytes(b"")
    found = shards(top)
    assert [(s.id, s.format) for s in found] == [("photos", "folder"), ("sub", "folder")]
    columns, data = everything(found[0])
    assert columns["file_name"] == ["_DSC1.jpg", "b.v2.PNG", "c.psd"]
    assert columns["caption_raw"] == ["a dog", "from json", None]
    assert columns["stars"] == [None, 5, None]
    assert data == [b"one", b"two", b"8BPS"]
    assert everything(found[1])[1] == ["empty"]
    first = index(found[0]).identity
    assert index(found[0]).identity == first
    (top / "_DSC1.txt").write_text("a cat\n", encoding="utf-8")
    assert index(found[0]).identity != first


def test_links_in_a_folder_may_not_lead_out_of_it(tmp_path: Path) -> None:
    top = tmp_path / "photos"
    top.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "secret.txt").write_text("secret")
    (top / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    (top / "b.jpg").write_bytes(b"b")
    (top / "b.txt").symlink_to(tmp_path / "secret.txt")
    (top / "c.jpg").symlink_to("nowhere")
    (top / "d.jpg").symlink_to("b.jpg")
    (top / "loop").symlink_to(".")
    columns, data = everything(only(top))
    assert data == ["outside_input", "outside_input", "missing_file", b"b"]
    assert columns["caption_raw"] == [None] * 4
    assert everything(only(top, root=str(tmp_path)))[1][0] == b"secret"


def test_a_glob_of_pictures_takes_these_alone(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.png"):
        (tmp_path / name).write_bytes(name.encode())
    assert everything(only(tmp_path / "*.jpg"))[1] == [b"a.jpg", b"b.jpg"]
    assert everything(only(tmp_path / "c.png"))[1] == [b"c.png"]


# img2dataset


def test_the_parquet_that_img2dataset_writes_beside_a_tar_or_a_folder_is_no_shard(tmp_path: Path) -> None:
    record = {
        "url": ["http://x/0.jpg", "http://x/1.jpg"],
        "key": ["0", "1"],
        "status": ["success", "failed_to_download"],
    }
    for kind in ("tars", "files"):
        write(tmp_path / kind / "00000.parquet", record)
        (tmp_path / kind / "00000_stats.json").write_text("{}")
    make_tar(tmp_path / "tars" / "00000.tar", {"0.jpg": b"x", "0.txt": b"t", "0.json": b'{"key": "0", "sha256": "y"}'})
    (tmp_path / "files" / "00000").mkdir()
    (tmp_path / "files" / "00000" / "0.jpg").write_bytes(b"x")
    (tmp_path / "files" / "00000" / "0.json").write_text('{"key": "0", "caption": "t"}')
    columns, data = everything(only(tmp_path / "tars"))
    assert (data, columns["key"], columns["input_sha256"]) == ([b"x"], ["0"], ["y"])
    assert "input_key" not in columns
    columns, data = everything(only(tmp_path / "files"))
    assert (data, columns["caption_raw"], columns["file_name"]) == ([b"x"], ["t"], ["0.jpg"])


def test_img2dataset_parquet_keeps_the_rows_that_it_could_not_download(tmp_path: Path) -> None:
    columns, data = everything(
        only(
            write(
                tmp_path / "00000.parquet",
                {"jpg": [b"x", None], "caption": ["a", "b"], "status": ["success", "failed"]},
            )
        )
    )
    assert data == [b"x", "empty"]
    assert columns["status"] == ["success", "failed"]


# Discovery


def test_ids_come_from_the_relative_path_and_stay_when_shards_come_and_go(tmp_path: Path) -> None:
    def ids() -> list[str]:
        return [shard.id for shard in shards(tmp_path)]

    write(tmp_path / "a" / "b-1.parquet", {"jpg": [b"x"]})
    assert ids() == ["a=b-1"]
    write(tmp_path / "a=b-1.parquet", {"jpg": [b"x"]})
    write(tmp_path / "图 1.parquet", {"jpg": [b"x"]})
    write(tmp_path / ("n" * 240 + ".parquet"), {"jpg": [b"x"]})
    write(tmp_path / "_temporary" / "t.parquet", {"jpg": [b"x"]})
    write(tmp_path / ".hidden.parquet", {"jpg": [b"x"]})
    found = ids()
    assert found == sorted(found)
    assert len(set(found)) == 4
    assert "a=b-1" in found
    assert all(len(name) <= 200 and name.isascii() for name in found)
    assert ids() == found


def test_a_folder_inside_a_folder_of_its_own_name_has_its_own_id(tmp_path: Path) -> None:
    (tmp_path / "a" / "a").mkdir(parents=True)
    (tmp_path / "a" / "x.jpg").write_bytes(b"x")
    (tmp_path / "a" / "a" / "x.jpg").write_bytes(b"x")
    assert len({shard.id for shard in shards(tmp_path / "a")}) == 2


def test_files_folders_globs_and_file_uris_name_shards(tmp_path: Path) -> None:
    for name in ("train/0.parquet", "train/1.parquet", "test/0.parquet", "odd[1].parquet", "noname"):
        write(tmp_path / name, {"jpg": [b"x"]})
    make_tar(tmp_path / "train" / "2.tar", {"0.jpg": b"x"})

    def ids(pattern: str, **spec: str) -> list[str]:
        return [shard.id for shard in shards(f"{tmp_path}/{pattern}", **spec)]

    assert ids("train") == ["0", "1", "2"]
    assert ids("train", format="parquet") == ["0", "1"]
    assert ids("train/0.parquet") == ["0"]
    assert ids("t*/0.parquet") == ["test=0", "train=0"]
    assert ids("t*", format="parquet") == ["test=0", "train=0", "train=1"]
    assert ids("**/[01].parquet") == ["test=0", "train=0", "train=1"]
    assert ids("odd[1].parquet")[0].startswith("odd_1_-")
    assert ids("noname") == ["noname"]
    assert [shard.id for shard in shards(f"file://{tmp_path}/train/0.parquet")] == ["0"]
    assert [shard.format for shard in shards(tmp_path / "train")] == ["parquet", "parquet", "webdataset"]


@pytest.mark.parametrize(
    ("uri", "spec", "says"),
    [
        ("", {}, "input.uri is empty"),
        ("gone", {}, "no such file or folder"),
        ("gone/*.parquet", {}, "no Parquet files, WebDataset archives or pictures found"),
        (".", {"format": "webdataset"}, r"no WebDataset archives \(\.tar\) found"),
        (".", {"format": "tfrecord"}, "none of auto, parquet, webdataset, folder"),
        ("https://example.org/a.parquet", {}, "never reads from the web"),
        ("nosuch://x/y", {}, "cannot be reached"),
    ],
)
def test_an_input_without_shards_is_one_clear_line(tmp_path: Path, uri: str, spec: dict[str, str], says: str) -> None:
    local = uri and "://" not in uri
    with pytest.raises(InputError, match=says) as failure:
        shards(tmp_path / uri if local else uri, **spec)
    assert "\n" not in failure.value.message


# Object stores


def test_other_schemes_go_through_fsspec() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a/0.jpg", b"x")
    memory.pipe("/bucket/a/0.txt", b"t")
    columns, data = everything(only("memory://bucket/a"))
    assert (columns["caption_raw"], data) == (["t"], [b"x"])
    memory.rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[pyarrow.fs.S3FileSystem]:
    """An S3 server on loopback with the bucket `pictures`, found through the usual environment variables."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    ours = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    store = pyarrow.fs.S3FileSystem(endpoint_override=ours["AWS_ENDPOINT_URL"], allow_bucket_creation=True)
    store.create_dir("pictures")
    yield store
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def put(store: pyarrow.fs.S3FileSystem, key: str, data: bytes) -> None:
    with store.open_output_stream(f"pictures/{key}") as out:
        out.write(data)


def test_every_layout_reads_the_same_from_s3_as_from_disk(tmp_path: Path, bucket: pyarrow.fs.S3FileSystem) -> None:
    rows = rows_of(100)
    write(tmp_path / "pq" / "a.parquet", rows, row_group_size=40)
    write(tmp_path / "paths" / "a.parquet", {"path": ["p/0.jpg", "p/gone.jpg", "../up.jpg", "p/a%20b #1.jpg"]})
    (tmp_path / "paths" / "p").mkdir()
    (tmp_path / "paths" / "p" / "0.jpg").write_bytes(b"zero")
    (tmp_path / "paths" / "p" / "a%20b #1.jpg").write_bytes(b"odd")
    (tmp_path / "tar").mkdir()
    make_tar(
        tmp_path / "tar" / "a.tar",
        {f"{n}.{suffix}": bytes([n]) * (n * 777) for n in range(40) for suffix in ("jpg", "txt")},
    )
    (tmp_path / "folder" / "in").mkdir(parents=True)
    for n in range(5):
        (tmp_path / "folder" / "in" / f"{n}.jpg").write_bytes(b"x" * n)
        (tmp_path / "folder" / "in" / f"{n}.txt").write_text(f"caption {n}")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            put(bucket, file.relative_to(tmp_path).as_posix(), file.read_bytes())
    for layout in ("pq", "paths", "tar", "folder"):
        here, there = only(tmp_path / layout), only(f"s3://pictures/{layout}")
        assert (here.id, here.format) == (there.id, there.format)
        assert there.uri.startswith("s3://pictures/")
        assert everything(here) == everything(there)
        assert index(here).identity == index(there).identity
    assert [shard.id for shard in shards("s3://pictures/*/a.*")] == ["paths=a", "pq=a", "tar=a"]


def test_a_row_reads_s3_objects_below_its_root_only(bucket: pyarrow.fs.S3FileSystem) -> None:
    put(bucket, "below/a.jpg", b"a")
    put(bucket, "belowed.jpg", b"no")
    wanted = {
        "s3://pictures/below/a.jpg": b"a",
        "a.jpg": b"a",
        "s3://pictures/belowed.jpg": "outside_input",
        "s3://pictures/below/../belowed.jpg": "outside_input",
        "s3://other/a.jpg": "outside_input",
        "/etc/passwd": "outside_input",
        "file:///etc/passwd": "outside_input",
        "s3://pictures/below/gone.jpg": "missing_file",
    }
    out = io.BytesIO()
    pq.write_table(pa.table({"image": list(wanted)}), out)
    put(bucket, "lists/a.parquet", out.getvalue())
    shard = only("s3://pictures/lists/a.parquet", root="s3://pictures/below")
    assert dict(zip(wanted, everything(shard)[1], strict=True)) == wanted


def test_a_bucket_that_is_not_there_is_one_clear_line(bucket: pyarrow.fs.S3FileSystem) -> None:
    with pytest.raises(InputError, match="s3://nowhere-at-all") as failure:
        shards("s3://nowhere-at-all/x")
    assert "\n" not in failure.value.message
