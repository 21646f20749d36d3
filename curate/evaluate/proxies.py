"""Five criteria by rule: what a caption's own words and the row's measurements say of it, 1..5.

    scores = score("Two women at a red gate.", "en", values, load("lexicon.v1"))

With s(x) = 1 + 4 min(1, max(0, x)), and every number from the lexicon:

    length         s(min(1, t / full) * min(1, limit / t) * [unfinished])           t: tokens, estimated
    completeness   s(weighted share of what was measured that the caption names)   text, faces, concept, colors, ...
    correlation    s((cosine - low) / (high - low)), or s(claims supported / claims checked)
    hallucination  5 - each * claims that measurements contradict, at least 1
    subjectivity   s(1 - share of opinion words / worst)

None: nothing was measured that could decide. What was found stands beside the scores in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curate.balance.concepts import Taxonomy, judge
from curate.evaluate.lexicon import WORD, Lexicon
from workers import poster
from workers.quality import STOPS, words

VERSION = 1
CRITERIA = ("length", "completeness", "correlation", "hallucination", "subjectivity")
AVERAGED = CRITERIA[1:]  # Kolors' average is over the four that were scored
NEEDS = (
    "width", "height", "faces", "face_area", "ocr_text", "ocr_scores", "colors", "color_shares", "colorfulness",
    "clip_concept", "clip_concept_score",
)  # fmt: skip

HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
SURE_LINE = 0.9  # recognition confidence of a line that a caption should have
LEAST_FACE = 0.01  # of the picture: one that a caption should mention
LEAST_COLOR = 0.2
LEAST_CONCEPT = 0.3
GRAY, COLORED = 8.0, 25.0  # Hasler-Suesstrunk: below the first there is no color, above the second there is
UPRIGHT = 1.04  # a side longer by this is an orientation
SENTENCE = 12  # words from which on a caption should end in a full stop
HUELESS = frozenset({"black", "gray", "white"})


@dataclass(frozen=True)
class Claim:
    """Something that a caption says and a measurement can decide; `so` None: the measurement leaves it open."""

    what: str
    so: bool | None


@dataclass(frozen=True)
class Scores:
    """The five criteria, 1..5 or None, in the order of CRITERIA, and what decided them in words."""

    values: tuple[float | None, ...]
    found: tuple[str, ...]


def score(
    text: str,
    language: str,
    values: Mapping[str, Any],
    lexicon: Lexicon,
    taxonomy: Taxonomy | None = None,
    similarity: float | None = None,
) -> Scores:
    """Score one caption of a row with the measurements `values` (NEEDS; what is missing or None was not measured).

    `similarity` is the cosine of picture and caption; None judges correlation by the claims that were checked, NaN not
    at all.
    """
    checked = claims(text, language, values, lexicon)
    wrong = [claim for claim in checked if claim.so is False]
    decided = [claim for claim in checked if claim.so is not None]
    measured = any(values.get(name) is not None for name in ("faces", "ocr_text", "colors"))
    named, missing = completeness(text, language, values, lexicon, taxonomy)
    opinions, opinion_share = opinion(text, language, lexicon)
    correlation: float | None
    if similarity is not None and math.isnan(similarity):
        correlation = None
    elif similarity is not None:
        low, high = lexicon["correlation.similarity_low"], lexicon["correlation.similarity_high"]
        correlation = scale((similarity - low) / (high - low))
    else:
        correlation = scale(1 - len(wrong) / len(decided)) if decided else None
    scores = (
        length(text, lexicon),
        named,
        correlation,
        max(1.0, 5.0 - lexicon["hallucination.each"] * len(wrong)) if measured else None,
        scale(1 - opinion_share / lexicon["subjectivity.worst"]) if text.strip() else None,
    )
    found = [f"contradicted: {claim.what}" for claim in wrong]
    found += [f"missing: {', '.join(missing)}"] if missing else []
    found += [f"opinion: {', '.join(dict.fromkeys(opinions))}"] if opinions else []
    return Scores(scores, tuple(found))


def scale(share: float) -> float:
    """0..1 to 1..5."""
    return 1 + 4 * min(1.0, max(0.0, share))


def tokens(text: str, lexicon: Lexicon) -> float:
    """Tokens of a text encoder, estimated from words and Chinese characters."""
    han = len(HAN.findall(text))
    return lexicon["length.tokens_per_word"] * (words(text) - han) + lexicon["length.tokens_per_han"] * han


def length(text: str, lexicon: Lexicon) -> float:
    """Long enough to describe, short enough for the encoder to see all of it, and finished."""
    count = tokens(text, lexicon)
    if not count:
        return 1.0
    share = min(1.0, count / lexicon["length.full_tokens"]) * min(1.0, lexicon["length.limit_tokens"] / count)
    if words(text) >= SENTENCE and text.rstrip()[-1:] not in STOPS:
        share *= lexicon["length.unfinished"]
    return scale(share)


def completeness(
    text: str, language: str, values: Mapping[str, Any], lexicon: Lexicon, taxonomy: Taxonomy | None = None
) -> tuple[float | None, list[str]]:
    """The weighted share of what was measured that the caption names, and what it does not name."""
    parts: list[tuple[float, float]] = []  # weight, share that is named
    missing: list[str] = []

    def item(kind: str, share: float, what: str) -> None:
        parts.append((lexicon[f"completeness.{kind}"], share))
        if share < 0.5:
            missing.append(what)

    lines = _sure_lines(values)
    if lines:
        whole = poster.plain(text)
        has = [poster.is_in(line, whole) for line in lines]
        item(
            "text", sum(has) / len(has), "text " + " / ".join(x for x, h in zip(lines, has, strict=True) if not h)[:60]
        )
    if (values.get("faces") or 0) >= 1 and (values.get("face_area") or 0) >= LEAST_FACE:
        item("faces", float(bool(lexicon.people[language].find(text))), "the person")
    concept = values.get("clip_concept")
    if taxonomy and concept in taxonomy.concepts and (values.get("clip_concept_score") or 0) >= LEAST_CONCEPT:
        verdict = judge(_only(taxonomy, concept), [text], [])
        item("concept", float(verdict.concept >= 0), f"concept {concept}")
    shares = zip(values.get("colors") or (), values.get("color_shares") or (), strict=False)
    large = list(dict.fromkeys(family(name) for name, share in shares if share >= LEAST_COLOR))
    large = [name for name in large if name in lexicon.near]
    if large:
        said = _families(text, language, lexicon)
        unsaid = [name for name in large if not lexicon.near[name] & said]
        item("colors", 1 - len(unsaid) / len(large), f"color {', '.join(unsaid)}")
    if values.get("colorfulness") is not None and values["colorfulness"] < GRAY:
        gray = lexicon.looks["monochrome"][language].search(text) is not None
        item("monochrome", float(gray), "that there is no color")
    if not text.strip():
        return (1.0 if parts else None), missing
    distinct = detail(text, language, lexicon)
    full = lexicon["completeness.detail_characters_zh" if language == "zh" else "completeness.detail_words_en"]
    parts.append((lexicon["completeness.detail"], min(1.0, distinct / full)))
    total = sum(weight for weight, _ in parts)
    return (scale(sum(weight * share for weight, share in parts) / total) if total else None), missing


def detail(text: str, language: str, lexicon: Lexicon) -> int:
    """Distinct words with content; of Chinese, distinct characters."""
    if language == "zh":
        return len(set(HAN.findall(text)) - lexicon.stop["zh"])
    return len({word.lower() for word in WORD.findall(text)} - lexicon.stop["en"])


def opinion(text: str, language: str, lexicon: Lexicon) -> tuple[list[str], float]:
    """Opinions and guesses outside quotation marks, and their share of the words (Chinese: characters)."""
    plain = poster.QUOTED.sub(" ", text)
    found = lexicon.opinion[language].find(plain)
    total = len(HAN.findall(plain)) if language == "zh" else len(WORD.findall(plain))
    covered = sum(len(term) if language == "zh" else len(term.split()) for term in found)
    return found, covered / total if total else 0.0


def claims(text: str, language: str, values: Mapping[str, Any], lexicon: Lexicon) -> list[Claim]:
    """What the caption says that OCR, face detector, colors or size can decide."""
    outside = poster.QUOTED.sub(" ", text)
    return [
        *_quotations(text, values),
        *_people(outside, language, values, lexicon),
        *_looks(outside, language, values, lexicon),
    ]


def family(color: str) -> str:
    """The family of one of photometry's color names: `dark blue` is blue."""
    return color.split()[-1]


