"""The layouts: plain text, text on photographs, and things that carry text in the street and in print.

Each is a function that writes on a Page. Coordinates are px; `s` is the shorter side of the picture. `say` holds what
the captions tell: the carrier, its colour, the place, the way of writing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from curate.synth.colors import BEFORE, GROUNDS, INKS, RGB, luminance, mixed, ratio, readable
from curate.synth.fonts import Face
from curate.synth.spec import Page, Unfit, ems, hexed

WHITE: RGB = (250, 250, 248)
BLACK: RGB = (20, 20, 20)
RED: RGB = (186, 26, 30)
GOLD: RGB = (240, 196, 60)

# Ground, ink, second ink, accent of posters and cards; every ink is readable on its ground (a test looks).
THEMES: tuple[tuple[RGB, RGB, RGB, RGB], ...] = (
    ((246, 240, 224), (140, 16, 24), (48, 40, 36), (196, 22, 28)),
    ((24, 32, 58), (240, 206, 90), (232, 236, 244), (196, 60, 50)),
    ((250, 250, 248), (20, 20, 20), (70, 70, 74), (235, 110, 20)),
    ((222, 236, 244), (16, 42, 110), (40, 60, 90), (24, 90, 190)),
    ((232, 240, 220), (14, 70, 44), (44, 66, 44), (70, 150, 90)),
    ((150, 18, 26), (250, 214, 110), (252, 236, 214), (214, 60, 40)),
    ((18, 20, 24), (250, 250, 248), (190, 196, 204), (0, 150, 160)),
    ((252, 226, 228), (130, 20, 70), (92, 40, 62), (226, 90, 130)),
    ((255, 214, 64), (20, 20, 20), (70, 40, 16), (196, 22, 28)),
    ((10, 84, 80), (250, 240, 214), (214, 232, 224), (240, 150, 60)),
    ((240, 236, 248), (66, 32, 120), (62, 52, 84), (140, 90, 200)),
    ((214, 196, 160), (58, 30, 14), (70, 42, 24), (140, 16, 24)),
)


def plain(page: Page) -> None:
    """One to four lines on a plain ground: across, downwards from the right, or along an arc."""
    draw, s = page.draw, page.side
    page.layout = "plain"
    ground = draw.pick(GROUNDS)
    other = mixed(ground, draw.pick((WHITE, BLACK)), draw.real(0.06, 0.16))
    kind = draw.weighted((("solid", 0.5), ("gradient", 0.25), ("paper", 0.25)))
    if not readable(INKS, (luminance(ground), luminance(other))):
        other = ground  # a middling green towards white: nothing is readable on all of it
    page.ground = {"kind": kind, "c": hexed(ground), "c2": hexed(other), "way": draw.pick("vhd")}
    inks = readable(INKS, (luminance(ground), luminance(other)))
    ink = draw.pick(inks)
    way = draw.weighted((("h", 0.62), ("v", 0.25), ("a", 0.13)))
    count = 1 if way == "a" else draw.weighted(((1, 0.28), (2, 0.3), (3, 0.27), (4, 0.15)))
    face = page.face()
    if way == "a":
        _arc(page, face, ink, inks)
    elif way == "v":
        texts = page.words.lines([(2, 7)] * count)
        face = page.able(face, *texts)
        longest = max(map(len, texts))
        px = page.fit(["国" * count], face, page.width * 0.8 / 1.45, min(page.height * 0.84 / longest / 1.06, 0.26 * s))
        _columns(page, texts, face, px, ink, (page.width / 2, page.height / 2), effects=_effects(page, px, ink, inks))
    else:
        texts = page.sprinkled(page.words.lines([(2, 8)] * count), 9)
        face = page.able(face, *texts)
        px = page.fit(texts, face, page.width * draw.real(0.55, 0.9), min(page.height * 0.8 / count / 1.4, 0.3 * s))
        effects = _effects(page, px, ink, inks)
        if count <= 2 and draw.chance(0.2) and px * max(map(ems, texts)) < 0.75 * page.width:
            effects["turn"] = round(10 * max(-12.0, min(12.0, draw.bell(6))))
        pitch = px * draw.real(1.25, 1.6)
        middle = page.height / 2 + draw.real(-0.5, 0.5) * max(0, 0.8 * page.height - count * pitch)
        _rows(page, texts, face, px, ink, (page.width / 2, middle), pitch, draw.pick("cccl"), effects)
    if way == "a" and len(page.lines) > 1:
        way = "b"
    page.say = {"ground": page.ground["c"], "ink": hexed(ink), "way": way, "box": [0, 0, page.width, page.height]}


def on_photograph(page: Page) -> None:
    """Text on a calm part of a photograph: bare, on a translucent panel, or on a sign that stands in it."""
    draw = page.draw
    crop = page.crop()
    assert page.photograph is not None
    page.ground = {"kind": "photo", "id": page.photograph.id, "crop": list(crop)}
    style = draw.weighted((("bare", 0.42), ("panel", 0.24), ("sign", 0.34)))
    if page.attempt >= 4:  # what cannot be read on the photograph itself gets a carrier
        style = "sign"
    count = draw.weighted(((1, 0.34), (2, 0.42), (3, 0.24)))
    vertical = draw.chance(0.25)
    texts = page.words.lines([(2, 7)] * count) if vertical else page.sprinkled(page.words.lines([(3, 8)] * count), 9)
    face = page.able(page.face(bold=True if style == "bare" and draw.chance(0.5) else None), *texts)
    width, height, px, pitch = _block(page, texts, face, vertical)
    pad = 0 if style == "bare" else round(px * draw.real(0.3, 0.7))
    wide, high = width + 2 * pad, height + 2 * pad
    if wide > 0.94 * page.width or high > 0.94 * page.height:
        raise Unfit("too_large")
    left, top = page.region(crop, wide, high)
    dark, light = page.under((left, top, wide, high), crop)
    if style == "bare" and not readable(INKS, (dark, light)):
        style = "panel"
    page.layout = style
    middle = (left + wide / 2, top + high / 2)
    if style == "bare":
        inks = readable(INKS, (dark, light))
        ink = draw.pick(inks)
        effects = _effects(page, px, ink, inks, busy=True)
        if page.attempt >= 2:
            effects = {"out": [max(2, px // 14), hexed(_opposite(ink))]}
        page.say = {"carrier": "", "ink": hexed(ink), "shaded": 1}
    else:
        ink, effects = _carrier(page, style, (left, top, wide, high), (dark, light), px)
        if style == "sign":
            middle = (wide / 2, high / 2)
    if vertical:
        _columns(page, texts, face, px, ink, middle, effects=effects)
    else:
        _rows(page, texts, face, px, ink, middle, pitch, "c", effects)
    page.say |= {"way": "v" if vertical else "h", "box": [left, top, left + wide, top + high]}


def poster(page: Page) -> None:
    """A poster: a title, a line below it, details, and shapes of one accent colour."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "poster"
    ground, ink, second, accent = draw.pick(THEMES)
    other = mixed(ground, draw.pick((WHITE, BLACK)), 0.08)
    page.ground = {
        "kind": draw.pick(("solid", "gradient", "paper")),
        "c": hexed(ground),
        "c2": hexed(other),
        "way": "v",
    }
    style = draw.pick(("band", "disc", "classic", "corner", "frame"))
    title, under, *details = page.words.lines([(2, 4 if style == "disc" else 6), (5, 10), (4, 9), (4, 9)])
    face = page.able(page.face(bold=True), title)
    small = page.able(page.face(px=0.06 * h), under, *details)
    if style == "classic":
        _classic(page, title, [under, *details], (ink, second, accent))
        return
    on_accent = draw.pick(readable((WHITE, BLACK, GOLD, ink), (luminance(accent),), 4.5) or (WHITE,))
    if ratio(luminance(on_accent), luminance(accent)) < BEFORE:
        style = "frame"
    lines: list[tuple[str, Face, float, RGB, str]]
    if style == "band":
        edge = 0.68 * h
        page.shape("rect", accent, 0, edge, w, h - edge)
        page.shape("line", accent, 0.1 * w, edge - 0.05 * h, 0.9 * w, edge - 0.05 * h, 2)
        px = page.fit([title], face, 0.84 * w, 0.26 * h)
        page.line(title, face, px, ink, (w / 2, 0.27 * h), "title")
        page.line(under, small, page.fit([under], small, 0.76 * w, 0.075 * h), second, (w / 2, 0.53 * h), "under")
        px = page.fit(details, small, 0.8 * w, 0.072 * h)
        for number, text in enumerate(details):
            page.line(text, small, px, on_accent, (w / 2, edge + (h - edge) * (0.32 + 0.38 * number)), "detail")
    elif style == "disc":
        radius = 0.27 * s
        page.shape("disc", accent, w / 2, 0.36 * h, radius)
        page.shape("ring", accent, w / 2, 0.36 * h, radius * 1.12, 3)
        rows = [title[:2], title[2:]] if len(title) > 2 else [title]
        px = page.fit(rows, face, 1.25 * radius, radius * 0.8)
        for number, text in enumerate(rows):
            at = 0.36 * h + (number - (len(rows) - 1) / 2) * px * 1.12
            page.line(text, face, px, on_accent, (w / 2, at), "title")
        px = page.fit([under, *details], small, 0.8 * w, 0.07 * h)
        for number, text in enumerate([under, *details]):
            page.line(text, small, px, ink if number == 0 else second, (w / 2, (0.72 + 0.1 * number) * h), "detail")
    elif style == "corner":
        page.shape("poly", accent, 0, 0, 0.42 * w, 0, 0, 0.3 * h)
        page.shape("poly", mixed(accent, ground, 0.45), 0.42 * w, 0, 0.5 * w, 0, 0, 0.36 * h, 0, 0.3 * h)
        page.shape("disc", accent, 0.86 * w, 0.87 * h, 0.07 * s)
        left = 0.1 * w
        px = page.fit([title], face, 0.8 * w, 0.2 * h)
        page.line(title, face, px, ink, (left, 0.46 * h), "title", align="l")
        page.shape("rect", accent, left, 0.46 * h + px * 0.66, 0.16 * w, max(3, 0.008 * s))
        px = page.fit([under, *details], small, 0.72 * w, 0.064 * h)
        for number, text in enumerate([under, *details]):
            start = (left, (0.64 + 0.095 * number) * h)
            page.line(text, small, px, ink if number == 0 else second, start, "detail", align="l")
    else:
        inset = 0.05 * s
        page.shape("frame", accent, inset, inset, w - 2 * inset, h - 2 * inset, max(2, 0.008 * s))
        page.shape("frame", accent, 1.4 * inset, 1.4 * inset, w - 2.8 * inset, h - 2.8 * inset, 1)
        lines = [(title, face, 0.17 * h, ink, "title"), (under, small, 0.075 * h, second, "under")]
        lines += [(text, small, 0.06 * h, second, "detail") for text in details]
        for (text, chosen, most, color, role), at in zip(lines, (0.3, 0.5, 0.7, 0.8), strict=True):
            page.line(text, chosen, page.fit([text], chosen, 0.74 * w, most), color, (w / 2, at * h), role)
        for side in (-1, 1):
            page.shape("line", accent, w / 2 + side * 0.06 * w, 0.6 * h, w / 2 + side * 0.24 * w, 0.6 * h, 2)
        page.shape("disc", accent, w / 2, 0.6 * h, 0.012 * s)
    page.say = {"ground": hexed(ground), "ink": hexed(ink), "accent": hexed(accent), "way": "h", "box": [0, 0, w, h]}


