"""OCR on rendered and on real text."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from schemas.columns import OPERATORS
from workers import ocr
from workers.denormals import without_denormals
from workers.ocr import Line, RapidOcr, covered, input_size, language, model_paths, reading_order
from workers.sample import Sample


@pytest.fixture(scope="module")
def worker() -> RapidOcr:
    return RapidOcr()


@pytest.fixture(scope="module")
def chinese() -> str:
    """Path of a font with Chinese characters."""
    usual = (
        "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
        "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    )
    found = next((path for path in usual if Path(path).is_file()), None)
    if found is None and shutil.which("fc-match"):
        listed = subprocess.run(["fc-list", ":lang=zh", "file"], capture_output=True, text=True, check=True).stdout
        found = next((line.rstrip(": \n") for line in listed.splitlines()), None)
    if found is None:
        pytest.skip("no font with Chinese characters is installed")
    return found


def drawn(size: tuple[int, int], *texts: tuple[int, int, int, str], font: str | None = None) -> Sample:
    """White picture with black texts, each (left, top, px, text)."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for left, top, px, text in texts:
        face = ImageFont.truetype(font, px) if font else ImageFont.load_default(px)
        draw.text((left, top), text, font=face, fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Sample(0, buffer.getvalue(), {})


def quad(left: float, top: float, width: float, height: float) -> ocr.Quad:
    right, bottom = left + width, top + height
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def lines(*places: tuple[str, float, float, float, float]) -> list[Line]:
    return [Line(quad(*place), text, 1.0, True) for text, *place in places]


def texts(ordered: Sequence[Line]) -> list[str]:
    return [line.text for line in ordered]


def test_english_is_read_with_its_place_and_measures(worker: RapidOcr) -> None:
    (columns,) = worker([drawn((800, 600), (200, 250, 60, "Golden Gate"))])
    assert columns["ocr_text"].replace(" ", "") == "GoldenGate"
    assert (columns["ocr_lines"], columns["ocr_characters"], columns["ocr_language"]) == (1, 10, "en")
    assert columns["ocr_confidence"] > 0.9 and columns["ocr_scores"] == pytest.approx([columns["ocr_confidence"]])
    xs, ys = columns["ocr_boxes"][0][::2], columns["ocr_boxes"][0][1::2]
    assert 185 <= min(xs) <= 205 and 500 <= max(xs) <= 570 and 245 <= min(ys) <= 270 and 300 <= max(ys) <= 330
    assert columns["ocr_area"] == pytest.approx((max(xs) - min(xs)) * (max(ys) - min(ys)) / (800 * 600), rel=0.1)
    assert columns["ocr_border"] == 0.0
    assert set(columns) == {column.name for column in OPERATORS["ocr"]}


def test_a_picture_without_text_has_no_line_and_no_confidence(worker: RapidOcr) -> None:
    (columns,) = worker([drawn((640, 480))])
    assert (columns["ocr_text"], columns["ocr_lines"], columns["ocr_characters"]) == ("", 0, 0)
    assert (columns["ocr_confidence"], columns["ocr_area"], columns["ocr_border"]) == (None, 0.0, 0.0)
    assert (columns["ocr_language"], columns["ocr_boxes"], columns["ocr_scores"]) == ("none", [], [])


def test_lines_come_row_by_row_and_a_caption_at_the_edge_counts_as_border(worker: RapidOcr) -> None:
    (columns,) = worker([drawn((900, 700), (500, 200, 50, "right"), (60, 205, 50, "left"), (60, 650, 36, "bottom"))])
    assert columns["ocr_text"].split("\n") == ["left", "right", "bottom"]
    assert 0.1 < columns["ocr_border"] < 0.9


def test_chinese_and_both_scripts_are_told_apart(worker: RapidOcr, chinese: str) -> None:
    poster = drawn((800, 600), (100, 250, 70, "北京欢迎你"), font=chinese)
    both = drawn((800, 600), (60, 100, 60, "开业大吉"), (60, 300, 60, "Grand Opening"), font=chinese)
    first, second = worker([poster, both])
    assert (first["ocr_text"], first["ocr_language"]) == ("北京欢迎你", "zh")
    assert second["ocr_text"].replace(" ", "") == "开业大吉\nGrandOpening"
    assert second["ocr_language"] == "mixed"


def test_vertical_chinese_is_read_from_the_right(worker: RapidOcr, chinese: str) -> None:
    columns = ("春眠不觉晓", "处处闻啼鸟", "夜来风雨声")
    characters = [
        (450 - 150 * column, 60 + 58 * row, 48, character)
        for column, line in enumerate(columns)
        for row, character in enumerate(line)
    ]
    assert worker([drawn((600, 600), *characters, font=chinese)])[0]["ocr_text"] == "\n".join(columns)


def test_text_that_runs_up_or_down_is_read(worker: RapidOcr) -> None:
    upright = Image.fromarray(drawn((900, 300), (60, 100, 80, "Grand Opening")).picture.rgb)
    for angle in (90, 270):
        buffer = io.BytesIO()
        upright.rotate(angle, expand=True).save(buffer, "PNG")
        assert worker([Sample(0, buffer.getvalue(), {})])[0]["ocr_text"].replace(" ", "") == "GrandOpening"


def test_known_pictures_give_their_known_texts(worker: RapidOcr, shared: Path) -> None:
    truth = json.loads((shared / "images" / "truth.json").read_text(encoding="utf-8"))
    missing = []
    for name, facts in truth.items():
        (columns,) = worker([Sample(0, (shared / "images" / name).read_bytes(), {})])
        text = columns["ocr_text"].replace(" ", "")
        missing += [(name, part) for part in facts["text_contains"] if part.replace(" ", "") not in text]
        if facts["text_contains"] == []:
            assert (name, text, columns["ocr_area"] < 0.02) == (name, "", True)
    assert missing == []


@pytest.mark.parametrize("name", ["coffee.png", "moon.png", "chelsea.png", "clock_motion.png", "retina.jpg"])
def test_round_and_fluffy_things_are_no_letters(name: str, worker: RapidOcr) -> None:
    skimage = pytest.importorskip("skimage.data")
    data = (Path(skimage.__file__).parent / name).read_bytes()
    (columns,) = worker([Sample(0, data, {})])
    assert (columns["ocr_text"], columns["ocr_area"] < 0.02) == ("", True)


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (2000, 5)])
def test_odd_sizes_have_no_text_and_no_error(size: tuple[int, int], worker: RapidOcr) -> None:
    assert worker([drawn(size)])[0]["ocr_lines"] == 0


