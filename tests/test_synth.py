"""Rendered text: words and their rare characters, faces, specs, every glyph in its place, captions, round trip."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from curate import cli, pipeline
from curate.errors import CurateError, UsageError
from curate.progress import Display
from curate.read import InputSpec, discover
from curate.recipe import from_tables
from curate.store import Store
from curate.synth import captions, check, colors, fonts, photographs, verify, words
from curate.synth.again import Specs
from curate.synth.draw import Draw
from curate.synth.fonts import Face
from curate.synth.layouts import palette
from curate.synth.photographs import Photographs
from curate.synth.render import Glyph, Rendered, clean, encode, render
from curate.synth.sample import sample
from curate.synth.shards import generate, load_recipe, open_world, prepare, rows_there, to_toml
from curate.synth.spec import Page, Synth, Unfit, World, digest, draw_spec, ems, to_json
from curate.synth.words import FLOOR, LEVEL_1, Lexicon, Words
from workers.ocr import RapidOcr
from workers.poster import place_of

QUIET = Console(file=io.StringIO())
FONTS = (
    Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc"),
    Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"),
)
# Frequent words, and three that hold characters of GB2312's second level.
SMALL = [
    "中国",
    "人民",
    "城市",
    "图书馆",
    "花园",
    "咖啡",
    "音乐",
    "大学",
    "春天",
    "月亮",
    "山水",
    "书店",
    "茶",
    "火车站",
    "苹果",
    "设计",
    "生活",
    "朋友",
    "海洋",
    "琵琶",
    "朦胧",
    "蜻蜓",
]


def small_lexicon() -> Lexicon:
    return Lexicon(tuple(SMALL), tuple(range(1000, 1000 - 40 * len(SMALL), -40)), "test")


def paper_face(number: int = 0, missing: str = "", kind: str = "sans") -> Face:
    """A face of which only the facts are looked at."""
    return Face(f"/no/{number}.ttf", 0, f"Paper {number}", "Regular", kind, f"{number:064x}", missing)


@pytest.fixture(scope="module")
def font_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with those of two Chinese fonts that are installed; what is known of them is cached beside it."""
    folder = tmp_path_factory.mktemp("fonts")
    found = [path for path in FONTS if path.exists()]
    if not found:
        pytest.skip(f"no Chinese font installed: {fonts.INSTALL}")
    for path in found:
        (folder / path.name).symlink_to(path)
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    yield folder
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, font_folder: Path) -> Path:
    """The folder of a run of 40 rows in shards of 16, made by one process."""
    folder = tmp_path_factory.mktemp("synth") / "out"
    small_lexicon().save(folder.parent / "words.tsv")
    generate(folder, 40, 3, recipe(folder.parent, font_folder), 1, False, QUIET)
    return folder


@pytest.fixture(scope="module")
def world(made: Path) -> World:
    return open_world(made)


