"""The words of the pages in English and Chinese.

Pages name their texts by keys: words/en.json and words/zh.json, with the same keys. Sentences that come from elsewhere
(problems, reasons, outcomes, what the audit log says) and the few texts of the explore pages are English already;
words/sentences.zh.json has them in Chinese, with `{}` where a value stands: `translated`.
"""

from __future__ import annotations

import functools
import json
import re
from importlib.resources import files as resource_files


@functools.cache
def catalog(language: str) -> dict[str, str]:
    """All words of one language."""
    text = resource_files("curate.web").joinpath(f"words/{language}.json").read_text("utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def say(language: str, key: str, **values: object) -> str:
    """One text; `{name}` in it is filled in. A key that is not there is an error, not an empty page.

    Of one thing (n = 1) the text `<key>.one` is taken when there is one.
    """
    words = catalog(language)
    text = words[f"{key}.one"] if values.get("n") in (1, "1") and f"{key}.one" in words else words[key]
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text


@functools.cache
def _sentences() -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    whole = catalog("sentences.zh")
    parts = [(re.compile(re.escape(key).replace(r"\{\}", "(.+?)"), re.DOTALL), key) for key in whole if "{}" in key]
    return whole, [(pattern, whole[key]) for pattern, key in parts]


def translated(language: str, sentence: object) -> str:
    """An English sentence in the language of who asks; one that is not in the catalog stays English."""
    text = str(sentence)
    if language != "zh":
        return text
    whole, patterns = _sentences()
    if text in whole:
        return whole[text]
    for pattern, chinese in patterns:
        if found := pattern.fullmatch(text):
            pieces = chinese.split("{}")
            values = [translated(language, value) for value in found.groups()]
            return pieces[0] + "".join(value + piece for value, piece in zip(values, pieces[1:], strict=True))
    return text
