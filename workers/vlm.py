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
from pathlib import Path
from typing import Any

from schemas.errors import RowError
from workers.cogvlm.prompt import CaptionPrompt
from workers.embedder import WeightsError
from workers.picture import decode
from workers.quality import temperature as temperature_of
from workers.sample import Sample

VERSION = 1
KEPT = 4096


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
        self._kept: dict[bytes, dict[str, Any]] = {}

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """One dict of the `caption` columns per sample; captions made before a neighbour failed are kept."""
        texts = [self.prompt.ask(sample.values.get("caption_raw")) for sample in samples]
        keys = [hashlib.sha256(t.encode() + b"\0" + s.bytes).digest() for t, s in zip(texts, samples, strict=True)]
        todo = [(k, s, t) for k, s, t in zip(keys, samples, texts, strict=True) if k not in self._kept]
        failures: dict[bytes, RowError] = {}
        at = 0
        while at < len(todo):
            batch = todo[at : at + self.rows]
            try:
                self._caption(batch, failures)
            except RuntimeError as why:
                if "memory" not in str(why) or self.rows == 1:
                    raise
                self.rows //= 2
                continue
            at += len(batch)
        while len(self._kept) > max(KEPT, len(samples)):
            del self._kept[next(iter(self._kept))]
        for key in keys:
            if key in failures:
                raise failures[key]
        return [self._kept[key] for key in keys]

    def again(self, attempt: int) -> TransformersCaptioner:
        """The same model with the sampling of the `attempt`-th further try."""
        other = copy.copy(self)
        other._options = self._options | {"do_sample": True, "temperature": temperature_of(attempt), "top_p": 0.9}
        other.seed = self.seed + attempt
        other._kept = {}
        return other

    def _caption(self, batch: list[tuple[bytes, Sample, str]], failures: dict[bytes, RowError]) -> None:
        import torch
        from PIL import Image

        turns, pictures, good = [], [], []
        for key, sample, text in batch:
            try:
                pictures.append(Image.fromarray(decode(sample.bytes, sample.limits).rgb))
            except RowError as failure:
                failures[key] = failure
                continue
            content = [{"type": "image"}, {"type": "text", "text": text}]
            turns.append(
                self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            )
            good.append(key)
        if not good:
            return
        begun = time.monotonic()
        inputs = self._processor(images=pictures, text=turns, padding=True, return_tensors="pt").to(
            self.device, dtype=self._model.dtype
        )
        length = inputs["input_ids"].shape[1]
        if self._options["do_sample"]:
            # Keyed by content: with another batch the draws differ all the same, since torch draws for a batch.
            torch.manual_seed(self.seed ^ int.from_bytes(good[0][:4], "little"))
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens = self._model.generate(**inputs, **self._options)[:, length:]
        seconds = round(time.monotonic() - begun, 3)
        ends = self._model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        given = inputs["attention_mask"].sum(1).tolist()
        for key, row, count in zip(good, tokens.tolist(), given, strict=True):
            end = next((i for i, token in enumerate(row) if token in stops), None)
            written = row if end is None else row[:end]
            self._kept[key] = {
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
