"""What is wrong with a caption: checks by rule, each with a stable reason; captions that fail are asked for again.

    English    empty, sentinel, refusal, language, repetition, truncated, too_short, too_long, quotes, similarity
    Chinese    empty, sentinel, language, latin, repetition, truncated, length, lost
    raw        empty, file_name, link, sentinel, boilerplate, too_short, repetition

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
from workers.spans import HAN, quotes, without_quotes

VERSION = 2

# Openings that say nothing of the picture; a model trained on them begins every prompt so. An adjective goes with them
# when it praises; one that tells the medium (black-and-white, aerial) keeps the whole opening.
PRAISE = (
    r"(?:(?:beautiful|breathtaking|captivating|charming|colou?rful|detailed|dynamic|elegant|evocative|impressive"
    r"|intriguing|lively|serene|striking|stunning|vibrant|vivid|whimsical|wonderful) )?"
)
MANNER = r"(?:(?:beautifully|clearly|effectively|prominently|simply|vividly) )?"
PICTURE = r"(?:image|picture|photo(?:graph)?|illustration|scene|artwork|painting|snapshot)"
OPENING = re.compile(
    rf"^(?:(?:in )?(?:this|the) {PRAISE}{PICTURE}(?: you(?:'ve)? (?:provided|shared|sent))? {MANNER}"
    r"(?:(?:show(?:case)?s?|depicts?|features?|presents?|displays?|captures?|portrays?|contains?|illustrates?"
    r"|is showing|is of|is (?=an? ))(?: that (?=there |an? |the ))?)"
    rf"|in (?:this|the) {PRAISE}{PICTURE},? (?:(?:we|you|one) (?:can )?(?:see|observe)|there (?:is|are))"
    rf"|in (?:this|the) {PRAISE}{PICTURE},"
    rf"|(?:this|here) is an? {PRAISE}(?:image|picture|photo(?:graph)?) (?:of|showing|depicting|that shows)"
    r"|this is (?=an? )"
    rf"|(?:we|you) (?:can )?see(?: in (?:this|the) {PICTURE})?)\s*",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)"
    r"|i (?:can't|cannot|can not|couldn't|am unable to|won't) (?:\w+ly )?(?:help|assist|describe|see|identify|view"
    r"|provide|determine|tell|process|access|analy[sz]e|answer|comply|fulfill|make out)"
    r"|as an ai\b|as a language model|i apologi[sz]e"
    r"|unfortunately, (?:i\b|(?:the|this|your) (?:image|picture|photo)))"
    r"|(?:^|[.!?]\s+)sorry,"
    r"|(?:image|picture|photo) (?:did not|didn't|could not|couldn't|cannot|can't|failed to) (?:be )?(?:load|open|show)"
    r"|抱歉|对不起|无法(?:描述|识别|查看|提供)|作为(?:一个)?(?:人工智能|语言模型)",
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
# What shops and archives write in place of a caption, and nothing else with it.
BOILERPLATE = re.compile(
    r"^\W*(?:(?:royalty[- ]free )?(?:stock )?(?:photo|image|picture|illustration|vector|thumbnail|logo|icon)s?"
    r"(?: gallery| placeholder| not available| coming soon)?|no (?:image|photo|picture)(?: available)?|untitled|n/?a"
    r"|null|none|undefined|unknown|default|placeholder|click (?:here )?to (?:enlarge|zoom|view)"
    r"|view (?:larger|full size)(?: image)?|share (?:this|on \w+)|advertisement|screenshot"
    r"|图片|照片|图像|配图|插图|暂无图片|无标题|点击查看(?:大图|原图)?)[\W\d_]*$",
    re.IGNORECASE,
)
CAMERA_FILE = re.compile(r"^\W*(?:img|dsc|dscn|dscf|pict?|wp|mvc)[_ -]?\d{3,}\b", re.IGNORECASE)
# Function words of English, and of other languages in Latin letters that English has not.
_ENGLISH = "the of and with is are it its by from that this his her their there while which for as at to a an in on"
_FOREIGN = """
der die das und ein eine einen einem ist mit auf am im vor le la les un une des du et dans sur avec est qui el los las
una con y en por il lo gli di che della nel sono uma os um com em na no ao het een van op zijn och ett med på og af yang
dan sebuah dengan seorang pada của và một trên đang trong những là có với jest się z w oraz ve bir ile
"""
ENGLISH, FOREIGN = frozenset(_ENGLISH.split()), frozenset(_FOREIGN.split())
STOPS = ".!?。！？…\"'”’)）」』"
HOTTER = 0.3  # temperature of the first further try; each later one adds as much, to 1 at most


def without_opening(text: str) -> tuple[str, str]:
    """(`text` without a boilerplate opening, the opening): `This image showcases a gate.` becomes `A gate.`"""
    found = OPENING.match(text)
    if not found or len(text) - found.end() < 3 or not text[found.end() - 1 : found.end()].isspace():
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
    """`en`, `zh`, `other`, or `none` without letters: by the script of at least 60 % of the letters.

    Latin letters are English where more English function words stand than foreign ones; five words with none of
    either must be plain ASCII, eight have one.
    """
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return "none"
    han = sum(map(len, HAN.findall(text))) / len(letters)
    latin = sum(character < "\u0250" for character in letters) / len(letters)
    if latin < 0.6:
        return "zh" if han >= 0.6 else "other"
    spoken = re.findall(r"[^\W\d_]+", without_quotes(text).lower())
    english, foreign = (sum(word in known for word in spoken) for known in (ENGLISH, FOREIGN))
    if (foreign > english and len(spoken) >= 3) or (not english and len(spoken) >= (8 if text.isascii() else 5)):
        return "other"
    return "en"


def words(text: str) -> int:
    """Words, counting each Chinese character as one."""
    return len(re.findall(r"[\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*", text))


def english_reason(text: str, finish: str | None, *, min_words: int, max_words: int) -> str | None:
    """Why an English caption is not to be used, by its own text; None when nothing is wrong."""
    if not text.strip():
        return "empty"
    count = words(text)
    own = _own(text)
    checks = (
        ("sentinel", SENTINEL.search(own) is not None),
        ("refusal", REFUSAL.search(own) is not None),
        ("language", language_of(text) != "en"),
        ("repetition", repetition(text) > 0.3 or _stutters(text)),
        ("truncated", finish == "length" or text.rstrip()[-1] not in STOPS),
        ("too_short", count < min_words),
        ("too_long", count > max_words),
    )
    return next((reason for reason, applies in checks if applies), None)


def chinese_reason(text: str, english: str, missing: Sequence[str], cut: bool = False) -> str | None:
    """Why a Chinese caption is not to be used, `english` being what it says.

    `missing` are the protected spans that the translation lost, `cut` whether the translator met its token limit.
    """
    if not text.strip():
        return "empty"
    ratio = length_ratio(text, english)
    own = _own(text)
    ended = english.rstrip()[-1:]
    checks = (
        ("sentinel", SENTINEL.search(own) is not None or REFUSAL.search(own) is not None),
        ("language", han_share(text) < 0.3),
        ("latin", latin_share(text) > 0.15),
        ("repetition", repetition(text) > 0.3 or _stutters(text)),
        # A source that ends a sentence has a translation that ends one.
        ("truncated", cut or (ended != "" and ended in STOPS and text.rstrip()[-1] not in STOPS)),
        # English to Chinese: 1.0 to 2.2 characters a word in published parallel captions; far outside, text is missing.
        ("length", bool(english.strip()) and not 0.5 <= ratio <= 4.0),
        ("lost", bool(missing)),
    )
    return next((reason for reason, applies in checks if applies), None)


def translated_reason(text: str, missing: Sequence[str], cut: bool) -> str | None:
    """Why the English of a Chinese raw caption is not to be used: `missing` and `cut` as in `chinese_reason`."""
    if not text.strip():
        return "empty"
    own = _own(text)
    checks = (
        ("sentinel", SENTINEL.search(own) is not None),
        ("refusal", REFUSAL.search(own) is not None),
        ("language", language_of(text) not in ("en", "none")),
        ("repetition", repetition(text) > 0.3 or _stutters(text)),
        ("truncated", cut),
        ("lost", bool(missing)),
    )
    return next((reason for reason, applies in checks if applies), None)


def raw_reason(text: str) -> str | None:
    """Why a caption that came with the picture is not to be used."""
    if not text.strip():
        return "empty"
    checks = (
        ("file_name", FILE_NAME.match(text.strip()) is not None or CAMERA_FILE.match(text) is not None),
        ("link", LINK.search(text) is not None),
        ("sentinel", SENTINEL.search(text) is not None),
        ("boilerplate", BOILERPLATE.match(text) is not None),
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
    letters = [character for character in without_quotes(text) if character.isalpha()]
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
        raw_zh, raw_en = values.get("caption_raw_zh"), values.get("caption_raw_en")
        raw_lost, raw_cut = values.get("translate_raw_lost") or [], bool(values.get("translate_raw_cut"))
        return {
            "caption_raw_reason": None if raw is None else raw_reason(str(raw)),
            "caption_raw_zh_reason": (
                None if raw_zh is None
                else raw_reason(str(raw)) or chinese_reason(str(raw_zh), str(raw or ""), raw_lost, raw_cut)
            ),
            "caption_raw_en_reason": (
                None if raw_en is None
                else raw_reason(str(raw)) or translated_reason(str(raw_en), raw_lost, raw_cut)
            ),
            "caption_en_reason": reason,
            "caption_en_words": words(text) if there else None,
            "caption_en_language": language_of(text) if there else None,
            "caption_en_repetition": repetition(text) if there else None,
            "caption_en_opening": (without_opening(text)[1] or None) if there else None,
            "caption_en_quote_precision": precision if values.get("ocr_text") is not None else None,
            "caption_en_quote_recall": recall if there else None,
            "caption_zh_reason": (
                chinese_reason(zh, text, values.get("translate_lost") or [], bool(values.get("translate_cut")))
                if zh_there else None
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

    def __call__(self, samples: Sequence[Sample]) -> Sequence[dict[str, Any] | RowError]: ...
    def again(self, attempt: int) -> Captioner: ...


class Checked:
    """A captioner whose captions are checked: boilerplate openings go, and a caption that fails is asked for again.

    Each further try samples at a higher temperature. A rejected caption stands in `caption_attempts` with its reason;
    when all fail, the first one stays, and the `quality` operator says why it is not to be used. A try that fails
    altogether is recorded as `error: ...`: there is a caption, if a bad one.
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

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any] | RowError]:
        rows = [row if isinstance(row, RowError) else self._cleaned(row) for row in self.captioner(samples)]
        for attempt in range(1, self.attempts + 1):
            failed = [(i, row) for i, row in enumerate(rows) if not isinstance(row, RowError) and self._reason(row)]
            if not failed:
                break
            others = _each(self.captioner.again(attempt), [samples[i] for i, _ in failed])
            for (i, row), other in zip(failed, others, strict=True):
                if isinstance(other, RowError):
                    row["caption_attempts"].append(f"error: {other.code}: {other.message}")
                    continue
                cleaned = self._cleaned(other)
                if reason := self._reason(cleaned):
                    row["caption_attempts"].append(f"{reason}: {cleaned['caption_en']}")
                else:
                    first = f"{self._reason(row)}: {row['caption_en']}"
                    rows[i] = cleaned | {"caption_attempts": [first, *row["caption_attempts"]]}
        return rows

    def _cleaned(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"caption_en": without_opening(str(row["caption_en"] or ""))[0], "caption_attempts": []}

    def _reason(self, row: dict[str, Any]) -> str | None:
        return english_reason(
            str(row["caption_en"]), row["caption_finish"], min_words=self.min_words, max_words=self.max_words
        )


def _own(text: str) -> str:
    """What a caption says itself: a refusal or a control token that a sign shows is no fault of the caption."""
    return without_quotes(text.replace("’", "'") if "‘" not in text else text)


def _each(captioner: Captioner, samples: list[Sample]) -> list[dict[str, Any] | RowError]:
    """Captions or failures of the samples: a captioner that raises for one of them is asked again in halves."""
    try:
        return list(captioner(samples))
    except RowError as failure:
        if len(samples) == 1:
            return [failure]
        middle = len(samples) // 2
        return _each(captioner, samples[:middle]) + _each(captioner, samples[middle:])


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
