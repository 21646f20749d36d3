"""Things of the street: spring couplets, shop fronts, road signs, banners, neon."""

from __future__ import annotations

from curate.synth.colors import BEFORE, RGB, luminance, mixed, ratio, readable
from curate.synth.layouts.mounting import lamp, plane, poles, ropes, wall
from curate.synth.layouts.palette import BLACK, GOLD, RED, WHITE
from curate.synth.layouts.setting import rows
from curate.synth.spec import METAL, WOOD, Page, colored, hexed

ROADS = (
    ("路", "Road"), ("街", "Street"), ("站", "Station"), ("桥", "Bridge"), ("大道", "Avenue"), ("广场", "Square"),
)  # fmt: skip
BRASS: RGB = (206, 164, 60)


def couplet(page: Page) -> None:
    """A spring couplet: red paper on both sides of a door and one above it; the right-hand column is read first."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "couplet"
    count = draw.pick((4, 5, 7))
    right, left, above = page.words.lines([(count, count), (count, count), (4, 4)])
    wall(page)
    x0, x1, y0 = 0.27 * w, 0.73 * w, 0.235 * h
    wood = draw.pick(((104, 30, 24), (92, 58, 34), (70, 42, 28), (52, 74, 66), (44, 46, 52)))
    page.shape("door", wood, x0, y0, x1 - x0, 0.95 * h - y0, s)
    step = colored(page.ground["c"])
    page.shape("rect", mixed(step, BLACK, 0.35), 0, 0.95 * h, w, 0.05 * h)
    page.shape("rect", mixed(step, BLACK, 0.1), 0.2 * w, 0.945 * h, 0.6 * w, 0.02 * h)
    paper = draw.pick((RED, (200, 34, 32), (172, 20, 26)))
    ink = draw.pick(readable((GOLD, (250, 214, 110), (255, 226, 120)), (luminance(paper),), 3.6))
    if ratio(luminance(ink), luminance(paper)) < BEFORE:
        ink = (255, 226, 120)
    face = page.able(page.face(("kai", "serif", "hand")), right, left, above, "福")
    strip, high = 0.145 * w, 0.7 * h
    px = page.fit(["国"], face, strip * 0.72, high * 0.92 / count / 1.06)
    for text, x, role in ((right, w - 0.13 * w, "right"), (left, 0.13 * w, "left")):
        page.shape("strip", paper, x - strip / 2, 0.215 * h, strip, high)
        gap = (high * 0.9 - count * px) / count
        page.line(text, face, px, ink, (x, 0.215 * h + high / 2), role, "v", effects={"gap": round(gap)})
    px = page.fit([above], face, 0.42 * w, 0.11 * h)
    page.shape("strip", paper, 0.26 * w, 0.045 * h, 0.48 * w, 0.145 * h)
    page.line(above, face, px, ink, (w / 2, 0.045 * h + 0.0725 * h), "above")
    page.say = {"ground": page.ground["c"], "ink": hexed(ink), "paper": hexed(paper), "way": "v", "box": [0, 0, w, h]}
    if draw.chance(0.45) and 0.095 * s >= face.min_px:
        reach = 0.088 * s
        for x in (0.385 * w, 0.615 * w):
            y = y0 + 0.18 * h
            page.shape("diamond", paper, x, y, reach)
            page.line("福", face, round(0.095 * s), ink, (x, y), "leaf")


def shop(page: Page) -> None:
    """The front of a shop: a signboard above a window and a door."""
    draw, w, h = page.draw, page.width, page.height
    page.layout = "shop"
    color = draw.pick(((168, 92, 70), (196, 186, 172), (120, 122, 126), (214, 206, 190), (92, 70, 60)))
    page.ground = {"kind": "brick", "c": hexed(color), "c2": hexed(mixed(color, BLACK, 0.28))}
    lamp(page)
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
    top, high = 0.1 * h, 0.27 * h
    page.shape("shadow", BLACK, 0.055 * w, top + 6, 0.89 * w, high, 7, 60)
    page.shape("sheet", mixed(board, BLACK, 0.3), 0.055 * w, top + high - 4, 0.89 * w, 8, WOOD)
    page.shape("sheet", board, 0.055 * w, top, 0.89 * w, high, WOOD if board == (70, 40, 22) else METAL)
    page.shape("frame", mixed(board, ink, 0.45), 0.055 * w + 6, top + 6, 0.89 * w - 12, high - 12, 2)
    raised = {"sh": [2, 3, 1, 55]} if draw.chance(0.5) else {}
    px = page.fit([name], face, 0.78 * w, 0.145 * h)
    page.line(name, face, px, ink, (w / 2, top + 0.41 * high), "title", effects=raised)
    px = page.fit([latin], other, 0.7 * w, 0.052 * h)
    page.line(latin, other, px, ink, (w / 2, top + 0.8 * high), "under")
    glass = _window(page, color)
    inks = readable(
        (WHITE, BLACK, (250, 214, 110), (140, 16, 24)), (luminance(glass), luminance(mixed(glass, WHITE, 0.12)))
    )
    if inks:
        px = page.fit([small], other, 0.4 * w, 0.075 * h)
        page.line(small, other, px, draw.pick(inks), (0.33 * w, 0.68 * h), "detail")
    page.say = {"ground": hexed(color), "ink": hexed(ink), "paper": hexed(board), "way": "h"}
    page.say["box"] = [round(value) for value in (0.055 * w, top, 0.945 * w, top + high)]


def _window(page: Page, color: RGB) -> RGB:
    """Window, door, awning and pavement below a signboard; returns the colour of the glass."""
    draw, w, h = page.draw, page.width, page.height
    glass, frame = draw.pick(
        (((44, 56, 66), (30, 28, 28)), ((60, 72, 70), (236, 232, 222)), ((240, 214, 160), (60, 40, 26)))
    )
    pale = mixed(glass, WHITE, 0.12)
    y = 0.46 * h
    page.shape("shadow", BLACK, 0.08 * w, y, 0.5 * w, 0.42 * h, 5, 50)
    page.shape("rect", frame, 0.08 * w, y, 0.5 * w, 0.4 * h)
    page.shape("rect", mixed(frame, WHITE, 0.2), 0.07 * w, y + 0.4 * h, 0.52 * w, 0.022 * h)
    page.shape("rect", glass, 0.095 * w, y + 0.015 * h, 0.47 * w, 0.37 * h)
    page.shape(
        "poly", pale, 0.12 * w, y + 0.38 * h, 0.28 * w, y + 0.02 * h, 0.36 * w, y + 0.02 * h, 0.2 * w, y + 0.38 * h
    )
    page.shape("rect", frame, 0.64 * w, y, 0.28 * w, h)
    page.shape("rect", glass, 0.665 * w, y + 0.025 * h, 0.23 * w, 0.3 * h)
    page.shape(
        "poly", pale, 0.7 * w, y + 0.32 * h, 0.78 * w, y + 0.03 * h, 0.84 * w, y + 0.03 * h, 0.76 * w, y + 0.32 * h
    )
    page.shape("sheet", mixed(frame, glass, 0.25), 0.665 * w, y + 0.35 * h, 0.23 * w, 0.13 * h, WOOD)
    page.shape("rect", BRASS, 0.652 * w, 0.7 * h, 0.008 * w, 0.09 * h)
    if draw.chance(0.5):
        stripe = draw.pick((RED, (10, 84, 80), (24, 90, 190), (96, 60, 34)))
        page.shape("awning", stripe, 0.06 * w, y - 0.02 * h, 0.54 * w, 0.075 * h)
    page.shape("sheet", mixed(color, (90, 90, 92), 0.7), 0, 0.93 * h, w, 0.07 * h, METAL)
    page.shape("shadow", BLACK, 0, 0.93 * h, w, 3, 4, 60)
    return glass


def road(page: Page) -> None:
    """A road sign, white on blue, green or brown, with an arrow: before a photograph out of focus, or under the sky."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    page.layout = "road"
    if page.photograph and draw.chance(0.6):
        page.on_photograph()
        page.back("blur", BLACK, max(3, 0.012 * s))
    else:
        _country(page)
    board = draw.pick(((16, 74, 160), (6, 104, 66), (100, 58, 30)))
    place, other = page.words.lines([(2, 4), (2, 4)])
    ending, english = draw.pick(ROADS)
    place += ending
    latin = f"{draw.pick(('North', 'South', 'East', 'West', 'Central'))} {english}"
    face = page.able(page.face(("sans", "round")), place, other, latin)
    wide, high = round(0.8 * w), round(0.45 * h)
    left, top = (w - wide) // 2, round(draw.real(0.12, 0.2) * h)
    plane(page, (left, top, wide, high), {"kind": "metal", "c": hexed(board), "c2": hexed(board)}, 20)
    page.plane |= {"round": 6, "shadow": [2, 4, 6, 40]}
    poles(page, 2)
    page.shape("frame", WHITE, 6, 6, wide - 12, high - 12, max(3, 0.008 * s))
    far = f"{other} {draw.whole(1, 48)}km".replace(" ", "")
    px = page.fit([place], face, 0.72 * wide, 0.15 * h)
    page.line(place, face, px, WHITE, (0.07 * wide, 0.27 * high), "title", align="l")
    px = page.fit([latin], face, 0.72 * wide, 0.052 * h)
    page.line(latin, face, px, WHITE, (0.07 * wide, 0.56 * high), "under", align="l")
    px = page.fit([far], face, 0.72 * wide, 0.085 * h)
    page.line(far, face, px, WHITE, (0.07 * wide, 0.8 * high), "detail", align="l")
    x, y, r = 0.9 * wide, 0.34 * high, 0.05 * s
    page.shape("rect", WHITE, x - 0.28 * r, y - 0.2 * r, 0.56 * r, 2.4 * r)
    page.shape("poly", WHITE, x, y - 1.5 * r, x + r, y, x - r, y)
    page.say |= {"ink": hexed(WHITE), "paper": hexed(board), "way": "h", "box": [left, top, left + wide, top + high]}


