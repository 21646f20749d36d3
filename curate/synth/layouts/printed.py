"""Things of print: posters, price lists, notices."""

from __future__ import annotations

from curate.synth.colors import BEFORE, RGB, luminance, mixed, ratio, readable
from curate.synth.fonts import Face
from curate.synth.layouts.mounting import lamp, on_wall, plane
from curate.synth.layouts.palette import BLACK, GOLD, RED, THEMES, WHITE
from curate.synth.layouts.setting import columns
from curate.synth.spec import Page, ems, hexed

STYLES = ("band", "disc", "classic", "corner", "frame")


def poster(page: Page) -> None:
    """A poster: the picture itself, or a sheet on a wall; with a photograph where there are any."""
    draw = page.draw
    way = draw.weighted((("flat", 0.45), ("wall", 0.33), ("photograph", 0.22)))
    if way == "photograph" and page.photograph:
        _photograph(page)
    elif way == "wall" and page.attempt < 2:
        on_wall(page, _poster)
    else:
        _poster(page)


def _poster(page: Page) -> None:
    """A title, a line below it, details, and shapes of one accent colour."""
    draw, w, h = page.draw, page.width, page.height
    page.layout = "poster"
    ground, ink, second, accent = draw.pick(THEMES)
    page.ground = _paper(page, ground)
    style = draw.pick(STYLES)
    title, under, *details = page.words.lines([(2, 4 if style == "disc" else 6), (5, 10), (4, 9), (4, 9)])
    page.say = {"ground": hexed(ground), "ink": hexed(ink), "accent": hexed(accent), "box": [0, 0, w, h]}
    page.say["way"] = "v" if style == "classic" else "h"
    if style == "classic":
        _classic(page, title, [under, *details], (ink, second, accent))
        return
    face = page.able(page.face(bold=True), title)
    small = page.able(page.face(px=0.06 * h), under, *details)
    on_accent = draw.pick(readable((WHITE, BLACK, GOLD, ink), (luminance(accent),), BEFORE) or (WHITE,))
    if ratio(luminance(on_accent), luminance(accent)) < BEFORE:
        style = "frame"
    if style == "band":
        _band(page, [title, under, *details], (face, small), (ink, second, accent, on_accent))
    elif style == "disc":
        _disc(page, [title, under, *details], (face, small), (ink, second, accent, on_accent))
    elif style == "corner":
        _corner(page, [title, under, *details], (face, small), (ground, ink, second, accent))
    else:
        _frame(page, [title, under, *details], (face, small), (ink, second, accent))


def _paper(page: Page, ground: RGB) -> dict[str, object]:
    other = mixed(ground, page.draw.pick((WHITE, BLACK)), 0.08)
    kind = page.draw.pick(("solid", "gradient", "paper"))
    return {"kind": kind, "c": hexed(ground), "c2": hexed(other), "way": "v"}


def _photograph(page: Page) -> None:
    """A photograph over the whole poster, and a field of colour below it or above it that holds the text."""
    draw, w, h = page.draw, page.width, page.height
    page.layout = "poster"
    crop = page.on_photograph()
    ground, ink, second, accent = draw.pick(THEMES)
    share = draw.real(0.36, 0.44)
    # The field covers the calmer end: no face.
    top = min((0.0, (1 - share) * h), key=lambda y: page.texture(crop, (0, y, w, share * h)))
    page.shape("sheet", ground, 0, top, w, share * h, 0)
    edge = top if top else share * h
    page.shape("rect", accent, 0, edge - 0.006 * h, w, 0.012 * h)
    title, under, detail = page.words.lines([(2, 6), (5, 10), (4, 9)])
    face = page.able(page.face(bold=True), title)
    small = page.able(page.face(px=0.06 * h), under, detail)
    page.line(title, face, page.fit([title], face, 0.84 * w, 0.13 * h), ink, (w / 2, top + 0.115 * h), "title")
    px = page.fit([under, detail], small, 0.84 * w, 0.062 * h)
    page.line(under, small, px, second, (w / 2, top + 0.245 * h), "under")
    page.line(detail, small, px, second, (w / 2, top + 0.245 * h + 1.45 * px), "detail")
    page.say = {"ground": hexed(ground), "ink": hexed(ink), "accent": hexed(accent), "box": [0, 0, w, h], "way": "h"}
    page.say |= {"photograph": "top" if top else "bottom"}


