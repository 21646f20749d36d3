"""Words: a lexicon from an installed dictionary or your own corpus, and what is drawn from it.

    curate synth lexicon -o lexicon.tsv --source jieba

Half of the words are drawn by the square root of their frequency, three tenths uniformly, two tenths by rare character:
uniform over the 6,763 characters of GB2312, then a word that holds it. Frequent words alone do not do: the 50,000 most
frequent of wordfreq hold 4,736 characters. The characters of the last kind go round in a keyed order, one at least in
every picture, so that each is shown at least once by any 6,763 pictures in a row and none is left to luck.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import unicodedata
import warnings
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

from curate.errors import UsageError
from curate.synth.draw import Draw

SIZE = 50_000
MAX_CHARACTERS = 8
SHARES = (0.5, 0.3, 0.2)  # by square root of frequency, uniform, rare character
WORD_CHARACTERS = 1.9  # mean length of a drawn word
SENSITIVE = Path(__file__).parent / "sensitive.txt"
BLOCKED = "#!"  # begins a line of a saved lexicon: an entry that no line may hold
INSTALL = "pip install 'curate[synth]'"

HAN = re.compile(r"[\u4e00-\u9fff\u3400-\u4dbf\u3007]+")
COUNTED = re.compile(r"(\S+)\s+(\d+)(?:\s.*)?")


def gb2312() -> str:
    """The 6,763 Han characters of GB2312, level 1 (3,755, by sound) and then level 2 (3,008, by radical)."""
    rows = (bytes([high, low]) for high in range(0xB0, 0xF8) for low in range(0xA1, 0xFF))
    return "".join(pair.decode("gb2312", "ignore") for pair in rows)


LEVEL_1 = gb2312()[:3755]
FLOOR = gb2312()


@dataclass(frozen=True)
class Lexicon:
    """Words with their counts, most frequent first, and what no line may hold, though no word does: entries of two or
    more characters, which words that stand side by side could form."""

    words: tuple[str, ...]
    counts: tuple[int, ...]
    source: str
    blocked: frozenset[str] = frozenset()

    @cached_property
    def sha256(self) -> str:
        """Of words, counts and blocked entries: what a spec depends on."""
        return hashlib.sha256(self._body().encode()).hexdigest()

    @cached_property
    def sums(self) -> list[float]:
        """Running sums of the square roots of the counts."""
        return list(accumulate(count**0.5 for count in self.counts))

    @cached_property
    def holding(self) -> dict[str, list[int]]:
        """The words that hold a character, by their numbers."""
        found: dict[str, list[int]] = {}
        for number, word in enumerate(self.words):
            for character in dict.fromkeys(word):
                found.setdefault(character, []).append(number)
        return found

    @cached_property
    def longest(self) -> int:
        """Characters of the longest blocked entry."""
        return max(map(len, self.blocked), default=0)

    def blocks(self, text: str) -> bool:
        """Whether `text` holds a blocked entry."""
        for start in range(len(text) - 1 if self.blocked else 0):
            for end in range(start + 2, min(start + self.longest, len(text)) + 1):
                if text[start:end] in self.blocked:
                    return True
        return False

    def without(self, entries: Iterable[str]) -> Lexicon:
        """This lexicon without the words that hold one of `entries`; those of two or more characters are blocked."""
        struck = [entry for entry in entries if entry]
        bad = re.compile("|".join(map(re.escape, struck)) or r"(?!)")
        kept = [pair for pair in zip(self.words, self.counts, strict=True) if not bad.search(pair[0])]
        if not kept:
            raise UsageError(f"lexicon {self.source!r}: every word holds a blocked entry; name other words")
        blocked = self.blocked.union(entry for entry in struck if len(entry) > 1)
        return Lexicon(tuple(word for word, _ in kept), tuple(count for _, count in kept), self.source, blocked)

    def characters(self) -> str:
        """Every character that can be drawn, sorted."""
        return "".join(sorted(set(FLOOR).union(*self.words)))

    def save(self, path: Path) -> None:
        """Write a text file that `load` reads: a line about the source, `word<tab>count`, `#!` and a blocked entry."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {len(self.words)} words of {self.source}\n{self._body()}", "utf-8")

    def _body(self) -> str:
        words = [f"{word}\t{count}\n" for word, count in zip(self.words, self.counts, strict=True)]
        return "".join([*words, *(f"{BLOCKED}{entry}\n" for entry in sorted(self.blocked))])