def recipe(folder: Path, font_folder: Path) -> Synth:
    return Synth(
        lexicon=str(folder / "words.tsv"),
        fonts=str(font_folder),
        system_fonts=False,
        rows_per_shard=16,
        sizes="384x384",
    )


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def table(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pa.concat_tables(
        [pq.read_table(path) for path in sorted((folder / "shards").glob("*.parquet"))]
    ).to_pylist()
    return rows


# -------------------------------------------------------------------------------------------------------------- words


def test_keyed_numbers_are_the_same_everywhere() -> None:
    draw = Draw("sample", 1, 17)
    assert [draw.whole(0, 9999) for _ in range(5)] == KNOWN_NUMBERS
    assert Draw("sample", 1, 17).unit() != Draw("sample", 11, 7).unit()


KNOWN_NUMBERS = [4556, 6992, 6232, 6654, 742]


def test_gb2312_has_its_6763_characters() -> None:
    assert len(set(FLOOR)) == 6763
    assert len(LEVEL_1) == 3755
    assert (LEVEL_1[0], LEVEL_1[-1], FLOOR[-1]) == ("啊", "座", "齄")


def test_a_lexicon_keeps_simplified_chinese_words_and_no_names(tmp_path: Path) -> None:
    lines = [
        "漢字 90",
        "城市 80",
        "周杰伦 70",
        "妓女 60",
        "OK 50",
        "城市abc 40",
        "一二三四五六七八九 30",
        "月亮 20",
        "花园 10",
    ]
    corpus = tmp_path / "counts.txt"
    corpus.write_text("\n".join(lines), "utf-8")
    built = words.build(str(corpus), block=["月"])
    assert built.words == ("汉字", "城市", "花园")
    assert built.counts == (90, 80, 10)
    built.save(tmp_path / "lexicon.tsv")
    assert words.load(tmp_path / "lexicon.tsv").sha256 == built.sha256


def test_a_corpus_of_running_text_is_cut_into_words(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("我们在图书馆看书。\n图书馆很大。\n", "utf-8")
    built = words.build(str(tmp_path / "text.txt"))
    assert built.words[0] == "图书馆"
    assert built.counts[0] == 2


def test_a_line_holds_no_blocked_entry_though_its_words_could_form_one() -> None:
    singles = tuple("城市花园月亮山水书店火车")
    blocked = Lexicon(singles, (9,) * len(singles), "test", frozenset({"市城", "花月夜"}))
    free = dataclasses.replace(blocked, blocked=frozenset())
    paper = [World(lexicon, (paper_face(1),), Photographs(None)) for lexicon in (blocked, free)]
    drawn: list[list[object]] = [[], []]
    for index in range(300):
        for found, one in zip(drawn, paper, strict=True):
            for attempt in range(3):
                try:
                    found.append(draw_spec(one, 1, index, attempt))
                    break
                except Unfit:
                    continue
    texts = [[[line["t"] for line in spec["lines"]] for spec in found] for found in drawn]  # type: ignore[index]
    bad = [row for row in texts[1] if any("市城" in text or "花月夜" in text for text in row)]
    assert len(bad) > 3
    assert not any("市城" in text or "花月夜" in text for row in texts[0] for text in row)
    assert [spec for spec in drawn[1] if spec in drawn[0]] == [
        spec for spec, row in zip(drawn[1], texts[1], strict=True) if row not in bad
    ]
    assert list(map(blocked.blocks, ("火市城", "市花城", "市", "", "月花月夜"))) == [True, False, False, False, True]


def test_blocked_entries_travel_with_the_lexicon_and_decide_its_hash(font_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "counts.txt").write_text("城市 80\n月亮 20\n花园 10\n", "utf-8")
    (tmp_path / "block.txt").write_text("月\n市花\n", "utf-8")
    built = words.build(str(tmp_path / "counts.txt"))
    built.save(tmp_path / "lexicon.tsv")
    assert words.load(tmp_path / "lexicon.tsv") == built
    assert "贱人" in built.blocked and not {"月", "死"} & built.blocked
    synth = Synth(fonts=str(font_folder), system_fonts=False, block=str(tmp_path / "block.txt"), composed=0)
    for source in ("lexicon.tsv", "counts.txt"):  # a saved lexicon is held to `block` as one that is built
        used = dataclasses.replace(synth, lexicon=str(tmp_path / source))
        lexicon = prepare(tmp_path / f"of {source}", 1, used, QUIET).lexicon
        assert lexicon.words == ("城市", "花园")
        assert lexicon.blocked == built.blocked | {"市花"}
        assert lexicon.sha256 != built.without(["月"]).sha256
    (tmp_path / "block.txt").write_text("城\n月\n园\n", "utf-8")
    with pytest.raises(UsageError, match="every word holds"):
        prepare(tmp_path / "none", 1, dataclasses.replace(synth, lexicon=str(tmp_path / "lexicon.tsv")), QUIET)


def test_every_rare_character_has_its_turn_once_in_6763() -> None:
    seen = Counter(Words(small_lexicon(), 7, index, Draw("d", index)).rare(1) for index in range(6763))
    assert set(seen) == set(FLOOR)
    assert set(seen.values()) == {1}


def test_any_6763_pictures_in_a_row_show_every_character() -> None:
    lexicon, shown = small_lexicon(), Counter[str]()
    for index in range(500, 500 + 6763):
        shown.update("".join(Words(lexicon, 7, index, Draw("d", index)).lines([(1, 2)])))
    assert min(shown[character] for character in FLOOR) >= 1


def test_a_rare_character_comes_in_a_word_where_there_is_one() -> None:
    lexicon = small_lexicon()
    drawn = {Words(lexicon, 7, index, Draw("d", index)).rare(3) for index in range(6763)}
    assert {"琵琶", "朦胧", "蜻蜓"} <= drawn
    assert "琵" not in drawn


def test_a_fifth_of_the_words_are_for_rare_characters() -> None:
    lexicon = small_lexicon()
    turns = characters = 0
    for index in range(3000):
        drawn = Words(lexicon, 1, index, Draw("d", index))
        texts = drawn.lines([(2, 6), (4, 8)])
        assert all(2 <= len(texts[0]) <= 6 and 4 <= len(text) <= 8 for text in texts[1:])
        turns += drawn.turns
        characters += sum(map(len, texts))
    assert turns / (characters / words.WORD_CHARACTERS) == pytest.approx(0.2, abs=0.02)


def test_coverage_counts_the_characters_of_gb2312() -> None:
    counts = words.coverage(["中国中", None, "OK齄"])
    assert (counts["中"], counts["国"], counts["齄"], counts["啊"], len(counts)) == (2, 1, 1, 0, 6763)


# -------------------------------------------------------------------------------------------------------------- fonts


def test_the_simplified_face_of_a_collection_is_taken(font_folder: Path) -> None:
    found = {face.family: face for face in fonts.find(FLOOR, font_folder, system=False)}
    assert not any("JP" in family or "Mono" in family for family in found)
    if FONTS[0].exists():
        assert found["Noto Sans CJK SC"].index == 2
    assert all(face.covers(FLOOR) for face in found.values())


def test_a_character_that_draws_nothing_or_what_many_draw_is_not_covered(tmp_path: Path) -> None:
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    def box(width: int) -> object:
        pen = TTGlyphPen(None)
        if width:
            pen.moveTo((50, 0)), pen.lineTo((50, 700)), pen.lineTo((50 + width, 700)), pen.lineTo((50 + width, 0))
            pen.closePath()
        return pen.glyph()

    shared = "春夏秋冬东南西北中上下"  # eleven characters of one shape
    shapes = {"一": 0, "二": 300, "三": 500, **dict.fromkeys(shared, 400)}
    names = [".notdef", *(f"u{ord(c):x}" for c in shapes)]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):x}" for c in shapes})
    builder.setupGlyf(dict(zip(names, [box(850), *map(box, shapes.values())], strict=True)))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupPost()
    builder.save(tmp_path / "test.ttf")
    assert set(fonts._missing(tmp_path / "test.ttf", 0, "一二三四" + shared)) == {"一", "四", *shared}


