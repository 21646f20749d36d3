"""The trainer's loop against diffusers', its overhead, its restart, and twenty kills: `python -m benchmarks.train`.

    python -m benchmarks.train --step        one step of the same UNet: our loop and that of train_text_to_image_sdxl
    python -m benchmarks.train --restart     seconds from the start of the process to the first step, a million rows
    python -m benchmarks.train --kills 20    bit-equality after that many kills at random points
    python -m benchmarks.train --gpu         `curate train` with Kolors' UNet, bf16, 1024 px, on a GPU: MFU and memory

All but the last train the tiny models on drawn pictures, one thread of a CPU. Last line: `RESULT ` and the figures as
JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

BUCKET = "64x64"
BATCH = 8
TARGETS = {"overhead": 0.03, "data_wait": 0.02, "speed_to_diffusers": 1.0, "restart_s": 10.0, "mfu": 0.45}
H200_FLOPS = 989e12  # dense bfloat16, NVIDIA's data sheet


def make_store(folder: Path, rows: int) -> Path:
    """A store of `rows` drawn pictures that the main job scored."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from curate import pipeline
    from curate.progress import Display
    from curate.recipe import from_tables

    (folder / "shards").mkdir(parents=True)
    pictures = []
    for row in range(rows):
        noise = np.random.default_rng(row).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC).save(out, "PNG")
        pictures.append(out.getvalue())
    captions = [f"picture number {row} of many, drawn at random" for row in range(rows)]
    pq.write_table(pa.table({"image": pictures, "caption": captions}), folder / "shards" / "a.parquet")
    recipe = from_tables({
        "input": {"uri": str(folder / "shards")}, "store": {"uri": str(folder / "store")},
        "engine": {"kind": "inline"}, "ocr": {"engine": "none"}, "faces": {"engine": "none"},
    })  # fmt: skip
    pipeline.run(recipe, display=Display(Console(file=io.StringIO())))
    return folder / "store"


def prepare(folder: Path, rows: int = 64) -> tuple[Path, Path]:
    """A mix and tiny models."""
    from curate.mix.export import export
    from curate.mix.settings import Settings
    from curate.train import run, tiny

    store = make_store(folder, rows)
    mix = folder / "mix"
    export(
        Settings(store=str(store), ratio=1.0, validation=0.1, ignore_policy=True, buckets=BUCKET),
        str(mix),
        kind="inline",
    )
    return mix, tiny.make_tiny(folder / "base", lambda: run.captions([str(mix)]), 0)


def recipe_of(folder: Path, mix: Path, base: Path, steps: int, **sections: Any) -> Any:
    """A recipe for `steps` steps."""
    from curate.train.recipe import from_tables

    tables: dict[str, Any] = {
        "output": {"uri": str(folder)}, "data": {"mix": str(mix), "cache": str(mix.parent / "cache")},
        "model": {"base": str(base)}, "train": {"batch": BATCH, "lr": 1e-4, "ema": 0.999},
        "checkpoint": {"every": 10**6, "export": False}, "log": {"every": 10},
        "measure": {"rows": 1, "every": 0, "grid_seeds": 0}, "phase": [{"steps": steps, "buckets": BUCKET}],
    }  # fmt: skip
    for name, section in sections.items():
        tables[name] = tables[name] | section if isinstance(section, dict) else section
    return from_tables(tables)


def ours(folder: Path, mix: Path, base: Path, steps: int) -> dict[str, float]:
    """Seconds of a step of our loop, its overhead and its wait for data, over its last log lines."""
    from curate.train import run
    from curate.train.log import read_metrics

    run.run(recipe_of(folder, mix, base, steps), Console(file=io.StringIO()))
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"][1:]
    rates = [BATCH / line["images_per_s"] for line in lines]
    return {
        "step_s": float(np.median(rates)),
        "overhead": float(np.median([line["overhead"] for line in lines])),
        "data_wait": float(np.median([line["data_wait"] for line in lines])),
    }


