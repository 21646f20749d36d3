"""The words and numbers behind the proxies: a versioned data file (lexicon.v1.toml) and its strict loader."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

from curate.errors import UsageError, nearest
from curate.store.parts import fingerprint

SHIPPED = ("lexicon.v1",)
LANGUAGES = ("en", "zh")
NUMBERS = {
    "length": ("full_tokens", "limit_tokens", "tokens_per_word", "tokens_per_han", "unfinished"),
    "completeness": (
        "text", "faces", "concept", "colors", "monochrome", "detail", "detail_words_en", "detail_characters_zh",
    ),
    "correlation": ("similarity_low", "similarity_high"),
    "hallucination": ("each",),
    "subjectivity": ("worst",),
}  # fmt: skip
LOOKS = ("ground", "monochrome", "vertical", "horizontal", "square")
COUNTS = {"en", "zh", "many_en", "many_zh", "faces_en", "faces_zh", "none_en", "none_zh", "numbers_en", "numbers_zh"}

Pattern = re.Pattern[str]
WORD = re.compile(r"[^\W_\u3400-\u9fff]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Terms:
    """Words and phrases to be found in a text: a set for single English words, a pattern for all others."""

    single: frozenset[str]
    others: Pattern | None

    def find(self, text: str) -> list[str]:
        """Every term that stands in `text`, in lower case; a word inside a phrase that was found does not count."""
        found = []
        if self.others:
            found = [match.group().lower() for match in self.others.finditer(text)]
            text = self.others.sub(" ", text) if found else text
        return found + [word for word in map(str.lower, WORD.findall(text)) if word in self.single]


@dataclass(frozen=True)
class Lexicon:
    """Patterns by language (`en`, `zh`), and the numbers of the formulas by `section.key`."""

    name: str
    mark: str
    """Hash of the file's content."""
    numbers: dict[str, float]
    opinion: dict[str, Terms]
    people: dict[str, Terms]
    counted: dict[str, Pattern]
    """Number and noun, as groups `n` and `who`."""
    many: dict[str, Terms]
    none: dict[str, Pattern]
    values: dict[str, dict[str, int]]
    """Number words."""
    faces: dict[str, Pattern]
    colors: dict[str, Pattern]
    """All color words, the longest first, since 蓝绿色 holds 绿色."""
    family: dict[str, str]
    """Color word -> family."""
    near: dict[str, frozenset[str]]
    """Families that pass for a family, itself included."""
    looks: dict[str, dict[str, Pattern]]
    stop: dict[str, frozenset[str]]

    def __getitem__(self, key: str) -> float:
        return self.numbers[key]


def load(name: str) -> Lexicon:
    """The shipped lexicon of that name, or the one in a .toml file; raises UsageError that says what is odd."""
    try:
        if name in SHIPPED:
            text = resource_files("curate.evaluate").joinpath(f"{name}.toml").read_text("utf-8")
        else:
            text = Path(name).read_text("utf-8")
        raw = tomllib.loads(text)
    except OSError as why:
        shipped = ", ".join(SHIPPED)
        raise UsageError(f"lexicon {name}: {why.strerror or why}; shipped: {shipped}, or a .toml file") from None
    except ValueError as why:  # not UTF-8, not TOML
        raise UsageError(f"lexicon {name}: {why}") from None
    return _checked(Path(name).stem if name not in SHIPPED else name, raw)