def _quotations(text: str, values: Mapping[str, Any]) -> list[Claim]:
    """Quoted text that OCR must have read; nothing without OCR."""
    read = values.get("ocr_text")
    if read is None:
        return []
    whole = poster.plain(read)
    pieces = [piece.strip(" …") for quoted in poster.quotations(text) for piece in quoted.split(" / ")]
    return [
        Claim(f"text {piece[:40]!r} was not read", poster.is_in(piece, whole))
        for piece in pieces
        if poster.plain(piece)
    ]


def _people(text: str, language: str, values: Mapping[str, Any], lexicon: Lexicon) -> list[Claim]:
    """Numbers of faces and people. People may turn away, so that more people than faces decide nothing."""
    faces = values.get("faces")
    if faces is None:
        return []
    found: list[Claim] = []
    if denied := lexicon.none[language].search(text):
        found.append(Claim(f"{denied.group()!r}, but {faces} found", faces == 0))
        text = lexicon.none[language].sub(" ", text)
    people, explicit = 0, False
    for match in lexicon.counted[language].finditer(text):
        word = match["n"].lower()
        number = int(word) if word.isdigit() else lexicon.values[language].get(word, 1)
        if not lexicon.faces[language].fullmatch(match["who"]):
            people, explicit = people + number, explicit or number > 1  # "a man" leaves room for others
        elif word not in ("a", "an"):  # a face may be a clock's
            found.append(Claim(f"{match.group()!r}, but {faces} found", number == faces))
    if people and not lexicon.many[language].find(text):
        so = True if people == faces else False if explicit and people < faces else None
        found.append(Claim(f"{people} people said, but {faces} faces found", so))
    return found


