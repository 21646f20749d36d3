"""Captions and translations composed from measured facts: what they say, how long they are, what they never do."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.columns import OPERATORS, operator_of
from schemas.errors import RowError
from workers.facts import NEEDS, VERSION, FactsCaptioner, FactsTranslator
from workers.facts.measures import measure
from workers.facts.quoting import BREAK, ELLIPSIS, MARKS, pieces_of, quote, words_at_least, words_at_most
from workers.facts.wording import VARIANTS, compose
from workers.photometry import COLOR_NAMES
from workers.sample import Sample

Values = dict[str, Any]


def caption(values: Values, prompt: str = "") -> str:
    (row,) = FactsCaptioner(prompt=prompt)([Sample(0, None, values)])
    english = row["caption_en"]
    assert isinstance(english, str)
    return english


def both(values: Values, prompt: str = "") -> tuple[str, str]:
    english = caption(values, prompt)
    (row,) = FactsTranslator()([Sample(0, None, {**values, "caption_en": english, "caption_engine": "facts"})])
    return english, row["caption_zh"]


def content(seed: int) -> str:
    return hashlib.sha256(str(seed).encode()).hexdigest()


# ------------------------------------------------------------------------------------------ examples, in full

STREET = {
    "sha256": content(1), "width": 640, "height": 480, "aspect": 4 / 3, "frames": 1, "sharpness": 444.0,
    "sharpness_tile": 1272.0, "luma": 112.0, "contrast": 64.0, "underexposed": 0.03, "overexposed": 0.02,
    "colorfulness": 33.0, "saturation": 0.3, "border": 0.0, "colors": ["gray", "dark gray", "brown"],
    "color_shares": [0.41, 0.27, 0.14], "faces": 0, "face_area": 0.0, "face_boxes": [], "ocr_text": "PRIVILEGES",
    "ocr_lines": 1, "ocr_confidence": 0.97, "ocr_area": 0.01, "ocr_language": "en",
    "ocr_boxes": [[250.0, 400.0, 390.0, 400.0, 390.0, 430.0, 250.0, 430.0]], "ocr_scores": [0.97],
}  # fmt: skip

PORTRAIT = {
    "sha256": content(2), "width": 853, "height": 1280, "frames": 1, "sharpness": 95.0, "sharpness_tile": 840.0,
    "luma": 88.0, "contrast": 51.0, "underexposed": 0.05, "overexposed": 0.0, "colorfulness": 41.0,
    "saturation": 0.4, "border": 0.0, "colors": ["dark green", "beige", "black"], "color_shares": [0.56, 0.2, 0.1],
    "faces": 1, "face_area": 0.11, "face_boxes": [[300.0, 210.0, 330.0, 330.0, 0.98]], "ocr_text": "",
    "ocr_lines": 0, "ocr_area": 0.0, "ocr_language": "none", "ocr_boxes": [], "ocr_scores": [],
}  # fmt: skip

POSTER = {
    "sha256": content(3), "width": 323, "height": 430, "frames": 1, "sharpness": 141.0, "sharpness_tile": 352.0,
    "luma": 148.0, "contrast": 66.0, "underexposed": 0.02, "overexposed": 0.21, "colorfulness": 88.0,
    "saturation": 0.5, "border": 0.0, "colors": ["red", "white", "blue"], "color_shares": [0.38, 0.3, 0.12],
    "faces": 0, "face_area": 0.0, "face_boxes": [],
    "ocr_text": "正品促销\n大桶装更划算\n强力去污符合国标\n5.8\n惊喜福利不容错过\n极速发货\n冰点标准\n破损就赔",
    "ocr_lines": 8, "ocr_confidence": 0.95, "ocr_area": 0.31, "ocr_language": "zh",
    "ocr_boxes": [[20.0, 10.0 + 45 * i, 300.0, 10.0 + 45 * i, 300.0, 40.0 + 45 * i, 20.0, 40.0 + 45 * i]
                  for i in range(8)],
    "ocr_scores": [0.99, 0.98, 0.97, 0.41, 0.96, 0.95, 0.97, 0.98],
}  # fmt: skip

TEAM = {
    "sha256": content(4), "width": 2400, "height": 1000, "frames": 12, "sharpness": 310.0, "sharpness_tile": 900.0,
    "luma": 190.0, "contrast": 30.0, "underexposed": 0.0, "overexposed": 0.05, "colorfulness": 24.0,
    "saturation": 0.15, "border": 0.12, "colors": ["light gray", "light blue"], "color_shares": [0.62, 0.21],
    "faces": 3, "face_area": 0.021,
    "face_boxes": [[300.0, 300.0, 220.0, 220.0, 0.9], [1100.0, 300.0, 220.0, 220.0, 0.9],
                   [1900.0, 300.0, 200.0, 200.0, 0.9]],
    "ocr_text": None, "ocr_boxes": None,
}  # fmt: skip

BLACK = {
    "sha256": content(5), "width": 756, "height": 448, "luma": 2.0, "contrast": 0.7, "underexposed": 1.0,
    "sharpness": 1.0, "sharpness_tile": 1.0, "colorfulness": 0.0, "colors": ["black"], "color_shares": [1.0],
    "faces": 0, "ocr_text": "",
}  # fmt: skip


EXAMPLES: list[tuple[Values, str, str]] = [
    (
        STREET,
        (
            "A mix of gray, dark gray and brown, this horizontal image is of medium brightness with strong "
            "contrast. The colors are moderately saturated, and even small details are sharp. At the "
            "bottom, one can read “PRIVILEGES”."
        ),
        (
            "这幅横向图像灰色、深灰色和棕色相间，整体亮度适中，明暗对比强烈。色彩浓淡适中，"
            "细微之处也很清晰。画面底部可以读到“PRIVILEGES”。"
        ),
    ),
    (
        PORTRAIT,
        (
            "This portrait-format picture is mostly dark green with some beige and black, and it is rather "
            "dark and moderate in contrast. A single face was found by the face detector near the center, "
            "taking up about a tenth of the frame. The colors are moderately saturated; a sharp area "
            "stands out from softer surroundings."
        ),
        (
            "这张竖幅图片以深绿色为主，间有米色和黑色，画面略暗，反差适中。人脸检测器找到了一张人脸，"
            "位于中央附近，约占画面的十分之一。色彩浓淡适中；清晰的局部从柔和的周围中凸显出来。"
        ),
    ),
    (
        POSTER,
        (
            "Moderate in brightness and high in contrast, this portrait-format picture is a blend of red, "
            "white and blue. From the text in Chinese characters across the frame one can make out "
            "“正品促销 / 大桶装更划算 / 强力去污符合国标 / 惊喜福利不容错过 / 极速发货 / 冰点标准 / "
            "破损就赔”. The colors are vivid; detail is reasonably sharp. About a fifth of the frame is "
            "almost pure white."
        ),
        (
            "这张竖幅图片亮度中等，反差很大，由红色、白色和蓝色交织而成。"
            "画面各处的汉字中可以辨认出“正品促销 / 大桶装更划算 / 强力去污符合国标 / 惊喜福利不容错过 / "
            "极速发货 / 冰点标准 / 破损就赔”。色彩鲜艳；细节较为清晰。约五分之一的画面接近纯白。"
        ),
    ),
    (
        TEAM,
        (
            "In this animated panoramic image, light gray sets the tone, accompanied by light blue. Face "
            "detection finds three faces, spread from left to right, all of them fairly small in the "
            "frame. The image is bright with soft contrast, the colors are muted, and even small details "
            "are sharp. The animation has 12 frames, of which the first is described here. Plain borders "
            "at the edges account for about a tenth of the frame."
        ),
        (
            "在这幅宽幅动态图像中，浅灰色定下基调，并伴有浅蓝色。经人脸检测发现三张人脸，从左到右分布，"
            "在画面中都较小。画面明亮，明暗对比柔和，色彩素净，细微之处也很清晰。动画共12帧，"
            "这里描述的是第一帧。边缘的纯色边框约占画面的十分之一。"
        ),
    ),
    (
        BLACK,
        (
            "This is a horizontal image, almost entirely black. It is even in tone almost throughout. No "
            "face was detected, and no text was read in it."
        ),
        "这是一幅横向图像，几乎全为黑色。画面影调几乎处处均一。未检测到人脸，也没有读到文字。",
    ),
]


@pytest.mark.parametrize(("values", "english", "chinese"), EXAMPLES)
def test_captions_of_known_facts_read_exactly_so(values: Values, english: str, chinese: str) -> None:
    assert both(values) == (english, chinese)


def test_the_examples_in_the_docs_are_what_is_composed() -> None:
    docs = (Path(__file__).parent.parent / "docs" / "captions.md").read_text("utf-8")
    for _, english, chinese in EXAMPLES[:4]:
        assert f"> {english}\n>\n> {chinese}\n" in docs


# -------------------------------------------------------------------------------------------- any facts at all

share = st.floats(0, 1, width=32) | st.just(float("nan"))
positive = st.floats(0, 5000, width=32)
line = st.one_of(
    st.sampled_from(
        ["SALE", "50% OFF", "正品促销", "He said “no”", "「引用」", '"quoted"', "None of the above", "C++ / C#"]
    ),
    st.text(alphabet=st.characters(exclude_characters="\n"), min_size=0, max_size=60),
    st.text(alphabet="优惠促销强力abc ,.", min_size=1, max_size=300),
    st.lists(st.sampled_from(["text", "that", "goes", "on", "国标"]), min_size=20, max_size=120).map(" ".join),
)
box = st.lists(st.floats(-50, 3000, width=32), min_size=8, max_size=8)
face_box = st.lists(st.floats(0, 3000, width=32), min_size=5, max_size=5)

FACTS: dict[str, st.SearchStrategy[Any]] = {
    "sha256": st.integers(0, 10**9).map(content),
    "width": st.integers(1, 4000),
    "height": st.integers(1, 4000),
    "aspect": st.floats(0.015625, 50, width=32),
    "frames": st.integers(1, 300),
    "sharpness": positive,
    "sharpness_tile": positive,
    "luma": st.floats(0, 255, width=32),
    "contrast": st.floats(0, 127.5, width=32),
    "underexposed": share,
    "overexposed": share,
    "colorfulness": st.floats(0, 150, width=32),
    "saturation": share,
    "border": share,
    "colors": st.lists(st.sampled_from([*COLOR_NAMES, "a color without a Chinese name"]), max_size=4),
    "color_shares": st.lists(share, max_size=4),
    "faces": st.integers(0, 30),
    "face_area": share,
    "face_boxes": st.lists(face_box, max_size=4),
    "ocr_text": st.lists(line, max_size=12).map("\n".join),
    "ocr_confidence": share,
    "ocr_area": share,
    "ocr_language": st.sampled_from(["zh", "en", "mixed", "other", "none"]),
    "ocr_boxes": st.lists(box, max_size=6),
    "ocr_scores": st.lists(share, max_size=6),
}
anything = st.fixed_dictionaries({}, optional={name: st.none() | values for name, values in FACTS.items()})


def quotations(text: str) -> list[str]:
    """What stands between quotation marks in `text`, outermost only."""
    found = []
    while marks := min(((text.find(a), a, b) for a, b in MARKS if a in text), default=None):
        start, opening, closing = marks
        end = text.index(closing, start)
        found.append(text[start + 1 : end])
        text = text[end + 1 :]
        assert opening not in found[-1]
    return found


def without_quotations(text: str) -> str:
    for quoted in quotations(text):
        before, mark, after = text.partition(next(a + quoted + b for a, b in MARKS if a + quoted + b in text))
        text = f"{before}{mark[0]}{mark[-1]}{after}"
    return text


@settings(max_examples=200, deadline=None)
@given(anything, st.sampled_from(["", "Describe the picture.", "用一段话描述"]))
@example({}, "")
@example({"faces": 1, "face_area": 0.5}, "")
@example({"ocr_text": "word " * 300, "ocr_scores": [0.99], "faces": 30, "face_area": 0.2, "border": 0.3}, "")
@example({"ocr_text": "\n".join("0123456789abcdef"), "faces": 30}, "")
@example({"ocr_text": "\n".join("0123456789abcdef"), "faces": 30}, "Describe the picture.")
def test_any_facts_give_a_caption_of_20_to_80_words_and_its_chinese(values: Values, prompt: str) -> None:
    english, chinese = both(values, prompt)
    assert words_at_least(english) >= 20 and len(english.split()) <= words_at_most(english) <= 80, english
    assert english[0].isupper() and english.endswith(".") and chinese.endswith("。")
    assert "  " not in english and "\n" not in english and english == english.strip()

    said = without_quotations(english)
    assert said.isascii() or set(said) - set(map(chr, range(128))) <= {mark for pair in MARKS for mark in pair}
    assert not re.search(r"\b(None|nan|inf)\b|[{}]|\.\.|,,| [,.;]", said), english
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", said), english
    for first in re.findall(r"(?:^|\. )(.)", said):
        assert first.isupper(), english

    said = without_quotations(chinese)
    assert not re.search(r"[A-Za-z{},.;:!?]", said), chinese
    assert not re.search(r"[，。；、]{2}|的的", said), chinese

    assert quotations(english) == quotations(chinese)
    for quoted in quotations(english):
        lines = str(values["ocr_text"]).split("\n")
        for piece in quoted.removesuffix(ELLIPSIS).rstrip().removesuffix(BREAK.rstrip()).split(BREAK):
            assert any(piece.strip() in line for line in lines), (piece, lines)


@settings(max_examples=100, deadline=None)
@given(anything)
def test_a_caption_is_the_same_again_and_for_values_that_went_through_a_part(values: Values) -> None:
    stored = dict(values)
    for name in ("luma", "contrast", "sharpness", "sharpness_tile", "face_area", "border"):
        if values.get(name) is not None:
            stored[name] = float(np.float32(values[name]))
            values[name] = float(np.nextafter(stored[name], 0.0))
    assert caption(values) == caption(dict(values)) == caption(stored)


@settings(max_examples=60, deadline=None)
@given(anything)
def test_equal_english_has_equal_chinese_whatever_the_wording(values: Values) -> None:
    facts = measure(values)
    chinese: dict[str, str] = {}
    for variant in range(VARIANTS):
        wording = compose(facts, variant)
        assert chinese.setdefault(wording.en, wording.zh) == wording.zh


# ------------------------------------------------------------------------------------------------------ variety


def photographs(count: int) -> list[Values]:
    """Facts as photographs have them, from a fixed seed."""
    draw = random.Random(7)
    found = []
    for i in range(count):
        width, height = draw.choice([(1024, 768), (768, 1024), (1000, 1000), (1920, 1080), (2400, 800)])
        faces = draw.choice([0, 0, 1, 2])
        shares = sorted((draw.random() for _ in range(3)), reverse=True)
        whole = draw.lognormvariate(4.5, 1.3)
        found.append(
            {
                "sha256": content(i),
                "width": width,
                "height": height,
                "frames": 1,
                "sharpness": whole,
                "sharpness_tile": whole * draw.uniform(1.5, 8),
                "luma": draw.uniform(30, 220),
                "contrast": draw.uniform(20, 75),
                "colorfulness": draw.uniform(5, 90),
                "colors": draw.sample(sorted(COLOR_NAMES), 3),
                "color_shares": [s / sum(shares) for s in shares],
                "faces": faces,
                "face_area": 0.1 if faces else 0.0,
                "face_boxes": [[draw.uniform(0, width * 0.8), 10.0, 99.0, 99.0, 0.9] for _ in range(faces)],
                "ocr_text": draw.choice(["", "", "SALE", "新年快乐\nHappy New Year"]),
            }
        )
    return found


def test_captions_begin_in_many_ways() -> None:
    rows = photographs(300)
    captions = [caption(row) for row in rows]
    assert len(set(captions)) == 300
    names = re.compile("|".join(sorted(COLOR_NAMES, key=len, reverse=True)), re.IGNORECASE)
    assert len({names.sub("hue", text.split(".")[0]) for text in captions}) >= 200
    assert len({" ".join(names.sub("hue", text).split()[:2]) for text in captions}) >= 25


def test_another_prompt_chooses_another_wording_of_the_same_facts() -> None:
    rows = photographs(200)
    same = [caption(row) == caption(row, "Describe the picture in detail.") for row in rows]
    assert sum(same) <= 10


def test_the_prompt_never_changes_what_is_quoted() -> None:
    for prompt in ("", "Describe", "Be brief"):
        assert quotations(caption(STREET, prompt)) == ["PRIVILEGES"]


# ---------------------------------------------------------------------------------------------- saying only facts


def test_an_unknown_fact_is_not_mentioned_and_a_known_absence_may_be() -> None:
    assert "face" not in caption({**STREET, "faces": None})
    assert "face was detected" in caption(BLACK) and "text" in caption(BLACK)
    assert "horizontal" not in caption({"luma": 100.0}) and "landscape-format" not in caption({"luma": 100.0})


def test_orientation_is_never_worded_as_a_subject() -> None:
    for row in photographs(200):
        assert not re.search(r"\b(landscape|portrait)\b(?!-format)", caption(row))


def test_a_line_read_with_little_certainty_is_not_quoted() -> None:
    for prompt in "abcdef":
        english, chinese = both(POSTER, prompt)
        assert "5.8" not in english + chinese and "正品促销" in english
        assert re.search("in part|make out|[Pp]art of", english)
    unsure = {**STREET, "ocr_scores": [0.4]}
    assert "PRIVILEGES" not in caption(unsure) and re.search("certainty|reliably", caption(unsure))


def test_each_face_is_placed_from_left_to_right() -> None:
    boxes = [[900.0, 10.0, 80.0, 80.0, 0.9], [20.0, 10.0, 80.0, 80.0, 0.9]]
    two = {"width": 1000, "height": 500, "faces": 2, "face_area": 0.02, "face_boxes": boxes}
    english, chinese = both(two)
    assert (
        "one on the left and one on the right" in english
        and "一张在左侧，一张在右侧" in chinese
        and "两张人脸" in chinese
    )


def test_faces_without_a_box_for_each_are_counted_and_not_placed() -> None:
    english = caption({"faces": 3, "face_boxes": [[0.0, 0.0, 9.0, 9.0, 0.9]], "width": 100, "height": 100})
    assert re.search("[Tt]hree faces", english) and not re.search(" (left|right|center)", english)


def test_a_sharp_subject_before_a_soft_ground_is_told_from_a_picture_sharp_all_over() -> None:
    def focus(whole: float, tile: float) -> str | None:
        return measure({"sharpness": whole, "sharpness_tile": tile}).focus

    assert [focus(95, 840), focus(444, 1272), focus(2, 7), focus(100, 250)] == ["partial", "crisp", "soft", "fair"]


# -------------------------------------------------------------------------------------------------------- quoting


def test_long_text_is_shortened_at_a_line_and_says_so() -> None:
    found = quote(["one two three", "four five six", "seven eight nine"], 9)
    assert found and found.text == "“one two three / four five six / …”" and found.cut


def test_a_first_line_that_is_too_long_is_cut_between_words_or_characters() -> None:
    found = quote(["one two three four five"], 4)
    assert found and found.text == "“one two three …”"
    found = quote(["大桶装更划算强力去污"], 4)
    assert found and found.text == "“大桶装更划算 …”"


def test_the_marks_around_a_quotation_are_none_that_it_holds() -> None:
    for line, quoted in (("He said “no”", "「He said “no”」"), ("“甲”「乙」", "『“甲”「乙」』"), ('a "b"', '“a "b"”')):
        found = quote([line], 20)
        assert found and found.text == quoted
    assert quote(["a" + "".join(a + b for a, b in MARKS)], 20) is None


def test_text_is_not_joined_across_what_does_not_print() -> None:
    assert pieces_of("one\u202etwo  three\u3000四\t- -") == ["one", "two", "three", "四"]


def test_two_chinese_characters_count_as_a_word() -> None:
    assert words_at_most("a line reads “大桶装更划算 / 5”") == 3 + 3 + 1 + 1
    assert words_at_least("a line reads “大桶装更划算 / 5”") == 3


# ------------------------------------------------------------------------------------------------------- contract


def test_the_rows_say_what_wrote_them_and_hold_the_declared_columns() -> None:
    (row,) = FactsCaptioner()([Sample(0, None, STREET)])
    assert list(row) == [column.name for column in OPERATORS["caption"]]
    assert (row["caption_engine"], row["caption_model"], row["caption_revision"]) == (
        "facts",
        "curate-facts",
        str(VERSION),
    )
    (translated,) = FactsTranslator()([Sample(0, None, {**STREET, **row})])
    assert list(translated) == [column.name for column in OPERATORS["translate"]]
    assert translated["translate_engine"] == "facts" and translated["translate_revision"] == str(VERSION)


def test_every_column_that_is_read_is_declared_and_comes_before_the_caption() -> None:
    assert all(operator_of(name) not in (None, "caption", "translate") for name in NEEDS)


def test_only_the_columns_in_needs_have_an_influence() -> None:
    class Watched(dict[str, Any]):
        read: ClassVar[set[str]] = set()

        def get(self, name: str, default: Any = None) -> Any:
            self.read.add(name)
            return super().get(name, default)

    for values in (STREET, POSTER, TEAM, {"aspect": 2.0, "ocr_text": "A", "saturation": 0.5}):
        caption(Watched(values))
    assert Watched.read <= set(NEEDS)


def test_a_batch_with_several_prompts_behind_it_is_translated_row_by_row() -> None:
    rows = photographs(12)
    samples = [Sample(i, None, {**row, "caption_en": caption(row, f"prompt {i % 3}")}) for i, row in enumerate(rows)]
    alone = [FactsTranslator()([sample])[0] for sample in samples]
    assert FactsTranslator()(samples) == alone


def test_a_caption_of_another_engine_is_refused_with_what_to_do() -> None:
    values = {**STREET, "caption_en": "A bus on a street.", "caption_engine": "cogvlm"}
    with pytest.raises(RowError, match=r"cogvlm.*choose another translate\.engine") as failure:
        FactsTranslator()([Sample(0, None, values)])
    assert failure.value.code == "operator_failed"


def test_a_row_without_a_caption_has_no_translation() -> None:
    (row,) = FactsTranslator()([Sample(0, None, {**STREET, "caption_en": None})])
    assert row["caption_zh"] is None
