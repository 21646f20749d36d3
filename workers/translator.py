"""Captions from English to Simplified Chinese by a model: Marian, NLLB, a causal language model, or an endpoint.

A sentence translator gets sentences, all of a batch together, sorted by length; a language model gets whole captions.
Quoted text is put back as it stood, but only where it is certain which quotation is which: Chinese turns clauses round.
Where it is not, or where names of the glossary are gone, the sentence is tried once more, with marks for the quotations
and with Chinese names; what is lost all the same is named in `translate_lost`. At load a golden sentence is translated:
a checkpoint whose tied weights were not tied (transformers 5.3, issue 45005) loads without a word and writes rubbish.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from schemas.errors import RowError
from workers.embedder import WeightsError
from workers.sample import Sample
from workers.sentences import sentences
from workers.spans import (
    is_mostly_han,
    lost,
    lost_numbers,
    lost_quotes,
    marked,
    put_in,
    quotes,
    terms_in,
    unmarked,
    with_quotes,
    without_quotes,
)

VERSION = 2

Language = Literal["en", "zh"]
GOLDEN = ("The red gate of the temple is open.", ("红", "门"))
NLLB = {"en": "eng_Latn", "zh": "zho_Hans"}
NAMES = {"en": "英语", "zh": "中文"}


@dataclass(frozen=True)
class Piece:
    """A text to translate, and the glossary's entries that stand in it."""

    text: str
    terms: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What a model wrote; `cut`: it had not ended at the token limit, or did not see all of its source."""

    text: str
    cut: bool = False


@dataclass(frozen=True)
class Translation:
    """A whole text in the other language, the protected spans that it lacks, and whether it was cut."""

    text: str
    lost: list[str]
    cut: bool


class Model(Protocol):
    """Translates pieces; `sentencewise` says that it wants one sentence at a time, `ways` what it can do.

    Its `str` names it in messages: a folder, an address.
    """

    sentencewise: bool
    ways: frozenset[tuple[Language, Language]]

    def translate(
        self, pieces: Sequence[Piece], source: Language, target: Language
    ) -> Sequence[Written | RowError]: ...


Outcome = Translation | RowError | None


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
        self.engine, self.rows, self.beams, self._folder = engine, rows, beams, weights
        self.ways: frozenset[tuple[Language, Language]] = frozenset({("en", "zh")})
        if engine == "nllb":
            self.ways |= {("zh", "en")}
        loaded = _load(weights, AutoModelForSeq2SeqLM, AutoTokenizer, getattr(torch, dtype))
        self._tokenizer, self._model = loaded[0], loaded[1].to(self.device).eval()
        if engine == "marian" and ">>cmn_Hans<<" not in self._tokenizer.get_vocab():
            raise WeightsError(f"{weights}: its vocabulary has no >>cmn_Hans<<; engine marian wants opus-mt-en-zh")
        if engine == "nllb" and NLLB["zh"] not in self._tokenizer.get_vocab():
            raise WeightsError(f"{weights}: its vocabulary has no {NLLB['zh']}; this is no NLLB")

    def __str__(self) -> str:
        return str(self._folder)

    def translate(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[Written]:
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
        self.rows, self._folder = rows, weights
        loaded = _load(weights, AutoModelForCausalLM, AutoTokenizer, getattr(torch, dtype))
        self._tokenizer, self._model = loaded[0], loaded[1].to(self.device).eval()
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def __str__(self) -> str:
        return str(self._folder)

    def translate(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[Written]:
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
            self._model, self._tokenizer, prompts, self.rows, skip_prompt=True, special=not chat, most=1024,
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
        found = self.translate([text], "en", "zh")[0]
        if isinstance(found, RowError):
            raise WeightsError(f"{model} did not translate its first sentence: {found.message}")
        if not all(word in found.text for word in wanted):
            raise WeightsError(
                f"{model}: {text!r} became {found.text[:80]!r}, which lacks {' and '.join(wanted)}: the weights are "
                "damaged, another model's, or loaded wrongly by this version of transformers"
            )

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any] | RowError]:
        """One dict of the `translate` columns, or a failure with the columns that there are, per sample."""
        captions = [str(sample.values.get("caption_en") or "").strip() for sample in samples]
        chinese = self._some(captions, "en", "zh")
        raw = [str(sample.values.get("caption_raw") or "").strip() if self.raw else "" for sample in samples]
        is_chinese = [is_mostly_han(text) for text in raw]
        raw_zh = self._some([t if not han else "" for t, han in zip(raw, is_chinese, strict=True)], "en", "zh")
        raw_en = self._some([t if han else "" for t, han in zip(raw, is_chinese, strict=True)], "zh", "en")
        return [self._columns(zh, other, english) for zh, other, english in zip(chinese, raw_zh, raw_en, strict=True)]

    def _columns(self, zh: Outcome, raw_zh: Outcome, raw_en: Outcome) -> dict[str, Any] | RowError:
        good = [found if isinstance(found, Translation) else None for found in (zh, raw_zh, raw_en)]
        raw = good[1] or good[2]
        columns = {
            "caption_zh": good[0].text if good[0] else None,
            "caption_raw_zh": good[1].text if good[1] else None,
            "caption_raw_en": good[2].text if good[2] else None,
            "translate_lost": good[0].lost if good[0] else [],
            "translate_cut": good[0].cut if good[0] else None,
            "translate_raw_lost": raw.lost if raw else [],
            "translate_raw_cut": raw.cut if raw else None,
            "translate_engine": self.engine,
            "translate_model": self.name,
            "translate_revision": self.revision,
        }
        failure = next((found for found in (zh, raw_zh, raw_en) if isinstance(found, RowError)), None)
        return RowError(failure.code, failure.message, columns) if failure else columns

    def _some(self, texts: Sequence[str], source: Language, target: Language) -> list[Outcome]:
        """Translations of the texts that are not empty, where the model can; None for the others."""
        there = [text for text in dict.fromkeys(texts) if text] if (source, target) in self.model.ways else []
        found = dict(zip(there, self.translate(there, source, target), strict=True))
        return [found.get(text) for text in texts]

    def translate(self, texts: Sequence[str], source: Language, target: Language) -> list[Translation | RowError]:
        """Each text, none of which is blank, in the other language."""
        parts = [sentences(text) if self.model.sentencewise else [text] for text in texts]
        unique = list(dict.fromkeys(part for some in parts for part in some))
        terms = self.terms if (source, target) == ("en", "zh") else {}
        done = dict(zip(unique, self._tried(unique, terms, source, target), strict=True))
        found: list[Translation | RowError] = []
        for text, some in zip(texts, parts, strict=True):
            written = [done[part] for part in some]
            if failure := next((w for w in written if isinstance(w, RowError)), None):
                found.append(failure)
                continue
            good = [w for w in written if isinstance(w, Written)]
            whole = ("" if target == "zh" else " ").join(w.text for w in good if w.text)
            cut = any(w.cut for w in good)
            # Chinese in an English text must survive; a Chinese text has quotations and numbers to lose.
            gone = (
                lost(text, whole, terms, self._simplified.convert) if target == "zh"
                else [*lost_quotes(text, whole), *lost_numbers(without_quotes(text), whole)]
            )  # fmt: skip
            found.append(Translation(whole, gone, cut))
        return found

    def _tried(
        self, texts: list[str], terms: dict[str, str], source: Language, target: Language
    ) -> list[Written | RowError]:
        """The texts translated, those twice that lost a quotation or a name: the better of both."""
        pieces = [Piece(text, terms_in(text, terms)) for text in texts]
        found = [
            w if isinstance(w, RowError) else self._finished(p.text, w, target)
            for p, w in zip(pieces, self._run(pieces, source, target), strict=True)
        ]
        again = [
            i for i, written in enumerate(found) if isinstance(written, Written) and self._lost(pieces[i], written)
        ]
        seconds = self._run([self._second(pieces[i]) for i in again], source, target)
        for i, written in zip(again, seconds, strict=True):
            first = found[i]
            if isinstance(written, RowError) or isinstance(first, RowError):
                continue
            second = Written(unmarked(self._target(written.text, target), quotes(texts[i])), written.cut)
            if len(self._lost(pieces[i], second)) < len(self._lost(pieces[i], first)):
                found[i] = second
        return found

    def _run(self, pieces: Sequence[Piece], source: Language, target: Language) -> Sequence[Written | RowError]:
        return self.model.translate(pieces, source, target) if pieces else []

    def _second(self, piece: Piece) -> Piece:
        """What to ask once more: quotations as marks that no model translates, names as they are in Chinese."""
        return Piece(put_in(marked(piece.text), piece.terms), piece.terms)

    def _lost(self, piece: Piece, written: Written) -> list[str]:
        """Quotations and names that a second try may bring back; numbers come out the same."""
        simplify = self._simplified.convert
        gone = lost(piece.text, written.text, piece.terms, simplify) if piece.terms else []
        return [*lost_quotes(piece.text, written.text), *(name for name in gone if name in piece.terms)]

    def _target(self, text: str, target: Language) -> str:
        return str(self._simplified.convert(text.strip())) if target == "zh" else text.strip()

    def _finished(self, source: str, written: Written, target: Language) -> Written:
        text = with_quotes(self._target(written.text, target), quotes(source), self._simplified.convert)
        return Written(text, written.cut)


def generated(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    rows: int,
    *,
    skip_prompt: bool,
    special: bool = True,
    most: int = 480,
    **options: Any,
) -> list[Written]:
    """What the model writes for each text. Batches hold texts of like length, so that little is padding.

    At most three times the source's tokens and 20 are written, and never more than `most`, unless `options` say
    otherwise: a loop ends there and not at the model's limit. Marian ends every text by force at the limit, so one that
    ends with its last possible token counts as cut.
    """
    import torch

    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    found: dict[int, Written] = {}
    room = min(int(getattr(tokenizer, "model_max_length", 512)), 4096)
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        inputs = tokenizer(
            [texts[i] for i in places], return_tensors="pt", padding=True, truncation=True, add_special_tokens=special,
            max_length=room,
        ).to(model.device)  # fmt: skip
        inputs.pop("token_type_ids", None)
        length = inputs["input_ids"].shape[1]
        limit = {"max_new_tokens": min(most, 3 * length + 20)} | options
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens = model.generate(**inputs, **limit)
        if skip_prompt:
            tokens = tokens[:, length:]
        given = inputs["attention_mask"].sum(1).tolist()
        ends = model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        for place, row, count in zip(places, tokens.tolist(), given, strict=True):
            # A decoder of its own begins with a start token, which is not counted among the new ones.
            written = row if skip_prompt else row[1:]
            end = next((i for i, token in enumerate(written) if token in stops), len(written))
            text = tokenizer.decode(row, skip_special_tokens=True)
            found[place] = Written(text, cut=end >= limit["max_new_tokens"] - 1 or count >= room)
    return [found[i] for i in range(len(texts))]


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
