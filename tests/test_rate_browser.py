"""The rating page in a real Chromium: what is pressed is what is stored, whatever happens to the network."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rate_server import PASSWORD, free_port, serving, with_campaign, with_people
from small_store import make_store

from curate.rate import users
from curate.rate.ledger import Ledger
from curate.rate.rubric import load
from curate.store import Store

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
READY = "button.tier:enabled"
NUMBERS = itertools.count()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; Debian has it: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp("browser"))
    with_people(store, mei="rater", lea="admin")
    return store


@pytest.fixture(scope="module")
def address(base: Path) -> Iterator[str]:
    """A server over `base` for the tests that do not kill theirs; each makes a campaign of its own."""
    with serving(base) as (found, _):
        yield found


@pytest.fixture
def page(chromium: Any, address: str, base: Path) -> Iterator[Any]:
    """A page of a new person."""
    opened = watched(chromium.new_context(locale="en-GB"))
    opened.person = f"person {next(NUMBERS)}"
    ledger = Ledger(base / "ratings.sqlite")
    ledger.write(lambda db: users.add(db, opened.person, "rater", None, 0))
    ledger.close()
    signed_in(opened, address, base, opened.person)
    yield opened
    assert opened.problems == []
    opened.context.close()


def watched(context: Any) -> Any:
    """A page that collects what must not happen: page errors, refused scripts and styles, dialogs."""
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda why: page.problems.append(str(why)))
    page.on("console", lambda m: page.problems.append(m.text) if "Content Security Policy" in m.text else None)
    page.on("dialog", lambda dialog: page.problems.append(f"dialog {dialog.message}"))
    return page


def signed_in(page: Any, address: str, store: Path, name: str) -> None:
    """Give the page's browser a session of the person, without the form."""
    ledger = Ledger(store / "ratings.sqlite")
    now = ledger.clock()
    key = ledger.write(lambda db: users.open_session(db, users.named(db, name)["id"], now))
    ledger.close()
    page.context.clear_cookies()
    page.context.add_cookies([{"name": "curate-session", "value": key, "url": address}])


def new_campaign(store: Path, **plan: object) -> int:
    """A campaign of a name that is not taken."""
    return with_campaign(store, name=f"campaign {next(NUMBERS)}", **plan)


def lease(page: Any) -> int:
    """The lease of the picture on the screen."""
    return int(page.locator(".stage > img").get_attribute("src").split("/")[3])


def press(page: Any, key: str, pressed: dict[int, int], tier: int | None = None) -> None:
    """Rate the picture on the screen by a key and wait until another one is there."""
    page.wait_for_selector(READY)
    now = lease(page)
    pressed[now] = int(key) if tier is None else tier
    page.keyboard.press(key)
    page.wait_for_function(
        "now => { const img = document.querySelector('.stage > img'); return !img || !img.src.includes(`/${now}/`); }",
        arg=now,
    )


def saved(page: Any) -> None:
    """Wait until the outbox is empty."""
    page.wait_for_function("() => document.getElementById('state').dataset.count === '0'")


def stored(store: Path, campaign_id: int) -> dict[int, int]:
    """Tier of each lease of the campaign that has a vote which counts."""
    ledger = Ledger(store / "ratings.sqlite")
    rows = ledger.read().execute(
        "SELECT e.lease_id, v.tier FROM votes AS v JOIN events AS e ON e.id = v.event_id WHERE v.campaign_id = ?",
        [campaign_id],
    )
    found = {row["lease_id"]: row["tier"] for row in rows}
    ledger.close()
    return found


