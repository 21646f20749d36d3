"""Size, identity, sharpness, photometry and the aesthetic baseline on pictures with known answers."""

from __future__ import annotations

import hashlib
import io
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pdqhash
import pytest
from PIL import Image

from curate.dedup.turns import TURNS, turn_hashes, turn_looks
from schemas.columns import OPERATORS
from schemas.errors import RowError
from workers import aesthetic
from workers.identity import identity
from workers.photometry import COLOR_NAMES, NAMES, border, color_names, photometry
from workers.sample import Sample
from workers.sharpness import sharpness
from workers.size import size

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def sample(source: Pixels | Image.Image | bytes, kind: str = "BMP", **options: Any) -> Sample:
    if isinstance(source, bytes):
        return Sample(0, source, {})
    buffer = io.BytesIO()
    (source if isinstance(source, Image.Image) else Image.fromarray(source)).save(buffer, kind, **options)
    return Sample(0, buffer.getvalue(), {})


@pytest.fixture(scope="module")
def photographs() -> dict[str, Image.Image]:
    skimage = pytest.importorskip("skimage")
    folder = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    return {name: Image.open(folder / name).convert("RGB") for name in names}


def noise(height: int = 120, width: int = 160, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def every_column(photo: Image.Image) -> dict[str, Any]:
    one = sample(photo)
    return size([one])[0] | identity([one])[0] | sharpness([one])[0] | photometry([one])[0]


@pytest.mark.parametrize(("operator", "worker"), [
    ("size", size), ("identity", identity), ("sharpness", sharpness), ("photometry", photometry),
])  # fmt: skip
def test_a_scorer_writes_its_declared_columns_as_plain_values(operator: str, worker: Any) -> None:
    rows = worker([sample(noise()), sample(noise(40, 30)), sample(np.zeros((9, 1, 3), np.uint8))])
    assert len(rows) == 3
    for row in rows:
        assert set(row) == {column.name for column in OPERATORS[operator]}
        for value in row.values():
            items = value if isinstance(value, list) else [value]
            assert all(type(item) in (int, float, str, bool, type(None)) for item in items), value
            assert not any(isinstance(item, float) and not np.isfinite(item) for item in items)


# size


def test_size_tells_the_header() -> None:
    one = sample(Image.new("L", (300, 200)), "JPEG")
    assert size([one])[0] == {
        "bytes": len(one.bytes), "format": "JPEG", "mode": "L", "width": 300, "height": 200, "aspect": 1.5,
        "bits_per_pixel": 8 * len(one.bytes) / 60_000, "frames": 1, "exif_orientation": 1,
    }  # fmt: skip


def test_size_of_a_damaged_file_raises_with_what_the_header_says() -> None:
    whole = sample(noise())
    with pytest.raises(RowError) as caught:
        size([Sample(0, whole.bytes[:5000], {})])
    assert caught.value.code == "truncated"
    assert caught.value.columns == size([whole])[0] | {"bytes": 5000, "bits_per_pixel": 40_000 / 19_200}


# identity


def test_damaged_and_missing_bytes_have_an_identity_as_far_as_they_go() -> None:
    damaged = sample(noise()).bytes[:500]
    missing = RowError("missing_file", "gone")
    rows = identity([Sample(0, damaged, {}), Sample(1, b"", {}), Sample(2, None, {}), Sample(3, missing, {})])
    nothing = dict.fromkeys(column.name for column in OPERATORS["identity"])
    assert rows == [nothing | {"sha256": hashlib.sha256(damaged).hexdigest()}, nothing, nothing, nothing]


def differing(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_copies_of_other_size_and_quality_are_near_duplicates(photographs: dict[str, Image.Image]) -> None:
    for name, photo in photographs.items():
        original = identity([sample(photo)])[0]
        assert len(original["pdq"]) == 64
        for scale, quality in ((2.0, 90), (0.7, 75), (0.4, 60)):
            copy = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
            other = identity([sample(copy, "JPEG", quality=quality)])[0]
            assert other["sha256"] != original["sha256"]
            assert differing(original["pdq"], other["pdq"]) <= 31, (name, scale)


def test_different_pictures_are_no_duplicates(photographs: dict[str, Image.Image]) -> None:
    hashes = [identity([sample(photo)])[0]["pdq"] for photo in photographs.values()]
    assert min(differing(one, other) for one, other in combinations(hashes, 2)) > 80


def test_pdq_is_pdqhash_at_the_same_size(photographs: dict[str, Image.Image]) -> None:
    for photo in photographs.values():
        one = sample(photo)
        luma = one.picture.gray_at(512)
        vector, quality = pdqhash.compute(cv2.cvtColor(luma, cv2.COLOR_GRAY2RGB))
        expected = "".join(f"{int(''.join(map(str, nibble)), 2):x}" for nibble in vector.reshape(64, 4))
        row = identity([one])[0]
        assert differing(row["pdq"], expected) <= 8
        assert abs(row["pdq_quality"] - quality) <= 3


TURNED = {
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT, "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "rotated 180": Image.Transpose.ROTATE_180, "transposed": Image.Transpose.TRANSPOSE,
    "rotated 90": Image.Transpose.ROTATE_270, "rotated 270": Image.Transpose.ROTATE_90,
    "transverse": Image.Transpose.TRANSVERSE,
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNED)
def test_the_hash_and_look_of_a_turned_picture_follow_from_its_own(
    photographs: dict[str, Image.Image], turn: str
) -> None:
    for name, photo in photographs.items():
        one = identity([sample(photo)])[0]
        other = identity([sample(photo.transpose(TURNED[turn]))])[0]
        at = TURNS.index(turn)
        words = np.frombuffer(bytes.fromhex(one["pdq_centred"]), np.uint32).reshape(1, 8)
        tiles = np.frombuffer(bytes.fromhex(one["look"]), np.uint8).reshape(1, 3, 3, 3)
        assert differing(turn_hashes(words, at).tobytes().hex(), other["pdq_centred"]) <= 20, name
        seen = np.frombuffer(bytes.fromhex(other["look"]), np.uint8).reshape(1, 3, 3, 3)
        assert np.abs(turn_looks(tiles, at).astype(int) - seen).max() <= 2, name
        assert differing(one["pdq_centred"], other["pdq_centred"]) > 31, name


def test_equal_pixels_have_one_hash_whatever_the_file_and_other_shapes_another() -> None:
    pixels = noise(60, 40)
    png, bmp = identity([sample(pixels, "PNG")])[0], identity([sample(pixels, "BMP")])[0]
    assert png["sha256"] != bmp["sha256"]
    assert png["pixels_hash"] == bmp["pixels_hash"]
    assert len(png["pixels_hash"]) == 32
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, 1))).save(out, "PNG", exif=exif)
    assert identity([Sample(0, out.getvalue(), {})])[0]["pixels_hash"] == png["pixels_hash"]
    flat = [identity([sample(np.zeros(shape, np.uint8))])[0]["pixels_hash"] for shape in ((40, 60, 3), (60, 40, 3))]
    assert flat[0] != flat[1]