def _band(page: Page, texts: list[str], faces: tuple[Face, Face], colors: tuple[RGB, RGB, RGB, RGB]) -> None:
    """The details on a band of the accent's colour at the foot."""
    w, h = page.width, page.height
    (title, under, *details), (face, small), (ink, second, accent, on_accent) = texts, faces, colors
    edge = 0.68 * h
    page.shape("rect", accent, 0, edge, w, h - edge)
    page.shape("line", accent, 0.1 * w, edge - 0.05 * h, 0.9 * w, edge - 0.05 * h, 2)
    px = page.fit([title], face, 0.84 * w, 0.26 * h)
    page.line(title, face, px, ink, (w / 2, 0.27 * h), "title")
    page.line(under, small, page.fit([under], small, 0.76 * w, 0.075 * h), second, (w / 2, 0.53 * h), "under")
    px = page.fit(details, small, 0.8 * w, 0.072 * h)
    for number, text in enumerate(details):
        page.line(text, small, px, on_accent, (w / 2, edge + (h - edge) * (0.32 + 0.38 * number)), "detail")


def _disc(page: Page, texts: list[str], faces: tuple[Face, Face], colors: tuple[RGB, RGB, RGB, RGB]) -> None:
    """The title on a disc."""
    s, w, h = page.side, page.width, page.height
    (title, *others), (face, small), (ink, second, accent, on_accent) = texts, faces, colors
    radius = 0.27 * s
    page.shape("disc", accent, w / 2, 0.36 * h, radius)
    page.shape("ring", accent, w / 2, 0.36 * h, radius * 1.12, 3)
    rows = [title[:2], title[2:]] if len(title) > 2 else [title]
    px = page.fit(rows, face, 1.25 * radius, radius * 0.8)
    for number, text in enumerate(rows):
        at = 0.36 * h + (number - (len(rows) - 1) / 2) * px * 1.12
        page.line(text, face, px, on_accent, (w / 2, at), "title")
    px = page.fit(others, small, 0.8 * w, 0.07 * h)
    for number, text in enumerate(others):
        page.line(text, small, px, ink if number == 0 else second, (w / 2, (0.72 + 0.1 * number) * h), "detail")


def _corner(page: Page, texts: list[str], faces: tuple[Face, Face], colors: tuple[RGB, RGB, RGB, RGB]) -> None:
    """Everything from the left, below a corner of colour."""
    s, w, h = page.side, page.width, page.height
    (title, *others), (face, small), (ground, ink, second, accent) = texts, faces, colors
    page.shape("poly", accent, 0, 0, 0.42 * w, 0, 0, 0.3 * h)
    page.shape("poly", mixed(accent, ground, 0.45), 0.42 * w, 0, 0.5 * w, 0, 0, 0.36 * h, 0, 0.3 * h)
    page.shape("disc", accent, 0.86 * w, 0.87 * h, 0.07 * s)
    left = 0.1 * w
    px = page.fit([title], face, 0.8 * w, 0.2 * h)
    page.line(title, face, px, ink, (left, 0.46 * h), "title", align="l")
    page.shape("rect", accent, left, 0.46 * h + px * 0.66, 0.16 * w, max(3, 0.008 * s))
    px = page.fit(others, small, 0.72 * w, 0.064 * h)
    for number, text in enumerate(others):
        start = (left, (0.64 + 0.095 * number) * h)
        page.line(text, small, px, ink if number == 0 else second, start, "detail", align="l")


def _frame(page: Page, texts: list[str], faces: tuple[Face, Face], colors: tuple[RGB, RGB, RGB]) -> None:
    """Everything in the middle, in a double frame."""
    s, w, h = page.side, page.width, page.height
    (title, under, *details), (face, small), (ink, second, accent) = texts, faces, colors
    inset = 0.05 * s
    page.shape("frame", accent, inset, inset, w - 2 * inset, h - 2 * inset, max(2, 0.008 * s))
    page.shape("frame", accent, 1.4 * inset, 1.4 * inset, w - 2.8 * inset, h - 2.8 * inset, 1)
    lines: list[tuple[str, Face, float, RGB, str]]
    lines = [(title, face, 0.17 * h, ink, "title"), (under, small, 0.075 * h, second, "under")]
    lines += [(text, small, 0.06 * h, second, "detail") for text in details]
    for (text, chosen, most, color, role), at in zip(lines, (0.3, 0.5, 0.7, 0.8), strict=True):
        page.line(text, chosen, page.fit([text], chosen, 0.74 * w, most), color, (w / 2, at * h), role)
    for side in (-1, 1):
        page.shape("line", accent, w / 2 + side * 0.06 * w, 0.6 * h, w / 2 + side * 0.24 * w, 0.6 * h, 2)
    page.shape("disc", accent, w / 2, 0.6 * h, 0.012 * s)


