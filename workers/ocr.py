"""Text in the picture by RapidOCR's PP-OCRv6 small models, which lie inside its wheel: nothing is ever downloaded.

The detector looks at the whole picture at about 0.2 megapixel, which is all that a text-free photograph costs; lines
are cut out and read at full resolution. docs/detectors.md says what each choice here costs;
`python -m benchmarks.detectors ocr` measures it again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from workers.denormals import without_denormals
from workers.picture import Picture
from workers.sample import Sample

VERSION = 2

Bytes = npt.NDArray[np.uint8]
Quad = npt.NDArray[np.float32]  # (4, 2): corners clockwise from top left, px of the displayed picture

ENGINE = "rapidocr PP-OCRv6 small"
DETECTOR = "PP-OCRv6_det_small.onnx"
RECOGNISER = "PP-OCRv6_rec_small.onnx"

# PP-OCRv6's own preprocessing: ImageNet's mean and deviation, on channels in the order B, G, R (PaddleOCR issue 18218).
# RapidOCR 3.10 feeds 0.5 and 0.5 instead, which reads one rendered line in ten less at 14 and at 24 px.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32) * 255
TILE_PX = 32  # the detector's input is a multiple of this
MAX_ENLARGE = 2.0
LINE_PX = 48  # height of the recogniser's input
MAX_LINE_PX = 4800
CROP_SIDE_PX = 2048  # lines are cut from the picture at most this large: a 48 px line needs no more

# On round or fluffy things (a cup, the moon, a cat that fills the picture) the detector sees one large character,
# and the recogniser reads `8`, `O` or `1` with 0.2 to 0.9. Real lone characters come with 0.97 and more.
LONE_CONFIDENCE = 0.95
LARGE_SIDE = 0.15  # a box this share of the picture's short side is large
BORDER = 0.1
TURN_CONFIDENCE = 0.9  # a tall line read with less is tried the other way round: its text may run upwards


@dataclass(frozen=True)
class Line:
    """One detected box and what was read there: `confidence` 0..1; `accepted` when the reading is to be trusted."""

    quad: Quad
    text: str
    confidence: float
    accepted: bool

    @property
    def vertical(self) -> bool:
        """A column of characters, as in traditional Chinese typesetting."""
        return _tall(self.quad) and len(self.text) > 1


class RapidOcr:
    """Lines of text with their boxes: PP-OCRv6 small on onnxruntime, one thread, about 150 MB.

    `pixels` bounds the detector's input: time grows with it, and lines lower than about 2.5 % of the picture's height
    get lost at the default. `min_confidence` is the least mean character probability of a line, `box_thresh` the least
    mean text probability of a box. `device` is cpu, gpu or gpu:N. FileNotFoundError when the installed rapidocr does
    not carry the models, ValueError for a GPU that onnxruntime cannot use.
    """

    def __init__(
        self,
        *,
        pixels: int = 192 * TILE_PX**2,
        min_confidence: float = 0.6,
        box_thresh: float = 0.5,
        device: str = "cpu",
    ) -> None:
        import onnxruntime
        from rapidocr.ch_ppocr_det.utils import DBPostProcess
        from rapidocr.ch_ppocr_rec.utils import CTCLabelDecode

        cv2.setNumThreads(1)  # the engine runs a process per core
        self.pixels = pixels
        self.min_confidence = min_confidence
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # every picture has another shape, for which the arena would only grow
        sessions = [
            onnxruntime.InferenceSession(without_denormals(path), options, providers=providers(device))
            for path in model_paths()
        ]
        self._detector, self._recogniser = sessions
        self._boxes = DBPostProcess(thresh=0.3, box_thresh=box_thresh, unclip_ratio=1.6, use_dilation=True)
        alphabet = self._recogniser.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._decode = CTCLabelDecode(character=alphabet)

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [self._columns(sample.picture) for sample in samples]

    def lines(self, picture: Picture) -> list[Line]:
        """Every detected box of `picture`, accepted lines first and in reading order."""
        lines = self._read_all(picture, self.detect(picture.rgb))
        return reading_order([line for line in lines if line.accepted]) + [line for line in lines if not line.accepted]

    def detect(self, rgb: Bytes) -> list[Quad]:
        """Boxes of text in `rgb`, in its pixels."""
        height, width = rgb.shape[:2]
        columns, rows = input_size(width, height, self.pixels)
        shrinks = columns < width
        small = cv2.resize(rgb, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        planes = (small[..., ::-1].astype(np.float32) - MEAN) / DEVIATION
        maps = self._detector.run(None, {self._detector.get_inputs()[0].name: planes.transpose(2, 0, 1)[None]})[0]
        boxes, _ = self._boxes(maps, (height, width))
        return [np.asarray(box, np.float32) for box in boxes]

    def read(self, line_rgb: Bytes) -> tuple[str, float]:
        """Text of one horizontal line and its mean character probability.

        Lines are read one by one: a batch is padded to its longest line, which costs more than it saves on a CPU and
        lets the neighbours change a line's confidence.
        """
        height, width = line_rgb.shape[:2]
        length = min(max(LINE_PX, math.ceil(LINE_PX * width / height)), MAX_LINE_PX)
        shrinks = height > LINE_PX
        line = cv2.resize(line_rgb, (length, LINE_PX), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        planes = line[..., ::-1].astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        output = self._recogniser.run(None, {self._recogniser.get_inputs()[0].name: planes})[0]
        text, confidence = self._decode(output)[0][0]
        return text.strip(), float(confidence)

    def _read_all(self, picture: Picture, quads: Sequence[Quad]) -> list[Line]:
        from rapidocr.utils.process_img import get_rotate_crop_image

        height, width = picture.rgb.shape[:2]
        source = picture.rgb_at(CROP_SIDE_PX) if max(width, height) > CROP_SIDE_PX else picture.rgb
        scale = np.array([source.shape[1] / width, source.shape[0] / height], np.float32)
        lines = []
        for quad in quads:
            # Cutting a box as large as the picture out of a megapixel takes 30 ms, three times as long as reading it.
            shrink = max(1, int(min(_sides(quad * scale)) / (4 * LINE_PX)))
            small = source if shrink == 1 else _shrunk(source, shrink)
            crop = get_rotate_crop_image(small, quad * scale / shrink)  # turns a tall crop to the left
            text, confidence = self.read(crop)
            if confidence < TURN_CONFIDENCE and _tall(quad):
                text, confidence = max((text, confidence), self.read(crop[::-1, ::-1]), key=lambda read: read[1])
            length = len("".join(text.split()))
            large = min(_sides(quad)) >= LARGE_SIDE * min(width, height)
            doubtful = (length <= 1 or (large and length <= 2)) and confidence < LONE_CONFIDENCE
            if large and doubtful:
                continue  # no text that nobody can read, but a round thing: its box would swamp `ocr_area`
            accepted = length > 0 and not doubtful and confidence >= self.min_confidence
            lines.append(Line(quad, text, confidence, accepted))
        return lines

    def _columns(self, picture: Picture) -> dict[str, Any]:
        height, width = picture.rgb.shape[:2]
        return columns_of(self.lines(picture), width, height, ENGINE)


def providers(device: str) -> list[Any]:
    """What onnxruntime is to run on, for `cpu`, `gpu` or `gpu:N`; ValueError that says what to install."""
    import onnxruntime

    if device == "cpu":
        return ["CPUExecutionProvider"]
    kind, _, number = device.partition(":")
    if kind != "gpu" or not (number or "0").isdigit():
        raise ValueError(f"ocr.device = {device!r}: name cpu, gpu or gpu:0")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise ValueError(
            f"ocr.device = {device!r}: this onnxruntime cannot use a GPU; "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


def columns_of(lines: Sequence[Line], width: int, height: int, engine: str) -> dict[str, Any]:
    """The columns of operator `ocr` for the lines of a picture, accepted ones in reading order first."""
    read = [line for line in lines if line.accepted]
    text = "\n".join(line.text for line in read)
    lengths = [len("".join(line.text.split())) for line in read]
    weighted = sum(line.confidence * length for line, length in zip(read, lengths, strict=True))
    area, border = covered([line.quad for line in lines], width, height)
    return {
        "ocr_text": text,
        "ocr_lines": len(read),
        "ocr_characters": sum(lengths),
        "ocr_confidence": weighted / sum(lengths) if read else None,
        "ocr_area": area,
        "ocr_border": border,
        "ocr_language": language(text),
        "ocr_boxes": [[float(value) for value in line.quad.reshape(-1)] for line in lines],
        "ocr_scores": [line.confidence for line in read],
        "ocr_engine": engine,
    }


@lru_cache
def revision() -> str:
    """First 16 hex digits of the SHA-256 of the ONNX files; loads no model. FileNotFoundError when one is absent."""
    digest = hashlib.sha256()
    for path in model_paths():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def input_size(width: int, height: int, pixels: int) -> tuple[int, int]:
    """Width and height of the detector's input: multiples of 32, the picture's aspect, never more than `pixels`."""
    scale = min(math.sqrt(pixels / (width * height)), MAX_ENLARGE)
    columns, rows = (max(1, round(side * scale / TILE_PX)) for side in (width, height))
    budget = pixels // TILE_PX**2
    while columns * rows > budget and max(columns, rows) > 1:
        if columns >= rows:
            columns -= 1
        else:
            rows -= 1
    return columns * TILE_PX, rows * TILE_PX


def reading_order(lines: Sequence[Line]) -> list[Line]:
    """Rows from the top, each from the left; where most lines are vertical, columns from the right, each from the top.

    A line joins a row when it overlaps the row's first line by half of the lower one's height.
    """
    vertical = 2 * sum(line.vertical for line in lines) > len(lines)
    across, along = (0, 1) if vertical else (1, 0)  # axis that counts rows (or columns), axis within one
    sign = -1 if vertical else 1
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: sign * float(line.quad[:, across].mean())):
        low, high = line.quad[:, across].min(), line.quad[:, across].max()
        for row in rows:
            first, last = row[0].quad[:, across].min(), row[0].quad[:, across].max()
            if min(high, last) - max(low, first) >= 0.5 * min(high - low, last - first):
                row.append(line)
                break
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: float(line.quad[:, along].min()))]


def language(text: str) -> str:
    """Script of `text`: zh, en, mixed, other (kana, Hangul, Cyrillic, digits alone, ...) or none (no text).

    Nine tenths of the Han and Latin letters decide between zh and en; one kana or Hangul letter in twenty is other.
    """
    if not text.strip():
        return "none"
    han = latin = other = kana = 0
    for character in text:
        if not character.isalpha():
            continue
        name = unicodedata.name(character, "")
        if name.startswith("CJK "):
            han += 1
        elif name.startswith(("LATIN ", "FULLWIDTH LATIN ")):
            latin += 1
        elif name.startswith(("HIRAGANA ", "KATAKANA ", "HALFWIDTH KATAKANA ", "HANGUL ")):
            kana += 1
        else:
            other += 1
    letters = han + latin + other + kana
    if letters == 0 or 20 * kana >= letters or 2 * other >= letters:
        return "other"
    share = han / (han + latin)
    return "zh" if share >= 0.9 else "en" if share <= 0.1 else "mixed"


def covered(quads: Sequence[Quad], width: int, height: int) -> tuple[float, float]:
    """Share of the picture under the union of `quads`, and the share of that union within 10 % of an edge."""
    if not quads:
        return 0.0, 0.0
    import shapely  # type: ignore[import-untyped]

    frame = shapely.box(0, 0, width, height)
    inner = shapely.box(BORDER * width, BORDER * height, (1 - BORDER) * width, (1 - BORDER) * height)
    union = shapely.union_all([shapely.convex_hull(shapely.MultiPoint(quad)) for quad in quads]).intersection(frame)
    if union.area == 0:
        return 0.0, 0.0
    return float(union.area / (width * height)), float(1 - union.intersection(inner).area / union.area)


def _shrunk(rgb: Bytes, factor: int) -> Bytes:
    height, width = rgb.shape[:2]
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _sides(quad: Quad) -> tuple[float, float]:
    """Length of the top and of the left side."""
    return float(np.linalg.norm(quad[1] - quad[0])), float(np.linalg.norm(quad[3] - quad[0]))


def _tall(quad: Quad) -> bool:
    wide, high = _sides(quad)
    return high >= 1.5 * wide


def model_paths() -> tuple[Path, Path]:
    """The detector's and the recogniser's ONNX file inside RapidOCR's wheel; FileNotFoundError says what to install."""
    found = importlib.util.find_spec("rapidocr")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("ocr: the package rapidocr is not installed; run pip install 'rapidocr>=3.9,<4'")
    folder = Path(found.submodule_search_locations[0]) / "models"
    for name in (DETECTOR, RECOGNISER):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"ocr: {folder / name} is missing, and curate downloads nothing by itself; "
                "install a rapidocr wheel that carries it: pip install --force-reinstall 'rapidocr>=3.9,<4'"
            )
    return folder / DETECTOR, folder / RECOGNISER
