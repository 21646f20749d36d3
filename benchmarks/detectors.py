"""Precision, recall and time of the face and text detectors; docs/detectors.md publishes what this prints.

    python -m benchmarks.detectors faces [--yunet FILE]
    python -m benchmarks.detectors ocr
    python -m benchmarks.detectors batches      # YuNet's network, one picture a call and several

Pictures: scikit-image's and scikit-learn's bundled ones, and ../shared/images where it lies beside the checkout.
Times are CPU time of one thread, decoding apart, at 1 megapixel. The last line is `RESULT ` and a JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from workers.faces import Haar, YuNet
from workers.ocr import TILE_PX, RapidOcr
from workers.sample import Sample

Bytes = npt.NDArray[np.uint8]
Worker = Callable[[Sequence[Sample]], list[dict[str, Any]]]

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
# Bundled pictures and the faces in them. The cameraman is seen from the side.
FACES = {"astronaut.png": 1, "camera.png": 1} | dict.fromkeys(
    (
        "brick.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "color.png", "grass.png",
        "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "logo.png", "moon.png", "motorcycle_left.png",
        "page.png", "retina.jpg", "rocket.jpg", "text.png", "china.jpg", "flower.jpg",
    ),
    0,
)  # fmt: skip
TEXT_FREE = (
    "dog_and_penguin.jpg", "puppies.jpg", "cats.jpg", "bed.png", "airplane_drawing.jpg", "umbrella.jpg", "chelsea.png",
    "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "grass.png", "gravel.png", "moon.png", "china.jpg",
    "flower.jpg",
)  # fmt: skip
GROUNDS = ("coffee.png", "rocket.jpg", "grass.png", "china.jpg", "flower.jpg")
CJK_FONTS = (
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/System/Library/Fonts/PingFang.ttc",
)


def batches(weights: Path) -> dict[str, Any]:
    """Milliseconds a picture of YuNet's network at 320 px, one thread: by FaceDetectorYN, and in batches by cv2.dnn."""
    cv2.setNumThreads(1)
    size = (320, 320)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    detector = cv2.FaceDetectorYN.create(str(weights), "", size, 0.85, 0.3, 5000)
    network = cv2.dnn.readNet(str(weights))
    names = network.getUnconnectedOutLayersNames()

    def forward(count: int) -> None:
        network.setInput(cv2.dnn.blobFromImages([picture] * count))
        network.forward(names)

    found = {"detector": timed(lambda: detector.detect(picture))}
    found |= {str(count): timed(partial(forward, count)) / count for count in (1, 4, 8, 16)}
    for name, ms in found.items():
        print(f"{name:>10}  {ms:6.1f} ms a picture")
    return {"ms": found}


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of processor time of a call, the least of 20."""
    call()
    spent = []
    for _ in range(20):
        begun = time.process_time()
        call()
        spent.append(time.process_time() - begun)
    return 1e3 * min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("faces", "ocr", "batches"))
    parser.add_argument("--yunet", type=Path, default=SHARED / "weights" / "face_detection_yunet_n_640_640.onnx")
    options = parser.parse_args()
    result = {"faces": lambda: faces(options.yunet), "ocr": ocr, "batches": lambda: batches(options.yunet)}[
        options.what
    ]()
    print("RESULT " + json.dumps({"benchmark": options.what} | result, ensure_ascii=False))


def faces(yunet: Path) -> dict[str, Any]:
    """Both engines on four sets; a detection is right when it overlaps the known face by 0.3 IoU."""
    engines: dict[str, Worker] = {"haar": Haar()}
    if yunet.is_file():
        engines["yunet"] = YuNet(yunet)
    counted = {name: (pixels, FACES[name]) for name, pixels in bundled(FACES).items()}
    for name, known in truth().items():
        if "faces" in known:
            counted[f"shared/{name}"] = (read(SHARED / "images" / name), known["faces"])
    pasted, patches = scenes(), lfw_patches()
    result: dict[str, Any] = {}
    print(f"{'engine':8}{'set':22}{'faces':>6}{'found':>6}{'false':>6}{'precision':>10}{'recall':>8}")
    for engine, worker in engines.items():
        sets: dict[str, tuple[int, int, int]] = {}
        found = [(worker([sample(pixels)])[0]["faces"], faces, name) for name, (pixels, faces) in counted.items()]
        wrong = [name for seen, faces, name in found if seen > faces]
        sets["whole pictures"] = (
            sum(faces for _, faces, _ in found),
            sum(min(seen, faces) for seen, faces, _ in found),
            sum(max(0, seen - faces) for seen, faces, _ in found),
        )
        counts = [worker([sample(pixels)])[0]["faces"] for pixels, _ in patches]
        sets["LFW patches"] = (
            sum(face for _, face in patches),
            sum(bool(count) for count, (_, face) in zip(counts, patches, strict=True) if face),
            sum(count for count, (_, face) in zip(counts, patches, strict=True) if not face),
        )
        hits = misses = 0
        for pixels, place in pasted:
            overlaps = [iou(box, place) >= 0.3 for box in worker([sample(pixels)])[0]["face_boxes"]]
            hits += any(overlaps)
            misses += len(overlaps) - any(overlaps)
        sets["faces pasted in photos"] = (len(pasted), hits, misses)
        for name, (known, right, false) in sets.items():
            precision = right / (right + false) if right + false else 1.0
            print(f"{engine:8}{name:22}{known:6}{right:6}{false:6}{precision:10.3f}{right / known:8.3f}")
        milliseconds = [cpu_ms(worker, megapixel(pixels)) for pixels, _ in counted.values()]
        print(
            f"{engine:8}{statistics.median(milliseconds):.0f} ms per picture; false hits on: {', '.join(wrong) or '-'}"
        )
        result[engine] = {
            "ms": round(statistics.median(milliseconds), 1),
            "false_on": wrong,
            **{name: dict(zip(("faces", "found", "false"), three, strict=True)) for name, three in sets.items()},
        }
    return result


def ocr() -> dict[str, Any]:
    """Time on text-free photographs against texts found, for sizes of the detector's input."""
    folder = SHARED / "images"
    free = [megapixel(pixels) for pixels in bundled(TEXT_FREE).values()]
    free += [megapixel(read(folder / name)) for name in TEXT_FREE if (folder / name).is_file()]
    known = {name: facts["text_contains"] for name, facts in truth().items() if facts.get("text_contains")}
    texts = sum(len(parts) for parts in known.values())
    heights = (10, 14, 18, 24, 32, 48)
    print(
        f"{'pixels':>8}{'ms median':>10}{'ms worst':>9}{'false lines':>12}{'truth texts':>12}   rendered lines, by px"
    )
    rows = []
    for tiles in (96, 144, 192, 216, 300, 540, 1000):
        worker = RapidOcr(pixels=tiles * TILE_PX**2)
        milliseconds = [cpu_ms(worker, pixels) for pixels in free]
        false = sum(worker([sample(pixels)])[0]["ocr_lines"] for pixels in free)
        found = 0
        for name, parts in known.items():
            text = worker([Sample(0, (folder / name).read_bytes(), {})])[0]["ocr_text"].replace(" ", "")
            found += sum(part.replace(" ", "") in text for part in parts)
        shares = {px: rendered(worker, px) for px in heights}
        row = {
            "pixels": tiles * TILE_PX**2,
            "ms_median": round(statistics.median(milliseconds), 1),
            "ms_worst": round(max(milliseconds), 1),
            "false_lines": false,
            "truth_found": found,
            "truth_texts": texts,
            "rendered": shares,
        }
        rows.append(row)
        print(
            f"{row['pixels']:8}{row['ms_median']:10}{row['ms_worst']:9}{false:12}{f'{found}/{texts}':>12}   "
            + "  ".join(f"{px}: {share:.2f}" for px, share in shares.items())
        )
    return {"default_pixels": RapidOcr().pixels, "text_free": len(free), "rows": rows}