def test_fifty_pictures_in_two_languages_with_undo_a_dead_network_and_a_killed_server(
    chromium: Any, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base.parent, tmp_path / "own", ignore=shutil.ignore_patterns("ratings.sqlite-*"))
    store = tmp_path / "own" / "store"
    made = with_campaign(store)
    port = free_port()
    pressed: dict[int, int] = {}
    rubric = load("kolors")
    with serving(store, port) as (address, process):
        page = watched(chromium.new_context(locale="en-GB"))
        page.goto(f"{address}/login")
        page.fill("input[name=name]", "mei")
        page.fill("input[name=password]", PASSWORD)
        page.click("main button")
        page.click(f"a[href='/rate/{made}']")
        page.wait_for_selector(READY)
        assert page.locator(".tier .name").all_inner_texts() == [t.name["en"] for t in rubric.tiers]
        for n in range(20):
            press(page, "12345"[n % 5], pressed)
        page.click("#language")
        assert page.locator("html").get_attribute("lang") == "zh-Hans"
        assert page.locator(".tier .name").all_inner_texts() == [t.name["zh"] for t in rubric.tiers]
        for n in range(10):
            press(page, "54321"[n % 5], pressed)
        before = lease(page)
        page.keyboard.press("Backspace")
        page.wait_for_function("old => !document.querySelector('.stage > img').src.includes(`/${old}/`)", arg=before)
        again = lease(page)
        assert again in pressed
        assert page.locator(".tier.was").get_attribute("data-tier") == str(pressed[again])
        press(page, "4", pressed)
        assert lease(page) == before, "the picture that was waiting comes back"

        page.context.set_offline(True)
        for n in range(5):
            press(page, "25252"[n], pressed)
        assert page.locator("#state").get_attribute("data-count") == "5"
        assert "5" in page.locator("#state").inner_text()
        page.context.set_offline(False)
        saved(page)
        assert stored(store, made) == pressed

        for n in range(5):
            press(page, "31313"[n], pressed)
        saved(page)
        page.wait_for_timeout(300)  # the line is filled again
        process.send_signal(signal.SIGKILL)
        process.wait()
        for n in range(4):
            press(page, "4242"[n], pressed)
        assert page.locator("#state").get_attribute("data-count") == "4"
    with serving(store, port):
        page.reload()
        page.wait_for_selector(READY)
        saved(page)
        while len(pressed) < 50:
            press(page, "5", pressed)
        saved(page)
        assert page.problems == []
        page.context.close()
    assert len(pressed) == 50
    assert stored(store, made) == pressed

    opened = Store(store)
    opened.ingest()
    ledger = Ledger(store / "ratings.sqlite")
    shas = dict(ledger.read().execute("SELECT l.id, i.sha256 FROM leases AS l JOIN items AS i ON i.id = l.item_id"))
    ledger.close()
    assert dict(opened.rows("SELECT sha256, tier FROM consensus")) == {shas[at]: tier for at, tier in pressed.items()}
    assert opened.rows("SELECT count(*) FROM ratings") == [(50,)]
    assert opened.rows("SELECT count(*) FROM rating_events WHERE kind = 'undo'") == [(1,)]


