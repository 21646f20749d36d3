"""What is wrong with a caption: checks by rule, each with a stable reason; captions that fail are asked for again.

    English    empty, sentinel, refusal, language, repetition, truncated, too_short, too_long, quotes, similarity
    Chinese    empty, sentinel, language, latin, repetition, length, lost
    raw        empty, file_name, link, sentinel, too_short, repetition

The first that applies is the reason; null is a caption to use. What each measures is a column of its own.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from schemas.errors import RowError
from workers.sample import Sample
from workers.sentences import sentences
from workers.spans import HAN, quotes

VERSION = 1

# Openings that say nothing of the picture; a model trained on them begins every prompt so.
OPENING = re.compile(
    r"^(?:(?:in )?(?:this|the) (?:image|picture|photo(?:graph)?|illustration|scene)"
    r"(?: (?:showcases?|shows?|depicts?|features?|presents?|displays?|captures?|portrays?|contains?|is of)"
    r"|, (?:we can see|there is))"
    r"|we (?:can )?see(?: in (?:this|the) (?:image|picture|photo))?)\s+",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)"
    r"|i (?:can(?:'|no)t|cannot) (?:help|assist|describe|see|identify|view|provide)"
    r"|as an ai\b|as a language model|i apologi[sz]e)"
    r"|抱歉|无法(?:描述|识别|查看)|作为(?:一个)?人工智能",
    re.IGNORECASE,
)
SENTINEL = re.compile(
    r"<\|?[a-z_]{1,24}\|?>|</s>|\[/?INST\]|<unk>|\ufffd|^\s*(?:Question|Answer|USER|ASSISTANT):"
    r"|\b(?:USER|ASSISTANT): |参考下面的翻译|将以下文本翻译"
)
FILE_NAME = re.compile(
    r"^\W*[\w() -]*\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic)\W*$|^(?:img|dsc|dscn|image|photo)[_ -]?\d+$", re.I
)
LINK = re.compile(r"https?://|\bwww\.", re.IGNORECASE)
STOPS = ".!?。！？…\"'”’)）」』"
HOTTER = 0.3  # temperature of the first further try; each later one adds as much, to 1 at most


def without_opening(text: str) -> tuple[str, str]:
    """(`text` without a boilerplate opening, the opening): `This image showcases a gate.` becomes `A gate.`"""
    found = OPENING.match(text)
    if not found or len(text) - found.end() < 3:
        return text, ""
    rest = text[found.end() :]
    return rest[0].upper() + rest[1:], found[0].strip()


def repetition(text: str, size: int = 4) -> float:
    """Share of the text's runs of `size` words (Chinese: characters) that stood before, 0..1: above 0.3 it loops."""
    units = re.findall(r"[\u3400-\u9fff]|[^\W_]+", text.lower())
    runs = Counter(tuple(units[i : i + size]) for i in range(len(units) - size + 1))
    total = sum(runs.values())
    return (total - len(runs)) / total if total else 0.0


def language_of(text: str) -> str:
    """`en` (Latin letters), `zh` (Chinese), `other`, or `none` without letters: by share of letters, at least 60 %."""
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return "none"
    han = sum(map(len, HAN.findall(text))) / len(letters)
    latin = sum(character < "\u0250" for character in letters) / len(letters)
    return "zh" if han >= 0.6 else "en" if latin >= 0.6 else "other"


def words(text: str) -> int:
    """Words, counting each Chinese character as one."""
    return len(re.findall(r"[\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*", text))


def english_reason(text: str, finish: str | None, *, min_words: int, max_words: int) -> str | None:
    """Why an English caption is not to be used, by its own text; None when nothing is wrong."""
    if not text.strip():
        return "empty"
    count = words(text)
    checks = (
        ("sentinel", SENTINEL.search(text) is not None),
        ("refusal", REFUSAL.search(text) is not None),
        ("language", language_of(text) != "en"),
        ("repetition", repetition(text) > 0.3 or _stutters(text)),
        ("truncated", finish == "length" or text.rstrip()[-1] not in STOPS),
        ("too_short", count < min_words),
        ("too_long", count > max_words),
    )
    return next((reason for reason, applies in checks if applies), None)