def test_without_a_chinese_font_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="apt-get install fonts-noto-cjk"):
        fonts.find("国", tmp_path, system=False)


def test_a_face_that_lacks_one_character_is_refused_and_counted() -> None:
    whole, lacking = paper_face(1), paper_face(2, missing="国")
    page = Page(World(small_lexicon(), (whole, lacking), Photographs(None)), Draw("d"), None, 320, 320, 0)  # type: ignore[arg-type]
    assert page.able(lacking, "大学") is lacking
    assert page.able(lacking, "中国") is whole
    assert page.refused == 1
    with pytest.raises(Unfit, match="no_font"):
        Page(World(small_lexicon(), (lacking,), Photographs(None)), Draw("d"), None, 320, 320, 0).able(lacking, "国")  # type: ignore[arg-type]


def test_a_row_that_no_font_can_draw_is_infeasible_with_its_reasons() -> None:
    nothing = World(Lexicon(("国",), (1,), "test"), (paper_face(1, missing=FLOOR),), Photographs(None))
    row = sample(nothing, 1, 5)
    assert row["image"] is None
    assert row["synth_index"] == 5
    assert set(row["synth_reason"].split()) <= {"no_font", "too_small", "too_large"}
    assert "no_font" in row["synth_reason"]


# -------------------------------------------------------------------------------------------------------------- specs


def test_specs_do_not_depend_on_platform_or_libraries() -> None:
    paper = World(small_lexicon(), (paper_face(1), paper_face(2, kind="kai")), Photographs(None))
    digests = []
    for index in range(40):
        with contextlib.suppress(Unfit):
            digests.append(digest(draw_spec(paper, 1, index)))
    assert len(digests) > 30
    import hashlib

    assert hashlib.sha256("".join(digests).encode()).hexdigest()[:16] == KNOWN_SPECS


KNOWN_SPECS = "2de7556fd1bc8004"


def test_specs_are_small_and_whole(made: Path) -> None:
    for row in table(made):
        text = str(row["synth_spec"])
        assert len(text.encode()) < 2048
        assert to_json(json.loads(text)) == text
        assert digest(json.loads(text)) == row["synth_spec_sha"]


def test_a_sample_is_the_same_in_any_order(made: Path, world: World) -> None:
    rows = table(made)
    for index in (31, 4, 17):
        assert sample(world, 3, index)["image"] == rows[index]["image"]


def test_themes_and_boards_can_be_read() -> None:
    for ground, ink, second, _ in palette.THEMES:
        for color in (ink, second):
            assert colors.ratio(colors.luminance(ground), colors.luminance(color)) >= colors.BEFORE
    for board, inks in palette.BOARDS:
        assert colors.readable(inks, (colors.luminance(board),)), board


def test_quarantined_cells_are_not_drawn(world: World, made: Path) -> None:
    from curate.synth.spec import cell

    def cells(row: dict[str, object]) -> set[tuple[str, str, str]]:
        spec = json.loads(str(row["synth_spec"]))
        return {cell(spec, line, world.by_id[line["f"]]) for line in spec["lines"]}

    every = [cells(row) for row in table(made)]
    bad = Counter(found for row in every for found in row).most_common(1)[0][0]
    careful = dataclasses.replace(world, quarantine=frozenset({bad}))
    touched = [index for index, row in enumerate(every) if bad in row][:6]
    for index in touched:
        again = sample(careful, 3, index, encoded=False)
        assert again["synth_reason"] or bad not in cells(again)


# ----------------------------------------------------------------------------------------------------- pixels and quads


def test_every_glyph_lies_in_its_quad_and_can_be_read(world: World, made: Path) -> None:
    for row in table(made):
        drawn = render(json.loads(str(row["synth_spec"])), world, trace=True)
        assert max(check.strays(drawn)) == 0, row["synth_layout"]
        assert min(check.contrasts(drawn)) >= colors.AFTER
        quads = np.array([glyph.quad for glyph in drawn.glyphs])
        assert quads.min() >= 0
        assert (quads.max((0, 1)) <= (384, 384)).all()
        visible = [character for line in json.loads(str(row["synth_spec"]))["lines"] for character in line["t"]]
        assert "".join(glyph.character for glyph in drawn.glyphs) == "".join("".join(visible).split())


def test_ink_is_in_the_middle_of_its_cell(world: World) -> None:
    """By the font's ascender Noto's glyphs would sit a third of their size too low."""
    for face in world.faces:
        drawn = clean("国国", face, 48)
        rows = np.nonzero(drawn.ink.max(axis=1))[0]
        cell = drawn.glyphs[0].quad
        assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx((cell[0, 1] + cell[2, 1]) / 2, abs=1.0)


