"""Who wrote the captions of a store: the raw ones, and every version of every captioner and translator, of posters too.

for captioner in captioners(store): print(captioner.label, captioner.captions)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from curate.errors import UsageError
from curate.store import Store

KINDS = ["raw", "translated", "synthetic", "poster"]


@dataclass(frozen=True)
class Captioner:
    """One version of what writes captions of one kind and language. A translator is named with what it translated."""

    fingerprint: str
    """Of the operator's version; that of `input` for raw captions."""
    kind: str
    """raw, translated (a raw caption), synthetic, poster."""
    language: str
    name: str
    """`raw`, the model's name (of a path the last part), `captioner > translator`, `raw > translator` or `captioner
    poster`; with `@` and the beginning of the fingerprint where several versions have one name."""
    engine: str | None
    model: str | None
    active: bool
    captions: int
    similarity: str | None
    """Fingerprint of the version of operator `similarity` that compared these captions with their pictures."""

    @property
    def label(self) -> str:
        """Name and language: `cogvlm-chat/en`."""
        return f"{self.name}/{self.language}"

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from all others."""
        return self.fingerprint, self.kind, self.language

    @property
    def item(self) -> str:
        """Its part of the name of a caption that is rated, after that of the picture."""
        plain = self.kind in ("raw", "synthetic")
        return self.fingerprint if plain else f"{self.fingerprint}/{self.kind}-{self.language}"


def captioners(store: Store, wanted: Sequence[str] = ()) -> list[Captioner]:
    """All captioners, raw first, or those that one of the words `wanted` names.

    A word is a language, a name, `name/language`, or the beginning of a fingerprint (6 digits at least). Raises
    UsageError for a word that names none.
    """
    pairs = _together(store)
    rows = store.rows(
        "SELECT fingerprint, kind, language, engine, model, active, count(*) FROM captions "
        "WHERE kind <> 'raw' OR active GROUP BY ALL"
    )
    rows.sort(key=lambda row: (row[2], KINDS.index(row[1]), not row[5], row[0]))
    names = {row[0]: _name(row[4] or row[3]) for row in rows if row[1] == "synthetic" and row[2] == "en"}
    found = []
    for mark, kind, language, engine, model, active, count in rows:
        name = "raw" if kind == "raw" else _name(model or engine)
        before = names.get(pairs.get(mark, {}).get("caption", ""))
        if kind == "synthetic" and language == "zh" and before and before != name:
            name = f"{before} > {name}"
        elif kind == "translated":
            name = f"raw > {name}"
        elif kind == "poster":
            name = f"{before or name} poster"
        compared = kind == "raw" or (kind == "synthetic" and language == "en")
        similar = pairs.get(mark, {}).get("similarity") if compared else None
        found.append(Captioner(mark, kind, language, name, engine, model, active, count, similar))
    several = Counter(captioner.label for captioner in found)
    found = [replace(c, name=f"{c.name}@{c.fingerprint[:4]}") if several[c.label] > 1 else c for c in found]
    for word in wanted:
        if not any(_named(captioner, word) for captioner in found):
            raise UsageError(
                f"{store.uri}: no captioner {word!r}; there are: {', '.join(c.label for c in found) or 'none'}"
            )
    return [c for c in found if not wanted or any(_named(c, word) for word in wanted)]


def _named(captioner: Captioner, word: str) -> bool:
    plain = captioner.name.partition("@")[0]  # names all its versions
    names = {
        captioner.name,
        captioner.label,
        plain,
        f"{plain}/{captioner.language}",
        captioner.language,
        captioner.kind,
    }
    return word in names or (len(word) >= 6 and captioner.fingerprint.startswith(word))


def _name(model: str | None) -> str:
    text = (model or "unknown").rstrip("/").rsplit("/", 1)[-1]
    return "facts" if text == "curate-facts" else text


def _together(store: Store) -> dict[str, dict[str, str]]:
    """For each version of a captioner or translator, the versions of the operators that last ran with it."""
    found: dict[str, dict[str, str]] = {}
    paths = [path for path in store.files.list("runs") if path.endswith("/run.json")]
    for path in sorted(paths, key=lambda path: path.split("/")[1]):
        versions = json.loads(store.files.read(path)).get("versions", [])
        run = {version["operator"]: version["fingerprint"] for version in versions}
        for operator in ("input", "caption", "translate", "poster"):
            if operator in run:
                found[run[operator]] = run
    return found
