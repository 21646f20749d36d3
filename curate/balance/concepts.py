"""Which concept of a taxonomy a row belongs to, by the words of its captions and by what was measured.

A taxonomy is a TOML file (taxonomy.v1.toml is the shipped one and explains itself). Every distinct term that a row's
captions hold speaks for its concept with its weight, once; the concept with the largest sum wins, the one that is
named first among equals. What decided stays with the row (`concept_terms`), so that a wrong rule can be found.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

from curate.errors import UsageError, nearest

OTHER = "other"
SHIPPED = ("taxonomy.v1",)
KEYS = {"en": 1.0, "zh": 1.0, "strong_en": 3.0, "strong_zh": 3.0}
FIRST = 0.5  # for the concept that a caption names first: "a man with a dog"
WORDS = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*")
MOST_WORDS = 4


@dataclass(frozen=True)
class Taxonomy:
    """Concepts in their order, what words speak for which (concept, weight), and SQL conditions that do."""

    name: str
    concepts: tuple[str, ...]
    english: dict[str, tuple[int, float]]
    openers: frozenset[str]
    """First words of English terms of several words."""
    chinese_terms: dict[str, tuple[int, float]]
    chinese: dict[str, tuple[str, ...]]
    """Terms by their first character, the longest first."""
    first: re.Pattern[str]
    """Any of these first characters."""
    facts: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True)
class Verdict:
    """What the captions of one row say: number of the concept (-1: none), its share of the evidence, and its terms."""

    concept: int
    score: float
    terms: tuple[str, ...]


def load(name: str) -> Taxonomy:
    """The shipped taxonomy of that name, or the one in a .toml file; raises UsageError that says what is odd."""
    try:
        if name in SHIPPED:
            text = resource_files("curate.balance").joinpath(f"{name}.toml").read_text("utf-8")
        else:
            text = Path(name).read_text("utf-8")
        tables = tomllib.loads(text)
    except OSError as why:
        shipped = ", ".join(SHIPPED)
        raise UsageError(f"taxonomy {name}: {why.strerror or why}; shipped: {shipped}, or a .toml file") from None
    except ValueError as why:  # not UTF-8, not TOML
        raise UsageError(f"taxonomy {name}: {why}") from None
    concepts = tables.get("concepts")
    if not isinstance(concepts, dict) or not concepts or set(tables) != {"concepts"}:
        raise UsageError(f"taxonomy {name}: wants tables [concepts.NAME] and nothing else")
    english: dict[str, tuple[int, float]] = {}
    chinese: dict[str, tuple[int, float]] = {}
    facts: list[tuple[str, int, float]] = []
    for number, (concept, rules) in enumerate(concepts.items()):
        at = f"taxonomy {name}: concepts.{concept}"
        if concept == OTHER or not isinstance(rules, dict):
            raise UsageError(f"{at}: must be a table, and {OTHER!r} is what rows get that fit no concept")
        for key, value in rules.items():
            if key == "facts":
                facts += [(sql, number, float(weight)) for sql, weight in _weights(value, at)]
            elif key not in KEYS:
                raise UsageError(f"{at}: unknown key {key!r}{nearest(key, [*KEYS, 'facts'])}")
            elif not isinstance(value, list) or not all(isinstance(term, str) and term.strip() for term in value):
                raise UsageError(f"{at}.{key}: must be a list of words")
            else:
                terms = chinese if key.endswith("zh") else english
                for term in value:
                    _add(terms, folded(term), number, KEYS[key], f"{at}.{key}", tuple(concepts))
    openers = frozenset(term.split()[0] for term in english if " " in term)
    by_first: dict[str, list[str]] = {}
    for term in sorted(chinese, key=len, reverse=True):
        by_first.setdefault(term[0], []).append(term)
    first = re.compile(f"[{''.join(map(re.escape, by_first))}]" if by_first else r"(?!)")
    longest_first = {character: tuple(terms) for character, terms in by_first.items()}
    return Taxonomy(name, tuple(concepts), english, openers, chinese, longest_first, first, tuple(facts))


def _weights(value: Any, at: str) -> Sequence[tuple[str, float]]:
    if not isinstance(value, dict) or not all(isinstance(weight, (int, float)) for weight in value.values()):
        raise UsageError(f"{at}.facts: must be a table of SQL = weight")
    return list(value.items())


def _add(
    terms: dict[str, tuple[int, float]], term: str, number: int, weight: float, at: str, names: tuple[str, ...]
) -> None:
    if term in terms and terms[term][0] != number:
        raise UsageError(f"{at}: {term!r} is a term of {names[terms[term][0]]} too")
    terms[term] = number, max(weight, terms.get(term, (number, 0.0))[1])


def folded(text: str) -> str:
    """Text as terms are written: compatibility forms, small letters, single spaces."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def judge(taxonomy: Taxonomy, captions: Sequence[str | None], facts: Sequence[bool]) -> Verdict:
    """The concept of one row from its captions and from which of `taxonomy.facts` hold."""
    found: dict[str, tuple[int, float]] = {}
    sums = [0.0] * len(taxonomy.concepts)
    named: list[int] = []
    for caption in captions:
        if caption:
            before = len(found)
            text = folded(caption)
            _english(taxonomy, text, found)
            _chinese(taxonomy, text, found)
            named += [concept for concept, _ in list(found.values())[before:]]
    for concept, weight in found.values():
        sums[concept] += weight
    if named:
        sums[named[0]] += FIRST
    for (sql, concept, weight), holds in zip(taxonomy.facts, facts, strict=True):
        if holds:
            sums[concept] += weight
            named.append(concept)
            found[sql] = concept, weight
    total = sum(sums)
    if not total:
        return Verdict(-1, 0.0, ())
    order = {concept: place for place, concept in reversed(list(enumerate(named)))}
    best = max(order, key=lambda concept: (sums[concept], -order[concept]))
    return Verdict(best, sums[best] / total, tuple(term for term, (concept, _) in found.items() if concept == best))


def _english(taxonomy: Taxonomy, text: str, found: dict[str, tuple[int, float]]) -> None:
    """Note the English terms of a text; the longest wins where they overlap."""
    terms, openers = taxonomy.english, taxonomy.openers
    words = WORDS.findall(text)
    skip = 0
    for at, word in enumerate(words):
        if skip:
            skip -= 1
            continue
        if word in openers:
            for length in range(min(MOST_WORDS, len(words) - at), 1, -1):
                head = " ".join(words[at : at + length - 1])
                for last in _singulars(words[at + length - 1]):
                    if (phrase := f"{head} {last}") in terms:
                        found.setdefault(phrase, terms[phrase])
                        skip = length - 1
                        break
                if skip:
                    break
        if not skip:
            for form in _singulars(word):
                if form in terms:
                    found.setdefault(form, terms[form])
                    break


@lru_cache(1 << 16)
def _singulars(word: str) -> tuple[str, ...]:
    """The word, and what it is the plural of if it is one."""
    if not word.endswith("s") or len(word) < 4:
        return (word,)
    if word.endswith("ies"):
        return word, word[:-3] + "y", word[:-1]
    return (word, word[:-1], word[:-2]) if word.endswith("es") else (word, word[:-1])


def _chinese(taxonomy: Taxonomy, text: str, found: dict[str, tuple[int, float]]) -> None:
    """Note the Chinese terms of a text: from left to right the longest at each place."""
    at = 0
    while here := taxonomy.first.search(text, at):
        at = here.start() + 1
        for term in taxonomy.chinese[here.group()]:
            if text.startswith(term, at - 1):
                found.setdefault(term, taxonomy.chinese_terms[term])
                at += len(term) - 1
                break
