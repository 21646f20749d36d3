"""CLIP and Marian with random weights of the real size, and idle endpoints: `python -m benchmarks.models WHAT`.

    clip      ViT-L/14 on pictures in memory: pictures/s through the embedder (decoding by threads included), the model
              alone, and the share of the time that its multiplications need at the matmul rate of the same machine
    marian    sentences/s in batches sorted by length, against one sentence at a time; both write the same number of
              tokens with the same beams, since random weights never end a sentence by themselves
    endpoint  the share of N requests that is not in flight, seen by the server: `idle_of_run` from the first request
              to the last answer, `idle_until_last` to the last request that is sent, `idle` from the first moment when
              all are in flight to the last such moment. `curate run` without Ray over pictures of 320 px whose scores
              are in the store (`--unscored`: which it computes, too); answers take 0.4 s in the median (lognormal,
              sigma 0.5), and one in twenty is a caption that has to be asked for again. Beside it the processor time
              of the run and of the server for each request

`--tiny` shrinks the models for a CPU in a hurry; a GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console

from benchmarks.cogvlm import matmul_rate, seconds
from curate import pipeline
from curate.progress import Display
from curate.recipe import from_tables
from workers.embedder import Embedder
from workers.sample import Sample
from workers.translator import generated

# Real classes at toy sizes, to see that the benchmark runs.
TINY = {
    "embed_dim": 32, "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip


class Clip:
    """open_clip's ViT-L-14-quickgelu with random weights, in the shape that the embedder asks for."""

    def __init__(self, name: str, dtype: torch.dtype, device: str) -> None:
        import open_clip

        self.device, self.dtype = device, dtype
        if name == "tiny":
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "tiny.json").write_text(json.dumps(TINY))
                open_clip.add_model_config(Path(folder, "tiny.json"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model, _, self.transform = open_clip.create_model_and_transforms(name, device=device)
        self.model = self.model.to(dtype).eval().requires_grad_(False)

    def pixels(self, rgb: Any) -> torch.Tensor:
        """Preprocessing of one picture."""
        return self.transform(Image.fromarray(rgb))

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of a batch."""
        return self.model.encode_image(pixels.to(self.dtype))

    def texts(self, texts: Any) -> torch.Tensor:
        """Not measured."""
        raise NotImplementedError


def jpegs(count: int, side: int = 512) -> list[bytes]:
    """Different pictures."""
    made = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def clip(device: str, tiny: bool, rows: int) -> dict[str, Any]:
    """Pictures a second and the share of the matmul rate."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    name = "tiny" if tiny else "ViT-L-14-quickgelu"
    backbone = Clip(name, dtype, device)
    patches, width, layers = (50, 64, 2) if tiny else (257, 1024, 24)
    # Multiply-adds of a layer: QKV and output 4 W^2, MLP 8 W^2, for every token; scores and mixing 2 T W.
    flops = 2 * layers * patches * (12 * width**2 + 2 * patches * width)
    rate = matmul_rate(device, dtype)
    pixels = torch.randn(rows, 3, 224, 224, device=device)
    with torch.inference_mode():
        backbone.images(pixels)
        alone = seconds(lambda: backbone.images(pixels), device, repeats=3) / rows
    data = jpegs(4 * rows)
    embedder = Embedder(backbone, rows=rows, threads=8)
    begun = time.perf_counter()
    embedder.images([Sample(i, jpeg, {}) for i, jpeg in enumerate(data)])
    whole = (time.perf_counter() - begun) / len(data)
    return {
        "model": name, "images_per_s": 1 / whole, "model_images_per_s": 1 / alone,
        "matmul_share": flops / alone / rate, "whole_share": flops / whole / rate,
    }  # fmt: skip


def marian(device: str, tiny: bool, rows: int) -> dict[str, Any]:
    """Sentences a second, in batches and one at a time."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

    vocabulary = 8000 if tiny else 65001
    words = {f"w{i}": i for i in range(vocabulary - 3)} | {"<pad>": vocabulary - 1, "</s>": vocabulary - 2}
    words["<unk>"] = vocabulary - 3
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    layers, width = (2, 128) if tiny else (6, 512)
    torch.manual_seed(0)
    model: Any = MarianMTModel(
        MarianConfig(
            vocab_size=vocabulary, d_model=width, encoder_layers=layers, decoder_layers=layers,
            encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
            max_position_embeddings=512, pad_token_id=vocabulary - 1, eos_token_id=vocabulary - 2,
            decoder_start_token_id=vocabulary - 1,
        )
    )  # fmt: skip
    model = model.to(device).eval()
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in draw.integers(0, 5000, draw.integers(12, 28))) for _ in range(2 * rows)]
    # As many tokens for everyone: the comparison is of batching, not of when random weights stop.
    options = {"num_beams": 4, "no_repeat_ngram_size": 4, "min_new_tokens": 24, "max_new_tokens": 24}
    begun = time.perf_counter()
    generated(model, tokenizer, texts, rows, skip_prompt=False, **options)
    batched = (time.perf_counter() - begun) / len(texts)
    alone = texts[:6]
    begun = time.perf_counter()
    for text in alone:
        generated(model, tokenizer, [text], 1, skip_prompt=False, **options)
    single = (time.perf_counter() - begun) / len(alone)
    return {"rows": rows, "sentences_per_s": 1 / batched, "one_at_a_time": 1 / single, "times": single / batched}


def serve(median_s: float) -> None:
    """A server in a process of its own that speaks the protocol; /flight tells what was in flight since when, and what
    processor time it took itself."""
    flight, events, lock = [0], [], threading.Lock()
    good, bad = "A red gate stands open between two stone lions in the evening.", "A gate"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else the body waits 40 ms for the receipt of the headers, as nowhere else

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send(json.dumps({"events": events, "cpu": time.process_time() - loaded}))

        def do_POST(self) -> None:
            with lock:
                flight[0] += 1
                events.append((time.monotonic(), flight[0]))
                number = len(events)
            self.rfile.read(int(self.headers["Content-Length"]))
            draw = random.Random(number)
            time.sleep(median_s * draw.lognormvariate(0, 0.5))
            message = {"content": bad if draw.random() < 0.05 else good}
            with lock:
                flight[0] -= 1
                events.append((time.monotonic(), flight[0]))
            self.send(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}))

        def send(self, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    class Server(ThreadingHTTPServer):
        request_queue_size = 512
        daemon_threads = True

    loaded = time.process_time()
    with Server(("127.0.0.1", 0), Handler) as http:
        print(http.server_address[1], flush=True)
        http.serve_forever()


def silent() -> Display:
    """A display that nobody sees."""
    return Display(Console(file=io.StringIO()))


def endpoint(requests: int, rows: int, median_s: float, scored: bool) -> dict[str, Any]:
    """Idle share of the requests while there is enough to ask, and over the whole run."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "shards").mkdir()
        table = pa.table(
            {"image": pa.array(jpegs(rows, 320), pa.binary()), "caption": [f"row {i}" for i in range(rows)]}
        )
        pq.write_table(table, f"{folder}/shards/a.parquet", row_group_size=64)
        command = [sys.executable, "-m", "benchmarks.models", "serve", "--median", str(median_s)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            without = {name: {"engine": "none"} for name in ("faces", "ocr", "aesthetic", "translate")}
            common = {
                "input": {"uri": f"{folder}/shards"}, "store": {"uri": f"{folder}/store"}, "engine": {"kind": "inline"},
                **without,
            }  # fmt: skip
            if scored:  # what a row costs before its caption is not what is measured
                assert pipeline.run(from_tables(common | {"caption": {"engine": "none"}}), display=silent()) == 0
            keys = {"engine": "openai", "endpoint": f"{url}/v1", "model": "m", "requests": requests}
            tables = common | {"caption": {**keys, "prompt": "short.v1"}}
            begun = time.process_time()
            code = pipeline.run(from_tables(tables), display=silent())
            client = time.process_time() - begun
            with urllib.request.urlopen(f"{url}/flight") as answer:
                told = json.load(answer)
            server.kill()
    assert code == 0
    events = told["events"]
    times, flying = np.array([event[0] for event in events]), np.array([event[1] for event in events])
    full = np.flatnonzero(flying == flying.max())

    def idle(first: int, last: int) -> float:
        steps = np.diff(times[first : last + 1])
        return 1 - float((flying[first:last] * steps).sum() / steps.sum()) / requests

    return {
        "requests": requests, "rows": rows, "asked": len(events) // 2, "seconds": float(times[-1] - times[0]),
        "most": int(flying.max()), "idle": idle(int(full[0]), int(full[-1])),
        "idle_until_last": idle(0, int(np.flatnonzero(np.diff(flying, prepend=0) > 0)[-1])),
        "idle_of_run": idle(0, len(times) - 1),
        "captions_per_s": rows / float(times[-1] - times[0]),
        "run_ms_a_request": 2e3 * client / len(events), "server_ms_a_request": 2e3 * told["cpu"] / len(events),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("clip", "marian", "endpoint", "serve"))
    parser.add_argument("--tiny", action="store_true", help="small models")
    parser.add_argument(
        "--rows", type=int, default=0, help="batch (clip: 256, 16 on a CPU; marian: 64); endpoint: rows"
    )
    parser.add_argument("--requests", type=int, default=16, help="in flight (endpoint)")
    parser.add_argument("--unscored", action="store_true", help="score the pictures in the same run (endpoint)")
    parser.add_argument("--median", type=float, default=0.4, help="seconds of an answer (endpoint)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.what == "serve":
        serve(options.median)
        return
    if options.what == "endpoint":
        found = endpoint(options.requests, options.rows or 60 * options.requests, options.median, not options.unscored)
    elif options.what == "clip":
        found = clip(options.device, options.tiny, options.rows or (16 if options.device == "cpu" else 256))
    else:
        found = marian(options.device, options.tiny, options.rows or 64)
    where = torch.cuda.get_device_name() if options.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.what} on {where}")
    for name, value in found.items():
        print(f"  {name:<20} {value:.3g}" if isinstance(value, float) else f"  {name:<20} {value}")
    print(f"RESULT {json.dumps({'benchmark': options.what, 'device': where, 'tiny': options.tiny, **found})}")


if __name__ == "__main__":
    main()
