"""Text on a plain ground: across, downwards from the right, turned, or along an arc."""

from __future__ import annotations

from curate.synth.colors import GROUNDS, INKS, luminance, mixed, readable
from curate.synth.layouts.palette import BLACK, WHITE
from curate.synth.layouts.setting import arc, columns, effects, rows
from curate.synth.spec import Page, ems, hexed


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
        arc(page, face, ink, inks)
    elif way == "v":
        texts = page.words.lines([(2, 7)] * count)
        face = page.able(face, *texts)
        longest = max(map(len, texts))
        px = page.fit(["国" * count], face, page.width * 0.8 / 1.45, min(page.height * 0.84 / longest / 1.06, 0.26 * s))
        columns(page, texts, face, px, ink, (page.width / 2, page.height / 2), effects=effects(page, px, ink, inks))
    else:
        texts = page.sprinkled(page.words.lines([(2, 8)] * count), 9)
        face = page.able(face, *texts)
        px = page.fit(texts, face, page.width * draw.real(0.55, 0.9), min(page.height * 0.8 / count / 1.4, 0.3 * s))
        extra = effects(page, px, ink, inks)
        if count <= 2 and draw.chance(0.2) and px * max(map(ems, texts)) < 0.75 * page.width:
            extra["turn"] = round(10 * max(-12.0, min(12.0, draw.bell(6))))
        pitch = px * draw.real(1.25, 1.6)
        middle = page.height / 2 + draw.real(-0.5, 0.5) * max(0, 0.8 * page.height - count * pitch)
        rows(page, texts, face, px, ink, (page.width / 2, middle), pitch, draw.pick("cccl"), extra)
    if way == "a" and len(page.lines) > 1:
        way = "b"
    page.say = {"ground": page.ground["c"], "ink": hexed(ink), "way": way, "box": [0, 0, page.width, page.height]}
