"""What a translation must not lose: quoted text, numbers, names of a glossary, and Chinese in the source."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

GLOSSARIES = Path(__file__).parent / "glossaries"
QUOTED = re.compile(r"“([^“”]+)”|\"([^\"]+)\"|「([^「」]+)」|『([^『』]+)』")
NUMBER = re.compile(r"(?<![A-Za-z\d])\d+(?:[.,:/]\d+)*")
HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+")
# A small number may become a word: two dogs are 两只狗.
NUMERALS = ("〇零", "一", "二两双", "三", "四", "五", "六", "七", "八", "九", "十")


def glossary(name: str) -> dict[str, str]:
    """English term -> Chinese term of the shipped glossary `name` (`glossary.v1`) or of a .toml file; {} for no name.

    Raises ValueError that names the file and what is wrong.
    """
    if not name:
        return {}
    path = Path(name) if name.endswith(".toml") else GLOSSARIES / f"{name}.toml"
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(file.stem for file in GLOSSARIES.glob("*.toml")))
        raise ValueError(
            f"glossary {name!r}: no such file; shipped are {shipped}, or give the path of a .toml"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as why:
        raise ValueError(f"{path}: no valid TOML: {why}") from None
    terms = raw.get("terms")
    if set(raw) != {"terms"} or not isinstance(terms, dict):
        raise ValueError(f'{path}: a glossary is one section [terms] of lines "english" = "中文"')
    for english, chinese in terms.items():
        if not isinstance(chinese, str) or not english.strip() or not chinese.strip():
            raise ValueError(f"{path}: {english!r} = {chinese!r} must be two texts")
    return dict(terms)


def terms_in(text: str, terms: Mapping[str, str]) -> dict[str, str]:
    """The entries of a glossary whose English stands in `text`, as a word and in any case; the longest win."""
    found: dict[str, str] = {}
    rest = text
    for english in sorted(terms, key=len, reverse=True):
        pattern = _pattern(english)
        if pattern.search(rest):
            found[english] = terms[english]
            rest = pattern.sub(" ", rest)
    return found


def put_in(text: str, terms: Mapping[str, str]) -> str:
    """`text` with the English terms replaced by their Chinese: a second try for a translator that lost them."""
    for english in sorted(terms, key=len, reverse=True):
        text = _pattern(english).sub(terms[english], text)
    return text


def quotes(text: str) -> list[str]:
    """What stands between quotation marks, in order."""
    return [next(group for group in found if group) for found in QUOTED.findall(text)]


def with_quotes(text: str, wanted: Sequence[str]) -> str:
    """`text` with its quoted parts replaced by `wanted`, if there are as many: text in a picture is not translated."""
    if len(quotes(text)) != len(wanted):
        return text
    left = iter(wanted)
    return QUOTED.sub(lambda found: f"{found[0][0]}{next(left)}{found[0][-1]}", text)


def lost(source: str, target: str, terms: Mapping[str, str]) -> list[str]:
    """The protected spans of `source` that `target` lacks, as they stand in `source`."""
    plain = _plain(target)
    missing = [text for text in quotes(source) if _plain(text) not in plain]
    outside = QUOTED.sub(" ", source)
    digits = NUMBER.findall(_digits(target))
    for number in NUMBER.findall(outside):
        value = _digits(number)
        words = NUMERALS[int(value)] if value.isdigit() and int(value) <= 10 else ""
        if value in digits:
            digits.remove(value)
        elif not any(word in target for word in words):
            missing.append(number)
    missing += [english for english, chinese in terms_in(outside, terms).items() if _plain(chinese) not in plain]
    missing += [han for han in HAN.findall(outside) if _plain(han) not in plain]
    return list(dict.fromkeys(missing))


def _pattern(english: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(english)}(?:e?s)?(?!\w)", re.IGNORECASE)


def _digits(text: str) -> str:
    """Full-width digits made plain, thousands' commas dropped."""
    text = text.translate({0xFF10 + i: str(i) for i in range(10)})
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", _digits(text)).casefold()
