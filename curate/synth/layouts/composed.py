"""Text on photographs: bare on a calm part, on a translucent panel, or on a sign that stands or hangs there."""

from __future__ import annotations

from typing import Any

from curate.synth.colors import BEFORE, INKS, RGB, luminance, mixed, readable
from curate.synth.layouts.mounting import plane, poles, ropes
from curate.synth.layouts.palette import BLACK, BOARDS, WOODS
from curate.synth.layouts.setting import block, columns, effects, gray, opposite, rows
from curate.synth.spec import Page, Unfit, hexed


def on_photograph(page: Page) -> None:
    """Text on a calm part of a photograph."""
    draw = page.draw
    crop = page.on_photograph()
    style = draw.weighted((("bare", 0.42), ("panel", 0.24), ("sign", 0.34)))
    if page.attempt >= 4:  # what cannot be read on the photograph itself gets a carrier
        style = "sign"
    count = draw.weighted(((1, 0.34), (2, 0.42), (3, 0.24)))
    vertical = draw.chance(0.25)
    texts = page.words.lines([(2, 7)] * count) if vertical else page.sprinkled(page.words.lines([(3, 8)] * count), 9)
    face = page.able(page.face(bold=True if style == "bare" and draw.chance(0.5) else None), *texts)
    width, height, px, pitch = block(page, texts, face, vertical)
    pad = round(px * (0.35 if style == "bare" else draw.real(0.3, 0.7)))  # bare text may need a panel after all
    wide, high = width + 2 * pad, height + 2 * pad
    if wide > 0.94 * page.width or high > 0.94 * page.height:
        raise Unfit("too_large")
    left, top = page.region(crop, wide, high)
    middle = (left + wide / 2, top + high / 2)
    if style == "bare":
        alone = left + pad, top + pad, width, height
        if readable(INKS, page.under(alone, crop)):
            left, top, wide, high = alone
        else:
            style = "panel"
    dark, light = page.under((left, top, wide, high), crop)
    page.layout = style
    if style == "bare":
        inks = readable(INKS, (dark, light))
        ink = draw.pick(inks)
        extra = effects(page, px, ink, inks, busy=True)
        if page.attempt >= 2:
            extra = {"out": [max(2, px // 14), hexed(opposite(ink))]}
        page.say = {"carrier": "", "ink": hexed(ink), "shaded": 1}
    elif style == "panel":
        ink, extra = _panel(page, (left, top, wide, high), (dark, light)), {}
    else:
        ink, extra = _sign(page, (left, top, wide, high), px)
        middle = (wide / 2, high / 2)
    if vertical:
        columns(page, texts, face, px, ink, middle, effects=extra)
    else:
        rows(page, texts, face, px, ink, middle, pitch, "c", extra)
    page.say |= {"way": "v" if vertical else "h", "box": [left, top, left + wide, top + high]}


def _panel(page: Page, box: tuple[int, int, int, int], under: tuple[float, float]) -> RGB:
    """A translucent panel; returns the ink that can be read on it, whatever shines through."""
    draw = page.draw
    color = draw.pick(((20, 20, 22), (250, 250, 248), (30, 40, 70), (120, 18, 24), (246, 240, 224), (16, 60, 44)))
    percent = draw.whole(62, 86)
    # Luminance is not linear in sRGB, but monotonic: the ends of the mix bound everything under the panel.
    mixes = [luminance(mixed(gray(value), color, percent / 100)) for value in under]
    inks = readable(INKS, (mixes[0], mixes[1]))
    if not inks:
        percent, inks = 92, readable(INKS, (luminance(color),), BEFORE + 1.5)
    page.shape("glass", color, *box, percent, draw.pick((0, 6, 14)))
    ink = draw.pick(inks)
    page.say = {"carrier": "panel", "paper": hexed(color), "ink": hexed(ink)}
    return ink


def _sign(page: Page, box: tuple[int, int, int, int], px: int) -> tuple[RGB, dict[str, Any]]:
    """A board in the scene, on poles, on ropes or as if on a wall; returns its ink and the effects of its letters."""
    draw = page.draw
    _, top, wide, high = box
    board, fitting = draw.pick(BOARDS)
    ink = draw.pick(readable(fitting, (luminance(board),)))
    wooden = board in WOODS
    ground = {"kind": "wood" if wooden else "metal", "c": hexed(board), "c2": hexed(mixed(board, BLACK, 0.12))}
    plane(page, box, ground, 24)
    edge = max(2, px // 16)
    page.shape("frame", mixed(board, ink, 0.6), edge, edge, wide - 2 * edge, high - 2 * edge, edge)
    page.plane["round"] = draw.pick((0, 0, 4, 7))
    page.plane["shadow"] = [round(draw.real(-5, 5)), round(draw.real(3, 8)), 7, 55]
    held = draw.weighted((("poles", 0.45), ("ropes", 0.2), ("wall", 0.35)))
    if held == "poles" and top + high < 0.86 * page.height:
        poles(page, 1 if wide < 0.35 * page.width else 2)
    elif held == "ropes" and 0.05 * page.height < top < 0.4 * page.height:
        ropes(page)
    page.say = {"carrier": "wood" if wooden else "sign", "paper": hexed(board), "ink": hexed(ink)}
    return ink, {"sh": [1, 2, 1, 40]} if draw.chance(0.3) else {}
