"""A job submitted to a real cluster of three nodes, with a token, over S3; one node is killed meanwhile."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from conftest import KILLS, ROOT, part_hashes
from s3_server import KEYS, client, free_port, objects, s3_server

from curate.recipe import Recipe, to_toml

BIN = Path(sys.executable).parent


@dataclass
class Site:
    """The cluster and the object store that it works on."""

    s3: str
    dashboard: str
    environment: dict[str, str]
    process: subprocess.Popen[str]

    def ask(self, what: str) -> dict[str, object]:
        """Have the cluster `kill` or `add` a node."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def post(self, path: str, body: dict[str, object] | None = None) -> Any:
        """What the dashboard answers to one request: how `ray job` talks to it, without its two seconds of imports."""
        headers = {
            "Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}", "Content-Type": "application/json",
        }  # fmt: skip
        asked = Request(self.dashboard + path, json.dumps(body).encode(), headers, method="POST")
        with urlopen(asked, timeout=60) as reply:
            return json.load(reply)

    def wait_for_agent(self) -> None:
        """Jobs are taken once a node's agent has reported, which is some time after the cluster says that it runs."""
        deadline = time.monotonic() + 240
        while True:
            try:
                self.post("/api/jobs/", {"entrypoint": "true"})
                return
            except HTTPError as why:
                with why:
                    said = why.read().decode()
                assert "No available agent" in said, said
            except OSError as why:
                said = str(why)  # the dashboard does not listen yet
            assert time.monotonic() < deadline, f"no node takes jobs: {said}"
            time.sleep(0.5)

    def submit(self, name: str, recipe: Path, *more: str) -> subprocess.Popen[str]:
        """`ray job submit`, as the README has it."""
        command = [BIN / "ray", "job", "submit", "--address", self.dashboard, "--submission-id", name]
        entry = ["--working-dir", ROOT, "--", sys.executable, "-m", "curate.pipeline", recipe, *more]
        return subprocess.Popen(
            [*command, *entry], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment
        )

    def curate(self, recipe: Path, *sets: str) -> subprocess.Popen[str]:
        """`curate submit`."""
        command = [sys.executable, "-m", "curate.cli", "submit", recipe, "--address", self.dashboard]
        command += [part for one in sets for part in ("--set", one)]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three nodes with one CPU each."""
    port = free_port()
    with s3_server() as s3:
        environment = {
            **os.environ, **KEYS, "PATH": f"{BIN}:{os.environ['PATH']}", "AWS_ENDPOINT_URL": s3,
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "01234567" * 8,
            "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        for name in ("RAY_ADDRESS", "RAY_JOB_ID"):
            environment.pop(name, None)
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "three_nodes.py", str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        assert process.stdin and process.stdout
        try:
            for line in process.stdout:
                if line.startswith('{"address"'):
                    break
            assert process.poll() is None, "the cluster does not start"
            site = Site(s3, f"http://127.0.0.1:{port}", environment, process)
            site.wait_for_agent()
            yield site
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def saved(s3: str, store: str) -> int:
    """Finished ranges and published parts so far."""
    listed = client(s3).list_objects_v2(Bucket="bucket", Prefix=f"{store}/").get("Contents", [])
    return sum(entry["Key"].endswith(".parquet") for entry in listed)


@pytest.mark.parametrize("turn", range(max(1, KILLS // 10)))
def test_a_submitted_job_outlives_a_node(
    turn: int, site: Site, finished_store: Path, recipe: Recipe, tmp_path: Path
) -> None:
    store = f"store-{turn}"
    for shard in Path(recipe.input.uri).glob("*.parquet"):
        client(site.s3).put_object(Bucket="bucket", Key=f"in/{shard.name}", Body=shard.read_bytes())
    remote = dataclasses.replace(
        recipe,
        input=dataclasses.replace(recipe.input, uri="s3://bucket/in"),
        store=dataclasses.replace(recipe.store, uri=f"s3://bucket/{store}"),
        engine=dataclasses.replace(recipe.engine, kind="ray", range_rows=1),
    )
    where = tmp_path / "recipe.toml"
    where.write_text(to_toml(remote), "utf-8")

    job = site.curate(where, "run.log=json")
    wanted = random.Random(turn).randint(2, 9)
    deadline = time.monotonic() + 240
    while job.poll() is None and saved(site.s3, store) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert job.poll() is None, "the run ended before the kill"
    assert site.ask("kill") == {"nodes": 2}
    assert site.ask("add") == {"nodes": 3}
    said, _ = job.communicate(timeout=400)
    assert job.returncode == 0, said
    events = [json.loads(line) for line in said.splitlines() if line.startswith('{"time"')]
    assert {event["shard"] for event in events if event["event"] == "shard done"} == {
        "train-00000", "train-00001", "train-00002",
    }  # fmt: skip
    parts = {path: data for path, data in objects(site.s3, f"{store}/parts/").items() if path.endswith(".parquet")}
    hashes = {f"parts/{path}": hashlib.sha256(data).hexdigest() for path, data in parts.items()}
    assert hashes == part_hashes(finished_store)


DEMAND = """
    import dataclasses, json, sys
    from curate import pipeline
    from curate.engine import cluster
    from curate.engine.tasks import Index
    from curate.recipe import load

    cluster.IDLE_S = 600.0  # a slow machine may take half a minute for this
    path = tuple(dataclasses.replace(op, pool="gpu") if op.name == "caption" else op for op in pipeline.PATH)
    prepared = pipeline.prepare(load(sys.argv[1], []), path)
    engine = cluster.Cluster(prepared.plan)
    before = {pool: len(crew.actors) for pool, crew in engine.pools.items()}
    for shard in 4 * prepared.shards:
        engine.submit("cpu", Index(shard))
    ended = engine.next(0.1)
    while len(ended) < 12:
        ended += engine.next(1.0)
    from ray.util.state import list_actors
    found = list_actors(detail=True, filters=[("class_name", "=", "Worker")])
    print("DEMAND", json.dumps({
        "alone": engine.alone, "before": before,
        "after": {pool: len(crew.actors) for pool, crew in engine.pools.items()},
        "asked": sorted({(a.required_resources.get("CPU"), a.required_resources.get("GPU")) for a in found}, key=str),
        "pending": sum(a.state == "PENDING_CREATION" for a in found),
    }))
    engine.close()