def test_a_failed_save_is_seen_kept_and_sent_once(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    pressed: dict[int, int] = {}
    page.goto(f"{address}/rate/{made}")
    page.route("**/answers", lambda route: route.fulfill(status=500, body="{}"))
    for key in "345":
        press(page, key, pressed)
    page.wait_for_selector("#state.bad")
    assert page.locator("#state").get_attribute("data-count") == "3"
    assert stored(base, made) == {}
    page.unroute("**/answers")
    # The answer is lost on the way back: what is sent again has the same key.
    page.route("**/answers", lambda route: (route.fetch(), route.abort()), times=1)
    page.click("#state")
    page.wait_for_selector("#state.bad")
    page.click("#state")
    saved(page)
    assert stored(base, made) == pressed


def test_one_press_is_one_rating_whatever_the_keyboard(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    pressed: dict[int, int] = {}
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    first = lease(page)
    send = "init => dispatchEvent(new KeyboardEvent('keydown', {bubbles: true, ...init}))"
    for ignored in (
        {"key": "3", "isComposing": True}, {"key": "3", "repeat": True}, {"key": "3", "ctrlKey": True},
        {"key": "!", "code": "Digit1", "shiftKey": True}, {"key": "ArrowRight"}, {"key": "Enter"}, {"key": " "},
    ):  # fmt: skip
        page.evaluate(send, ignored)
    assert lease(page) == first
    for init, tier in (
        ({"key": "４", "code": "Digit4"}, 4),  # full width
        ({"key": "2", "code": "Numpad2"}, 2),
        ({"key": "(", "code": "Digit5"}, 5),  # the digit row of a French keyboard
        ({"key": "Process", "code": "Digit3"}, 3),  # an input method is on
    ):
        page.wait_for_selector(READY)
        now = lease(page)
        page.evaluate(send, init)
        page.wait_for_function("now => !document.querySelector('.stage > img').src.includes(`/${now}/`)", arg=now)
        pressed[now] = tier
    page.wait_for_selector(READY)
    pressed[lease(page)] = 1
    page.dblclick("[data-tier='1']")
    page.wait_for_selector(READY)
    saved(page)
    assert stored(base, made) == pressed


def test_keys_can_be_changed_and_switched_off_and_the_tier_stays_the_tier(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    pressed: dict[int, int] = {}
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    page.click("#settings")
    page.locator(".binding").nth(4).click()
    page.keyboard.press("q")
    page.locator(".binding").nth(3).click()
    page.keyboard.press("q")
    assert page.locator("#keyproblem").is_visible(), "a key can do one thing only"
    page.locator("#settingssheet .close").click()
    press(page, "q", pressed, tier=5)
    page.reload()
    press(page, "q", pressed, tier=5)
    page.click("#settings")
    page.click("#keyson")
    page.locator("#settingssheet .close").click()
    page.wait_for_selector(READY)
    now = lease(page)
    for key in "q123":
        page.keyboard.press(key)
    assert lease(page) == now
    page.click("[data-tier='2']")
    pressed[now] = 2
    page.wait_for_function("now => !document.querySelector('.stage > img').src.includes(`/${now}/`)", arg=now)
    saved(page)
    assert stored(base, made) == pressed


def test_flags_skips_zoom_and_hostile_captions(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base, where="width >= 200")
    page.goto(f"{address}/rate/{made}")
    texts = []
    for n in range(5):
        page.wait_for_selector(READY)
        now = lease(page)
        texts.append(page.locator("#captions").inner_text())
        if n == 0:
            page.keyboard.press("w")
            page.keyboard.press("o")
            assert page.locator(".flag[aria-pressed=true]").count() == 2
            page.keyboard.press("o")
            page.keyboard.press("z")
            page.wait_for_selector(".stage.zoomed > img[src$=original]")
            page.keyboard.press("ArrowLeft")
            page.keyboard.press("Escape")
        if n == 1:
            page.keyboard.press("s")
            page.keyboard.press("2")
        else:
            page.keyboard.press("3")
        page.wait_for_function(
            "now => { const i = document.querySelector('.stage > img'); return !i || !i.src.includes(`/${now}/`); }",
            arg=now,
        )
    saved(page)
    assert any("<script>alert" in text for text in texts), "markup is shown as text"
    ledger = Ledger(base / "ratings.sqlite")
    rows = (
        ledger.read()
        .execute("SELECT kind, flags, reason, context FROM events WHERE campaign_id = ? ORDER BY id", [made])
        .fetchall()
    )
    ledger.close()
    assert [row["kind"] for row in rows] == ["vote", "skip", "vote", "vote", "vote"]
    assert rows[0]["flags"] == "watermark"
    assert rows[1]["reason"] == "broken"
    assert '"by": "key"' in rows[0]["context"]


def test_a_phone_rates_by_touch_and_the_page_fits(chromium: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    phone = {"viewport": {"width": 320, "height": 640}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
    page = watched(chromium.new_context(**phone))
    signed_in(page, address, base, "mei")
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    box = page.locator("[data-tier='5']").bounding_box()
    assert box["width"] >= 48
    assert box["height"] >= 48
    now = lease(page)
    page.tap("[data-tier='5']")
    page.wait_for_function("now => !document.querySelector('.stage > img').src.includes(`/${now}/`)", arg=now)
    saved(page)
    assert stored(base, made) == {now: 5}


def test_somebody_else_at_the_same_browser_does_not_send_my_answers(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    pressed: dict[int, int] = {}
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    page.context.clear_cookies()  # the session is over: the answer has to wait
    now = lease(page)
    page.keyboard.press("4")
    page.wait_for_selector("#alarm:not([hidden])")
    pressed[now] = 4
    page.goto("about:blank")
    signed_in(page, address, base, "lea")
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    assert page.locator("#state").get_attribute("data-count") == "0"
    assert stored(base, made) == {}
    signed_in(page, address, base, page.person)
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    saved(page)
    assert stored(base, made) == pressed


def test_the_lead_page_works_and_follows(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    signed_in(page, address, base, "lea")
    page.goto(f"{address}/lead/{made}")
    assert "undefined" in page.locator("main").inner_text()
    page.click("button[value=paused]")
    assert "paused" in page.locator("h1").inner_text()
    page.goto(f"{address}/lead/new")
    page.fill("input[name=name]", "<b>second</b>")
    page.fill("input[name=where]", "widht > 3")
    page.click("main form.fields button")
    assert "width" in page.locator(".problem").inner_text()
    page.fill("input[name=where]", "width > 100")
    page.click("main form.fields button")
    page.wait_for_url(f"{address}/lead/{made + 1}")
    assert "<b>second</b>" in page.locator("h1").inner_text()


def test_a_caption_is_rated_where_it_is_shown_whatever_the_rater_has_hidden(
    page: Any, address: str, base: Path
) -> None:
    made = new_campaign(base, rubric="caption-completeness", where="keep", captioners=("raw", "facts/en"))
    ledger = Ledger(base / "ratings.sqlite")
    hidden, me = '{"captions": "none"}', users.named(ledger.read(), page.person)["id"]
    ledger.write(lambda db: db.execute("UPDATE users SET settings = ? WHERE id = ?", [hidden, me]))
    texts = {
        row["text"]
        for row in ledger.read().execute(
            "SELECT coalesce(en, zh) AS text FROM words JOIN items ON id = item_id WHERE campaign_id = ?", [made]
        )
    }
    ledger.close()
    page.goto(f"{address}/rate/{made}")
    seen, pressed = set(), {}
    rubric = load("caption-completeness")
    for n in range(len(texts)):
        page.wait_for_selector(READY)
        assert page.locator("#subject").inner_text() == rubric.title["en"]
        assert page.locator("#captions footer").all_inner_texts() == ["rate this caption, not the picture"]
        seen.add(page.locator("#captions p").inner_text())
        shown = page.locator("#captions p").bounding_box()
        assert shown["y"] + shown["height"] <= page.viewport_size["height"], "without a scroll"
        press(page, "12345"[n % 5], pressed)
    saved(page)
    assert seen == texts
    assert stored(base, made) == pressed


def test_answers_of_another_campaign_are_sent_from_wherever_one_is(page: Any, address: str, base: Path) -> None:
    one, two, three = (new_campaign(base) for _ in range(3))
    pressed: dict[int, dict[int, int]] = {one: {}, two: {}}
    page.route("**/answers", lambda route: route.abort())
    for made in (one, two):
        page.goto(f"{address}/rate/{made}")
        press(page, "4", pressed[made])
        press(page, "2", pressed[made])
    page.goto(f"{address}/rate")
    page.wait_for_selector("#waiting:not([hidden])")
    assert "4 answers" in page.locator("#waiting").inner_text()
    page.goto(f"{address}/rate/{three}")
    page.wait_for_selector("#state.bad[data-count='4']")
    page.unroute("**/answers")
    page.click("#state")
    saved(page)
    assert {made: stored(base, made) for made in pressed} == pressed
    page.goto(f"{address}/rate")
    page.wait_for_function("() => document.getElementById('waiting').hidden")


def test_signing_in_again_in_another_tab_is_enough(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    pressed: dict[int, int] = {}
    page.goto(f"{address}/rate/{made}")
    press(page, "5", pressed)
    saved(page)
    page.context.clear_cookies()
    press(page, "4", pressed)
    page.wait_for_selector("#alarm:not([hidden])")
    assert "One answer is kept" in page.locator("#alarm").inner_text()
    signed_in(page, address, base, page.person)  # as the login in another tab does
    page.evaluate("dispatchEvent(new Event('focus'))")
    saved(page)
    page.wait_for_function("() => document.getElementById('alarm').hidden")
    press(page, "3", pressed)
    saved(page)
    assert stored(base, made) == pressed


def test_an_answer_that_the_server_refuses_is_kept_as_a_file(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    page.goto(f"{address}/rate/{made}")
    page.route("**/answers", lambda route: route.abort())
    pressed: dict[int, int] = {}
    press(page, "4", pressed)
    ledger = Ledger(base / "ratings.sqlite")  # what restoring a backup does to a lease that is younger
    ledger.write(lambda db: db.execute("DELETE FROM leases WHERE campaign_id = ?", [made]))
    ledger.close()
    page.unroute("**/answers")
    page.click("#state")
    page.wait_for_selector("#alarm:not([hidden]) a[download]")
    page.reload()
    with page.expect_download() as download:
        page.locator("#alarm a[download]").click()
    kept = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert ({kept["answer"]["lease"]: kept["answer"]["tier"]}, kept["campaign"]) == (pressed, made)
    page.locator("#alarm button.icon").first.click()
    page.wait_for_function("() => document.getElementById('alarm').hidden")
    page.reload()
    page.wait_for_selector(READY)
    assert page.locator("#alarm").is_hidden()


def test_a_key_does_what_is_written_on_it(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    page.click("#settings")
    for taken in "-=w4+":  # the viewer's, a defect's, a tier's
        page.click("[data-binding=undo]")
        page.keyboard.press(taken)
        assert page.locator("#keyproblem").is_visible(), taken
        assert page.locator("[data-binding=undo] kbd").inner_text() == "U"
    page.click("[data-binding='flag:watermark']")
    page.keyboard.press("q")
    page.click("[data-binding=undo]")
    page.keyboard.press("w")
    assert page.locator("#keyproblem").is_hidden()
    page.locator("#settingssheet .close").click()
    assert page.locator(".flag[data-flag=watermark] kbd").inner_text() == "Q"
    page.keyboard.press("q")
    assert page.locator(".flag[aria-pressed=true]").get_attribute("data-flag") == "watermark"
    pressed: dict[int, int] = {}
    now = lease(page)
    press(page, "2", pressed)
    page.keyboard.press("w")
    page.wait_for_function("now => document.querySelector('.stage > img').src.includes(`/${now}/`)", arg=now)
    page.reload()
    page.wait_for_selector(READY)
    assert page.locator(".flag[data-flag=watermark] kbd").inner_text() == "Q"


def test_a_picture_that_may_be_unsafe_is_veiled_until_it_is_asked_for(page: Any, address: str, base: Path) -> None:
    made = new_campaign(base)
    ledger = Ledger(base / "ratings.sqlite")
    ledger.write(lambda db: db.execute("UPDATE items SET risky = 1 WHERE campaign_id = ?", [made]))
    ledger.close()
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    now = lease(page)
    page.keyboard.press("5")
    assert (lease(page), page.locator("#veil").is_visible()) == (now, True)
    assert "Show it first" in page.locator("#said").inner_text()
    page.keyboard.press("v")
    assert page.locator("#veil").is_hidden()
    pressed: dict[int, int] = {}
    press(page, "5", pressed)
    assert page.locator("#veil").is_visible()
    press(page, "1", pressed)  # "unsafe" can be said unseen
    page.click("#settings")
    page.click("#veilon")
    page.locator("#settingssheet .close").click()
    press(page, "4", pressed)
    saved(page)
    assert stored(base, made) == pressed


@pytest.mark.parametrize(
    ("width", "height"), [(1366, 650), (1280, 800), (1440, 900), (640, 400), (844, 390), (390, 844), (320, 640)]
)
def test_all_that_a_rater_needs_is_on_the_screen(
    chromium: Any, address: str, base: Path, width: int, height: int
) -> None:
    made = with_campaign(base, name=f"{width} by {height}")
    ledger = Ledger(base / "ratings.sqlite")
    text = "A long caption says what is to be seen. " * 8
    ledger.write(
        lambda db: db.execute(
            "INSERT OR REPLACE INTO words SELECT id, 'short', ?, ? FROM items WHERE campaign_id = ?",
            [text, "图中所示为一张横版图片，清晰的局部从柔和的周围中凸显出来。" * 4, made],
        )
    )
    ledger.close()
    page = watched(chromium.new_context(viewport={"width": width, "height": height}, locale="zh-CN"))
    signed_in(page, address, base, "mei")
    page.goto(f"{address}/rate/{made}")
    page.wait_for_selector(READY)
    controls = [
        "#settings",
        "#help",
        "#undo",
        "#skip",
        "#captions",
        ".flag >> nth=0",
        *(f"[data-tier='{n}']" for n in range(1, 6)),
    ]
    for control in controls:
        box = page.locator(control).bounding_box()
        assert box and box["width"] > 0, f"{control} is not shown"
        assert (box["x"] >= 0, box["x"] + box["width"] <= width, box["y"] + box["height"] <= height) == (True,) * 3, (
            control
        )
    room = page.evaluate("(({clientWidth: w, clientHeight: h}) => w * h)(document.getElementById('stage'))")
    assert room >= 0.3 * width * height, "the picture has the most of it"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_what_is_read_aloud_is_in_the_language_of_the_page_and_the_focus_stays(
    page: Any, address: str, base: Path
) -> None:
    made = new_campaign(base)
    page.goto(f"{address}/rate/{made}")
    pressed: dict[int, int] = {}
    press(page, "4", pressed)
    assert page.locator("#said").inner_text().startswith("Rated 4, Ordinary snapshot. ")
    page.click("#language")
    press(page, "2", pressed)
    assert page.locator("#said").inner_text().startswith("已评 2 级，有人工痕迹。")
    assert page.locator("#said").get_attribute("aria-live") == "polite"
    page.wait_for_selector(READY)
    now = lease(page)
    page.locator("[data-tier='3']").focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert lease(page) == now, "arrows do not rate"
    page.keyboard.press("Enter")
    pressed[now] = 3
    page.wait_for_function("now => !document.querySelector('.stage > img').src.includes(`/${now}/`)", arg=now)
    page.wait_for_selector(READY)
    assert page.evaluate("document.activeElement.dataset.tier") == "3"
    saved(page)
    assert stored(base, made) == pressed


@pytest.mark.parametrize(
    "path", ["/lead", "/lead/1", "/lead/new", "/lead/1/disagreements", "/accounts", "/rate", "/", "/what-if"]
)
def test_the_lead_s_pages_fit_a_phone(chromium: Any, address: str, base: Path, path: str) -> None:
    new_campaign(base)
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "locale": "zh-CN"}
    page = watched(chromium.new_context(**phone))
    signed_in(page, address, base, "lea")
    page.goto(address + path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.context.close()