class Diffusers:
    """The loop of diffusers' examples/text_to_image/train_text_to_image_sdxl.py, cut down to what a step does.

    Accelerator, prepared DataLoader over cached latents and text embeddings, min-SNR loss, gathered loss, clipping,
    AdamW, learning-rate scheduler, EMAModel: the same calls in the same order, with --use_ema and --snr_gamma=5.
    """

    def __init__(self, base: Path, rows: list[dict[str, Any]]) -> None:
        import torch
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        from curate.train.models import load_unet

        self.accelerator = Accelerator(cpu=True)
        unet = load_unet(base).train()
        self.ema = EMAModel(unet.parameters(), decay=0.999)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2)
        loader = torch.utils.data.DataLoader(
            rows,
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            collate_fn=self.collate,  # type: ignore[arg-type]
        )
        scheduler = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=0, num_training_steps=10**6)
        self.unet, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            unet, optimizer, loader, scheduler
        )
        self.noises = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.batches = self.forever()

    @staticmethod
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def forever(self) -> Any:
        while True:
            yield from self.loader

    def step(self) -> None:
        import torch
        import torch.nn.functional as F
        from diffusers.training_utils import compute_snr

        batch = next(self.batches)
        with self.accelerator.accumulate(self.unet):
            latents = batch["latents"]
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device).long()
            noisy = self.noises.add_noise(latents, noise, timesteps)
            said = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}
            predicted = self.unet(noisy, timesteps, batch["hidden"], added_cond_kwargs=said, return_dict=False)[0]
            snr = compute_snr(self.noises, timesteps)
            weights = torch.stack([snr, 5 * torch.ones_like(timesteps)], dim=1).min(dim=1)[0] / snr
            loss = F.mse_loss(predicted.float(), noise.float(), reduction="none")
            loss = (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()
            self.accelerator.gather(loss.repeat(BATCH)).mean().item()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.unet.parameters())


def compare_steps(folder: Path, steps: int) -> dict[str, float]:
    """Our step and diffusers' turn and turn about, so that the ratio is not the machine's mood."""
    import torch

    from curate.train import loop
    from curate.train.data import PhaseData, Place

    torch.set_num_threads(1)
    mix, base = prepare(folder)
    wanted = recipe_of(folder / "warm", mix, base, 1)
    place = Place(0, 1, torch.device("cpu"))
    data = PhaseData(wanted, 0, str(mix), loop.load_tools(wanted, base, place), place)
    rows = [
        {"latents": part.mean[0], "hidden": part.hidden[0], "pooled": part.pooled[0], "time_ids": part.time_ids[0]}
        for step in range(data.rows.steps(0))
        for part in [data.batch(step).part(slot, slot + 1) for slot in range(BATCH)]
    ]
    theirs = Diffusers(base, rows)
    found: list[dict[str, float]] = []
    spent: list[float] = []
    for turn in range(3):
        theirs.step()
        clock = time.perf_counter()
        for _ in range(steps):
            theirs.step()
        spent.append((time.perf_counter() - clock) / steps)
        found.append(ours(folder / f"ours-{turn}", mix, base, steps + 10))
    best = {name: float(np.median([one[name] for one in found])) for name in found[0]}
    diffusers_s = float(np.median(spent))
    return {**best, "diffusers_step_s": diffusers_s, "speed_to_diffusers": diffusers_s / best["step_s"]}


def measure_restart(folder: Path, rows: int) -> dict[str, float]:
    """Seconds from `python` to the second step's batch on a resumed run whose mix has `rows` entries."""
    from curate.train import run

    mix, base = prepare(folder)
    big = enlarge(mix, folder / "big", rows)
    wanted = recipe_of(folder / "run", big, base, 2, checkpoint={"every": 1})
    run.run(wanted, Console(file=io.StringIO()))
    out = folder / "run"
    (out / "finished.json").unlink()
    sorted((out / "checkpoints").glob("step-*"))[-1].unlink()
    recipe_file = folder / "restart.toml"
    recipe_file.write_text((out / "recipe.toml").read_text("utf-8"), "utf-8")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = time.time()
    subprocess.run([sys.executable, "-m", "curate.train", str(recipe_file)], check=True, stderr=subprocess.DEVNULL)
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    first = next(json.loads(line) for line in reversed(lines) if '"kind": "train"' in line)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime  # of the whole child: an upper bound
    return {"restart_s": first["time"] - clock, "restart_cpu_s": cpu_s, "rows": rows}


