"""Photographs that text is put on: kept rows of a store without text, pictures of a folder, or installed samples.

All of them are written, upright and scaled down, into one Arrow file beside the shards: a spec is rendered again from
it when the store has gone, and workers map it into memory together. No mirror image is ever used: a photograph may
show text after all.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from curate.errors import UsageError
from curate.synth.colors import RGB
from schemas.errors import RowError
from workers.picture import Limits, decode

Bytes = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the photograph

THUMB_PX = 96  # long side of what regions and colours are chosen on
ROOM = 1.25  # photographs are stored with a shorter side of at most this many times the picture's
QUALITY = 94
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("jpeg", pa.binary()),
        ("thumb", pa.binary()), ("en", pa.string()), ("zh", pa.string()), ("avoid", pa.list_(pa.list_(pa.float64()))),
    ]
)  # fmt: skip

# Rows of a store that can carry text: kept, large enough, no text of their own.
WHERE = (
    "keep AND coalesce(ocr_lines, 0) = 0 AND coalesce(ocr_area, 0) < 0.002 AND least(width, height) >= {side} "
    "AND aspect BETWEEN 0.5 AND 2.2"
)

# Photographs that installed packages carry: file, package, what they show, and the colour of grey ones (a sign in
# colour on a grey wall looks pasted on).
SAMPLES = (
    ("coffee.png", "skimage", "A cup of coffee on a wooden table", "木桌上放着一杯咖啡", None),
    ("rocket.jpg", "skimage", "A rocket on its launch pad at dusk", "黄昏时分，火箭矗立在发射台上", None),
    ("grass.png", "skimage", "A close view of a lawn", "一片草地的近景", (104, 122, 66)),
    ("gravel.png", "skimage", "A bed of gravel", "一片碎石", (196, 184, 168)),
    ("brick.png", "skimage", "A brick wall", "一面砖墙", (206, 140, 112)),
    ("motorcycle_left.png", "skimage", "A motorcycle in a garage", "车库里停着一辆摩托车", None),
    ("china.jpg", "sklearn", "A Chinese temple with a curved roof among trees", "绿树间一座飞檐翘角的中式庙宇", None),
    ("flower.jpg", "sklearn", "An orange and red flower in front of dark leaves", "深色叶子前的一朵橙红色花", None),
)  # fmt: skip


@dataclass(frozen=True)
class Photograph:
    """One photograph: `avoid` are faces and text, `en` and `zh` say what it shows, empty when that is not known."""

    id: str
    width: int
    height: int
    thumb: Bytes
    en: str
    zh: str
    avoid: tuple[Box, ...]

    @cached_property
    def texture(self) -> list[list[int]]:
        """Running sums of the thumbnail's gradient, after a row and a column of zeros; faces and text are high."""
        luma = np.asarray(cv2.cvtColor(self.thumb, cv2.COLOR_RGB2GRAY), np.int32)
        energy = np.zeros(luma.shape, np.int32)
        energy[:, 1:] += np.abs(np.diff(luma, axis=1))
        energy[1:, :] += np.abs(np.diff(luma, axis=0))
        high, wide = luma.shape[0], luma.shape[1]
        for left, top, right, bottom in self.avoid:
            energy[int(top * high) : int(bottom * high) + 1, int(left * wide) : int(right * wide) + 1] = 2000
        sums = np.zeros((high + 1, wide + 1), np.int64)
        sums[1:, 1:] = energy.cumsum(0).cumsum(1)
        rows: list[list[int]] = sums.tolist()  # four numbers are looked up at a time: a list does it faster
        return rows


