"""Caption and translation composed from measured facts: the engine `facts`, which needs no model and no pixels.

`FactsCaptioner` reads the columns that the scorers wrote and says in 20 to 80 English words what was measured, and
nothing else. `FactsTranslator` says the same in Simplified Chinese. Both sides come from one grammar in which every
phrase stands beside its Chinese, so the translation is exact. measures.py turns columns into facts, wording.py holds
the phrases, quoting.py treats the text that OCR read. docs/captions.md shows examples and the signature that other
captioners and translators share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from schemas.errors import RowError
from workers.facts.measures import NEEDS, measure
from workers.facts.wording import VARIANTS, compose, variant_of

if TYPE_CHECKING:
    from workers.sample import Sample

__all__ = ["MODEL", "NEEDS", "VERSION", "FactsCaptioner", "FactsTranslator"]

VERSION = 1
MODEL = "curate-facts"


class FactsCaptioner:
    """Composes `caption_en` from `sample.values`; a missing or null column is unknown and is not mentioned.

    There is no language model: `prompt` takes part only in the choice among equal wordings, which is keyed by
    (sha256, prompt). The same facts and the same prompt give the same caption on every machine.
    """

    def __init__(self, *, prompt: str = "") -> None:
        self.prompt = prompt

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [
            {
                "caption_en": compose(facts := measure(sample.values), variant_of(facts.key, self.prompt)).en,
                "caption_engine": "facts",
                "caption_model": MODEL,
                "caption_revision": str(VERSION),
                "caption_prompt": self.prompt,
                "caption_tokens_in": None,
                "caption_tokens_out": None,
                "caption_finish": None,
                "caption_seconds": None,
                "caption_attempts": [],
            }
            for sample in samples
        ]


class FactsTranslator:
    """Gives the Chinese of a caption that the `facts` captioner wrote for the same columns.

    It composes the wordings of the row's facts again, finds the one that equals `caption_en` and returns that
    wording's Chinese, so it needs no prompt. A caption from elsewhere raises RowError `operator_failed`.
    """

    def __init__(self) -> None:
        # A prompt moves every content's wording by the same number (`variant_of`): the number that fitted the last
        # row fits the next one at the first attempt, under 1 ms where a search takes 34 ms on average. Equal English
        # has equal Chinese, so where the search begins has no influence on what it finds.
        self._shift = 0

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [
            {
                "caption_zh": self._chinese(sample.values),
                "caption_raw_zh": None,
                "caption_raw_en": None,
                "translate_lost": [],
                "translate_cut": None,
                "translate_raw_lost": [],
                "translate_raw_cut": None,
                "translate_engine": "facts",
                "translate_model": MODEL,
                "translate_revision": str(VERSION),
            }
            for sample in samples
        ]

    def _chinese(self, values: dict[str, Any]) -> str | None:
        """The Chinese of `caption_en`, null for a row without an English caption."""
        english = values.get("caption_en")
        if english is None:
            return None
        facts = measure(values)
        start = variant_of(facts.key, "")
        for step in range(VARIANTS):
            shift = (self._shift + step) % VARIANTS
            wording = compose(facts, (start + shift) % VARIANTS)
            if wording.en == english:
                self._shift = shift
                return wording.zh
        raise RowError(
            "operator_failed",
            f"caption_en was not composed by the facts captioner from this row's columns (its caption_engine is "
            f"{values.get('caption_engine')!r}); the facts translator can only translate captions of the facts "
            "engine; choose another translate.engine",
        )