def test_a_flat_picture_has_no_pdq_quality() -> None:
    assert identity([sample(np.full((200, 200, 3), 90, np.uint8))])[0]["pdq_quality"] < 50


# sharpness


def test_sharpness_falls_with_blur(photographs: dict[str, Image.Image]) -> None:
    for photo in photographs.values():
        pixels = np.asarray(photo)
        rows = sharpness([sample(pixels), *(sample(cv2.GaussianBlur(pixels, (0, 0), s)) for s in (1.0, 2.0, 4.0))])
        for column in rows[0]:
            scores = [row[column] for row in rows]
            assert all(sharp > soft for sharp, soft in pairwise(scores)), (column, scores)
            assert scores[0] > 2 * scores[-1], (column, scores)


def test_a_sharp_subject_before_a_blurred_ground_passes_on_its_tile(photographs: dict[str, Image.Image]) -> None:
    sharp = np.asarray(photographs["motorcycle_left.png"])
    blurred = cv2.GaussianBlur(sharp, (0, 0), 8)
    height, width = sharp.shape[:2]
    bokeh = blurred.copy()
    subject = (slice(height // 3, height * 2 // 3), slice(width // 3, width * 2 // 3))
    bokeh[subject] = sharp[subject]
    whole, mixed, soft = sharpness([sample(sharp), sample(bokeh), sample(blurred)])
    assert mixed["sharpness"] < 0.5 * whole["sharpness"]
    assert mixed["sharpness_tile"] > 0.5 * whole["sharpness_tile"]
    assert mixed["sharpness_tile"] > 20 * soft["sharpness_tile"]


def test_an_enlarged_picture_scores_like_its_small_original(photographs: dict[str, Image.Image]) -> None:
    for photo in photographs.values():
        small = photo.resize((256, round(256 * photo.height / photo.width)), Image.Resampling.LANCZOS)
        fake = small.resize((1536, round(1536 * small.height / small.width)), Image.Resampling.BICUBIC)
        true = photo.resize(fake.size, Image.Resampling.LANCZOS)
        original, enlarged, real = sharpness([sample(small), sample(fake), sample(true)])
        assert 0.4 < enlarged["sharpness_tile"] / original["sharpness_tile"] < 2.5
        assert enlarged["sharpness_tile"] < real["sharpness_tile"]


def test_sharpness_of_known_pixels() -> None:
    # One bright pixel on black at the canonical size: the Laplacian is -4, 1, 1, 1, 1 times 255 around it.
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    pixels[500, 500] = 255
    row = sharpness([sample(pixels)])[0]
    assert row["sharpness"] == pytest.approx(20 * 255**2 / 1024**2)
    assert row["sharpness_tile"] == pytest.approx(20 * 255**2 / 128**2)
    # Sobel: gx is 1 2 1 left and -1 -2 -1 right of it, and so is gy.
    assert row["tenengrad"] == pytest.approx(2 * 12 * 255**2 / 1024**2)


# photometry


def test_luma_statistics_of_half_black_half_white() -> None:
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    pixels[:, 512:] = 255
    row = photometry([sample(pixels)])[0]
    assert row["luma"] == pytest.approx(127.5)
    assert row["contrast"] == pytest.approx(127.5)
    assert (row["underexposed"], row["overexposed"]) == (0.5, 0.5)
    assert row["entropy"] == pytest.approx(1.0)
    assert (row["colorfulness"], row["saturation"]) == (0.0, 0.0)
    assert (row["colors"], row["color_shares"]) == (["black", "white"], [0.5, 0.5])


def test_exposure_counts_from_10_down_and_from_245_up() -> None:
    levels = np.repeat(np.array([10, 11, 244, 245], np.uint8), 128)
    row = photometry([sample(np.stack([np.tile(levels, (512, 1))] * 3, axis=-1))])[0]
    assert (row["underexposed"], row["overexposed"]) == (0.25, 0.25)


def test_colorfulness_is_hasler_and_suesstrunks() -> None:
    pixels = noise(256, 256)
    r, g, b = (pixels[..., i].astype(float) for i in range(3))
    rg, yb = r - g, (r + g) / 2 - b
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    row = photometry([sample(pixels)])[0]
    assert row["colorfulness"] == pytest.approx(expected, rel=1e-4)
    spread = (pixels.max(axis=2).astype(float) - pixels.min(axis=2)) / np.maximum(pixels.max(axis=2), 1)
    assert row["saturation"] == pytest.approx(spread.mean(), rel=1e-4)


def framed(photo: Image.Image, color: tuple[int, int, int], top: float, side: float, bottom: float) -> Image.Image:
    """`photo` with bars of these shares of its own height and width."""
    t, b, s = round(top * photo.height), round(bottom * photo.height), round(side * photo.width)
    canvas = Image.new("RGB", (photo.width + 2 * s, photo.height + t + b), color)
    canvas.paste(photo, (s, t))
    return canvas


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (30, 90, 160)])
@pytest.mark.parametrize(("top", "side", "bottom"), [
    (0.15, 0, 0.15), (0, 0.2, 0), (0.06, 0.06, 0.06), (0.02, 0.02, 0.02), (0.3, 0, 0), (0.05, 0.03, 0.25),
])  # fmt: skip
def test_bars_and_frames_are_measured(
    photographs: dict[str, Image.Image], color: tuple[int, int, int], top: float, side: float, bottom: float
) -> None:
    for name in ("chelsea.png", "coffee.png", "motorcycle_left.png"):
        photo = photographs[name]
        canvas = framed(photo, color, top, side, bottom)
        true = 1 - photo.width * photo.height / (canvas.width * canvas.height)
        found = photometry([sample(canvas, "JPEG", quality=85)])[0]["border"]
        assert found == pytest.approx(true, abs=0.03), (name, found, true)


