"""The layouts: plain text, text on photographs, and things that carry text in print and in the street.

Each is a function that writes on a Page. Coordinates are px; `s` is the shorter side of the picture. `say` holds what
the captions tell: the carrier, its colour, the place, the way of writing.

    palette.py   colours
    setting.py   rows, columns, arcs, effects
    mounting.py  boards seen by a camera, on poles, ropes or walls
    plain.py     text on a plain ground
    composed.py  text on photographs
    printed.py   posters, lists, notices
    street.py    couplets, shops, road signs, banners, neon
"""

from __future__ import annotations

from collections.abc import Callable

from curate.synth.layouts.composed import on_photograph
from curate.synth.layouts.plain import plain
from curate.synth.layouts.printed import menu, notice, poster
from curate.synth.layouts.street import banner, couplet, neon, road, shop
from curate.synth.spec import Page

# Of each tier its layouts and their weights.
LAYOUTS: dict[str, list[tuple[Callable[[Page], None], float]]] = {
    "pure": [(plain, 1.0)],
    "composed": [(on_photograph, 1.0)],
    "structured": [
        (poster, 0.3), (couplet, 0.13), (menu, 0.13), (notice, 0.12), (shop, 0.1), (road, 0.08), (banner, 0.08),
        (neon, 0.06),
    ],
}  # fmt: skip
