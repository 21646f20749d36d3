"""A multimodal model behind an OpenAI-compatible endpoint as the judge of captions.

    STORE/evaluate/<fingerprint>/judge.json       model and rubric, whole
    STORE/evaluate/<fingerprint>/<digest>.jsonl   answers as they came, some at a time, never changed

An answer is kept before it is understood: whether it is a refusal or no JSON is decided when it is read, so that
nothing that was paid for is lost and a later version may read more. What was answered is not asked again; what the
endpoint failed on is.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

from curate.errors import CurateError, UsageError, nearest
from curate.pictures import originals
from curate.rate import rubric as rubrics
from curate.store import Store
from curate.store.files import Files
from curate.store.parts import fingerprint
from schemas.errors import RowError
from workers.endpoint import Endpoint, EndpointError, Reply, data_url
from workers.picture import Limits
from workers.quality import REFUSAL
from workers.sentences import sentences

VERSION = 1
CRITERIA = rubrics.CRITERIA
LABELS = ("supported", "contradicted", "not_visible", "subjective")
SHIPPED = ("judge.v1",)
FOLDER = "evaluate"
AT_ONCE = 32  # answers that are published together: what a kill costs at most
LONGEST_WAIT_S = 10.0  # or after so long
PICTURES = 16  # whose bytes are in memory
IN_A_ROW = 20  # failures of the endpoint after which nothing more is asked
FENCE = re.compile(r"^```(?:json)?\s*(.*?)\s*```$", re.DOTALL)


@dataclass(frozen=True)
class Rubric:
    """What the judge is asked, from a data file; `prompt` has the criteria's anchors in it."""

    name: str
    prompt: str
    temperature: float
    max_tokens: int
    json_schema: bool


@dataclass(frozen=True)
class Settings:
    """Where the judge is and how it is asked."""

    endpoint: str
    model: str
    rubric: str = "judge.v1"
    requests: int = 16
    timeout_s: float = 120.0
    retries: int = 5
    pause_s: float = 1.0
    max_side_px: int = 1024
    again: bool = False
    """Ask once more where the answer was a refusal or malformed."""


