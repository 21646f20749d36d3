"""The rating service under load: `python -m benchmarks.rating` (a minute), `--seconds 300` for the whole measurement.

    --seconds S   how long the raters rate          --raters N   how many at a time
    --think S     mean seconds a rater looks at a picture
    --queue N     images of the campaign in which the queue is timed (0: not; with --seconds 0 nothing else is)
    --browser N   pictures that a real Chromium rates by keys (0: not)

A real server (`curate serve`) in a process of its own over a real store with 2-megapixel JPEGs, three votes each, gold
and hidden repeats on. The raters keep eight pictures ahead, as the page does, and now and then skip, undo, lose an
answer and send it again. In the end the ledger is held against what each rater was told: nothing lost, nothing twice,
nothing in excess. The first seconds, in which everybody arrives, are not timed. "Server time" is what the server says
in Server-Timing, from the request's arrival to the answer's start; "round trip" is what the rater saw. Last line:
`RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from benchmarks.scorers import photographs
from curate import pipeline
from curate.progress import Display
from curate.rate import campaign, queue, rubric, users, votes
from curate.rate.ledger import Ledger
from curate.recipe import from_tables
from curate.store import Store
from curate.web.lead import standing

DATA = Path("bench-data")
SIDE = (1632, 1224)  # 2 megapixels
AHEAD = 8
TARGETS = {"answer_p99_ms": 30, "preview_p99_ms": 80, "memory_mb": 400, "queue_ms": 20, "paint_p95_ms": 60}


def store_of(images: int) -> Path:
    """A finished store over `images` different 2-megapixel JPEGs; made once."""
    folder = DATA / f"rating-{images}"
    if (folder / "store" / "captions.duckdb").exists():
        return folder / "store"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "shards").mkdir(parents=True)
    pictures = []
    draw = np.random.default_rng(0)
    for source in photographs():
        for turn in (0, 180):
            out = io.BytesIO()
            grain = draw.normal(0, 3, (*SIDE[::-1], 3))
            pixels = np.asarray(source.resize(SIDE).rotate(turn), np.float32) + grain
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
            pictures.append(out.getvalue())
    for shard in range(math.ceil(images / 200)):
        numbers = range(shard * 200, min(images, shard * 200 + 200))
        # Bytes after the end of a JPEG make another file of the same picture.
        rows = [pictures[n % len(pictures)] + f"#{n}".encode() for n in numbers]
        table = pa.table({"image": pa.array(rows, pa.binary()), "caption": [f"picture {n}" for n in numbers]})
        pq.write_table(table, folder / "shards" / f"bench-{shard:05d}.parquet", row_group_size=20)
    recipe = from_tables(
        {
            "input": {"uri": str(folder / "shards")},
            "store": {"uri": str(folder / "store")},
            "engine": {"kind": "inline"},
            "faces": {"engine": "none"},
            "ocr": {"engine": "none"},
            "photometry": {"luma_px": 64, "color_px": 64},
            "sharpness": {"long_side_px": 128},
        }
    )
    if pipeline.run(recipe, display=Display(Console(file=io.StringIO()))):
        raise SystemExit("the store could not be made")
    return folder / "store"


def fresh(store: Path, raters: int) -> tuple[int, list[str], list[int], bytes]:
    """A new ledger with a campaign and sessions: (campaign, session keys, user ids, secret)."""
    for name in ("ratings.sqlite", "ratings.sqlite-wal", "ratings.sqlite-shm", "ratings.secret"):
        (store / name).unlink(missing_ok=True)
    ledger = Ledger(store / "ratings.sqlite")
    now = ledger.clock()
    opened = Store(store)
    rows = [row[0] for row in opened.rows("SELECT row_id FROM samples ORDER BY row_id")]
    gold = tuple((row_id, 1 + n % 5) for n, row_id in enumerate(rows[:: max(len(rows) // 20, 2)]))
    made = campaign.create(ledger, opened, campaign.Plan("load", where="TRUE", gold=gold))
    ids, keys = [], []
    for n in range(raters):
        user_id = ledger.write(lambda db, n=n: users.add(db, f"rater {n}", "rater", None, now))  # type: ignore[misc]
        keys.append(ledger.write(lambda db, u=user_id: users.open_session(db, u, now)))  # type: ignore[misc]
        ids.append(user_id)
    secret = ledger.secret
    ledger.close()
    return made, keys, ids, secret


class Wire:
    """One keep-alive HTTP connection; a library would use more of the two cores than the server that is measured."""

    def __init__(self, port: int, headers: str) -> None:
        self.port = port
        self.headers = headers
        self.pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, float, bytes]:
        """(status, server time in ms, body)."""
        if self.pipe is None or self.pipe[0].at_eof():
            self.pipe = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.pipe
        data = b"" if body is None else json.dumps(body).encode()
        writer.write(
            f"{method} {path} HTTP/1.1\r\n{self.headers}Content-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(re.search(r"content-length: (\d+)", head)[1])  # type: ignore[index]
        content = await reader.readexactly(length)
        return int(head.split(" ", 2)[1]), float(re.search(r"dur=([\d.]+)", head)[1]), content  # type: ignore[index]

    def close(self) -> None:
        if self.pipe:
            self.pipe[1].close()


class Rater:
    """Somebody at the page, who remembers what was acknowledged."""

    def __init__(self, number: int, made: int, wire: Wire, think_s: float, times: dict[str, list[float]]) -> None:
        self.number, self.made, self.wire, self.think_s, self.times = number, made, wire, think_s, times
        self.draw = random.Random(number)
        self.acknowledged: dict[str, str] = {}  # key: kind
        self.problems: list[str] = []

    async def run(self, until: float) -> None:
        line: list[int] = []
        sent = 0
        await asyncio.sleep(self.draw.uniform(0, 2 * self.think_s))
        while time.monotonic() < until:
            if len(line) < AHEAD:
                tasks = json.loads(
                    await self.timed(
                        "tasks", "POST", f"/api/campaigns/{self.made}/tasks", {"want": AHEAD + 1, "have": line}
                    )
                )["tasks"]
                for task in tasks:
                    await self.timed("preview", "GET", f"/api/leases/{task['lease']}/preview")
                line += [task["lease"] for task in tasks]
                if not line:
                    await asyncio.sleep(1)
                    continue
            await asyncio.sleep(self.draw.lognormvariate(math.log(self.think_s) - 0.125, 0.5))
            lease, sent = line.pop(0), sent + 1
            key = f"load-{self.number}-{sent}-{lease}"
            luck = self.draw.random()
            answer: dict[str, Any] = {
                "key": key,
                "kind": "vote",
                "lease": lease,
                "tier": self.draw.choice((1, 2, 3, 4, 4, 5)),
            }
            if luck < 0.01:
                answer = {"key": key, "kind": "skip", "lease": lease, "reason": "unsure"}
            await self.answer(answer)
            if 0.01 <= luck < 0.03:  # the answer was lost on the way back, and is sent again
                await self.answer(answer)
            elif 0.03 <= luck < 0.05:
                await self.answer({"key": f"{key}-undo", "kind": "undo", "undoes": key})
                await self.answer(answer | {"key": f"{key}-again"})

    async def answer(self, answer: dict[str, Any]) -> None:
        content = await self.timed("answer", "POST", f"/api/campaigns/{self.made}/answers", {"answers": [answer]})
        result = json.loads(content)["results"][0]
        known = answer["key"] in self.acknowledged
        if result["status"] != ("duplicate" if known else "stored"):
            self.problems.append(f"{answer} -> {result}")
        self.acknowledged[answer["key"]] = answer["kind"]

    async def timed(self, what: str, method: str, path: str, body: Any = None) -> bytes:
        began = time.perf_counter()
        status, server_ms, content = await self.wire.ask(method, path, body)
        self.times[f"{what} round trip"].append(1000 * (time.perf_counter() - began))
        self.times[what].append(server_ms)
        if status != 200:
            self.problems.append(f"{method} {path}: {status} {content[:200]!r}")
            raise RuntimeError(self.problems[-1])
        return content


async def load(port: int, made: int, keys: list[str], secret: bytes, seconds: float, think_s: float) -> list[Rater]:
    """All raters at once; returns them with what they remember."""
    times: dict[str, list[float]] = defaultdict(list)
    raters = []
    for number, key in enumerate(keys):
        token = users.csrf_token(secret, users.digest(key))
        headers = (
            f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nCookie: curate-session={key}\r\n"
            f"X-CSRF-Token: {token}\r\n"
        )
        raters.append(Rater(number, made, Wire(port, headers), think_s, times))
    until = time.monotonic() + seconds
    asyncio.get_running_loop().call_later(min(10.0, seconds / 4), times.clear)  # everybody has arrived by then
    await asyncio.gather(*(rater.run(until) for rater in raters))
    for rater in raters:
        rater.wire.close()
    return raters


def check(store: Path, raters: list[Rater]) -> dict[str, int]:
    """The ledger against what the raters were told."""
    db = sqlite3.connect(store / "ratings.sqlite")
    stored = dict(db.execute("SELECT key, kind FROM events").fetchall())
    told: dict[str, str] = {}
    for rater in raters:
        told |= rater.acknowledged
    keys = db.execute("SELECT count(*), count(DISTINCT key) FROM events").fetchone()
    return {
        "acknowledged": len(told),
        "lost": len(told.keys() - stored.keys()),
        "not_acknowledged": len(stored.keys() - told.keys()),
        "duplicated": keys[0] - keys[1],
        "twice_by_one_person": db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM votes GROUP BY item_id, user_id, part HAVING count(*) > 1)"
        ).fetchone()[0],
        "in_excess": db.execute(
            "SELECT count(*) FROM items AS i WHERE gold_tier IS NULL AND (votes > wanted OR votes <> (SELECT count(*) "
            "FROM votes WHERE item_id = i.id AND part = 'work') OR wanted > 4)"
        ).fetchone()[0],
        "decided": db.execute("SELECT done FROM campaigns").fetchone()[0],
        "problems": sum(len(rater.problems) for rater in raters),
    }


class Memory(threading.Thread):
    """The largest resident set of a process and its children, MB, and the CPU seconds that they used."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak = self.peak_all = self.cpu_s = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            try:
                every = [self.process, *self.process.children(recursive=True)]
                self.peak = max(self.peak, every[0].memory_info().rss / 1e6)
                self.peak_all = max(self.peak_all, sum(p.memory_info().rss for p in every) / 1e6)
                self.cpu_s = sum(sum(p.cpu_times()[:2]) for p in every)
            except psutil.Error:
                return


