"""The words of the pages in English and Chinese: words/en.json and words/zh.json, with the same keys."""

from __future__ import annotations

import functools
import json
from importlib.resources import files as resource_files


@functools.cache
def catalog(language: str) -> dict[str, str]:
    """All words of one language."""
    text = resource_files("curate.web").joinpath(f"words/{language}.json").read_text("utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def say(language: str, key: str, **values: object) -> str:
    """One text; `{name}` in it is filled in. A key that is not there is an error, not an empty page."""
    text = catalog(language)[key]
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text
