"""Speed and memory of CogVLM beside what the machine itself can do: `python benchmarks/cogvlm.py`.

On a GPU: random weights of the published size, built on the card; 490 px pictures, 180 tokens a caption, batch 64.
`--tiny` is a 4-layer, 512-wide model that a CPU runs in a minute. What is compared is measured in the same run:

    copy, matmul       what the memory and the matrix units give here: the limits
    prefill            tower, adapter and decoder over the prompt; share of the matmul rate
    decode             one step of the whole batch; share of the time in which the bytes it must read could be copied
    captions/s         the whole path by continuous batching, against one caption at a time without a cache
    stream             as the worker does it: rows and chunk by measurement, JPEGs decoded by its threads, answers of
                       different lengths, so that rows end and are replaced one by one
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from workers.cogvlm.captioner import _Squares
from workers.cogvlm.config import Config, VisionConfig
from workers.cogvlm.decoder import Cache, Model, causal
from workers.cogvlm.generate import Generator, Request, fit
from workers.cogvlm.load import build
from workers.cogvlm.quantize import QuantLinear
from workers.cogvlm.sequence import pack
from workers.cogvlm.vision import normalize
from workers.sample import Sample

# Text around the picture; the shipped prompts are about as long.
PROMPT_TOKENS = 60


def published(second: bool) -> Config:
    """The configuration of cogvlm-chat-hf, or of cogvlm2-llama3-chat-19B."""
    side = 1344 if second else 490
    return Config(
        vision=VisionConfig(1792, 63, 16, 15360, side, 14, (side // 14) ** 2 + 1, 3, 1e-6, "gelu"),
        hidden_size=4096,
        intermediate_size=14336 if second else 11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_multi_query_heads=8 if second else None,
        vocab_size=128256 if second else 32000,
        max_position_embeddings=8192 if second else 2048,
        rms_norm_eps=1e-5,
        hidden_act="silu",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def tiny(second: bool) -> Config:
    """4 decoder layers of width 512 under a 2-layer tower at 224 px (258 image tokens; 66 in CogVLM2's manner)."""
    return Config(
        vision=VisionConfig(256, 2, 4, 1024, 224, 14, 257, 3, 1e-6, "gelu"),
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_multi_query_heads=2 if second else None,
        vocab_size=8000,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        hidden_act="silu",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def random_model(config: Config, dtype: torch.dtype, device: str, weight_format: str) -> Model:
    """A model with random weights, made where they stay."""
    model = build(config, dtype=dtype, device=device, weight_format=weight_format)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.store(slice(None), torch.randn(module.weight.shape, device=device) * 0.02)
        for name, parameter in module.named_parameters(recurse=False):
            norm = name == "weight" and (isinstance(module, nn.LayerNorm) or parameter.dim() == 1)
            parameter.fill_(1.0) if norm else parameter.normal_(std=0.02)
    return model


def seconds(work: Callable[[], object], device: str, repeats: int = 1) -> float:
    """Mean wall time of `work`, the device's queue empty before and after."""

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    wait()
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - begun) / repeats


def copy_rate(device: str) -> float:
    """Bytes per second that a large copy moves, read and written ones both counted."""
    source = torch.zeros(1 << (32 if device != "cpu" else 28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * len(source) / seconds(lambda: target.copy_(source), device, repeats=10)


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square product."""
    size = 8192 if device != "cpu" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / seconds(lambda: a @ b, device, repeats=10)


def prefill_flops(config: Config, tokens: int) -> float:
    """Multiply-adds times two of one picture and its prompt: tower, adapter, decoder with causal attention."""
    vision, patches = config.vision, config.vision.num_positions
    per_patch = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    tower = vision.num_hidden_layers * (2 * patches * per_patch + 4 * patches**2 * vision.hidden_size)
    hidden, inner = config.hidden_size, config.intermediate_size
    adapter = 2 * (config.image_tokens - 2) * (vision.hidden_size * hidden + 3 * hidden * inner)
    per_token = hidden * config.qkv_size + hidden**2 + 3 * hidden * inner
    decoder = config.num_hidden_layers * (2 * tokens * per_token + 2 * tokens**2 * hidden)
    return float(tower + adapter + decoder)


def step_bytes(model: Model, rows: int, length: float) -> float:
    """Bytes that one decoding step must read: language experts, head, and the rows' keys and values."""
    weights = [model.lm_head.weight]
    for layer in model.layers:
        language = layer.get_submodule("language")
        weights += [tensor for tensor in (*language.parameters(), *language.buffers()) if tensor.dim() == 2]
    cache = rows * length * Cache.bytes_per_token(model.config, model.dtype)
    return sum(weight.numel() * weight.element_size() for weight in weights) + cache


def requests_of(config: Config, count: int, tokens: int) -> list[Request]:
    """Requests with random pictures and random text."""
    generator = torch.Generator().manual_seed(1)
    side = config.vision.image_size
    squares = torch.randint(0, 256, (4, side, side, 3), dtype=torch.uint8, generator=generator)
    made = []
    for i in range(count):
        text = torch.randint(3, config.vocab_size, (PROMPT_TOKENS,), generator=generator).tolist()
        ids = [config.bos_token_id, *[config.pad_token_id] * config.image_tokens, *text]
        types = [0, *[1] * config.image_tokens, *[0] * len(text)]
        made.append(Request(ids, types, squares[i % 4].clone, tokens, key=i))
    return made


def streamed(config: Config, count: int, tokens: int, pool: ThreadPoolExecutor) -> list[Request]:
    """Requests as the worker makes them: megapixel JPEGs that threads decode, answers of a third to all of `tokens`."""
    noise = np.random.default_rng(2)
    coarse = [noise.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(4)]
    files = [io.BytesIO() for _ in coarse]
    for pixels, file in zip(coarse, files, strict=True):
        Image.fromarray(pixels).resize((1024, 1024)).save(file, "JPEG", quality=92)
    squares = _Squares(pool, config.vision.image_size)
    made = []
    for i, request in enumerate(requests_of(config, count, tokens)):
        key = i.to_bytes(8, "little")
        squares.add(key, Sample(i, files[i % 4].getvalue(), {}))
        length = int(noise.integers(-(-tokens // 3), tokens + 1))
        made.append(Request(request.input_ids, request.token_types, partial(squares.take, key), length, key=i))
    return made


@torch.inference_mode()
def uncached(model: Model, request: Request, tokens: int) -> list[int]:
    """One caption without cache or batch: every token is a pass over the whole sequence.

    The picture's features are computed once, which favours this side of the comparison.
    """
    square = request.pixels() if request.pixels else None
    assert square is not None
    features = model.vision(normalize(square[None].to(model.device)))
    ids, types = list(request.input_ids), list(request.token_types)
    for _ in range(tokens):
        packing = pack(torch.tensor([types]), device=model.device)
        x = model.embed(torch.tensor([ids], device=model.device), packing, None)
        x[packing.image] = features.flatten(0, 1)
        hidden = model.decode(x, packing.vision, packing.positions, causal(packing))
        ids.append(int(model.lm_head(hidden[packing.last]).argmax()))
        types.append(0)
    return ids[len(request.input_ids) :]


@torch.inference_mode()
def prefill_seconds(model: Model, requests: Sequence[Request], device: str) -> float:
    """Seconds per picture of a prefill of all `requests` at once."""
    config = model.config
    length = len(requests[0].input_ids)
    types = torch.tensor([list(request.token_types) for request in requests])
    ids = torch.tensor([list(request.input_ids) for request in requests]).to(device)
    squares = [square for r in requests if r.pixels is not None and (square := r.pixels()) is not None]
    pixels = normalize(torch.stack(squares).to(device))
    cache = Cache(config, len(requests), length, model.dtype, device)
    rows, packing = torch.arange(len(requests), device=device), pack(types, device=device)

    def work() -> Tensor:
        return model.prefill(ids, packing, pixels, cache, rows)

    work()
    return seconds(work, device, repeats=3) / len(requests)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tiny", action="store_true", help="4 layers of width 512, float32 on a CPU")
    parser.add_argument("--second", action="store_true", help="CogVLM2 instead of CogVLM")
    parser.add_argument("--rows", type=int, default=0, help="batch (default: 64, tiny: 16)")
    parser.add_argument("--tokens", type=int, default=0, help="tokens a caption (default: 180, tiny: 64)")
    parser.add_argument("--chunk", type=int, default=4, help="pictures prefilled together")
    parser.add_argument("--weights", default="none", choices=("none", "int8", "fp8"), help="8-bit decoder weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device: str = options.device
    if device == "cpu" and not options.tiny:
        parser.error("no GPU here: the published size needs one; --tiny runs on a CPU")
    if device == "cpu":
        # Threads of a busy machine wait for each other: with one, the ratio does not depend on the load.
        torch.set_num_threads(1)
    rows, tokens = options.rows or (16 if options.tiny else 64), options.tokens or (64 if options.tiny else 180)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    config = (tiny if options.tiny else published)(options.second)
    model = random_model(config, dtype, device, options.weights)
    bandwidth, rate = copy_rate(device), matmul_rate(device, dtype)
    length = 1 + config.image_tokens + PROMPT_TOKENS
    where = torch.cuda.get_device_name() if device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {dtype}, weights {options.weights}")
    name = ("CogVLM2" if options.second else "CogVLM") + (" tiny" if options.tiny else "")
    print(f"{name}: {length} + {tokens} tokens, batch {rows}")
    print(f"limits     copy {bandwidth / 1e9:.0f} GB/s, matmul {rate / 1e12:.2f} Tflop/s")

    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    per_picture = prefill_seconds(model, requests_of(config, options.chunk, 1), device)
    flops = prefill_flops(config, length)
    print(
        f"prefill    {per_picture * 1e3:.1f} ms a picture, {flops / 1e12:.2f} Tflop:"
        f" {flops / per_picture / rate:.0%} of the matmul rate"
    )

    generator = Generator(model, rows=rows, columns=length + tokens, chunk=options.chunk, eos=None)
    few = tokens // 4
    generator(requests_of(config, rows, tokens))  # captures the graphs
    short = seconds(lambda: generator(requests_of(config, rows, few)), device)
    long = seconds(lambda: generator(requests_of(config, rows, tokens)), device)
    step = (long - short) / (tokens - few)
    needed = step_bytes(model, rows, length + (few + tokens) / 2)
    # A copy reads and writes: reading alone takes its bytes over the whole rate.
    print(
        f"decode     {step * 1e3:.2f} ms a step of {rows}, {needed / 1e9:.2f} GB read:"
        f" {needed / bandwidth / step:.0%} of the copy rate"
    )

    count = 3 * rows
    whole = seconds(lambda: generator(requests_of(config, count, tokens)), device) / count
    peak = torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else None
    if peak is not None:
        print(f"memory     peak {peak:.1f} GB")
    request = requests_of(config, 1, tokens)[0]
    uncached(model, request, 2)
    loop = seconds(lambda: uncached(model, request, tokens), device)
    times = f"{loop / whole:.1f} times as many"
    print(f"captions   {1 / whole:.2f}/s; one at a time without a cache {1 / loop:.3f}/s: {times}")
    same = sum(a == b for a, b in zip(generator([request])[0].tokens, uncached(model, request, tokens), strict=True))
    print(f"agreement  {same} of {tokens} tokens are those of the uncached loop")

    generator.release()
    fitting, chunk = fit(
        model, prompt_tokens=length, columns=length + tokens, most_rows=rows if device == "cpu" else 256
    )
    generator = Generator(model, rows=fitting, columns=length + tokens, chunk=chunk, eos=None)
    with ThreadPoolExecutor(4) as pool:
        generator(streamed(config, fitting, tokens, pool))  # captures the graphs
        asked = streamed(config, 3 * fitting, tokens, pool)
        wanted = sum(request.max_new_tokens for request in asked)
        took = seconds(lambda: generator(asked), device)
    print(
        f"stream     {fitting} rows and {chunk} a prefill by measurement (now {generator.rows}):"
        f" {len(asked) / took:.2f} captions/s, {wanted / took:.0f} tokens/s"
    )
    result = {
        "benchmark": "cogvlm", "model": name, "device": where, "weights": options.weights, "rows": rows,
        "tokens": tokens, "prefill_ms": per_picture * 1e3, "prefill_share": flops / per_picture / rate,
        "step_ms": step * 1e3, "step_share": needed / bandwidth / step, "captions_per_s": 1 / whole,
        "uncached_captions_per_s": 1 / loop, "times": loop / whole, "same_tokens": same,
        "peak_gb": peak, "stream_rows": generator.rows, "stream_captions_per_s": len(asked) / took,
    }  # fmt: skip
    print(f"RESULT {json.dumps(result)}")


if __name__ == "__main__":
    main()
