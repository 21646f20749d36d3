"""Text encoders behind one shape: captions in, hidden states and a pooled vector out; and their cache on disk.

    encoder = load_text(base, device)
    tokens, pooled = padded(encoder(["a red bus", "一辆红色的公共汽车"]), encoder.length)

What a UNet is conditioned on is [n, length, width] and [n, pooled]. An `Encoded` keeps the caption's own tokens and
one vector for all padding. That is exact for ChatGLM: diffusers' mask lets every padding position attend to all
positions, at position 0, so that they all end as the same vector. 80 tokens take 0.66 MB instead of 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from curate.errors import CurateError, UsageError
from curate.train.checkpoint import load_cached, save_tensors
from curate.train.keyed import digest
from curate.train.models import identity, readable, weights

if TYPE_CHECKING:
    import torch

KOLORS_TOKENS = 256
CLIP_TOKENS = 77
T5_TOKENS = 256


@dataclass(frozen=True)
class Encoded:
    """One caption: `tokens` [n, width], the vector `pad` [width] of every padding position, `pooled` [pooled width]."""

    tokens: torch.Tensor
    pad: torch.Tensor
    pooled: torch.Tensor


class TextEncoder(Protocol):
    """Captions to `Encoded`, in float32 on the CPU; `name` identifies the weights and how they are read."""

    name: str
    length: int
    """Tokens that the UNet is given, padding included."""
    pad_left: bool
    zero_empty: bool
    """Whether zeros stand for the empty caption, as in SDXL's own sampling, and not its encoding."""

    def __call__(self, captions: Sequence[str]) -> list[Encoded]: ...


def chatglm() -> tuple[Any, Any, Any]:
    """Configuration, model and tokenizer classes of diffusers' Kolors."""
    import warnings

    with warnings.catch_warnings():  # the file calls torch.jit.script, which newer torch deprecates
        warnings.simplefilter("ignore")
        from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
        from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
    return ChatGLMConfig, ChatGLMModel, ChatGLMTokenizer


class ChatGLM:
    """ChatGLM3 as Kolors reads it: 256 tokens, padded on the left, output of the layer before the last.

    The pooled vector is the last layer's output at the last token, before the final norm (hidden_states[-1][-1] of
    diffusers' KolorsPipeline.encode_prompt).
    """

    length = KOLORS_TOKENS
    pad_left = True
    zero_empty = False

    def __init__(self, base: Path, device: torch.device, dtype: torch.dtype) -> None:
        _, model_kind, tokenizer_kind = chatglm()
        self.tokenizer = tokenizer_kind.from_pretrained(base / "tokenizer", local_files_only=True)
        folder = base / "text_encoder"
        with readable(folder):
            model = model_kind.from_pretrained(folder, dtype=dtype, **weights(folder))
        self.model = model.requires_grad_(False).eval().to(device)
        self.device = device
        self.length = min(KOLORS_TOKENS, int(model.config.seq_length))
        self.name = f"chatglm-{self.length}-{identity(base / 'text_encoder')}-{identity(base / 'tokenizer')}"

    def __call__(self, captions: Sequence[str]) -> list[Encoded]:
        import torch

        inputs = self.tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            hidden = self.model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                position_ids=inputs["position_ids"],
                output_hidden_states=True,
            ).hidden_states
        tokens = hidden[-2].permute(1, 0, 2).float().cpu()
        pooled = hidden[-1][-1].float().cpu()
        used = inputs["attention_mask"].sum(1).tolist()
        return [
            Encoded(t[self.length - n :].clone(), t[0].clone(), p.clone())
            for t, n, p in zip(tokens, used, pooled, strict=True)
        ]


class Clip:
    """SDXL's pair of CLIP encoders: layers before the last, side by side; pooled projection of the second.

    Padding is kept, since CLIP's positions differ; 77 tokens are small.
    """

    length = CLIP_TOKENS
    pad_left = False
    zero_empty = False

    def __init__(self, base: Path, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        kinds = (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection))
        self.models = []
        for n, kind in kinds:
            folder = base / f"text_encoder{n}"
            with readable(folder):
                self.models.append(kind.from_pretrained(folder, dtype=dtype, **weights(folder)).eval().to(device))
        self.tokenizers = [
            CLIPTokenizer.from_pretrained(base / f"tokenizer{n}", local_files_only=True) for n, _ in kinds
        ]
        self.device = device
        folders = [base / f"{kind}{n}" for n, _ in kinds for kind in ("text_encoder", "tokenizer")]
        self.length = min(int(model.config.max_position_embeddings) for model in self.models)
        self.name = "clip-" + "-".join(identity(folder) for folder in folders)

    def __call__(self, captions: Sequence[str]) -> list[Encoded]:
        import torch

        hidden = []
        with torch.inference_mode():
            for tokenizer, model in zip(self.tokenizers, self.models, strict=True):
                inputs = tokenizer(
                    list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
                )
                output = model(inputs.input_ids.to(self.device), output_hidden_states=True)
                hidden.append(output.hidden_states[-2].float().cpu())
        tokens, pooled = torch.cat(hidden, -1), output.text_embeds.float().cpu()
        return [Encoded(t.clone(), t[-1].clone(), p.clone()) for t, p in zip(tokens, pooled, strict=True)]