def _checked(name: str, raw: dict[str, Any]) -> Lexicon:
    at = f"lexicon {name}:"
    looks = {f"{look}_{code}" for look in LOOKS for code in LANGUAGES}
    plain = {
        "opinion": set(LANGUAGES),
        "people": set(LANGUAGES),
        "stop": set(LANGUAGES),
        "counts": COUNTS,
        "look": looks,
    }
    wanted: dict[str, set[str]] = {**{section: set(keys) for section, keys in NUMBERS.items()}, **plain}
    for section in {*raw} - {*wanted, "colors"}:
        raise UsageError(f"{at} unknown section [{section}]{nearest(section, [*wanted, 'colors'])}")
    for section, keys in wanted.items():
        found = raw.get(section)
        if not isinstance(found, dict) or set(found) != keys:
            odd = sorted(set(found or ()) ^ keys)
            raise UsageError(f"{at} [{section}] must have exactly {', '.join(sorted(keys))}; see to {', '.join(odd)}")
    numbers = {f"{s}.{key}": raw[s][key] for s, keys in NUMBERS.items() for key in keys}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise UsageError(f"{at} {key} = {value!r} must be a number, at least 0")
    for section, keys in plain.items():
        for key in keys:
            _terms(raw[section][key], f"{at} {section}.{key}", key.startswith("numbers"))
    colors = raw.get("colors")
    if not isinstance(colors, dict) or not colors:
        raise UsageError(f"{at} [colors] needs lines FAMILY = {{ en = [...], zh = [...], near = [...] }}")
    for family, value in colors.items():
        if not isinstance(value, dict) or set(value) != {"en", "zh", "near"} or set(value["near"]) - set(colors):
            raise UsageError(f"{at} colors.{family} needs en, zh and near, and `near` names other families")
        for code in LANGUAGES:
            _terms(value[code], f"{at} colors.{family}.{code}", False)
    counts, color = (
        raw["counts"],
        {code: _any([w for c in colors.values() for w in c[code]], code) for code in LANGUAGES},
    )
    look = raw["look"]
    try:
        return Lexicon(
            name, fingerprint(raw), {key: float(value) for key, value in numbers.items()},
            {code: _found(raw["opinion"][code], code) for code in LANGUAGES},
            {code: _found(raw["people"][code], code) for code in LANGUAGES},
            {code: _counted(counts, code) for code in LANGUAGES},
            {code: _found(counts[f"many_{code}"], code) for code in LANGUAGES},
            {code: _words(counts[f"none_{code}"], code) for code in LANGUAGES},
            {code: dict(counts[f"numbers_{code}"]) for code in LANGUAGES},
            {code: _words(counts[f"faces_{code}"], code) for code in LANGUAGES},
            {code: _words([word for c in colors.values() for word in c[code]], code) for code in LANGUAGES},
            {word: family for family, value in colors.items() for code in LANGUAGES for word in value[code]},
            {family: frozenset({family, *value["near"]}) for family, value in colors.items()},
            {name: {code: _look(look[f"{name}_{code}"], color[code], code) for code in LANGUAGES} for name in LOOKS},
            {code: frozenset(raw["stop"][code]) for code in LANGUAGES},
        )  # fmt: skip
    except re.error as why:
        raise UsageError(f"{at} [look]: no regular expression: {why}") from None


def _terms(value: Any, at: str, numbered: bool) -> None:
    if numbered:
        if not isinstance(value, dict) or not all(isinstance(number, int) for number in value.values()):
            raise UsageError(f"{at} must be a table of word = number")
    elif not isinstance(value, list) or not value or not all(isinstance(term, str) and term.strip() for term in value):
        raise UsageError(f"{at} must be a list of words")


def _any(terms: Iterable[str], code: str) -> str:
    """An alternation of terms, the longest first."""
    return "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))


def _words(terms: Iterable[str], code: str) -> Pattern:
    body = _any(terms, code)
    return re.compile(body if code == "zh" else rf"(?<![\w-])(?:{body})(?![\w-])", re.IGNORECASE)


def _found(terms: Iterable[str], code: str) -> Terms:
    several = [term for term in terms if code == "zh" or " " in term]
    return Terms(frozenset(terms) - frozenset(several), _words(several, code) if several else None)


def _counted(counts: Mapping[str, Any], code: str) -> Pattern:
    """`two young women`, `三名女子`: a number word or digits, up to two words, and who is counted."""
    who = _any([*counts[code], *counts[f"faces_{code}"]], code)
    number = _any(counts[f"numbers_{code}"], code)
    if code == "zh":
        return re.compile(
            rf"(?<![十百千第\d])(?P<n>{number}|\d{{1,2}})\s*[个名位张](?:[\u3400-\u9fff]{{0,3}}?的?)(?P<who>{who})"
        )
    return re.compile(
        rf"(?<!\w)(?P<n>{number}|a|an|\d{{1,2}})\s+(?:[a-z-]+\s+){{0,2}}?(?P<who>{who})(?![\w-])", re.IGNORECASE
    )


def _look(patterns: Iterable[str], color: str, code: str) -> Pattern:
    body = "|".join(f"(?:{pattern.replace('{color}', color)})" for pattern in patterns)
    return re.compile(body if code == "zh" else rf"(?<!\w)(?:{body})", re.IGNORECASE)
