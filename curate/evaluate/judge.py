"""A multimodal model behind an OpenAI-compatible endpoint as the judge of captions.

    STORE/evaluate/<fingerprint>/judge.json       model and rubric, whole
    STORE/evaluate/<fingerprint>/<time>.jsonl     answers as they came, never changed

An answer is kept before it is understood: whether it is a refusal or no JSON is decided when it is read, so that
nothing that was paid for is lost and a later version may read more. What was answered is not asked again; what the
endpoint failed on is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.resources import files as resource_files
from pathlib import Path
from typing import IO, Any

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

log = logging.getLogger("curate.evaluate")

VERSION = 1
CRITERIA = rubrics.CRITERIA
LABELS = ("supported", "contradicted", "not_visible", "subjective")
SHIPPED = ("judge.v1",)
FOLDER = "evaluate"
AT_ONCE = 32  # answers that are one object of S3: what a kill costs there at most
LONGEST_WAIT_S = 5.0  # or those of so long
PICTURES = 16  # whose bytes are in memory
IN_A_ROW = 20  # failures of the endpoint after which nothing more is asked
READ = ("key", "row_id", "sentences", "reply", "finish", "error")  # of a kept line
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
        self._journal = _Journal(store.files, self._folder)
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

        `progress` is told of captions that need not be asked about, and of answers as they come. Answers are kept when
        they come, whatever happens next. Raises CurateError when the endpoint fails on many in a row.
        """
        todo = {ask.key: ask for ask in asks if self._open(ask)}
        self.usage.kept += len({ask.key for ask in asks}) - len(todo)
        progress(len(asks) - len(todo))
        waiting = self._prepared(list(todo.values()))
        running: set[Future[dict[str, Any]]] = set()
        begun = time.monotonic()
        failures = 0
        try:
            with self._journal:
                while True:
                    while len(running) < self.settings.requests and (task := next(waiting, None)):
                        running.add(self.endpoint.submit(partial(self._answer, *task)))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        line = future.result()
                        self._count(line)
                        failures = failures + 1 if line["error"] else 0
                        if failures >= IN_A_ROW:
                            wait(running, timeout=self.settings.timeout_s)  # theirs is kept too, and nobody asks later
                            raise CurateError(
                                f"judge {self.settings.model}: {failures} failures in a row, the last: "
                                f"{line['error']}; what was answered is kept, run again to go on"
                            )
                    progress(len(done))
        except KeyboardInterrupt:
            log.warning(
                "\nkeeping the answers that are under way (%d); Ctrl-C once more leaves them behind", len(running)
            )
            with self._journal:
                wait(running, timeout=self.settings.timeout_s)
            raise
        finally:
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
        """The line that is kept, when it has been: the answer as it came, or why there is none."""
        line = self._asked(ask, data)
        self._journal.add(line)
        _put(self.kept.answers, line)
        return line

    def _asked(self, ask: Ask, data: bytes | RowError) -> dict[str, Any]:
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


class _Journal:
    """Answers of one judge on their way to disk, from any thread.

    In a local store every answer is a line of a file the moment it comes: a kill loses none. An object of S3 is written
    whole, so there answers wait for each other, at most AT_ONCE of them or LONGEST_WAIT_S. One process at a time: two
    would pay for the same captions.
    """

    def __init__(self, files: Files, folder: str) -> None:
        self.files = files
        self.folder = folder
        self._held: list[bytes] = []
        self._since = 0.0
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._turn: IO[bytes] | None = None

    def __enter__(self) -> _Journal:
        if (path := self.files.local(f"{self.folder}/lock")) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._turn = path.open("wb")
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._turn.close()
                raise UsageError(
                    f"another curate evaluate is asking this judge about {self.files.uri}; let it end"
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._flush()
            for file in (self._file, self._turn):
                if file:
                    file.close()
            self._file = self._turn = None

    def add(self, line: dict[str, Any]) -> None:
        """Keep one answer."""
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            path = self.files.local(self._name(data))
            if path is not None:
                if self._file is None:
                    self._file = path.open("ab", buffering=0)
                self._file.write(data)
                return
            if not self._held:
                self._since = time.monotonic()
            self._held.append(data)
            if len(self._held) >= AT_ONCE or time.monotonic() - self._since > LONGEST_WAIT_S:
                self._flush()

    def _flush(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self.files.create(self._name(data), data)
            self._held = []

    def _name(self, data: bytes) -> str:
        return f"{self.folder}/{time.time_ns():020d}-{hashlib.sha256(data).hexdigest()[:12]}.jsonl"


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
            mark = path.split("/")[-2]
            try:
                facts = json.loads(files.read(path))
                model, name = facts["model"], facts["name"]
            except (ValueError, KeyError, TypeError):
                raise CurateError(f"{files.uri}/{path} is damaged: bring it back, or move its folder away") from None
            found.append(Kept(model, name, mark, _answers(files, f"{FOLDER}/{mark}")))
    return found


def _answers(files: Files, folder: str) -> dict[str, dict[str, Any]]:
    """Kept lines by key. The last line of a file may be half of one: power failed while it was written."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in files.list(folder) if path.endswith(".jsonl")):
        lines = files.read(path).splitlines(keepends=True)
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
                _put(found, line | {name: line[name] for name in READ})
            except (ValueError, KeyError, TypeError):
                if number < len(lines) or text.endswith(b"\n"):
                    raise CurateError(f"{files.uri}/{path}, line {number} is damaged: remove that line") from None
    return found


def _put(found: dict[str, dict[str, Any]], line: dict[str, Any]) -> None:
    """A later answer wins, but a failure never over an answer."""
    if not line["error"] or line["key"] not in found or found[line["key"]]["error"]:
        found[line["key"]] = line


def _line(text: str) -> str:
    return " ".join(text.split())[:120]
