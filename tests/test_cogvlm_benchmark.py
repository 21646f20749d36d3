"""The benchmark of CogVLM runs from end to end at its smallest size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_tiny_benchmark_ends_with_its_figures_and_the_tokens_of_the_uncached_loop() -> None:
    command = [sys.executable, "-m", "benchmarks.cogvlm", "--tiny", "--rows", "2", "--tokens", "4", "--device", "cpu"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert (result["benchmark"], result["rows"], result["tokens"], result["same_tokens"]) == ("cogvlm", 2, 4, 4)
    assert result["times"] > 0
    assert (result["stream_rows"], result["peak_gb"]) == (2, None)
    assert result["stream_captions_per_s"] > 0
    assert "1 threads" in result["device"]
