"""A classical aesthetic baseline from figures that other scorers have measured; it needs no pixels and no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from schemas.errors import RowError
from workers.sample import Sample

VERSION: int = 1
ENGINE = "photometric"

# Columns of earlier operators that must stand in Sample.values.
NEEDS: tuple[str, ...] = (
    "width",
    "height",
    "sharpness_tile",
    "luma",
    "contrast",
    "underexposed",
    "overexposed",
    "colorfulness",
    "saturation",
    "entropy",
    "border",
)

# How much each signal weighs; they sum to 1. Set by hand, in the order in which a photo editor would reject.
WEIGHTS = {"sharp": 0.25, "exposure": 0.2, "contrast": 0.15, "color": 0.15, "detail": 0.1, "resolution": 0.15}


def photometric(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """`aesthetic` (1..10) and `aesthetic_engine` of each sample, from `Sample.values`.

    What it is: a fixed formula over technical quality. aesthetic = 1 + 9 * technique * fault, where technique is the
    WEIGHTS mean of the six `signals` and fault the product of two `faults`, all in 0..1.

    What it is not: a learned model, or a judge of subject, composition, story or taste. It has seen no rating and its
    scale is not LAION's: 5 here says nothing about 5 there. It orders blurred, flat, dark, burnt, tiny and framed
    pictures below sound ones and does no more. Fog, night and high-key pictures score lower than people would.

    Raises RowError `operator_failed` when a needed value is missing.
    """
    return [{"aesthetic": score(sample.values), "aesthetic_engine": ENGINE} for sample in samples]


def score(values: dict[str, Any]) -> float:
    """The score 1..10 of one row's measured columns."""
    missing = [name for name in NEEDS if values.get(name) is None]
    if missing:
        raise RowError(
            "operator_failed", f"aesthetic needs {', '.join(missing)}; run the scorer that measures it first"
        )
    measured = {name: float(values[name]) for name in NEEDS}
    technique = sum(WEIGHTS[name] * value for name, value in signals(measured).items())
    return 1 + 9 * technique * math.prod(faults(measured).values())


def signals(v: dict[str, float]) -> dict[str, float]:
    """Six signals, 0 (poor) to 1 (no complaint).

    sharp       log ramp of sharpness_tile from 20 (blurred everywhere) to 1000
    exposure    exp(-((luma - 118) / 70)^2): mid grey is best
    contrast    ramp from 10 to 55 grey levels
    color       ramp of colorfulness from 0 to 45; greyscale (below 3) counts 0.6, a style and no fault; above
                a saturation of 0.7 up to half is lost
    detail      ramp of entropy from 4 to 7.4 bits
    resolution  log ramp of the shorter side from 256 to 1024 px
    """
    color = 0.6 if v["colorfulness"] < 3 else _ramp(v["colorfulness"], 0, 45)
    return {
        "sharp": _ramp(math.log(max(v["sharpness_tile"], 1)), math.log(20), math.log(1000)),
        "exposure": math.exp(-(((v["luma"] - 118) / 70) ** 2)),
        "contrast": _ramp(v["contrast"], 10, 55),
        "color": color * (1 - 0.5 * _ramp(v["saturation"], 0.7, 1)),
        "detail": _ramp(v["entropy"], 4, 7.4),
        "resolution": _ramp(math.log2(max(min(v["width"], v["height"]), 1)), 8, 10),
    }


def faults(v: dict[str, float]) -> dict[str, float]:
    """Two factors that scale the whole: 1 without the fault.

    clipped     falls to 0.5 as crushed plus burnt pixels go from 30 to 80 %
    framed      falls to 0.5 as uniform borders go from 0 to 25 %
    """
    return {
        "clipped": 1 - 0.5 * _ramp(v["underexposed"] + v["overexposed"], 0.3, 0.8),
        "framed": 1 - 0.5 * _ramp(v["border"], 0, 0.25),
    }


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))