def _classic(page: Page, title: str, others: list[str], colors: tuple[RGB, RGB, RGB]) -> None:
    """Set from the right in columns: the title in the first one, then the text."""
    s, w, h = page.side, page.width, page.height
    ink, second, accent = colors
    face = page.able(page.face(("kai", "serif")), title)
    small = page.able(page.face(("kai", "serif"), px=0.7 * h / max(map(len, others)) / 1.1), *others)
    px = page.fit(["国"], face, w, min(0.74 * h / len(title) / 1.08, 0.19 * s))
    right = 0.84 * w
    columns(page, [title], face, px, ink, (right - px / 2, 0.11 * h + len(title) * px * 1.08 / 2), role="title")
    size = page.fit(["国"], small, w, min(0.7 * h / max(map(len, others)) / 1.1, 0.075 * s))
    x = right - px - 1.1 * size
    for text in others:
        page.line(text, small, size, second, (x, 0.13 * h + len(text) * size * 1.1 / 2), "detail", "v")
        x -= 1.75 * size
    inset = 0.045 * s
    page.shape("frame", accent, inset, inset, w - 2 * inset, h - 2 * inset, 2)
    page.shape("line", accent, 0.12 * w, 0.86 * h, 0.5 * w, 0.86 * h, 2)
    page.shape("disc", accent, 0.16 * w + 0.03 * s, 0.2 * h, 0.055 * s)


def menu(page: Page) -> None:
    """A list of things with their prices under a title, as it is or on a wall."""
    if page.draw.chance(0.35) and page.attempt < 2:
        on_wall(page, _menu)
    else:
        _menu(page)


def _menu(page: Page) -> None:
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "list"
    ground, ink, second, accent = draw.pick(THEMES)
    page.ground = _paper(page, ground)
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
        left, right = 0.13 * w + (ems(text) + 0.5) * px, 0.87 * w - (ems(price) + 0.4) * px
        page.shape("dots", accent, left, y + 0.3 * px, right, 9)
        page.line(price, face, px, ink, (0.87 * w, y), "price", align="r")
    page.shape("frame", accent, 0.05 * s, 0.05 * s, w - 0.1 * s, h - 0.1 * s, 2)
    page.say = {"ground": hexed(ground), "ink": hexed(second), "accent": hexed(accent), "way": "h", "box": [0, 0, w, h]}


def notice(page: Page) -> None:
    """A sheet of paper on a board: a heading, a few lines, a date."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "notice"
    board = draw.pick(((150, 110, 70), (96, 112, 104), (70, 84, 110), (178, 150, 112), (84, 84, 88)))
    page.ground = {"kind": draw.pick(("wall", "cloth")), "c": hexed(board), "c2": hexed(mixed(board, BLACK, 0.2))}
    lamp(page, 26)
    wide, high = round(draw.real(0.68, 0.78) * w), round(draw.real(0.72, 0.8) * h)
    paper = draw.pick(((252, 250, 244), (246, 240, 220), (250, 236, 190), (226, 238, 246)))
    left, top = (w - wide) // 2, (h - high) // 2
    plane(page, (left, top, wide, high), {"kind": "paper", "c": hexed(paper), "c2": hexed(paper)}, 13)
    page.plane["shadow"] = [4, 6, 6, 45]
    pin, r = draw.pick((RED, (24, 90, 190), (0, 125, 70))), 0.016 * s
    for x, y in draw.pick((((0.5, 0.04),), ((0.05, 0.035), (0.95, 0.035)))):
        page.shape("disc", mixed(paper, BLACK, 0.3), x * wide + 0.5 * r, y * high + 0.7 * r, r)
        page.shape("disc", pin, x * wide, y * high, r)
        page.shape("disc", mixed(pin, WHITE, 0.6), x * wide - 0.3 * r, y * high - 0.3 * r, 0.3 * r)
    count = draw.whole(3, 4)
    title, *body = page.words.lines([(2, 4)] + [(5, 9)] * count)
    head = page.able(page.face(bold=True), title)
    face = page.able(page.face(px=0.0585 * high), *body, "0123456789年月日")
    ink = draw.pick((BLACK, (60, 60, 62), (16, 42, 110)))
    red = draw.pick(((170, 16, 24), ink))
    page.line(title, head, page.fit([title], head, 0.6 * wide, 0.13 * high), red, (wide / 2, 0.17 * high), "title")
    px = page.fit(body, face, 0.8 * wide, 0.075 * high)
    step = min(0.5 * high / count, 1.9 * px)
    for number, text in enumerate(body):
        page.line(text, face, px, ink, (0.1 * wide, 0.36 * high + step * number), "detail", align="l")
    date = f"{draw.whole(2019, 2026)}年{draw.whole(1, 12)}月{draw.whole(1, 28)}日"
    small = page.fit([date], face, 0.6 * wide, 0.06 * high)
    page.line(date, face, small, ink, (0.9 * wide, 0.9 * high), "date", align="r")
    page.say = {"ground": hexed(board), "ink": hexed(ink), "paper": hexed(paper), "way": "h"}
    page.say["box"] = [left, top, left + wide, top + high]
