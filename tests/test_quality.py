"""Each check of a caption has a caption that trips it and one that does not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.columns import OPERATORS
from schemas.errors import RowError
from workers.quality import (
    Checked,
    Quality,
    chinese_reason,
    english_reason,
    language_of,
    length_ratio,
    quoted,
    raw_reason,
    repetition,
    temperature,
    without_opening,
)
from workers.sample import Sample

GOOD = "A red gate stands open between two stone lions. Three people walk towards it in warm evening light."
CHINESE = "一座红色的大门在两只石狮子之间敞开着。三个人在温暖的夕阳下朝它走去。"


def english(text: str, finish: str | None = "stop") -> str | None:
    return english_reason(text, finish, min_words=5, max_words=60)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        (GOOD, "stop", None),
        ('A sign reads "OPEN 24 HOURS" above a door of dark wood.', None, None),
        ("", "stop", "empty"),
        (" \n", "stop", "empty"),
        (GOOD + "</s>", "stop", "sentinel"),
        ("<|im_end|> " + GOOD, "stop", "sentinel"),
        ("Question: what is it? " + GOOD, "stop", "sentinel"),
        ("I'm sorry, but I cannot describe this picture at all.", "stop", "refusal"),
        ("As an AI language model I see a red gate here.", "stop", "refusal"),
        (CHINESE, "stop", "language"),
        ("Красные ворота стоят между двумя каменными львами.", "stop", "language"),
        ("a red gate and a red gate and a red gate and a red gate and a red gate.", "stop", "repetition"),
        ("It is red. It is red. It is red.", "stop", "repetition"),
        ("The gate is very very very very very very red today.", "stop", "repetition"),
        (GOOD, "length", "truncated"),
        ("A red gate stands open between two stone", "stop", "truncated"),
        ("I’m sorry, but I can’t help with that request.", "stop", "refusal"),
        ("Sorry, I can't determine what the picture shows.", "stop", "refusal"),
        ("Unfortunately, the image did not load for me.", "stop", "refusal"),
        ('A note on the wall reads "I\'m sorry, we are closed".', "stop", None),
        ("A note on the wall reads ‘I’m sorry, we are closed’.", "stop", None),
        ('A T-shirt reads "<html>" in white letters.', "stop", None),
        ("A poster on the wall says “抱歉” in red.", "stop", None),
        ("Ein roter Zug steht am Bahnhof und wartet.", "stop", "language"),
        ("Un chat noir dort sur le canapé rouge.", "stop", "language"),
        ("Một con mèo đen đang ngủ trên ghế.", "stop", "language"),
        ("Sebuah kereta merah berhenti di stasiun kota.", "stop", "language"),
        ("A man sits at the Café de la Paix in Paris and reads Le Monde.", "stop", None),
        ("Two cats sleep; three dogs run.", "stop", None),
        ("A gate.", "stop", "too_short"),
        ("The gate is one of four. " + " ".join(f"word{i}" for i in range(70)) + ".", "stop", "too_long"),
    ],
)
def test_an_english_caption_has_the_first_reason_that_applies(
    text: str, finish: str | None, reason: str | None
) -> None:
    assert english(text, finish) == reason


@pytest.mark.parametrize(
    ("text", "missing", "reason"),
    [
        (CHINESE, [], None),
        ("", [], "empty"),
        ("抱歉，我无法描述这张图片的内容。", [], "sentinel"),
        ("A red gate stands open.", [], "language"),
        ("一座红色的大门 stands open between 两只石狮子之间敞开着。", [], "latin"),
        ("一座红门一座红门一座红门一座红门一座红门一座红门", [], "repetition"),
        ("红门。", [], "length"),
        ("一座红色的大门在两只石狮子之间敞", [], "truncated"),
        ("牌子上写着“抱歉”，一座红色的大门在两只石狮子之间敞开着。", [], None),
        (CHINESE, ["3"], "lost"),
    ],
)
def test_a_chinese_caption_has_the_first_reason_that_applies(text: str, missing: list[str], reason: str | None) -> None:
    assert chinese_reason(text, GOOD, missing) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Sunset over the harbour", None),
        ("故宫角楼", None),
        ("", "empty"),
        ("IMG_20230114.jpg", "file_name"),
        ("DSC_0042", "file_name"),
        ("buy now at www.example.com", "link"),
        ("gate </s>", "sentinel"),
        ("gate", "too_short"),
        ("stock photo", "boilerplate"),
        ("No image available", "boilerplate"),
        ("图片", "boilerplate"),
        ("A logo on a stock photo of a gate", None),
        ("DSC0042.JPG photo", "file_name"),
        ("cheap shoes " * 12, "repetition"),
    ],
)
def test_a_raw_caption_has_the_first_reason_that_applies(text: str, reason: str | None) -> None:
    assert raw_reason(text) == reason


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("This image showcases a red gate.", "A red gate."),
        ("In this image, we can see a red gate.", "A red gate."),
        ("The photograph depicts two cats.", "Two cats."),
        ("We see a dog.", "A dog."),
        ("This is a photo of a red gate.", "A red gate."),
        ("This is a black-and-white photo of a gate.", "A black-and-white photo of a gate."),
        ("The image is a close-up of a red gate.", "A close-up of a red gate."),
        ("The image is dark.", "The image is dark."),
        ("In the image, there are two dogs on grass.", "Two dogs on grass."),
        ("In this image there is a gate.", "A gate."),
        ("In this picture, a dog runs.", "A dog runs."),
        ("This vibrant image showcases a gate.", "A gate."),
        ("This aerial image showcases a gate.", "This aerial image showcases a gate."),
        ("This image beautifully captures a gate.", "A gate."),
        ("This image shows that a gate is red.", "A gate is red."),
        ("An image of a saint hangs there.", "An image of a saint hangs there."),
        ("A gate. This image showcases it.", "A gate. This image showcases it."),
        ("The image of a saint hangs there.", "The image of a saint hangs there."),
        ("This image showcases", "This image showcases"),
    ],
)
def test_a_boilerplate_opening_goes_and_nothing_else(text: str, cleaned: str) -> None:
    assert without_opening(text)[0] == cleaned


@given(st.text())
def test_no_text_breaks_a_check(text: str) -> None:
    english(text)
    raw_reason(text)
    chinese_reason(text, text, [])
    quoted(text, text)
    assert without_opening(text)[0] or not text
    assert 0 <= repetition(text) <= 1
    assert language_of(text) in ("en", "zh", "other", "none")


def test_measures_have_known_values() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("一二三四一二三四") == pytest.approx(1 / 5)
    assert length_ratio("红门开着", "the red gate is open") == pytest.approx(4 / 5)
    assert language_of("iPhone 手机壳新款上市") == "other"


@pytest.mark.parametrize(
    ("text", "read", "precision", "recall"),
    [
        ('A sign reads "OPEN".', "OPEN\n24 HOURS", 1.0, 0.5),
        ('A sign reads "0PEN".', "OPEN", 1.0, 1.0),  # one character of four
        ('A sign reads "CLOSED".', "OPEN", 0.0, 0.0),
        ("“故宫博物院”的匾额", "故宮博物院", 1.0, 1.0),
        ("A gate.", "OPEN", None, 0.0),
        ('"A" and "B"', "", 0.0, None),
        ("A gate.", None, None, None),
    ],
)
def test_quoted_text_is_held_against_what_ocr_read(
    text: str, read: str | None, precision: float | None, recall: float | None
) -> None:
    assert quoted(text, read) == (precision, recall)
    assert quoted('"a"', "a\nb", [0.99, 0.5]) == (1.0, 1.0)


def test_the_operator_writes_all_its_columns_and_its_own_reasons() -> None:
    check = Quality(min_similarity=0.2)
    values: dict[str, Any] = {
        "caption_raw": "IMG_1.jpg", "caption_en": GOOD, "caption_zh": CHINESE, "caption_finish": "stop",
        "translate_lost": [], "ocr_text": "", "similarity_en": 0.25,
    }  # fmt: skip
    (row,) = check([Sample(0, None, values)])
    assert set(row) == {column.name for column in OPERATORS["quality"]}
    assert (row["caption_raw_reason"], row["caption_en_reason"], row["caption_zh_reason"]) == ("file_name", None, None)
    (row,) = check([Sample(0, None, values | {"similarity_en": 0.1})])
    assert row["caption_en_reason"] == "similarity"
    invented = 'A sign on the red gate reads "NO ENTRY" in white letters.'
    (row,) = check([Sample(0, None, values | {"caption_en": invented, "ocr_text": "WELCOME"})])
    assert (row["caption_en_reason"], row["caption_en_quote_precision"]) == ("quotes", 0.0)
    (row,) = check([Sample(0, None, values | {"caption_en": invented, "ocr_text": None})])
    assert (row["caption_en_reason"], row["caption_en_quote_precision"]) == (None, None)
    (row,) = check([Sample(0, None, {})])
    assert set(row.values()) == {None}


class Scripted:
    """A captioner that says what its script holds for each try."""

    def __init__(self, script: dict[int, Sequence[str]]) -> None:
        self.script = script
        self.prompt = "p"
        self.attempt = 0
        self.asked: list[tuple[int, int]] = []

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any] | RowError]:
        self.asked.append((self.attempt, len(samples)))
        texts = self.script[self.attempt]
        rows: list[dict[str, Any] | RowError] = []
        for sample in samples:
            text = texts[sample.row % len(texts)]
            if text == "raises":
                raise RowError("out_of_memory", "not this one")
            good = {"caption_en": text, "caption_finish": "stop"}
            rows.append(RowError("endpoint_failed", "no") if text == "broken" else good)
        return rows

    def again(self, attempt: int) -> Scripted:
        other = copy.copy(self)
        other.attempt = attempt
        return other


def test_a_caption_that_fails_is_asked_for_again_and_every_rejected_one_is_recorded() -> None:
    captioner = Scripted({0: [GOOD, "gate", "lion"], 1: ["x", "y", "A good caption of one stone lion."], 2: [GOOD]})
    rows = Checked(captioner, attempts=2)([Sample(i, None, {}) for i in range(3)])
    assert captioner.asked == [(0, 3), (1, 2), (2, 1)]
    assert [row["caption_en"] for row in rows] == [GOOD, GOOD, "A good caption of one stone lion."]
    assert [row["caption_attempts"] for row in rows] == [
        [], ["truncated: gate", "truncated: y"], ["truncated: lion"],
    ]  # fmt: skip


def test_when_all_tries_fail_the_first_caption_stays() -> None:
    rows = Checked(Scripted({0: ["gate"], 1: ["x"], 2: ["broken"]}), attempts=2)([Sample(0, None, {})])
    assert (rows[0]["caption_en"], rows[0]["caption_attempts"]) == (
        "gate", ["truncated: x", "error: endpoint_failed: no"],
    )  # fmt: skip
    rows = Checked(Scripted({0: ["This image showcases a gate"]}), attempts=0)([Sample(0, None, {})])
    assert (rows[0]["caption_en"], rows[0]["caption_attempts"]) == ("A gate", [])


def test_one_row_whose_further_try_fails_takes_no_other_row_s_tries_away() -> None:
    for trouble, why in (("broken", "error: endpoint_failed: no"), ("raises", "error: out_of_memory: not this one")):
        captioner = Scripted({0: ["gate"], 1: [trouble, *[GOOD] * 8], 2: ["gate"]})
        rows = Checked(captioner, attempts=2)([Sample(i, None, {}) for i in range(9)])
        assert [row["caption_en"] for row in rows] == ["gate", *[GOOD] * 8]
        assert rows[0]["caption_attempts"] == [why, "truncated: gate"]
    rows = Checked(Scripted({0: ["broken", GOOD]}), attempts=2)([Sample(i, None, {}) for i in range(2)])
    assert isinstance(rows[0], RowError)
    assert rows[1]["caption_en"] == GOOD


def test_further_tries_are_hotter_up_to_one() -> None:
    assert [temperature(n) for n in (1, 2, 5)] == [0.3, 0.6, 1.0]


def test_the_prompt_can_be_changed_without_changing_the_captioner_that_is_shared() -> None:
    captioner = Scripted({0: [GOOD]})
    checked = Checked(captioner, attempts=0)
    other = copy.copy(checked)
    other.prompt = "q"
    assert (checked.prompt, other.prompt, captioner.prompt) == ("p", "q", "p")