def _classic(page: Page, title: str, others: list[str], colors: tuple[RGB, RGB, RGB]) -> None:
    """A poster set from the right in columns: the title in the first one, then the text."""
    s, w, h = page.side, page.width, page.height
    ink, second, accent = colors
    face = page.able(page.face(("kai", "serif")), title)
    small = page.able(page.face(("kai", "serif"), px=0.7 * h / max(map(len, others)) / 1.1), *others)
    px = page.fit(["国"], face, w, min(0.74 * h / len(title) / 1.08, 0.19 * s))
    right = 0.84 * w
    _columns(page, [title], face, px, ink, (right - px / 2, 0.11 * h + len(title) * px * 1.08 / 2), role="title")
    size = page.fit(["国"], small, w, min(0.7 * h / max(map(len, others)) / 1.1, 0.075 * s))
    x = right - px - 1.1 * size
    for text in others:
        page.line(text, small, size, second, (x, 0.13 * h + len(text) * size * 1.1 / 2), "detail", "v")
        x -= 1.75 * size
    inset = 0.045 * s
    page.shape("frame", accent, inset, inset, w - 2 * inset, h - 2 * inset, 2)
    page.shape("line", accent, 0.12 * w, 0.86 * h, 0.5 * w, 0.86 * h, 2)
    page.shape("disc", accent, 0.16 * w + 0.03 * s, 0.2 * h, 0.055 * s)
    page.say = {"ground": page.ground["c"], "ink": hexed(ink), "accent": hexed(accent), "way": "v", "box": [0, 0, w, h]}