def chinese_reason(text: str, english: str, missing: Sequence[str]) -> str | None:
    """Why a Chinese caption is not to be used; `missing` are the protected spans that the translation lost."""
    if not text.strip():
        return "empty"
    ratio = length_ratio(text, english)
    checks = (
        ("sentinel", SENTINEL.search(text) is not None or REFUSAL.search(text) is not None),
        ("language", han_share(text) < 0.3),
        ("latin", latin_share(text) > 0.15),
        ("repetition", repetition(text) > 0.3 or _stutters(text)),
        # English to Chinese: 1.0 to 2.2 characters a word in published parallel captions; far outside, text is missing.
        ("length", bool(english.strip()) and not 0.5 <= ratio <= 4.0),
        ("lost", bool(missing)),
    )
    return next((reason for reason, applies in checks if applies), None)


def raw_reason(text: str) -> str | None:
    """Why a caption that came with the picture is not to be used."""
    if not text.strip():
        return "empty"
    checks = (
        ("file_name", FILE_NAME.match(text.strip()) is not None),
        ("link", LINK.search(text) is not None),
        ("sentinel", SENTINEL.search(text) is not None),
        ("too_short", words(text) < 2),
        ("repetition", words(text) >= 12 and repetition(text, 2) > 0.5),
    )
    return next((reason for reason, applies in checks if applies), None)


def han_share(text: str) -> float:
    """Chinese characters among all that is not white space, 0..1."""
    visible = len("".join(text.split()))
    return sum(map(len, HAN.findall(text))) / visible if visible else 0.0


def latin_share(text: str) -> float:
    """Latin letters outside quotation marks among letters, 0..1: English that was left over."""
    outside = text
    for quoted in quotes(text):
        outside = outside.replace(quoted, "")
    letters = [character for character in outside if character.isalpha()]
    return sum(character < "\u0250" for character in letters) / len(letters) if letters else 0.0


def length_ratio(chinese: str, english: str) -> float:
    """Chinese characters for each English word; 0 without English."""
    count = words(english)
    return words(chinese) / count if count else 0.0


def quoted(text: str, read: str | None, scores: Sequence[float] | None = None) -> tuple[float | None, float | None]:
    """How well the quoted parts of a caption agree with what OCR read: (precision, recall), 0..1 or None.

    Precision is the share of quoted parts that stand in the text (edit distance at most a quarter); recall the share of
    lines, of those read with 0.9 or more where `scores` are known, that stand in the caption.
    """
    said = [_bare(part) for part in quotes(text)]
    said = [part for part in said if part]
    lines = (read or "").splitlines()
    sure = [line for line, score in zip(lines, scores or [1.0] * len(lines), strict=False) if score >= 0.9]
    joined = _bare(read or "")
    precision = sum(_stands_in(part, joined) for part in said) / len(said) if said else None
    wanted = [bare for line in sure if (bare := _bare(line))]
    whole = _bare(text)
    recall = sum(_stands_in(line, whole) for line in wanted) / len(wanted) if wanted else None
    return precision, recall


class Quality:
    """The `quality` operator: every check on the captions of a row. Null measures: there is nothing to measure."""

    def __init__(
        self, *, min_words: int = 5, max_words: int = 400, min_quotes: float = 0.5, min_similarity: float = 0.0
    ) -> None:
        self.min_words = min_words
        self.max_words = max_words
        self.min_quotes = min_quotes
        self.min_similarity = min_similarity

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [self._columns(sample.values) for sample in samples]

    def _columns(self, values: dict[str, Any]) -> dict[str, Any]:
        english, chinese = values.get("caption_en"), values.get("caption_zh")
        text, there = str(english or ""), english is not None
        zh, zh_there = str(chinese or ""), chinese is not None
        precision, recall = quoted(text, values.get("ocr_text"), values.get("ocr_scores"))
        reason = english_reason(
            text, values.get("caption_finish"), min_words=self.min_words, max_words=self.max_words
        ) if there else None  # fmt: skip
        similarity = values.get("similarity_en")
        # Without OCR nothing is known of quoted text; an empty text is known.
        if there and reason is None and values.get("ocr_text") is not None and (precision or 0) < self.min_quotes:
            reason = "quotes" if precision is not None else None
        if there and reason is None and similarity is not None and similarity < self.min_similarity:
            reason = "similarity"
        raw = values.get("caption_raw")
        return {
            "caption_raw_reason": None if raw is None else raw_reason(str(raw)),
            "caption_en_reason": reason,
            "caption_en_words": words(text) if there else None,
            "caption_en_language": language_of(text) if there else None,
            "caption_en_repetition": repetition(text) if there else None,
            "caption_en_opening": (without_opening(text)[1] or None) if there else None,
            "caption_en_quote_precision": precision if values.get("ocr_text") is not None else None,
            "caption_en_quote_recall": recall if there else None,
            "caption_zh_reason": (
                chinese_reason(zh, text, values.get("translate_lost") or []) if zh_there else None
            ),
            "caption_zh_han": han_share(zh) if zh_there else None,
            "caption_zh_latin": latin_share(zh) if zh_there else None,
            "caption_zh_ratio": length_ratio(zh, text) if zh_there and there else None,
            "caption_zh_repetition": repetition(zh) if zh_there else None,
        }  # fmt: skip


