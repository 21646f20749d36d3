"""Side by side with Data-Juicer, the same files and cores: `python -m benchmarks.datajuicer [--yunet FILE]`.

Data-Juicer runs image_shape_filter, image_aspect_ratio_filter, image_face_count_filter (Haar) and image_deduplicator
(phash) with np = 2; its limits let every picture through, so every operator sees every picture. curate runs, with two
workers on Ray and no policy, `size`, `identity` (SHA-256 and PDQ) and `faces` (the lean job), or all embedded operators
but OCR (the full job: also sharpness, light, colours, aesthetics and captions in two languages).

Every run is a process of its own. Start-up is told apart: for curate what passes until its workers are loaded, for
Data-Juicer the time of a run over four pictures.
Data-Juicer is installed into .cache/datajuicer-venv the first time (about 1 GB with its PyTorch). Last line: `RESULT `
and the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import Clock, Quiet
from benchmarks.process import answer, step
from benchmarks.scorers import jpegs
from curate import pipeline
from curate.recipe import from_tables

TARGETS = {"haar": 10.0, "yunet": 30.0}
FEW = 4
PROCESSES = 2
VENV = Path(".cache/datajuicer-venv")
# py-data-juicer 1.6 does not name all that these operators import; OpenCV 5 has no Haar cascades.
PACKAGES = ("py-data-juicer==1.6.1", "aiohttp", "opencv-python-headless>=4.10,<5", "imagededup", "av", "torch")
LEAN = ("input", "size", "identity", "faces")
YUNET = Path(__file__).resolve().parent.parent.parent / "shared" / "weights" / "face_detection_yunet_n_640_640.onnx"
CONFIG = """
project_name: side-by-side
dataset_path: {pictures}.jsonl
export_path: {out}/kept.jsonl
np: {processes}
use_cache: false
open_tracer: false
open_monitor: false
process:
  - image_shape_filter: {{min_width: 1, min_height: 1}}
  - image_aspect_ratio_filter: {{min_ratio: 0.01, max_ratio: 100}}
  - image_face_count_filter: {{min_face_count: 0, max_face_count: 1000}}
  - image_deduplicator: {{method: phash}}