def test_all_ways_of_setting_a_line_keep_their_quads(world: World) -> None:
    face = world.faces[0]
    ways: list[dict[str, object]] = [
        {"d": "h"}, {"d": "v"}, {"d": "h", "turn": 90}, {"d": "h", "arc": 120, "gap": 6},
        {"d": "h", "out": [3, "ffffff"]},
        {"d": "h", "sh": [3, 3, 2, 60]}, {"d": "h", "grad": "c4161c"}, {"d": "h", "glow": "ff5aa0"},
    ]  # fmt: skip
    for way in ways:
        line = {"t": "图书馆Ag", "f": face.id, "s": 40, "c": "141414", "at": [160, 160], "al": "c", "r": "line", **way}
        spec = {
            "index": 0, "size": [320, 320], "ground": {"kind": "solid", "c": "fafaf8", "c2": "fafaf8"}, "shapes": [],
            "lines": [line], "say": {}, "finish": [0, 0, 0, 0, 92],
        }  # fmt: skip
        drawn = render(spec, world, trace=True)
        assert max(check.strays(drawn)) == 0, way
        assert len(drawn.glyphs) == 5
        assert check.check(drawn)[0] == "", way


def test_a_plane_carries_its_quads_into_the_picture(world: World) -> None:
    face = world.faces[0]
    line = {"t": "花园", "f": face.id, "s": 48, "c": "141414", "at": [100, 60], "al": "c", "r": "line", "d": "h"}
    spec = {
        "index": 0, "size": [320, 320], "ground": {"kind": "solid", "c": "405060", "c2": "405060"}, "shapes": [],
        "lines": [line], "say": {}, "finish": [0, 0, 0, 0, 92],
        "plane": {
            "w": 200, "h": 120, "quad": [60, 90, 270, 70, 262, 215, 50, 200], "shade": 10, "shadow": [2, 4, 5, 50],
            "ground": {"kind": "solid", "c": "fafaf8", "c2": "fafaf8"}, "tilt": 1,
        },
    }  # fmt: skip
    drawn = render(spec, world, trace=True)
    assert max(check.strays(drawn)) == 0
    assert cv2.contourArea(drawn.lines[0]) == pytest.approx(96 * 48, rel=0.35)
    ys, xs = np.nonzero(drawn.ink > 128)
    inside = [cv2.pointPolygonTest(drawn.lines[0], (float(x), float(y)), True) for x, y in zip(xs, ys, strict=True)]
    assert min(inside) > -2


def test_a_glyph_that_does_not_stand_out_is_found() -> None:
    def drawn(ink_value: int, ground: int) -> Rendered:
        ink = np.zeros((60, 60), np.uint8)
        ink[20:40, 20:40] = 255
        rgb = np.full((60, 60, 3), ground, np.uint8)
        rgb[20:40, 20:40] = ink_value
        quad = np.array([[15, 15], [45, 15], [45, 45], [15, 45]], np.float32)
        return Rendered(rgb, ink, [Glyph("国", 0, quad)], [quad], False)

    assert check.contrasts(drawn(0, 255))[0] == pytest.approx(21)
    assert check.check(drawn(110, 140))[0] == "contrast"
    assert check.check(drawn(0, 255)) == ("", pytest.approx(21))
    outside = drawn(0, 255)
    outside.glyphs[0].quad[0, 0] = -1
    assert check.check(outside)[0] == "outside"
    assert check.check(dataclasses.replace(drawn(0, 255), overlap=True))[0] == "overlap"
    assert check.check(dataclasses.replace(drawn(0, 255), glyphs=[]))[0] == "empty"


def test_contrast_is_that_of_wcag() -> None:
    assert colors.ratio(colors.luminance((255, 255, 255)), colors.luminance((0, 0, 0))) == pytest.approx(21)
    assert colors.ratio(colors.luminance((118, 118, 118)), colors.luminance((255, 255, 255))) == pytest.approx(
        4.54, abs=0.01
    )


# ------------------------------------------------------------------------------------------------------------- captions


def test_every_line_is_quoted_verbatim_in_both_captions(made: Path) -> None:
    rows = table(made)
    for row in rows:
        for text in row["synth_texts"]:  # type: ignore[attr-defined]
            assert f"“{text}”" in str(row["synth_caption_zh"])
            assert f'"{text}"' in str(row["synth_caption_en"])
        assert row["caption"] == row[f"synth_caption_{row['language']}"]
    assert {row["language"] for row in rows} == {"zh", "en"}


def test_there_are_twelve_templates_or_more_for_each_kind_and_all_can_be_filled(world: World, made: Path) -> None:
    kinds: dict[str, dict[str, object]] = {}
    for row in table(made):
        spec = json.loads(str(row["synth_spec"]))
        kinds.setdefault("bare" if spec["tier"] == "composed" and not spec["say"]["carrier"] else spec["tier"], spec)
    assert set(kinds) == {"pure", "composed", "bare", "structured"}
    for spec in kinds.values():
        told = set()
        for number in range(12):
            spec["say"] |= {"zh": number, "en": number}  # type: ignore[operator]
            found = captions.captions(spec, world)
            told |= {found["zh_template"], found["en_template"], found["zh"], found["en"]}
            assert "{" not in found["zh"] + found["en"]
        assert len(told) == 48


def test_places_are_named_by_the_cell_of_their_middle() -> None:
    assert place_of([0, 0, 100, 100], [300, 300]) == ("左上方", "in the upper left")
    assert place_of([100, 100, 200, 200], [300, 300]) == ("中央", "in the center")
    assert place_of([220, 120, 300, 180], [300, 300]) == ("右侧", "on the right")
    assert place_of([100, 220, 200, 300], [300, 300]) == ("下方", "at the bottom")


