"""What a translation must not lose: quoted text, numbers, names of a glossary, and Chinese in the source."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

GLOSSARIES = Path(__file__).parent / "glossaries"
# Single marks are quotation marks when they stand where a word cannot go on: not in dog's, dogs' and '70s.
QUOTED = re.compile(
    r"“([^“”]+)”|\"([^\"]+)\"|「([^「」]+)」|『([^『』]+)』"
    r"|‘([^‘’]+(?:’\w[^‘’]*)*)’(?!\w)"
    r"|(?<![\w'])'(?![\s']|\d0s)((?:[^'\n]|(?<=\w)'(?=\w))+)(?<!\s)'(?![\w'])"
)
HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+")
MARK = "Q{}Z"  # stands for a quotation while a model translates: they copy such words


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
    return [_inside(found) for found in QUOTED.finditer(text)]


def without_quotes(text: str) -> str:
    """`text` with a space in the place of each quotation."""
    return QUOTED.sub(" ", text)


def with_quotes(text: str, wanted: Sequence[str], simplify: Callable[[str], str] = str) -> str:
    """`text` with its quotations as they stood in the source, where it is certain which is which.

    One that says what is `wanted` stays in its place. When one is wanted and one place is left, it goes there. With
    more of either nothing is put anywhere: Chinese turns clauses round, and a quotation in the wrong place is a false
    caption that no check can see. What is then missing is lost, and `lost` says so.
    """
    left = list(wanted)
    places = list(QUOTED.finditer(text))
    chosen: dict[int, str] = {}
    for place, found in enumerate(places):
        said = _plain(_inside(found))
        for want in left:
            if said in (_plain(want), _plain(simplify(want))):
                chosen[place] = want
                left.remove(want)
                break
    open_places = [place for place in range(len(places)) if place not in chosen]
    if len(left) == len(open_places) == 1:
        chosen[open_places[0]] = left[0]
    for place in sorted(chosen, reverse=True):
        found = places[place]
        text = f"{text[: found.start() + 1]}{chosen[place]}{text[found.end() - 1 :]}"
    return text


def marked(text: str) -> str:
    """`text` with a mark in the place of each quotation."""
    count = 0

    def mark(found: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"{found[0][0]}{MARK.format(count)}{found[0][-1]}"

    return QUOTED.sub(mark, text)


def unmarked(text: str, wanted: Sequence[str]) -> str:
    """The marks of `marked` turned into `wanted`; a quotation whose mark did not come back just once is left out."""
    for i, want in enumerate(wanted, start=1):
        mark = re.compile(MARK.format(i), re.IGNORECASE)
        if len(mark.findall(text)) == 1:
            text = mark.sub(lambda _, want=want: want, text)  # type: ignore[misc]
    return re.sub(r"[“\"「『‘']?" + MARK.format(r"\d+") + r"[”\"」』’']?", "", text, flags=re.IGNORECASE)


def lost(source: str, target: str, terms: Mapping[str, str], simplify: Callable[[str], str] = str) -> list[str]:
    """The protected spans of `source` that `target` lacks, as they stand in `source`; `simplify` is OpenCC's t2s."""
    plain = _plain(target)
    outside = without_quotes(source)
    missing = [*lost_quotes(source, target), *lost_numbers(outside, target)]
    missing += [english for english, chinese in terms_in(outside, terms).items() if _plain(chinese) not in plain]
    missing += [han for han in HAN.findall(outside) if _plain(han) not in plain and _plain(simplify(han)) not in plain]
    return list(dict.fromkeys(missing))


def lost_quotes(source: str, target: str) -> list[str]:
    """Quotations of `source` that stand nowhere in `target`; a short one in Latin letters must be a word there."""
    plain = _plain(target)
    missing = []
    for text in quotes(source):
        bare = _plain(text)
        inside = bare in plain
        if inside and bare.isascii() and len(bare) <= 3:
            inside = re.search(rf"(?<![a-z0-9]){re.escape(bare)}(?![a-z0-9])", _digits(target).casefold()) is not None
        if not inside:
            missing.append(text)
    return missing