def test_a_batch_keeps_its_order_and_answers_the_same_twice(worker: RapidOcr) -> None:
    def batch() -> list[Sample]:
        return [drawn((400, 300), (60, 100, 40, word)) for word in ("alpha", "gamma", "delta")]

    assert [columns["ocr_text"] for columns in worker(batch())] == ["alpha", "gamma", "delta"]
    assert worker(batch()) == worker(batch())


def test_the_detector_without_its_denormal_weights_answers_to_the_last_bit() -> None:
    import onnxruntime

    path = model_paths()[0]
    model = without_denormals(path)
    before, after = (np.frombuffer(data[1:-1][: len(model) // 4 * 4 - 4], "<f4") for data in (path.read_bytes(), model))
    assert len(path.read_bytes()) == len(model)
    assert np.count_nonzero(before.view("<u4") != after.view("<u4")) > 100_000
    planes = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    maps = []
    for source in (str(path), model):
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        maps.append(session.run(None, {session.get_inputs()[0].name: planes})[0])
    assert maps[0].tobytes() == maps[1].tobytes()


def test_what_is_no_onnx_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x0f no model")
    with pytest.raises(ValueError, match="no ONNX model"):
        without_denormals(tmp_path / "model.onnx")


def test_overlapping_boxes_are_counted_once() -> None:
    area, border = covered([quad(20, 20, 20, 20), quad(30, 20, 20, 20)], 100, 100)
    assert area == pytest.approx(30 * 20 / 100**2) and border == 0.0
    area, border = covered([quad(0, 0, 20, 10)], 100, 100)
    assert area == pytest.approx(0.02) and border == pytest.approx(1.0)


def test_rows_and_columns_give_the_reading_order() -> None:
    rows = lines(("d", 200, 100, 80, 20), ("b", 200, 6, 80, 20), ("a", 0, 0, 80, 20), ("c", 0, 104, 80, 20))
    assert texts(reading_order(rows)) == ["a", "b", "c", "d"]
    columns = lines(("third", 0, 0, 20, 200), ("first", 100, 0, 20, 200), ("second", 50, 10, 20, 200))
    assert texts(reading_order(columns)) == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "none"),
        ("正品促销 5.8", "zh"),
        ("Golden Gate 2024", "en"),
        ("Café Zürich", "en"),
        ("开业大吉 SALE", "mixed"),
        ("農村の学校で、伝統演劇の特別クラス", "other"),
        ("안녕하세요", "other"),
        ("Привет", "other"),
        ("5.8 / 100", "other"),
    ],
)
def test_the_script_of_a_text_has_one_name(text: str, expected: str) -> None:
    assert language(text) == expected


def test_the_input_never_exceeds_its_budget() -> None:
    for size in [(1000, 1000), (1224, 816), (4000, 100), (1, 5000), (323, 430), (12000, 9000)]:
        width, height = input_size(*size, 221184)
        assert width % 32 == height % 32 == 0 and 0 < width * height <= 221184


def test_loading_and_reading_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    RapidOcr()([drawn((400, 300), (60, 100, 40, "quiet"))])
    assert capfd.readouterr() == ("", "")


def test_the_revision_needs_no_model_in_memory() -> None:
    code = "import sys; from workers import ocr; print(ocr.revision(), 'onnxruntime' in sys.modules)"
    root = Path(ocr.__file__).resolve().parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    revision, loaded = run.stdout.split()
    assert (len(revision), revision, loaded) == (16, ocr.revision(), "False")