def test_photographs_have_no_border(photographs: dict[str, Image.Image]) -> None:
    for name, photo in photographs.items():
        assert photometry([sample(photo)])[0]["border"] == 0, name


def test_a_night_sky_is_no_bar(photographs: dict[str, Image.Image]) -> None:
    night = np.zeros((400, 600, 3), np.uint8)
    random = np.random.default_rng(3)
    for left in range(0, 600, 20):  # a skyline of lit towers of many heights
        top = int(random.integers(180, 330))
        night[top:, left : left + 20] = random.integers(20, 200, (400 - top, 20, 3), np.uint8)
    assert photometry([sample(night)])[0]["border"] == 0
    moon = np.zeros((400, 600, 3), np.uint8)
    cv2.circle(moon, (300, 200), 120, (240, 240, 220), -1)
    assert photometry([sample(moon)])[0]["border"] == 0


def test_a_thing_on_studio_white_is_no_frame() -> None:
    studio = np.full((600, 600, 3), 255, np.uint8)
    cv2.ellipse(studio, (300, 300), (220, 260), 0, 0, 360, (180, 60, 40), -1)
    assert photometry([sample(studio)])[0]["border"] == 0
    portrait = np.full((600, 500, 3), 255, np.uint8)
    cv2.circle(portrait, (250, 200), 90, (200, 160, 130), -1)
    cv2.ellipse(portrait, (250, 600), (200, 280), 0, 180, 360, (60, 60, 90), -1)
    assert photometry([sample(portrait)])[0]["border"] == 0