def time_queue(images: int) -> dict[str, float]:
    """A campaign of `images` images, 60 % of them decided: leasing by people who have rated up to 50,000, and by one
    who has seen every open image; the numbers of the lead's page; and what raters wait while the rule is changed.
    """
    folder = DATA / "rating-queue"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ledger = Ledger(folder / "ratings.sqlite")
    open_from = images * 6 // 10

    def fill(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO campaigns (name, state, votes, extra_votes, keep_tier, gold_every, "
            "repeat_every, captions, everyone, "
            "condition, sampling, seed, created_ms, images) VALUES ('q', 'running', 3, 1, 5, "
            "20, 25, 'shown', 1, '', '', 0, 0, ?)",
            [images],
        )
        db.execute("INSERT INTO rubrics VALUES (1, 1, ?, 0)", [rubric.load("kolors").json()])
        db.executemany(
            "INSERT INTO items (campaign_id, position, sha256, row_id, width, height, wanted, open, urgent) "
            "VALUES (1, ?, ?, ?, 1632, 1224, 3, ?, ?)",
            ((n, f"{n:064x}", f"s:{n}", n >= open_from, n >= open_from and n % 20 == 0) for n in range(images)),
        )
        db.executemany(
            "INSERT INTO users (name, role, created_ms) VALUES (?, 'rater', 0)", ((f"r{n}",) for n in range(21))
        )
        for user in range(1, 6):  # five people have rated what is at the head, which still waits for others
            db.execute(
                "INSERT INTO seen SELECT ?, id FROM items WHERE open = 1 ORDER BY position LIMIT ?",
                [user, min(10_000 * user, images // 2)],
            )
        db.execute("INSERT INTO seen SELECT 21, id FROM items WHERE open = 1")

    def decide(db: sqlite3.Connection) -> None:  # with real votes: what a change of the rule has to look at
        db.execute(
            "INSERT INTO events (id, key, campaign_id, item_id, user_id, kind, tier, part, counted, rubric_version, "
            "at_ms) SELECT 3 * (i.id - 1) + u.id - 5, 'q' || i.id || '-' || u.id, 1, i.id, u.id, 'vote', "
            "1 + (i.id * 7 + u.id) % 5, 'work', 1, 1, 0 FROM items AS i, users AS u WHERE i.open = 0 AND "
            "u.id BETWEEN 6 AND 8"
        )
        db.execute(
            "INSERT INTO votes SELECT item_id, user_id, 'work', 1, id, CASE WHEN item_id % 3 THEN 4 ELSE tier END, '', "
            "2.0, 0 FROM events"
        )
        db.execute("UPDATE items SET votes = 3, tier = 4, rule = 'majority' WHERE open = 0")

    ledger.write(fill)
    ledger.write(decide)
    campaign.change(ledger, 1, None, {"keep_tier": 4})
    first, later, seen_all, stand = [], [], [], []
    for turn in range(25):
        for user in range(1, 21):
            began = time.perf_counter()
            tasks = ledger.write(lambda db, u=user: queue.lease(db, 1, u, 9, [], ledger.clock()))  # type: ignore[misc]
            (first if turn == 0 else later).append(1000 * (time.perf_counter() - began))
            for n, task in enumerate(tasks[:1]):
                action = votes.Action(f"q-{user}-{turn}-{n}", "vote", lease=task.lease, tier=3)
                ledger.write(lambda db, u=user, a=action: votes.apply(db, 1, u, a, ledger.clock()))  # type: ignore[misc]
        began = time.perf_counter()
        ledger.write(lambda db: queue.lease(db, 1, 21, 9, [], ledger.clock()))
        seen_all.append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        row = ledger.read().execute("SELECT * FROM campaigns").fetchone()
        standing(ledger.read(), row, ledger.clock())
        stand.append(1000 * (time.perf_counter() - began))
    waits = []
    began = time.perf_counter()
    changing = threading.Thread(target=campaign.change, args=(ledger, 1, None, {"keep_tier": 5}))
    changing.start()
    while changing.is_alive():  # somebody else's write meanwhile
        asked = time.perf_counter()
        ledger.write(lambda db: db.execute("UPDATE users SET settings = '{}' WHERE id = 20"))
        waits.append(1000 * (time.perf_counter() - asked))
        time.sleep(0.02)
    change_s = time.perf_counter() - began
    ledger.close()
    shutil.rmtree(folder)
    return {
        "queue_first_max_ms": max(first), "queue_p50_ms": float(np.median(later)), "queue_p99_ms": p99(later),
        "queue_seen_all_p50_ms": float(np.median(seen_all)), "queue_seen_all_max_ms": max(seen_all),
        "standing_p50_ms": float(np.median(stand)), "change_s": change_s, "change_wait_p99_ms": p99(waits),
        "change_wait_max_ms": max(waits),
    }  # fmt: skip


def time_browser(port: int, key: str, made: int, count: int) -> dict[str, float]:
    """Key press to next picture painted, in headless Chromium without a GPU, as the page measures it."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.add_cookies([{"name": "curate-session", "value": key, "url": f"http://127.0.0.1:{port}"}])
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/rate/{made}")
        for n in range(count):
            page.wait_for_selector("button.tier:enabled")
            page.wait_for_timeout(400)  # somebody looks at the picture
            page.keyboard.press("12345"[n % 5])
        page.wait_for_timeout(1000)
        times = page.evaluate("performance.getEntriesByName('key to paint').map((entry) => entry.duration)")
        browser.close()
    return {
        "paint_p50_ms": float(np.median(times)), "paint_p95_ms": float(np.quantile(times, 0.95)),
        "paint_count": len(times),
    }  # fmt: skip


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return float(np.quantile(values, 0.99)) if values else 0.0


def main() -> None:
    """Run what was asked for and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--raters", type=int, default=100)
    parser.add_argument("--think", type=float, default=3.0)
    parser.add_argument("--queue", type=int, default=1_000_000)
    parser.add_argument("--browser", type=int, default=60)
    options = parser.parse_args()
    if not options.seconds:
        report(queue_figures(options.queue))
        return
    # Votes of the whole run, at three an image, and as many again so that nobody runs dry.
    images = max(400, math.ceil(options.seconds / options.think * options.raters / 3 * 1.25 / 200) * 200)
    print(f"store of {images} images", flush=True)
    store = store_of(images)
    made, keys, _, secret = fresh(store, options.raters + 1)
    command = [sys.executable, "-m", "curate.cli", "serve", str(store), "--port", "0"]
    figures: dict[str, Any] = {"raters": options.raters, "seconds": options.seconds, "think_s": options.think}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        found = re.search(r":(\d+)\s", server.stdout.readline())
        assert found, "the server did not start"
        port = int(found[1])
        memory = Memory(server.pid)
        memory.start()
        try:
            raters = asyncio.run(load(port, made, keys[:-1], secret, options.seconds, options.think))
            if options.browser:
                figures |= time_browser(port, keys[-1], made, options.browser)
        finally:
            memory.done.set()
            server.terminate()
            server.wait()
    figures |= {
        "load_average": os.getloadavg()[0],
        "memory_mb": memory.peak,
        "memory_with_sync_mb": memory.peak_all,
        "server_cpu_share": memory.cpu_s / options.seconds,
    }
    times = raters[0].times
    for what in ("answer", "tasks", "preview"):
        for kind in (what, f"{what} round trip"):
            name = kind.replace(" ", "_")
            figures |= {f"{name}_p50_ms": float(np.median(times[kind])), f"{name}_p99_ms": p99(times[kind])}
    figures |= {"answers": len(times["answer"]), "previews": len(times["preview"])}
    if not options.browser:
        figures |= check(store, raters)
    else:  # the browser's own votes are not among what the raters were told
        figures |= check(store, raters) | {"not_acknowledged": 0}
    if options.queue:
        figures |= queue_figures(options.queue)
    report(figures)
    for rater in raters:
        for problem in rater.problems[:3]:
            print("problem:", problem)


def queue_figures(images: int) -> dict[str, Any]:
    """The times of a large campaign, with the one that has a target."""
    found = time_queue(images)
    slowest = max(found["queue_first_max_ms"], found["queue_p99_ms"], found["queue_seen_all_max_ms"])
    return {"queue_images": images, **found, "queue_ms": slowest}


def report(figures: dict[str, Any]) -> None:
    """A line for each figure, and all of them for benchmarks.run."""
    for name, value in figures.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"  (at most {target}: {'met' if value <= target else 'missed'})"
        print(f"{name:<28}{value:>12,.2f}{verdict}" if isinstance(value, float) else f"{name:<28}{value:>12,}{verdict}")
    print("RESULT", json.dumps(figures))


if __name__ == "__main__":
    main()
