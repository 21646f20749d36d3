"""Captions from English to Simplified Chinese by a model: Marian, NLLB, a causal language model, or an endpoint.

A sentence translator gets sentences, all of a batch together, sorted by length; a language model gets whole captions.
Quoted text is put back as it stood, names of the glossary are tried twice, and what is lost all the same is named in
`translate_lost`. At load a golden sentence is translated: a checkpoint whose tied weights were not tied (transformers
5.3, issue 45005) loads without a word and writes rubbish.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from workers.embedder import WeightsError
from workers.sample import Sample
from workers.sentences import sentences
from workers.spans import HAN, lost, put_in, quotes, terms_in, with_quotes

VERSION = 1

Language = Literal["en", "zh"]
GOLDEN = ("The red gate of the temple is open.", ("红", "门"))
NLLB = {"en": "eng_Latn", "zh": "zho_Hans"}
NAMES = {"en": "英语", "zh": "中文"}


@dataclass(frozen=True)
class Piece:
    """A text to translate, and the glossary's entries that stand in it."""

    text: str
    terms: dict[str, str] = field(default_factory=dict)


class Model(Protocol):
    """Translates pieces; `sentencewise` says that it wants one sentence at a time, `ways` what it can do."""

    sentencewise: bool
    ways: frozenset[tuple[Language, Language]]

    def translate(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[str]: ...


class Seq2Seq:
    """Marian (opus-mt-en-zh) or NLLB by transformers, from a local folder; beam search, deterministic.

    `engine` is `marian` or `nllb`. Raises WeightsError when the folder is incomplete or weights are missing in it.
    """

    sentencewise = True

    def __init__(
        self,
        weights: Path,
        engine: str,
        *,
        dtype: str = "float32",
        rows: int = 64,
        beams: int = 4,
        device: str = "auto",
    ) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.engine, self.rows, self.beams = engine, rows, beams
        self.ways: frozenset[tuple[Language, Language]] = frozenset({("en", "zh")})
        if engine == "nllb":
            self.ways |= {("zh", "en")}
        loaded = _load(weights, AutoModelForSeq2SeqLM, AutoTokenizer, getattr(torch, dtype))
        self._tokenizer, self._model = loaded[0], loaded[1].to(self.device).eval()
        if engine == "marian" and ">>cmn_Hans<<" not in self._tokenizer.get_vocab():
            raise WeightsError(f"{weights}: its vocabulary has no >>cmn_Hans<<; engine marian wants opus-mt-en-zh")
        if engine == "nllb" and NLLB["zh"] not in self._tokenizer.get_vocab():
            raise WeightsError(f"{weights}: its vocabulary has no {NLLB['zh']}; this is no NLLB")

    def translate(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[str]:
        """One translation a piece, in order."""
        texts = [piece.text for piece in pieces]
        options: dict[str, Any] = {"num_beams": self.beams, "no_repeat_ngram_size": 4, "early_stopping": True}
        if self.engine == "marian":
            texts = [f">>cmn_Hans<< {text}" for text in texts]
        else:
            self._tokenizer.src_lang = NLLB[source]
            options["forced_bos_token_id"] = self._tokenizer.convert_tokens_to_ids(NLLB[target])
        return generated(self._model, self._tokenizer, texts, self.rows, skip_prompt=False, **options)


class CausalLM:
    """A translating language model with a chat template (HY-MT, Qwen), from a local folder; the likeliest token.

    Names of the glossary go in front of the text by HY-MT's terminology template.
    """

    sentencewise = False
    ways: frozenset[tuple[Language, Language]] = frozenset({("en", "zh"), ("zh", "en")})

    def __init__(self, weights: Path, *, dtype: str = "bfloat16", rows: int = 16, device: str = "auto") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.rows = rows
        loaded = _load(weights, AutoModelForCausalLM, AutoTokenizer, getattr(torch, dtype))
        self._tokenizer, self._model = loaded[0], loaded[1].to(self.device).eval()
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def translate(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[str]:
        """One translation a piece, in order."""
        prompts = []
        for piece in pieces:
            prompt = instruction(piece, target)
            if self._tokenizer.chat_template:
                turn = [{"role": "user", "content": prompt}]
                prompt = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            prompts.append(prompt)
        chat = bool(self._tokenizer.chat_template)
        return generated(
            self._model, self._tokenizer, prompts, self.rows, skip_prompt=True, special=not chat,
            do_sample=False, repetition_penalty=1.05,
        )  # fmt: skip


def instruction(piece: Piece, target: Language) -> str:
    """HY-MT's prompt for Chinese and English, with its terminology template for names of the glossary in the text."""
    known = "".join(
        f"{english} 翻译成 {chinese}\n" if target == "zh" else f"{chinese} 翻译成 {english}\n"
        for english, chinese in piece.terms.items()
    )
    reference = f"参考下面的翻译：\n{known}\n" if known else ""
    return f"{reference}将以下文本翻译为{NAMES[target]}，注意只需要输出翻译后的结果，不要额外解释：\n\n{piece.text}"


class Translator:
    """The `translate` operator. `terms` is the glossary; `raw` translates raw captions too, where the model can.

    Raises WeightsError at construction when the golden sentence comes out wrong.
    """

    def __init__(
        self,
        model: Model,
        *,
        engine: str,
        name: str,
        revision: str,
        terms: dict[str, str] | None = None,
        raw: bool = False,
    ) -> None:
        import opencc

        self.model = model
        self.engine = engine
        self.name = name
        self.revision = revision
        self.terms = terms or {}
        self.raw = raw
        self._simplified = opencc.OpenCC("t2s")
        text, wanted = GOLDEN
        found = self.translate([text], "en", "zh")[0][0]
        if not all(word in found for word in wanted):
            raise WeightsError(
                f"{name}: {text!r} became {found[:80]!r}, which lacks {' and '.join(wanted)}: the weights are damaged, "
                "another model's, or loaded wrongly by this version of transformers"
            )

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        captions = [str(sample.values.get("caption_en") or "").strip() for sample in samples]
        chinese = self._some(captions, "en", "zh")
        raw = [str(sample.values.get("caption_raw") or "").strip() if self.raw else "" for sample in samples]
        is_chinese = [is_mostly_han(text) for text in raw]
        raw_zh = self._some([t if not han else "" for t, han in zip(raw, is_chinese, strict=True)], "en", "zh")
        raw_en = self._some([t if han else "" for t, han in zip(raw, is_chinese, strict=True)], "zh", "en")
        return [
            {
                "caption_zh": zh[0] if zh else None,
                "caption_raw_zh": other[0] if other else None,
                "caption_raw_en": english[0] if english else None,
                "translate_lost": zh[1] if zh else [],
                "translate_engine": self.engine,
                "translate_model": self.name,
                "translate_revision": self.revision,
            }
            for zh, other, english in zip(chinese, raw_zh, raw_en, strict=True)
        ]

    def _some(self, texts: Sequence[str], source: Language, target: Language) -> list[tuple[str, list[str]] | None]:
        """Translations of the texts that are not empty, where the model can; None for the others."""
        there = [text for text in dict.fromkeys(texts) if text] if (source, target) in self.model.ways else []
        found = dict(zip(there, self.translate(there, source, target), strict=True))
        return [found.get(text) for text in texts]

    def translate(self, texts: Sequence[str], source: Language, target: Language) -> list[tuple[str, list[str]]]:
        """(translation, lost spans) of each text, none of which is blank."""
        parts = [sentences(text) if self.model.sentencewise else [text] for text in texts]
        unique = list(dict.fromkeys(part for some in parts for part in some))
        terms = self.terms if (source, target) == ("en", "zh") else {}
        done = dict(zip(unique, self._tried(unique, terms, source, target), strict=True))
        return [
            (
                _joined([done[part] for part in some], target),
                lost(text, _joined([done[p] for p in some], target), terms),
            )
            for text, some in zip(texts, parts, strict=True)
        ]

    def _tried(self, texts: list[str], terms: dict[str, str], source: Language, target: Language) -> list[str]:
        pieces = [Piece(text, terms_in(text, terms)) for text in texts]
        found = [
            self._finished(p.text, t, target) for p, t in zip(pieces, self._run(pieces, source, target), strict=True)
        ]
        again = [i for i, piece in enumerate(pieces) if piece.terms and lost(piece.text, found[i], piece.terms)]
        other = [Piece(put_in(pieces[i].text, pieces[i].terms), pieces[i].terms) for i in again]
        for i, text in zip(again, self._run(other, source, target), strict=True):
            second = self._finished(pieces[i].text, text, target)
            if len(lost(texts[i], second, pieces[i].terms)) < len(lost(texts[i], found[i], pieces[i].terms)):
                found[i] = second
        return found

    def _run(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[str]:
        return self.model.translate(pieces, source, target) if pieces else []

    def _finished(self, source: str, text: str, target: Language) -> str:
        text = text.strip()
        if target == "zh":
            text = str(self._simplified.convert(text))
        return with_quotes(text, quotes(source))


def generated(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    rows: int,
    *,
    skip_prompt: bool,
    special: bool = True,
    **options: Any,
) -> list[str]:
    """What the model writes for each text. Batches hold texts of like length, so that little is padding.

    At most three times the source's tokens and 20 are written, unless `options` say otherwise.
    """
    import torch

    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    found: dict[int, str] = {}
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        inputs = tokenizer(
            [texts[i] for i in places], return_tensors="pt", padding=True, truncation=True, add_special_tokens=special,
            max_length=min(int(getattr(tokenizer, "model_max_length", 512)), 4096),
        ).to(model.device)  # fmt: skip
        inputs.pop("token_type_ids", None)
        length = inputs["input_ids"].shape[1]
        # Three times the source and some: a loop ends there and not at the model's limit.
        limit = {"max_new_tokens": min(480, 3 * length + 20)} | options
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens = model.generate(**inputs, **limit)
        texts_out = tokenizer.batch_decode(tokens[:, length:] if skip_prompt else tokens, skip_special_tokens=True)
        found |= dict(zip(places, texts_out, strict=True))
    return [found[i] for i in range(len(texts))]


def is_mostly_han(text: str) -> bool:
    """Whether at least a third of the letters are Chinese: captions in Chinese carry Latin names."""
    letters = sum(character.isalpha() for character in text)
    return letters > 0 and 3 * sum(map(len, HAN.findall(text))) >= letters


def _joined(parts: Sequence[str], target: Language) -> str:
    return ("" if target == "zh" else " ").join(part for part in parts if part)


def _load(weights: Path, model_class: Any, tokenizer_class: Any, dtype: Any) -> tuple[Any, Any]:
    """Tokenizer and model of a local folder, every weight accounted for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = tokenizer_class.from_pretrained(str(weights), local_files_only=True)
            model, report = model_class.from_pretrained(
                str(weights), local_files_only=True, output_loading_info=True, dtype=dtype
            )
    except Exception as why:  # transformers raises OSError, ValueError, KeyError, safetensors' and pickle's errors
        text = (str(why).splitlines() or [""])[0]
        raise WeightsError(f"{weights}: transformers cannot load it: {type(why).__name__}: {text[:200]}") from None
    odd = {kind: sorted(map(str, report.get(kind) or [])) for kind in ("missing_keys", "mismatched_keys")}
    if any(odd.values()):
        names = ", ".join((odd["missing_keys"] + odd["mismatched_keys"])[:8])
        raise WeightsError(f"{weights}: weights missing or of another shape: {names}")
    return tokenizer, model
