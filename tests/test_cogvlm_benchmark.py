"""The benchmark of CogVLM runs from end to end at its smallest size."""

from __future__ import annotations

import json

import pytest

from benchmarks import cogvlm


def test_the_tiny_benchmark_ends_with_its_figures_and_the_tokens_of_the_uncached_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmarks.cogvlm", "--tiny", "--rows", "2", "--tokens", "4", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", words)
    cogvlm.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert (result["benchmark"], result["rows"], result["tokens"], result["same_tokens"]) == ("cogvlm", 2, 4, 4)
    assert result["times"] > 0
    assert (result["stream_rows"], result["peak_gb"]) == (2, None)
    assert result["stream_captions_per_s"] > 0
    assert "1 threads" in result["device"]