def temperature(attempt: int) -> float:
    """Sampling temperature of a further try."""
    return min(1.0, HOTTER * attempt)


class Captioner(Protocol):
    """A captioner that can be asked again: `again(n)` is a copy of it with the sampling of the n-th further try."""

    prompt: Any

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]: ...
    def again(self, attempt: int) -> Captioner: ...


class Checked:
    """A captioner whose captions are checked: boilerplate openings go, and a caption that fails is asked for again.

    Each further try samples at a higher temperature. A rejected caption stands in `caption_attempts` with its reason;
    when all fail, the first one stays, and the `quality` operator says why it is not to be used.
    """

    def __init__(self, captioner: Captioner, *, attempts: int, min_words: int = 5, max_words: int = 400) -> None:
        self.captioner = captioner
        self.attempts = attempts
        self.min_words = min_words
        self.max_words = max_words

    @property
    def prompt(self) -> Any:
        """The captioner's prompt."""
        return self.captioner.prompt

    @prompt.setter
    def prompt(self, prompt: Any) -> None:
        self.captioner = copy.copy(self.captioner)
        self.captioner.prompt = prompt

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        rows = [self._cleaned(row) for row in self.captioner(samples)]
        failed = [i for i, row in enumerate(rows) if self._reason(row)]
        for attempt in range(1, self.attempts + 1):
            if not failed:
                break
            try:
                others = self.captioner.again(attempt)([samples[i] for i in failed])
            except RowError:
                break  # there is a caption, if a bad one; a try that fails must not take it away
            for i, other in zip(failed, map(self._cleaned, others), strict=True):
                reason = self._reason(other)
                before = rows[i]["caption_attempts"]
                if reason is None:
                    first = f"{self._reason(rows[i])}: {rows[i]['caption_en']}"
                    rows[i] = other | {"caption_attempts": [first, *before]}
                else:
                    rows[i]["caption_attempts"] = [*before, f"{reason}: {other['caption_en']}"]
            failed = [i for i in failed if self._reason(rows[i])]
        return rows

    def _cleaned(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"caption_en": without_opening(str(row["caption_en"] or ""))[0], "caption_attempts": []}

    def _reason(self, row: dict[str, Any]) -> str | None:
        return english_reason(
            str(row["caption_en"]), row["caption_finish"], min_words=self.min_words, max_words=self.max_words
        )


def _stutters(text: str) -> bool:
    """Whether a sentence stands three times, or one word five times in a row."""
    most = Counter(sentence.casefold() for sentence in sentences(text)).most_common(1)
    return (bool(most) and most[0][1] >= 3) or re.search(r"\b(\w+)(?:\W+\1\b){4}", text, re.IGNORECASE) is not None


def _bare(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _stands_in(part: str, text: str) -> bool:
    """Whether `part` stands somewhere in `text` with an edit distance of at most a quarter of its length."""
    if not part or part in text:
        return bool(part)
    # Sellers' algorithm: a match may begin and end anywhere in the text.
    row = [0] * (len(text) + 1)
    for i, character in enumerate(part, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(text, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (character != other))
    return min(row) <= len(part) // 4