def couplet(page: Page) -> None:
    """A spring couplet: red paper on both sides of a door and one above it; the right-hand column is read first."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "couplet"
    count = draw.pick((4, 5, 7))
    right, left, above = page.words.lines([(count, count), (count, count), (4, 4)])
    wall = draw.pick(((206, 196, 178), (178, 176, 172), (222, 214, 200), (150, 96, 78), (196, 188, 182)))
    page.ground = {
        "kind": "brick" if draw.chance(0.5) else "wall",
        "c": hexed(wall),
        "c2": hexed(mixed(wall, BLACK, 0.2)),
    }
    wood = draw.pick(((104, 30, 24), (92, 58, 34), (70, 42, 28), (52, 74, 66), (44, 46, 52)))
    dark, light = mixed(wood, BLACK, 0.45), mixed(wood, WHITE, 0.14)
    strip = 0.145 * w
    x0, x1, y0 = 0.27 * w, 0.73 * w, 0.235 * h
    page.shape("rect", dark, x0 - 0.02 * w, y0 - 0.02 * h, x1 - x0 + 0.04 * w, h)
    page.shape("rect", mixed(wall, BLACK, 0.55), 0, 0.965 * h, w, 0.04 * h)
    for side in (0, 1):
        a = x0 + side * (x1 - x0) / 2 + 2
        leaf = (x1 - x0) / 2 - 4
        page.shape("rect", wood, a, y0, leaf, 0.965 * h - y0)
        for part in (0, 1):
            top, high = y0 + (0.05 + 0.38 * part) * h, (0.3 if part == 0 else 0.26) * h
            page.shape("frame", dark, a + 0.16 * leaf, top, 0.68 * leaf, high, 3)
            page.shape("frame", light, a + 0.16 * leaf + 3, top + 3, 0.68 * leaf - 6, high - 6, 1)
        page.shape("ring", GOLD, a + (0.86 if side == 0 else 0.14) * leaf, 0.6 * h, 0.018 * s, 3)
    paper = draw.pick((RED, (200, 34, 32), (172, 20, 26)))
    ink = draw.pick(readable((BLACK, GOLD, (250, 214, 110), WHITE), (luminance(paper),), 3.6))
    if ratio(luminance(ink), luminance(paper)) < BEFORE:
        ink = (255, 226, 120)
    face = page.able(page.face(("kai", "serif", "hand")), right, left, above)
    high = 0.7 * h
    px = page.fit(["国"], face, strip * 0.72, high * 0.92 / count / 1.06)
    for text, x, role in ((right, w - 0.13 * w, "right"), (left, 0.13 * w, "left")):
        page.shape("rect", mixed(wall, BLACK, 0.5), x - strip / 2 + 3, 0.215 * h + 4, strip, high)
        page.shape("rect", paper, x - strip / 2, 0.215 * h, strip, high)
        page.shape("frame", mixed(paper, GOLD, 0.5), x - strip / 2 + 4, 0.215 * h + 4, strip - 8, high - 8, 1)
        gap = (high * 0.9 - count * px) / count
        page.line(text, face, px, ink, (x, 0.215 * h + high / 2), role, "v", effects={"gap": round(gap)})
    px = page.fit([above], face, 0.42 * w, 0.11 * h)
    page.shape("rect", mixed(wall, BLACK, 0.5), 0.26 * w + 3, 0.045 * h + 4, 0.48 * w, 0.145 * h)
    page.shape("rect", paper, 0.26 * w, 0.045 * h, 0.48 * w, 0.145 * h)
    page.shape("frame", mixed(paper, GOLD, 0.5), 0.26 * w + 4, 0.045 * h + 4, 0.48 * w - 8, 0.145 * h - 8, 1)
    page.line(above, face, px, ink, (w / 2, 0.045 * h + 0.0725 * h), "above")
    page.say = {"ground": hexed(wall), "ink": hexed(ink), "paper": hexed(paper), "way": "v", "box": [0, 0, w, h]}


def menu(page: Page) -> None:
    """A list of things with their prices under a title."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "list"
    ground, ink, second, accent = draw.pick(THEMES)
    other = mixed(ground, draw.pick((WHITE, BLACK)), 0.06)
    page.ground = {"kind": draw.pick(("solid", "paper", "paper")), "c": hexed(ground), "c2": hexed(other), "way": "v"}
    count = draw.whole(3, 5)
    title, *items = page.words.lines([(2, 4)] + [(2, 5)] * count)
    head = page.able(page.face(bold=True), title)
    face = page.able(page.face(px=min(0.31 * h / count, 0.085 * s)), *items, "¥0123456789")
    px = page.fit([title], head, 0.6 * w, 0.14 * h)
    page.line(title, head, px, ink, (w / 2, 0.16 * h), "title")
    page.shape("line", accent, 0.12 * w, 0.27 * h, 0.88 * w, 0.27 * h, 3)
    page.shape("line", accent, 0.12 * w, 0.285 * h, 0.88 * w, 0.285 * h, 1)
    step = 0.62 * h / count
    px = page.fit(items, face, 0.48 * w, min(0.5 * step, 0.085 * s))
    for number, text in enumerate(items):
        y = 0.33 * h + step * (number + 0.4)
        price = f"¥{draw.whole(6, 128)}"
        page.line(text, face, px, second, (0.13 * w, y), "item", align="l")
        page.shape(
            "dots", accent, 0.13 * w + (ems(text) + 0.5) * px, y + 0.3 * px, 0.87 * w - (ems(price) + 0.4) * px, 9
        )
        page.line(price, face, px, ink, (0.87 * w, y), "price", align="r")
    page.shape("frame", accent, 0.05 * s, 0.05 * s, w - 0.1 * s, h - 0.1 * s, 2)
    page.say = {"ground": hexed(ground), "ink": hexed(second), "accent": hexed(accent), "way": "h", "box": [0, 0, w, h]}