def load(path: Path) -> Lexicon:
    """A lexicon that `Lexicon.save` wrote."""
    words, counts, blocked, source = [], [], set(), path.name
    for number, line in enumerate(_lines(path), 1):
        if line.startswith(BLOCKED):
            blocked.add(line[len(BLOCKED) :])
            continue
        if line.startswith("#"):
            source = line.partition(" of ")[2] or source
            continue
        word, _, count = line.partition("\t")
        if not count.isdigit() or not word:
            raise UsageError(
                f"{path}, line {number}: {line!r} is not word<tab>count; make one with: curate synth lexicon"
            )
        words.append(word)
        counts.append(int(count))
    if not words:
        raise UsageError(f"{path}: no words; make one with: curate synth lexicon -o {path}")
    return Lexicon(tuple(words), tuple(counts), source, frozenset(blocked))


def sensitive() -> list[str]:
    """The entries of sensitive.txt."""
    return _entries(SENSITIVE)


def build(source: str = "jieba", size: int = SIZE, block: Iterable[str] = ()) -> Lexicon:
    """The `size` most frequent words of `jieba`, of `wordfreq`, or of a file: `word count` lines, or running text.

    Words are NFKC, Han only, Simplified, of one to eight characters; personal names (as jieba's dictionary marks
    them) and words that hold an entry of sensitive.txt or of `block` are left out.
    """
    names = {word for word, _, kind in _jieba() if kind.startswith("nr")}
    if source == "jieba":
        counted: Iterable[tuple[str, int]] = ((word, count) for word, count, _ in _jieba())
        said = "jieba's dict.txt (MIT)"
    elif source == "wordfreq":
        counted, said = _wordfreq(), "wordfreq's large Chinese list (CC-BY-SA-4.0)"
    else:
        counted, said = _corpus(Path(source)), Path(source).name
    struck = [*sensitive(), *block]
    total: Counter[str] = Counter()
    raw = [(unicodedata.normalize("NFKC", word), count) for word, count in counted]
    for word, (_, count) in zip(_simplified([word for word, _ in raw]), raw, strict=True):
        if len(word) <= MAX_CHARACTERS and HAN.fullmatch(word):
            total[word] += count
    bad = re.compile("|".join(map(re.escape, struck)) or r"(?!)")
    chosen = [
        (word, count)
        for word, count in sorted(total.items(), key=lambda item: (-item[1], item[0]))
        if word not in names and not bad.search(word)
    ][:size]
    if not chosen:
        raise UsageError(f"lexicon source {source!r}: no Chinese words in it")
    blocked = frozenset(entry for entry in struck if len(entry) > 1)
    return Lexicon(tuple(word for word, _ in chosen), tuple(count for _, count in chosen), said, blocked)


