"""PaddleOCR in an environment of its own, on the models of RapidOCR's wheel: the same columns, nearly the same text.

`make paddle` makes that environment (.venv-paddle); CURATE_PADDLE_PYTHON names another one.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw, ImageFont

from schemas.columns import OPERATORS
from workers.embedder import WeightsError
from workers.ocr import RapidOcr
from workers.paddle import PaddleOcr, revision, wheel_models
from workers.sample import Sample


@pytest.fixture(scope="module")
def paddle() -> Iterator[PaddleOcr]:
    python = Path(os.environ.get("CURATE_PADDLE_PYTHON") or ROOT / ".venv-paddle" / "bin" / "python")
    if not python.exists():
        pytest.skip("no environment with paddleocr; make one with: make paddle")
    reader = PaddleOcr(python=str(python))
    yield reader
    reader.close()


def poster(*lines: str, size: tuple[int, int] = (640, 360)) -> Sample:
    picture = Image.new("RGB", size, (236, 232, 220))
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        draw.text((40, 40 + 90 * i), line, (30, 40, 60), font=ImageFont.load_default(48))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Sample(0, file.getvalue(), {})


def test_both_engines_write_the_same_columns_and_read_the_same_lines(paddle: PaddleOcr) -> None:
    samples = [poster("OPEN 24 HOURS", "COFFEE AND TEA"), poster("Exit 7"), poster()]
    rapid, other = RapidOcr()(samples), paddle(samples)
    for a, b in zip(rapid, other, strict=True):
        assert set(a) == set(b) == {column.name for column in OPERATORS["ocr"]}
        assert a["ocr_text"].replace(" ", "") == b["ocr_text"].replace(" ", "")
        assert a["ocr_lines"] == b["ocr_lines"]
        assert a["ocr_language"] == b["ocr_language"]
        assert abs(a["ocr_area"] - b["ocr_area"]) < 0.05
        assert b["ocr_engine"].startswith("paddleocr")
        for x, y in zip(sorted(a["ocr_boxes"]), sorted(b["ocr_boxes"]), strict=True):
            assert np.abs(np.array(x) - np.array(y)).max() < 30  # px: the engines grow boxes by 1.6 and by 1.5
    assert other[2]["ocr_text"] == ""
    assert other[2]["ocr_confidence"] is None


def test_chinese_is_read_as_rapidocr_reads_it(paddle: PaddleOcr, shared: Path) -> None:
    sample = Sample(0, (shared / "images" / "poster_zh.jpg").read_bytes(), {})
    (rapid,), (other,) = RapidOcr()([sample]), paddle([sample])
    assert other["ocr_language"] == rapid["ocr_language"] == "zh"
    read, lines = set(rapid["ocr_text"]), other["ocr_text"]
    assert len(read & set(lines)) >= 0.8 * len(read)


def test_a_process_that_died_is_started_again(paddle: PaddleOcr) -> None:
    paddle._child.kill()
    paddle._child.wait()
    assert paddle([poster("Exit 7")])[0]["ocr_lines"] == 1


def test_an_environment_without_paddleocr_is_one_clear_line() -> None:
    with pytest.raises(WeightsError, match=r"paddleocr does not start in .*ModuleNotFoundError.*set ocr\.python"):
        PaddleOcr(python=sys.executable)
    with pytest.raises(WeightsError, match=r"ocr\.python = '/no/such/python': No such file"):
        PaddleOcr(python="/no/such/python")
    with pytest.raises(WeightsError, match=r"a model folder of PaddleOCR holds inference\.yml"):
        PaddleOcr(detector="/no/such/folder", recogniser="/no/such/folder")


def test_the_wheel_s_models_become_folders_that_paddleocr_reads(tmp_path: Path) -> None:
    for folder in wheel_models(tmp_path):
        assert (folder / "inference.onnx").is_file()
        assert f'"model_name": "{folder.name}"' in (folder / "inference.yml").read_text("utf-8")
    assert revision() == revision()
    with pytest.raises(WeightsError, match=r"hold no inference"):
        revision(str(tmp_path), str(tmp_path))