def notice(page: Page) -> None:
    """A sheet of paper on a board: a heading, a few lines, a date."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "notice"
    board = draw.pick(((150, 110, 70), (96, 112, 104), (70, 84, 110), (178, 150, 112), (84, 84, 88)))
    page.ground = {"kind": "wall", "c": hexed(board), "c2": hexed(mixed(board, BLACK, 0.2))}
    wide, high = round(draw.real(0.68, 0.78) * w), round(draw.real(0.72, 0.8) * h)
    paper = draw.pick(((252, 250, 244), (246, 240, 220), (250, 236, 190), (226, 238, 246)))
    left, top = (w - wide) // 2, (h - high) // 2
    _plane(
        page, (left, top, wide, high), {"kind": "paper", "c": hexed(paper), "c2": hexed(mixed(paper, BLACK, 0.04))}, 4
    )
    page.plane["shadow"] = [4, 6, 6, 45]
    for x in (0.5,):
        page.shape("disc", draw.pick((RED, (24, 90, 190), (0, 125, 70))), x * wide, 0.035 * high, 0.016 * s)
    count = draw.whole(3, 4)
    title, *body = page.words.lines([(2, 4)] + [(5, 9)] * count)
    head = page.able(page.face(bold=True), title)
    face = page.able(page.face(px=0.0585 * high), *body, "0123456789年月日")
    ink = draw.pick((BLACK, (60, 60, 62), (16, 42, 110)))
    red = draw.pick(((170, 16, 24), ink))
    page.line(title, head, page.fit([title], head, 0.6 * wide, 0.13 * high), red, (wide / 2, 0.16 * high), "title")
    px = page.fit(body, face, 0.8 * wide, 0.075 * high)
    step = min(0.5 * high / count, 1.9 * px)
    for number, text in enumerate(body):
        page.line(text, face, px, ink, (0.1 * wide, 0.36 * high + step * number), "detail", align="l")
    date = f"{draw.whole(2019, 2026)}年{draw.whole(1, 12)}月{draw.whole(1, 28)}日"
    small = page.fit([date], face, 0.6 * wide, 0.06 * high)
    page.line(date, face, small, ink, (0.9 * wide, 0.9 * high), "date", align="r")
    page.say = {
        "ground": hexed(board),
        "ink": hexed(ink),
        "paper": hexed(paper),
        "way": "h",
        "box": [left, top, left + wide, top + high],
    }


def shop(page: Page) -> None:
    """The front of a shop: a signboard above a window and a door."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "shop"
    wall = draw.pick(((168, 92, 70), (196, 186, 172), (120, 122, 126), (214, 206, 190), (92, 70, 60)))
    page.ground = {"kind": "brick", "c": hexed(wall), "c2": hexed(mixed(wall, BLACK, 0.25))}
    board, ink = draw.pick(
        (
            ((70, 40, 22), GOLD), ((20, 20, 22), WHITE), ((120, 18, 24), (250, 214, 110)), ((12, 70, 52), WHITE),
            ((20, 50, 110), WHITE), ((246, 240, 224), (140, 16, 24)), ((250, 250, 248), BLACK), ((240, 196, 40), BLACK),
        )
    )  # fmt: skip
    (name,) = page.words.lines([(2, 6)])
    (small,) = page.words.lines([(3, 6)])
    latin = page.latin()
    face = page.able(page.face(bold=True), name)
    other = page.able(page.face(px=0.05 * h), small, latin)
    top, high = 0.12 * h, 0.27 * h
    page.shape("rect", mixed(wall, BLACK, 0.6), 0.055 * w + 5, top + 7, 0.89 * w, high)
    page.shape("rect", board, 0.055 * w, top, 0.89 * w, high)
    page.shape("frame", mixed(board, ink, 0.45), 0.055 * w + 6, top + 6, 0.89 * w - 12, high - 12, 2)
    page.line(name, face, page.fit([name], face, 0.78 * w, 0.145 * h), ink, (w / 2, top + 0.41 * high), "title")
    px = page.fit([latin], other, 0.7 * w, 0.052 * h)
    page.line(latin, other, px, ink, (w / 2, top + 0.8 * high), "under")
    glass, frame = draw.pick(
        (((44, 56, 66), (30, 28, 28)), ((60, 72, 70), (236, 232, 222)), ((240, 214, 160), (60, 40, 26)))
    )
    y = 0.46 * h
    page.shape("rect", frame, 0.08 * w, y, 0.5 * w, 0.4 * h)
    page.shape("rect", glass, 0.095 * w, y + 0.015 * h, 0.47 * w, 0.37 * h)
    page.shape(
        "poly",
        mixed(glass, WHITE, 0.12),
        0.12 * w,
        y + 0.385 * h,
        0.28 * w,
        y + 0.015 * h,
        0.36 * w,
        y + 0.015 * h,
        0.2 * w,
        y + 0.385 * h,
    )
    page.shape("rect", frame, 0.64 * w, y, 0.28 * w, h)
    page.shape("rect", glass, 0.665 * w, y + 0.025 * h, 0.23 * w, 0.45 * h)
    page.shape("disc", GOLD, 0.68 * w, 0.74 * h, 0.012 * s)
    page.shape("rect", mixed(wall, BLACK, 0.6), 0, 0.93 * h, w, 0.07 * h)
    inks = readable(
        (WHITE, BLACK, (250, 214, 110), (140, 16, 24)), (luminance(glass), luminance(mixed(glass, WHITE, 0.12)))
    )
    if inks:
        px = page.fit([small], other, 0.4 * w, 0.075 * h)
        page.line(small, other, px, draw.pick(inks), (0.33 * w, y + 0.2 * h), "detail")
    page.say = {
        "ground": hexed(wall),
        "ink": hexed(ink),
        "paper": hexed(board),
        "way": "h",
        "box": [0.055 * w, top, 0.945 * w, top + high],
    }
    page.say["box"] = [round(value) for value in page.say["box"]]


