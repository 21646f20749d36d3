"""Sample shards: photographs that installed packages carry, and pictures drawn to show every filter and every error.

    from curate.demo_data import make_samples
    make_samples(Path("demo/input"))         # demo-00000.parquet, demo-00001.parquet, demo-00002.parquet

The photographs lie in the wheels of scikit-image and scikit-learn; nothing is downloaded. The column `case` says what a
row is meant to show. The same versions of the libraries (and the same fonts) give the same bytes.
"""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from curate.errors import UsageError

log = logging.getLogger(__name__)

SHARDS = 3
# The first shard has several row groups, as large real ones do.
ROW_GROUP_ROWS = 16
SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
        ("license", pa.string()),
        ("case", pa.string()),
    ]
)

# File -> package and what the package says about its license.
PHOTOGRAPHS = {
    "astronaut.png": ("skimage", "public domain (NASA)"),
    "brick.png": ("skimage", "CC0"),
    "camera.png": ("skimage", "CC0"),
    "chelsea.png": ("skimage", "CC0"),
    "coffee.png": ("skimage", "CC0"),
    "coins.png": ("skimage", "no known copyright restrictions"),
    "color.png": ("skimage", "see scikit-image"),
    "grass.png": ("skimage", "CC0"),
    "gravel.png": ("skimage", "CC0"),
    "horse.png": ("skimage", "CC0"),
    "hubble_deep_field.jpg": ("skimage", "public domain (NASA)"),
    "ihc.png": ("skimage", "no known copyright restrictions"),
    "logo.png": ("skimage", "see scikit-image"),
    "moon.png": ("skimage", "see scikit-image"),
    "motorcycle_left.png": ("skimage", "see scikit-image"),
    "motorcycle_right.png": ("skimage", "see scikit-image"),
    "page.png": ("skimage", "see scikit-image"),
    "retina.jpg": ("skimage", "CC0"),
    "rocket.jpg": ("skimage", "public domain (SpaceX)"),
    "text.png": ("skimage", "public domain"),
    "china.jpg": ("sklearn", "CC BY 2.0, danielbuechele"),
    "flower.jpg": ("sklearn", "CC BY 2.0, vultilion"),
}

