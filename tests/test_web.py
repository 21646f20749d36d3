"""The explore pages: the same rows as SQL gives, no way around the sandbox, and no traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvicorn
from PIL import Image
from small_store import BLURRED, EMPTY, KEPT, MARKUP, SCRIPT, SMALL, SVG, TINY, TRUNCATED, UNKNOWN, make_store, picture

from curate.errors import UsageError
from curate.store import Store
from curate.web import make_app, whatif
from curate.web.access import access
from curate.web.gallery import PAGE_ROWS
from curate.web.reader import Reader

ROWS = TINY + 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    """A client of a real server in this process."""
    app = make_app(Store(folder))
    app.add_api_route("/broken", access("public")(lambda: 1 / 0))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # A test may come to the connection later than uvicorn's 5 s: it would be closed under the request.
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_keep_alive=600))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def row(number: int) -> str:
    return f"demo-00000:{number}"


def shown(client: httpx.Client, url: str, status: int = 200) -> list[str]:
    """Row ids of the cards, in order."""
    answer = client.get(url)
    assert answer.status_code == status, answer.text
    return [
        link.replace("%3A", ":") for link in re.findall(r'<a href="/row/([^"]+)">\s*<span class="frame">', answer.text)
    ]


def problem(client: httpx.Client, url: str) -> str:
    answer = client.get(url)
    assert answer.status_code == 400
    return html.unescape(re.findall(r'class="problem"[^>]*>([^<]*)<', answer.text)[0])


# the gallery


def test_the_pages_of_the_gallery_show_every_row_once(client: httpx.Client) -> None:
    first, second = shown(client, "/"), shown(client, "/?page=2")
    assert len(first) == PAGE_ROWS
    assert first + second == [row(i) for i in range(ROWS)]
    assert shown(client, "/?page=3") == []


@pytest.mark.parametrize(
    ("show", "numbers"),
    [
        ("kept", [KEPT, MARKUP]),
        ("drop:sharp", [BLURRED]),
        ("drop:quality_null", [UNKNOWN]),
        ("failed", [EMPTY, TRUNCATED, SVG]),
        ("error:truncated", [TRUNCATED]),
        ("undecided", []),
        ("drop:' OR 1=1 --", []),
    ],
)
def test_rows_are_shown_by_outcome(client: httpx.Client, show: str, numbers: list[int]) -> None:
    assert shown(client, str(httpx.URL("/", params={"show": show}))) == [row(i) for i in numbers]


def test_counts_are_those_of_the_store(client: httpx.Client, folder: Path) -> None:
    text = client.get("/").text
    counts = dict(re.findall(r'class="chip (?:kept|dropped|failed|all)"[^>]*>(\w+) <b>([\d,]+)</b>', text))
    expected = Store(folder).counts()
    assert counts["all"] == str(expected["rows"])
    assert {k: int(v) for k, v in counts.items() if k != "all"} == {
        k: expected[k] for k in ("kept", "dropped", "failed")
    }


def test_rows_are_sorted_by_a_score_and_nulls_come_last(client: httpx.Client, folder: Path) -> None:
    for order in ("desc", "asc"):
        ids = shown(client, f"/?sort=sharpness_tile&order={order}&where=row+<+8")
        known = Store(folder).rows(
            f"SELECT row_id FROM samples WHERE row < 8 ORDER BY sharpness_tile {order} NULLS LAST, shard, row"
        )
        assert ids == [row_id for (row_id,) in known]


def test_ties_keep_the_order_of_rows(client: httpx.Client) -> None:
    assert shown(client, "/?sort=width&order=asc&where=width=16") == [row(i) for i in range(8, 8 + PAGE_ROWS)]


def test_a_condition_narrows_rows_and_counts(client: httpx.Client) -> None:
    url = "/?where=width+>%3D+300+AND+caption_zh+IS+NOT+NULL"
    assert shown(client, url) == [row(KEPT), row(MARKUP)]
    assert re.search(r"all <b>2</b>", client.get(url).text)


def test_a_condition_may_ask_other_tables_of_the_index(client: httpx.Client) -> None:
    where = "row_id IN (SELECT row_id FROM errors WHERE operator = 'size')"
    assert row(TRUNCATED) in shown(client, str(httpx.URL("/", params={"where": where})))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("widht > 3", '"width"'),
        ("width", "must be true or false"),
        ("width > 3; DROP VIEW samples", "not SQL"),
        ("1=1) OR (1=1", "not SQL"),
        ("true FROM wide", "not one condition"),
        ("true, false", "not one condition"),
        ("count(*) > 1", "aggregates"),
        ("(SELECT count(*) FROM read_text('/etc/passwd')) > 0", "Permission Error"),
        ("(SELECT count(*) FROM '/etc/passwd') > 0", "Error"),
        ("x" * 2001, "2,000 are possible"),
    ],
)
def test_a_condition_that_is_none_is_said_beside_the_field(client: httpx.Client, where: str, says: str) -> None:
    url = str(httpx.URL("/", params={"where": where}))
    assert says in problem(client, url)
    assert shown(client, url, 400) == []


@pytest.mark.parametrize(
    "query", ["page=0", "page=x", "page=-1", "sort=colors", "sort=nothing", "order=up", "show=kpet"]
)
def test_a_view_that_there_is_not_is_a_clear_page(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[2] in answer.text


# what if


def outcome(client: httpx.Client, **query: str) -> dict[str, tuple[int, int]]:
    """Rows of the table: name -> (now, then)."""
    answer = client.get("/what-if", params=query)
    assert answer.status_code == 200, answer.text
    text = answer.text
    table = text[text.index('class="outcome"') : text.index("</table>")]
    lines = re.findall(r'<th scope="row">(?:<a[^>]*>)?([^<]+)<.*?<td>([\d,]+)</td><td>([\d,]+)</td>', table, re.DOTALL)
    return {name: (int(now), int(then)) for name, now, then in lines}


def test_an_unchanged_policy_changes_nothing(client: httpx.Client, folder: Path) -> None:
    table = outcome(client)
    assert all(now == then for now, then in table.values())
    counts = Store(folder).counts()
    assert (table["kept"][0], table["failed"][0]) == (counts["kept"], counts["failed"])
    assert sum(now for now, _ in table.values()) == counts["rows"]


def test_a_stricter_threshold_moves_rows_and_stores_nothing(client: httpx.Client, folder: Path) -> None:
    before = (folder / "captions.duckdb").read_bytes()
    table = outcome(client, **{"n.sharp.0": "1e9"})
    assert table["kept"] == (2, 0)
    assert table["sharp"] == (1, 3)
    assert sum(then for _, then in table.values()) == ROWS
    assert (folder / "captions.duckdb").read_bytes() == before


def test_rows_that_were_never_captioned_but_pass_now_are_kept_by_a_policy_that_reads_no_caption(
    client: httpx.Client,
) -> None:
    table = outcome(client, **{"n.resolution.0": "100"})
    assert table["kept"] == (2, 3)
    assert table["resolution"] == (TINY + 1, TINY)


def test_rows_whose_scores_are_not_there_yet_need_scoring(client: httpx.Client) -> None:
    table = outcome(client, **{"n.resolution.0": "100", "p.sharp": "length(caption_en) > 0"})
    # The blurred and the small one have never been captioned.
    assert table["needs scoring"] == (0, 2)
    assert table["kept"] == (2, 2)


def test_a_predicate_can_be_left_out(client: httpx.Client) -> None:
    assert outcome(client, **{"off.sharp": "on"})["kept"] == (2, 3)


def test_a_negative_number_does_not_become_a_comment(client: httpx.Client) -> None:
    table = outcome(client, **{"n.quality.0": "-2"})  # quality > -5 becomes quality > -(-2)
    assert table["kept"] == (2, 1)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"n.sharp.0": "60 OR 1=1"}, "is not a number"),
        ({"p.sharp": "sharpnes > 3"}, "sharp: "),
        ({"p.sharp": "row_id IN (SELECT row_id FROM errors)"}, "subqueries"),
        ({"p.sharp": "random() > 0.5"}, "random"),
        ({"p.sharp": "sharpness; SELECT 1"}, "not one condition"),
    ],
)
def test_a_change_that_is_none_is_said(client: httpx.Client, query: dict[str, str], says: str) -> None:
    assert says in problem(client, str(httpx.URL("/what-if", params=query)))


def test_the_strip_at_the_cut_has_the_nearest_rows_on_both_sides(client: httpx.Client, folder: Path) -> None:
    text = client.get("/what-if", params={"cut": "sharp"}).text
    below = text[text.index("nearest last") : text.index("nearest first")]
    above = text[text.index("nearest first") :]
    assert re.findall(r"/row/demo-00000%3A(\d+)", below) == [str(BLURRED)]
    store = Store(folder)
    known = store.rows("SELECT row FROM samples WHERE keep ORDER BY sharpness_tile")
    assert re.findall(r"/row/demo-00000%3A(\d+)", above) == [str(number) for (number,) in known]


@pytest.mark.parametrize(
    ("sql", "cut"),
    [
        ("sharpness_tile >= 60", ("sharpness_tile", ">=", 60.0)),
        ("least(width, height) >= 256", ("least(width, height)", ">=", 256.0)),
        ("a < 0.8 AND b < 0.8", None),
        ("aspect BETWEEN 0.33 AND 3", None),
        ("name = 'x > 3'", None),
        ("NOT a > 3", None),
    ],
)
def test_only_a_predicate_with_one_threshold_has_a_cut(sql: str, cut: tuple[str, str, float] | None) -> None:
    assert whatif.cuttable(sql) == cut


def test_the_histogram_counts_every_row_that_reaches_the_predicate(folder: Path) -> None:
    reader = Reader(Store(folder))
    with reader.open() as store:
        policy = [(p["name"], p["sql"]) for p in reader.record(store)["predicates"]]
        cut = whatif.judge(reader, store, whatif.fields(policy, {"n.sharp.0": "90"}), "").cut
        assert cut
        assert (cut.name, cut.threshold, cut.before) == ("sharp", 90.0, 60.0)
        reached = store.rows(
            "SELECT count(*) FROM samples WHERE error IS NULL AND width >= 256 AND quality IS NOT NULL"
        )
    assert [(sum(n for _, n in cut.bins),)] == reached
    assert (cut.at(cut.low), cut.at(cut.high)) == (0.0, 1.0)
    assert 0 < cut.at(60) < cut.at(90) < 1
    decades = dataclasses.replace(cut, low=1.0, high=10000.0, logarithmic=True)
    assert decades.at(100.0) == pytest.approx(0.5)
    reader.close()


def test_numbers_in_names_and_in_text_are_not_thresholds() -> None:
    numbers = [text for text, i in whatif.pieces("c3 > 1.5e3 AND b2b < 7") if i is not None]
    assert numbers == ["1.5e3", "7"]
    assert whatif.pieces("name <> '3'") == (("name <> '3'", None),)


# one row


def test_the_page_of_a_row_shows_why_and_both_captions(client: httpx.Client, folder: Path) -> None:
    text = html.unescape(client.get(f"/row/{row(KEPT)}").text)
    captions = Store(folder).rows(f"SELECT caption_en, caption_zh FROM samples WHERE row_id = '{row(KEPT)}'")[0]
    assert all(caption in text for caption in captions)
    assert 'lang="zh-Hans"' in text
    dropped = html.unescape(client.get(f"/row/{row(BLURRED)}").text)
    assert "Dropped by sharp: sharpness_tile >= 60" in dropped
    assert dropped.count("this one decided") == 1
    assert f'rel="prev" href="/row/demo-00000%3A{BLURRED - 1}"' in dropped
    assert f'rel="next" href="/row/demo-00000%3A{BLURRED + 1}"' in dropped


def test_a_row_that_failed_shows_its_error_and_no_picture(client: httpx.Client) -> None:
    text = client.get(f"/row/{row(TRUNCATED)}").text
    assert "truncated" in text
    assert "<img" not in text


@pytest.mark.parametrize("row_id", ["demo-00000:999", "demo-00001:1", "x", "demo-00000:-1", "..%2f..%2fetc%2fpasswd"])
def test_a_row_that_is_not_there_is_404_and_a_page(client: httpx.Client, row_id: str) -> None:
    answer = client.get(f"/row/{row_id}")
    assert answer.status_code == 404
    assert "<h1>Not Found</h1>" in answer.text


def test_captions_cannot_become_markup(client: httpx.Client) -> None:
    for url in ("/", f"/row/{row(MARKUP)}", "/?show=kept", "/what-if", "/?where=%3Cscript%3Ealert(1)%3C/script%3E"):
        text = client.get(url).text
        assert "<script>" not in text
        assert SCRIPT not in text


# pictures


def test_an_original_goes_out_byte_for_byte_under_a_fixed_type(client: httpx.Client) -> None:
    answer = client.get(f"/image/{row(KEPT)}")
    assert answer.content == picture(320, 300, 1)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_a_thumbnail_is_a_small_jpeg(client: httpx.Client) -> None:
    answer = client.get(f"/thumb/{row(SMALL)}")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (200, 180)


@pytest.mark.parametrize("kind", ["thumb", "preview", "image"])
@pytest.mark.parametrize("number", [SVG, EMPTY, 999])
def test_what_is_no_picture_never_goes_out(client: httpx.Client, kind: str, number: int) -> None:
    answer = client.get(f"/{kind}/{row(number)}")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"<svg" not in answer.content


# safety


def test_every_answer_has_the_security_headers(client: httpx.Client) -> None:
    for url in (
        "/",
        "/what-if",
        f"/row/{row(0)}",
        "/nothing",
        f"/thumb/{row(0)}",
        "/static/keys.js",
        "/broken",
        "/report",
    ):
        headers = client.get(url).headers
        assert headers["x-content-type-options"] == "nosniff", url
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, url
        assert "unsafe" not in policy, url
        assert "access-control-allow-origin" not in headers, url


def test_pages_need_no_inline_script_or_style(client: httpx.Client) -> None:
    for url in ("/", "/what-if?n.sharp.0=10", f"/row/{row(0)}", "/nothing"):
        text = client.get(url).text
        assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|javascript:", text) == [], url
        assert re.findall(r'(?:src|href)="(?:https?:)?//', text) == [], url


def test_a_foreign_name_is_refused(client: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        answer = client.get("/", headers={"host": host})
        assert answer.status_code == 421
        assert "demo-00000" not in answer.text
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/", headers={"host": host}).status_code == 200


def test_nothing_can_be_posted(client: httpx.Client) -> None:
    for url in ("/", "/what-if", f"/row/{row(0)}", "/report"):
        assert client.post(url, data={"a": "b"}).status_code == 405


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/docs", "/openapi.json"]
)
def test_no_other_file_goes_out(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_bug_is_a_page_and_no_traceback(client: httpx.Client) -> None:
    answer = client.get("/broken")
    assert answer.status_code == 500
    assert "Traceback" not in answer.text
    assert "ZeroDivisionError" not in answer.text


def test_the_report_goes_out_as_it_is_once_there_is_one(client: httpx.Client, folder: Path) -> None:
    assert client.get("/report").status_code == 404
    assert "/report" not in client.get("/").text
    (folder / "report.html").write_bytes(b"<!doctype html><p>r\xc3\xa9sum\xc3\xa9</p>")
    try:
        assert client.get("/report").content == (folder / "report.html").read_bytes()
        assert 'href="/report"' in client.get("/").text
    finally:
        (folder / "report.html").unlink()


# many readers, and an index that is replaced


def test_many_requests_at_once_all_get_their_own_rows(client: httpx.Client) -> None:
    def ask(number: int) -> tuple[list[str], int]:
        return shown(client, f"/?where=row+%3D+{number}"), client.get(f"/thumb/{row(number)}").status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [number % TINY + 8 for number in range(40)]))
    assert answers == [([row(number % TINY + 8)], 200) for number in range(40)]


def test_a_snapshot_outlives_the_index_that_it_reads(tmp_path: Path) -> None:
    reader = Reader(Store(make_store(tmp_path)))
    with reader.open() as old:
        assert old.rows("SELECT count(*) FROM samples") == [(ROWS,)]
        Store(tmp_path / "store").rebuild()
        with reader.open() as new:
            assert new.generation != old.generation
            assert new.rows("SELECT count(*) FROM samples") == [(ROWS,)]
        assert old.rows("SELECT count(*) FROM samples") == [(ROWS,)]
    reader.close()


def test_a_query_of_a_page_is_interrupted_and_the_next_one_answers(folder: Path) -> None:
    reader = Reader(Store(folder))
    with reader.open() as store:
        timer = threading.Timer(0.2, store.cursor.interrupt)
        timer.start()
        with pytest.raises(Exception, match="longer than"):
            store.table("SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range * b.range % 7 = 3")
        timer.join()
        assert store.table("SELECT 1 AS one") == [{"one": 1}]
    reader.close()


def test_a_condition_is_one_line_of_the_users(folder: Path) -> None:
    reader = Reader(Store(folder))
    with reader.open() as store, pytest.raises(UsageError):
        store.condition("width >")
    with reader.open() as store:
        assert store.table(
            f"SELECT count(*) AS n FROM samples WHERE {store.condition('row < 3 -- three')} AND TRUE"
        ) == [{"n": 3}]
    reader.close()


@contextlib.contextmanager
def served(store: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "curate.cli", "serve", str(store), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        try:
            assert found, process.stderr.read() if process.stderr else line
            yield found.group(), process
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_the_real_server_follows_the_index_and_ends_on_a_signal(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with served(store) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=address, timeout=30) as http:
            assert "all <b>58</b>" in http.get("/").text
            before = (store / "captions.duckdb").stat().st_ino
            Store(store).rebuild()
            assert (store / "captions.duckdb").stat().st_ino != before
            assert "all <b>58</b>" in http.get("/?show=kept").text
            assert http.get(f"/row/{row(BLURRED)}").status_code == 200
            assert http.get(f"/thumb/{row(KEPT)}").headers["content-type"] == "image/jpeg"
            assert http.get("/", headers={"host": "evil.example"}).status_code == 421
    assert process.returncode in (0, -15)


def test_a_busy_port_is_one_clear_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "curate.cli", "serve", str(folder), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"curate: cannot serve at 127.0.0.1:{port}: Address already in use; "
        "choose another port with --port (0 takes a free one)\n"
    )


def test_at_another_address_everything_asks_for_a_login_and_plain_http_is_warned_of(folder: Path) -> None:
    with served(folder, "--host", "0.0.0.0") as (address, process):
        assert process.stderr
        warning = process.stderr.readline()
        port = address.rpartition(":")[2]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            answer = http.get("/")
            assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/")
            assert http.get(f"/thumb/{row(KEPT)}").status_code == 401
    assert "in the clear" in warning