def road(page: Page) -> None:
    """A road sign under the sky: white on blue, green or brown, with an arrow."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "road"
    sky = draw.pick(((150, 190, 226), (196, 208, 218), (118, 158, 206), (226, 214, 196)))
    page.ground = {"kind": "gradient", "c": hexed(sky), "c2": hexed(mixed(sky, WHITE, 0.55)), "way": "v"}
    hill = draw.pick(((92, 120, 84), (110, 128, 110), (120, 116, 104)))
    page.shape("poly", hill, 0, 0.86 * h, 0.3 * w, 0.76 * h, 0.62 * w, 0.84 * h, w, 0.78 * h, w, h, 0, h)
    page.shape("poly", mixed(hill, BLACK, 0.3), 0, 0.93 * h, 0.5 * w, 0.88 * h, w, 0.94 * h, w, h, 0, h)
    for x in (0.3, 0.7):
        page.shape("rect", (120, 122, 126), x * w - 0.012 * w, 0.3 * h, 0.024 * w, 0.7 * h)
        page.shape("rect", (164, 166, 170), x * w - 0.012 * w, 0.3 * h, 0.008 * w, 0.7 * h)
    board = draw.pick(((16, 74, 160), (6, 104, 66), (100, 58, 30)))
    top, high = 0.16 * h, 0.46 * h
    page.shape("rect", WHITE, 0.09 * w, top, 0.82 * w, high, 5)
    page.shape("rect", board, 0.09 * w + 5, top + 5, 0.82 * w - 10, high - 10, 5)
    place, other = page.words.lines([(2, 4), (2, 4)])
    place += draw.pick(("路", "街", "站", "桥", "大道", "广场"))
    latin = f"{draw.pick(('North', 'South', 'East', 'West', 'Central'))} {draw.pick(ROADS)}"
    face = page.able(page.face(("sans", "round")), place, other, latin)
    page.line(
        place,
        face,
        page.fit([place], face, 0.62 * w, 0.15 * h),
        WHITE,
        (0.13 * w, top + 0.27 * high),
        "title",
        align="l",
    )
    page.line(
        latin,
        face,
        page.fit([latin], face, 0.6 * w, 0.052 * h),
        WHITE,
        (0.13 * w, top + 0.56 * high),
        "under",
        align="l",
    )
    far = f"{other} {draw.whole(1, 48)}km".replace(" ", "")
    page.line(
        far, face, page.fit([far], face, 0.6 * w, 0.085 * h), WHITE, (0.13 * w, top + 0.81 * high), "detail", align="l"
    )
    x, y, r = 0.83 * w, top + 0.34 * high, 0.05 * s
    page.shape("rect", WHITE, x - 0.28 * r, y - 0.2 * r, 0.56 * r, 2.4 * r)
    page.shape("poly", WHITE, x, y - 1.5 * r, x + r, y, x - r, y)
    page.say = {"ground": hexed(sky), "ink": hexed(WHITE), "paper": hexed(board), "way": "h"}
    page.say["box"] = [round(v) for v in (0.09 * w, top, 0.91 * w, top + high)]


def banner(page: Page) -> None:
    """A long cloth banner across a wall, a little askew."""
    draw, w, h = page.draw, page.width, page.height
    page.layout = "banner"
    wall = draw.pick(((196, 190, 180), (150, 150, 154), (178, 120, 92), (214, 210, 200)))
    page.ground = {"kind": draw.pick(("wall", "brick")), "c": hexed(wall), "c2": hexed(mixed(wall, BLACK, 0.22))}
    cloth = draw.pick((RED, RED, (24, 84, 170), (0, 110, 70), (238, 196, 40)))
    ink = draw.pick(readable((WHITE, (250, 220, 90), BLACK), (luminance(cloth),)))
    texts = page.words.lines([(7, 10)] if draw.chance(0.6) else [(6, 9), (6, 9)])
    face = page.able(page.face(bold=True, px=0.86 * 0.9 * w / 10), *texts)
    wide = round(0.9 * w)
    px = page.fit(texts, face, 0.86 * wide, 0.12 * h)
    high = round(px * (0.9 + 1.25 * len(texts)))
    left, top = (w - wide) // 2, round(draw.real(0.18, 0.62) * (h - high))
    _plane(
        page, (left, top, wide, high), {"kind": "cloth", "c": hexed(cloth), "c2": hexed(mixed(cloth, BLACK, 0.1))}, 3
    )
    page.plane["shadow"] = [3, 7, 5, 50]
    for corner in ((0, 0), (w, 0)):
        end = page.plane["quad"][0:2] if corner[0] == 0 else page.plane["quad"][2:4]
        page.ground.setdefault("ropes", []).append([corner[0], max(0, top - round(0.1 * h)), *end])
    _rows(page, texts, face, px, ink, (wide / 2, high / 2), px * 1.25, "c", {})
    page.say = {
        "ground": hexed(wall),
        "ink": hexed(ink),
        "paper": hexed(cloth),
        "way": "h",
        "box": [left, top, left + wide, top + high],
    }


def neon(page: Page) -> None:
    """Glowing letters on a dark wall at night."""
    draw, w, h = page.draw, page.width, page.height
    page.layout = "neon"
    wall = draw.pick(((26, 24, 30), (20, 26, 34), (34, 24, 24)))
    page.ground = {"kind": "brick", "c": hexed(wall), "c2": hexed(mixed(wall, BLACK, 0.4))}
    glows = ((255, 90, 160), (90, 220, 255), (255, 200, 80), (130, 255, 150), (255, 120, 70))
    first, second = draw.pick(glows), draw.pick(glows)
    title, under = page.words.lines([(2, 5), (3, 7)])
    (under,) = page.sprinkled([under], 8)
    face = page.able(page.face(("sans", "round")), title)
    other = page.able(page.face(("sans", "round", "kai")), under)
    px = page.fit([title], face, 0.78 * w, 0.24 * h)
    top = draw.real(0.36, 0.46) * h
    page.line(title, face, px, mixed(first, WHITE, 0.72), (w / 2, top), "title", effects={"glow": hexed(first)})
    small = page.fit([under], other, 0.7 * w, 0.09 * h)
    page.line(
        under,
        other,
        small,
        mixed(second, WHITE, 0.72),
        (w / 2, top + 0.95 * px + small),
        "under",
        effects={"glow": hexed(second)},
    )
    if draw.chance(0.6):
        edge = 0.08 * w
        page.shape("neonframe", second, edge, top - px * 0.95, w - 2 * edge, 2.6 * px + 2 * small, 4)
    page.say = {"ground": hexed(wall), "ink": hexed(first), "way": "h", "box": [0, 0, w, h]}


def _block(page: Page, texts: list[str], face: Face, vertical: bool) -> tuple[int, int, int, float]:
    """Width and height of a block of lines, px, its size and pitch, at a random scale."""
    draw, s = page.draw, page.side
    longest = max(map(ems, texts))
    if vertical:
        most = min(0.8 * page.height / longest / 1.06, 0.8 * page.width / len(texts) / 1.45, 0.17 * s)
        px = page.fit(["国"], face, page.width, max(face.min_px, draw.real(0.6, 1.0) * most))
        return math.ceil(len(texts) * px * 1.45), math.ceil(longest * px * 1.06), px, px * 1.45
    most = min(0.86 * page.width / longest, 0.15 * s)
    px = page.fit(["国"], face, page.width, max(face.min_px, draw.real(0.55, 1.0) * most))
    if px * longest > 0.9 * page.width:
        raise Unfit("too_small")
    pitch = px * draw.real(1.25, 1.45)
    return math.ceil(px * longest), math.ceil(pitch * (len(texts) - 1) + 1.15 * px), px, pitch


def _carrier(
    page: Page, style: str, box: tuple[int, int, int, int], under: tuple[float, float], px: int
) -> tuple[RGB, dict[str, Any]]:
    """A panel or sign over a photograph; returns the ink that can be read on it and its effects."""
    draw = page.draw
    left, top, wide, high = box
    if style == "panel":
        color = draw.pick(((20, 20, 22), (250, 250, 248), (30, 40, 70), (120, 18, 24), (246, 240, 224), (16, 60, 44)))
        percent = draw.whole(62, 86)
        # Luminance is not linear in sRGB, but monotonic: the ends of the mix bound everything under the panel.
        mixes = [luminance(mixed(_gray(value), color, percent / 100)) for value in under]
        inks = readable(INKS, (mixes[0], mixes[1]))
        if not inks:
            percent, inks = 92, readable(INKS, (luminance(color),), BEFORE + 1.5)
        page.shape("glass", color, left, top, wide, high, percent, draw.pick((0, 6, 14)))
        ink = draw.pick(inks)
        page.say = {"carrier": "panel", "paper": hexed(color), "ink": hexed(ink)}
        return ink, {}
    board, fitting = draw.pick(BOARDS)
    ink = draw.pick(readable(fitting, (luminance(board),)))
    kind = draw.pick(("wood", "wood", "wall")) if board in WOODS else draw.pick(("solid", "paper", "wall"))
    _plane(page, box, {"kind": kind, "c": hexed(board), "c2": hexed(mixed(board, BLACK, 0.12))}, 8)
    edge = max(2, px // 16)
    page.shape("frame", mixed(board, ink, 0.6), edge, edge, wide - 2 * edge, high - 2 * edge, edge)
    page.plane["round"] = draw.pick((0, 0, 5, 9))
    page.plane["shadow"] = [round(draw.real(-5, 5)), round(draw.real(3, 8)), 7, 55]
    page.say = {"carrier": "wood" if kind == "wood" else "sign", "paper": hexed(board), "ink": hexed(ink)}
    return ink, {"sh": [1, 2, 1, 40]} if draw.chance(0.3) else {}


WOODS: tuple[RGB, ...] = ((110, 72, 42), (70, 44, 26), (196, 160, 112))
BOARDS: tuple[tuple[RGB, tuple[RGB, ...]], ...] = (
    ((110, 72, 42), (WHITE, (250, 240, 214), (255, 226, 120))),
    ((70, 44, 26), (WHITE, GOLD)),
    ((196, 160, 112), (BLACK, (60, 26, 12))),
    ((250, 250, 246), (BLACK, (196, 22, 28), (16, 42, 110))),
    ((246, 238, 214), (BLACK, (140, 16, 24))),
    ((20, 76, 160), (WHITE,)),
    ((8, 104, 66), (WHITE,)),
    ((176, 22, 28), (WHITE, (255, 236, 170))),
    ((244, 200, 40), (BLACK,)),
    ((24, 26, 30), (WHITE, (250, 214, 110), (120, 200, 240))),
    ((36, 62, 54), (WHITE, (250, 240, 200))),
)
ROADS = ("Road", "Street", "Avenue", "Bridge", "Station", "Square")


def _plane(page: Page, box: tuple[int, int, int, int], ground: dict[str, Any], percent: float) -> None:
    """Lay a plane over the ground: its corners wander by up to `percent` of its shorter side, and it turns a little."""
    draw = page.draw
    left, top, wide, high = box
    turn = math.radians(max(-9.0, min(9.0, draw.bell(3))))
    reach = percent / 100 * min(wide, high)
    middle = (left + wide / 2, top + high / 2)
    quad: list[int] = []
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x, y = sx * wide / 2, sy * high / 2
        x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        quad.append(round(middle[0] + x + draw.real(-reach, reach)))
        quad.append(round(middle[1] + y + draw.real(-reach, reach)))
    margin = 2
    if any(not margin <= x <= page.width - margin for x in quad[::2]) or any(
        not margin <= y <= page.height - margin for y in quad[1::2]
    ):
        dx = max(0, margin - min(quad[::2])) - max(0, max(quad[::2]) - page.width + margin)
        dy = max(0, margin - min(quad[1::2])) - max(0, max(quad[1::2]) - page.height + margin)
        quad = [value + (dy if number % 2 else dx) for number, value in enumerate(quad)]
        if not all(0 <= x <= page.width for x in quad[::2]) or not all(0 <= y <= page.height for y in quad[1::2]):
            raise Unfit("too_large")
    page.plane = {"w": wide, "h": high, "quad": quad, "ground": ground, "tilt": 1, "shade": draw.whole(10, 20)}


def _rows(
    page: Page, texts: list[str], face: Face, px: int, ink: RGB, middle: tuple[float, float], pitch: float, align: str,
    effects: dict[str, Any],
) -> None:  # fmt: skip
    """Lines below one another, around `middle`; turned ones around their own middles along the turned axis."""
    turn = math.radians(effects.get("turn", 0) / 10)
    longest = max(map(ems, texts)) * px
    for number, text in enumerate(texts):
        along = (number - (len(texts) - 1) / 2) * pitch
        across = -longest / 2 if align == "l" else 0
        at = (
            middle[0] - along * math.sin(turn) + across * math.cos(turn),
            middle[1] + along * math.cos(turn) + across * math.sin(turn),
        )
        page.line(text, face, px, ink, at, "line", "h", align, effects)


def _columns(
    page: Page, texts: list[str], face: Face, px: int, ink: RGB, middle: tuple[float, float],
    effects: dict[str, Any] | None = None, role: str = "line",
) -> None:  # fmt: skip
    """Columns from the right to the left, their tops in line."""
    pitch = 1.45 * px
    step = 1.06 * px
    top = middle[1] - max(map(len, texts)) * step / 2
    for number, text in enumerate(texts):
        x = middle[0] + ((len(texts) - 1) / 2 - number) * pitch
        page.line(text, face, px, ink, (x, top + len(text) * step / 2), role, "v", effects=effects)


def _arc(page: Page, face: Face, ink: RGB, inks: tuple[RGB, ...]) -> None:
    """A line bent along a circle, and one or two straight ones below it."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    texts = page.words.lines([(4, 8), *[(2, 6)] * draw.whole(0, 2)])
    face = page.able(face, *texts)
    bent, *straight = texts
    span = math.radians(draw.real(70, 150))
    radius = round(min(0.36 * s, 0.4 * h))
    px = page.fit(["国"], face, s, min(radius * span / len(bent) / 1.12, 0.16 * s))
    gap = round((radius * span - len(bent) * px) / max(1, len(bent)))
    at = (w / 2, 0.5 * h - radius * 0.25 - (0.1 * h if straight else 0))
    page.line(bent, face, px, ink, at, "line", "h", effects={"arc": radius, "gap": min(gap, px // 2)})
    if straight:
        small = page.fit(straight, face, 0.6 * w, 0.11 * h)
        _rows(page, straight, face, small, ink, (w / 2, 0.64 * h), 1.4 * small, "c", {})


def _effects(page: Page, px: int, ink: RGB, inks: tuple[RGB, ...], busy: bool = False) -> dict[str, Any]:
    """Outline, shadow or a gradient for a share of the lines; more on a busy ground."""
    draw = page.draw
    kind = draw.weighted((("", 0.45 if busy else 0.62), ("out", 0.15), ("sh", 0.3 if busy else 0.14), ("grad", 0.1)))
    if kind == "out" and px >= 30:
        return {"out": [max(2, px // 18), hexed(_opposite(ink))]}
    if kind == "sh":
        reach = max(1, px // 22)
        return {"sh": [reach, reach, max(1, px // 24), 60]} if px >= 28 else {}
    if kind == "grad" and px >= 36:
        towards = [other for other in inks if ratio(luminance(other), luminance(ink)) < 2.2 and other != ink]
        return {"grad": hexed(draw.pick(towards))} if towards else {}
    return {}


def _opposite(ink: RGB) -> RGB:
    """Black or white, whichever stands out more."""
    return max((BLACK, WHITE), key=lambda color: ratio(luminance(color), luminance(ink)))


def _gray(value: float) -> RGB:
    """The grey of a luminance."""
    s = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    level = round(255 * min(1.0, max(0.0, s)))
    return level, level, level


LAYOUTS: dict[str, list[tuple[Callable[[Page], None], float]]] = {
    "pure": [(plain, 1.0)],
    "composed": [(on_photograph, 1.0)],
    "structured": [
        (poster, 0.3), (couplet, 0.13), (menu, 0.13), (notice, 0.12), (shop, 0.1), (road, 0.08), (banner, 0.08),
        (neon, 0.06),
    ],
}  # fmt: skip
