"""English or Chinese text into sentences: what CLIP's 77 tokens and sentence translators can take at once."""

from __future__ import annotations

import re

# A full stop after these ends no sentence.
ABBREVIATIONS = (
    "mr",
    "mrs",
    "ms",
    "dr",
    "st",
    "no",
    "vs",
    "etc",
    "e.g",
    "i.e",
    "approx",
    "fig",
    "inc",
    "jr",
    "sr",
    "prof",
)
# Closing quotes and brackets belong to the sentence that they close.
END = re.compile(r"""[.!?]+["'”’)\]]*(?=\s|$)|[。！？；]+[”’」』）]*|\n+""")


def sentences(text: str) -> list[str]:
    """The sentences of `text` in order, without the white space between them; none for a blank text."""
    found, start = [], 0
    for end in END.finditer(text):
        word = text[start : end.start()].rsplit(maxsplit=1)[-1:] or [""]
        last = word[0].lower().lstrip("(\"'“‘")
        initial = len(last) == 1 and last.isalpha() and last.isascii() and last != "i"
        if end.group() == "." and (last in ABBREVIATIONS or initial):
            continue
        found.append(text[start : end.end()])
        start = end.end()
    return [kept for piece in (*found, text[start:]) if (kept := piece.strip())]
