"""Continuous batching gives every sequence what it would have been given alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvlm_tiny import config_of, tensors_of, write_checkpoint
from torch import Tensor

from workers.cogvlm.config import Config, read_config
from workers.cogvlm.decoder import Cache, Model
from workers.cogvlm.generate import Answer, Generator, Request, Sampling, draw, fit, is_out_of_memory
from workers.cogvlm.load import load
from workers.cogvlm.prompt import sequence
from workers.cogvlm.sequence import pack


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_checkpoint(tmp_path_factory.mktemp("tiny")), dtype=torch.float32)


def picture(seed: int) -> Callable[[], Tensor]:
    square = torch.randint(0, 256, (42, 42, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return square.clone


def requests_of(config: Config, lengths: list[int], words: int = 0) -> list[Request]:
    """One request per length of answer, prompts of different lengths, every fourth without a picture."""
    requests = []
    for i, length in enumerate(lengths):
        text = b"Question: " + b"what? " * (i % 3 + words) + b" Answer:"
        ids, types = sequence(config, list(text), image=i % 4 != 3)
        requests.append(Request(ids, types, picture(i) if i % 4 != 3 else None, length, key=i))
    return requests


@torch.inference_mode()
def alone(model: Model, request: Request) -> list[int]:
    """Greedy tokens by whole forward passes of batch 1, without a cache."""
    from workers.cogvlm.vision import normalize

    ids, types = list(request.input_ids), list(request.token_types)
    pixels = None if request.pixels is None else normalize(request.pixels()[None])
    for _ in range(request.max_new_tokens):
        packing = pack(torch.tensor([types]))
        logits = model(torch.tensor([ids]), packing, pixels)
        ids.append(int(packing.unpack(logits)[0, -1].argmax()))
        types.append(0)
    return ids[len(request.input_ids) :]


def tokens_of(answers: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (3, 2), (5, 5), (16, 8)])
def test_sequences_of_different_lengths_share_a_batch_and_equal_the_uncached_loop(
    model: Model, rows: int, chunk: int
) -> None:
    requests = requests_of(model.config, [7, 1, 12, 3, 9, 2, 5, 14, 4])
    answers = Generator(model, rows=rows, columns=128, chunk=chunk, eos=None)(requests)
    assert tokens_of(answers) == [alone(model, request) for request in requests]
    assert [answer.finish for answer in answers] == ["length"] * 9
    assert [answer.prompt_tokens for answer in answers] == [len(request.input_ids) for request in requests]
    assert all(answer.seconds > 0 for answer in answers)


def test_grouped_queries_equal_the_uncached_loop_too(tmp_path: Path) -> None:
    second = load(write_checkpoint(tmp_path, config_of(second=True)), dtype=torch.float32)
    requests = requests_of(second.config, [6, 2, 8, 5])
    answers = Generator(second, rows=2, columns=128, eos=None)(requests)
    assert tokens_of(answers) == [alone(second, request) for request in requests]


def test_a_sequence_ends_at_eos_and_the_next_takes_its_row(model: Model) -> None:
    requests = requests_of(model.config, [16] * 8)
    free = tokens_of(Generator(model, rows=8, columns=128, eos=None)(requests))
    eos = free[2][5]
    expected = [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in free]
    answers = Generator(model, rows=2, columns=128, chunk=1, eos=eos)(requests)
    assert tokens_of(answers) == expected
    assert [answer.finish for answer in answers] == ["stop" if eos in tokens else "length" for tokens in free]
    assert len(expected[2]) <= 5


def test_a_generator_is_used_again_and_again(model: Model) -> None:
    generator = Generator(model, rows=3, columns=128, eos=None)
    first, second = requests_of(model.config, [5, 9, 2, 7]), requests_of(model.config, [3, 3], words=2)
    once = tokens_of(generator(first))
    assert tokens_of(generator(second)) == [alone(model, request) for request in second]
    assert tokens_of(generator(first)) == once
    assert generator([]) == []


def test_a_call_that_failed_leaves_no_row_at_work(model: Model) -> None:
    generator = Generator(model, rows=3, columns=96, chunk=2, eos=None)
    # Twelve answers two at a time keep the third row idle for 54 steps: if it were still at work, its length would pass
    # the cache's 96 columns.
    requests = requests_of(model.config, [9] * 12)
    expected = tokens_of(generator(requests))

    def lost() -> Tensor:
        raise OSError("the disk is gone")

    broken = Request(requests[0].input_ids, requests[0].token_types, lost, 5)
    # The fourth sequence is in the third row when the second row is free for the broken one.
    first, second, third, _, fourth = requests_of(model.config, [3, 9, 20, 20, 20])
    with pytest.raises(OSError, match="the disk is gone"):
        generator([first, second, third, fourth, broken])
    assert tokens_of(generator(requests)) == expected


def test_a_sequence_whose_logits_are_not_finite_ends_and_leaves_nothing_in_its_row(tmp_path: Path) -> None:
    model = load(write_checkpoint(tmp_path), dtype=torch.float32)
    healthy = requests_of(model.config, [5, 9, 7])
    expected = tokens_of(Generator(model, rows=1, columns=128, eos=None)(healthy))
    with torch.inference_mode():
        model.embed_tokens.weight[ord("~")] = float("nan")
    # Longer than its neighbours, so that they do not write over all that it leaves.
    ids, types = sequence(model.config, [*b"Question:", *b"~" * 60])
    broken = Request(ids, types, picture(0), 8)
    for rows in (1, 2):
        answers = Generator(model, rows=rows, columns=128, chunk=1, eos=None)(
            [broken, *healthy[:2], broken, healthy[2]]
        )
        assert [answer.finish for answer in answers] == ["not_finite", "length", "length", "not_finite", "length"]
        assert [answers[i].tokens for i in (1, 2, 4)] == expected
        assert answers[0].tokens == []


def test_a_sequence_without_its_picture_costs_no_token(model: Model) -> None:
    requests = requests_of(model.config, [5, 9, 7, 2, 6])
    expected = tokens_of(Generator(model, rows=2, columns=128, eos=None)(requests))
    refused = Request(requests[0].input_ids, requests[0].token_types, lambda: None, 8)
    for mixed in ([refused, *requests, refused, refused], [refused] * 3):
        answers = Generator(model, rows=2, columns=128, chunk=2, eos=None)(mixed)
        assert tokens_of([a for a in answers if a.finish != "refused"]) == (expected if len(mixed) > 3 else [])
        assert [a for a in answers if a.finish == "refused"] == [Answer([], "refused", len(refused.input_ids), 0.0)] * 3


@pytest.mark.parametrize(
    ("failure", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_every_way_of_saying_that_memory_is_short_is_understood(failure: Exception, short: bool) -> None:
    assert is_out_of_memory(failure) is short


@pytest.mark.parametrize("top_p", [0.0, -0.5, 1.01])
def test_a_top_p_that_leaves_no_token_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match=r"top_p is .*; it must be above 0 and at most 1"):
        Sampling(temperature=1.0, top_p=top_p)


def test_a_sampled_sequence_does_not_depend_on_its_neighbours_and_does_on_its_key(model: Model) -> None:
    sampling = Sampling(temperature=1.5, top_k=50, top_p=0.95, seed=4)
    requests = requests_of(model.config, [12] * 6)
    together = tokens_of(Generator(model, rows=6, columns=128, eos=None, sampling=sampling)(requests))
    single = Generator(model, rows=1, columns=128, eos=None, sampling=sampling)
    assert [single([request])[0].tokens for request in requests] == together
    other = Generator(model, rows=6, columns=128, eos=None, sampling=Sampling(1.5, 50, 0.95, seed=5))
    assert tokens_of(other(requests)) != together
    rekeyed = [Request(r.input_ids, r.token_types, r.pixels, 12, key=r.key + 100) for r in requests]
    assert tokens_of(Generator(model, rows=6, columns=128, eos=None, sampling=sampling)(rekeyed)) != together


def test_draws_follow_the_softmax_and_never_leave_top_k_or_top_p() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(20_000, 4)
    keys, counts = torch.arange(20_000) * 7 - 50_000, torch.zeros(20_000, dtype=torch.int64)

    def shares(**cut: float) -> Tensor:
        drawn = draw(logits, Sampling(temperature=1.0, **cut), keys, counts)  # type: ignore[arg-type]
        return torch.bincount(drawn, minlength=4) / 20_000

    assert (shares() - logits[0].softmax(-1)).abs().max() < 0.012
    assert (shares(top_k=2) - torch.tensor([0, 0, 0.2689, 0.7311])).abs().max() < 0.012
    assert (shares(top_p=0.7) - torch.tensor([0, 0, 0.2689, 0.7311])).abs().max() < 0.012
    assert shares(top_p=0.5).tolist() == [0, 0, 0, 1]
    assert draw(logits[:3], Sampling(), keys[:3], counts[:3]).tolist() == [3, 3, 3]


def test_a_request_that_does_not_fit_is_refused_with_both_lengths(model: Model) -> None:
    (request,) = requests_of(model.config, [60])
    with pytest.raises(ValueError, match=r"117 tokens \(prompt and answer\) do not fit in 64 columns"):
        Generator(model, rows=1, columns=64, eos=None)([request])


def test_what_fits_is_at_least_one_row_and_follows_the_memory_of_a_row(model: Model) -> None:
    rows, chunk = fit(model, prompt_tokens=60, columns=128)
    assert 1 <= rows <= 16
    assert chunk >= 1
    assert Cache.bytes_per_token(model.config, torch.float32) == 2 * 2 * 48 * 4


def test_the_published_models_take_the_known_bytes_per_token() -> None:
    config = read_config(Path(__file__).parent / "data" / "cogvlm" / "v1")
    real = Config(**{**vars(config), "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32})
    assert Cache.bytes_per_token(real, torch.bfloat16) == 524_288
    grouped = Config(**{**vars(real), "num_multi_query_heads": 8})
    assert Cache.bytes_per_token(grouped, torch.bfloat16) == 131_072


HALVED = """
import resource, sys
sys.path[:0] = {path!r}
import torch
from pathlib import Path
from test_cogvlm_generate import requests_of, tokens_of
from workers.cogvlm.generate import Generator
from workers.cogvlm.load import load

