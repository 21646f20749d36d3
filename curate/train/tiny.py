"""The tiny models: Kolors' parts in miniature, so that a CPU can train and compare.

    base = make_tiny(folder, captions, seed)               a folder in the layout of diffusers
    python -m curate.train.tiny curate/train/tiny_vae      how the autoencoder was made (an hour of one core)

UNet and text encoder are drawn at random, as a proxy: a frozen random transformer over word pieces learned from the
captions tells captions apart, and knows nothing else. The autoencoder (4 px to a latent) ships with the package; it was
trained on crops of the photographs that scikit-image carries and on drawn shapes.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.train.keyed import generator
from curate.train.models import make_unet
from curate.train.schedule import scheduler_config

if TYPE_CHECKING:
    import torch

VAE = Path(__file__).parent / "tiny_vae"
WIDTH = 64
TOKENS = 64
VAE_STEPS, VAE_BATCH, VAE_LR, VAE_PX = 6000, 8, 3e-3, 64


def make_tiny(folder: Path, captions: Callable[[], Iterable[str]], seed: int) -> Path:
    """Write the tiny models in the layout of a Kolors pipeline; the folder is whole or absent.

    `captions` is called when there is something to write: it reads thousands of rows.
    """
    if (folder / "model_index.json").exists():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _tokenizer(partial / "tokenizer", sorted(set(captions())))
    _text_encoder(partial, seed)
    make_unet("tiny", seed).save_pretrained(partial / "unet")
    shutil.copytree(VAE, partial / "vae")
    write_index(partial, "sdxl", "epsilon")
    partial.replace(folder)
    return folder


def write_index(folder: Path, schedule: str, prediction: str) -> None:
    """The scheduler and the model_index.json of a Kolors pipeline."""
    from diffusers import EulerDiscreteScheduler

    EulerDiscreteScheduler(**scheduler_config(schedule, prediction)).save_pretrained(folder / "scheduler")  # type: ignore[arg-type]
    index = {
        "_class_name": "KolorsPipeline",
        "force_zeros_for_empty_prompt": False,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["kolors", "ChatGLMModel"],
        "tokenizer": ["kolors", "ChatGLMTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _tokenizer(folder: Path, captions: list[str]) -> None:
    """ChatGLM's tokenizer over a SentencePiece model of the captions; bytes stand in for characters it never saw."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*captions, "a picture", "一张图片"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=2048,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "ChatGLMTokenizer", "padding_side": "left", "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _text_encoder(folder: Path, seed: int) -> None:
    import torch

    from curate.train.text import chatglm

    config_kind, model_kind, tokenizer_kind = chatglm()
    tokenizer = tokenizer_kind.from_pretrained(folder / "tokenizer", local_files_only=True)
    config = config_kind(
        num_layers=2,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=WIDTH,
        ffn_hidden_size=2 * WIDTH,
        kv_channels=16,
        num_attention_heads=4,
        seq_length=TOKENS,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        original_rope=True,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_kind(config, empty_init=False)
        for name, parameter in model.named_parameters():  # the class leaves its norms as the memory was
            if "norm" in name:
                torch.nn.init.ones_(parameter)
        model.save_pretrained(folder / "text_encoder")


def make_vae(folder: Path, steps: int = VAE_STEPS, seed: int = 0) -> None:
    """Train the shipped autoencoder: absolute error with a trace of KL."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=VAE_PX,
        mid_block_add_attention=False,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), VAE_LR)
    sources = _photographs()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = VAE_LR * min(1, step / 50) * (1 - step / steps)
        x = _crops(sources, seed, step)
        posterior = vae.encode(x).latent_dist
        draw = generator(seed, "posterior", step)
        noise = torch.from_numpy(draw.standard_normal(tuple(posterior.mean.shape), dtype=np.float32))
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = (decoded - x).abs().mean() + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            sys.stderr.write(f"step {step}: {loss.item():.4f}\n")
    with torch.inference_mode():
        means = [vae.encode(_crops(sources, seed, steps + i)).latent_dist.mean for i in range(16)]
    vae.register_to_config(scaling_factor=round(1 / float(torch.cat(means).std()), 5))
    vae.save_pretrained(folder)


def _photographs() -> list[Any]:
    from curate.demo_data import PHOTOGRAPHS, photograph

    return [photograph(name).convert("RGB") for name in PHOTOGRAPHS]


def _crops(sources: list[Any], seed: int, step: int) -> torch.Tensor:
    """Random squares of the pictures at random scales, mirrored, recoloured or drawn over: [n, 3, px, px] in -1..1."""
    import torch
    from PIL import Image, ImageDraw

    out = []
    for slot in range(VAE_BATCH):
        draw = generator(seed, "crop", step, slot)
        image = sources[int(draw.integers(len(sources)))]
        side = int(np.exp(draw.uniform(np.log(48), np.log(min(image.size)))))
        left, top = int(draw.integers(image.width - side + 1)), int(draw.integers(image.height - side + 1))
        small = image.resize((VAE_PX, VAE_PX), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        if draw.random() < 0.2:
            pen = ImageDraw.Draw(small)
            for _ in range(int(draw.integers(1, 8))):
                x, y, w, h = (int(v) for v in draw.integers(2, VAE_PX, 4))
                color = tuple(int(v) for v in draw.integers(0, 256, 3))
                (pen.rectangle if draw.random() < 0.5 else pen.ellipse)((x - w, y - h, x, y), fill=color)
        pixels = np.asarray(small)
        if draw.random() < 0.5:
            pixels = pixels[:, ::-1]
        if draw.random() < 0.3:
            pixels = pixels[:, :, draw.permutation(3)]
        out.append(torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 127.5 - 1)
    return torch.stack(out)


if __name__ == "__main__":
    make_vae(Path(sys.argv[1]))
