"""Posters and scene texts: pictures whose text is read well enough for a caption to quote it, captioned with it.

Kolors learnt to draw Chinese from rendered text and from real posters described by OCR and a model. This operator
picks such pictures by the columns of `ocr`, tells the captioner what was read and where (OCR first, then the caption,
as Z-Image does it), and holds the caption to it: a sentence that quotes what is not there is cut out, and where less
than the demanded share of the text is quoted, a clause with all of it is appended. Rendered text (curate/synth) goes
the same way with the strings that were drawn, every one of which must survive.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import RowError
from workers.facts.quoting import MARKS
from workers.sample import Sample

VERSION = 1

Captioner = Callable[[Sequence[Sample]], Sequence[dict[str, Any] | RowError]]

NEEDS = (
    "width", "height", "ocr_text", "ocr_confidence", "ocr_area", "ocr_language", "ocr_boxes", "caption_en",
    "caption_zh", "caption_engine", "synth_texts", "synth_lines", "synth_spec_sha",
)  # fmt: skip
LANGUAGES = ("zh", "mixed")
# A quotation is in the text when it differs in no more than this share of its characters (AnyText's normalised edit
# distance): a captioner writes 閱 for 阅 and drops a dot.
MAX_DISTANCE = 0.1

PLACES = (
    (("左上方", "in the upper left"), ("上方", "at the top"), ("右上方", "in the upper right")),
    (("左侧", "on the left"), ("中央", "in the center"), ("右侧", "on the right")),
    (("左下方", "in the lower left"), ("下方", "at the bottom"), ("右下方", "in the lower right")),
)
# Straight quotation marks open and close alike: a pair must not begin after a letter or digit (5" is five inches).
QUOTED = re.compile(
    r"“([^”]+)”|「([^」]+)」|『([^』]+)』|«([^»]+)»|(?<![0-9A-Za-z])\"([^\"]+)\""
    r"|(?<![0-9A-Za-z])'([^']{2,})'(?![A-Za-z])"
)
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^a-z])|(?<=[。！？])")


@dataclass(frozen=True)
class Line:
    """One line of text in a picture and the cell of nine that its middle lies in (Chinese and English name)."""

    text: str
    place: tuple[str, str]


class PosterCaptioner:
    """The `poster` operator. `captioner` is asked for rows that are posters; None: the row's own captions are mended.

    The captioner sees what was read as the caption that came with the picture, so that any of them will do whose prompt
    has a place for it. `min_line_px` is the height below which print is too small to be drawn again; lines that high
    must hold `covered` of all characters read. `rendered` is the share of rendered rows that are captioned anew.
    """

    def __init__(
        self,
        captioner: Captioner | None,
        *,
        min_confidence: float = 0.9,
        min_area: float = 0.01,
        max_area: float = 0.6,
        min_line_px: float = 24.0,
        covered: float = 0.8,
        rendered: float = 0.2,
    ) -> None:
        self.captioner = captioner
        self.min_confidence, self.min_area, self.max_area = min_confidence, min_area, max_area
        self.min_line_px, self.covered, self.rendered = min_line_px, covered, rendered

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any] | RowError]:
        """One dict of the `poster` columns, or the captioner's failure, per sample; all null for no poster."""
        told = [self.lines(sample.values) for sample in samples]
        chosen = [i for i, lines in enumerate(told) if lines]
        written: dict[int, str | None] = {i: samples[i].values.get("caption_en") for i in chosen}
        engine: dict[int, str | None] = {i: samples[i].values.get("caption_engine") for i in chosen}
        failed: dict[int, RowError] = {}
        if self.captioner and chosen:
            asked = [
                Sample(s.row, s.data, {**s.values, "caption_raw": hint(told[i])}, s.limits)
                for i, s in ((i, samples[i]) for i in chosen)
            ]
            for i, columns in zip(chosen, self.captioner(asked), strict=True):
                if isinstance(columns, RowError):
                    failed[i] = columns
                else:
                    written[i], engine[i] = columns["caption_en"], columns["caption_engine"]
        rows: list[dict[str, Any] | RowError] = []
        for i, sample in enumerate(samples):
            if i in failed:
                rows.append(failed[i])
            elif i in written:
                rows.append(self._columns(sample.values, told[i], written[i], engine[i]))
            else:
                rows.append(dict.fromkeys(COLUMNS))
        return rows

    def lines(self, values: dict[str, Any]) -> list[Line]:
        """The lines of a row that a caption must quote; none when it is no poster."""
        if values.get("synth_texts") and values.get("synth_lines"):
            return self._rendered(values)
        text, boxes = values.get("ocr_text"), values.get("ocr_boxes")
        width, height = values.get("width"), values.get("height")
        if not (text and boxes and width and height and values.get("ocr_language") in LANGUAGES):
            return []
        if not (values.get("ocr_confidence") or 0) >= self.min_confidence:
            return []
        if not self.min_area <= (values.get("ocr_area") or 0) <= self.max_area:
            return []
        read = text.split("\n")  # `ocr_boxes` begins with the boxes of these
        tall = [i for i, box in enumerate(boxes[: len(read)]) if line_px(box) >= self.min_line_px and plain(read[i])]
        if sum(len(plain(read[i])) for i in tall) < self.covered * len(plain(text)):
            return []
        return [Line(read[i].strip(), place_of(bounds(boxes[i]), (width, height))) for i in tall]

    def _rendered(self, values: dict[str, Any]) -> list[Line]:
        key = hashlib.blake2b(str(values.get("synth_spec_sha")).encode(), digest_size=8).digest()
        if not self.captioner or int.from_bytes(key, "big") / 2**64 >= self.rendered:
            return []
        size = (values.get("width") or 1, values.get("height") or 1)
        pairs = zip(values["synth_texts"], values["synth_lines"], strict=False)
        return [Line(text, place_of(bounds(box), size)) for text, box in pairs]

    def _columns(
        self, values: dict[str, Any], lines: list[Line], written: str | None, engine: str | None
    ) -> dict[str, Any]:
        drawn = bool(values.get("synth_texts"))
        strings = [line.text for line in lines]
        kept, invented = honest(written or "", strings)
        share = quoted_share(kept, strings)
        enough = all(text in kept for text in strings) if drawn else share >= self.covered
        if drawn and not (enough and not invented):
            return {
                **dict.fromkeys(COLUMNS),
                "poster_how": "refused",
                "poster_quoted": share,
                "poster_invented": invented,
            }
        how = "cut" if invented else "written"
        if not enough:
            kept, how = f"{kept} {clause(lines, 1)}".strip(), "clause"
        chinese, _ = honest(values.get("caption_zh") or "", strings)
        if quoted_share(chinese, strings) < (1.0 if drawn else self.covered):
            chinese += clause(lines, 0)
        return {
            "poster_caption_en": kept, "poster_caption_zh": chinese, "poster_how": how, "poster_quoted": share,
            "poster_invented": invented, "poster_engine": engine,
        }  # fmt: skip