class T5:
    """A T5 encoder: last hidden states, zeros for padding, mean of the tokens as the pooled vector."""

    length = T5_TOKENS
    pad_left = False
    zero_empty = False

    def __init__(self, base: Path, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoTokenizer, T5EncoderModel

        self.tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
        folder = base / "text_encoder"
        with readable(folder):
            model = T5EncoderModel.from_pretrained(folder, dtype=dtype, **weights(folder))
        self.model = model.eval().to(device)
        self.device = device
        self.name = f"t5-{self.length}-{identity(base / 'text_encoder')}-{identity(base / 'tokenizer')}"

    def __call__(self, captions: Sequence[str]) -> list[Encoded]:
        import torch

        inputs = self.tokenizer(
            list(captions), padding=True, max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            hidden = self.model(**inputs).last_hidden_state.float().cpu()
        used = inputs["attention_mask"].sum(1).tolist()
        return [
            Encoded(t[:n].clone(), torch.zeros(t.shape[1]), t[:n].mean(0)) for t, n in zip(hidden, used, strict=True)
        ]


def load_text(base: Path, device: torch.device, dtype: torch.dtype | None = None) -> TextEncoder:
    """The text encoder of a diffusers folder: ChatGLM (Kolors), a pair of CLIP (SDXL) or T5, by its config.json."""
    import json

    import torch

    config = base / "text_encoder" / "config.json"
    if not config.is_file():
        raise UsageError(f"model.base = {str(base)!r}: no text_encoder/config.json there")
    kind = json.loads(config.read_text("utf-8")).get("model_type", "")
    kinds: dict[str, Callable[[Path, torch.device, torch.dtype], TextEncoder]] = {
        "chatglm": ChatGLM,
        "clip_text_model": Clip,
        "t5": T5,
    }
    if kind not in kinds:
        raise UsageError(f"{config}: model_type {kind!r} is not known; use one of {', '.join(kinds)}")
    encoder = kinds[kind](base, device, dtype or torch.float32)
    index = json.loads((base / "model_index.json").read_text("utf-8")) if (base / "model_index.json").is_file() else {}
    # What the base's pipeline takes for the unconditional side of its guidance; where it does not say, its class does.
    encoder.zero_empty = bool(index.get("force_zeros_for_empty_prompt", kind == "clip_text_model"))
    encoder.name += "-zeros" * encoder.zero_empty
    return encoder


def padded(encoded: Sequence[Encoded], length: int, pad_left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [n, length, width] and pooled vectors [n, pooled width] of a batch."""
    import torch

    rows = []
    for one in encoded:
        pad = one.pad.expand(length - one.tokens.shape[0], -1)
        rows.append(torch.cat([pad, one.tokens] if pad_left else [one.tokens, pad]))
    return torch.stack(rows), torch.stack([one.pooled for one in encoded])


class TextCache:
    """Encoded captions as float16 safetensors, one file a caption, named by encoder and text."""

    def __init__(self, folder: Path, encoder: TextEncoder) -> None:
        self.folder = folder / "text" / digest(encoder.name).hex()
        self.encoder = encoder

    def path(self, caption: str) -> Path:
        """Where a caption's encoding lies."""
        key = digest(caption).hex()
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, caption: str) -> Encoded | None:
        """The encoding of a caption, or None when it is not there."""
        found = load_cached(self.path(caption))
        return Encoded(found["tokens"], found["pad"], found["pooled"]) if found else None

    def put(self, caption: str, encoded: Encoded) -> None:
        """Keep the encoding of a caption."""
        tensors = {"tokens": encoded.tokens.half(), "pad": encoded.pad.half(), "pooled": encoded.pooled.half()}
        save_tensors(self.path(caption), tensors, {"caption": caption}, durable=False)


def encode(encoder: TextEncoder, caption: str) -> Encoded:
    """One caption, rounded to float16 as the cache rounds it; raises CurateError when that is not finite.

    One at a time, as pictures are (latents.py): a batch's other captions would change the last bits.
    """
    found = encoder([caption])[0]
    if not caption and encoder.zero_empty:
        found = Encoded(*(t.new_zeros(t.shape) for t in (found.tokens, found.pad, found.pooled)))
    rounded = Encoded(*(t.half() for t in (found.tokens, found.pad, found.pooled)))
    if not all(bool(t.isfinite().all()) for t in (rounded.tokens, rounded.pad, rounded.pooled)):
        raise CurateError(f"caption {caption[:60]!r}: the text encoder's output is not finite in float16")
    return Encoded(rounded.tokens.float(), rounded.pad.float(), rounded.pooled.float())
