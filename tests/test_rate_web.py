"""Who may do what: every route, every role; forgery, injection, traversal and the shapes of known CVEs."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import given
from rate_server import PASSWORD, Browser, serving, with_campaign, with_people
from small_ledger import Clock
from small_store import KEPT, SCRIPT, make_store

from curate import web
from curate.rate import queue, users
from curate.rate.ledger import Ledger
from curate.store import Store
from curate.web import make_app
from curate.web.access import LEVELS, level_of, local_path
from curate.web.rating import page_json
from curate.web.words import catalog, translated

ROLES = {"rita": "rater", "otto": "rater", "lea": "lead", "ada": "admin"}


class Service:
    """A store with accounts and two campaigns, and a server over it in this process, whose clock a test can turn."""

    def __init__(self, store: Path) -> None:
        with_people(store, **ROLES)
        self.campaign = with_campaign(store, name="open", gold_every=0)
        self.closed_to_otto = with_campaign(store, name="closed club", raters=("rita",))
        self.store = store
        self.clock = Clock()
        self.ledger = Ledger(store / "ratings.sqlite", self.clock)
        self.app = make_app(Store(store), ledger=self.ledger)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="critical", timeout_keep_alive=600))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})
        self.thread.start()
        self._browsers: dict[str, Browser] = {}

    def browser(self, name: str) -> Browser:
        """The browser of a person who is signed in; of nobody for `nobody`."""
        if name not in self._browsers:
            self._browsers[name] = Browser(self.address)
            if name != "nobody":
                assert self._browsers[name].sign_in(name).status_code == 303
        return self._browsers[name]

    def lease(self, name: str, campaign_id: int | None = None) -> int:
        """A lease of the person."""
        wish = {"want": 1, "have": []}
        answer = self.browser(name).post(f"/api/campaigns/{campaign_id or self.campaign}/tasks", json=wish)
        return int(answer.json()["tasks"][0]["lease"])

    def answer(self, name: str, campaign_id: int | None = None, **answer: Any) -> httpx.Response:
        """Send one answer."""
        body = {"answers": [{"key": "key-0123456789", "kind": "vote"} | answer]}
        return self.browser(name).post(f"/api/campaigns/{campaign_id or self.campaign}/answers", json=body)

    def close(self) -> None:
        for browser in self._browsers.values():
            browser.close()
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(make_store(tmp_path_factory.mktemp("rate")))
    yield made
    made.close()


# every route


def routes(app: FastAPI) -> list[APIRoute]:
    return [route for route in app.routes if isinstance(route, APIRoute)]


def concrete(service: Service, path: str) -> str:
    row = f"demo-00000:{KEPT}"
    values = {
        "campaign_id": str(service.campaign), "row_id": row, "key": "nothing-like-a-key", "lease_id": "1",
        "item_id": "1", "what": "votes", "kind": "csv", "name": "nothing",
    }  # fmt: skip
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], path)


def test_every_route_says_whom_it_is_for(service: Service) -> None:
    assert [r.path for r in routes(service.app) if level_of(r.endpoint) not in LEVELS] == []
    public = {r.path for r in routes(service.app) if level_of(r.endpoint) == "public"}
    assert public == {"/login", "/invitation/{key}", "/language", "/favicon.ico", "/healthz", "/readyz", "/metrics"}


def test_every_route_keeps_out_everybody_below_its_role(service: Service) -> None:
    order = {"public": 0, "rater": 1, "person": 1, "explore": 2, "lead": 2, "admin": 3}
    people = {"nobody": 0, "rita": 1, "lea": 2, "ada": 3}
    walked = 0
    for route in routes(service.app):
        level = str(level_of(route.endpoint))
        url = concrete(service, route.path)
        for method in sorted(route.methods - {"HEAD"}):
            for name, rank in people.items():
                if rank >= order[level] or url == "/logout":
                    continue
                answer = service.browser(name).request(method, url)
                refused = answer.status_code in (401, 403) or (
                    answer.status_code == 303 and answer.headers["location"].startswith("/login")
                )
                assert refused, f"{method} {url} let {name} in: {answer.status_code}"
                walked += 1
    assert walked > 50


def test_a_route_without_a_level_is_closed_to_all(service: Service) -> None:
    service.app.add_api_route("/forgotten", lambda: "secret")
    assert service.browser("ada").get("/forgotten").status_code == 403


def test_who_is_let_in_gets_no_error_of_the_server(service: Service) -> None:
    for route in routes(service.app):
        if "GET" in route.methods and route.path != "/forgotten":
            answer = service.browser("ada").get(concrete(service, route.path))
            assert answer.status_code < 500, f"{route.path}: {answer.text[:200]}"


# forgery


def test_a_change_needs_our_origin_and_the_token_of_the_session(service: Service) -> None:
    browser = service.browser("rita")
    url, body = f"/api/campaigns/{service.campaign}/tasks", {"want": 0, "have": []}
    assert browser.post(url, json=body).status_code == 200
    for origin in ("https://evil.example", "null", f"{service.address}.evil.example", ""):
        assert browser.post(url, json=body, headers={"origin": origin}).status_code == 403
    bare = httpx.Client(base_url=service.address, cookies=browser.cookies)
    token = browser.headers["x-csrf-token"]
    assert bare.post(url, json=body, headers={"x-csrf-token": token}).status_code == 403, "no origin at all"
    same = {"sec-fetch-site": "same-origin", "x-csrf-token": token}
    assert bare.post(url, json=body, headers=same).status_code == 200
    other = service.browser("otto").headers["x-csrf-token"]
    for wrong in ("", other, token[:-1]):
        assert browser.post(url, json=body, headers={"x-csrf-token": wrong}).status_code == 403
    bare.close()


def test_a_login_cannot_be_forged_from_elsewhere(service: Service) -> None:
    with httpx.Client(base_url=service.address, headers={"origin": "https://evil.example"}) as evil:
        assert evil.post("/login", data={"name": "rita", "password": PASSWORD}).status_code == 403


def test_no_page_may_be_read_or_framed_from_elsewhere(service: Service) -> None:
    answer = service.browser("ada").get("/lead", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    for word in ("unsafe-inline", "unsafe-eval", "*"):
        assert word not in answer.headers["content-security-policy"]
    options = service.browser("ada").options("/lead", headers={"access-control-request-method": "POST"})
    assert options.status_code in (403, 405)


# sessions and passwords


def test_sessions_are_opaque_http_only_and_end(service: Service) -> None:
    with Browser(service.address) as browser:
        answer = browser.sign_in("otto")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        key = browser.cookies["curate-session"]
        held = {row[0] for row in service.ledger.read().execute("SELECT hash FROM sessions")}
        assert key not in held
        assert users.digest(key) in held
        assert browser.get("/rate").status_code == 200
        service.clock.minutes(users.IDLE_MS / 60_000 + 1)
        assert browser.get("/api/me").status_code == 401
        service.clock.minutes(-users.IDLE_MS / 60_000 - 1)
        assert browser.post("/logout", data={}).status_code == 303
        assert browser.get("/api/me").status_code == 401


def test_a_session_that_was_planted_is_replaced_at_login(service: Service) -> None:
    with Browser(service.address) as browser:
        browser.sign_in("otto")
        planted = browser.cookies["curate-session"]
        browser.sign_in("lea")
        assert browser.cookies["curate-session"] != planted
        assert users.person(service.ledger.read(), planted, service.clock()) is None


def test_behind_tls_the_cookie_is_secure_and_bound_to_the_host(service: Service) -> None:
    app = make_app(
        Store(service.store), hosts=("rate.example.org",),
        ledger=Ledger(service.store / "ratings.sqlite", service.clock),
        loopback=False, public_url="https://rate.example.org",
    )  # fmt: skip
    transport = httpx.ASGITransport(app)

    async def visit() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://rate.example.org") as client:
            assert (
                await client.post("/login", data={}, headers={"origin": "http://rate.example.org"})
            ).status_code == 403
            return await client.post(
                "/login", data={"name": "otto", "password": PASSWORD}, headers={"origin": "https://rate.example.org"}
            )

    import anyio

    answer = anyio.run(visit)
    assert answer.headers["set-cookie"].startswith("__Host-curate-session=")
    assert "Secure" in answer.headers["set-cookie"]
    assert answer.headers["strict-transport-security"]
    app.state.desk.ledger.close()


def test_guessing_is_slowed_for_the_name_and_for_the_address(service: Service) -> None:
    with Browser(service.address) as browser:
        for _ in range(users.MOST_FAILURES["name"]):
            assert browser.sign_in("rita", "wrong password").status_code == 401
        assert browser.sign_in("rita").status_code == 429, "even the right password waits"
        assert browser.sign_in("otto").status_code == 303
        left = [("address:127.0.0.1", service.clock())] * users.MOST_FAILURES["address"]
        service.ledger.write(lambda db: db.executemany("INSERT INTO failures VALUES (?, ?)", left).rowcount)
        assert browser.sign_in("otto").status_code == 429
        service.clock.minutes(16)
        assert browser.sign_in("otto").status_code == 303


def test_a_wrong_name_and_a_wrong_password_read_the_same(service: Service) -> None:
    service.clock.minutes(16)
    with Browser(service.address) as browser:
        answers = [browser.post("/login", data={"name": name, "password": "no"}).text for name in ("otto", "ghost")]
    assert answers[0].replace("otto", "") == answers[1].replace("ghost", "")


def test_an_invitation_works_once_and_chooses_a_good_password(service: Service) -> None:
    with Browser(service.address) as new:
        answer = service.browser("ada").post("/accounts", data={"act": "add", "name": "nina", "role": "rater"})
        link = re.findall(r"/invitation/[\w-]+", answer.text)[0]
        assert new.get(link).status_code == 200
        for bad in ("short", "nina", "aaaaaaaaaaaa", "nina" * 60):
            assert new.post(link, data={"password": bad, "again": bad}).status_code == 400
        assert new.post(link, data={"password": PASSWORD, "again": "another one"}).status_code == 400
        assert new.post(link, data={"password": PASSWORD, "again": PASSWORD}).status_code == 303
        assert new.get("/rate").status_code == 200
    with Browser(service.address) as late:
        assert late.post(link, data={"password": PASSWORD, "again": PASSWORD}).status_code == 410
    assert service.browser("ada").post("/accounts", data={"act": "disable", "name": "nina"}).status_code == 200
    with Browser(service.address) as new:
        assert new.sign_in("nina").status_code == 401


def test_the_last_admin_stays(service: Service) -> None:
    for act in ({"act": "disable"}, {"act": "role", "role": "rater"}):
        answer = service.browser("ada").post("/accounts", data={"name": "ada"} | act)
        assert answer.status_code == 400
        assert "last admin" in answer.text


def test_a_login_leads_to_our_own_pages_only() -> None:
    assert local_path("/rate/3?x=1") == "/rate/3?x=1"
    for bad in ("https://evil.example", "//evil.example", "/\\evil.example", "/a\\b", "javascript:alert(1)", "", "/\n"):
        assert local_path(bad) == "/"


# other people's things


def test_answers_go_through_the_persons_own_leases(service: Service) -> None:
    lease = service.lease("rita")
    stolen = service.answer("otto", lease=lease, tier=5, key="stolen-stolen")
    assert stolen.json()["results"][0]["status"] == "refused"
    assert service.answer("rita", lease=lease, tier=4, key="mine-mine-mine").json()["results"][0]["status"] == "stored"
    undo = service.answer("otto", kind="undo", undoes="mine-mine-mine", key="undo-of-otto")
    assert undo.json()["results"][0]["status"] == "refused", "CVE-2026-2109: undo of somebody else's vote"
    wrong = service.answer("rita", service.closed_to_otto, lease=lease, tier=4, key="other-campaign")
    assert wrong.json()["results"][0]["status"] == "refused", "a lease of another campaign"


def test_a_campaign_is_for_those_who_are_assigned(service: Service) -> None:
    theirs = service.closed_to_otto
    lease = service.lease("rita", theirs)
    otto = service.browser("otto")
    for answer in (
        otto.get(f"/rate/{theirs}"), otto.post(f"/api/campaigns/{theirs}/tasks", json={"want": 1, "have": []}),
        otto.get(f"/api/leases/{lease}/preview"), otto.get(f"/api/leases/{lease}/original"),
        otto.get(f"/api/campaigns/{theirs}/exemplars/1"), service.answer("otto", theirs, lease=lease, tier=1),
    ):  # fmt: skip
        assert answer.status_code == 404
    assert "closed club" not in otto.get("/rate").text
    assert "closed club" in service.browser("rita").get("/rate").text


def test_pictures_of_a_lease_come_with_a_fixed_type_and_nothing_runs(service: Service) -> None:
    lease = service.lease("rita")
    for what in ("preview", "original"):
        answer = service.browser("rita").get(f"/api/leases/{lease}/{what}")
        assert answer.headers["content-type"] in ("image/jpeg", "image/png")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"].startswith("private")
    assert service.browser("nobody").get(f"/api/leases/{lease}/preview").status_code == 401


@pytest.mark.parametrize(
    "bad", ["0", "-1", "1e3", "..%2f..%2fetc%2fpasswd", "%00", "1%20OR%201=1", "9" * 40, "\\\\host"]
)
def test_no_path_and_no_sql_in_the_place_of_a_number(service: Service, bad: str) -> None:
    for url in (f"/api/leases/{bad}/preview", f"/rate/{bad}", f"/api/campaigns/{bad}/exemplars/1"):
        assert service.browser("rita").get(url).status_code in (404, 422)


@pytest.mark.parametrize(
    "path", ["..%2fapp.py", "rate/..%2f..%2fapp.py", "%2e%2e/templates/base.html", "static-secret"]
)
def test_static_files_are_those_of_the_folder(service: Service, path: str) -> None:
    assert service.browser("nobody").get(f"/static/{path}").status_code == 404


# what people write


def test_settings_are_an_enumeration(service: Service) -> None:
    put = service.browser("rita").put
    assert put("/api/me/settings", json={"keys": {"tier1": "q"}}).status_code == 200
    for bad in (
        {"keys": {"tier1": "<img src=x onerror=alert(1)>"}}, {"keys": {"tier1": "1", "tier2": "1"}},
        {"keys": {"x": "1"}}, {"ground": "url(evil)"}, {"language": "de"}, {"role": "admin"},
        {"keys": {"tier1": "\u202e"}},
    ):  # fmt: skip
        answer = put("/api/me/settings", json=bad)
        assert answer.status_code == 422, "CVE-2026-22033: settings become markup"


@pytest.mark.parametrize(
    "name", [SCRIPT, '"><svg onload=alert(1)>', "{{7*7}}", "'; DROP TABLE users; --", "小\u202e名"]
)
def test_names_are_text_wherever_they_appear(service: Service, name: str) -> None:
    answer = service.browser("ada").post("/accounts", data={"act": "add", "name": name, "role": "rater"})
    if answer.status_code == 200:
        page = service.browser("ada").get("/accounts").text
        assert SCRIPT not in page
        assert "<svg onload" not in page
        assert "49" not in re.findall(r"<th scope=\"row\">(.*?)</th>", page)
    else:
        assert "printable" in answer.text


def test_json_in_a_page_cannot_end_its_element() -> None:
    text = page_json({"a": "</script><!--", "b": "\u2028&"})
    assert "<" not in text
    assert ">" not in text
    assert "&" not in text
    assert "\u2028" not in text


def test_hostile_captions_are_data(service: Service) -> None:
    found = []
    for _ in range(60):
        answer = service.browser("rita").post(
            f"/api/campaigns/{service.campaign}/tasks", json={"want": queue.MOST_LEASES, "have": []}
        )
        for task in answer.json()["tasks"]:
            found.append(task["captions"].get("raw"))
            service.answer("rita", lease=task["lease"], tier=3, key=f"sweep-{task['lease']:08}")
        if SCRIPT in found:
            break
    assert SCRIPT in found
    assert SCRIPT not in service.browser("rita").get(f"/rate/{service.campaign}").text


@pytest.mark.parametrize(
    "answer",
    [
        {"tier": 0}, {"tier": 6}, {"tier": "5; DROP"}, {"tier": None}, {"kind": "adjudicate"}, {"lease": -1},
        {"key": "short"}, {"key": "<script>aaaaaaaa"}, {"flags": ["a b"]}, {"flags": ["x"] * 99}, {"reason": "<b>"},
        {"kind": "skip"}, {"seen": {"shown": [-1, 2]}},
        {"seconds": -1}, {"seen": {"dpr": "NaN"}}, {"seen": {"evil": 1}}, {"user_id": 1}, {"lease": 10**30},
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_refused_and_not_stored(service: Service, answer: dict[str, Any]) -> None:
    count = "SELECT count(*) FROM events"
    before = service.ledger.read().execute(count).fetchone()[0]
    lease = {"lease": service.lease("ada")}
    found = service.answer("ada", **(lease | {"tier": 3} | answer))
    assert found.status_code == 422 or found.json()["results"][0]["status"] == "refused"
    assert service.ledger.read().execute(count).fetchone()[0] == before


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_none_does_not_get_into_the_events(service: Service, number: str) -> None:
    lease = service.lease("ada")
    body = (
        f'{{"answers": [{{"key": "nan-{number[:3]}-{lease}", "kind": "vote", "lease": {lease}, "tier": 3, '
        f'"seen": {{"shown": [{number}, 1]}}}}]}}'
    )
    answer = service.browser("ada").post(
        f"/api/campaigns/{service.campaign}/answers", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422


def test_nothing_that_the_api_describes_breaks_the_server(service: Service) -> None:
    # Requests are drawn from the OpenAPI description, valid ones and broken ones; none may give a 5xx.
    import schemathesis
    from hypothesis import HealthCheck, settings

    ada = service.browser("ada")
    headers = {name: ada.headers[name] for name in ("origin", "x-csrf-token")}
    headers["cookie"] = "; ".join(f"{name}={value}" for name, value in ada.cookies.items())
    described = schemathesis.openapi.from_dict(service.app.openapi())
    seen: dict[str, set[int]] = {}
    for result in described.get_all_operations():
        operation = result.ok()

        def ask(case: Any, label: str = operation.label) -> None:
            answer = case.call(base_url=service.address, headers=headers)
            seen.setdefault(label, set()).add(answer.status_code)
            assert answer.status_code < 500, case.as_curl_command()

        @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(
            case=operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        def run(case: Any) -> None:
            ask(case)

        run()
    assert len(seen) >= 12
    assert any(200 in found for found in seen.values())
    bad = service.ledger.read().execute("SELECT context FROM events WHERE NOT json_valid(context)").fetchall()
    assert bad == []


def test_a_large_body_is_refused_before_it_is_read(service: Service) -> None:
    answer = service.browser("rita").post("/api/campaigns/1/answers", content=b"x" * (2 << 20))
    assert answer.status_code == 413

    def drip() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    try:
        status = service.browser("rita").post("/api/campaigns/1/answers", content=drip()).status_code
    except httpx.HTTPError:
        status = 413  # the server closed the connection before the body was through
    assert status == 413


# operations


def test_health_readiness_and_metrics(service: Service) -> None:
    nobody = service.browser("nobody")
    assert nobody.get("/healthz").text == "ok\n"
    assert nobody.get("/readyz").text == "ready\n"
    assert nobody.get("/metrics").status_code == 401
    token = users.metrics_token(service.ledger.secret)
    answer = nobody.get("/metrics", headers={"authorization": f"Bearer {token}"})
    assert 'curate_campaign{campaign="open",what="images"}' in answer.text
    assert "rita" not in answer.text


def test_the_lead_sees_figures_and_undefined_ones_in_words(service: Service) -> None:
    lea = service.browser("lea")
    figures = lea.get(f"/api/campaigns/{service.closed_to_otto}/quality").json()
    assert figures["alpha"]["value"] is None
    assert figures["alpha"]["why"]
    page = lea.get(f"/lead/{service.campaign}").text
    assert "NaN" not in page
    assert lea.get(f"/api/campaigns/{service.campaign}/standing").json()["images"] == 55
    export = lea.get(f"/api/campaigns/{service.campaign}/export/events.csv")
    assert export.headers["content-disposition"].startswith("attachment")
    assert "rita" not in export.text


def test_adjudicating_and_marking_reach_images_of_the_campaign_only(service: Service) -> None:
    lea = service.browser("lea")
    other = service.ledger.read().execute(
        "SELECT id FROM items WHERE campaign_id = ? LIMIT 1", [service.closed_to_otto]
    ).fetchone()["id"]  # fmt: skip
    for url in ("disagreements", "images"):
        data = {"item": str(other), "tier": "5", "act": "gold"}
        assert lea.post(f"/lead/{service.campaign}/{url}", data=data).status_code == 404
    mine = service.ledger.read().execute(
        "SELECT id FROM items WHERE campaign_id = ? ORDER BY id LIMIT 1", [service.campaign]
    ).fetchone()["id"]  # fmt: skip
    assert lea.post(f"/lead/{service.campaign}/disagreements", data={"item": str(mine), "tier": "2"}).status_code == 303
    row = service.ledger.read().execute("SELECT tier, rule FROM items WHERE id = ?", [mine]).fetchone()
    assert row[:] == (2, "adjudicated")


def test_what_leads_and_admins_do_is_noted(service: Service) -> None:
    service.clock.minutes(16)  # whatever was guessed before
    with Browser(service.address) as stranger:
        assert stranger.sign_in("ghost", "wrong password").status_code == 401
    service.browser("ada").post("/accounts", data={"act": "add", "name": "noted", "role": "rater"})
    log = {row["action"] for row in service.ledger.read().execute("SELECT action FROM audit")}
    assert {"signed in", "login failed", "account added", "invited", "campaign created"} <= log


def test_both_languages_say_everything(service: Service) -> None:
    assert set(catalog("en")) == set(catalog("zh"))


SENTENCE = re.compile(r"""\btr\(\s*(["'])(.+?)\1""")


def test_what_pages_say_beside_the_catalog_is_known_in_chinese() -> None:
    folder = Path(web.__file__).parent / "templates"
    texts = {found[1] for path in folder.glob("*.html") for found in SENTENCE.findall(path.read_text("utf-8"))}
    whole = [text for text in texts if not text.endswith(" ") and not text.startswith((" ", "{:,}"))]
    assert len(whole) > 50
    unknown = [text for text in whole if translated("zh", text) == text and text not in ("NULL", "NULL'")]
    assert unknown == []
    for sentence in (
        "no variation: every rating is the same", "majority", "campaign changed", "near:sharpness:60", "Page 3 of 7",
        "votes = 99: must be 1 to 15", "There is nothing at /x.",
        "Dropped by sharp: sharpness_tile >= 60 is not true (sharpness_tile = 1.9).", "Page 1 of 1,234",
    ):  # fmt: skip
        assert re.search(r"[\u4e00-\u9fff]", translated("zh", sentence)), sentence
        assert translated("en", sentence) == sentence


def test_every_audited_action_is_known_in_chinese() -> None:
    folder = Path(web.__file__).parent.parent
    source = "".join(path.read_text("utf-8") for path in [*folder.glob("rate/*.py"), *folder.glob("web/*.py")])
    actions = set(re.findall(r'audit\((?:db|sql),[^"\n]*?"([a-z ]{5,})"', source))
    assert {"campaign changed", "account added", "exported"} <= actions
    assert [action for action in sorted(actions) if translated("zh", action) == action] == []


def test_answers_of_today_are_those_that_stand_in_the_time_of_the_rater(service: Service) -> None:
    service.browser("lea").post("/accounts", data={})  # nobody else rates as this person
    lease = service.lease("rita")

    def habit(offset: int = 0) -> dict[str, int]:
        return dict(service.browser("rita").get(f"/api/me/habit?utc_offset_min={offset}").json())

    before = habit()["today"]
    service.answer("rita", lease=lease, tier=3, key="habit-0001")
    service.answer("rita", kind="undo", undoes="habit-0001", key="habit-0002")
    assert habit()["today"] == before
    service.answer("rita", lease=lease, tier=4, key="habit-0003")
    now = habit()
    assert (now["today"], now["streak"]) == (before + 1, 1)
    # At which clock it is another day: the service's clock stands at 22:13 UTC, or 06:13 of the next day in Shanghai.
    service.clock.minutes(120)
    assert habit()["today"] == 0
    assert habit()["streak"] == 1, "a day that has just begun does not end a streak"
    assert habit(480)["today"] == before + 1
    assert service.browser("rita").get("/api/me/habit?utc_offset_min=9000").status_code == 422


def test_problems_of_a_campaign_are_said_in_its_form(service: Service) -> None:
    lea = service.browser("lea")
    for fields, said in (
        ({"sample": "near", "column": "caption_raw:3"}, "no number"),
        ({"where": "caption_raw::INTEGER > 3"}, "--where"),
        ({"where": "sha256 = (SELECT sha256 FROM samples)"}, "--where"),
        ({"votes": "99"}, "must be 1 to 15"),
        ({"gold": "image,tier\nnothing,9"}, "line 2"),
        ({"exemplars": "nothing-like-a-row,4"}, "no row_id"),
    ):
        answer = lea.post("/lead/new", data={"name": "bad one", "where": "TRUE", "size": "7"} | fields)
        assert answer.status_code == 400, fields
        assert said in answer.text
        assert 'value="bad one"' in answer.text, "the form is as it was filled in"
    answer = lea.post(f"/lead/{service.campaign}", data={"act": "change", "votes": "99", "keep_tier": "3"})
    assert (answer.status_code, "must be 1 to 15" in answer.text, 'value="99"' in answer.text) == (400, True, True)
    row = service.ledger.read().execute("SELECT votes, keep_tier FROM campaigns WHERE id = ?", [service.campaign])
    assert row.fetchone()[:] == (1, 5)


def test_a_form_whose_session_is_over_leads_to_the_login(service: Service) -> None:
    with Browser(service.address) as nobody:
        answer = nobody.post("/lead/new", data={"name": "x"})
    assert (answer.status_code, answer.headers["content-type"][:9]) == (401, "text/html")
    assert 'name="next" value="/lead/new"' in answer.text


def test_a_name_may_be_typed_in_full_width(service: Service) -> None:
    with Browser(service.address) as browser:
        assert browser.sign_in("ｒｉｔａ").status_code == 303


def test_who_is_taken_off_a_campaign_sees_its_pictures_no_more(service: Service) -> None:
    lease = service.lease("rita", service.closed_to_otto)
    url = f"/api/leases/{lease}/preview"
    assert service.browser("rita").get(url).status_code == 200
    lea = service.browser("lea")
    lea.post(f"/lead/{service.closed_to_otto}", data={"act": "raters", "rater.otto": "on"})
    assert service.browser("rita").get(url).status_code == 404
    assert service.browser("rita").get(f"/rate/{service.closed_to_otto}").status_code == 404
    lea.post(f"/lead/{service.closed_to_otto}", data={"act": "raters", "rater.rita": "on"})
    assert service.browser("rita").get(url).status_code == 200


def test_the_number_of_disagreements_is_that_of_the_list(service: Service) -> None:
    made = with_campaign(service.store, name="disputed", votes=2)
    for name, tier in (("rita", 1), ("otto", 5)):
        tasks = (
            service.browser(name).post(f"/api/campaigns/{made}/tasks", json={"want": 24, "have": []}).json()["tasks"]
        )
        for n, task in enumerate(tasks):
            service.answer(name, made, lease=task["lease"], tier=tier, key=f"disputed-{name}-{n}")
    # Who is first leaves a vote open on each of 24 images, in the same order for both.
    lea = service.browser("lea")
    said = lea.get(f"/api/campaigns/{made}/standing").json()
    listed = lea.get(f"/lead/{made}/disagreements").text.count('name="item"')
    assert said["disputed"] == listed == 24
    assert lea.get(f"/lead/{made}/disagreements?page_number=2").text.count('name="item"') == 0


def test_progress_stays_coherent_while_images_are_decided(service: Service) -> None:
    made = with_campaign(service.store, name="progress", votes=1)
    done = 0
    for n in range(3):
        given = service.browser("otto").post(f"/api/campaigns/{made}/tasks", json={"want": 2, "have": []}).json()
        for at, task in enumerate(given["tasks"]):
            found = service.answer("otto", made, lease=task["lease"], tier=2, key=f"progress-{n}-{at}").json()[
                "progress"
            ]
            done += 1
            assert found == {"state": "running", "images": 55, "done": done, "mine": done}


def test_a_campaign_that_too_few_may_rate_says_so_and_promises_nothing(service: Service) -> None:
    made = with_campaign(service.store, name="lonely", votes=3, raters=("rita",))
    service.answer("rita", made, lease=service.lease("rita", made), tier=3, key="lonely-0001")
    said = service.browser("lea").get(f"/api/campaigns/{made}/standing").json()
    assert (said["people"], said["votes_needed"], said["hours_left"]) == (1, 3, None)
    assert "3 votes of different people" in service.browser("lea").get(f"/lead/{made}").text


def test_on_this_machine_one_explores_without_an_account_and_rates_by_the_printed_link(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with serving(store) as (address, process), Browser(address) as browser:
        assert process.stdout
        link = re.findall(r"/invitation/\S+", process.stdout.readline())[0]
        assert browser.get("/").status_code == 200
        assert browser.get("/lead").status_code == 303, "what writes asks for a session"
        assert browser.get(link).status_code == 200, "looking at the link does not use it up"
        assert browser.post(link, data={}).status_code == 303
        assert browser.get("/lead").status_code == 200
        with_people(store, ada="admin")
        with httpx.Client(base_url=address) as stranger:
            assert stranger.get("/").status_code == 303, "with the first account everything asks for a login"


def test_several_worker_processes_share_one_ledger(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with_people(store, rita="rater")
    made = with_campaign(store)
    with serving(store, 0, "--workers", "2") as (address, _), Browser(address) as browser:
        assert browser.sign_in("rita").status_code == 303
        statuses, leases = [], []
        for n in range(30):
            tasks = browser.post(f"/api/campaigns/{made}/tasks", json={"want": 1, "have": []}).json()["tasks"]
            leases.append(tasks[0]["lease"])
            body = {"answers": [{"key": f"worker-{n:04}", "kind": "vote", "lease": tasks[0]["lease"], "tier": 3}]}
            statuses += [
                r["status"] for r in browser.post(f"/api/campaigns/{made}/answers", json=body).json()["results"]
            ]
        assert statuses == ["stored"] * 30
        assert len(set(leases)) == 30