def enlarge(mix: Path, out: Path, rows: int) -> Path:
    """The same mix with its index repeated until it has `rows` entries: restart reads the index, not the pictures."""
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(mix, out)
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    split = manifest["splits"]["train"]
    times = -(-rows // split["rows"])
    for shard in split["shards"]:
        path = out / "index" / f"{shard['name']}.parquet"
        if not path.exists():
            path = next((out / "index").rglob(f"{shard['name']}.parquet"))
        table = pq.read_table(path)
        repeated = pa.concat_tables([table] * times).combine_chunks()
        pq.write_table(repeated, path)
    split["cells"] = [[*cell[:3], cell[3] * times] for cell in split["cells"]]
    (out / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return out


def work(wanted: Any) -> None:
    """The body of a child that is killed."""
    from curate.train import run

    run.run(wanted, Console(file=io.StringIO()))


def kill_often(folder: Path, kills: int) -> dict[str, Any]:
    """One run killed `kills` times, against one that was not.

    Each piece is killed at a random moment after it has written 0 to 3 checkpoints more, so that no piece can end the
    run before its last kill.
    """
    import torch
    from safetensors.torch import load_file

    mix, base = prepare(folder)
    steps = 4 * kills + 4
    small: dict[str, Any] = {"train": {"batch": 4}, "phase": [{"steps": steps, "buckets": "32x32"}]}
    calm, shaken = (
        recipe_of(folder / name, mix, base, steps, checkpoint={"every": 1}, **small) for name in ("calm", "shaken")
    )
    work(calm)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["curate.train.run", "diffusers.models.unets.unet_2d_condition"])
    draw = np.random.default_rng(0)
    for kill in range(kills):
        child = context.Process(target=work, args=(shaken,))
        child.start()
        goal = newest(folder / "shaken") + int(draw.integers(0, 4))
        while child.is_alive() and newest(folder / "shaken") < goal:
            time.sleep(0.002)
        child.join(float(draw.uniform(0, 0.3)))
        if not child.is_alive():
            raise RuntimeError(f"the run ended by itself before kill {kill + 1}: exit code {child.exitcode}")
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
    left = steps - newest(folder / "shaken")
    work(shaken)
    last = [load_file(sorted((folder / name / "checkpoints").glob("step-*"))[-1]) for name in ("calm", "shaken")]
    equal = last[0].keys() == last[1].keys() and all(torch.equal(last[0][k], last[1][k]) for k in last[0])
    return {"kills": kills, "bit_equal": equal, "steps": steps, "steps_after_last_kill": left}


def newest(folder: Path) -> int:
    """The step of the newest checkpoint of a run, 0 without one."""
    found = sorted((folder / "checkpoints").glob("step-*.safetensors"))
    return int(found[-1].stem.removeprefix("step-")) if found else 0


def measure_gpu(
    folder: Path, shape: str, batch: int, steps: int, checkpointing: bool, warm: int = 10, rows: int = 64
) -> dict[str, Any]:
    """MFU of `curate train` on the first GPU: SDXL's UNet, random weights, bf16, latents of 1024 px pictures.

    The product's own loop, with its data, EMA, clipping and log; nothing of it is replaced. The tiny autoencoder has
    4 px to a latent and SDXL's has 8, so that 512 px here give the latents of 1024 px there. `shape` "tiny" on a CPU
    shows that the harness works.
    """
    import torch

    from curate.train import run
    from curate.train.log import read_metrics
    from curate.train.models import UNETS

    mix, base = prepare(folder, rows)
    bucket = "64x64" if shape == "tiny" else "512x512"
    if shape != "tiny":
        widen(base, UNETS[shape])
    cuda = torch.cuda.is_available()
    wanted = recipe_of(
        folder / "run", mix, base, steps + warm,
        train={"batch": batch}, log={"every": warm}, phase=[{"steps": steps + warm, "buckets": bucket}],
        model={
            "unet": shape, "precision": "bfloat16" if cuda else "float32", "compile": cuda,
            "gradient_checkpointing": checkpointing,
        },
    )  # fmt: skip
    run.run(wanted, Console(file=io.StringIO()))
    lines = [line for line in read_metrics(folder / "run" / "metrics.jsonl") if line["kind"] == "train"]
    rate = float(np.median([line["images_per_s"] for line in lines[1:]]))  # the first line has what compiles
    flops = flops_of(shape, int(bucket.split("x")[0]) // 4)
    return {
        "shape": shape, "batch": batch, "images_per_s": rate, "step_s": batch / rate,
        "tflop_per_image": flops / 1e12, "mfu": flops * rate / H200_FLOPS,
        "data_wait": float(np.median([line["data_wait"] for line in lines[1:]])),
        "overhead": float(np.median([line["overhead"] for line in lines[1:]])),
        "peak_memory_gb": lines[-1]["peak_memory_gb"], "gradient_checkpointing": checkpointing,
        "device": torch.cuda.get_device_name() if cuda else "CPU",
    }  # fmt: skip


def widen(base: Path, shape: dict[str, Any]) -> None:
    """Give the tiny models a random ChatGLM of one layer whose width the UNet asks for (Kolors: 4096)."""
    import shutil

    import torch

    from curate.train.text import chatglm

    width = shape["encoder_hid_dim"]
    config_kind, model_kind, tokenizer_kind = chatglm()
    tokenizer = tokenizer_kind.from_pretrained(base / "tokenizer", local_files_only=True)
    config = config_kind(
        num_layers=2, padded_vocab_size=tokenizer.vocab_size, hidden_size=width, ffn_hidden_size=256, kv_channels=64,
        num_attention_heads=width // 64, seq_length=256, multi_query_attention=True, multi_query_group_num=2,
        add_qkv_bias=True, original_rope=True, use_cache=False,
    )  # fmt: skip
    model = model_kind(config, empty_init=False)
    for name, parameter in model.named_parameters():  # the class leaves its norms as the memory was
        if "norm" in name:
            torch.nn.init.ones_(parameter)
    shutil.rmtree(base / "text_encoder")
    model.save_pretrained(base / "text_encoder")


def flops_of(shape: str, latent: int) -> int:
    """Floating-point operations of one picture, forward and backward, counted on no device; recomputing is none."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from curate.train.models import UNETS

    config = UNETS[shape]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        said = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
        tokens = 64 if shape == "tiny" else 256
        with FlopCounterMode(display=False) as counter:
            x = torch.zeros(1, 4, latent, latent)
            out = unet(x, torch.zeros(1), torch.zeros(1, tokens, width), added_cond_kwargs=said).sample
            out.sum().backward()
    return int(counter.get_total_flops())


def main() -> None:
    """Print a table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--steps", type=int, default=40, help="steps of each turn")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of --restart")
    parser.add_argument("--batch", type=int, default=8, help="batch of --gpu")
    parser.add_argument("--shape", default="kolors", choices=("kolors", "tiny"), help="UNet of --gpu")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    asked = parser.parse_args()
    everything = not (asked.step or asked.restart or asked.kills or asked.gpu)
    figures: dict[str, Any] = {"benchmark": "train", "targets": TARGETS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.step or everything:
            figures |= compare_steps(folder / "step", asked.steps)
        if asked.restart or everything:
            figures |= measure_restart(folder / "restart", asked.rows)
        if asked.kills or everything:
            figures |= kill_often(folder / "kills", asked.kills or 20)
        if asked.gpu:
            figures |= measure_gpu(folder / "gpu", asked.shape, asked.batch, asked.steps, asked.gradient_checkpointing)
    for key, value in figures.items():
        if key not in ("benchmark", "targets"):
            print(f"  {key:20s} {value:.4g}" if isinstance(value, float) else f"  {key:20s} {value}")
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
    print("RESULT " + json.dumps(rounded))


if __name__ == "__main__":
    main()
