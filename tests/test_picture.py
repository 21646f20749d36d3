"""Decoding: every format, mode and damage that a crawl brings, made here in bytes."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from schemas.errors import RowError
from workers.picture import DECODERS, Limits, Picture, decode, sniff

LIMITS = Limits()
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")


def scene(width: int = 96, height: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture whose four quarters are red, green, blue and yellow."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (200, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 160, 60)
    pixels[height // 2 :, : width // 2] = (40, 60, 200)
    pixels[height // 2 :, width // 2 :] = (220, 200, 40)
    return pixels


def grain(width: int = 160, height: int = 120) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def failure(data: bytes, limits: Limits = LIMITS) -> RowError:
    with pytest.raises(RowError) as caught:
        decode(data, limits)
    return caught.value


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, color: int, raw: bytes) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_on_the_list_decodes_to_its_colors(kind: str) -> None:
    options = {"JPEG": {"quality": 95}, "AVIF": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    data = saved(Image.fromarray(scene()), kind, **options)
    picture = decode(data, LIMITS)
    header = picture.header
    assert (header.format, header.width, header.height, header.frames) == (kind, 96, 64, 1)
    assert header.bytes == len(data)
    assert picture.rgb.dtype == np.uint8
    centers = picture.rgb[16::32, 24::48].astype(int)
    assert np.abs(centers - scene()[16::32, 24::48]).max() <= 12


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_an_error_and_not_half_a_picture(kind: str, share: float) -> None:
    data = saved(grain(), kind)
    error = failure(data[: int(len(data) * share)])
    assert error.code == "truncated"
    assert error.columns["bytes"] == int(len(data) * share)
    assert error.columns["format"] == kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_the_error_of_a_damaged_file_still_tells_its_size(kind: str) -> None:
    data = saved(grain(), kind)
    columns = failure(data[: len(data) // 2]).columns
    assert (columns["width"], columns["height"]) == (160, 120)


def test_a_progressive_jpeg_without_its_last_scans_is_truncated() -> None:
    data = saved(grain(), "JPEG", progressive=True)
    assert failure(data[: len(data) * 9 // 10]).code == "truncated"


def test_a_png_with_a_damaged_stream_is_corrupt() -> None:
    data = bytearray(saved(grain(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    error = failure(bytes(data))
    assert error.code == "corrupt"
    assert error.columns["width"] == 160


def test_no_bytes_are_empty() -> None:
    assert failure(b"").code == "empty"


@pytest.mark.parametrize(
    "data",
    [b"\0" * 64, b"hello, this is no picture", b"<!doctype html><html><svg></svg>", b"BMW is a make of car....."],
)
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    error = failure(data)
    assert error.code == "not_an_image"
    assert error.columns == {"bytes": len(data)}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"8BPS\0\1" + bytes(40), "PSD"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\1\0\1\0" + bytes(40), "ICO"),
        (b"P6\n2 2\n255\n" + bytes(12), "PNM"),
        (b"%PDF-1.7\n", "PDF"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "CR2"),
    ],
)
def test_a_known_format_off_the_list_is_named_and_never_decoded(data: bytes, name: str) -> None:
    error = failure(data)
    assert error.code == "unsupported_format"
    assert name in error.message


def test_only_the_seven_decoders_can_run() -> None:
    assert tuple(DECODERS) == FORMATS
    for kind in ("PPM", "TGA", "PCX", "ICO", "JPEG2000", "EPS"):
        with pytest.raises(RowError):
            sniff(saved(Image.new("RGB", (32, 32)), kind))


@pytest.mark.parametrize("limit", [100.0, 0.5])
def test_a_bomb_is_refused_from_its_header_alone(limit: float) -> None:
    side = 12_000 if limit == 100 else 1000
    rows = zlib.compressobj(9)
    stream = b"".join(rows.compress(bytes(side // 8 + 1)) for _ in range(side)) + rows.flush()
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", stream) + png_chunk(b"IEND", b"")
    tracemalloc.start()
    error = failure(data, Limits(max_megapixels=limit))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "too_large"
    assert (error.columns["width"], error.columns["height"]) == (side, side)
    assert peak < 1_000_000


def test_a_large_webp_is_refused_before_its_canvas_is_made() -> None:
    data = bytearray(saved(Image.fromarray(scene()), "WEBP", save_all=True, append_images=[grain(96, 64)]))
    assert data[12:16] == b"VP8X"
    data[24:30] = (16_000).to_bytes(3, "little") * 2
    error = failure(bytes(data[:30]))  # there is nothing to decode, so the header alone must have spoken
    assert error.code == "too_large"
    assert error.columns["width"] == 16_001


def test_a_limit_above_pillows_own_is_honoured() -> None:
    data = png(20_000, 10_000, 1, 0, bytes((20_000 // 8 + 1) * 10_000))
    assert decode(data, Limits(max_megapixels=250)).header.width == 20_000


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    for kind in ("PNG", "TIFF"):
        picture = decode(saved(Image.fromarray(ramp), kind), LIMITS)
        assert picture.header.mode == "I;16"
        assert np.array_equal(picture.rgb[0, :, 0], np.arange(256))
        assert np.array_equal(picture.rgb[..., 0], picture.rgb[..., 2])


def test_sixteen_bit_color_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(">u2")
    row = np.stack([ramp, ramp[::-1], ramp], axis=1).tobytes()
    picture = decode(png(256, 1, 16, 2, b"\0" + row), LIMITS)
    assert np.abs(picture.rgb[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    assert np.abs(picture.rgb[0, :, 1].astype(int) - np.arange(255, -1, -1)).max() <= 1


@pytest.mark.parametrize(("top", "mode"), [(65535, "I"), (2**31 - 1, "I"), (1.0, "F"), (255.0, "F"), (65535.0, "F")])
def test_wide_samples_reach_from_black_to_white(top: float, mode: str) -> None:
    values = np.tile(np.linspace(0, top, 256), (2, 1)).astype(np.int32 if mode == "I" else np.float32)
    picture = decode(saved(Image.fromarray(values), "TIFF"), LIMITS)
    assert picture.header.mode == mode
    assert np.abs(picture.rgb[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_missing_values_of_a_float_picture_are_black() -> None:
    values = np.array([[np.nan, 0.5, 1.0, np.inf]], np.float32)
    assert decode(saved(Image.fromarray(values), "TIFF"), LIMITS).rgb[0, :, 0].tolist() == [0, 128, 255, 0]


def test_cmyk_has_the_colors_that_were_printed() -> None:
    # Pillow writes Adobe's inverted CMYK into a JPEG, as Photoshop does.
    inks = np.zeros((32, 64, 4), np.uint8)
    inks[:, :32] = (0, 255, 255, 0)  # magenta + yellow ink: red
    inks[:, 32:] = (255, 0, 255, 0)  # cyan + yellow ink: green
    picture = decode(saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=95), LIMITS)
    assert picture.header.mode == "CMYK"
    red, green = picture.rgb[16, 8].astype(int), picture.rgb[16, 56].astype(int)
    assert red[0] > 230 and red[1] < 30 and red[2] < 30
    assert green[1] > 230 and green[0] < 30 and green[2] < 30


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_all_eight_orientations_decode_to_one_picture(kind: str) -> None:
    upright = Image.fromarray(scene())
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    for orientation, turn in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = upright.transpose(turn) if turn is not None else upright
        options = {"lossless": True} if kind == "WEBP" else {} if kind in ("PNG", "TIFF") else {"quality": 95}
        picture = decode(saved(image, kind, exif=exif, **options), LIMITS)
        header = picture.header
        assert (header.width, header.height, header.exif_orientation) == (96, 64, orientation)
        assert picture.rgb.shape == (64, 96, 3)
        assert np.abs(picture.rgb[16::32, 24::48].astype(int) - scene()[16::32, 24::48]).max() <= 12, orientation


def test_a_png_may_tell_its_orientation_after_its_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(scene()), "PNG")
    end = data.index(b"IEND") - 4
    late = data[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + data[end:]
    header = decode(late, LIMITS).header
    assert (header.width, header.height, header.exif_orientation) == (64, 96, 6)


def test_damaged_exif_is_no_reason_to_lose_the_picture() -> None:
    data = saved(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data, LIMITS).header.exif_orientation == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_alpha_is_laid_on_white(kind: str) -> None:
    pixels = np.zeros((32, 64, 4), np.uint8)
    pixels[:, 32:] = (0, 0, 0, 255)
    pixels[16:, :32] = (0, 0, 0, 128)
    picture = decode(saved(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {})), LIMITS)
    assert picture.rgb[8, 8].min() >= 250
    assert picture.rgb[8, 56].max() <= 5
    assert np.abs(picture.rgb[24, 8].astype(int) - 127).max() <= 5


def test_gray_with_alpha_is_laid_on_white() -> None:
    pixels = np.zeros((8, 8, 2), np.uint8)
    pixels[:, 4:, 1] = 255
    picture = decode(saved(Image.fromarray(pixels, "LA"), "PNG"), LIMITS)
    assert (picture.rgb[0, 0, 0], picture.rgb[0, 7, 0]) == (255, 0)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_color_is_white(kind: str) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30, 200, 0, 0] + [0] * 750)
    image.paste(1, (8, 0, 16, 16))
    picture = decode(saved(image, kind, transparency=0), LIMITS)
    assert picture.header.mode == "P"
    assert picture.rgb[8, 2].tolist() == [255, 255, 255]
    assert picture.rgb[8, 12].tolist() == [200, 0, 0]


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (16, 8), 0)
    image.paste(1, (8, 0, 16, 8))
    picture = decode(saved(image, "PNG"), LIMITS)
    assert picture.header.mode == "1"
    assert (picture.rgb[0, 0].tolist(), picture.rgb[0, 15].tolist()) == ([0, 0, 0], [255, 255, 255])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_is_its_first_frame_and_its_count(kind: str) -> None:
    frames = [Image.new("RGB", (48, 32), color) for color in ("red", "lime", "blue")]
    picture = decode(saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100), LIMITS)
    assert picture.header.frames == 3
    assert np.abs(picture.rgb[16, 24].astype(int) - (255, 0, 0)).max() <= 6


def test_a_gif_that_loses_later_frames_keeps_its_first() -> None:
    frames = [grain(64, 48).quantize() for _ in range(3)]
    data = saved(frames[0], "GIF", save_all=True, append_images=[Image.new("P", (64, 48), i) for i in (1, 2)])
    whole = decode(data, LIMITS)
    cut = decode(data[:-12], LIMITS)
    assert np.array_equal(whole.rgb, cut.rgb)
    assert cut.header.frames <= whole.header.frames


def test_an_embedded_profile_is_applied() -> None:
    # A profile whose red primary is sRGB's green and the other way round: written by swapping two tags.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    plain = saved(Image.new("RGB", (8, 8), (200, 40, 40)), "PNG")
    swapped = saved(Image.new("RGB", (8, 8), (200, 40, 40)), "PNG", icc_profile=bytes(profile))
    assert decode(plain, LIMITS).rgb[0, 0].tolist() == [200, 40, 40]
    r, g, b = decode(swapped, LIMITS).rgb[0, 0].tolist()
    assert abs(r - 40) <= 3 and abs(g - 200) <= 3 and abs(b - 40) <= 3


def test_a_profile_that_is_srgb_changes_no_pixel() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decode(saved(grain(), "PNG", icc_profile=profile), LIMITS)
    assert np.array_equal(picture.rgb, np.asarray(grain()))


@pytest.mark.parametrize("profile", [b"junk" * 100, b"\0" * 4000])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    picture = decode(saved(Image.fromarray(scene()), "PNG", icc_profile=profile), LIMITS)
    assert np.array_equal(picture.rgb, scene())


def test_lab_is_converted_to_srgb() -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(scene()), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    picture = decode(saved(lab, "TIFF"), LIMITS)
    assert picture.header.mode == "LAB"
    assert np.abs(picture.rgb[16::32, 24::48].astype(int) - scene()[16::32, 24::48]).max() <= 10


def test_ordinary_arrays_and_lent_ones_are_the_same_pixels() -> None:
    # Above 16 MB Pillow's memory is in several blocks and takes the other path.
    tall = np.random.default_rng(1).integers(0, 256, (2500, 2000, 3), np.uint8)
    picture = decode(saved(Image.fromarray(tall), "BMP"), LIMITS)
    assert np.array_equal(picture.rgb, tall)


def picture_of(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Picture:
    return decode(saved(Image.fromarray(pixels), "PNG"), LIMITS)


@pytest.mark.parametrize("long_side", [48, 96, 200, 512])
def test_canonical_sizes_keep_the_aspect(long_side: int) -> None:
    picture = picture_of(scene())
    assert picture.rgb_at(long_side).shape == (round(long_side * 64 / 96), long_side, 3)
    assert abs(picture.gray_at(long_side).shape[0] - long_side * 64 / 96) <= 1
    assert picture.gray_at(long_side).shape[1] == long_side
    assert picture.rgb_at(long_side) is picture.rgb_at(long_side)


def test_a_strip_does_not_vanish() -> None:
    picture = picture_of(np.zeros((2, 3000, 3), np.uint8))
    assert picture.rgb_at(256).shape == (1, 256, 3)
    assert picture.gray_at(256).shape == (1, 256)


@pytest.mark.parametrize("factor", [1.3, 2.0, 2.7, 3.5, 6.0])
def test_shrinking_keeps_the_mean_and_does_not_alias(factor: float) -> None:
    checks = (np.indices((600, 600)).sum(axis=0) % 2 * 255).astype(np.uint8)
    picture = picture_of(np.stack([checks] * 3, axis=-1))
    small = picture.rgb_at(round(600 / factor))[..., 0].astype(float)
    assert abs(small.mean() - 127.5) < 3
    if factor >= 2:
        assert small.std() < 16


def test_scorers_cannot_change_what_they_share() -> None:
    picture = picture_of(scene())
    for array in (picture.rgb, picture.rgb_at(50), picture.gray_at(50), picture.gray_at(512)):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0


def test_real_pictures_have_the_known_sizes(shared: Path) -> None:
    truth = json.loads((shared / "images" / "truth.json").read_text())
    for name, known in truth.items():
        header = decode((shared / "images" / name).read_bytes(), LIMITS).header
        assert (header.width, header.height, header.mode) == (known["width"], known["height"], known["mode"]), name