class Words:
    """What one picture says: words of the mixture, and the rare characters whose turn it is at this index."""

    def __init__(self, lexicon: Lexicon, seed: int, index: int, draw: Draw) -> None:
        self.lexicon = lexicon
        self.draw = draw
        self._turn = _first_turn(seed) + index
        self.turns = 0
        self.due: list[str] = []

    def word(self, limit: int) -> str:
        """A word of at most `limit` characters: 5 in 8 by the square root of its frequency, 3 in 8 uniform."""
        words, sums = self.lexicon.words, self.lexicon.sums
        for _ in range(64):
            if self.draw.unit() * (SHARES[0] + SHARES[1]) < SHARES[0]:
                word = words[min(bisect(sums, self.draw.unit() * sums[-1]), len(words) - 1)]
            else:
                word = words[int(self.draw.unit() * len(words))]
            if len(word) <= limit:
                return word
        return word[:limit]

    def rare(self, limit: int) -> str:
        """A word that holds the character whose turn it is, or the bare character when none is short enough."""
        # 2,521 has no factor in common with the 6,763 characters: the steps of every index visit each of them once.
        character = FLOOR[(2521 * self._turn + 1693 * self.turns) % len(FLOOR)]
        self.turns += 1
        self.due.append(character)
        numbers = self.lexicon.holding.get(character, ())
        fitting = [number for number in numbers if len(self.lexicon.words[number]) <= limit]
        return self.lexicon.words[self.draw.pick(fitting)] if fitting else character

    def lines(self, shapes: Sequence[tuple[int, int]]) -> list[str]:
        """A text for each (fewest, most) number of characters; a fifth of the words come from `rare`, one at least."""
        wanted = SHARES[2] * sum(low + high for low, high in shapes) / 2 / WORD_CHARACTERS
        rare = max(1, int(wanted) + self.draw.chance(wanted % 1))
        places = [self.draw.whole(0, len(shapes) - 1) for _ in range(rare)]
        texts = []
        for number, (low, high) in enumerate(shapes):
            words: list[str] = []
            length = self.draw.whole(low, high)
            for _ in range(places.count(number)):
                if room := length - len("".join(words)):
                    words.append(self.rare(room))
            while (room := length - len("".join(words))) > 0:
                words.insert(self.draw.whole(0, len(words)), self.word(room))
            texts.append("".join(words))
        return texts


@lru_cache(16)
def _first_turn(seed: int) -> int:
    return Draw("turn", seed).whole(0, len(FLOOR) - 1)


def coverage(texts: Iterable[str | None]) -> dict[str, int]:
    """How often each of the 6,763 characters of GB2312 stands in `texts`; absent ones have 0."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text or "")
    return {character: counts[character] for character in FLOOR}


@lru_cache(1)
def _jieba() -> list[tuple[str, int, str]]:
    """Word, count and part of speech of jieba's dictionary, read without importing jieba."""
    found = importlib.util.find_spec("jieba")
    if found is None or not found.origin:
        raise UsageError(f"the lexicon comes from jieba's dictionary, which is not installed: {INSTALL}")
    entries = []
    for line in (Path(found.origin).parent / "dict.txt").read_text("utf-8").splitlines():
        word, count, kind = line.rsplit(" ", 2)
        entries.append((word, int(count), kind))
    return entries


def _wordfreq() -> list[tuple[str, int]]:
    """Counts per billion. From the list itself: `zipf_frequency` splits compounds and is wrong for them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from wordfreq import get_frequency_dict
    except ImportError:
        raise UsageError("lexicon source 'wordfreq' is not installed: pip install wordfreq") from None
    return [(word, max(1, round(share * 1e9))) for word, share in get_frequency_dict("zh", "large").items()]


def _corpus(path: Path) -> Iterable[tuple[str, int]]:
    """Of a file: `word count` on every line, or running text that jieba cuts into words."""
    lines = [line for line in _lines(path) if not line.startswith("#")]
    matches = [COUNTED.fullmatch(line) for line in lines]
    if lines and all(matches):
        return [(match[1], int(match[2])) for match in matches if match]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's source has escapes that Python 3.12 frowns at
        import jieba
    jieba.setLogLevel("ERROR")
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(jieba.cut(line, HMM=False))
    return counts.items()


def _simplified(words: list[str]) -> list[str]:
    try:
        from opencc import OpenCC
    except ImportError:
        raise UsageError(f"OpenCC, which makes words Simplified, is not installed: {INSTALL}") from None
    converted: list[str] = OpenCC("t2s").convert("\n".join(words)).split("\n")
    return converted


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as why:
        raise UsageError(f"{path}: cannot be read as UTF-8 text: {why}") from None


def _entries(path: Path) -> list[str]:
    return [line.strip() for line in _lines(path) if not line.startswith("#")]


def block_list(path: Path) -> list[str]:
    """The entries of a block list: one a line, `#` begins a comment."""
    return _entries(path)