"""


def main() -> None:
    """Print a table and the RESULT line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--yunet", type=Path, default=YUNET, help="ONNX weights; without the file YuNet is left out")
    parser.add_argument("--torch", default="torch", help="requirement for Data-Juicer's PyTorch, e.g. torch==2.13.0")
    parser.add_argument("--folder", type=Path, default=Path("bench-data"), help="where pictures and stores are made")
    parser.add_argument("--step", nargs=2, metavar=("ENGINE", "JOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_curate(options.folder, options.step[0], options.step[1], options.yunet)
        return
    install(options.torch)
    engines = ("haar", "yunet") if options.yunet.is_file() else ("haar",)
    print("RESULT " + json.dumps(compare(options.folder.absolute(), options.images, engines, options.yunet)))


def compare(folder: Path, images: int, engines: Sequence[str], yunet: Path) -> dict[str, Any]:
    """Images per second of every side, and its ratio to Data-Juicer's."""
    few, many = pictures(folder / f"pictures-{FEW}", FEW), pictures(folder / f"pictures-{images}", images)
    jobs = [(engine, job) for engine in engines for job in ("lean", "full")]
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {job: [] for job in jobs}
    for turn in range(2):  # ours before and after theirs, so that the machine's mood is shared
        for job in jobs:
            spent[job].append(curate_seconds(many, *job, yunet))
            print("  curate {} {}: start-up {:.1f} s, then {:.1f} s".format(*job, *spent[job][-1]), flush=True)
        if not turn:
            start, whole = data_juicer_seconds(few), data_juicer_seconds(many)
            print(f"  Data-Juicer: start-up {start:.1f} s, then {whole - start:.1f} s", flush=True)
    theirs = rates(images - FEW, images, start, whole - start)
    print(f"{'':22}{'images/s':>10}{'ratio':>8}{'with start-up':>15}{'ratio':>8}")
    print(f"{'Data-Juicer':22}{theirs['images_per_s']:10.2f}{1:8.1f}{theirs['whole_images_per_s']:15.2f}{1:8.1f}")
    figures: dict[str, Any] = {"benchmark": "datajuicer", "images": images, "data_juicer": theirs}
    for job in jobs:
        start, working = (sum(run[i] for run in spent[job]) / len(spent[job]) for i in (0, 1))
        ours = rates(images, images, start, working)
        ours["ratio"] = round(ours["images_per_s"] / theirs["images_per_s"], 2)
        ours["whole_ratio"] = round(ours["whole_images_per_s"] / theirs["whole_images_per_s"], 2)
        ours["target"] = TARGETS[job[0]]
        figures["_".join(job)] = ours
        print(
            f"{'curate ' + ' '.join(job):22}{ours['images_per_s']:10.2f}{ours['ratio']:8.1f}"
            f"{ours['whole_images_per_s']:15.2f}{ours['whole_ratio']:8.1f}"
        )
    return figures


def rates(worked: int, images: int, start: float, working: float) -> dict[str, float]:
    """Images per second while at work on `worked` of them, and of all `images` with the start-up."""
    return {
        "images_per_s": round(worked / working, 3), "whole_images_per_s": round(images / (start + working), 3),
        "start_s": round(start, 1),
    }  # fmt: skip


def curate_seconds(folder: Path, engine: str, job: str, yunet: Path) -> tuple[float, float]:
    """Seconds of a whole process that runs the job: until its workers are loaded, and the rest, index included."""
    clock = time.perf_counter()
    working = step(__spec__.name, "--step", engine, job, "--folder", folder, "--yunet", yunet)["working"]
    return time.perf_counter() - clock - working, working


def run_curate(folder: Path, engine: str, job: str, yunet: Path) -> None:
    """The job over the pictures in `folder`, in this process."""
    store = folder.with_name(f"{folder.name}-store")
    shutil.rmtree(store, ignore_errors=True)
    recipe = from_tables({
        "input": {"uri": str(folder)}, "store": {"uri": str(store)}, "engine": {"workers": PROCESSES, "range_rows": 16},
        "faces": {"engine": engine, "weights": str(yunet) if engine == "yunet" else ""}, "ocr": {"engine": "none"},
    })  # fmt: skip
    path = [operator for operator in pipeline.PATH if job == "full" or operator.name in LEAN]
    clock = Clock()
    code = pipeline.run(recipe, path=path, make_engine=clock.engine, display=Quiet())
    working = time.perf_counter() - clock.ready
    assert code == 0, f"the job ended with exit code {code}"
    answer(working=round(working, 3))


def data_juicer_seconds(folder: Path) -> float:
    """Seconds of a whole `dj-process`."""
    out = folder.with_name(f"{folder.name}-dj")
    shutil.rmtree(out, ignore_errors=True)
    lines = [
        json.dumps({"text": "<__dj__image> a picture", "images": [str(path)]}) for path in sorted(folder.glob("*.jpg"))
    ]
    Path(f"{folder}.jsonl").write_text("\n".join(lines) + "\n")
    config = Path(f"{folder}.yaml")
    config.write_text(CONFIG.format(pictures=folder, out=out, processes=PROCESSES))
    clock = time.perf_counter()
    with (folder.parent / "data-juicer.log").open("w") as log:
        subprocess.run(
            [VENV.absolute() / "bin" / "dj-process", "--config", config], check=True, stdout=log, stderr=log,
            cwd=folder.parent, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    seconds = time.perf_counter() - clock
    log_text = (folder.parent / "data-juicer.log").read_text()
    passed = log_text.count(f"Left {len(lines)} samples")  # the deduplicator, the last one, may drop some
    assert passed >= 3, f"only {passed} of three filters let all {len(lines)} pictures pass; see data-juicer.log"
    return seconds


def pictures(folder: Path, count: int) -> Path:
    """JPEGs of 640 to 2048 px as files; made once."""
    if not (folder / f"{count - 1:05d}.jpg").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for i, data in enumerate(jpegs(count, seed=1)):
            (folder / f"{i:05d}.jpg").write_bytes(data)
    return folder


def install(torch: str) -> None:
    """Data-Juicer in an environment of its own, once."""
    if (VENV / ".installed").exists():
        return
    print(f"installing Data-Juicer into {VENV}", flush=True)
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, *PACKAGES[:-1], torch], check=True)
    if subprocess.run([python, "-c", "import imagededup.methods"], capture_output=True).returncode:
        # imagededup imports torchvision for its neural networks. A wheel built for CUDA does not import beside a CPU
        # PyTorch; 0.15 does (it only warns), and hashing does not use it.
        subprocess.run([*pip, "--force-reinstall", "--no-deps", "torchvision==0.15.2"], check=True)
    subprocess.run([python, "-W", "ignore", "-c", "from imagededup.methods import PHash; PHash()"], check=True)
    (VENV / ".installed").touch()


if __name__ == "__main__":
    main()