"""


def test_a_job_asks_for_whole_cpus_and_for_a_gpu_node_that_is_not_there_yet(
    site: Site, recipe: Recipe, tmp_path: Path
) -> None:
    """What does not fit on the three CPUs is demand that an autoscaler sees."""
    asked = dataclasses.replace(recipe.engine, kind="ray", workers=6, gpu_workers=2)
    where = tmp_path / "recipe.toml"
    where.write_text(to_toml(dataclasses.replace(recipe, engine=asked)), "utf-8")
    script = tmp_path / "demand.py"
    script.write_text(textwrap.dedent(DEMAND), "utf-8")
    submit = [BIN / "ray", "job", "submit", "--address", site.dashboard, "--working-dir", ROOT, "--"]
    job = subprocess.run([*submit, sys.executable, script, where], capture_output=True, text=True, env=site.environment)
    said = job.stdout + job.stderr
    (line,) = [line for line in said.splitlines() if line.startswith("DEMAND ")] or [said]
    found = json.loads(line.removeprefix("DEMAND "))
    assert found["alone"] is False
    assert found["before"] == {"cpu": 1, "gpu": 1}
    assert found["after"] == {"cpu": 6, "gpu": 1}
    assert found["asked"] == [[0.5, 1.0], [1.0, None]]
    assert found["pending"] >= 4  # 3 CPUs are there


def test_a_job_whose_store_lies_in_rays_own_folder_is_refused(site: Site, recipe: Recipe, tmp_path: Path) -> None:
    where = tmp_path / "recipe.toml"
    where.write_text(to_toml(recipe), "utf-8")
    job = site.submit("relative", where, "--set", "store.uri=demo/store")
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 1
    assert "exit code 2" in said
    assert "store.uri = 'demo/store': in a Ray job this is a folder that Ray deletes" in said


def test_curate_submit_ends_with_the_runs_own_exit_code(site: Site, recipe: Recipe, tmp_path: Path) -> None:
    """1: stopped. 2: a recipe that only the job finds bad. 3: more failed rows than allowed. (0: the first test.)"""
    where = tmp_path / "recipe.toml"
    where.write_text(to_toml(recipe), "utf-8")
    local = subprocess.run(
        [sys.executable, "-m", "curate.cli", "submit", where, "--set", "store.uri=here"], capture_output=True, text=True
    )
    assert (local.returncode, "a job runs elsewhere" in local.stderr) == (2, True)
    for code, bad, told in (
        (2, "policy.sharp=sharpnes > 4", "sharpness"),
        (3, "run.max_failed_share=0.0", "failed"),
    ):
        job = site.curate(where, f"store.uri={tmp_path / 'store'}", bad)
        said, _ = job.communicate(timeout=240)
        assert job.returncode == code, said
        assert told in said
        assert "Traceback" not in said
    stopped = tmp_path / "stopped"
    job = site.curate(where, f"store.uri={stopped}", "engine.range_rows=1", "sharpness.long_side_px=2048")
    assert job.stdout
    line = next(line for line in job.stdout if line.startswith("job "))  # Ray tells before what it does not upload
    name = line.split()[1].rstrip(";")
    deadline = time.monotonic() + 120
    while not (stopped / "staging").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # What `ray job stop` asks for; that itself starts too slowly to find the run under way on a busy machine.
    assert site.post(f"/api/jobs/{name}/stop") == {"stopped": True}
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 1, said
    assert "Traceback" not in said
    assert "*** SIG" not in said


def test_without_the_token_nobody_submits(site: Site) -> None:
    environment = {name: value for name, value in site.environment.items() if not name.startswith("RAY_AUTH")}
    environment["RAY_AUTH_MODE"] = "disabled"
    job = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", site.dashboard, "--", "true"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert job.returncode != 0
    assert "token" in (job.stdout + job.stderr).lower()
