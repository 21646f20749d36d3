"""What the tiers mean: a versioned data file, in English and Chinese, and its strict loader.

    rubric = load("kolors")            # or "plain", or the path of a TOML file of one's own
    rubric.tiers[4].name["zh"]

A campaign keeps a copy of its rubric, and every event names the version under which it was made.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

from curate.errors import UsageError, nearest

LANGUAGES = ("en", "zh")
CRITERIA = ("length", "completeness", "correlation", "hallucination", "subjectivity")
BUILT_IN = ("kolors", "plain", *(f"caption-{criterion}" for criterion in CRITERIA))
TIERS = (1, 2, 3, 4, 5)
# Letters that the rating page uses itself (curate/web/static/rate/keys.js): a flag cannot have them.
TAKEN = frozenset("uszcgvklpnhf")

Words = dict[str, str]


@dataclass(frozen=True)
class Tier:
    """One of the five tiers: what it is called, in a sentence, and what to look for."""

    tier: int
    name: Words
    about: Words
    criteria: dict[str, list[str]]


@dataclass(frozen=True)
class Flag:
    """A defect that a rater may mark beside the tier, by one letter."""

    flag: str
    key: str
    name: Words


@dataclass(frozen=True)
class Rubric:
    """Five tiers, optional flags, and the lowest tier that is kept."""

    name: str
    version: int
    title: Words
    keep_tier: int
    tiers: tuple[Tier, ...]
    flags: tuple[Flag, ...]
    criterion: str = ""
    """What of a caption is rated, one of CRITERIA; empty: the picture is."""
    unsafe_tier: int | None = None
    """The tier of pictures that not everybody wants to see unasked; None: the rubric has none."""

    def json(self) -> str:
        """The rubric as a campaign keeps it."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


def load(name: str) -> Rubric:
    """The built-in rubric `name`, or the one in the TOML file at that path; raises UsageError that says what is
    wrong.
    """
    if name in BUILT_IN:
        text = resource_files("curate.rate").joinpath(f"rubrics/{name}.toml").read_text("utf-8")
        return parse(text, name)
    path = Path(name)
    if path.suffix != ".toml":
        raise UsageError(f"rubric {name!r} is not known{nearest(name, BUILT_IN)}; or give the path of a .toml file")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as why:
        raise UsageError(f"rubric {path}: {getattr(why, 'strerror', None) or why}") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Rubric:
    """The rubric in a TOML text; `where` names it in errors."""
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise UsageError(f"rubric {where}: {why}") from None
    body = {{"tier": "tiers", "flag": "flags"}.get(key, key): value for key, value in body.items()}
    return from_body(body, where)


def from_json(text: str) -> Rubric:
    """The rubric that a campaign keeps."""
    return from_body(json.loads(text), "of the campaign")


def from_body(body: dict[str, Any], where: str) -> Rubric:
    """The rubric in a parsed file; every text in both languages, tiers 1 to 5, keys that are free."""

    def words(value: Any, what: str) -> Words:
        if not isinstance(value, dict) or any(not isinstance(value.get(code), str) for code in LANGUAGES):
            raise UsageError(f"rubric {where}: {what} needs a text in each of: {', '.join(LANGUAGES)}")
        return {code: value[code] for code in LANGUAGES}

    known = {"name", "version", "title", "keep_tier", "unsafe_tier", "tiers", "flags", "criterion"}
    unknown = set(body) - known
    if unknown:
        word = sorted(unknown)[0]
        raise UsageError(f"rubric {where}: unknown key {word!r}{nearest(word, known)}")
    tiers = []
    for entry in sorted(body.get("tiers", []), key=lambda t: t.get("tier", 0)):
        number = entry.get("tier")
        criteria = entry.get("criteria", {})
        tiers.append(
            Tier(
                number,
                words(entry.get("name"), f"name of tier {number}"),
                words(entry.get("about"), f"about of tier {number}"),
                {code: [str(line) for line in criteria.get(code, [])] for code in LANGUAGES},
            )
        )
    if [t.tier for t in tiers] != list(TIERS):
        raise UsageError(f"rubric {where}: has tiers {[t.tier for t in tiers]}; must have 1, 2, 3, 4, 5")
    flags: list[Flag] = []
    for entry in body.get("flags", []):
        flag, key = str(entry.get("flag", "")), str(entry.get("key", ""))
        if not (flag.isascii() and flag.replace("_", "").isalnum() and len(flag) <= 32):
            raise UsageError(f"rubric {where}: flag {flag!r} must be a word of letters, digits and _")
        if len(key) != 1 or not ("a" <= key <= "z") or key in TAKEN or key in {f.key for f in flags}:
            free = "".join(sorted(set("abcdefghijklmnopqrstuvwxyz") - TAKEN - {f.key for f in flags}))
            raise UsageError(f"rubric {where}: key {key!r} of flag {flag!r} is taken or no letter; free: {free}")
        flags.append(Flag(flag, key, words(entry.get("name"), f"name of flag {flag}")))
    if body.get("keep_tier") not in TIERS or not isinstance(body.get("version"), int):
        raise UsageError(f"rubric {where}: needs version (a number) and keep_tier (1 to 5)")
    criterion = body.get("criterion", "")
    if criterion and criterion not in CRITERIA:
        raise UsageError(f"rubric {where}: criterion {criterion!r}{nearest(str(criterion), CRITERIA)}")
    if body.get("unsafe_tier") not in (None, *TIERS):
        raise UsageError(f"rubric {where}: unsafe_tier = {body['unsafe_tier']!r}: must be 1 to 5, or left out")
    return Rubric(
        str(body.get("name", "")), body["version"], words(body.get("title"), "title"), body["keep_tier"],
        tuple(tiers), tuple(flags), criterion, body.get("unsafe_tier"),
    )  # fmt: skip