@dataclass(frozen=True)
class Ask:
    """One caption of one picture to be judged."""

    row_id: str
    sha256: str
    caption: str
    """Fingerprint of the version that wrote it."""
    text: str

    @property
    def key(self) -> str:
        """The same for the same words about the same content."""
        return hashlib.blake2b(f"{self.sha256}\0{self.text}".encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """What an answer says: five scores in the order of CRITERIA, or None for the reason in `reason`."""

    scores: tuple[int, ...] | None
    reason: str = ""
    found: tuple[str, ...] = ()


@dataclass
class Usage:
    """What asking came to: captions asked now, kept from before, tokens of the endpoint's own count, failures."""

    asked: int = 0
    kept: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0
    """Answers for which the endpoint told no tokens."""
    seconds: float = 0.0


@dataclass
class Kept:
    """One judge and its answers by key: the last line of each that is no failure of the endpoint."""

    model: str
    rubric: str
    fingerprint: str
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def by(self) -> str:
        """How its scores are called in the store."""
        return f"judge {self.model.rstrip('/').rsplit('/', 1)[-1]}/{self.rubric}"


def load(name: str) -> Rubric:
    """The shipped rubric of that name, or the one in a .toml file; raises UsageError that says what is odd."""
    try:
        if name in SHIPPED:
            text = resource_files("curate.evaluate").joinpath(f"{name}.toml").read_text("utf-8")
        else:
            text = Path(name).read_text("utf-8")
        raw = tomllib.loads(text)
    except OSError as why:
        shipped = ", ".join(SHIPPED)
        raise UsageError(f"judge's rubric {name}: {why.strerror or why}; shipped: {shipped}, or a .toml file") from None
    except ValueError as why:
        raise UsageError(f"judge's rubric {name}: {why}") from None
    kinds = {"rubrics": list, "temperature": (int, float), "max_tokens": int, "json_schema": bool, "prompt": str}
    for key in (*raw, *kinds):  # in order: a misspelt key is told before the one that it leaves missing
        if key not in kinds:
            raise UsageError(f"judge's rubric {name}: unknown key {key!r}{nearest(key, kinds)}")
        if not isinstance(raw.get(key), kinds[key]):  # type: ignore[arg-type]
            raise UsageError(f"judge's rubric {name}: {key} is missing or of the wrong type")
    for place in ("{criteria}", "{sentences}"):
        if place not in raw["prompt"]:
            raise UsageError(f"judge's rubric {name}: prompt must have a place {place}")
    found = [rubrics.load(one) for one in raw["rubrics"]]
    if [one.criterion for one in found] != list(CRITERIA):
        raise UsageError(f"judge's rubric {name}: rubrics must be of {', '.join(CRITERIA)}, in this order")
    prompt = raw["prompt"].strip().replace("{criteria}", "\n\n".join(map(_anchors, found)))
    shown = name if name in SHIPPED else Path(name).stem
    return Rubric(shown, prompt, float(raw["temperature"]), raw["max_tokens"], raw["json_schema"])


def _anchors(one: rubrics.Rubric) -> str:
    lines = [f"{one.criterion}:"]
    for tier in reversed(one.tiers):
        lines.append(f"  {tier.tier}  {tier.name['en']}: {tier.about['en']}")
    return "\n".join(lines)


def read(reply: str | None, finish: str | None, count: int) -> Verdict:
    """What an answer about a caption of `count` sentences says; strict: anything odd is a reason and no score."""
    text = (reply or "").strip()
    fenced = FENCE.match(text)
    try:
        said = json.loads(fenced[1] if fenced else text)
    except ValueError:
        if finish == "length":
            return Verdict(None, "cut: the answer reached max_tokens")
        if not text.startswith(("{", "```")) and REFUSAL.search(text):
            return Verdict(None, f"refused: {_line(text)}")
        return Verdict(None, f"malformed: no JSON: {_line(text)}")
    problem = _problem(said, count)
    if problem:
        return Verdict(None, f"malformed: {problem}")
    found = []
    for number, sentence in enumerate(said["sentences"], 1):
        if sentence["label"] != "supported":
            words = _line(sentence["words"])
            found.append(f"{sentence['label']}: {words}" if words else f"{sentence['label']}: sentence {number}")
    if said["missing"]:
        found.append(f"missing: {_line(', '.join(said['missing']))}")
    return Verdict(tuple(said[name] for name in CRITERIA), "", tuple(found))


def _problem(said: Any, count: int) -> str:
    """What is wrong with an answer; empty when nothing is."""
    wanted = {"sentences", "missing", *CRITERIA}
    if not isinstance(said, dict) or set(said) != wanted:
        odd = sorted(set(said) ^ wanted) if isinstance(said, dict) else [type(said).__name__]
        return f"keys {', '.join(odd)[:80]}"
    for name in CRITERIA:
        if isinstance(said[name], bool) or said[name] not in (1, 2, 3, 4, 5) or not isinstance(said[name], int):
            return f"{name} = {json.dumps(said[name])[:40]}, not 1 to 5"
    labelled = said["sentences"]
    if not isinstance(labelled, list) or len(labelled) != count:
        return f"{len(labelled) if isinstance(labelled, list) else 'no'} sentences labelled of {count}"
    for number, sentence in enumerate(labelled, 1):
        if not isinstance(sentence, dict) or set(sentence) != {"n", "label", "words"} or sentence["n"] != number:
            return f"sentence {number}: {json.dumps(sentence)[:60]}"
        if sentence["label"] not in LABELS or not isinstance(sentence["words"], str):
            return f"sentence {number}: label {json.dumps(sentence['label'])[:40]}"
    missing = said["missing"]
    if not isinstance(missing, list) or not all(isinstance(thing, str) for thing in missing):
        return "missing is no list of texts"
    return ""


class Judge:
    """A judge that can be asked. Raises UsageError at construction when nobody answers at the endpoint."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.rubric = load(settings.rubric)
        self.kept = Kept(settings.model, self.rubric.name, self.fingerprint)
        self.usage = Usage()
        try:
            self.endpoint = Endpoint(
                settings.endpoint, settings.model, requests=settings.requests, timeout_s=settings.timeout_s,
                retries=settings.retries, pause_s=settings.pause_s,
            )  # fmt: skip
        except EndpointError as why:
            raise UsageError(f"--judge: {why}") from None
        facts = {
            "version": VERSION,
            "model": settings.model,
            **asdict(self.rubric),
            "max_side_px": settings.max_side_px,
        }
        self._folder = f"{FOLDER}/{self.fingerprint}"
        store.files.create(f"{self._folder}/judge.json", json.dumps(facts, indent=1, ensure_ascii=False).encode())
        self.kept.answers = _answers(store.files, self._folder)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides an answer, but the server."""
        return fingerprint(
            {"model": self.settings.model, "max_side_px": self.settings.max_side_px, **asdict(self.rubric)}
        )

    def ask(self, asks: Sequence[Ask], progress: Callable[[int], None] = lambda done: None) -> None:
        """Ask about those captions that have no answer yet; `requests` are in flight all the time.

        Answers are on disk when this returns, or raises. Raises CurateError when the endpoint fails on many in a row.
        """
        todo = {ask.key: ask for ask in asks if self._open(ask)}
        self.usage.kept += len({ask.key for ask in asks}) - len(todo)
        waiting = self._prepared(list(todo.values()))
        running: set[Future[dict[str, Any]]] = set()
        held: list[dict[str, Any]] = []
        begun = flushed = time.monotonic()
        failures = 0
        try:
            with ThreadPoolExecutor(self.settings.requests) as pool:
                while True:
                    while len(running) < self.settings.requests and (task := next(waiting, None)):
                        running.add(pool.submit(self._answer, *task))
                    if not running:
                        break
                    done, running = wait(running, timeout=LONGEST_WAIT_S, return_when=FIRST_COMPLETED)
                    for future in done:
                        line = future.result()
                        held.append(line)
                        self._count(line)
                        failures = failures + 1 if line["error"] else 0
                        if failures >= IN_A_ROW:
                            raise CurateError(
                                f"judge {self.settings.model}: {failures} failures in a row, the last: "
                                f"{line['error']}; what was answered is kept, run again to go on"
                            )
                    progress(len(done))
                    if len(held) >= AT_ONCE or (held and time.monotonic() - flushed > LONGEST_WAIT_S):
                        held, flushed = self._publish(held), time.monotonic()
        finally:  # after an interruption too: what was in flight has come by now
            held += [f.result() for f in running if f.done() and not f.cancelled() and not f.exception()]
            self._publish(held)
            self.usage.seconds += time.monotonic() - begun

    def _open(self, ask: Ask) -> bool:
        known = self.kept.answers.get(ask.key)
        if known is None or known["error"]:
            return True
        return self.settings.again and verdict(known).scores is None

    def _prepared(self, asks: Sequence[Ask]) -> Iterator[tuple[Ask, bytes | RowError]]:
        """The captions with the bytes of their pictures, which are read some at a time."""
        for start in range(0, len(asks), PICTURES):
            some = asks[start : start + PICTURES]
            data = originals(self.store, [ask.row_id for ask in some])
            for ask in some:
                yield ask, data[ask.row_id]

    def _answer(self, ask: Ask, data: bytes | RowError) -> dict[str, Any]:
        """The line that is kept: the answer as it came, or why there is none."""
        parts = sentences(ask.text)
        numbered = json.dumps({str(n): part for n, part in enumerate(parts, 1)}, ensure_ascii=False)
        line: dict[str, Any] = {
            "key": ask.key, "row_id": ask.row_id, "sha256": ask.sha256, "caption": ask.caption, "sentences": len(parts),
            "reply": None, "finish": None, "tokens_in": None, "tokens_out": None, "seconds": None, "tries": None,
            "error": None,
        }  # fmt: skip
        try:
            if isinstance(data, RowError):
                raise data
            url = data_url(data, Limits(), self.settings.max_side_px)
            text = self.rubric.prompt.replace("{sentences}", numbered)
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
            reply: Reply = self.endpoint.ask([{"role": "user", "content": content}], **self._options())
        except RowError as why:
            return line | {"error": f"{why.code}: {why.message}"}
        told = asdict(reply)
        return line | {"reply": told.pop("text"), **told}

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"temperature": self.rubric.temperature, "max_tokens": self.rubric.max_tokens}
        if self.rubric.json_schema:
            schema = {"name": "evaluation", "strict": True, "schema": SCHEMA}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        return options

    def _count(self, line: dict[str, Any]) -> None:
        self.usage.asked += 1
        self.usage.failed += bool(line["error"])
        self.usage.tokens_in += line["tokens_in"] or 0
        self.usage.tokens_out += line["tokens_out"] or 0
        self.usage.uncounted += line["error"] is None and line["tokens_in"] is None

    def _publish(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Put answers on disk; an empty list for the next ones."""
        if lines:
            data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
            at = f"{time.time_ns():020d}-{hashlib.sha256(data).hexdigest()[:12]}"
            self.store.files.create(f"{self._folder}/{at}.jsonl", data)
            for line in lines:
                _put(self.kept.answers, line)
        return []


SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["sentences", "missing", *CRITERIA],
    "properties": {
        "sentences": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["n", "label", "words"],
                "properties": {
                    "n": {"type": "integer"},
                    "label": {"type": "string", "enum": list(LABELS)},
                    "words": {"type": "string"},
                },
            },
        },
        "missing": {"type": "array", "items": {"type": "string"}},
        **{name: {"type": "integer", "enum": [1, 2, 3, 4, 5]} for name in CRITERIA},
    },
}


def verdict(line: dict[str, Any]) -> Verdict:
    """What a kept line says."""
    if line["error"]:
        return Verdict(None, line["error"])
    return read(line["reply"], line["finish"], line["sentences"])


def kept(files: Files) -> list[Kept]:
    """All judges that were ever asked about this store, with their answers."""
    found = []
    for path in sorted(files.list(FOLDER)):
        if path.endswith("/judge.json"):
            facts, mark = json.loads(files.read(path)), path.split("/")[-2]
            found.append(Kept(facts["model"], facts["name"], mark, _answers(files, f"{FOLDER}/{mark}")))
    return found


def _answers(files: Files, folder: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in files.list(folder) if path.endswith(".jsonl")):
        for line in files.read(path).decode().splitlines():
            _put(found, json.loads(line))
    return found


def _put(found: dict[str, dict[str, Any]], line: dict[str, Any]) -> None:
    """A later answer wins, but a failure never over an answer."""
    if not line["error"] or line["key"] not in found or found[line["key"]]["error"]:
        found[line["key"]] = line


def _line(text: str) -> str:
    return " ".join(text.split())[:120]
