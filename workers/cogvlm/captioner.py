"""The worker: samples in, English captions by CogVLM or CogVLM2 out."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import RowError
from workers.cogvlm.config import CheckpointError, read_config, revision, shard_files
from workers.cogvlm.prompt import Tokenizer, caption_prompt, sequence
from workers.picture import decode
from workers.quality import temperature as temperature_of
from workers.sample import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from workers.cogvlm.generate import Answer, Generator, Request

__all__ = ["Caption", "CheckpointError", "CogVLM", "model_name", "revision"]

# Outcomes kept for rows whose call failed because of a neighbour; the engine asks for them again in smaller batches.
KEPT = 65_536
# Pictures decoded ahead of their turn: 23 MB of squares for CogVLM, 174 MB for CogVLM2.
AHEAD = 32


@dataclass(frozen=True)
class Caption:
    """One caption and what it cost. `seconds` run from its prefill to its last token, shared with its batch."""

    text: str
    tokens_in: int
    tokens_out: int
    finish_reason: str  # `stop` (end of sequence) or `length` (max_new_tokens or the context)
    seconds: float


@dataclass
class _Running:
    """The generator of one model. Its cache takes what memory there is, so copies of a captioner share it."""

    generator: Generator | None = None


class CogVLM:
    """Captions pictures with a published checkpoint.

    `weights` is the checkpoint's folder; `tokenizer` the folder of its tokenizer where that is another one (CogVLM:
    lmsys/vicuna-7b-v1.5). `prompt` names a shipped prompt or a .toml file. `rows` is the batch, 0 measures what fits.
    `dtype` is `auto` (bfloat16 on a GPU, float32 on a CPU) or torch's name; `weight_format` `none`, `int8` or `fp8`;
    `rotary` `float32`, or `bfloat16` to repeat the reference's rounding. Temperature 0 takes the likeliest token.

    A call should bring several times `rows` samples: a finished row takes the next one, and only the last wait.
    Raises CheckpointError, before any picture is looked at, when the checkpoint or the tokenizer is not right.
    """

    def __init__(
        self,
        *,
        weights: Path,
        tokenizer: Path | None = None,
        prompt: str = "detailed.v1",
        max_new_tokens: int = 256,
        rows: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        dtype: str = "auto",
        weight_format: str = "none",
        rotary: str = "float32",
        device: str = "auto",
        threads: int = 4,
    ) -> None:
        import torch

        from workers.cogvlm.generate import Sampling
        from workers.cogvlm.load import load

        weights = Path(weights)
        self.config = read_config(weights)
        self.prompt = caption_prompt(prompt)
        self.tokenizer = Tokenizer(Path(tokenizer) if tokenizer else weights, self.config)
        self.max_new_tokens = max_new_tokens
        self.rows = rows
        self.sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        self.threads = threads
        if dtype not in ("auto", "bfloat16", "float16", "float32"):
            raise ValueError(f"dtype is {dtype!r}; known are auto, bfloat16, float16 and float32")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        self.model = load(
            weights, dtype=getattr(torch, dtype), device=device, rotary=rotary, weight_format=weight_format
        )
        self.name = model_name(weights)
        self.revision = revision(weights) + ("" if weight_format == "none" else f"+{weight_format}")
        self.captions: list[Caption] = []  # of the last call, in the order of its samples
        self._kept: dict[bytes, Caption | RowError] = {}
        self._running = _Running()

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """One dict of the `caption` columns per sample.

        Raises RowError for the first sample that has no picture, a prompt longer than the context, an output that
        is not finite, or no room in memory even alone. Such a call keeps its captions and its failures, and a later
        call for these samples costs nothing.
        """
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        texts = [self.prompt.text(sample.values.get("caption_raw")) for sample in samples]
        keys = [_key(sample, text) for sample, text in zip(samples, texts, strict=True)]
        rows = zip(keys, samples, texts, strict=True)
        self._caption({key: (sample, text) for key, sample, text in rows if key not in self._kept})
        outcomes = [self._kept[key] for key in keys]
        if failure := next((outcome for outcome in outcomes if isinstance(outcome, RowError)), None):
            if len(set(keys)) == 1:
                del self._kept[keys[0]]
            raise failure
        for key in set(keys):
            del self._kept[key]
        self.captions = [outcome for outcome in outcomes if isinstance(outcome, Caption)]
        return [
            {
                "caption_en": caption.text,
                "caption_engine": "cogvlm",
                "caption_model": self.name,
                "caption_revision": self.revision,
                "caption_prompt": self.prompt.name,
                "caption_tokens_in": caption.tokens_in,
                "caption_tokens_out": caption.tokens_out,
                "caption_finish": caption.finish_reason,
                "caption_seconds": caption.seconds,
                "caption_attempts": [],
            }
            for caption in self.captions
        ]

    def again(self, attempt: int) -> CogVLM:
        """The same model with the sampling of the `attempt`-th further try; cache and weights are shared."""
        from workers.cogvlm.generate import Sampling

        other = copy.copy(self)
        other.sampling = Sampling(temperature=temperature_of(attempt), top_p=0.9, seed=self.sampling.seed + attempt)
        other._kept = {}
        return other

    def _caption(self, todo: dict[bytes, tuple[Sample, str]]) -> None:
        """Put into `_kept` a caption for each of `todo`, or why there is none."""
        from workers.cogvlm.generate import is_out_of_memory

        with ThreadPoolExecutor(self.threads) as pool:
            squares = _Squares(pool, self.config.vision.image_size)
            requests: dict[bytes, Request] = {}
            for key, (sample, text) in todo.items():
                try:
                    requests[key] = self._request(key, text, partial(squares.take, key))
                except RowError as failure:
                    self._kept[key] = failure
                else:
                    squares.add(key, sample)
            if not requests:
                return
            try:
                answers = self._fitted(requests)(list(requests.values()))
            except RuntimeError as failure:
                if not is_out_of_memory(failure):
                    raise
                raise RowError("out_of_memory", f"not even one caption fits in memory: {failure}") from None
        for key, answer in zip(requests, answers, strict=True):
            self._kept[key] = squares.failures.get(key) or self._outcome(answer)

    def _outcome(self, answer: Answer) -> Caption | RowError:
        if answer.finish == "not_finite":
            what = f"the model's output is not finite after {len(answer.tokens)} tokens"
            return RowError("operator_failed", f"{what}; try dtype float32")
        text = self.tokenizer.decode(answer.tokens).strip()
        return Caption(text, answer.prompt_tokens, len(answer.tokens), answer.finish, round(answer.seconds, 3))

    def _request(self, key: bytes, text: str, pixels: Callable[[], Tensor | None]) -> Request:
        from workers.cogvlm.generate import Request

        words = self.tokenizer.encode(text)
        if max(words, default=0) >= self.config.vocab_size:
            # On a GPU such an index is an assertion that ends the process.
            raise RowError(
                "operator_failed",
                f"the tokenizer gives id {max(words)}, the checkpoint's vocabulary has {self.config.vocab_size}",
            )
        ids, types = sequence(self.config, words)
        context = self.config.max_position_embeddings
        if len(ids) >= context:
            raise RowError("prompt_too_long", f"the prompt is {len(ids)} tokens long, the context {context}")
        room = min(self.max_new_tokens, context - len(ids))
        return Request(ids, types, pixels, room, int.from_bytes(key[:8], "little", signed=True))

    def _fitted(self, requests: dict[bytes, Request]) -> Generator:
        """The generator, made anew when a request needs more columns than its cache has."""
        from workers.cogvlm.generate import Generator, fit

        prompt = max(len(request.input_ids) for request in requests.values())
        columns = max(len(request.input_ids) + request.max_new_tokens for request in requests.values())
        running = self._running.generator
        if running is None or columns > running.columns:
            if running is not None:
                running.release()
            columns = -(-columns // 64) * 64
            rows, chunk = fit(self.model, prompt_tokens=prompt, columns=columns)
            running = Generator(
                self.model,
                rows=self.rows or rows,
                columns=columns,
                chunk=chunk,
                eos=self.config.eos_token_id,
            )
            self._running.generator = running
        running.sampling = self.sampling
        return running


def check_files(weights: Path, tokenizer: Path) -> None:
    """Raise CheckpointError for what can be seen without reading a weight: config, shards, names, shapes, tokenizer.

    Names and shapes need torch; where it is not installed they are checked when the model loads.
    """
    config = read_config(weights)
    shard_files(weights)
    Tokenizer(tokenizer, config)
    if importlib.util.find_spec("torch"):
        from workers.cogvlm.load import check_checkpoint

        check_checkpoint(weights)


def model_name(weights: Path) -> str:
    """`owner/name` for a folder of the hub's cache, the folder's own name otherwise."""
    folder = weights.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def _key(sample: Sample, text: str) -> bytes:
    """Identity of a caption: what is asked about which bytes. Also what sampling is keyed by."""
    return hashlib.sha256(text.encode() + b"\0" + sample.bytes).digest()


def _square(sample: Sample, side_px: int) -> Tensor:
    import torch

    from workers.cogvlm.vision import resize

    # Not sample.picture, which would keep every full-size picture of the call in memory for the sake of one use.
    return torch.tensor(resize(decode(sample.bytes, sample.limits).rgb, side_px))


class _Squares:
    """Decoded squares, taken in the order in which they were added; threads decode a bounded number of them ahead."""

    def __init__(self, pool: ThreadPoolExecutor, side_px: int) -> None:
        self.pool = pool
        self.side_px = side_px
        self.failures: dict[bytes, RowError] = {}
        self._samples: dict[bytes, Sample] = {}
        self._keys: list[bytes] = []
        self._places: dict[bytes, int] = {}
        self._coming: dict[bytes, Future[Tensor]] = {}

    def add(self, key: bytes, sample: Sample) -> None:
        """Line up a sample; it is not decoded yet."""
        self._places[key] = len(self._keys)
        self._keys.append(key)
        self._samples[key] = sample

    def take(self, key: bytes) -> Tensor | None:
        """The square of one sample; None for a broken picture, whose failure is noted.

        A sample that is asked for again (memory ran out, and its caption begins anew) is decoded again.
        """
        place = self._places[key]
        for following in self._keys[place : place + AHEAD]:
            if following not in self._coming:
                self._coming[following] = self.pool.submit(_square, self._samples[following], self.side_px)
        try:
            return self._coming.pop(key).result()
        except RowError as failure:
            self.failures[key] = failure
            return None
