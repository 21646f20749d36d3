"""Text in the picture by PaddleOCR 3.x, in a process and an environment of its own (paddle_child.py).

Without models of its own it reads with the ONNX files that lie in RapidOCR's wheel, by onnxruntime: no paddlepaddle, no
download. `detector` and `recogniser` name folders of other models (inference.yml beside the weights), `options` go to
PaddleOCR as they are, for example engine and device of a GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import RowError
from workers.embedder import WeightsError
from workers.ocr import Line, columns_of, model_paths, reading_order
from workers.picture import Picture
from workers.sample import Sample

VERSION = 1
ENGINE = "paddleocr PP-OCRv6 small"
NAMES = ("PP-OCRv6_small_det", "PP-OCRv6_small_rec")


class PaddleOcr:
    """Lines of text with their boxes, in the columns of `RapidOcr`.

    `python` is the interpreter of an environment that has paddleocr; empty takes this one. Lines read with less than
    `min_confidence` are left out of the text, their boxes count in the area. Raises WeightsError when the process does
    not start or the models do not load.
    """

    def __init__(
        self,
        *,
        python: str = "",
        detector: str = "",
        recogniser: str = "",
        min_confidence: float = 0.6,
        device: str = "cpu",
    ) -> None:
        self.min_confidence = min_confidence
        self._folder = tempfile.TemporaryDirectory(prefix="curate-paddle-")
        folders = [Path(given) if given else None for given in (detector, recogniser)]
        options: dict[str, Any] = {"device": device, "text_rec_score_thresh": 0.0}
        if not any(folders):
            folders = list(wheel_models(Path(self._folder.name)))
            options |= {"engine": "onnxruntime"}
        for kind, name, folder in zip(("detection", "recognition"), NAMES, folders, strict=True):
            if folder is None or not (folder / "inference.yml").is_file():
                self._folder.cleanup()
                raise WeightsError(f"ocr: {folder or 'no folder'}: a model folder of PaddleOCR holds inference.yml")
            options |= {f"text_{kind}_model_dir": str(folder), f"text_{kind}_model_name": _name(folder) or name}
        self._options = options
        self._python = python or sys.executable
        self._start()

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [self._columns(sample.picture) for sample in samples]

    def lines(self, picture: Picture) -> list[Line]:
        """Every detected box, accepted lines first and in reading order."""
        found = self._ask(picture.rgb)
        read = [
            Line(
                np.asarray(polygon, np.float32),
                text.strip(),
                score,
                bool(text.strip()) and score >= self.min_confidence,
            )
            for polygon, text, score in zip(found["rec_polys"], found["rec_texts"], found["rec_scores"], strict=True)
        ]
        known = {tuple(map(tuple, line.quad.tolist())) for line in read}
        boxes = [np.asarray(polygon, np.float32) for polygon in found["dt_polys"]]
        unread = [Line(box, "", 0.0, False) for box in boxes if tuple(map(tuple, box.tolist())) not in known]
        return reading_order([line for line in read if line.accepted]) + [
            line for line in (*read, *unread) if not line.accepted
        ]

    def close(self) -> None:
        """End the process and remove its folder."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        with contextlib.suppress(OSError):  # what was not read by a process that died
            self._child.communicate(timeout=30)

    def _columns(self, picture: Picture) -> dict[str, Any]:
        height, width = picture.rgb.shape[:2]
        return columns_of(self.lines(picture), width, height, ENGINE)

    def _start(self) -> None:
        script = Path(__file__).with_name("paddle_child.py")
        try:
            self._child = subprocess.Popen(
                [self._python, str(script), json.dumps(self._options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as why:
            self._folder.cleanup()
            raise WeightsError(f"ocr.python = {self._python!r}: {why.strerror}") from None
        try:
            self._answer()
        except RowError as failure:
            self.close()
            raise WeightsError(
                f"paddleocr does not start in {self._python}: {failure.message}; make an environment for it: python -m "
                "venv DIR; DIR/bin/pip install 'paddleocr>=3.7' onnxruntime; and set ocr.python = 'DIR/bin/python'"
            ) from None

    def _ask(self, rgb: Any) -> dict[str, Any]:
        if self._child.poll() is not None:
            self._end()
            self._start()
        assert self._child.stdin is not None
        head = json.dumps({"height": rgb.shape[0], "width": rgb.shape[1]}).encode()
        try:
            self._child.stdin.write(head + b"\n" + np.ascontiguousarray(rgb).tobytes())
            self._child.stdin.flush()
        except OSError:
            raise RowError("operator_failed", "PaddleOCR's process ended") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            raise RowError("operator_failed", f"PaddleOCR's process ended with code {self._child.returncode}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RowError("operator_failed", f"PaddleOCR: {answer['error']}")
        return answer


def revision(detector: str = "", recogniser: str = "") -> str:
    """First 16 hex digits of the SHA-256 of the model files; of RapidOCR's wheel where no folder is named."""
    digest = hashlib.sha256()
    files: list[Path] = list(model_paths())
    if detector or recogniser:
        files = [file for folder in (detector, recogniser) for file in sorted(Path(folder).glob("inference.*"))]
    if not files:
        raise WeightsError(f"ocr: {detector} and {recogniser} hold no inference.* files")
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def wheel_models(folder: Path) -> tuple[Path, Path]:
    """The ONNX files of RapidOCR's wheel as two model folders of PaddleOCR, written below `folder`."""
    import onnxruntime

    detector, recogniser = model_paths()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(recogniser), options, providers=["CPUExecutionProvider"])
    alphabet = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    normalize = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": "1./255.", "order": "hwc"}
    steps: dict[str, tuple[Path, list[Any], dict[str, Any]]] = {
        NAMES[0]: (
            detector,
            [
                {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}, {"DetLabelEncode": None},
                {"DetResizeForTest": {"resize_long": 960}}, {"NormalizeImage": normalize}, {"ToCHWImage": None},
                {"KeepKeys": {"keep_keys": ["image", "shape", "polys", "ignore_tags"]}},
            ],
            {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5},
        ),
        NAMES[1]: (
            recogniser,
            [
                {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
                {"MultiLabelEncode": {"gtc_encode": "NRTRLabelEncode"}},
                {"RecResizeImg": {"image_shape": [3, 48, 320]}},
                {"KeepKeys": {"keep_keys": ["image", "label_ctc", "label_gtc", "length", "valid_ratio"]}},
            ],
            {"name": "CTCLabelDecode", "character_dict": alphabet},
        ),
    }  # fmt: skip
    for name, (model, before, after) in steps.items():
        (folder / name).mkdir()
        (folder / name / "inference.onnx").symlink_to(model)
        config = {"Global": {"model_name": name}, "PreProcess": {"transform_ops": before}, "PostProcess": after}
        # JSON is YAML.
        (folder / name / "inference.yml").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    return folder / NAMES[0], folder / NAMES[1]


def _name(folder: Path) -> str:
    """Global.model_name of a model folder, without a YAML library: the line says it."""
    for line in (folder / "inference.yml").read_text("utf-8", "replace").splitlines():
        key, _, value = line.strip().partition(":")
        if key == "model_name":
            return value.strip().strip("'\"")
    return ""
