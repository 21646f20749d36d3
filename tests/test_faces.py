"""Face detectors on real pictures."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.columns import OPERATORS
from workers.faces import Haar, YuNet, revision, suppress
from workers.sample import Sample


def bundled(name: str) -> Sample:
    skimage = pytest.importorskip("skimage.data")
    return Sample(0, (Path(skimage.__file__).parent / name).read_bytes(), {})


def drawn(image: Image.Image) -> Sample:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Sample(0, buffer.getvalue(), {})


@pytest.fixture(scope="module")
def haar() -> Haar:
    return Haar()


@pytest.fixture(scope="module")
def yunet(shared: Path) -> YuNet:
    return YuNet(shared / "weights" / "face_detection_yunet_n_640_640.onnx")


def assert_astronaut(columns: dict[str, Any]) -> None:
    assert columns["faces"] == 1
    left, top, width, height, _ = columns["face_boxes"][0]
    assert left < 205 and left + width > 245  # the eyes are at (205, 105) and (245, 105)
    assert top < 105 < top + height < 230
    assert columns["face_area"] == pytest.approx(width * height / 512**2)


def test_haar_finds_the_astronaut_once_in_the_pixels_of_the_picture(haar: Haar) -> None:
    (columns,) = haar([bundled("astronaut.png")])
    assert_astronaut(columns)
    assert columns["face_engine"] == "haar"
    assert set(columns) == {column.name for column in OPERATORS["faces"]}


def test_yunet_finds_the_astronaut_once_in_the_pixels_of_the_picture(yunet: YuNet) -> None:
    (columns,) = yunet([bundled("astronaut.png")])
    assert_astronaut(columns)
    assert columns["face_engine"] == "yunet"
    assert set(columns) == {column.name for column in OPERATORS["faces"]}


def test_boxes_follow_the_face_in_a_wide_picture(haar: Haar) -> None:
    astronaut = Image.fromarray(bundled("astronaut.png").picture.rgb)
    wide = Image.new("RGB", (1000, 512), "gray")
    wide.paste(astronaut, (400, 0))
    left, top, width, _, _ = haar([drawn(wide)])[0]["face_boxes"][0]
    assert 560 < left < 605 and 645 < left + width < 760 and top < 105


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "rocket.jpg"])
def test_a_cat_and_textures_are_no_face(name: str, haar: Haar) -> None:
    (columns,) = haar([bundled(name)])
    assert (columns["faces"], columns["face_area"], columns["face_boxes"]) == (0, 0.0, [])


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "rocket.jpg"])
def test_a_cat_and_textures_are_no_face_for_yunet(name: str, yunet: YuNet) -> None:
    assert yunet([bundled(name)])[0]["faces"] == 0


@pytest.mark.parametrize("engine", ["haar", "yunet"])
def test_known_pictures_have_their_known_number_of_faces(
    engine: str, shared: Path, request: pytest.FixtureRequest
) -> None:
    worker = request.getfixturevalue(engine)
    truth = json.loads((shared / "images" / "truth.json").read_text(encoding="utf-8"))
    known = {name: facts["faces"] for name, facts in truth.items() if "faces" in facts}
    found = {name: worker([Sample(0, (shared / "images" / name).read_bytes(), {})])[0]["faces"] for name in known}
    assert found == known


def test_a_hand_that_one_cascade_takes_for_a_face_is_refused_by_the_other(haar: Haar) -> None:
    suit = np.ascontiguousarray(bundled("astronaut.png").picture.rgb[287:512, 51:460])
    assert haar([drawn(Image.fromarray(suit))])[0]["faces"] == 0


def test_a_face_below_the_least_side_is_not_counted(shared: Path) -> None:
    weights = shared / "weights" / "face_detection_yunet_n_640_640.onnx"
    assert YuNet(weights, min_side=0.3)([bundled("astronaut.png")])[0]["faces"] == 0
    assert Haar(min_side=0.3)([bundled("astronaut.png")])[0]["faces"] == 0


def test_a_higher_score_threshold_rejects_the_face(shared: Path) -> None:
    weights = shared / "weights" / "face_detection_yunet_n_640_640.onnx"
    assert YuNet(weights, min_score=0.99)([bundled("astronaut.png")])[0]["faces"] == 0
    assert Haar(min_score=50.0)([bundled("astronaut.png")])[0]["faces"] == 0


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (20, 20)])
def test_odd_sizes_have_no_face_and_no_error(size: tuple[int, int], haar: Haar, yunet: YuNet) -> None:
    for worker in (haar, yunet):
        assert worker([drawn(Image.new("RGB", size, "white"))])[0]["faces"] == 0


def test_a_batch_keeps_its_order_and_answers_the_same_twice(haar: Haar) -> None:
    def batch() -> list[Sample]:
        return [bundled("chelsea.png"), bundled("astronaut.png"), bundled("coffee.png")]

    assert [columns["faces"] for columns in haar(batch())] == [0, 1, 0]
    assert haar(batch()) == haar(batch())


def test_missing_weights_are_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx.*faces\.weights"):
        YuNet(tmp_path / "absent.onnx")
    with pytest.raises(FileNotFoundError, match="yunet"):
        revision("yunet")


def test_weights_that_are_no_model_are_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "notes.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"notes\.onnx is no YuNet model"):
        YuNet(tmp_path / "notes.onnx")


def test_the_revision_follows_the_bytes_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    assert revision("yunet", tmp_path / "a") == "ca978112ca1bbdca"
    assert revision("yunet", tmp_path / "a") != revision("yunet", tmp_path / "b")
    assert len(revision("haar")) == 16
    with pytest.raises(ValueError, match="haar or yunet"):
        revision("dlib")


def test_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    best, twin, apart = (10.0, 10.0, 50.0, 50.0, 0.9), (14.0, 12.0, 50.0, 50.0, 0.8), (200.0, 10.0, 50.0, 50.0, 0.7)
    assert suppress([twin, apart, best]) == [best, apart]


def test_values_are_plain_and_finite(haar: Haar) -> None:
    (columns,) = haar([bundled("astronaut.png")])
    assert type(columns["faces"]) is int and type(columns["face_area"]) is float
    assert all(type(value) is float and math.isfinite(value) for value in np.ravel(columns["face_boxes"]).tolist())
