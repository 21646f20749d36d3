"""Any OpenAI-compatible endpoint (vLLM, SGLang, LMDeploy, a hosted one): captions, translations, judgements.

Pictures travel as bytes in data URLs and never as links: nobody else is asked to fetch anything. A number of requests
is kept in flight; 408, 409, 429, 5xx, cut or slow answers and broken JSON are tried again with growing pauses. The key
is read from CURATE_API_KEY or OPENAI_API_KEY, stands in no recipe, and follows no redirect.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import http.client
import io
import itertools
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import PriorityQueue
from typing import Any

from PIL import ExifTags, Image

from schemas.errors import RowError
from workers.cogvlm.prompt import CaptionPrompt
from workers.connections import Answer, Connections
from workers.picture import Limits, decode, sniff
from workers.quality import temperature as temperature_of
from workers.sample import Sample
from workers.translator import Language, Piece, Written, instruction

VERSION = 2

SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
LONGEST_PAUSE_S = 60.0
KNOCK_S = 10.0

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
    """Chat completions of `model` at `url` (such as http://host:8000/v1), at most `requests` of them in flight.

    All callers, from any thread, share the requests. There are twice as many threads, so that while some prepare what
    they will ask or pause before another try, others have the connection. `timeout_s` bounds one request from start to
    end. Pauses between tries double from `pause_s`, unless the server says how long to wait; their length is spread by
    a hash of what is asked, so that workers do not return together.
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
        if not model:
            raise EndpointError(f"endpoint {url!r}: name the model that is to answer there")
        self.url = url.rstrip("/")
        self.model = model
        self.requests = requests
        self.timeout_s = timeout_s
        self.retries = retries
        self.pause_s = pause_s
        self._connections = knock(self.url, min(timeout_s, KNOCK_S))
        self._slots = threading.Semaphore(requests)
        self._threads = _Threads(2 * requests)

    def __str__(self) -> str:
        return f"endpoint {self.url}, model {self.model}"

    def ask(self, messages: Sequence[Message], **options: Any) -> Reply:
        """One answer. Raises RowError `endpoint_failed` when there is none in all tries, or the request is refused."""
        body = json.dumps({"model": self.model, "messages": list(messages), **options}).encode()
        begun: float | None = None
        last = ""
        for attempt in range(self.retries + 1):
            pause: float | None = None
            try:
                with self._slots:
                    begun = begun or time.monotonic()
                    answer = self._connections.send("POST", "/chat/completions", body, _headers(), self.timeout_s)
                if 200 <= answer.status < 300:
                    return _reply(json.loads(answer.data), begun, attempt + 1)
                last = f"HTTP {answer.status}: {_detail(answer)}"
                if answer.status not in AGAIN:
                    raise RowError("endpoint_failed", last)
                pause = _seconds(answer.headers.get("Retry-After"))
            # TimeoutError is an OSError; broken JSON is a ValueError, or nested without end.
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as why:
                last = f"{type(why).__name__}: {why}"
            if attempt < self.retries:
                time.sleep(self._pause(body, attempt) if pause is None else pause)
        raise RowError("endpoint_failed", f"no answer in {self.retries + 1} tries; the last one: {last}"[:300])

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Do `call` in one of the threads, which end with the process whatever they wait for."""
        return self._threads.submit([call])[0]

    def ask_all(self, asks: Sequence[Callable[[], Reply]], urgency: int = 0) -> list[Reply | RowError]:
        """Answers or failures of many requests, in order.

        Those of one call go before those of a later one, and those of greater urgency before all that wait.
        """

        def guarded(ask: Callable[[], Reply]) -> Reply | RowError:
            try:
                return ask()
            except RowError as failure:
                return failure

        return [coming.result() for coming in self._threads.submit([partial(guarded, ask) for ask in asks], urgency)]

    def _pause(self, body: bytes, attempt: int) -> float:
        spread = hashlib.sha256(body[-4096:] + bytes([attempt])).digest()[0] / 255
        return min(LONGEST_PAUSE_S, self.pause_s * 2.0**attempt * (0.75 + 0.5 * spread))


def knock(url: str, timeout_s: float = KNOCK_S) -> Connections:
    """Connections to `url`. Raises EndpointError, which says why, when nobody answers there or the key is refused."""
    try:
        connections = Connections(url)
        answer = connections.send("GET", "/models", None, _headers(), timeout_s)
    except (OSError, http.client.HTTPException) as why:
        raise EndpointError(f"endpoint {url}: nobody answers there: {why}") from None
    except ValueError as why:
        raise EndpointError(f"endpoint {url!r}: {why}") from None
    if answer.status in (401, 403):
        raise EndpointError(f"endpoint {url}: HTTP {answer.status}, the key is missing or refused; set CURATE_API_KEY")
    if 300 <= answer.status < 400:
        raise EndpointError(
            f"endpoint {url}: it redirects to {answer.headers.get('Location')}, and the key goes nowhere by itself; "
            "name the right address"
        )
    return connections  # others do without this path, or are busy: the requests themselves will tell


class EndpointCaptioner:
    """The `caption` operator by an endpoint."""

    def __init__(
        self, endpoint: Endpoint, prompt: CaptionPrompt, *, max_side_px: int = 2048, **sampling: float | int
    ) -> None:
        self.endpoint = endpoint
        self.prompt = prompt
        self.max_side_px = max_side_px
        self.sampling = sampling
        self._attempt = 0

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any] | RowError]:
        """One dict of the `caption` columns, or a failure, per sample."""

        def ask(sample: Sample) -> Reply:
            # In the thread of the request, so that only pictures in flight are held encoded.
            url = data_url(sample.bytes, sample.limits, self.max_side_px)
            text = self.prompt.ask(sample.values.get("caption_raw"))
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
            return self.endpoint.ask([{"role": "user", "content": content}], **self.sampling)

        # A further try goes first: at the end of the line it would hold up its whole range, and all ranges that wait
        # together would end together, with nothing left to ask (measured: a third of 64 requests idle).
        found = self.endpoint.ask_all([partial(ask, sample) for sample in samples], self._attempt)
        return [reply if isinstance(reply, RowError) else self._columns(reply) for reply in found]

    def again(self, attempt: int) -> EndpointCaptioner:
        """The same endpoint with the sampling of the `attempt`-th further try."""
        other = copy.copy(self)
        other._attempt = attempt
        seed = int(self.sampling.get("seed", 0)) + attempt
        other.sampling = self.sampling | {"temperature": temperature_of(attempt), "top_p": 0.9, "seed": seed}
        return other

    def _columns(self, reply: Reply) -> dict[str, Any]:
        return {
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


class EndpointModel:
    """An endpoint as the model of workers.translator.Translator: whole captions, both ways."""

    sentencewise = False
    ways: frozenset[tuple[Language, Language]] = frozenset({("en", "zh"), ("zh", "en")})

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def __str__(self) -> str:
        return str(self.endpoint)

    def translate(self, pieces: Sequence[Piece], source: Language, target: Language) -> list[Written | RowError]:
        """One translation, or a failure, per piece."""

        def ask(piece: Piece) -> Reply:
            turn = {"role": "user", "content": instruction(piece, target)}
            return self.endpoint.ask([turn], temperature=0, max_tokens=1024)

        found = self.endpoint.ask_all([partial(ask, piece) for piece in pieces])
        return [r if isinstance(r, RowError) else Written(r.text, cut=r.finish == "length") for r in found]


def data_url(data: bytes, limits: Limits, max_side_px: int) -> str:
    """The picture as a data URL: its own bytes when everybody reads them so, else an upright JPEG of bounded size.

    Bytes that go as they are are not decoded: a run has done so, and a broken picture does not come here.
    """
    kind = sniff(data) if data else ""
    if kind not in SENT_AS_THEY_ARE or not _goes_as_it_is(data, kind, max_side_px):
        picture = decode(data, limits, (max_side_px, max_side_px))
        height, width = picture.rgb.shape[:2]
        scale = min(1.0, max_side_px / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        file = io.BytesIO()
        Image.fromarray(picture.rgb).resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=95)
        data, kind = file.getvalue(), "JPEG"
    return f"data:{SENT_AS_THEY_ARE[kind]};base64,{base64.b64encode(data).decode()}"


def _goes_as_it_is(data: bytes, kind: str, max_side_px: int) -> bool:
    """By its header: one picture, upright, small enough."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=[kind]) as image:
            warnings.simplefilter("ignore")  # odd metadata
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            return upright and max(image.size) <= max_side_px and getattr(image, "n_frames", 1) == 1
    except Exception:  # Pillow's readers raise nearly anything; `decode` says what is wrong
        return False


def _reply(answer: Any, begun: float, tries: int) -> Reply:
    """The first choice of an answer, every field of which may be of any kind. ValueError when it has no text."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise ValueError(f"an answer without choices: {str(answer)[:120]}")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if isinstance(text, list):  # in parts, as the protocol allows
        parts = [part.get("text") for part in text if isinstance(part, dict) and part.get("type") == "text"]
        text = "".join(part for part in parts if isinstance(part, str)) if parts else None
    if not isinstance(text, str):
        raise ValueError(f"an answer without text: {str(choice)[:120]}")
    usage = answer.get("usage")
    told = usage if isinstance(usage, dict) else {}
    counts = [value if type(value := told.get(key)) is int else None for key in ("prompt_tokens", "completion_tokens")]
    finish = choice.get("finish_reason")
    return Reply(
        _whole(text).strip(), counts[0], counts[1], _whole(finish) if isinstance(finish, str) else None,
        round(time.monotonic() - begun, 3), tries,
    )  # fmt: skip


def _whole(text: str) -> str:
    """Halves of surrogate pairs, which JSON can say and UTF-8 cannot, as U+FFFD: the checks know it for a damage."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _headers() -> dict[str, str]:
    key = os.environ.get("CURATE_API_KEY") or os.environ.get("OPENAI_API_KEY")
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None without one that is a number."""
    try:
        return min(LONGEST_PAUSE_S, max(0.0, float(header or "")))
    except ValueError:
        return None


def _detail(answer: Answer) -> str:
    """What the server says of its refusal, in a line."""
    try:
        body = answer.data[:4096].decode("utf-8", "replace")
        found = json.loads(body)
        body = str((found.get("error") or found).get("message") or body)
    except (ValueError, AttributeError, RecursionError):
        body = answer.reason
    return " ".join(body.split())[:200]


class _Threads:
    """Threads that end with the process, whatever they wait for: the second Ctrl-C must not wait for answers."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._started = 0
        self._lock = threading.Lock()
        self._queue: PriorityQueue[tuple[tuple[int, int, int], Future[Any], Callable[[], Any]]] = PriorityQueue()
        self._numbers = itertools.count()

    def submit(self, calls: Sequence[Callable[[], Any]], urgency: int = 0) -> list[Future[Any]]:
        found: list[Future[Any]] = [Future() for _ in calls]
        number = next(self._numbers)
        for place, (coming, call) in enumerate(zip(found, calls, strict=True)):
            self._queue.put(((-urgency, number, place), coming, call))
        with self._lock:
            for _ in range(min(len(calls), self.most - self._started)):
                self._started += 1
                threading.Thread(target=self._work, daemon=True).start()
        return found

    def _work(self) -> None:
        while True:
            _, coming, call = self._queue.get()
            try:
                coming.set_result(call())
            except BaseException as why:
                coming.set_exception(why)