# Part of the photograph in percent (left, top, right, bottom), long side in px, file format, language and the caption
# that came with it: as people write them, some good, some poor, some useless.
VIEWS: dict[str, tuple[tuple[tuple[int, int, int, int], int, str, str, str | None], ...]] = {
    "astronaut.png": (
        ((0, 0, 100, 100), 768, "jpg", "en", "Portrait of astronaut Eileen Collins in an orange suit, flag behind her"),
        ((16, 0, 76, 80), 900, "jpg", "zh", "女宇航员身穿橙色航天服，面带微笑，身后是美国国旗"),
        ((24, 2, 62, 52), 800, "webp", "en", "smiling woman with short curly hair, NASA"),
        ((30, 6, 58, 38), 640, "jpg", "zh", "女宇航员的面部特写"),
        ((0, 30, 100, 100), 820, "png", "en", "orange space suit with mission patches, helmet on the right"),
        ((52, 52, 100, 100), 600, "jpg", "en", "black and white helmet"),
        ((0, 0, 34, 60), 720, "jpg", "zh", "美国国旗的一角"),
        ((64, 0, 100, 48), 560, "jpg", "en", "a model of the space shuttle"),
    ),
    "camera.png": (
        ((0, 0, 100, 100), 768, "jpg", "en", "A photographer bends over his camera on a tripod, MIT campus"),
        ((5, 10, 70, 80), 700, "png", "zh", "一位男士正在用三脚架上的相机拍照，黑白照片"),
        ((40, 10, 100, 70), 640, "jpg", "en", "camera on a tripod, towers in the haze"),
    ),
    "chelsea.png": (
        ((0, 0, 100, 100), 1024, "jpg", "en", "Chelsea the tabby cat looks past the camera"),
        ((20, 0, 86, 100), 720, "jpg", "zh", "一只橘色虎斑猫的特写，绿色的眼睛"),
        ((30, 18, 74, 62), 640, "webp", "en", "cat eyes!!"),
        ((28, 30, 80, 100), 640, "png", "zh", "猫的鼻子和胡须"),
    ),
    "coffee.png": (
        ((0, 0, 100, 100), 1000, "jpg", "en", "A cup of espresso in a red saucer on a worn wooden table"),
        ((10, 5, 80, 100), 800, "jpg", "zh", "木桌上的一杯浓缩咖啡，红色的杯碟和一把小勺"),
        ((25, 0, 75, 75), 700, "avif", "en", "espresso"),
        ((0, 55, 50, 100), 640, "jpg", "en", "IMG_2031.jpg"),
    ),
    "china.jpg": (
        ((0, 0, 100, 100), 1200, "jpg", "en", "Pavilion above Kunming Lake at the Summer Palace in Beijing"),
        ((0, 0, 66, 100), 1024, "jpg", "zh", "北京颐和园的佛香阁，远处是昆明湖"),
        ((12, 0, 60, 72), 900, "webp", "en", "octagonal Chinese tower with green glazed tiles"),
        ((50, 20, 100, 100), 800, "jpg", "zh", "昆明湖边的树木与远山"),
        ((20, 28, 62, 60), 760, "png", "en", "painted eaves and red railings of a Chinese temple"),
        ((0, 0, 50, 100), 768, "jpg", "en", None),
        ((10, 0, 100, 60), 900, "jpg", "en", "DSC_0043"),
    ),
    "flower.jpg": (
        ((0, 0, 100, 100), 1200, "jpg", "en", "An orange dahlia in full bloom against dark leaves"),
        ((18, 0, 82, 96), 800, "jpg", "zh", "一朵盛开的橙色大丽花，背景是深绿色的叶子"),
        ((30, 12, 70, 72), 700, "png", "en", "macro of dahlia petals, concentric pattern"),
        ((0, 0, 60, 100), 900, "webp", "zh", "花园里的橙色花朵，浅景深"),
        ((34, 0, 76, 100), 860, "jpg", "en", "buy now cheap!!! flowers delivery best price www.example.com"),
    ),
    "hubble_deep_field.jpg": (
        ((0, 0, 100, 100), 1000, "jpg", "en", "Hubble eXtreme Deep Field: thousands of distant galaxies"),
        ((0, 0, 70, 80), 800, "jpg", "zh", "哈勃望远镜拍摄的深空，无数星系"),
        ((40, 30, 100, 100), 720, "png", "en", "spiral galaxies and stars, deep space"),
        ((10, 20, 60, 100), 700, "jpg", "zh", "星空"),
    ),
    "retina.jpg": (
        ((0, 0, 100, 100), 1200, "jpg", "en", "Fundus photograph of a healthy left eye"),
        ((5, 20, 60, 75), 800, "jpg", "zh", "眼底照片：视盘和血管"),
        ((40, 25, 95, 80), 768, "webp", "en", "the macula, with blood vessels around it"),
    ),
    "rocket.jpg": (
        ((0, 0, 100, 100), 1100, "jpg", "en", "Falcon 9 with DSCOVR on the launch pad at dusk, Cape Canaveral"),
        ((30, 0, 75, 100), 900, "jpg", "zh", "黄昏时分，发射台上的猎鹰九号火箭"),
        ((0, 40, 100, 100), 960, "webp", "en", "launch complex lights after sunset"),
        ((40, 15, 62, 100), 820, "png", "en", "rocket"),
    ),
    "motorcycle_left.png": (
        ((0, 0, 100, 100), 1111, "jpg", "en", "A red motorcycle parked in a garage in front of shelves"),
        ((5, 15, 75, 100), 900, "jpg", "zh", "车库里停着一辆红色摩托车"),
        ((10, 40, 50, 100), 720, "jpg", "en", "front wheel and engine of a motorbike"),
        ((45, 20, 95, 100), 800, "webp", "zh", None),
    ),
    "ihc.png": (
        ((0, 0, 100, 100), 768, "jpg", "en", "Colonic glands, FHL2 protein stained brown with DAB"),
        ((10, 0, 70, 60), 640, "png", "zh", "免疫组织化学染色的组织切片"),
    ),
    "moon.png": (
        (
            (0, 0, 100, 100),
            720,
            "jpg",
            "en",
            "low contrast photo of the surface of the moon, a crater at the upper left",
        ),
        ((10, 5, 75, 70), 640, "jpg", "zh", "月球表面的环形山"),
    ),
    "brick.png": (((0, 0, 100, 100), 640, "jpg", "en", "brick wall texture seamless free download"),),
    "grass.png": (((0, 0, 100, 100), 640, "jpg", "zh", "草地纹理，灰度"),),
    "gravel.png": (((0, 0, 100, 100), 640, "png", "en", "Gravel 04"),),
    "coins.png": (((0, 0, 100, 100), 800, "jpg", "en", "Greek coins from Pompeii, Brooklyn Museum"),),
    "color.png": (((0, 0, 100, 100), 512, "png", "en", "HSV color wheel"),),
    "page.png": (((0, 0, 100, 100), 768, "jpg", "en", "page of a manual, photographed at an angle"),),
    "text.png": (((0, 0, 100, 100), 900, "jpg", "en", "handwritten formulas"),),
}

