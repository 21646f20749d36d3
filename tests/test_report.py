"""The report of real stores made here: pictures drawn in the test, the inline engine, no detectors."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate import pipeline
from curate.errors import CurateError, StoreError, UsageError
from curate.pictures import original, originals, thumbnail
from curate.recipe import from_tables
from curate.report import render, write_report
from curate.report.cuts import read_cuts
from curate.report.histograms import Histogram, histograms, number
from curate.store import Store
from schemas.errors import RowError

POLICY = {
    "resolution": "least(width, height) >= 64",
    "shape": "aspect BETWEEN 0.5 AND 2",
    "own": "license <> 'unknown'",
}
NASTY = "<script>alert(1)</script> a \"quoted\" & 'odd' caption </style>"


def drawn(seed: int, width: int = 160, height: int = 120) -> bytes:
    """A noisy JPEG, so that every scorer has something to measure."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=80)
    return out.getvalue()


def make_store(
    folder: Path, rows: list[tuple[bytes | None, str | None, str]], policy: dict[str, str] = POLICY
) -> Store:
    """The store of one shard of (picture, caption, license) after the main job."""
    images, captions, licenses = zip(*rows, strict=True) if rows else ((), (), ())
    table = pa.table(
        {
            "image": pa.array(images, pa.binary()),
            "caption": pa.array(captions, pa.string()),
            "license": pa.array(licenses, pa.string()),
        }
    )
    shards = folder / "shards"
    shards.mkdir(parents=True)
    pq.write_table(table, shards / "a.parquet")
    tables = {
        "input": {"uri": str(shards)},
        "store": {"uri": str(folder / "store")},
        "engine": {"kind": "inline"},
        "run": {"max_failed_share": 1.0},
        "faces": {"engine": "none"},
        "ocr": {"engine": "none"},
        "policy": policy,
    }
    assert pipeline.run(from_tables(tables)) == 0
    return Store(folder / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Eight kept rows, three drops for different reasons, one of them on a NULL, and three failures."""
    rows: list[tuple[bytes | None, str | None, str]] = [(drawn(i), f"picture {i}", "cc0") for i in range(7)]
    rows += [(drawn(7), NASTY, "cc0"), (drawn(8, 40, 40), "small", "cc0"), (drawn(9, 300, 100), "wide", "cc0")]
    rows += [(drawn(10), "whose", "unknown"), (b"", None, "cc0"), (None, None, "cc0"), (drawn(11)[:900], "cut", "cc0")]
    return make_store(tmp_path_factory.mktemp("report"), rows)


@pytest.fixture(scope="module")
def page(store: Store) -> str:
    """The page of that store."""
    return render(store)


class Tags(HTMLParser):
    """All start tags with their attributes, the text, and whether every tag was closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "img", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def cells(page: str, section: str) -> list[list[str]]:
    """The text of the body rows of a section's table."""
    body = page.split(f'id="{section}"')[1].split("<tbody>")[1].split("</tbody>")[0]
    rows = []
    for row in body.split("<tr")[1:]:
        texts = re.findall(r"<(?:th|td)[^>]*>(.*?)</(?:th|td)>", row, re.S)
        rows.append([re.sub(r"<small.*|<[^>]+>", "", text, flags=re.S).strip() for text in texts])
    return rows


def test_the_funnel_has_the_counts_of_the_views(store: Store, page: str) -> None:
    found = {row[0]: (row[2], row[5]) for row in cells(page, "funnel")}
    counts = store.counts()
    reasons = dict(store.drop_reasons())
    assert counts == {
        "rows": 14, "kept": 8, "dropped": 3, "failed": 3, "undecided": 0, "captions_en": 8, "captions_zh": 8,
    }  # fmt: skip
    assert reasons == {"resolution": 1, "shape": 1, "own": 1}
    assert found["Rows in"] == ("", "14")
    assert found["failed"] == ("3", "11")
    left = 11
    for name in ("resolution", "shape", "own"):
        left -= 1
        assert found[name] == ("1", str(left)), name
    assert found["Kept"] == ("", "8")


def test_a_null_is_counted_at_its_predicate_and_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, [(drawn(1), None, "cc0"), (drawn(2), "a", "cc0")], {"told": "length(caption_raw) > 0"})
    page = render(store)
    assert {row[0]: row[2] for row in cells(page, "funnel")}["told"] == "1"
    assert "1 of these because the score is NULL" in page
    assert 'aria-label="Dropped: told_null"' in page


