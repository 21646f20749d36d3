"""Captions by any image-text-to-text model of transformers (LLaVA, Qwen-VL, ...), from a local folder.

No remote code: models that bring their own do not load. Batches are padded on the left, so that every row goes on from
its own last token.
"""

from __future__ import annotations

import copy
import hashlib
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import RowError
from workers.cogvlm.prompt import CaptionPrompt
from workers.embedder import WeightsError
from workers.picture import decode
from workers.quality import temperature as temperature_of
from workers.sample import Sample

if TYPE_CHECKING:
    from PIL import Image

VERSION = 2
THREADS = 4  # that decode the next batch while this one is generated


class TransformersCaptioner:
    """The `caption` operator by AutoModelForImageTextToText; `rows` pictures at once, out of memory halves them.

    Raises WeightsError when the folder does not load, lacks weights, or has no chat template.
    """

    def __init__(
        self,
        weights: Path,
        prompt: CaptionPrompt,
        *,
        name: str,
        revision: str,
        max_new_tokens: int = 256,
        rows: int = 8,
        max_side_px: int = 2048,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        dtype: str = "bfloat16",
        device: str = "auto",
    ) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.prompt, self.name, self.revision, self.rows, self.seed = prompt, name, revision, rows, seed
        self.max_side_px = max_side_px
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            self._options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                processors: Any = AutoProcessor
                classes: Any = AutoModelForImageTextToText  # its stub does not know output_loading_info
                self._processor = processors.from_pretrained(str(weights), local_files_only=True)
                model, report = classes.from_pretrained(
                    str(weights), local_files_only=True, use_safetensors=True, output_loading_info=True,
                    dtype=getattr(torch, dtype),
                )  # fmt: skip
        except Exception as why:  # transformers raises OSError, ValueError, KeyError and safetensors' errors
            text = (str(why).splitlines() or [""])[0]
            raise WeightsError(f"{weights}: transformers cannot load it: {type(why).__name__}: {text[:200]}") from None
        missing = sorted(map(str, [*(report.get("missing_keys") or []), *(report.get("mismatched_keys") or [])]))
        if missing:
            raise WeightsError(f"{weights}: weights missing or of another shape: {', '.join(missing[:8])}")
        if not getattr(self._processor, "chat_template", None):
            raise WeightsError(f"{weights}: no chat template, so it is not known how this model is asked")
        self._processor.tokenizer.padding_side = "left"
        if self._processor.tokenizer.pad_token is None:
            self._processor.tokenizer.pad_token = self._processor.tokenizer.eos_token
        self._model: Any = model
        self._model.to(self.device).eval()

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any] | RowError]:
        """One dict of the `caption` columns, or a failure, per sample."""
        found: dict[int, dict[str, Any] | RowError] = {}
        coming: dict[int, Future[Image.Image]] = {}
        good: list[int] = []
        at = 0
        with ThreadPoolExecutor(THREADS) as pool:
            while at < len(samples) or good:
                for ahead in range(at, min(at + 2 * self.rows, len(samples))):
                    if ahead not in coming:
                        coming[ahead] = pool.submit(_picture, samples[ahead], self.max_side_px)
                while at < len(samples) and len(good) < self.rows:
                    try:
                        coming[at].result()
                        good.append(at)
                    except RowError as failure:
                        found[at] = failure
                    at += 1
                batch, good = good[: self.rows], good[self.rows :]
                if not batch:
                    continue
                try:
                    captions = self._caption([samples[i] for i in batch], [coming[i].result() for i in batch])
                except RuntimeError as why:
                    if "memory" not in str(why) or self.rows == 1:
                        raise
                    self.rows //= 2
                    good = batch + good
                    continue
                found |= zip(batch, captions, strict=True)
                for i in batch:
                    del coming[i]
        return [found[i] for i in range(len(samples))]

    def again(self, attempt: int) -> TransformersCaptioner:
        """The same model with the sampling of the `attempt`-th further try."""
        other = copy.copy(self)
        other._options = self._options | {"do_sample": True, "temperature": temperature_of(attempt), "top_p": 0.9}
        other.seed = self.seed + attempt
        return other

    def _caption(self, samples: list[Sample], pictures: list[Image.Image]) -> list[dict[str, Any]]:
        import torch

        turns = []
        for sample in samples:
            text = self.prompt.ask(sample.values.get("caption_raw"))
            content = [{"type": "image"}, {"type": "text", "text": text}]
            turns.append(
                self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            )
        begun = time.monotonic()
        inputs = self._processor(images=pictures, text=turns, padding=True, return_tensors="pt").to(
            self.device, dtype=self._model.dtype
        )
        length = inputs["input_ids"].shape[1]
        if self._options["do_sample"]:
            # Keyed by content: with another batch the draws differ all the same, since torch draws for a batch.
            key = hashlib.sha256(turns[0].encode() + b"\0" + samples[0].bytes).digest()
            torch.manual_seed(self.seed ^ int.from_bytes(key[:4], "little"))
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens = self._model.generate(**inputs, **self._options)[:, length:]
        seconds = round(time.monotonic() - begun, 3)
        ends = self._model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        given = inputs["attention_mask"].sum(1).tolist()
        captions = []
        for row, count in zip(tokens.tolist(), given, strict=True):
            end = next((i for i, token in enumerate(row) if token in stops), None)
            written = row if end is None else row[:end]
            captions.append(
                {
                    "caption_en": self._processor.tokenizer.decode(written, skip_special_tokens=True).strip(),
                    "caption_engine": "transformers",
                    "caption_model": self.name,
                    "caption_revision": self.revision,
                    "caption_prompt": self.prompt.name,
                    "caption_tokens_in": count,
                    "caption_tokens_out": len(written),
                    "caption_finish": "length" if end is None else "stop",
                    "caption_seconds": seconds,
                    "caption_attempts": [],
                }
            )
        return captions


def _picture(sample: Sample, max_side_px: int) -> Image.Image:
    """The upright picture, at most so large."""
    from PIL import Image

    picture = Image.fromarray(decode(sample.bytes, sample.limits).rgb)
    if max(picture.size) > max_side_px:
        picture.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return picture