CJK_FONTS = (
    "NotoSansCJK*", "NotoSansSC*", "SourceHanSans*", "NotoSerifCJK*", "wqy-*", "DroidSansFallback*", "uming*", "ukai*",
    "PingFang*", "STHeiti*", "Hiragino Sans GB*", "msyh*", "simhei*", "simsun*",
)  # fmt: skip
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "/System/Library/Fonts", "C:/Windows/Fonts")


@dataclass(frozen=True)
class Row:
    """One sample row; `image` is None where the column is null."""

    image: bytes | None
    caption: str | None
    language: str | None
    source: str
    license: str
    case: str


def make_samples(folder: Path, seed: int = 0, layout: str = "parquet") -> list[Path]:
    """Write three shards of about 120 rows into `folder` and return their paths, sorted.

    `seed` decides the order of the rows. `layout` is parquet, webdataset (tar archives) or folder (of pictures; rows
    whose picture is null do not exist there). Without a font for Chinese the posters are English only; a warning says
    so. Raises UsageError when scikit-image or scikit-learn is not installed.
    """
    font = cjk_font()
    if font is None:
        log.warning("no font with Chinese characters found: the sample posters are in English only")
    return write_samples(list(samples(font)), folder, seed, layout)


def write_samples(rows: list[Row], folder: Path, seed: int, layout: str) -> list[Path]:
    """Write rows as three shards, made in a hidden folder first: an interrupted call leaves no half of a shard."""
    write = {"parquet": write_parquet, "webdataset": write_tar, "folder": write_folder}[layout]
    rows = random.Random(seed).sample(rows, len(rows))
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    paths = [write(partial, number, rows[number::SHARDS]) for number in range(SHARDS)]
    for path in paths:
        shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    partial.rmdir()
    return [folder / path.name for path in paths]


def write_parquet(folder: Path, number: int, rows: list[Row]) -> Path:
    """One Parquet shard."""
    path = folder / f"demo-{number:05d}.parquet"
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", row_group_size=len(rows) if number else ROW_GROUP_ROWS)
    return path


