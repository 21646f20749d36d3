from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.train import measure_gpu


def test_the_benchmark_of_a_gpu_measures_the_loop_of_the_product(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = measure_gpu(tmp_path, "tiny", batch=2, steps=2, checkpointing=True, warm=1, rows=8)
    assert found["images_per_s"] > 0
    assert found["mfu"] == pytest.approx(found["images_per_s"] * found["tflop_per_image"] / 989)
    assert (tmp_path / "run" / "finished.json").is_file()  # written by `curate train` alone
