"""Human faces: `Haar` (cascades inside OpenCV 4.x, nothing to download) and `YuNet` (an ONNX file that you name).

docs/detectors.md has the precision and recall of both; `python -m benchmarks.detectors faces` measures them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from workers.sample import Sample

VERSION = 1

# Viola-Jones boosted cascades (Lienhart's frontal face sets). `alt` proposes because it has the best recall for its
# time (90 of 100 pasted faces; `default` 81); its own score says nothing (107..109 for faces and for a hand alike), so
# `default`, trained apart, has to agree at the same place and gives the score.
PROPOSE = "haarcascade_frontalface_alt.xml"
CONFIRM = "haarcascade_frontalface_default.xml"
HAAR_SIDE_PX = 320  # canonical long side: at 400 px the cascade takes twice as long and finds more coins than faces
HAAR_MIN_PX = 20  # both cascades were trained on 20 x 20 px windows

# [left, top, width, height, score], px of the displayed picture
Face = tuple[float, float, float, float, float]


class Haar:
    """Frontal faces by two OpenCV cascades that must agree; the score is the second one's stage weight (-2..8).

    A face narrower than 20/320 of the picture's long side or `min_side` of its short side is not looked for.
    """

    def __init__(self, *, min_score: float = -2.0, min_side: float = 0.05) -> None:
        cv2.setNumThreads(1)  # the engine runs a process per core; OpenCV's pool would fight its neighbours
        self.min_score = min_score
        self.min_side = min_side
        self._propose = _cascade(PROPOSE)
        self._confirm = _cascade(CONFIRM)

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [self._columns(sample) for sample in samples]

    def _columns(self, sample: Sample) -> dict[str, Any]:
        height, width = sample.picture.rgb.shape[:2]
        gray = np.ascontiguousarray(sample.picture.gray_at(HAAR_SIDE_PX))
        least = max(HAAR_MIN_PX, round(self.min_side * min(gray.shape)))
        faces: list[Face] = []
        if min(gray.shape) >= least:
            boxes = self._propose.detectMultiScale(gray, scaleFactor=1.2, minNeighbors=2, minSize=(least, least))
            x_scale, y_scale = width / gray.shape[1], height / gray.shape[0]
            for left, top, box_width, box_height in np.reshape(np.asarray(boxes, dtype=int), (-1, 4)).tolist():
                score = self._confirmed(gray, left, top, box_width)
                if score is not None and score >= self.min_score:
                    face = (left * x_scale, top * y_scale, box_width * x_scale, box_height * y_scale, score)
                    faces.append(face)
        return _columns(faces, width, height, "haar")

    def _confirmed(self, gray: npt.NDArray[np.uint8], left: int, top: int, side: int) -> float | None:
        """Weight that the second cascade gives to the proposed square, searched in 1.25 times its size; None is no."""
        margin = side // 8
        crop = gray[max(0, top - margin) : top + side + margin, max(0, left - margin) : left + side + margin]
        window = cv2.resize(crop, (96, 96), interpolation=cv2.INTER_LINEAR)
        _, _, weights = self._confirm.detectMultiScale3(
            window, scaleFactor=1.08, minNeighbors=1, minSize=(48, 48), outputRejectLevels=True
        )
        return float(np.max(weights)) if len(weights) else None


class YuNet:
    """YuNet (Wu, Peng and Yu 2023) by cv2.FaceDetectorYN; the score is the network's, 0..1.

    `weights` is an ONNX file of opencv_zoo or libfacedetection, with a fixed or a free input size. The picture is
    letterboxed into a square of `input_px`, so that faces below about 10 px there are missed.
    FileNotFoundError or ValueError at construction when the file is absent or no YuNet model.
    """

    def __init__(
        self, weights: str | Path, *, min_score: float = 0.85, min_side: float = 0.05, input_px: int = 320
    ) -> None:
        cv2.setNumThreads(1)  # the engine runs a process per core; OpenCV's pool would fight its neighbours
        if input_px % 32:
            raise ValueError(f"faces: input_px is {input_px}; YuNet needs a multiple of 32, for example 320 or 640")
        self.min_score = min_score
        self.min_side = min_side
        self.input_px = input_px
        path = _weights(weights)
        try:
            # NMS at 0.3 IoU is the network's usual one. The input size stays the same for every picture: changing it
            # rebuilds the network, which costs 8 ms a picture.
            self._net = cv2.FaceDetectorYN.create(str(path), "", (input_px, input_px), min_score, 0.3, 5000)
            self._net.detect(np.zeros((input_px, input_px, 3), np.uint8))
        except cv2.error as failure:
            raise ValueError(f"faces: {path} is no YuNet model that OpenCV can run ({failure.err})") from None

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [self._columns(sample) for sample in samples]

    def _columns(self, sample: Sample) -> dict[str, Any]:
        height, width = sample.picture.rgb.shape[:2]
        small = sample.picture.rgb_at(self.input_px)
        canvas = np.zeros((self.input_px, self.input_px, 3), np.uint8)
        canvas[: small.shape[0], : small.shape[1]] = small[..., ::-1]
        found = self._net.detect(canvas)[1]
        x_scale, y_scale = width / small.shape[1], height / small.shape[0]
        least = self.min_side * min(width, height)
        faces: list[Face] = []
        for row in [] if found is None else found.tolist():
            left, top, box_width, box_height, score = row[0], row[1], row[2], row[3], row[-1]
            if min(box_width * x_scale, box_height * y_scale) >= least:
                faces.append((left * x_scale, top * y_scale, box_width * x_scale, box_height * y_scale, score))
        return _columns(faces, width, height, "yunet")


def revision(engine: str, weights: str | Path | None = None) -> str:
    """First 16 hex digits of the SHA-256 of the files that `engine` (`haar` or `yunet`) loads; loads no model.

    FileNotFoundError when a file is absent, ValueError for an engine that does not exist.
    """
    if engine == "haar":
        return _digest(tuple(_cascade_path(name) for name in (PROPOSE, CONFIRM)))
    if engine == "yunet":
        return _digest((_weights(weights),))
    raise ValueError(f"faces: there is no engine {engine!r}; use haar or yunet")


def suppress(faces: Sequence[Face], overlap: float = 0.3) -> list[Face]:
    """Greedy non-maximum suppression: best score first, none overlaps a better one by more than `overlap` (IoU)."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face[4], face)):
        if all(_iou(face, better) <= overlap for better in kept):
            kept.append(face)
    return kept