def write_tar(folder: Path, number: int, rows: list[Row]) -> Path:
    """One WebDataset shard."""
    path = folder / f"demo-{number:05d}.tar"
    with tarfile.open(path, "w") as tar:
        for at, row in enumerate(rows):
            for suffix, data in members(row):
                member = tarfile.TarInfo(f"{at:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_folder(folder: Path, number: int, rows: list[Row]) -> Path:
    """One folder of pictures with .txt and .json files beside them."""
    path = folder / f"demo-{number:05d}"
    path.mkdir(exist_ok=True)
    for at, row in enumerate(rows):
        if row.image is not None:
            for suffix, data in members(row):
                (path / f"{at:06d}.{suffix}").write_bytes(data)
    return path


def members(row: Row) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of the files that a row becomes."""
    if row.image is not None:
        yield suffix_of(row.image), row.image
    if row.caption is not None:
        yield "txt", row.caption.encode()
    rest = {"language": row.language, "source": row.source, "license": row.license, "case": row.case}
    yield "json", json.dumps(rest, ensure_ascii=False).encode()


def suffix_of(data: bytes) -> str:
    """The usual file suffix of a picture; jpg for what is none."""
    known = {b"\x89PNG": "png", b"GIF8": "gif", b"II*\0": "tif", b"BM": "bmp", b"8BPS": "psd", b"\0\0\1\0": "ico"}
    if data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] == b"ftypavif":
        return "avif"
    return next((suffix for magic, suffix in known.items() if data.startswith(magic)), "jpg")


def samples(cjk: str | None) -> Iterator[Row]:
    """All rows: photographs first, then the cases."""
    for name, views in VIEWS.items():
        for box, side, kind, language, caption in views:
            data = encode(view(name, box, side), kind)
            yield Row(data, caption, language if caption else None, name, PHOTOGRAPHS[name][1], "photograph")
    for source, (case, image, tongue, words) in drawn(cjk):
        license = PHOTOGRAPHS[source][1] if source in PHOTOGRAPHS else "CC0"
        yield Row(image, words, tongue, source, license, case)


# Photographs


# Package -> what to install, and where in it the pictures lie.
PACKAGES = {"skimage": ("scikit-image", "data"), "sklearn": ("scikit-learn", "datasets/images")}


def carried(package: str, name: str) -> Path:
    """The file of a photograph in an installed package; UsageError when the package or the file is not there."""
    wanted, folder = PACKAGES.get(package, (package, "."))
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"the sample pictures need {wanted}; install it with: pip install 'curate[demo]'")
    path = Path(spec.submodule_search_locations[0], folder, name)
    if not path.is_file():
        raise UsageError(f"{wanted} does not carry {name}; install it anew: pip install -U 'curate[demo]'")
    return path


@cache
def photograph(name: str) -> Image.Image:
    """A photograph out of an installed package, RGB, RGBA or L."""
    with Image.open(carried(PHOTOGRAPHS[name][0], name)) as image:
        return image.convert(image.mode if image.mode in ("L", "RGBA") else "RGB")


def view(name: str, box: tuple[int, int, int, int] = (0, 0, 100, 100), side: int = 768) -> Image.Image:
    """A part of a photograph (percent), its long side brought to `side` px."""
    image = photograph(name)
    width, height = image.size
    left, top, right, bottom = (round(p * (width, height)[at % 2] / 100) for at, p in enumerate(box))
    scale = side / max(right - left, bottom - top)
    size = (round((right - left) * scale), round((bottom - top) * scale))
    image = image.resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))
    return image.filter(ImageFilter.SHARPEN) if scale > 1.2 else image


def encode(image: Image.Image, kind: str = "jpg", **options: Any) -> bytes:
    """The bytes of an image file."""
    defaults: dict[str, dict[str, Any]] = {
        "jpg": {"quality": 90},
        "png": {"compress_level": 1},
        "webp": {"quality": 88, "method": 1},
        "avif": {"quality": 75, "speed": 10, "max_threads": 1},
    }
    formats = {"jpg": "JPEG", "tif": "TIFF"}
    out = io.BytesIO()
    image.save(out, formats.get(kind, kind.upper()), **(defaults.get(kind, {}) | options))
    return out.getvalue()


# Drawn pictures


def cjk_font() -> str | None:
    """The file of a font with Chinese characters, from fontconfig or the usual folders; None when there is none."""
    files: set[Path] = set()
    if shutil.which("fc-list"):
        found = subprocess.run(["fc-list", ":lang=zh-cn", "file"], capture_output=True, text=True, check=False)
        files = {Path(line.split(": ")[0].rstrip(":")) for line in found.stdout.splitlines()}
    if not files:
        folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
        files = {file for folder in folders if folder.is_dir() for file in folder.rglob("*.[to]t[fc]")}
    for pattern in CJK_FONTS:
        if usual := sorted(file for file in files if file.match(pattern)):
            return str(usual[0])
    return None


@cache
def letters(size: int, font: str | None = None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of the given size in px; without a file, the one that Pillow carries."""
    return ImageFont.truetype(font, size) if font else ImageFont.load_default(size)


Case = tuple[str, bytes | None, str | None, str | None]


def drawn(cjk: str | None) -> Iterator[tuple[str, Case]]:
    """(source, (case, bytes, language, caption)) of every row that is no plain photograph."""
    yield from (("drawn", case) for case in texts(cjk))
    yield from quality()
    yield from duplicates()
    yield from formats()
    yield from (("drawn", case) for case in broken())


def poster(lines: list[tuple[str, int]], font: str | None, ground: str, ink: str, side: tuple[int, int]) -> Image.Image:
    """Lines of text (with their heights in px) centred on a plain ground, on tall ones above a disc."""
    image = Image.new("RGB", side, ground)
    draw = ImageDraw.Draw(image)
    width, height = side
    if height > width:
        draw.ellipse((width * 0.55, height * 0.5, width * 1.15, height * 0.5 + width * 0.6), fill=ink)
    draw.rectangle((width * 0.06, height * 0.05, width * 0.94, height * 0.06), fill=ink)
    at = height * 0.12
    for text, size in lines:
        chosen = letters(size, font if not text.isascii() else None)
        draw.text((width / 2, at), text, font=chosen, fill=ink, anchor="ma")
        at += size * 1.5
    return image


def texts(cjk: str | None) -> Iterator[Case]:
    """Posters, signs, screenshots and documents."""
    posters = (
        ("#b3202a", "#f7e8c8", [("春季音乐会", 110), ("SPRING CONCERT", 64),
         ("四月十八日 北京", 52), ("18 April, Beijing", 44)], "zh", "春季音乐会海报，红底金字"),
        ("#113a5c", "#ffffff", [("城市阅读节", 104), ("CITY BOOK FAIR", 64), ("免费入场", 60), ("Free admission", 44)],
         "en", "Poster of the city book fair in Chinese and English"),
        ("#f2efe6", "#20402a", [("绿茶", 180), ("GREEN TEA", 72), ("清新每一天", 52)], "zh", "绿茶广告"),
    )  # fmt: skip
    for ground, ink, lines, language, caption in posters:
        kept = lines if cjk else [(text, size) for text, size in lines if text.isascii()]
        image = poster(kept, cjk, ground, ink, (768, 1024))
        yield "poster", encode(image, "jpg", quality=92), language, caption
    signs = (
        ("#0b6e4f", "#ffffff", [("OPEN", 200), ("8 am - 6 pm", 64)], "OPEN sign on a shop door"),
        ("#c1121f", "#ffffff", [("STOP", 220)], "red stop sign"),
        ("#fdd835", "#1a1a1a", [("EXIT", 160), ("Platform 9", 72)], "exit sign, platform 9"),
    )
    for ground, ink, words, caption in signs:
        yield "sign", encode(poster(words, None, ground, ink, (900, 640))), "en", caption
    prose = "the quick brown fox jumps over the lazy dog while seven sheep sleep near an old stone bridge"
    pick = random.Random(7)
    for caption in ("Screenshot 2024-03-11 at 10.22.41.png", "screenshot of an email"):
        image = Image.new("RGB", (1000, 760), "#fafafa")
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, 1000, 46), fill="#dfe3e8")
        for at in range(24):
            text = " ".join(pick.choice(prose.split(" ")) for _ in range(13))
            draw.text((40, 64 + at * 28), text.capitalize(), font=letters(20), fill="#202124")
        yield "screenshot", encode(image, "png", compress_level=3), "en", caption
    if cjk:
        image = Image.new("RGB", (800, 1000), "white")
        draw = ImageDraw.Draw(image)
        verse = ("床前明月光", "疑是地上霜", "举头望明月", "低头思故乡")
        draw.text((400, 120), "静夜思", font=letters(88, cjk), fill="black", anchor="ma")
        for at, line in enumerate(verse):
            draw.text((400, 320 + at * 130), line, font=letters(72, cjk), fill="#222222", anchor="ma")
        yield "document", encode(image), "zh", "李白《静夜思》全文"