# Numbers of an English text, with what makes them others: 1.5 million, 1990s, 3 pm.
NUMBER = re.compile(
    r"(?<![A-Za-z\d])(\d+(?:[.,:/]\d+)*)(?:\s*(hundred|thousand|million|billion|trillion)\b|(s)\b|\s*(p\.?m\b))?",
    re.IGNORECASE,
)
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Numbers of a Chinese text, in digits and characters: 15, 150万, 十五, 一百五十万, 一九九八, 三点五.
CHINESE_NUMBER = re.compile(
    r"(\d+(?:\.\d+)?)([百千万亿]*)|([〇零一二两双对三四五六七八九十百千万亿半刻]+)(?:点([〇零一二三四五六七八九]+))?"
)
DIGITS = {"〇": 0, "零": 0, "一": 1, "二": 2, "两": 2, "双": 2, "对": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7,
          "八": 8, "九": 9}  # fmt: skip
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
UNITS = {"十": 10, "百": 100, "千": 1000}
LARGE = {"万": 10**4, "亿": 10**8}


def lost_numbers(source: str, target: str) -> list[str]:
    """Numbers of an English or Chinese `source` that `target` says neither in digits nor in Chinese characters.

    As often as `source` says them in digits; a time or a fraction is there when its parts are (12:30 is 十二点半).
    """
    target = _digits(target)
    literal = [found[1] for found in NUMBER.finditer(target)]
    values = chinese_numbers(target)
    values += [float(WORDS.index(word) + 1) for word in re.findall(r"[a-z]+", target.lower()) if word in WORDS]
    missing = []
    for found in NUMBER.finditer(_digits(source)):
        number, scale, decade, afternoon = found.groups()
        if not scale and number in literal:
            literal.remove(number)
            if _value(number) in values:
                values.remove(_value(number))
            continue
        parts = [_value(part) for part in re.split(r"[:/]", number)]
        wanted = [[part * SCALES[scale.lower()]] if scale else [part] for part in parts]
        if decade:
            wanted[0].append(parts[0] % 100)  # the 1990s are 九十年代
        if afternoon:
            wanted[0].append(parts[0] + 12)
        chosen = [next((value for value in options if value in values), None) for options in wanted]
        if any(value is None for value in chosen):
            missing.append(next(n for n in NUMBER.finditer(source) if _digits(n[0]) == found[0])[1])
            continue
        for value in chosen:
            if value in values:
                values.remove(value)
    return missing


def chinese_numbers(text: str) -> list[float]:
    """Every value that a number in `text` may stand for: 三点五 is 3.5, and 3 with 5 (a time); 半 is a half, and 30."""
    values: list[float] = []
    for digits, large, characters, decimals in CHINESE_NUMBER.findall(text):
        if digits:
            scale = 1
            for character in large:
                scale *= UNITS.get(character, LARGE.get(character, 1))
            values += [float(digits) * scale] + ([float(digits)] if large else [])
            continue
        # 十二点半 is found as 十二 and 半.
        for run in re.findall(r"[半刻]|[^半刻]+", characters):
            if run in ("半", "刻"):
                values += [30.0, 2.0] if run == "半" else []
                continue
            values.append(float(_spoken(run)))
        if decimals:
            tail = "".join(str(DIGITS[character]) for character in decimals)
            values += [float(f"{_spoken(re.sub('[半刻]', '', characters) or '零')}.{tail}"), float(_spoken(decimals))]
    values += [45.0] * text.count("三刻") + [15.0] * text.count("一刻")
    return values


def _spoken(run: str) -> int:
    """A number in Chinese characters: 一百五十万 is 1,500,000; 一九九八, digit by digit, 1998; 千万 ten million."""
    if not any(character in UNITS or character in LARGE for character in run):
        return int("".join(str(DIGITS[character]) for character in run))
    total = section = digit = 0
    for before, character in pairwise(" " + run):
        if character in DIGITS:
            digit = DIGITS[character]
        elif character in UNITS:
            section += (digit if before in DIGITS and before not in "〇零" else 1) * UNITS[character]
            digit = 0
        else:
            total = (total + section + digit or 1) * LARGE[character]
            section = digit = 0
    return total + section + digit


def _value(number: str) -> float:
    """12.5 and 1,250 as a value; what is no single number in this form (1.2.3) is none that anything equals."""
    try:
        return float(number.replace(",", ""))
    except ValueError:
        return float("nan")


def is_mostly_han(text: str) -> bool:
    """Whether at least a third of the letters are Chinese: captions in Chinese carry Latin names."""
    letters = sum(character.isalpha() for character in text)
    return letters > 0 and 3 * sum(map(len, HAN.findall(text))) >= letters


def _inside(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group)


def _pattern(english: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(english)}(?:e?s)?(?!\w)", re.IGNORECASE)


def _digits(text: str) -> str:
    """Full-width digits made plain, thousands' commas dropped."""
    text = text.translate({0xFF10 + i: str(i) for i in range(10)})
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", _digits(text)).casefold()