def test_overlap_counts_rows_that_only_one_predicate_rejects(tmp_path: Path) -> None:
    policy = {"size": "least(width, height) >= 64", "shape": "aspect < 2"}
    rows = [(drawn(1, 40, 40), "", ""), (drawn(2, 200, 20), "", ""), (drawn(3, 300, 100), "", ""), (drawn(4), "", "")]
    page = render(make_store(tmp_path, rows, policy))
    assert cells(page, "overlap") == [["size", "4", "2", "1", "·", "1"], ["shape", "4", "2", "1", "1", "·"]]


def test_thumbnails_decode_and_every_picture_has_a_text(page: str) -> None:
    images = [attributes for tag, attributes in Tags(page).tags if tag == "img"]
    assert len(images) == 8 + 3 + 8  # kept, dropped, captions
    for image in images:
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        picture.load()
        assert (str(picture.width), str(picture.height)) == (image["width"], image["height"])
        assert image["alt"]


def test_nothing_points_outside(page: str) -> None:
    for tag, attributes in Tags(page).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "poster"):
                assert value.startswith(("#", "data:image/jpeg;base64,"))
    assert not re.search(r"https?://|url\(|@import", page)


def test_captions_and_all_other_data_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert NASTY in Tags(page).text
    assert "&lt;script&gt;" in page


def test_every_tag_is_closed_and_ids_and_links_agree(page: str) -> None:
    tags = Tags(page)
    assert tags.open == []
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in tags.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    for tag, attributes in tags.tags:
        assert tag != "th" or attributes["scope"] in ("col", "row")


def test_the_same_store_gives_the_same_bytes(store: Store, page: str) -> None:
    assert render(Store(store.uri)) == page


def test_errors_are_listed_with_row_operator_word_and_message(store: Store, page: str) -> None:
    listed = cells(page, "errors")
    assert listed == [
        [row_id, operator, error, message.replace("'", "&#39;")]
        for row_id, operator, error, message in store.rows(
            "SELECT row_id, operator, error, message FROM errors ORDER BY shard, row, operator"
        )
    ]
    assert [row[2] for row in listed] == ["empty", "empty", "truncated"]


def test_what_ran_names_versions_and_the_recipe(store: Store, page: str) -> None:
    versions = {row[0]: row for row in cells(page, "versions")}
    assert versions["caption"][1:4] == ["facts", "curate-facts", versions["caption"][3]]
    for operator, mark in store.rows("SELECT operator, fingerprint FROM operators WHERE active"):
        assert versions[operator][4] == mark
    speeds = {row[0]: row for row in cells(page, "throughput")}
    assert speeds["size"][1] == "14"
    assert speeds["caption"][1] == "8"
    assert "shape&#34; = &#34;aspect BETWEEN 0.5 AND 2" in page


def test_a_second_run_that_computes_nothing_keeps_the_figures_of_the_first(tmp_path: Path) -> None:
    store = make_store(tmp_path, [(drawn(1), "a", "cc0")])
    (run_id,) = store.rows("SELECT run_id FROM runs")[0]
    recipe = from_tables(
        {"input": {"uri": str(tmp_path / "shards")}, "store": {"uri": store.uri}, "engine": {"kind": "inline"},
         "faces": {"engine": "none"}, "ocr": {"engine": "none"}, "policy": POLICY}
    )  # fmt: skip
    assert pipeline.run(recipe) == 0
    assert f"these are the figures of run {run_id}" in render(store)


def test_a_run_that_was_planned_stands_beside_its_plan(tmp_path: Path) -> None:
    store = make_store(tmp_path, [(drawn(1), "a", "cc0")])
    assert "Planned" not in render(store)
    (path,) = (path for path in store.files.list("runs") if path.endswith("run.json"))
    record = json.loads(store.files.read(path))
    steps = {"size": {"planned_ms": 1500.0, "actual_ms": 1.0, "planned_rows": 1, "rows": 1}}
    record["report"]["planned"] = {"planned_seconds": 75.0, "seconds": 1.0, "steps": steps}
    store.files.replace(path, json.dumps(record).encode())
    store.ingest()
    page = render(store)
    assert "had said 1 min 15 s from start to end" in page
    planned = {row[0]: row[3] for row in cells(page, "throughput") if len(row) > 3}
    assert (planned["size"], planned["sharpness"]) == ("1.5 s", "–")


