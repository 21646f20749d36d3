"""The endpoint captioner against a real HTTP server that speaks the protocol and misbehaves on purpose."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from curate import pipeline, planner
from curate.errors import UsageError
from curate.progress import Display
from curate.recipe import Recipe, from_tables
from curate.store import Store
from schemas.errors import RowError
from workers.cogvlm.prompt import caption_prompt
from workers.endpoint import Endpoint, EndpointCaptioner, EndpointError, EndpointModel
from workers.sample import Sample
from workers.translator import Piece, Written


@dataclass
class Server:
    """`script` holds what the next answers are: a status, or a word that `behave` knows."""

    script: list[Any] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    together: int = 0
    most: int = 0
    hold: int = 0
    """Answers wait until so many requests are in flight."""
    reply: Callable[[dict[str, Any]], str] | None = None
    """What a good answer to a request says."""
    full: threading.Condition = field(default_factory=threading.Condition)
    stop: threading.Event = field(default_factory=threading.Event)
    location: str = ""
    port: int = 0
    connections: int = 0
    paths: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def answer(text: str, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 11, "completion_tokens": len(text.split())}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], "usage": usage}).encode()


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server.connections += 1

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            server.paths.append(self.path)
            server.keys.append(self.headers.get("Authorization"))
            refused = bool(server.script) and server.script[0] in (302, 401, 403)
            self.send(server.script.pop(0) if refused else 200, b"{}", {"Location": server.location})

        def do_POST(self) -> None:
            server.paths.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.full:
                server.asked.append(body)
                server.together += 1
                server.most = max(server.most, server.together)
                server.full.notify_all()
                server.full.wait_for(lambda: server.most >= server.hold, 10)
                kind = server.script.pop(0) if server.script else "ok"
            try:
                self.behave(kind, answer(server.reply(body) if server.reply else f"seen {len(server.asked)}"))
            finally:
                with server.full:
                    server.together -= 1

        def behave(self, kind: Any, good: bytes) -> None:
            if isinstance(kind, int):
                told = json.dumps({"error": {"message": f"told {kind}"}}).encode()
                self.send(kind, told, {"Retry-After": "0", "Location": server.location})
            elif kind == "slow":
                server.stop.wait(10)
                self.close_connection = True
            elif kind == "drip":
                self.send(200, good, drip=True)
            elif kind == "leave":  # as a server does that has waited long enough for another request
                self.send(200, good)
                self.close_connection = True
            elif str(kind).startswith("say:"):
                self.send(200, answer(kind[4:]))
            elif kind == "heads":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Header: ")
                while not server.stop.wait(0.05):
                    try:
                        self.wfile.write(b"a")
                    except OSError:
                        break
                self.close_connection = True
            elif kind == "cut":
                self.send(200, good, cut=20)
            else:
                bad = {"json": b"{not json", "empty": b'{"choices": []}', "long": answer("word " * 9, "length")}
                bad["null"] = b'{"choices": [{"message": {"content": null}}]}'
                bad["choice"] = b'{"choices": [7]}'
                bad["message"] = b'{"choices": [{"message": "text"}]}'
                bad["list"] = b"[1, 2]"
                bad["deep"] = b"[" * 100_000
                bad["usage"] = good.replace(b'{"prompt_tokens"', b'[1], "other": {"prompt_tokens"')
                bad["usages"] = good.replace(b'"usage": {', b'"usage": "none", "other": {')
                parts = [{"type": "text", "text": "a "}, {"type": "thought"}, {"type": "text", "text": "gate"}]
                bad["parts"] = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
                for word, escape in (("surrogate", "\\ud83d"), ("pair", "\\ud83d\\ude00")):
                    bad[word] = b'{"choices": [{"message": {"content": "a %s gate"}}]}' % escape.encode()
                self.send(200, bad.get(kind, good))

        def send(
            self, code: int, data: bytes, headers: dict[str, str] | None = None, cut: int = 0, drip: bool = False
        ) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if drip:
                for i in range(len(data) - 1):
                    self.wfile.write(data[i : i + 1])
                    self.wfile.flush()
                    if server.stop.wait(0.05):
                        break
            else:
                self.wfile.write(data[:cut] if cut else data)
            self.close_connection = self.close_connection or bool(cut) or drip

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            http.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


def encoded(seed: int, kind: str = "PNG", side: int = 30) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def endpoint(server: Server, **options: Any) -> Endpoint:
    return Endpoint(server.url, "tiny", **{"pause_s": 0.01, "timeout_s": 0.5, "retries": 3, "requests": 1, **options})


def captioner(server: Server, **options: Any) -> EndpointCaptioner:
    return EndpointCaptioner(endpoint(server, **options), caption_prompt("short.v1"), max_side_px=64, max_tokens=9)


def test_a_picture_travels_as_its_own_bytes_and_never_as_a_link(server: Server) -> None:
    data = encoded(1)
    (row,) = captioner(server)([Sample(0, data, {})])
    assert (row["caption_en"], row["caption_engine"], row["caption_model"]) == ("seen 1", "openai", "tiny")
    assert (row["caption_tokens_in"], row["caption_tokens_out"], row["caption_finish"]) == (11, 2, "stop")
    (body,) = server.asked
    assert body["model"] == "tiny"
    assert body["max_tokens"] == 9
    picture, text = body["messages"][0]["content"]
    assert picture["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(data).decode()
    assert text["text"] == caption_prompt("short.v1").query
    assert "http" not in json.dumps(body["messages"])


def test_other_formats_and_large_pictures_are_sent_as_jpeg_of_bounded_size(server: Server) -> None:
    captioner(server)([Sample(0, encoded(1, "BMP"), {}), Sample(1, encoded(1, "PNG", 200), {})])
    sizes = []
    for body in server.asked:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        assert url.startswith("data:image/jpeg;base64,")
        sizes.append(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size)
    assert sorted(sizes) == [(30, 30), (64, 64)]


@pytest.mark.parametrize(
    "trouble",
    [429, 500, 503, "slow", "drip", "heads", "cut", "json", "deep", "empty", "null", "choice", "message", "list"],
)
def test_trouble_that_passes_is_tried_again(trouble: Any, server: Server) -> None:
    server.script = [trouble, trouble]
    reply = endpoint(server).ask([{"role": "user", "content": "hello"}])
    assert reply.tries == 3
    assert reply.text == "seen 3"


@pytest.mark.parametrize(
    ("script", "tries", "complaint"),
    [
        ([400], 1, "HTTP 400: told 400"),
        ([404], 1, "HTTP 404: told 404"),
        ([500] * 9, 4, "no answer in 4 tries; the last one: HTTP 500: told 500"),
        (["json"] * 9, 4, "JSONDecodeError"),
        (["empty"] * 9, 4, "an answer without choices"),
    ],
)
def test_trouble_that_stays_is_the_row_s_error(script: list[Any], tries: int, complaint: str, server: Server) -> None:
    server.script = script
    with pytest.raises(RowError) as failure:
        endpoint(server).ask([])
    assert failure.value.code == "endpoint_failed"
    assert complaint in failure.value.message
    assert len(server.asked) == tries


def test_a_failed_row_costs_its_neighbours_nothing(server: Server) -> None:
    server.script = [400]
    samples = [Sample(i, encoded(i), {}) for i in range(3)]
    samples.insert(1, Sample(9, b"GIF89a", {}))
    rows = captioner(server)(samples)
    failures = [row.code if isinstance(row, RowError) else None for row in rows]
    assert sorted(map(str, failures)) == ["None", "None", "endpoint_failed", "truncated"]
    assert failures[1] == "truncated"
    assert len(server.asked) == 3


def test_as_many_requests_are_in_flight_as_were_asked_for(server: Server) -> None:
    server.hold = 5
    captioner(server, requests=5, timeout_s=20.0)([Sample(i, encoded(i), {}) for i in range(12)])
    assert server.most == 5


def test_a_connection_is_used_again_until_the_server_closes_it(server: Server) -> None:
    reached = endpoint(server)
    server.script = ["ok", 500, "leave", "ok", "cut"]
    replies = [reached.ask([]) for _ in range(5)]
    assert [reply.tries for reply in replies] == [1, 2, 1, 2, 1]
    assert server.connections == 3  # the first, one after the server left, one after the answer that was cut


def test_a_proxy_of_the_environment_is_asked_for_the_whole_address(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("no_proxy", "")
    assert Endpoint("http://model.invalid:8000/v1", "m", requests=1).ask([]).text == "seen 1"
    assert server.paths == ["http://model.invalid:8000/v1/models", "http://model.invalid:8000/v1/chat/completions"]


def test_a_plan_counts_an_endpoint_s_answers_as_time_and_not_as_processors(
    server: Server, captioned: Callable[..., Recipe]
) -> None:
    keys = {"engine": "openai", "endpoint": server.url, "model": "tiny", "attempts": 0}
    prepared = pipeline.prepare(captioned([None] * 4, caption=keys))
    found = planner.predict(prepared, 4, workers=2, known={"caption": 900.0})
    assert (found.gpus, found.gpu_hours) == (0, 0.0)
    assert found.cpu_hours < 0.1
    assert found.seconds == pytest.approx(found.start_s + 3600)


@pytest.mark.parametrize("kind", ["inline", "ray"])
def test_requests_of_several_ranges_are_in_flight_together(
    kind: str, server: Server, captioned: Callable[..., Recipe], quiet: Callable[[], Display],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if kind == "ray":
        request.getfixturevalue("ray_cluster")
    keys = {"engine": "openai", "endpoint": server.url, "model": "tiny", "requests": 6, "attempts": 0}
    recipe = captioned([None] * 12, caption=keys, engine={"kind": kind, "range_rows": 2, "workers": 1})
    server.hold = 6  # more than a range has
    assert pipeline.run(recipe, display=quiet()) == 0
    assert server.most == 6
    assert Store(recipe.store.uri).rows("SELECT count(caption_en) FROM samples") == [(12,)]


def test_a_wrong_address_or_key_stops_before_any_row(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EndpointError, match="nobody answers there"):
        Endpoint("http://127.0.0.1:9/v1", "m", timeout_s=1)
    with pytest.raises(EndpointError, match="give an http"):
        Endpoint("ftp://host/v1", "m")
    monkeypatch.setenv("CURATE_API_KEY", "secret-of-mine")
    server.script = [401]
    with pytest.raises(EndpointError, match="set CURATE_API_KEY") as refusal:
        endpoint(server)
    assert "secret-of-mine" not in str(refusal.value)
    assert server.keys == ["Bearer secret-of-mine"]


def test_an_endpoint_translates_whole_captions_with_the_glossary(server: Server) -> None:
    server.script = ["ok", "long", 400]
    model = EndpointModel(endpoint(server))
    assert model.translate([Piece("A gate.", {"gate": "门"})], "en", "zh") == [Written("seen 1")]
    assert "gate 翻译成 门" in server.asked[0]["messages"][0]["content"]
    assert model.translate([Piece("A long one.")], "en", "zh") == [Written(("word " * 9).strip(), cut=True)]
    (failure,) = model.translate([Piece("A gate.")], "en", "zh")
    assert isinstance(failure, RowError)


def test_a_key_never_follows_a_redirect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_API_KEY", "secret-of-mine")
    with serving(Server()) as other:
        server.script = [302]
        server.location = f"{other.url}/models"
        with pytest.raises(EndpointError, match=r"it redirects to .*/v1/models.* name the right address"):
            endpoint(server)
        reached = endpoint(server)
        server.script = [302]
        with pytest.raises(RowError, match="HTTP 302"):
            reached.ask([])
        assert (other.keys, other.asked) == ([], [])


@pytest.mark.parametrize(
    ("kind", "text", "tokens"),
    [
        ("usage", "seen 1", None),
        ("usages", "seen 1", None),
        ("parts", "a gate", None),
        ("surrogate", "a \ufffd gate", None),
        ("pair", "a \U0001f600 gate", None),
    ],
)
def test_an_answer_of_an_odd_kind_is_read_as_far_as_it_makes_sense(
    kind: str, text: str, tokens: int | None, server: Server
) -> None:
    server.script = [kind]
    reply = endpoint(server).ask([])
    assert (reply.text, reply.tokens_in) == (text, tokens)


def test_a_recipe_without_an_address_is_refused() -> None:
    tables = {"input": {"uri": "a"}, "store": {"uri": "b"}, "caption": {"engine": "openai"}}
    with pytest.raises(UsageError, match=r"needs caption\.endpoint .* and caption\.model"):
        from_tables(tables)


def test_a_run_captions_and_translates_by_endpoints_and_ends_when_one_row_cannot_be_said(
    server: Server, captioned: Callable[..., Recipe], quiet: Callable[[], Display]
) -> None:
    english, chinese = "A red gate stands open between two stone lions.", "一座红色的大门在两只石狮子之间敞开着。"
    keys = {"engine": "openai", "endpoint": server.url, "model": "tiny", "requests": 1, "retries": 0}
    recipe = captioned(
        ["a", "b", "c"], caption={**keys, "attempts": 0}, translate={**keys, "glossary": ""},
        quality={"engine": "rules"},
    )  # fmt: skip
    server.script = ["say:寺庙的红门开着。", f"say:{english}", "surrogate", f"say:{english}"]
    server.script += [f"say:{chinese}", "long"]  # what stands twice is translated once
    assert pipeline.run(recipe, display=quiet()) == 0
    store = Store(recipe.store.uri)
    assert store.rows("SELECT caption_en, caption_en_reason FROM samples ORDER BY 1") == [
        (english, None), (english, None), ("a \ufffd gate", "sentinel"),
    ]  # fmt: skip
    translated = store.rows("SELECT DISTINCT caption_zh, translate_cut FROM samples ORDER BY 1")
    assert translated == [(("word " * 9).strip(), True), (chinese, False)]
    assert store.rows("SELECT count(*) FROM samples WHERE translate_cut AND caption_zh_reason IS NULL") == [(0,)]


def test_a_run_captions_by_an_endpoint_and_records_failures_as_rows(
    server: Server, recipe: Recipe, finished_store: Path
) -> None:
    server.script = [400]
    caption = dataclasses.replace(
        recipe.caption, engine="openai", endpoint=server.url, model="tiny", requests=2, prompt="short.v1"
    )
    changed = dataclasses.replace(
        recipe, caption=caption, translate=dataclasses.replace(recipe.translate, engine="none")
    )
    before = Store(finished_store).rows("SELECT count(*) FROM samples WHERE keep")[0][0]
    assert pipeline.run(changed, display=Display(Console(file=io.StringIO()))) == 0
    store = Store(finished_store)
    assert store.rows("SELECT count(*) FROM errors WHERE error = 'endpoint_failed' AND operator = 'caption'") == [(1,)]
    assert store.rows("SELECT count(caption_en) FROM samples WHERE caption_engine = 'openai'") == [(before - 1,)]
