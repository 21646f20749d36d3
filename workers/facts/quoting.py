"""Quoting what OCR read: verbatim pieces, marks that the text does not use itself, and length in words."""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKS = (("“", "”"), ("「", "」"), ("『", "』"), ("«", "»"), ("‹", "›"), ("⟦", "⟧"))
ELLIPSIS = "…"
BREAK = " / "

# Han, kana and hangul are written without spaces between words.
CJK = re.compile(
    r"[\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30fa]")
HANGUL = re.compile(r"[\uac00-\ud7af]")
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
WORD = re.compile(r"\w+")


def words_at_most(text: str) -> float:
    """Length of `text` in words, counted generously.

    Two CJK characters are one word (the mean length of a Chinese word is near two characters); anything else is
    split at white space and punctuation, a lone mark such as `/` counts as one, and every 20 letters of a longer
    word count as one. Never less than `len(text.split())`.
    """
    total = 0.0
    for token in text.split():
        if len(token) <= 20 and token.rstrip(",.;").isalpha() and token.isascii():
            total += 1  # nearly all tokens; the general case below takes 20 times as long
            continue
        characters = len(CJK.findall(token))
        others = WORD.findall(CJK.sub(" ", token))
        total += max(1.0, characters / 2 + sum(max(1.0, len(word) / 20) for word in others))
    return total


def words_at_least(text: str) -> int:
    """Length of `text` in words, counted strictly: tokens between white space that hold a Latin letter."""
    return sum(bool(LATIN.search(token)) for token in text.split())


def pieces_of(line: str) -> list[str]:
    """The parts of an OCR line that can stand in a caption as they are.

    A run of white space other than one plain space, and anything that does not print (control marks, lone
    surrogates, bidirectional overrides), is a break: joining across it would alter the text.
    """
    marked = "".join(c if c.isprintable() else "\n" for c in line)
    pieces = (piece.strip() for piece in re.split(r"\n+| {2,}", marked))
    return [piece for piece in pieces if any(c.isalnum() for c in piece)]


@dataclass(frozen=True)
class Quote:
    """A quotation with its marks. `cut` tells that text at its end was left out, which an ellipsis shows."""

    text: str
    cut: bool
    lines: int

    @property
    def script(self) -> str:
        """`han`, `kana`, `hangul`, `latin`, `han+latin` or `other`, by the characters quoted."""
        if KANA.search(self.text):
            return "kana"
        if HANGUL.search(self.text):
            return "hangul"
        han, latin = bool(CJK.search(self.text)), bool(LATIN.search(self.text))
        return {(True, True): "han+latin", (True, False): "han", (False, True): "latin"}.get((han, latin), "other")


def quote(lines: list[str], budget: float) -> Quote | None:
    """Quote as many whole `lines` as fit into `budget` words, joined by ` / `.

    What is left out at the end is marked by an ellipsis. A line is cut (between words or CJK characters) only when
    the whole lines before it leave half of the budget unused. None when no part fits or when the text uses every
    kind of quotation mark.
    """
    pieces = [piece for line in lines for piece in pieces_of(line)]
    if not pieces:
        return None
    kept: list[str] = []
    for piece in pieces:
        rest = BREAK + ELLIPSIS if len(kept) + 1 < len(pieces) else ""
        if words_at_most(BREAK.join([*kept, piece]) + rest) > budget:
            break
        kept.append(piece)
    if len(kept) == len(pieces):
        return _marked(BREAK.join(kept), cut=False, lines=len(kept))
    used = words_at_most(BREAK.join([*kept, ""]))
    start = _beginning(pieces[len(kept)], budget - used - 1) if used <= budget / 2 else ""
    if start:
        return _marked(BREAK.join([*kept, f"{start} {ELLIPSIS}"]), cut=True, lines=len(kept) + 1)
    return _marked(BREAK.join([*kept, ELLIPSIS]), cut=True, lines=len(kept)) if kept else None


def _beginning(piece: str, budget: float) -> str:
    """The longest start of `piece` within `budget` words that ends between words or CJK characters."""
    best = ""
    for match in re.finditer(rf"{CJK.pattern}|\s+|$", piece):
        start = piece[: match.end()].rstrip()
        if words_at_most(start) > budget:
            break
        if len(start) < len(piece.rstrip()):
            best = start
    return best


def _marked(text: str, *, cut: bool, lines: int) -> Quote | None:
    for opening, closing in MARKS:
        if opening not in text and closing not in text:
            return Quote(f"{opening}{text}{closing}", cut=cut, lines=lines)
    return None