class Photographs:
    """The photographs of one file, read when they are asked for; the last few stay decoded."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        table = SCHEMA.empty_table()
        if path and path.exists():
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        self._jpegs = table["jpeg"]
        rows = table.drop_columns(["jpeg"]).to_pylist()
        self.items = tuple(
            Photograph(
                row["id"], row["width"], row["height"], _thumb(row["thumb"], row["width"], row["height"]), row["en"],
                row["zh"], tuple((box[0], box[1], box[2], box[3]) for box in row["avoid"]),
            )
            for row in rows
        )  # fmt: skip
        self._numbers = {item.id: number for number, item in enumerate(self.items)}
        self.pixels = lru_cache(8)(self._pixels)

    def __getitem__(self, id: str) -> Photograph:
        return self.items[self._numbers[id]]

    def _pixels(self, id: str) -> Bytes:
        """RGB pixels, read-only."""
        data = np.frombuffer(self._jpegs[self._numbers[id]].as_py(), np.uint8)
        rgb = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
        rgb.flags.writeable = False
        return rgb


def collect(source: str, path: Path, side_px: int, most: int) -> int:
    """Write up to `most` photographs of `source` to `path`; returns how many.

    `source` is a store, a folder of pictures, or empty: what scikit-image and scikit-learn carry, where installed.
    """
    if not source:
        found = _samples(side_px)
    elif (Path(source) / "runs").is_dir() or "://" in source:
        found = _of_store(source, side_px, most)
    elif Path(source).is_dir():
        found = _of_folder(Path(source), side_px)
    else:
        raise UsageError(f"--backgrounds {source}: neither a store nor a folder of pictures")
    rows = []
    for row in found:
        rows.append(row)
        if len(rows) == most:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    if source and not rows:
        raise UsageError(
            f"--backgrounds {source}: no picture fits (kept, no text, shorter side at least {side_px} px); "
            "name another or leave it out"
        )
    return len(rows)


def _of_store(uri: str, side_px: int, most: int) -> Iterator[dict[str, object]]:
    from curate.pictures import originals
    from curate.store import Store

    store = Store(uri)
    store.require()
    columns = "row_id, caption_en, caption_zh, caption_engine, face_boxes, ocr_boxes, width, height"
    rows = store.rows(
        f"SELECT {columns} FROM samples WHERE {WHERE.format(side=side_px)} ORDER BY sha256, row_id LIMIT {most}"
    )
    for start in range(0, len(rows), 64):
        chunk = rows[start : start + 64]
        data = originals(store, [row[0] for row in chunk])
        for row_id, en, zh, engine, faces, texts, width, height in chunk:
            bytes_ = data[row_id]
            if isinstance(bytes_, RowError):
                continue
            avoid = [(x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h, _ in faces or ()]
            avoid += [
                (min(b[::2]) / width, min(b[1::2]) / height, max(b[::2]) / width, max(b[1::2]) / height)
                for b in texts or ()
            ]
            # The facts engine tells colours and light, which a sign over them makes wrong.
            told = engine not in (None, "facts")
            yield from _row(row_id, bytes_, _first(en) if told else "", _first(zh) if told else "", avoid, side_px)


def _of_folder(folder: Path, side_px: int) -> Iterator[dict[str, object]]:
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        yield from _row(path.relative_to(folder).as_posix(), path.read_bytes(), "", "", [], side_px)


def _samples(side_px: int) -> Iterator[dict[str, object]]:
    for name, package, en, zh, tint in SAMPLES:
        found = find_spec(package)
        if found and found.submodule_search_locations:
            root = Path(found.submodule_search_locations[0])
            folder = root / "data" if package == "skimage" else root / "datasets" / "images"
            if (folder / name).exists():
                yield from _row(name, (folder / name).read_bytes(), en, zh, [], side_px, tint)


def _row(
    id: str, data: bytes, en: str, zh: str, avoid: Sequence[Box], side_px: int, tint: RGB | None = None
) -> Iterator[dict[str, object]]:
    try:
        rgb = decode(data, Limits()).rgb
    except RowError:
        return
    height, width = rgb.shape[:2]
    scale = min(1.0, ROOM * side_px / min(width, height))
    width, height = round(width * scale), round(height * scale)
    rgb = np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    if tint:
        rgb = np.minimum(rgb * (np.array(tint, np.float32) / np.mean(rgb)), 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=QUALITY)
    thumb = cv2.resize(rgb, _thumb_size(width, height), interpolation=cv2.INTER_AREA)
    yield {
        "id": id, "width": width, "height": height, "jpeg": buffer.getvalue(), "thumb": thumb.tobytes(), "en": en,
        "zh": zh, "avoid": [list(box) for box in avoid],
    }  # fmt: skip


def _first(caption: str | None) -> str:
    """The first sentence, without its full stop: the text that is drawn on the picture follows."""
    text = (caption or "").strip()
    for mark in ("。", ". "):
        text = text.split(mark)[0]
    return text.rstrip(".。")


def _thumb_size(width: int, height: int) -> tuple[int, int]:
    scale = THUMB_PX / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _thumb(data: bytes, width: int, height: int) -> Bytes:
    columns, rows = _thumb_size(width, height)
    return np.frombuffer(data, np.uint8).reshape(rows, columns, 3)