def _looks(text: str, language: str, values: Mapping[str, Any], lexicon: Lexicon) -> list[Claim]:
    found: list[Claim] = []
    measured = {family(name) for name in values.get("colors") or ()}
    if measured:
        for match in lexicon.looks["ground"][language].finditer(text):
            for name in _families(match.group(), language, lexicon):
                found.append(Claim(f"{match.group()!r}, but colors are {', '.join(sorted(measured))}",
                                   bool(lexicon.near[name] & measured)))  # fmt: skip
    color = values.get("colorfulness")
    gray = lexicon.looks["monochrome"][language].search(text)
    if color is not None and gray:
        found.append(Claim(f"{gray.group()!r}, but there is color", None if GRAY <= color <= COLORED else color < GRAY))
    elif color is not None and color < GRAY and measured and measured <= HUELESS:
        hues = sorted(_families(text, language, lexicon) - HUELESS)
        found += [Claim(f"{hue}, but there is no color", False) for hue in hues]
    width, height = values.get("width"), values.get("height")
    if width and height:
        shape = "vertical" if height > UPRIGHT * width else "horizontal" if width > UPRIGHT * height else "square"
        for look in ("vertical", "horizontal", "square"):
            if said := lexicon.looks[look][language].search(text):
                found.append(Claim(f"{said.group()!r}, but the picture is {width} x {height}", look == shape))
    return found


def _families(text: str, language: str, lexicon: Lexicon) -> set[str]:
    """Families of the color words of a text."""
    return {lexicon.family[match.group().lower()] for match in lexicon.colors[language].finditer(text)}


def _sure_lines(values: Mapping[str, Any]) -> list[str]:
    lines = (values.get("ocr_text") or "").splitlines()
    certain = values.get("ocr_scores") or [1.0] * len(lines)
    return [line for line, sure in zip(lines, certain, strict=False) if sure >= SURE_LINE and poster.plain(line)]


_narrowed: dict[tuple[str, str], Taxonomy] = {}


def _only(taxonomy: Taxonomy, concept: str) -> Taxonomy:
    """The taxonomy with the words of one concept alone."""
    key = taxonomy.name, concept
    if key not in _narrowed:
        at = taxonomy.concepts.index(concept)
        english = {term: found for term, found in taxonomy.english.items() if found[0] == at}
        chinese = {term: found for term, found in taxonomy.chinese_terms.items() if found[0] == at}
        first = {initial: tuple(t for t in terms if t in chinese) for initial, terms in taxonomy.chinese.items()}
        _narrowed[key] = Taxonomy(
            taxonomy.name, taxonomy.concepts, english, taxonomy.openers, chinese, first, taxonomy.first, ()
        )
    return _narrowed[key]
