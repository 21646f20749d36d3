"""The plots of the noise schedules in docs/train.md: `python -m curate.train.plots docs` draws them anew."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

from curate.train.schedule import SCHEDULES, Reals, alpha_bar, snr

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 64, 16, 16, 44
COLORS = {"sdxl": "#2f6db3", "kolors_released": "#b3542f", "exact_extension": "#2f8f5b", "zero_snr": "#8a4fb0"}
DASHES = {"kolors_released": "6 4", "exact_extension": "2 3"}
STEPS = 1100
EVERY = 10


def plot(title: str, values: Callable[[str], Reals], low: float, high: float, log: bool) -> str:
    """An SVG of one quantity of all schedules over the timesteps; `log`: decades on the upright axis."""

    def x(t: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * t / STEPS

    def y(value: float) -> float:
        share = (math.log10(value / low) / math.log10(high / low)) if log else (value - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<title>{title}</title><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><g font-size="13">',
    ]
    decades = round(math.log10(high / low)) if log else 0
    marks = [low * 10**n for n in range(decades + 1)] if log else [low + (high - low) * n / 5 for n in range(6)]
    for mark in marks:
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#dde3ea"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(mark) + 4:.1f}" text-anchor="end" fill="#445">{mark:g}</text>')
    for t in range(0, STEPS + 1, 100):
        out.append(f'<text x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#445">{t}</text>')
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle" fill="#445">timestep</text>')
    for number, (name, schedule) in enumerate(SCHEDULES.items()):
        found = values(name)
        ts = [*range(0, schedule.steps - 1, EVERY), schedule.steps - 1]
        points = " ".join(f"{x(t):.1f},{y(max(float(found[t]), low)):.1f}" for t in ts)
        dash = f' stroke-dasharray="{DASHES[name]}"' if name in DASHES else ""
        out.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[name]}" stroke-width="2"{dash}/>')
        top = TOP + 18 + 20 * number
        style = f'stroke="{COLORS[name]}" stroke-width="2"{dash}'
        out.append(f'<line x1="{WIDTH - 190}" x2="{WIDTH - 160}" y1="{top - 4}" y2="{top - 4}" {style}/>')
        out.append(f'<text x="{WIDTH - 152}" y="{top}" fill="#223">{name}</text>')
    return "\n".join([*out, "</g></svg>"]) + "\n"


def plots() -> dict[str, str]:
    """File name to SVG."""
    return {
        "train-alpha-bar.svg": plot("alpha-bar of the noise schedules", alpha_bar, 0.0, 1.0, log=False),
        "train-snr.svg": plot("signal-to-noise ratio of the noise schedules", snr, 1e-4, 1e4, log=True),
    }


if __name__ == "__main__":
    for name, svg in plots().items():
        (Path(sys.argv[1]) / name).write_text(svg, "utf-8")