model = load(Path({folder!r}), dtype=torch.float32)
requests = requests_of(model.config, [6] * 20)
expected = tokens_of(Generator(model, rows=4, columns=128, eos=None)(requests))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
# A row of 512 columns takes 393 kB: 8192 of them 3.2 GB, and 512 of them 200 MB.
generator = Generator(model, rows=8192, columns=512, eos=None)
assert tokens_of(generator(requests)) == expected
print(generator.rows)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux only")
def test_a_batch_that_runs_out_of_memory_is_halved_until_it_fits(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    here = Path(__file__).parent
    code = HALVED.format(path=[str(here), str(here.parent)], folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) < 8192


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_card(folder: Path, *, second: bool = False, **keys: Any) -> Model:
    """A tiny model on the card, of a width that its fast kernels take."""
    config = config_of(second, hidden_size=192, intermediate_size=320, num_attention_heads=6)
    return load(write_checkpoint(folder, config, tensors_of(config)), device="cuda", **keys)


@needs_gpu
@pytest.mark.parametrize("second", [False, True])
def test_cuda_graphs_give_the_tokens_of_the_plain_step(tmp_path: Path, second: bool) -> None:
    model = on_card(tmp_path, second=second, dtype=torch.float32)
    requests = requests_of(model.config, [7, 1, 12, 3, 9, 2, 30, 14], words=2)
    # Past 128 columns another graph takes over.
    long = [Request(r.input_ids, r.token_types, r.pixels, 128, r.key) for r in requests]
    plain = Generator(model, rows=4, columns=256, chunk=2, eos=None, graphs=False)
    captured = Generator(model, rows=4, columns=256, chunk=2, eos=None, graphs=True)
    for asked in (requests, long, requests):  # the third call replays what the first captured
        assert tokens_of(captured(asked)) == tokens_of(plain(asked))
    assert len({columns for _, columns in captured._graphs}) == 2


@needs_gpu
@pytest.mark.parametrize("weight_format", ["none", "int8", "fp8"])
def test_bfloat16_on_a_card_ends_as_the_plain_step_does(tmp_path: Path, weight_format: str) -> None:
    model = on_card(tmp_path, dtype=torch.bfloat16, weight_format=weight_format)
    requests = requests_of(model.config, [7, 1, 12, 3, 9, 2])
    plain = Generator(model, rows=3, columns=128, chunk=3, eos=None, graphs=False)
    assert tokens_of(Generator(model, rows=3, columns=128, chunk=3, eos=None)(requests)) == tokens_of(plain(requests))


@needs_gpu
def test_a_measured_batch_runs_and_memory_that_runs_out_halves_it(tmp_path: Path) -> None:
    model = on_card(tmp_path, dtype=torch.bfloat16)
    requests = requests_of(model.config, [6] * 20)
    expected = tokens_of(Generator(model, rows=4, columns=128, eos=None)(requests))
    rows, chunk = fit(model, prompt_tokens=60, columns=128)
    assert tokens_of(Generator(model, rows=rows, columns=128, chunk=chunk, eos=None)(requests)) == expected
    row_bytes = 8192 * Cache.bytes_per_token(model.config, torch.bfloat16)
    too_many = 1 << (2 * torch.cuda.mem_get_info()[0] // row_bytes).bit_length()
    generator = Generator(model, rows=too_many, columns=8192, eos=None)
    assert tokens_of(generator(requests)) == expected
    assert 1 <= generator.rows < too_many
    torch.cuda.empty_cache()
