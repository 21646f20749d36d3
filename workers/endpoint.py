"""Any OpenAI-compatible endpoint (vLLM, SGLang, LMDeploy, a hosted one): captions, translations, judgements.

Pictures travel as bytes in data URLs and never as links: nobody else is asked to fetch anything. A number of requests
is kept in flight; 408, 409, 429, 5xx, cut or slow answers and broken JSON are tried again with growing pauses. The key
is read from CURATE_API_KEY or OPENAI_API_KEY and stands in no recipe.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from schemas.errors import RowError
from workers.cogvlm.prompt import CaptionPrompt
from workers.picture import Limits, decode
from workers.quality import temperature as temperature_of
from workers.sample import Sample
from workers.translator import Language, Piece, instruction

VERSION = 1

SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
LONGEST_PAUSE_S = 60.0
MOST_BYTES = 16 << 20  # of an answer
KEPT = 65_536

Message = dict[str, Any]


class EndpointError(ValueError):
    """The endpoint cannot be used at all: wrong address, wrong key."""


@dataclass(frozen=True)
class Reply:
    """One answer and what it cost; `tries` counts the requests that it took."""

    text: str
    tokens_in: int | None
    tokens_out: int | None
    finish: str | None
    seconds: float
    tries: int


class Endpoint:
    """Chat completions of `model` at `url` (such as http://host:8000/v1), `requests` at a time.

    `timeout_s` bounds one request from start to end. Pauses between tries double from `pause_s`, unless the server says
    how long to wait; their length is spread by a hash of what is asked, so that workers do not return together.
    Raises EndpointError at construction when nobody answers there or the key is refused.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        requests: int = 16,
        timeout_s: float = 120.0,
        retries: int = 5,
        pause_s: float = 1.0,
    ) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https") or not model:
            raise EndpointError(
                f"endpoint {url!r}, model {model!r}: give an http(s) address that ends in /v1, and a model"
            )
        self.url = url.rstrip("/")
        self.model = model
        self.requests = requests
        self.timeout_s = timeout_s
        self.retries = retries
        self.pause_s = pause_s
        self._key = os.environ.get("CURATE_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""
        self._knock()

    def ask(self, messages: Sequence[Message], **options: Any) -> Reply:
        """One answer. Raises RowError `endpoint_failed` when there is none in all tries, or the request is refused."""
        body = json.dumps({"model": self.model, "messages": list(messages), **options}).encode()
        begun, last = time.monotonic(), ""
        for attempt in range(self.retries + 1):
            pause: float | None = None
            try:
                return self._reply(self._post(body), begun, attempt + 1)
            except urllib.error.HTTPError as why:
                with why:
                    last = f"HTTP {why.code}: {_detail(why)}"
                    pause = _seconds(why.headers.get("Retry-After"))
                if why.code not in AGAIN:
                    raise RowError("endpoint_failed", last) from None
            # URLError and TimeoutError are OSErrors.
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as why:
                last = f"{type(why).__name__}: {why}"
            if attempt < self.retries:
                time.sleep(self._pause(body, attempt) if pause is None else pause)
        raise RowError("endpoint_failed", f"no answer in {self.retries + 1} tries; the last one: {last}"[:300])

    def ask_all(self, asks: Sequence[Callable[[], Reply]]) -> list[Reply | RowError]:
        """Answers or failures of many requests, in order; `requests` of them are in flight all the time."""

        def guarded(ask: Callable[[], Reply]) -> Reply | RowError:
            try:
                return ask()
            except RowError as failure:
                return failure

        with ThreadPoolExecutor(self.requests) as pool:
            return list(pool.map(guarded, asks))

    def _post(self, body: bytes) -> Any:
        request = urllib.request.Request(f"{self.url}/chat/completions", body, self._headers())
        deadline = time.monotonic() + self.timeout_s
        with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
            data = b""
            # The socket's timeout is for each piece; a server that drips is bounded by the deadline.
            while piece := answer.read1(1 << 16):
                data += piece
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {self.timeout_s:g} s")
                if len(data) > MOST_BYTES:
                    raise ValueError(f"an answer of more than {MOST_BYTES} bytes")
            expected = answer.headers.get("Content-Length")
        if expected is not None and len(data) < int(expected):
            raise ValueError(f"cut after {len(data)} of {expected} bytes")
        return json.loads(data)

    def _reply(self, answer: Any, begun: float, tries: int) -> Reply:
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise ValueError(f"an answer without choices: {str(answer)[:120]}")
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise ValueError(f"an answer without text: {str(choice)[:120]}")
        usage = answer.get("usage") or {}
        tokens = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
        counts = [value if isinstance(value, int) else None for value in tokens]
        finish = choice.get("finish_reason")
        return Reply(
            text.strip(), counts[0], counts[1], finish if isinstance(finish, str) else None,
            round(time.monotonic() - begun, 3), tries,
        )  # fmt: skip

    def _pause(self, body: bytes, attempt: int) -> float:
        spread = hashlib.sha256(body[-4096:] + bytes([attempt])).digest()[0] / 255
        return min(LONGEST_PAUSE_S, self.pause_s * 2.0**attempt * (0.75 + 0.5 * spread))

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _knock(self) -> None:
        request = urllib.request.Request(f"{self.url}/models", headers=self._headers())
        try:
            urllib.request.urlopen(request, timeout=min(self.timeout_s, 10.0)).close()
        except urllib.error.HTTPError as why:
            why.close()
            if why.code in (401, 403):
                raise EndpointError(
                    f"endpoint {self.url}: HTTP {why.code}, the key is missing or refused; set CURATE_API_KEY"
                ) from None
            # Others do without this path, or are busy: the requests themselves will tell.
        except (OSError, http.client.HTTPException) as why:
            raise EndpointError(f"endpoint {self.url}: nobody answers there: {getattr(why, 'reason', why)}") from None


class EndpointCaptioner:
    """The `caption` operator by an endpoint.

    Answers and failures are kept for the next call: a row that fails makes the engine ask for smaller and smaller
    batches, and nothing is asked of the endpoint again.
    """

    def __init__(
        self, endpoint: Endpoint, prompt: CaptionPrompt, *, max_side_px: int = 2048, **sampling: float | int
    ) -> None:
        self.endpoint = endpoint
        self.prompt = prompt
        self.max_side_px = max_side_px
        self.sampling = sampling
        self._kept: dict[bytes, Reply | RowError] = {}

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """One dict of the `caption` columns per sample; raises RowError for the first that has none."""
        texts = [self.prompt.ask(sample.values.get("caption_raw")) for sample in samples]
        keys = [hashlib.sha256(t.encode() + b"\0" + s.bytes).digest() for t, s in zip(texts, samples, strict=True)]
        todo = {k: (s, t) for k, s, t in zip(keys, samples, texts, strict=True) if k not in self._kept}

        def ask(sample: Sample, text: str) -> Reply:
            # In the thread of the request, so that only pictures in flight are held encoded.
            url = data_url(sample.bytes, sample.limits, self.max_side_px)
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
            return self.endpoint.ask([{"role": "user", "content": content}], **self.sampling)

        asks = [partial(ask, sample, text) for sample, text in todo.values()]
        self._kept |= zip(todo, self.endpoint.ask_all(asks), strict=True)
        while len(self._kept) > max(KEPT, len(samples)):
            del self._kept[next(iter(self._kept))]
        found = _answers(self._kept, keys)
        return [
            {
                "caption_en": reply.text,
                "caption_engine": "openai",
                "caption_model": self.endpoint.model,
                "caption_revision": None,
                "caption_prompt": self.prompt.name,
                "caption_tokens_in": reply.tokens_in,
                "caption_tokens_out": reply.tokens_out,
                "caption_finish": reply.finish,
                "caption_seconds": reply.seconds,
                "caption_attempts": [],
            }
            for reply in found
        ]

    def again(self, attempt: int) -> EndpointCaptioner:
        """The same endpoint with the sampling of the `attempt`-th further try."""
        other = copy.copy(self)
        seed = int(self.sampling.get("seed", 0)) + attempt
        other.sampling = self.sampling | {"temperature": temperature_of(attempt), "top_p": 0.9, "seed": seed}
        other._kept = {}
        return other


class EndpointModel:
    """An endpoint as the model of workers.translator.Translator: whole captions, both ways."""

    sentencewise = False
    ways: frozenset[tuple[Language, Language]] = frozenset({("en", "zh"), ("zh", "en")})

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._kept: dict[str, Reply | RowError] = {}

    def translate(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[str]:
        """One translation a piece; raises RowError for the first that got none. Kept as captions are."""
        turns = [instruction(piece, target) for piece in pieces]

        def ask(turn: str) -> Reply:
            return self.endpoint.ask([{"role": "user", "content": turn}], temperature=0, max_tokens=1024)

        todo = [turn for turn in dict.fromkeys(turns) if turn not in self._kept]
        self._kept |= zip(todo, self.endpoint.ask_all([partial(ask, turn) for turn in todo]), strict=True)
        while len(self._kept) > max(KEPT, len(turns)):
            del self._kept[next(iter(self._kept))]
        return [reply.text for reply in _answers(self._kept, turns)]


def _answers(kept: dict[Any, Reply | RowError], keys: Sequence[Any]) -> list[Reply]:
    """The replies of `keys`, taken out of `kept`; raises the first failure, and forgets it when it stands alone."""
    for key in keys:
        failure = kept[key]
        if isinstance(failure, RowError):
            if len(keys) == 1:
                del kept[key]
            raise failure
    found = [reply for key in keys if isinstance(reply := kept[key], Reply)]
    for key in keys:
        kept.pop(key, None)
    return found


def data_url(data: bytes, limits: Limits, max_side_px: int) -> str:
    """The picture as a data URL: its own bytes when everybody reads them so, else an upright JPEG of bounded size."""
    picture = decode(data, limits)
    height, width = picture.rgb.shape[:2]
    kind = SENT_AS_THEY_ARE.get(picture.header.format)
    if (
        kind is None
        or max(height, width) > max_side_px
        or picture.header.exif_orientation != 1
        or picture.header.frames > 1
    ):
        scale = min(1.0, max_side_px / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        file = io.BytesIO()
        Image.fromarray(picture.rgb).resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=95)
        data, kind = file.getvalue(), "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None without one that is a number."""
    try:
        return min(LONGEST_PAUSE_S, max(0.0, float(header or "")))
    except ValueError:
        return None


def _detail(why: urllib.error.HTTPError) -> str:
    """What the server says of its refusal, in a line."""
    try:
        body = why.read(4096).decode("utf-8", "replace")
        found = json.loads(body)
        body = str((found.get("error") or found).get("message") or body)
    except (OSError, ValueError, AttributeError):
        body = str(why.reason)
    return " ".join(body.split())[:200]
