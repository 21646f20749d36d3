"""Rate of size + identity + sharpness + photometry against Pillow's decoding alone: `python -m benchmarks.scorers`.

Both are timed on the same JPEGs of 640 to 2048 px, one core, turn and turn about, so that the ratio is not the
machine's mood. The files are crops of scikit-image's and scikit-learn's photographs with grain, so that they have the
bits per pixel of a photograph. Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from workers.identity import identity
from workers.photometry import photometry
from workers.picture import Limits, decode
from workers.sample import Sample
from workers.sharpness import sharpness
from workers.size import size

TARGET = 0.40
SCORERS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "size": size,
    "identity": identity,
    "sharpness": sharpness,
    "photometry": photometry,
}


def photographs() -> list[Image.Image]:
    """The photographs that scikit-image and scikit-learn carry."""
    import skimage
    import sklearn.datasets

    skimage_data = Path(skimage.__file__).parent / "data"
    sklearn_data = Path(sklearn.datasets.__file__).parent / "images"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg")
    paths = [skimage_data / name for name in names] + [sklearn_data / name for name in ("china.jpg", "flower.jpg")]
    return [Image.open(path).convert("RGB") for path in paths if path.exists()]


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    """`count` JPEGs with a long side uniform in 640..2048 px, 4:3, 3:2, 1:1 or 16:9, either way up."""
    random = np.random.default_rng(seed)
    sources = photographs()
    out = []
    for i in range(count):
        source = sources[i % len(sources)]
        long_side = int(random.integers(640, 2049))
        ratio = float(random.choice([1, 4 / 3, 3 / 2, 16 / 9]))
        shape = (long_side, round(long_side / ratio))
        width, height = shape if random.random() < 0.6 else shape[::-1]
        zoom = max(width / source.width, height / source.height) * float(random.uniform(1.0, 1.3))
        box = (width / zoom, height / zoom)
        left, top = random.uniform(0, source.width - box[0]), random.uniform(0, source.height - box[1])
        crop = source.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + box[0], top + box[1]))
        grain = random.normal(0, 4, (height, width, 1)).astype(np.float32)
        noisy = np.clip(np.asarray(crop) + grain, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=int(random.integers(75, 93)))
        out.append(buffer.getvalue())
    return out


def measure(files: list[bytes]) -> dict[str, Any]:
    """Seconds for each step over all `files`."""
    spent = dict.fromkeys(("pillow", "decode", *SCORERS), 0.0)
    for row, data in enumerate(files):
        clock = time.perf_counter()
        Image.open(io.BytesIO(data)).load()
        spent["pillow"] += time.perf_counter() - clock
        sample = Sample(row, data, {}, Limits())
        clock = time.perf_counter()
        _ = sample.picture
        spent["decode"] += time.perf_counter() - clock
        for name, scorer in SCORERS.items():
            clock = time.perf_counter()
            scorer([sample])
            spent[name] += time.perf_counter() - clock
    return spent


def main() -> None:
    """Print a table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="JPEGs to make and score")
    count = parser.parse_args().images
    cv2.setNumThreads(1)
    files = jpegs(count)
    pixels = [header.width * header.height for header in (decode(data, Limits()).header for data in files[:50])]
    measure(files[:1])  # imports and the table of colour names
    spent = measure(files)
    ours = sum(spent[name] for name in ("decode", *SCORERS))
    ratio = spent["pillow"] / ours
    print(f"{count} JPEGs, mean {np.mean(pixels) / 1e6:.2f} Mpx, {sum(map(len, files)) / count / 1e3:.0f} kB")
    for name, seconds in spent.items():
        print(f"  {name:12s}{seconds / count * 1e3:8.2f} ms/image")
    print(
        f"  Pillow alone {count / spent['pillow']:.1f} images/s, all scorers {count / ours:.1f} images/s: {ratio:.1%}"
    )
    figures = {
        "benchmark": "scorers",
        "images": count,
        "ratio_to_pillow": round(ratio, 4),
        "target": TARGET,
        "images_per_s": round(count / ours, 2),
        "pillow_images_per_s": round(count / spent["pillow"], 2),
        "ms_per_image": {name: round(seconds / count * 1e3, 3) for name, seconds in spent.items()},
    }
    print("RESULT " + json.dumps(figures))


if __name__ == "__main__":
    main()