def test_an_empty_store_has_a_page(tmp_path: Path) -> None:
    page = render(make_store(tmp_path, []))
    assert "No rows yet" in page
    for text in ("No row was kept.", "No row was dropped.", "No row has a synthetic caption.", "No row failed."):
        assert text in page
    assert Tags(page).open == []


def test_a_store_of_failures_only_has_a_page(tmp_path: Path) -> None:
    page = render(make_store(tmp_path, [(b"", "a", ""), (b"no picture", "b", "")]))
    assert "<b>0</b> of 2 rows kept" in page
    assert [row[2] for row in cells(page, "errors")] == ["empty", "not_an_image"]
    assert {row[0]: row[2] for row in cells(page, "funnel")}["failed"] == "2"


def test_a_shard_that_has_gone_leaves_a_page_without_its_pictures(tmp_path: Path) -> None:
    store = make_store(tmp_path, [(drawn(1), "a", "cc0")])
    (tmp_path / "shards" / "a.parquet").unlink()
    page = render(store)
    assert "<b>1</b> of 1 rows kept" in page
    assert 'class="missing">unreadable' in page


def test_sheets_are_bounded_and_say_so(tmp_path: Path) -> None:
    small = drawn(1, 24, 24)
    rows: list[tuple[bytes | None, str | None, str]] = [(drawn(2, 80, 64), "x" * 5000, "cc0")] * 30
    rows += [(small, "s", "cc0")] * 20
    page = render(make_store(tmp_path, rows))
    assert "24 of 30" in page
    assert "16 of 20" in page
    assert "12 of 30" in page
    assert "x" * 1201 not in page
    assert page.count("<img") == 24 + 16 + 12


def test_the_page_goes_to_the_store_or_to_the_named_file(store: Store, tmp_path: Path) -> None:
    assert write_report(store, None) == Path(store.uri) / "report.html"
    assert (
        write_report(store, tmp_path / "new" / "page.html").read_bytes()
        == (Path(store.uri) / "report.html").read_bytes()
    )


def test_what_cannot_be_written_is_one_clear_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="cannot be written"):
        write_report(store, tmp_path)
    with pytest.raises(StoreError, match="no store here"):
        write_report(Store(tmp_path / "nothing"), None)
    with pytest.raises(UsageError, match="--out"):
        write_report(_Remote(store), None)


class _Remote(Store):
    """A store whose files are not on this machine's disk."""

    def __init__(self, store: Store) -> None:
        super().__init__("s3://bucket/store", _RemoteFiles(store.files))


class _RemoteFiles:
    def __init__(self, files: object) -> None:
        self.files = files

    def __getattr__(self, name: str) -> object:
        return (lambda path: None) if name == "local" else getattr(self.files, name)


@pytest.mark.parametrize(
    ("sql", "cuts"),
    [
        ("least(width, height) >= 256", [('least(width, height)', ">= 256")]),
        ("aspect BETWEEN 0.33 AND 3", [("aspect", ">= 0.33"), ("aspect", "<= 3")]),
        ("a < 0.8 AND 5 > b", [("a", "< 0.8"), ("b", "< 5")]),
        ("NOT faces > 3", [("faces", "<= 3")]),
        ("faces = 0", [("faces", ">= 0"), ("faces", "<= 0")]),
        ("a >= 2 * 3 -- why", [("a", ">= 6")]),
        ("format <> 'GIF' AND a > -1", [("a", "> -1")]),
        ("a > 1 OR b > 2", []),
        ("format = 'JPEG'", []),
        ("a > b", []),
        ("faces <> 3", []),
        ("this is no SQL", []),
    ],
)  # fmt: skip
def test_cuts_are_read_off_plain_bounds_and_off_nothing_else(sql: str, cuts: list[tuple[str, str]]) -> None:
    assert [(cut.expression, cut.text) for cut in read_cuts([("p", sql)])] == cuts