COLUMNS = (
    "poster_caption_en", "poster_caption_zh", "poster_how", "poster_quoted", "poster_invented", "poster_engine",
)  # fmt: skip


def hint(lines: Sequence[Line]) -> str:
    """What the captioner is told: each line with its place."""
    return "; ".join(f"{line.place[1]}: {line.text}" for line in lines)


def clause(lines: Sequence[Line], language: int) -> str:
    """A sentence that quotes every line by place, in Chinese (0) or English (1); a line is never translated."""
    places: dict[str, list[str]] = {}
    for line in lines:
        if marked := in_marks(line.text, straight=language == 1):
            places.setdefault(line.place[language], []).append(marked)
    if not places:
        return ""
    if language == 0:
        return "画面中的文字为：" + "；".join(place + "".join(texts) for place, texts in places.items()) + "。"
    return "The text in the picture reads: " + "; ".join(f"{p} {', '.join(t)}" for p, t in places.items()) + "."


def in_marks(text: str, straight: bool) -> str:
    """The text between quotation marks that it does not use itself; empty when it uses all of them."""
    for opening, closing in (('"', '"'), *MARKS) if straight else MARKS:
        if opening not in text and closing not in text:
            return f"{opening}{text}{closing}"
    return ""


def honest(caption: str, strings: Sequence[str]) -> tuple[str, list[str]]:
    """A caption without the sentences that quote what is not among `strings`, and those quotations."""
    invented: list[str] = []
    kept = []
    whole = plain("".join(strings))
    for sentence in SENTENCE.split(caption):
        wrong = [text for text in quotations(sentence) if not is_in(text, whole)]
        invented += wrong
        if not wrong:
            kept.append(sentence)
    if not invented:
        return caption, []
    return " ".join(kept).strip(), invented


def quotations(text: str) -> list[str]:
    """What stands between quotation marks, in order."""
    return [next(group for group in match.groups() if group) for match in QUOTED.finditer(text)]


def quoted_share(caption: str, strings: Sequence[str]) -> float:
    """Share of the characters of `strings` that `caption` quotes, 0..1; a line counts as far as it is quoted."""
    quotes = [plain(text) for text in quotations(caption)]
    whole = "".join(quotes)
    total = quoted = 0
    for text in map(plain, strings):
        total += len(text)
        if text and is_in(text, whole):
            quoted += len(text)
        else:
            quoted += min(len(text), sum(len(quote) for quote in quotes if quote and quote in text))
    return quoted / total if total else 0.0


def is_in(wanted: str, text: str) -> bool:
    """Whether `wanted` stands in `text` (both plain or made so), but for a tenth of its characters."""
    wanted = plain(wanted)
    if not wanted or wanted in text:
        return True
    allowed = int(MAX_DISTANCE * len(wanted))
    if not allowed:
        return False
    # Edit distance to the best part of `text`: beginning and end are free.
    row = [0] * (len(text) + 1)
    for i, a in enumerate(wanted, 1):
        left, row[0] = row[0], i
        for j, b in enumerate(text, 1):
            left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left + (a != b))
    return min(row) <= allowed


def plain(text: str) -> str:
    """Text for comparison: NFKC, lower case, letters and digits only."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum())


def line_px(box: Sequence[float]) -> float:
    """Height of the characters in a quad [x1, y1, ... x4, y4]: its shorter side."""
    return min(math.hypot(box[i] - box[i - 2], box[i + 1] - box[i - 1]) for i in (2, 4))


def bounds(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a quad."""
    return min(box[::2]), min(box[1::2]), max(box[::2]), max(box[1::2])


def place_of(box: Sequence[float], size: Sequence[float]) -> tuple[str, str]:
    """Chinese and English name of the one of nine cells in which the middle of a box lies."""
    x, y = (box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]
    column = 1 if abs(x - 0.5) <= 1 / 6 else int(x > 0.5) * 2
    row = 1 if abs(y - 0.5) <= 1 / 6 else int(y > 0.5) * 2
    return PLACES[row][column]