def _country(page: Page) -> None:
    """Sky, hills and a road, out of focus."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    sky = draw.pick(((150, 190, 226), (196, 208, 218), (118, 158, 206), (226, 214, 196)))
    page.ground = {"kind": "gradient", "c": hexed(sky), "c2": hexed(mixed(sky, WHITE, 0.55)), "way": "v"}
    hill = draw.pick(((92, 120, 84), (110, 128, 110), (120, 116, 104)))
    pale = mixed(hill, sky, 0.55)
    a, b = draw.real(0.1, 0.4), draw.real(0.6, 0.9)
    page.back(
        "poly", pale, 0, 0.74 * h, a * w, 0.64 * h, (a + b) / 2 * w, 0.73 * h, b * w, 0.66 * h, w, 0.72 * h, w, h, 0, h
    )
    page.back("poly", hill, 0, 0.84 * h, b / 2 * w, 0.74 * h, 0.7 * w, 0.82 * h, w, 0.76 * h, w, h, 0, h)
    page.back("poly", mixed(hill, BLACK, 0.25), 0, 0.88 * h, 0.4 * w, 0.85 * h, w, 0.89 * h, w, h, 0, h)
    page.back("poly", (112, 112, 114), 0.3 * w, h, 0.52 * w, 0.86 * h, 0.56 * w, 0.86 * h, 0.95 * w, h)
    page.back("poly", (226, 226, 220), 0.6 * w, h, 0.538 * w, 0.87 * h, 0.543 * w, 0.87 * h, 0.635 * w, h)
    page.back("blur", BLACK, max(2, 0.009 * s))


def banner(page: Page) -> None:
    """A long cloth banner across a wall, a little askew."""
    draw, w, h = page.draw, page.width, page.height
    page.layout = "banner"
    wall(page)
    cloth = draw.pick((RED, RED, (24, 84, 170), (0, 110, 70), (238, 196, 40)))
    ink = draw.pick(readable((WHITE, (250, 220, 90), BLACK), (luminance(cloth),)))
    texts = page.words.lines([(7, 10)] if draw.chance(0.6) else [(6, 9), (6, 9)])
    face = page.able(page.face(bold=True, px=0.86 * 0.9 * w / 10), *texts)
    wide = round(0.9 * w)
    px = page.fit(texts, face, 0.86 * wide, 0.12 * h)
    high = round(px * (0.9 + 1.25 * len(texts)))
    left, top = (w - wide) // 2, round(draw.real(0.18, 0.62) * (h - high))
    plane(page, (left, top, wide, high), {"kind": "cloth", "c": hexed(cloth), "c2": hexed(cloth)}, 9)
    page.plane["shadow"] = [3, 7, 5, 50]
    ropes(page)
    rows(page, texts, face, px, ink, (wide / 2, high / 2), px * 1.25, "c", {})
    page.say = {"ground": page.ground["c"], "ink": hexed(ink), "paper": hexed(cloth), "way": "h"}
    page.say["box"] = [left, top, left + wide, top + high]


def neon(page: Page) -> None:
    """Glowing letters on a dark wall at night."""
    draw, w, h = page.draw, page.width, page.height
    page.layout = "neon"
    color = draw.pick(((44, 38, 42), (34, 40, 52), (54, 36, 34)))
    page.ground = {"kind": "brick", "c": hexed(color), "c2": hexed(mixed(color, BLACK, 0.7))}
    page.lamp = [50, 42, 60]
    glows = ((255, 90, 160), (90, 220, 255), (255, 200, 80), (130, 255, 150), (255, 120, 70))
    first, second = draw.pick(glows), draw.pick(glows)
    title, under = page.words.lines([(2, 5), (3, 7)])
    (under,) = page.sprinkled([under], 8)
    face = page.able(page.face(("sans", "round")), title)
    other = page.able(page.face(("sans", "round", "kai")), under)
    px = page.fit([title], face, 0.74 * w, 0.24 * h)
    small = page.fit([under], other, 0.66 * w, 0.09 * h)
    top = draw.real(0.36, 0.46) * h
    for text, chosen, size, glow, y, role in (
        (title, face, px, first, top, "title"), (under, other, small, second, top + 0.95 * px + small, "under"),
    ):  # fmt: skip
        page.line(text, chosen, size, mixed(glow, WHITE, 0.72), (w / 2, y), role, effects={"glow": hexed(glow)})
    if draw.chance(0.6):
        edge, upper = 0.08 * w, top - px * 0.95
        page.shape("neonframe", second, edge, upper, w - 2 * edge, 2.2 * px + 1.9 * small, 4)
    page.say = {"ground": hexed(color), "ink": hexed(first), "way": "h", "box": [0, 0, w, h]}