def test_a_page_of_text_is_no_frame(shared: Path) -> None:
    for name in ("document_en.jpg", "news_ja.jpg", "test_1bit.png"):
        assert photometry([sample((shared / "images" / name).read_bytes())])[0]["border"] == 0, name


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_picture_has_no_border(level: int) -> None:
    assert border(np.full((200, 300, 3), level, np.uint8)) == 0


@pytest.mark.parametrize(("rgb", "name"), [
    ((0, 0, 0), "black"), ((255, 255, 255), "white"), ((128, 128, 128), "gray"), ((255, 0, 0), "red"),
    ((0, 128, 0), "green"), ((0, 0, 255), "blue"), ((0, 0, 128), "dark blue"), ((135, 206, 235), "light blue"),
    ((255, 255, 0), "yellow"), ((255, 165, 0), "orange"), ((128, 0, 128), "purple"), ((255, 192, 203), "pink"),
    ((139, 69, 19), "brown"), ((245, 222, 179), "beige"), ((0, 128, 128), "teal"), ((0, 255, 255), "cyan"),
    ((128, 128, 0), "olive"), ((0, 70, 0), "dark green"), ((144, 238, 144), "light green"), ((128, 0, 0), "dark red"),
    ((60, 60, 64), "dark gray"), ((211, 211, 211), "light gray"), ((200, 180, 230), "light purple"),
    ((198, 134, 66), "light brown"),
    # Where naive hue tables go wrong: indoor grey, overcast sky, deep shadow, skin.
    ((136, 130, 120), "gray"), ((196, 204, 212), "light gray"), ((24, 20, 22), "black"), ((141, 85, 36), "brown"),
    ((241, 194, 125), "beige"), ((255, 224, 189), "beige"), ((250, 249, 240), "white"),
])  # fmt: skip
def test_a_swatch_has_the_name_that_people_say(rgb: tuple[int, int, int], name: str) -> None:
    assert color_names(np.full((8, 8, 3), rgb, np.uint8)) == ([name], [1.0])


