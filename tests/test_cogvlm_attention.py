"""The Triton kernel equals torch's attention, in Triton's interpreter, which needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPARED = """
import torch
from workers.cogvlm.attention import attend_cached

torch.manual_seed(0)
for kv_heads, heads, width in ((6, 6, 8), (2, 8, 128), (4, 4, 24)):
    keys, values = torch.randn(2, 2, 5, kv_heads, 192, width)
    lengths = torch.tensor([0, 3, 63, 64])  # the new token starts, ends and follows a block of 64 keys
    q, k, v = torch.randn(4, heads, width), torch.randn(4, kv_heads, width), torch.randn(4, kv_heads, width)
    expected = attend_cached(keys, values, lengths, 128)(1, q, k, v)
    found = attend_cached(keys, values, lengths, 128, "triton")(1, q, k, v)
    assert (found - expected).abs().max() < 2e-6, (kv_heads, heads, width)
    assert torch.equal(keys[1, 2, :, 63], k[2])
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton comes with torch's GPU builds only")
def test_the_triton_kernel_equals_sdpa_for_every_length_and_grouping() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", COMPARED], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