def chart(store: Store, sql: str) -> Histogram:
    """The first chart of a policy of one predicate."""
    charts, _, _ = histograms(store, read_cuts([("p", sql)]), store.counts()["rows"])
    return charts[0]


def test_a_histogram_counts_every_row_once(store: Store) -> None:
    for sql in ("sharpness_tile >= 60", "width > 100", "aspect BETWEEN 0.5 AND 2"):
        found = chart(store, sql)
        counted = [re.findall(r"([\d,]+) rows, ([\d,]+) kept", bar.title)[0] for bar in found.bars]
        assert sum(int(rows) for rows, _ in counted) == found.rows
        assert sum(int(kept) for _, kept in counted) == 8
        assert found.rows + found.nulls == 14


def test_a_cut_stands_between_two_bars(store: Store) -> None:
    for sql in ("least(width, height) >= 64", "aspect <= 2", "sharpness_tile >= 60"):
        found = chart(store, sql)
        (line,) = found.lines
        assert all(line.at <= bar.x + 0.02 or line.at >= bar.x + bar.width - 0.02 for bar in found.bars), sql
        rejected = [
            bar for bar in found.bars if line.reject_x <= bar.x + bar.width / 2 <= line.reject_x + line.reject_width
        ]
        assert not any(bar.kept for bar in rejected), sql


def test_outliers_do_not_flatten_a_histogram(tmp_path: Path) -> None:
    rows: list[tuple[bytes | None, str | None, str]] = [(drawn(1, 80, 64), str(i - 20), "cc0") for i in range(40)]
    store = make_store(tmp_path, [*rows, (drawn(2, 80, 64), "-1000000", "cc0")])
    found = chart(store, "caption_raw::DOUBLE > -21")
    assert found.notes == ["1 outlier not drawn (from -1M to 19)"]
    assert len(found.bars) > 10


def test_numbers_are_short() -> None:
    shown = [number(v) for v in (0, 5, 0.0153, 1.5, 99.95, 1234.5, 12345, 2_500_000, -0.5, 3e12)]
    assert shown == ["0", "5", "0.0153", "1.5", "100", "1,234", "12.3k", "2.5M", "-0.5", "3,000G"]


def test_original_bytes_come_back_unchanged(store: Store) -> None:
    assert original(store, "a:0") == drawn(0)
    found = originals(store, ["a:9", "a:11", "a:0"])
    assert list(found) == ["a:9", "a:11", "a:0"]
    assert found["a:9"] == drawn(9, 300, 100)
    assert isinstance(found["a:11"], RowError)
    with pytest.raises(RowError) as empty:
        original(store, "a:12")
    assert empty.value.code == "empty"
    assert originals(store, []) == {}


@pytest.mark.parametrize("row_id", ["a:14", "b:0", "a", "a:", ":1", "a:-1", "a:٣", "a:99999999999999999999"])
def test_an_id_that_no_row_has_is_one_clear_line(store: Store, row_id: str) -> None:
    with pytest.raises(StoreError, match="row") as why:
        original(store, row_id)
    assert "\n" not in str(why.value)


def test_a_thumbnail_is_upright_small_and_never_enlarged() -> None:
    out = io.BytesIO()
    picture = Image.new("CMYK", (400, 200))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(out, "JPEG", exif=exif)
    small = Image.open(io.BytesIO(thumbnail(out.getvalue(), 100)))
    assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (50, 100))
    assert Image.open(io.BytesIO(thumbnail(drawn(1, 30, 20), 100))).size == (30, 20)
    with pytest.raises(RowError):
        thumbnail(b"no picture", 100)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text."""
    css = (Path(pipeline.__file__).parent / "report" / "page.css").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.S)[("light", "dark").index(scheme)]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", block))

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ink in ("ink", "soft", "kept-ink", "drop-ink", "fail"):
        for ground in ("paper", "track"):
            low, high = sorted(map(luminance, (colors[ink], colors[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_a_run_that_is_under_way_does_not_change_the_page(tmp_path: Path) -> None:
    store = make_store(tmp_path, [(drawn(1), "a", "cc0")])
    page = render(store)
    store.files.replace("runs/29990101T000000/run.json", b'{"run_id": "29990101T000000", "state": "running"}')
    assert render(store) == page
