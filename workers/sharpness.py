"""How sharp is the picture, at one size for all: variance of the Laplacian and Tenengrad, whole and best tile."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from workers.picture import Bytes
from workers.sample import Sample

VERSION: int = 1


def sharpness(samples: Sequence[Sample], *, long_side_px: int = 1024, tile_px: int = 128) -> list[dict[str, Any]]:
    """`sharpness`, `sharpness_tile`, `tenengrad` and `tenengrad_tile` of each sample.

    Every picture is brought to `long_side_px` first, small ones too, so that detail is counted per picture and not
    per pixel: a picture that was enlarged scores like its small original. Tiles are squares of about `tile_px` there.
    """
    return [measure(sample.picture.gray_at(long_side_px), tile_px) for sample in samples]


def measure(luma: Bytes, tile_px: int) -> dict[str, float]:
    """The four columns of 8-bit luma (H, W).

    Variance of the Laplacian [0 1 0; 1 -4 1; 0 1 0]: Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy", ICPR 2000. Tenengrad, the mean of Gx^2 + Gy^2 with 3 x 3 Sobel: Krotkov, "Focusing", IJCV 1988.
    Units are squared grey levels.
    """
    laplacian: Any = cv2.Laplacian(luma, cv2.CV_16S)
    gx, gy = cv2.spatialGradient(luma)
    rows, columns = (np.linspace(0, side, max(1, round(side / tile_px)) + 1).astype(int) for side in luma.shape)
    # Sums per tile by cv2.norm and cv2.sumElems: 0.6 ms in all, cv2.meanStdDev takes 4 ms for the same.
    counts, sums, squares, gradients = [], [], [], []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            tile = (slice(top, bottom), slice(left, right))
            counts.append((bottom - top) * (right - left))
            sums.append(cv2.sumElems(laplacian[tile])[0])
            squares.append(cv2.norm(laplacian[tile], cv2.NORM_L2SQR))
            gradients.append(cv2.norm(gx[tile], cv2.NORM_L2SQR) + cv2.norm(gy[tile], cv2.NORM_L2SQR))
    n, first, second, gradient = (np.array(values, np.float64) for values in (counts, sums, squares, gradients))
    return {
        "sharpness": float(second.sum() / n.sum() - (first.sum() / n.sum()) ** 2),
        "sharpness_tile": float(np.max(second / n - (first / n) ** 2)),
        "tenengrad": float(gradient.sum() / n.sum()),
        "tenengrad_tile": float(np.max(gradient / n)),
    }