def test_colors_are_named_as_the_photometry_operator_names_them() -> None:
    assert colors.name((196, 22, 28)) == ("red", "红色")
    assert colors.name((250, 250, 248)) == ("white", "白色")
    named = [colors.name(color)[0] for color in colors.INKS]
    assert len(set(named)) >= 16  # an ink is told from the others by its name


# ---------------------------------------------------------------------------------------------------------- the command


def test_shards_are_the_same_for_any_number_of_workers(made: Path, font_folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    generate(again, 40, 3, recipe(made.parent, font_folder), 2, False, QUIET)
    assert shard_bytes(again) == shard_bytes(made)
    manifest = json.loads((again / "manifest.json").read_text("utf-8"))
    assert manifest == json.loads((made / "manifest.json").read_text("utf-8"))
    assert manifest["rows"] == 40
    assert sum(manifest["tier"].values()) + manifest["infeasible"] == 40


def test_a_run_that_was_cut_short_is_finished_by_the_next(made: Path, font_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    synth = recipe(made.parent, font_folder)
    generate(folder, 20, 3, synth, 1, False, QUIET)
    first = folder / "shards" / "synth-00000.parquet"
    before = first.stat().st_mtime_ns
    (folder / "shards" / "synth-00001.parquet").write_bytes(b"half a shard")
    (folder / "shards" / ".synth-00001.parquet.1").write_bytes(b"half another")
    generate(folder, 40, 3, synth, 1, False, QUIET)
    assert shard_bytes(folder) == shard_bytes(made)
    assert first.stat().st_mtime_ns == before


def test_fewer_rows_than_there_are_take_none_away(made: Path, font_folder: Path, tmp_path: Path) -> None:
    folder, synth = tmp_path / "out", recipe(made.parent, font_folder)
    shutil.copytree(made, folder)
    before = shard_bytes(folder), (folder / "manifest.json").read_bytes()
    code, said = run("synth", "-o", folder, "--recipe", folder / "synth.toml", "--seed", "3", "-n", "20")
    assert (code, said.count("\n"), "shards up to row 40 already" in said) == (2, 1, True)
    assert (shard_bytes(folder), (folder / "manifest.json").read_bytes()) == before
    (folder / "shards" / "synth-00001.parquet").unlink()  # as a kill leaves it: the shard after it was ready first
    with pytest.raises(UsageError, match="say -n 40 or more"):
        generate(folder, 20, 3, synth, 1, False, QUIET)
    generate(folder, 40, 3, synth, 1, False, QUIET)
    assert (shard_bytes(folder), (folder / "manifest.json").read_bytes()) == before


def test_rows_of_another_number_never_enter_the_manifest(made: Path, font_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(made, folder)
    shutil.copy(folder / "shards" / "synth-00000.parquet", folder / "shards" / "synth-00001.parquet")
    with pytest.raises(CurateError, match="its rows are not those from 16 on"):
        generate(folder, 40, 3, recipe(made.parent, font_folder), 1, False, QUIET)


def test_what_a_failed_call_left_is_not_taken_for_another_recipe(made: Path, font_folder: Path, tmp_path: Path) -> None:
    folder, pictures = tmp_path / "out", tmp_path / "pictures"
    synth = recipe(made.parent, font_folder)
    with pytest.raises(UsageError, match="no such folder"):
        generate(folder, 4, 3, dataclasses.replace(synth, fonts=str(tmp_path / "none")), 1, False, QUIET)
    pictures.mkdir()
    ground = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
    cv2.imwrite(str(pictures / "mine.png"), ground)
    (folder / "lexicon.tsv").write_text("# torn by a k", "utf-8")
    world = prepare(folder, 3, dataclasses.replace(synth, backgrounds=str(pictures)), QUIET)
    assert [item.id for item in world.photographs.items] == ["mine.png"]
    assert len(world.lexicon.words) == len(SMALL)


# A shell's background job ignores Ctrl-C, and so would all that it starts.
BEGIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from curate.cli import main; main()"
TOLD = "curate: interrupted; run the same command to go on\n"


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """The command in a session of its own, with two workers."""
    told = [sys.executable, "-c", BEGIN, "synth", *map(str, arguments), "--workers", "2"]
    return subprocess.Popen(told, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str], number: signal.Signals, when: Callable[[], bool]) -> tuple[int, str]:
    """Exit code and errors of a command that gets a signal: Ctrl-C goes to its workers too, others to it alone.

    The pipe of its errors ends with the last worker that could write to it.
    """
    while process.poll() is None and not when():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_one_line_and_the_next_goes_on(
    number: signal.Signals, made: Path, font_folder: Path, tmp_path: Path
) -> None:
    folder, described = tmp_path / "out", tmp_path / "synth.toml"
    synth = dataclasses.replace(recipe(made.parent, font_folder), rows_per_shard=4)
    described.write_text(to_toml(synth, 3), "utf-8")
    process = started("-o", folder, "--recipe", described, "--seed", "3", "-n", "4000")
    assert ended(process, number, lambda: bool(list((folder / "shards").glob("synth-*.parquet")))) == (1, TOLD)
    assert not list((folder / "shards").glob(".synth-*"))
    assert generate(folder, rows_there(folder, 4) + 4, 3, synth, 1, False, QUIET).faces


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_before_it_draws_says_one_line(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = started("-o", folder, "-n", "40", "--verify", "0")
    assert ended(process, number, folder.exists) == (1, TOLD)  # jieba's words are read at that moment
    assert not (folder / "synth.toml").exists()


# Sends a signal to itself when a module begins to be imported.
LOADING = """
import os, signal, sys
class At:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[-3]:
            os.kill(os.getpid(), int(sys.argv[-1]))
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, At())
from curate.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["curate.cli", "curate.synth.report"])
def test_a_command_that_is_stopped_while_it_is_loaded_says_one_line(module: str, number: signal.Signals) -> None:
    told = [sys.executable, "-c", LOADING, "synth", "-o", "x", "--backgrounds", module, "-n", str(int(number))]
    done = subprocess.run(told, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", TOLD)


def test_rendering_that_is_stopped_or_killed_leaves_whole_shards_and_goes_on(
    made: Path, font_folder: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "specs", tmp_path / "drawn"
    generate(folder, 16, 3, recipe(made.parent, font_folder), 1, True, QUIET)
    first = folder / "shards" / "synth-00000.parquet"
    copies = [first.with_name(f"synth-{number:05d}.parquet") for number in range(1, 400)]
    for copy in copies:
        copy.hardlink_to(first)

    def drawn() -> list[Path]:
        return sorted(out.glob("synth-*.parquet"))

    for number, code in ((signal.SIGTERM, 1), (signal.SIGKILL, -9)):
        before = len(drawn())
        stopped = ended(started("render", folder, "-o", out), number, lambda b=before: len(drawn()) > b)  # type: ignore[misc]
        assert (stopped[0], stopped[1] == TOLD, "Traceback" in stopped[1]) == (code, code == 1, False)
        assert code < 0 or not list(out.glob(".synth-*"))
    assert len({path.read_bytes() for path in drawn()}) == 1
    for copy in copies[len(drawn()) + 3 :]:
        copy.unlink()
    assert run("synth", "render", folder, "-o", out, "--workers", "1")[0] == 0
    assert [path.name for path in drawn()] == [path.name for path in sorted(first.parent.iterdir())]
    assert not list(out.glob(".synth-*"))
    images = pq.read_table(drawn()[-1], columns=["image"])["image"].to_pylist()
    assert images == [row["image"] for row in table(made)[:16]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_verifying_that_is_stopped_or_killed_leaves_its_files_alone(
    number: signal.Signals, made: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(made, folder)
    (folder / "verify.json").write_text("of before", "utf-8")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    process = started("verify", folder, "--rows", "40")

    def at_work() -> bool:  # a tracker and two workers, one of which has been given its first rows
        return len(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()) >= 3

    code, said = ended(process, number, at_work)
    assert (code, said if code > 0 else "") == ((-9, "") if number is signal.SIGKILL else (1, TOLD))
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


def test_rendering_refuses_a_folder_with_other_pictures_or_the_specs_themselves(
    made: Path, font_folder: Path, tmp_path: Path
) -> None:
    assert run("synth", "render", made, "-o", made / "shards")[1].count("choose another -o") == 1
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "world.sha256").write_text("of another seed\n")
    code, said = run("synth", "render", made, "-o", tmp_path / "drawn")
    assert (code, "holds pictures of other specs" in said) == (2, True)


def test_rows_of_another_version_are_not_drawn_differently(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(made, folder)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8")) | {"spec_version": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    code, said = run("synth", "verify", folder)
    assert (code, "another version of curate drew these rows" in said) == (1, True)


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import signal\nfrom curate.synth.pool import worked\n\n"
        "def load():\n    pass\n\ndef work(task):\n    print(task, flush=True)\n    signal.pause()\n\n"
        "if __name__ == '__main__':\n    list(worked(work, [1, 2, 3, 4], 2, load))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)  # the pipe ends with the last process that can write to it


def test_another_seed_or_recipe_is_refused_in_a_folder_with_shards(made: Path, font_folder: Path) -> None:
    synth = recipe(made.parent, font_folder)
    with pytest.raises(UsageError, match="another seed or recipe"):
        generate(made, 40, 4, synth, 1, False, QUIET)
    with pytest.raises(UsageError, match="another seed or recipe"):
        generate(made, 40, 3, dataclasses.replace(synth, english=0.5), 1, False, QUIET)
    with pytest.raises(UsageError, match="choose another -o"):
        generate(made, 40, 3, synth, 1, True, QUIET)


def test_specs_alone_give_the_same_pictures_when_they_are_loaded(made: Path, font_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "specs"
    generate(folder, 18, 3, recipe(made.parent, font_folder), 1, True, QUIET)
    assert "image" not in pq.read_schema(folder / "shards" / "synth-00000.parquet").names
    rows, loaded = table(made), Specs(folder)
    assert len(loaded) == 18
    assert loaded[17]["image"] == rows[17]["image"]
    with pytest.raises(IndexError):
        loaded[18]
    assert run("synth", "render", folder, "-o", tmp_path / "drawn", "--workers", "1")[0] == 0
    drawn = pq.read_table(tmp_path / "drawn" / "synth-00000.parquet").to_pylist()
    assert [row["image"] for row in drawn] == [row["image"] for row in rows[:16]]


def test_a_mix_draws_specs_into_its_shards_or_leaves_them_to_the_loader(
    made: Path, font_folder: Path, finished_store: Path, tmp_path: Path
) -> None:
    from curate.mix import MixDataset
    from curate.mix.command import show
    from curate.mix.export import export
    from curate.mix.settings import Settings
    from curate.mix.verify import verify as prove

    folder = tmp_path / "specs"
    generate(folder, 18, 3, recipe(made.parent, font_folder), 1, True, QUIET)
    rows = {row["synth_index"]: row for row in table(made)}
    items = {}
    for keep in (False, True):
        out = tmp_path / f"mix-{keep}"
        settings = Settings(
            str(finished_store), ignore_policy=True, text=str(folder), text_cap=0.9, buckets="384x384", keep_specs=keep
        )
        found = export(settings, str(out), "inline")
        assert prove(str(out), "inline") == []
        data = MixDataset(out, crop="center")
        items[keep] = {item["row_id"]: item for item in data if item["pool"] == "text"}
        shards = pa.concat_tables([pq.read_table(path) for path in (out / "train").glob("*.parquet")])
        texts = shards.filter(pa.compute.equal(shards["pool"], "text"))
        for row_id, image in zip(texts["row_id"].to_pylist(), texts["image"].to_pylist(), strict=True):
            row = rows[int(row_id.rpartition(":")[2]) + 16 * int(row_id.partition("synth-")[2][:5])]
            assert image == (row["synth_spec"].encode() if keep else row["image"])
    assert items[True].keys() == items[False].keys()
    assert len(items[True]) == 18
    for row_id, item in items[True].items():
        assert item["image"].shape == (3, 384, 384)
        assert (item["image"] == items[False][row_id]["image"]).all()
        assert item["caption"] == items[False][row_id]["caption"]
    assert found["characters_of_gb2312"] <= found["characters"] <= len(set("".join(map(str, rows.values()))))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        show(found, str(out))
    assert f"{found['characters_of_gb2312']:,} of the 6,763 of GB2312" in said.getvalue()


def test_ocr_reads_the_pictures_back(made: Path, world: World) -> None:
    found = verify.verify(made, world, 8, 1, QUIET)
    assert found["rows"] == found["same_bytes"] == 8
    assert found["faint"] == found["strays"] == 0
    assert found["exact_share"] >= 0.9
    assert found["clean_exact"] >= 0.8 * found["lines"]
    from curate.synth.report import write_report

    page = write_report(made, world).read_text("utf-8")
    assert "Lines read exactly" in page
    assert page.count("data:image/jpeg") >= 20
    assert "http" not in page
    code, out = run(
        "synth", "sheet", made, "-o", made.parent / "sheet.png", "--columns", "3", "--rows", "2", "--side", "100"
    )
    assert code == 0, out
    assert cv2.imread(str(made.parent / "sheet.png")).shape == (200, 300, 3)


def test_ocr_notices_a_line_that_is_not_what_it_claims(made: Path, world: World) -> None:
    rows = [row for part in verify.sampled(made, 40) for row in verify.rows_at(part)]
    assert [row["index"] for row in rows] == list(range(40))
    row = next(row for row in rows if '"tier":"pure"' in row["spec"] and '"d":"h"' in row["spec"])
    spec = json.loads(row["spec"])
    picture = np.full((320, 320, 3), 255, np.uint8)
    reads, checked = verify.read_row(RapidOcr(), world, row | {"image": encode(picture, 95)})
    assert reads[0].text == spec["lines"][0]["t"]
    assert reads[0].scene_edits > 0
    assert not checked.same_bytes


def test_cells_that_are_surely_misread_are_quarantined() -> None:
    def reads(face: str, good: int, bad: int) -> list[verify.Read]:
        return [
            verify.Read(
                i, 0, "中国", "中国" if i < good else "中因", "中国", int(i >= good), 0, "pure", "plain", face, "plain",
                "32-47 px",
            )
            for i in range(good + bad)
        ]  # fmt: skip

    rare = dataclasses.replace(reads("good", 1, 0)[0], text="潵国", clean="澈国", clean_edits=1)
    found = verify.summary([*reads("good", 40, 1), *reads("bad", 30, 10), *reads("few", 5, 5), rare], [])
    assert (found["common_lines"], found["clean_cer_common"], found["clean_cer"]) == (91, 0, 1 / 184)
    assert [cell["face"] for cell in found["cells"] if cell["quarantined"]] == ["bad"]
    assert verify.edits("图书馆", "图书官室") == 2
    assert verify.plain("１２ ３￥：") == "123¥:"


def test_the_main_job_takes_the_shards(made: Path, tmp_path: Path) -> None:
    (made / "report.html").touch()
    assert len(list(discover(InputSpec(str(made))))) == 3  # and not what lies beside the shards
    job = from_tables(
        {
            "input": {"uri": str(made)}, "store": {"uri": str(tmp_path / "store")}, "engine": {"kind": "inline"},
            "ocr": {"engine": "none"}, "faces": {"engine": "none"},
        }
    )  # fmt: skip
    assert pipeline.run(job, display=Display(QUIET)) == 0
    rows = Store(tmp_path / "store").rows(
        "SELECT count(*), count(error), count(DISTINCT synth_index), "
        "bool_and(caption_raw IN (synth_caption_zh, synth_caption_en)), min(width), "
        "any_value(len(synth_glyphs[1])) FROM samples"
    )
    assert rows == [(40, 0, 40, True, 384, 8)]


def run(*arguments: str | Path) -> tuple[int, str]:
    """The command in this process: exit code, and all that it said."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["curate", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
    return int(ended.value.code or 0), said.getvalue()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-n", "5"], "say where the shards go"),
        (["-o", "x", "--set", "synth.sizez=512x512"], "unknown key synth.sizez; did you mean 'sizes'"),
        (["-o", "x", "--set", "synth.sizes=big"], "write WIDTHxHEIGHT"),
        (["-o", "x", "--set", "synth.sizes=0x0"], "write WIDTHxHEIGHT"),
        (["-o", "x", "--set", "mix.ratio=1"], "unknown section [mix]"),
        (["-o", "x", "--set", "synth.pure=0", "--set", "synth.composed=0", "--set", "synth.structured=0"], "all 0"),
        (["-o", "{tmp}/x", "--set", "synth.lexicon={tmp}/none.txt"], "none.txt: cannot be read"),
        (["-o", "{tmp}/x", "--backgrounds", "{tmp}/none"], "neither a store nor a folder"),
        (["-o", "{tmp}/x", "--fonts", "{tmp}/none"], "no such folder"),
        (["-o", "{tmp}/x", "--set", "synth.quarantine={tmp}/none.json"], "no quarantine.json"),
        (["verify", "{tmp}"], "no manifest.json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], told: str, tmp_path: Path, made: Path) -> None:
    small = (
        ["--set", f"synth.lexicon={made.parent / 'words.tsv'}"]
        if "-o" in arguments and "lexicon" not in str(arguments)
        else []
    )
    code, said = run("synth", *(word.replace("{tmp}", str(tmp_path)) for word in arguments), *small)
    assert code == 2, said
    assert told in said.replace("\n", " ")
    assert "Traceback" not in said


def test_a_file_in_the_place_of_a_folder_is_one_line(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for arguments in (("synth", "-o", file, "-n", "1"), ("synth", "render", made, "-o", file)):
        assert run(*arguments) == (2, f"curate: {file}: File exists; name another path\n")
    code, told = run("synth", "lexicon", "-o", tmp_path)
    assert (code, told) == (2, f"curate: {tmp_path}: Is a directory; name another path\n")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder in which nothing can be made")
def test_a_folder_that_cannot_be_made_is_one_line(made: Path) -> None:
    small = f"synth.lexicon={made.parent / 'words.tsv'}"
    for arguments in (
        ("-o", "/proc/x", "-n", "1", "--set", small), ("-o", "/proc/x/y", "-n", "1", "--set", small),
        ("lexicon", "-o", "/proc/x", "--source", made.parent / "words.tsv"), ("render", made, "-o", "/proc/x"),
        ("sheet", made, "-o", "/proc/x"),
    ):  # fmt: skip
        code, told = run("synth", *arguments)
        assert (code, told.count("\n")) == (2, 1), told
        assert told.startswith("curate: -o /proc/x") and told.endswith("name another path\n")


def test_a_full_disk_is_one_line() -> None:
    code, told = run("synth", "lexicon", "-o", "/dev/full")
    assert (code, told) == (2, "curate: No space left on device; make room there or name another path\n")


def test_the_commands_about_words_and_fonts(tmp_path: Path, font_folder: Path) -> None:
    (tmp_path / "counts.txt").write_text("城市 80\n月亮 20\n", "utf-8")
    code, said = run("synth", "lexicon", "--source", tmp_path / "counts.txt", "-o", tmp_path / "lexicon.tsv")
    assert (code, (tmp_path / "lexicon.tsv").read_text("utf-8").splitlines()[1]) == (0, "城市\t80"), said
    code, said = run("synth", "fonts", "--fonts", font_folder, "--no-system")
    assert code == 0
    assert "lacks none" in said


def test_photographs_come_from_a_store_without_text(finished_store: Path, tmp_path: Path) -> None:
    where = photographs.WHERE
    assert "ocr_lines" in where
    with pytest.raises(UsageError, match="no picture fits"):
        photographs.collect(str(finished_store), tmp_path / "photographs.arrow", 512, 10)
    count = photographs.collect(str(finished_store), tmp_path / "photographs.arrow", 64, 10)
    pictures = Photographs(tmp_path / "photographs.arrow")
    assert 0 < count == len(pictures.items)
    first = pictures.items[0]
    assert pictures.pixels(first.id).shape == (first.height, first.width, 3)
    assert (first.en, first.zh) == ("", "")  # the facts engine tells colours, which a sign makes wrong


def test_text_keeps_away_from_faces(world: World) -> None:
    item = dataclasses.replace(world.photographs.items[0], id="with a face", avoid=((0.0, 0.0, 1.0, 0.5),))
    page = Page(world, Draw("d", 1), None, 320, 320, 0, photograph=item)  # type: ignore[arg-type]
    side = min(item.width, item.height)
    for _ in range(20):
        _, top = page.region((0, 0, side, side), 120, 40)
        assert top * side / 320 >= 0.4 * item.height


def test_width_of_text_is_estimated_from_above(world: World) -> None:
    for face in world.faces:
        for text in ("图书馆", "COFFEE 馆", "No.886", "Welcome", "2026.11.23", "¥128"):
            quad = clean(text, face, 64).lines[0]
            assert quad[1, 0] - quad[0, 0] <= 1.04 * 64 * ems(text) + 2, (face.family, text)


def test_a_recipe_is_written_as_it_is_read(tmp_path: Path) -> None:
    from curate.synth.shards import to_toml

    synth = Synth(sizes="448x576", english=0.3, system_fonts=False)
    (tmp_path / "r.toml").write_text(to_toml(synth, 5), "utf-8")
    assert load_recipe(str(tmp_path / "r.toml")) == synth