def watermark(image: Image.Image, text: str, tiled: bool) -> Image.Image:
    """The picture under half-transparent text, in a corner or all over."""
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(layer)
    width, height = image.size
    spots = [(width - 300, height - 50)]
    if tiled:
        spots = [(x, y) for y in range(40, height, 170) for x in range(-40, width, 330)]
    for spot in spots:
        draw.text(spot, text, font=letters(36), fill=(255, 255, 255, 150))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def framed(image: Image.Image, color: str, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """The picture with bars of the given widths, px."""
    return ImageOps.expand(image, (left, top, right, bottom), color)


def quality() -> Iterator[tuple[str, Case]]:
    """Pictures that a filter of a training set should notice."""
    china, cup, cat = view("china.jpg", side=1000), view("coffee.png", side=960), view("chelsea.png", side=900)
    bloom, moto = view("flower.jpg", side=1000), view("motorcycle_right.png", side=960)
    instant = framed(cat.crop((150, 0, 750, 598)), "#fdfdf8", 40, 40, 40, 160)
    dull = ImageEnhance.Contrast(china).enhance(0.12)
    sharp = bloom.filter(ImageFilter.GaussianBlur(9))
    sharp.paste(bloom.crop((380, 160, 680, 460)), (380, 160))
    still = np.asarray(moto, dtype=np.uint16)
    face = view("astronaut.png", (26, 0, 66, 42), 300)
    crew = Image.new("RGB", (4 * face.width, 2 * face.height))
    for at in range(8):
        tile = ImageOps.mirror(face) if at % 3 == 1 else face
        crew.paste(tile, (at % 4 * face.width, at // 4 * face.height))
    total = sum((np.roll(still, shift, axis=1) for shift in range(31)), np.zeros_like(still))
    streak = (total // 31).astype(np.uint8)
    cases: tuple[tuple[str, str, Image.Image, str, str | None], ...] = (
        (
            "china.jpg",
            "watermark",
            watermark(china, "example-stock.com", True),
            "en",
            "stock photo of a pavilion",
        ),
        ("coffee.png", "watermark", watermark(cup, "(c) Studio Nine", False), "en", "Coffee. (c) Studio Nine"),
        ("flower.jpg", "border", framed(bloom, "white", 90, 90, 90, 90), "en", "framed print of a dahlia"),
        (
            "chelsea.png",
            "border",
            instant,
            "zh",
            "拍立得风格的猫咪照片",
        ),
        ("rocket.jpg", "letterbox", framed(view("rocket.jpg", side=960), "black", 0, 130, 0, 130), "en", "movie still"),
        ("motorcycle_right.png", "letterbox", framed(moto, "black", 160, 0, 160, 0), "zh", "摩托车视频截图"),
        ("astronaut.png", "crowd", crew, "en", "contact sheet of the crew portraits, eight frames"),
        ("china.jpg", "blurred", china.filter(ImageFilter.GaussianBlur(7)), "en", "blurry temple"),
        ("chelsea.png", "blurred", cat.filter(ImageFilter.GaussianBlur(12)), "zh", "模糊的猫"),
        ("motorcycle_right.png", "motion_blur", Image.fromarray(streak), "en", "fast motorcycle"),
        ("flower.jpg", "bokeh", sharp, "en", "dahlia, everything but the blossom out of focus"),
        ("coffee.png", "dark", ImageEnhance.Brightness(cup).enhance(0.06), "en", "coffee at night"),
        ("chelsea.png", "dark", ImageEnhance.Brightness(cat).enhance(0.04), "zh", "黑暗中的猫"),
        ("china.jpg", "overexposed", ImageEnhance.Brightness(china).enhance(3.6), "en", "too bright"),
        ("coffee.png", "overexposed", ImageEnhance.Brightness(cup).enhance(5.0), "zh", "曝光过度的咖啡"),
        ("china.jpg", "low_contrast", dull, "en", "foggy day at the lake"),
        ("drawn", "flat", Image.new("RGB", (640, 640), "#8899aa"), "en", "no image available"),
        ("coffee.png", "tiny", view("coffee.png", side=48), "en", "thumb_48"),
        ("astronaut.png", "tiny", view("astronaut.png", side=96), "en", "avatar"),
        ("china.jpg", "tiny", view("china.jpg", side=200), "zh", "缩略图"),
        ("motorcycle_right.png", "panorama", moto.crop((0, 250, 960, 450)).resize((1920, 400)), "en", "banner"),
    )
    for source, case, image, language, caption in cases:
        yield source, (case, encode(image), language, caption)


def duplicates() -> Iterator[tuple[str, Case]]:
    """Exact copies of rows above, and copies that were encoded, scaled, cropped or brightened once more."""
    for name, at in (("china.jpg", 0), ("astronaut.png", 0), ("flower.jpg", 0)):
        box, side, kind, language, caption = VIEWS[name][at]
        image = view(name, box, side)
        yield name, ("duplicate", encode(image, kind), language, caption)
        if name == "china.jpg":
            yield name, ("near_duplicate", encode(image, "jpg", quality=55), "zh", "颐和园")
            yield name, ("near_duplicate", encode(image.resize((900, 600)), "webp"), "en", "Summer Palace, Beijing")
        elif name == "flower.jpg":
            yield name, ("near_duplicate", encode(image.crop((6, 4, 1194, 798))), "en", "Orange dahlia")
            yield name, ("near_duplicate", encode(ImageEnhance.Brightness(image).enhance(1.08)), "zh", "橙色大丽花")


def formats() -> Iterator[tuple[str, Case]]:
    """Every mode and container that has to decode."""
    cup, cat, moto = view("coffee.png", side=800), view("chelsea.png", side=800), view("motorcycle_right.png", side=800)
    yield "coffee.png", ("cmyk", encode(cup.convert("CMYK"), "jpg"), "en", "coffee cup, prepared for print")
    yield "flower.jpg", ("cmyk", encode(view("flower.jpg", side=900).convert("CMYK"), "tif"), "zh", "印刷用的花卉图片")
    for orientation, undo in ((3, 180), (6, 90), (8, 270)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = view("astronaut.png", (0, 0, 80, 100), 800).rotate(undo, expand=True)
        caption = "astronaut, taken with the phone turned"
        yield "astronaut.png", ("exif_rotated", encode(turned, "jpg", exif=exif), "en", caption)
    moon = np.asarray(view("moon.png", side=640), dtype=np.uint16) * 257
    yield "moon.png", ("sixteen_bit", encode(Image.fromarray(moon), "png"), "en", "16-bit scan of the moon")
    yield "logo.png", ("alpha", encode(view("logo.png", side=640), "png"), "en", "the scikit-image logo")
    horse = Image.new("RGBA", (800, 656), (0, 0, 0, 0))
    mask = ImageOps.invert(photograph("horse.png").convert("L")).resize((800, 656))
    horse.paste((70, 40, 20, 255), (0, 0), mask)
    yield "horse.png", ("alpha", encode(horse, "webp", lossless=True), "zh", "马的剪影，透明背景")
    pan = [view("china.jpg", (at, 10, at + 60, 90), 560).quantize(64, Image.Quantize.FASTOCTREE) for at in (0, 10, 20)]
    data = encode(pan[0], "gif", save_all=True, append_images=pan[1:], duration=200, loop=0)
    yield "china.jpg", ("animated", data, "en", "panning over the Summer Palace (GIF)")
    reel = [view("coffee.png", (at, 0, at + 70, 100), 560) for at in (0, 15, 30)]
    data = encode(reel[0], "webp", save_all=True, append_images=reel[1:], duration=200)
    yield "coffee.png", ("animated", data, "zh", "咖啡动图")
    yield "chelsea.png", ("webp", encode(cat, "webp"), "en", "cat, saved as WebP")
    yield "motorcycle_right.png", ("avif", encode(moto, "avif"), "en", "motorcycle, saved as AVIF")
    bits = view("camera.png", side=640).convert("1")
    yield "camera.png", ("one_bit", encode(bits, "png"), "en", "cameraman, black and white only")
    yield "coffee.png", ("grayscale", encode(cup.convert("L")), "en", "coffee in black and white")
    yield (
        "chelsea.png",
        ("palette", encode(cat.quantize(32, Image.Quantize.FASTOCTREE), "png"), "en", "cat in 32 colors"),
    )
    yield "coffee.png", ("tiff", encode(cup, "tif", compression="tiff_lzw"), "zh", "咖啡（TIFF）")
    yield "motorcycle_right.png", ("bmp", encode(moto.resize((640, 432)), "bmp"), "en", "motorcycle.bmp")
    yield "chelsea.png", ("progressive", encode(cat, "jpg", progressive=True), "en", "cat, progressive JPEG")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def broken() -> Iterator[Case]:
    """Every malformed row that a crawl brings home."""
    whole = encode(view("china.jpg", side=900))
    drawing = encode(view("coffee.png", side=700), "png")
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    damaged = bytearray(drawing)
    damaged[len(damaged) // 2 : len(damaged) // 2 + 400] = bytes(400)
    yield "truncated", whole[: len(whole) // 2], "en", "half of a pavilion"
    yield "truncated", encode(view("flower.jpg", side=800), "jpg", progressive=True)[:20000], "zh", "下载中断的图片"
    yield "truncated", drawing[: len(drawing) // 3], "en", "a third of a cup"
    yield "zero_bytes", b"", "en", "an empty file"
    yield "null", None, "en", "photo could not be downloaded"
    yield "null", None, None, None
    yield "text", "这不是图片，只是一段文字。".encode(), "zh", "文字冒充图片"
    page = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>Not Found</body></html>"
    yield "html", page, "en", "404"
    yield (
        "psd",
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 600, 800, 8, 3) + bytes(200),
        "en",
        "layered original",
    )
    yield "ico", b"\0\0\1\0\1\0\x20\x20\0\0\1\0\x20\0" + bytes(200), "en", "favicon"
    yield "bomb", bomb, "en", "3.6 gigapixels in a hundred bytes"
    yield "damaged", bytes(damaged), "en", "a cup with a scratch"
