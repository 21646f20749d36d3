"""What the user asks of a mix, checked once at the door."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from curate.errors import UsageError, nearest
from curate.mix import buckets
from curate.mix.decide import LANGUAGES, Policy
from curate.store.files import open_files

FORMATS = ("parquet", "webdataset", "folder")
MODES = ("quota", "coin")
SYNTHETIC = ("active", "all")
MOST = 10**12  # of any count


@dataclass(frozen=True)
class Settings:
    """One mix. Everything here decides the bytes of the training set; workers and engine do not and are not here."""

    store: str
    ratio: float = 0.5
    """Share of raw captions among entries that have a raw and a synthetic one, 0..1."""
    languages: tuple[tuple[str, float], ...] = (("en", 0.5), ("zh", 0.5))
    """Shares among synthetic captions of entries that have several languages; a language left out is not used."""
    mode: str = "quota"
    where: str = ""
    """SQL over `samples`; rows for which it is not TRUE stay out."""
    ignore_policy: bool = False
    """Take rows whatever `keep`, `dedup_keep` and `balance_keep` say."""
    synthetic: str = "active"
    """`all`: every version of every captioner, so that captions rotate over the epochs."""
    top: str = ""
    """SQL that is TRUE for the highest tier; empty: `tier = 5` where the store knows tiers."""
    top_weight: float = 1.0
    """Appearances of a row of the highest tier in an epoch; a fraction is drawn once for each row."""
    text: str = ""
    """Store or folder of shards with rendered text (`curate synth`)."""
    text_cap: float = 0.1
    """Largest share of rendered text among all entries, 0..1."""
    rows: int = 0
    """Rows at most, drawn by key; 0: all."""
    validation: float = 0.0
    """Share of content groups that go to the validation split, 0..1."""
    buckets: str = "novelai-1024"
    epochs: int = 1
    format: str = "parquet"
    resize: bool = False
    """Store pictures cropped to their bucket (JPEG, quality 95) and not the original bytes."""
    shard_mb: int = 256
    shard_rows: int = 10_000
    columns: tuple[str, ...] = ()
    """Further columns of `samples` to pass through."""
    seed: int = 0
    keep_specs: bool = False
    """Rendered text that is specs alone (`curate synth --specs-only`) stays so in the shards, and MixDataset draws the
    pictures; else they are drawn into the shards."""

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot be."""
        for name, value in (("ratio", self.ratio), ("text-cap", self.text_cap), ("validation", self.validation)):
            if not 0 <= value <= 1:
                raise UsageError(f"--{name} {value:g}: a share lies between 0 and 1")
        if self.text_cap == 1 or self.validation == 1:
            raise UsageError("--text-cap and --validation must be less than 1, or nothing else would be left")
        for name, choice, known in (
            ("format", self.format, FORMATS), ("mode", self.mode, MODES), ("synthetic", self.synthetic, SYNTHETIC),
        ):  # fmt: skip
            if choice not in known:
                raise UsageError(f"--{name} {choice!r} is not known{nearest(choice, known)}")
        for name, number, least in (
            ("epochs", self.epochs, 1), ("rows", self.rows, 0), ("shard-mb", self.shard_mb, 1),
            ("shard-rows", self.shard_rows, 1), ("seed", self.seed, 0),
        ):  # fmt: skip
            if number > MOST and name != "seed":
                raise UsageError(f"--{name} {number}: at most {MOST}")
            if number < least:
                raise UsageError(f"--{name} {number}: at least {least}")
        if not (math.isfinite(self.top_weight) and 1 <= self.top_weight <= 100):
            raise UsageError(
                f"--top-weight {self.top_weight:g}: from 1 to 100 appearances an epoch; leave rows out with --where"
            )
        if self.keep_specs and (self.resize or self.format != "parquet"):
            raise UsageError(
                "--keep-specs: only MixDataset draws specs; use it with --format parquet, without --resize"
            )
        buckets.parse(self.buckets)
        if self.text and open_files(self.text).uri == open_files(self.store).uri:
            raise UsageError(
                f"--text {self.text} is the store itself; its rows of rendered text are in the pool anyway"
            )
        if sorted(self.languages) != list(self.languages) or not self.languages:
            raise UsageError("languages must be given once each, in order")

    @property
    def policy(self) -> Policy:
        """The part that decides captions, in whole numbers: 0.3 is 3/10 and not the nearest binary fraction."""
        shares = {name: Fraction(str(share)) for name, share in self.languages}
        english = shares.get("en", Fraction(0)) / sum(shares.values())
        return Policy(Fraction(str(self.ratio)), english, self.mode, self.seed)

    def speaks(self, language: str) -> bool:
        """Whether captions in a language may be used."""
        return any(name == language for name, _ in self.languages)

    def to_json(self) -> dict[str, Any]:
        """The settings as manifest.json has them."""
        return dataclasses.asdict(self) | {"languages": dict(self.languages), "columns": list(self.columns)}


def from_json(values: Mapping[str, Any]) -> Settings:
    """The settings of a manifest."""
    tables = {"languages": tuple(sorted(values["languages"].items())), "columns": tuple(values["columns"])}
    return Settings(**{**values, **tables})


def parse_languages(text: str) -> tuple[tuple[str, float], ...]:
    """`en=0.5,zh=0.5` as pairs; a share of 0 is a language left out."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = part.strip().partition("=")
        if name not in LANGUAGES:
            raise UsageError(f"--languages {text!r}: {name!r} is not known{nearest(name, LANGUAGES)}")
        try:
            value = float(share) if equals else 1.0
        except ValueError:
            value = math.nan
        if name in found or not (math.isfinite(value) and value >= 0):
            raise UsageError(f"--languages {text!r}: write each language once with its share, e.g. en=0.5,zh=0.5")
        found[name] = value
    kept = tuple(sorted((name, share) for name, share in found.items() if share > 0))
    if not kept:
        raise UsageError(f"--languages {text!r}: at least one share must be more than 0")
    return kept


def described(settings: Settings) -> str:
    """The settings as one line of JSON for fingerprints, without the places of store and text, which may move."""
    kept = {key: value for key, value in settings.to_json().items() if key not in ("store", "text")}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False)
