"""The benchmarks of models and endpoints run from end to end at their smallest sizes, and their figures make sense."""

from __future__ import annotations

import torch

from benchmarks.models import clip, endpoint, marian

torch.set_num_threads(1)


def test_clip_is_measured_against_the_matmul_rate_with_decoding_and_without() -> None:
    found = clip("cpu", True, 2)
    assert 0 < found["whole_share"] < 1
    assert 0 < found["matmul_share"] < 1
    assert found["images_per_s"] > 0


def test_marian_is_measured_in_batches_and_alone() -> None:
    found = marian("cpu", True, 4)
    assert found["rows"] == 4
    assert found["times"] > 0


def test_the_idle_time_of_an_endpoint_is_what_the_server_saw() -> None:
    found = endpoint(3, 24, 0.02, scored=True)
    assert found["most"] == 3
    assert found["asked"] >= found["rows"] == 24
    assert 0 <= found["idle"] <= found["idle_of_run"] < 1
