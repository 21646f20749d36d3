"""Proper nouns of raw captions that the synthetic captions of the same row lack: what raw captions are kept for.

Vision models describe a palace and do not know which; the raw caption says 故宫 or "Forbidden City". No model looks for
names here, two rules do: in English runs of capitalised words that do not begin a sentence, in Chinese what stands in
《》, 「」 or “”. So the list is a sample to read and no measurement of recall.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

WORD = r"[A-Z][\w'’&-]*[\w]"
RUN = re.compile(rf"(?<![.!?:;]\s)(?<=[\s(,]){WORD}(?:\s(?:(?:of|the|de|la|van|von)\s)?{WORD})*")
TITLES = re.compile(r"《([^》]{1,30})》|「([^」]{1,30})」|“([\u4e00-\u9fff]{2,20})”")
# Capitalised for other reasons.
COMMON = frozenset({"I", "I'm", "I’m", "The", "A", "An", "AM", "PM", "OK", "TV", "DSLR", "Photo", "Image", "Picture"})


def proper_nouns(caption: str) -> Iterator[str]:
    """Names in a caption, in their order."""
    yield from (name for name in RUN.findall(caption) if name not in COMMON)
    yield from (next(filter(None, found)) for found in TITLES.findall(caption))


def missing(raw: Iterable[str], synthetic: Iterable[str]) -> list[str]:
    """Names of the raw captions that no synthetic caption has, each once."""
    said = " ".join(synthetic).casefold()
    found = (name for caption in raw for name in proper_nouns(caption))
    return [name for name in dict.fromkeys(found) if name.casefold() not in said]
