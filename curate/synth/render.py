"""Spec to pixels and quads: a pure function of a spec and its assets.

canvas.py   what is drawn on, and how colour gets there
grounds.py  photographs, colours, paper, walls, wood
shapes.py   rectangles, discs, glass, shadows
lines.py    lines of text, glyph by glyph
planes.py   signs and notices in perspective
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from curate.synth.canvas import Bytes, Glyph, Quad, Reals, Sheet, blank, lit, spread
from curate.synth.fonts import Face
from curate.synth.grounds import draw_ground, grain, shading
from curate.synth.lines import finish, set_line
from curate.synth.planes import lay
from curate.synth.shapes import draw_shape
from curate.synth.spec import Spec, World


@dataclass
class Rendered:
    """A drawn picture. `ink` is the coverage of all glyphs, 0..255; `labels` each glyph's number from 1, if asked."""

    rgb: Bytes
    ink: Bytes
    glyphs: list[Glyph]
    lines: list[Quad]
    overlap: bool
    labels: npt.NDArray[np.uint16] | None = None

    @cached_property
    def quads(self) -> Quad:
        """The quads of all glyphs, (n, 4, 2)."""
        return np.stack([glyph.quad for glyph in self.glyphs])


def render(spec: Spec, world: World, trace: bool = False) -> Rendered:
    """Draw a spec. With `trace` every pixel of ink is labelled with its glyph, for checks of the quads."""
    cv2.setNumThreads(1)
    width, height = spec["size"]
    sheet = blank(draw_ground(spec["ground"], width, height, spec["index"], world), trace)
    plane = spec.get("plane")
    for shape in spec.get("behind", ()):
        draw_shape(sheet.rgb, shape)
    if plane:
        on = blank(draw_ground(plane["ground"], plane["w"], plane["h"], spec["index"] + 7, world), trace)
        _draw(spec, on, world, None)
        lay(sheet, on, plane)
    else:
        _draw(spec, sheet, world, shading(sheet.rgb) if spec["say"].get("shaded") else None)
    out = sheet.rgb
    if "lamp" in spec:
        out = lit(out, spread(_lamp(*spec["lamp"]), width, height))
    strength, x, y, blur, _ = spec["finish"]
    if blur:
        out = np.asarray(cv2.GaussianBlur(out, (3, 3), blur / 10), np.uint8)
    if strength:
        grain(out, strength, x, y)
    return Rendered(out, sheet.ink, sheet.glyphs, sheet.lines, sheet.overlap, sheet.labels)


def encode(rgb: Bytes, quality: int) -> bytes:
    """JPEG bytes."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("the picture could not be encoded as JPEG")
    return bytes(data)


def clean(text: str, face: Face, px: int) -> Rendered:
    """The text black on white, flat, in one row: what OCR is compared with."""
    pad = px // 2
    sheet = blank(np.full((px + 2 * pad, round(1.1 * px * len(text)) + 2 * pad, 3), 255, np.uint8), False)
    line = {"t": text, "f": face.id, "s": px, "c": "101010", "at": [pad, pad + px // 2], "d": "h", "al": "l"}
    set_line(sheet, line, face, None)
    finish(sheet)
    return Rendered(sheet.rgb, sheet.ink, sheet.glyphs, sheet.lines, sheet.overlap)


def _draw(spec: Spec, sheet: Sheet, world: World, shade: Bytes | None) -> None:
    for shape in spec["shapes"]:
        draw_shape(sheet.rgb, shape)
    for line in spec["lines"]:
        set_line(sheet, line, world.by_id[line["f"]], shade)
    finish(sheet)


def _lamp(x: int, y: int, percent: int) -> Reals:
    """Light from (x, y), in hundredths of the picture, that is weaker by `percent` at a picture's distance."""
    axis = (np.arange(16, dtype=np.float32) + 0.5) / 16
    far = np.hypot(axis[None, :] - x / 100, axis[:, None] - y / 100)
    return np.asarray(1.04 - percent / 100 * (far - 0.35), np.float32)