def test_every_color_name_can_be_said_in_chinese() -> None:
    assert len(COLOR_NAMES) == len(NAMES) == 24
    assert len(set(COLOR_NAMES.values())) == 24
    assert all(name.endswith("色") for name in COLOR_NAMES.values())


def test_colors_are_ordered_and_small_ones_left_out() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, :60], pixels[:, 60:90], pixels[:, 90:97] = (255, 0, 0), (0, 0, 255), (255, 255, 0)
    names, shares = color_names(pixels)
    assert names == ["red", "blue", "yellow"]
    assert shares == pytest.approx([0.6, 0.3, 0.07])


def test_a_picture_of_many_colors_names_at_most_four() -> None:
    names, shares = color_names(noise())
    assert len(names) == len(shares) <= 4
    assert len(color_names(noise(), min_share=0.9)[0]) == 1


def test_real_pictures_have_the_colors_that_one_sees(photographs: dict[str, Image.Image], shared: Path) -> None:
    assert photometry([sample(photographs["chelsea.png"])])[0]["colors"][0] == "brown"
    assert photometry([sample(photographs["rocket.jpg"])])[0]["colors"][0] == "dark blue"
    for name, color in (
        ("cats.jpg", "pink"),
        ("umbrella.jpg", "black"),
        ("black.jpg", "black"),
        ("bed.png", "light gray"),
    ):
        assert photometry([sample((shared / "images" / name).read_bytes())])[0]["colors"][0] == color


# aesthetic


def test_the_baseline_needs_no_pixels_and_names_itself() -> None:
    values = dict.fromkeys(aesthetic.NEEDS, 0.0)
    assert aesthetic.photometric([Sample(0, None, values)])[0]["aesthetic_engine"] == "photometric"
    assert set(aesthetic.NEEDS) <= {c.name for op in ("size", "sharpness", "photometry") for c in OPERATORS[op]}


def test_the_baseline_ranks_faults_below_sound_pictures(photographs: dict[str, Image.Image]) -> None:
    photo = photographs["coffee.png"].resize((1200, 800), Image.Resampling.LANCZOS)
    pixels = np.asarray(photo)
    sound = aesthetic.score(every_column(photo))
    faulty = {
        "blurred": cv2.GaussianBlur(pixels, (0, 0), 8),
        "dark": (pixels * 0.1).astype(np.uint8),
        "burnt": np.clip(pixels.astype(int) * 4 + 60, 0, 255).astype(np.uint8),
        "flat": (pixels * 0.15 + 110).astype(np.uint8),
        "tiny": np.asarray(photo.resize((120, 80))),
        "framed": np.asarray(framed(photo, (0, 0, 0), 0.2, 0, 0.2)),
    }
    for name, damaged in faulty.items():
        score = aesthetic.score(every_column(Image.fromarray(damaged)))
        assert 1 <= score < sound - 0.7, (name, score, sound)


def test_the_baseline_stays_between_1_and_10() -> None:
    best = dict(zip(aesthetic.NEEDS, (4000, 3000, 5000, 118, 70, 0, 0, 60, 0.4, 7.9, 0), strict=True))
    assert aesthetic.score(best) == pytest.approx(10)
    assert aesthetic.score(best | {"underexposed": 0.5, "overexposed": 0.3}) == pytest.approx(5.5)
    assert aesthetic.score(best | {"border": 0.25}) == pytest.approx(5.5)
    worst = dict(zip(aesthetic.NEEDS, (1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0.9), strict=True))
    assert 1 <= aesthetic.score(worst) < 2
    assert sum(aesthetic.WEIGHTS.values()) == pytest.approx(1)


def test_the_baseline_says_what_it_misses() -> None:
    with pytest.raises(RowError, match="sharpness_tile") as caught:
        aesthetic.photometric([Sample(0, None, dict.fromkeys(aesthetic.NEEDS, 1.0) | {"sharpness_tile": None})])
    assert caught.value.code == "operator_failed"