def rendered(worker: Worker, px: int) -> float:
    """Share of lines of height `px` on 1-megapixel photographs that are read with 8 of 10 characters right."""
    right = total = 0
    cjk = next((font for font in CJK_FONTS if Path(font).is_file()), None)
    for index, pixels in enumerate(bundled(GROUNDS).values()):
        for text in ("Golden Gate 2024", *(("北京欢迎你",) if cjk else ())):
            font = ImageFont.truetype(cjk, px) if cjk and not text.isascii() else ImageFont.load_default(px)
            image = Image.fromarray(megapixel(pixels))
            place = (image.width * 0.5, image.height * (0.1 + 0.15 * index))
            draw = ImageDraw.Draw(image)
            draw.text(place, text, font=font, fill="white", stroke_width=max(1, px // 16), stroke_fill="black")
            lines = worker([sample(np.array(image))])[0]["ocr_text"].replace(" ", "").split("\n")
            right += any(SequenceMatcher(None, line, text.replace(" ", "")).ratio() >= 0.8 for line in lines)
            total += 1
    return right / total


def scenes() -> list[tuple[Bytes, tuple[int, int, int, int]]]:
    """The 100 LFW faces, each pasted with a soft edge into a 1-megapixel photograph, 10..40 % of its short side."""
    dice = random.Random(0)
    grounds = [megapixel(pixels) for pixels in bundled(GROUNDS).values()]
    pictures = []
    for patch in lfw()[:100]:
        ground = dice.choice(grounds).copy()
        height, width = ground.shape[:2]
        side = int(min(height, width) * dice.uniform(0.1, 0.4))
        left, top = dice.randrange(width - side), dice.randrange(height - side)
        face = cv2.resize(patch, (side, side), interpolation=cv2.INTER_CUBIC)[..., None].astype(np.float32)
        mask = np.zeros((side, side), np.float32)
        cv2.ellipse(mask, (side // 2, side // 2), (int(side * 0.47), side // 2), 0, 0, 360, 1.0, -1)
        soft = cv2.GaussianBlur(mask, (0, 0), side * 0.03)[..., None]
        region = ground[top : top + side, left : left + side]
        ground[top : top + side, left : left + side] = (region * (1 - soft) + face * soft).astype(np.uint8)
        pictures.append((ground, (left, top, side, side)))
    return pictures


def lfw_patches() -> list[tuple[Bytes, bool]]:
    """LFW's 25 px patches, 100 faces and 100 others, six times enlarged, their edge continued by 60 px."""
    pictures = []
    for index, patch in enumerate(lfw()):
        large = cv2.resize(patch, None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
        large = cv2.copyMakeBorder(large, 60, 60, 60, 60, cv2.BORDER_REPLICATE)
        pictures.append((np.repeat(large[..., None], 3, axis=2), index < 100))
    return pictures


def lfw() -> Bytes:
    import skimage.data

    patches: Any = skimage.data.lfw_subset()  # type: ignore[no-untyped-call]
    return np.asarray((patches * 255).round(), np.uint8)


def bundled(names: Sequence[str] | dict[str, int]) -> dict[str, Bytes]:
    """Pictures of `names` that lie in the installed scikit-image or scikit-learn, RGB."""
    import skimage.data
    import sklearn.datasets

    folders = (
        Path(skimage.data.__file__).parent,
        Path(sklearn.datasets.__file__).parent / "images",
    )
    files = {name: folder / name for name in names for folder in folders if (folder / name).is_file()}
    return {name: read(path) for name, path in files.items()}


def truth() -> dict[str, Any]:
    path = SHARED / "images" / "truth.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def read(path: Path) -> Bytes:
    return Sample(0, path.read_bytes(), {}).picture.rgb


def sample(pixels: Bytes) -> Sample:
    return Sample(0, cv2.imencode(".bmp", pixels[..., ::-1])[1].tobytes(), {})


def megapixel(pixels: Bytes) -> Bytes:
    height, width = pixels.shape[:2]
    scale = (1e6 / (height * width)) ** 0.5
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))


def cpu_ms(worker: Worker, pixels: Bytes) -> float:
    """Best of three runs: the machine's other work only ever adds time."""
    times = []
    for _ in range(3):
        one = sample(pixels)
        assert one.decodes
        start = time.process_time()
        worker([one])
        times.append(1e3 * (time.process_time() - start))
    return min(times)


def iou(box: Sequence[float], place: Sequence[float]) -> float:
    wide = min(box[0] + box[2], place[0] + place[2]) - max(box[0], place[0])
    high = min(box[1] + box[3], place[1] + place[3]) - max(box[1], place[1])
    both = max(wide, 0.0) * max(high, 0.0)
    return both / (box[2] * box[3] + place[2] * place[3] - both)


if __name__ == "__main__":
    main()
