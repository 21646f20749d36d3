"""What is drawn: a small JSON of whole numbers, a pure function of (seed, index, attempt).

    spec = draw_spec(world, seed=1, index=17, attempt=0)

A spec is a display list: a ground, shapes, lines of text, perhaps a plane (a sign that the shapes and lines lie on and
that is laid over the ground in perspective) and the finish. Coordinates are px of the picture or plane; colours are
RRGGBB; a line's face is named by content hash and number. No measure of a glyph enters it, so that equal worlds give
equal specs on every platform. What it looks like is render.py's business, whether that can be read check.py's.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate.errors import UsageError
from curate.recipe import knob
from curate.synth.colors import RGB, luminances
from curate.synth.draw import Draw
from curate.synth.fonts import Face
from curate.synth.photographs import Photograph, Photographs
from curate.synth.words import Lexicon, Words

SPEC_VERSION = 4
DRAWS = 3  # version of the numbers behind a spec: version 4 refuses blocked lines and draws all others as 3 did
REUSE = 4  # consecutive samples share a photograph, so that each is decoded once for four pictures
ATTEMPTS = 8
LEAST_CROP = 0.78  # of a photograph's side: its caption shall still be true
SHEETS = ("paper", "wood", "cloth", "metal")  # materials of the shape `sheet`, by number
PAPER, WOOD, CLOTH, METAL = range(4)

SIZES = "write WIDTHxHEIGHT, px from 256 to 4096, e.g. 512x512 448x576"

Spec = dict[str, Any]


@dataclass(frozen=True)
class Synth:
    """The section [synth] of a recipe."""

    backgrounds: str = knob(
        "", "store or folder with photographs; empty: those of installed packages, if there are any"
    )
    photographs: int = knob(1000, "photographs taken from it, at most", at_least=0)
    fonts: str = knob("", "folder of font files, beside those that fontconfig finds")
    system_fonts: bool = knob(True, "whether fontconfig's fonts are used")
    lexicon: str = knob(
        "jieba", "jieba, wordfreq, a lexicon that was saved, or a corpus: counted words or running text"
    )
    words: int = knob(50_000, "words of the lexicon, the most frequent ones", at_least=1)
    block: str = knob(
        "",
        "file of further entries, one a line, that no word may hold, nor a line if they are longer than one character",
    )
    quarantine: str = knob("", "quarantine.json of an earlier run: what OCR could not read is not drawn again")
    sizes: str = knob("512x512", "sizes of the pictures, px, drawn alike: e.g. 512x512 448x576 576x448")
    pure: float = knob(0.35, "weight of the tier of text on a plain ground", at_least=0.0)
    composed: float = knob(0.35, "weight of the tier of text on photographs", at_least=0.0)
    structured: float = knob(0.3, "weight of the tier of posters, signs, couplets, lists, notices", at_least=0.0)
    english: float = knob(0.12, "share of lines with English words or figures, 0..1", at_least=0.0)
    quality: int = knob(92, "JPEG quality of the pictures, 1..100; each varies a little around it", at_least=1)
    rows_per_shard: int = knob(1000, "rows of a shard", at_least=1)


@dataclass(frozen=True)
class World:
    """Everything beside (seed, index) that decides a sample."""

    lexicon: Lexicon
    faces: tuple[Face, ...]
    photographs: Photographs
    synth: Synth = Synth()
    quarantine: frozenset[tuple[str, str, str]] = frozenset()
    """Cells (face, effect, size) that OCR could not read: never drawn again."""
    by_id: dict[str, Face] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_id.update({face.id: face for face in self.faces})
        sizes(self.synth)


class Unfit(Exception):
    """An attempt that did not work out; the reason is a word that is counted."""


def sizes(synth: Synth) -> list[tuple[int, int]]:
    """The sizes of the recipe as (width, height) in px."""
    found = [re.fullmatch(r"(\d+)x(\d+)", word) for word in synth.sizes.replace(",", " ").split()]
    pairs = [(int(match[1]), int(match[2])) for match in found if match]
    if not pairs or len(pairs) != len(found) or any(not 256 <= side <= 4096 for pair in pairs for side in pair):
        raise UsageError(f"synth.sizes = {synth.sizes!r}: {SIZES}")
    return pairs


def draw_spec(world: World, seed: int, index: int, attempt: int = 0) -> Spec:
    """The spec of one sample; raises Unfit when this attempt does not work out."""
    from curate.synth.layouts import LAYOUTS

    first = Draw("sample", seed, index)  # what does not change with the attempt, so that nothing gets rarer by failing
    width, height = first.pick(sizes(world.synth))
    weights = [("pure", world.synth.pure), ("structured", world.synth.structured)]
    if world.photographs.items:
        weights.append(("composed", world.synth.composed))
    tier = first.weighted(weights) if any(weight for _, weight in weights) else "pure"
    layout = first.weighted(LAYOUTS[tier])
    draw = Draw("attempt", DRAWS, seed, index, attempt)
    page = Page(world, draw, Words(world.lexicon, seed, index, draw), width, height, attempt)
    if tier != "pure" and world.photographs.items:
        page.photograph = Draw("photograph", seed, index // REUSE).pick(world.photographs.items)
    layout(page)
    if any(world.lexicon.blocks(line["t"]) for line in page.lines):
        raise Unfit("blocked")  # by joining: no word holds an entry
    spec: Spec = {"v": SPEC_VERSION, "seed": seed, "index": index, "attempt": attempt, "size": [width, height]}
    spec |= {"tier": tier, "layout": page.layout, "ground": page.ground, "shapes": page.shapes, "lines": page.lines}
    for key in ("plane", "behind", "lamp"):
        if value := getattr(page, key):
            spec[key] = value
    spec["say"] = page.say | {"zh": draw.whole(0, 999), "en": draw.whole(0, 999), "coin": int(draw.chance(0.5))}
    spec |= {"refused": page.refused, "rare": page.words.turns}
    blur = draw.whole(3, 6) if draw.chance(0.3) else 0
    quality = min(100, max(1, world.synth.quality + draw.whole(-4, 3)))
    spec["finish"] = [draw.whole(0, 4), draw.whole(0, 511), draw.whole(0, 511), blur, quality]
    for line in page.lines if world.quarantine else ():
        if cell(spec, line, world.by_id[line["f"]]) in world.quarantine:
            raise Unfit("quarantined")
    return spec


def to_json(spec: Spec) -> str:
    """The spec as text, the same for equal specs."""
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def digest(spec: Spec) -> str:
    """SHA-256 of a spec."""
    return hashlib.sha256(to_json(spec).encode()).hexdigest()


def cell(spec: Spec, line: dict[str, Any], face: Face) -> tuple[str, str, str]:
    """What a line has in common with others: its face, its hardest effect, its size."""
    effects = (
        ("perspective", spec.get("plane", {}).get("tilt")), ("arc", "arc" in line), ("turned", "turn" in line),
        ("vertical", line["d"] == "v"), ("glow", "glow" in line), ("outline", "out" in line),
        ("shadow", "sh" in line), ("gradient", "grad" in line), ("plain", True),
    )  # fmt: skip
    effect = next(name for name, there in effects if there)
    px = line["s"]
    size = "under 32 px" if px < 32 else "32-47 px" if px < 48 else "48-79 px" if px < 80 else "80 px and more"
    return f"{face.family} {face.style}", effect, size


def hexed(color: RGB) -> str:
    """A colour as RRGGBB."""
    return "{:02x}{:02x}{:02x}".format(*color)


def colored(text: str) -> RGB:
    """The colour that RRGGBB names."""
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def ems(text: str) -> float:
    """Width of a text in units of its size, from above: 1 for Han, less for Latin letters."""
    return sum(1.0 if c > "\u2e7f" else 0.72 if c.isupper() or c in "@%&MW—" else 0.6 for c in text)


@dataclass
class Page:
    """A spec under construction: what a layout writes on.

    `plane` is a sign that shapes and lines lie on; `behind` are shapes between it and the ground; `lamp` is where the
    light comes from (x and y in hundredths of the picture) and by how much it falls off, percent.
    """

    world: World
    draw: Draw
    words: Words
    width: int
    height: int
    attempt: int
    layout: str = ""
    ground: dict[str, Any] = field(default_factory=dict)
    plane: dict[str, Any] = field(default_factory=dict)
    behind: list[list[Any]] = field(default_factory=list)
    shapes: list[list[Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    lamp: list[int] = field(default_factory=list)
    say: dict[str, Any] = field(default_factory=dict)
    photograph: Photograph | None = None
    refused: int = 0

    @property
    def side(self) -> int:
        """The shorter side, px: what sizes are shares of."""
        return min(self.width, self.height)

    def face(self, kinds: tuple[str, ...] = (), bold: bool | None = None, px: float = 4096) -> Face:
        """A face for text of `px`: first its kind is drawn, so that many faces of one kind do not crowd out others."""
        if self.attempt >= 3:  # small pictures have no room for faces that need large type
            px = min(px, min(face.min_px for face in self.world.faces))
        faces = [face for face in self.world.faces if face.min_px <= px] or list(self.world.faces)
        faces = [face for face in faces if not kinds or face.kind in kinds] or faces
        faces = [face for face in faces if bold is None or face.bold == bold] or faces
        kind = self.draw.pick(sorted({face.kind for face in faces}))
        return self.draw.pick([face for face in faces if face.kind == kind])

    def able(self, face: Face, *texts: str) -> Face:
        """`face`, or another one when it cannot draw all of `texts`; every refusal is counted."""
        if all(face.covers(text) for text in texts):
            return face
        self.refused += 1
        able = [other for other in self.world.faces if all(other.covers(text) for text in texts)]
        if not able:
            raise Unfit("no_font")
        alike = [other for other in able if other.kind == face.kind]
        return self.draw.pick(alike or able)

    def fit(self, texts: list[str], face: Face, width: float, most: float) -> int:
        """The largest size up to `most`, px, at which no text is longer than `width`; Unfit below the face's least."""
        if self.attempt >= 3:
            most = max(most, face.min_px)
        px = int(min(most, *(width / ems(text) for text in texts)))
        if px < face.min_px:
            raise Unfit("too_small")
        return px

    def line(
        self, text: str, face: Face, px: int, color: RGB, at: tuple[float, float], role: str, way: str = "h",
        align: str = "c", effects: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Add a line. `at` is the middle of its middle, or of its left (`l`) or right (`r`) end.

        `way` is h (from the left) or v (from above). `effects`: out [width, colour], sh [dx, dy, blur, percent], grad
        colour, glow colour, turn (tenths of a degree), arc (radius, px), gap (px between characters).
        """
        line = {"t": text, "f": face.id, "s": px, "c": hexed(color), "at": [round(at[0]), round(at[1])], "r": role}
        line |= {"d": way, "al": align, **(effects or {})}
        self.lines.append(line)

    def shape(self, kind: str, color: RGB, *numbers: float) -> None:
        """Add a shape: rect x y w h [radius percent], frame x y w h thickness, disc x y r, ring x y r thickness,
        line x1 y1 x2 y2 thickness, dots x1 y x2 step, poly x1 y1 x2 y2 ..., sheet x y w h material (see SHEETS), shadow
        x y w h sigma percent, blur sigma (of all that was drawn before), and what
        fittings.py is able to build."""
        self.shapes.append([kind, hexed(color), *(round(number) for number in numbers)])

    def back(self, kind: str, color: RGB, *numbers: float) -> None:
        """Add a shape that lies behind the plane, on the ground: poles, ropes."""
        self.behind.append([kind, hexed(color), *(round(number) for number in numbers)])

    def latin(self) -> str:
        """English words or figures as they stand on signs."""
        draw = self.draw
        kind = draw.whole(0, 5)
        if kind == 0:
            return f"SINCE {draw.whole(1949, 2026)}"
        if kind == 1:
            return f"No.{draw.whole(1, 999)}"
        if kind == 2:
            return f"{draw.whole(2000, 2026)}.{draw.whole(1, 12):02}.{draw.whole(1, 28):02}"
        if kind == 3:
            return draw.pick(ENGLISH).title()
        return " ".join(draw.pick(ENGLISH) for _ in range(draw.whole(1, 2)))

    def sprinkled(self, texts: list[str], most: int) -> list[str]:
        """The texts, some replaced by English or mixed with it, as the recipe's share says; at most `most` ems."""
        mixed = []
        for text in texts:
            due = any(character in text for character in self.words.due)
            if self.draw.chance(self.world.synth.english) and not due:
                latin = self.latin()
                text = latin if self.draw.chance(0.5) else text[: max(1, most - 4)] + latin.split()[0]
                if ems(text) > most:
                    text = self.draw.pick(ENGLISH)
            mixed.append(text)
        return mixed

    def under(self, region: tuple[int, int, int, int], crop: tuple[int, int, int, int]) -> tuple[float, float]:
        """5th and 95th percentile of the luminance of the photograph under a region of the picture."""
        assert self.photograph is not None
        thumb = self.photograph.thumb
        scale = thumb.shape[1] / self.photograph.width
        zoom = crop[2] / self.width
        left, top = (crop[0] + region[0] * zoom) * scale, (crop[1] + region[1] * zoom) * scale
        right, bottom = left + region[2] * zoom * scale, top + region[3] * zoom * scale
        cut = thumb[int(top) : max(int(top) + 1, round(bottom)), int(left) : max(int(left) + 1, round(right))]
        values = np.sort(luminances(cut), axis=None)
        return float(values[int(0.05 * (values.size - 1))]), float(values[int(0.95 * (values.size - 1))])

    def on_photograph(self) -> tuple[int, int, int, int]:
        """Make a part of the photograph the ground; returns its crop: left, top, width, height."""
        assert self.photograph is not None
        crop = self.crop()
        self.ground = {"kind": "photo", "id": self.photograph.id, "crop": list(crop)}
        return crop

    def crop(self) -> tuple[int, int, int, int]:
        """A part of the photograph in the picture's aspect, over 3/4 of the largest one: left, top, width, height.

        Three of four are cut out as they are, where the photograph is large enough: sharp, and nothing to compute.
        """
        assert self.photograph is not None
        wide, high = self.photograph.width, self.photograph.height
        most = min(wide / self.width, high / self.height)
        scale = most * self.draw.real(LEAST_CROP, 1.0)
        if self.draw.chance(0.75) and 1 <= most <= 1 / LEAST_CROP:
            scale = 1
        width, height = int(self.width * scale), int(self.height * scale)
        return self.draw.whole(0, wide - width), self.draw.whole(0, high - height), width, height

    def region(self, crop: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int]:
        """Left and top of a calm place for a box of this size, px of the picture: little texture, no face, no text.

        One of the three calmest of 24 places; the texture is the gradient of the thumbnail's luma.
        """
        assert self.photograph is not None
        margin = round(0.03 * self.side)
        found = []
        for _ in range(24):
            left = self.draw.whole(margin, max(margin, self.width - width - margin))
            top = self.draw.whole(margin, max(margin, self.height - height - margin))
            found.append((self.texture(crop, (left, top, width, height)), left, top))
        _, left, top = self.draw.pick(sorted(found)[:3])
        return left, top

    def texture(self, crop: tuple[int, int, int, int], box: tuple[float, float, float, float]) -> float:
        """Mean gradient of the photograph under a box (left, top, width, height, px of the picture); faces and text
        count as very rough."""
        assert self.photograph is not None
        sums = self.photograph.texture
        scale = self.photograph.thumb.shape[1] / self.photograph.width
        zoom = crop[2] / self.width
        left, top, width, height = box
        x0, y0 = (crop[0] + left * zoom) * scale, (crop[1] + top * zoom) * scale
        x1, y1 = x0 + width * zoom * scale, y0 + height * zoom * scale
        right, bottom = len(sums[0]) - 1, len(sums) - 1
        a, b = min(int(x0), right - 1), min(int(y0), bottom - 1)
        c, d = min(max(a + 1, int(x1)), right), min(max(b + 1, int(y1)), bottom)
        return (sums[d][c] - sums[b][c] - sums[d][a] + sums[b][a]) / ((c - a) * (d - b))


ENGLISH = (
    "OPEN", "SALE", "COFFEE", "WELCOME", "FRESH", "TEA", "BOOKS", "HOTEL", "MARKET", "MUSIC", "PARK", "STUDIO",
    "DESIGN", "GARDEN", "HOME", "BAKERY", "NEW", "HELLO", "CITY", "EXPO", "SPRING", "SUMMER", "AUTUMN", "WINTER",
    "FASHION", "ART", "GALLERY", "KITCHEN", "NOODLES", "RICE", "FISH", "FRUIT", "JUICE", "FLOWER", "LIGHT", "DREAM",
    "FUTURE", "HAPPY", "LUCKY", "LOVE", "TRAVEL", "OCEAN", "RIVER", "MOUNTAIN", "FOREST", "SUN", "MOON", "STAR",
    "NIGHT", "MORNING", "WEEKEND", "FESTIVAL", "CONCERT", "CINEMA", "THEATER", "SPORT", "YOGA", "FITNESS", "SCHOOL",
    "CLASS", "LIBRARY", "MUSEUM", "HISTORY", "SCIENCE", "SPACE", "ROBOT", "PHONE", "CAMERA", "PHOTO", "PAPER", "INK",
    "COLOR", "BLUE", "GREEN", "GOLD", "SILVER", "EAST", "WEST", "NORTH", "SOUTH", "CENTER", "PLAZA", "STATION", "EXIT",
    "ENTRANCE", "TICKET", "OFFICE", "SERVICE", "QUALITY", "CLASSIC", "MODERN", "ORIGINAL", "SPECIAL", "ORGANIC", "FARM",
    "HONEY", "MILK", "BREAD", "CAKE", "PIZZA", "SUSHI", "GRILL", "BAR", "CLUB", "SHOP", "STORE", "MALL", "GIFT", "TOYS",
)  # fmt: skip