def _columns(faces: Sequence[Face], width: int, height: int, engine: str) -> dict[str, Any]:
    boxes = []
    for left, top, box_width, box_height, score in suppress(faces):
        right, bottom = min(left + box_width, width), min(top + box_height, height)
        left, top = max(left, 0.0), max(top, 0.0)
        if right > left and bottom > top:
            boxes.append([round(value, 3) for value in (left, top, right - left, bottom - top, score)])
    return {
        "faces": len(boxes),
        "face_area": max((box[2] * box[3] for box in boxes), default=0.0) / (width * height),
        "face_boxes": boxes,
        "face_engine": engine,
    }


def _iou(a: Face, b: Face) -> float:
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(wide, 0.0) * max(high, 0.0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def _cascade(name: str) -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(str(_cascade_path(name)))


def _cascade_path(name: str) -> Path:
    path = Path(cv2.data.haarcascades) / name if hasattr(cv2, "data") else Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"faces: OpenCV {cv2.__version__} has no {name} (5.0 removed the cascades); "
            "install opencv-python-headless>=4.10,<5 or use the engine yunet"
        )
    return path


def _weights(weights: str | Path | None) -> Path:
    path = Path(weights or "").expanduser()
    if not weights or not path.is_file():
        raise FileNotFoundError(
            f"faces: the engine yunet needs its ONNX file, and {str(weights or '')!r} is no file; "
            "name the file in faces.weights (face_detection_yunet_*.onnx of opencv_zoo), or use faces.engine = 'haar'"
        )
    return path


@lru_cache
def _digest(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
