"""A store on S3 that answers badly: nothing is lost, nothing comes twice, and the parts are those of a calm day."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mixed_store
import pyarrow as pa
import pytest
from conftest import part_hashes
from s3_server import KEYS, client, faulty, objects, s3_server

from curate import pipeline
from curate.errors import StoreError, UsageError
from curate.mix.export import export
from curate.mix.settings import Settings
from curate.progress import Display
from curate.recipe import Recipe
from curate.store import Store
from curate.store import files as stores
from curate.store.files import LocalFiles, open_files
from curate.store.parts import Version, parts_of, publish, read_parts
from curate.store.verify import verify

FAULTS = ("error500", "cut", "slow_down", "late", "conflict", "lost_answer")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """One S3 server for this file."""
    with s3_server() as address:
        yield address


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as short as with a server that is far away."""
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)


@contextmanager
def at(address: str, **more: str) -> Iterator[None]:
    """The environment in which clients find the server."""
    wanted = {**KEYS, "AWS_ENDPOINT_URL": address, **more}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.mark.parametrize("fault", FAULTS)
def test_a_put_that_fails_in_any_way_happens_once(server: str, fault: str) -> None:
    hit = iter([fault, fault])

    def choose(number: int, method: str, path: str) -> str | None:
        return next(hit, None) if method == "PUT" else None

    with faulty(server, choose) as (address, given), at(address):
        files = open_files(f"s3://bucket/{fault}")
        data = os.urandom(200_000)
        assert files.create("parts/one", data) is True
        assert given[fault] == (1 if fault == "late" else 2)
        assert files.create("parts/one", b"another") is False
        assert files.read("parts/one") == data
        assert list(files.list("parts")) == ["parts/one"]
        files.delete("parts/one")
        assert not files.exists("parts/one")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST"])
def test_reads_and_deletes_are_tried_again(server: str, method: str) -> None:
    hit = iter(FAULTS[:4])

    def choose(number: int, asked: str, path: str) -> str | None:
        return next(hit, None) if asked == method else None

    client(server).put_object(Bucket="bucket", Key=f"again{method}/x", Body=b"data")
    with faulty(server, choose) as (address, _), at(address):
        files = open_files(f"s3://bucket/again{method}")
        assert files.exists("x")
        assert files.read("x") == b"data"
        files.delete("x")
        assert not files.exists("x")


def test_a_server_that_never_answers_well_is_one_clear_line(server: str) -> None:
    tries, cap = stores.TRIES, stores.LONGEST_PAUSE_S
    with (
        faulty(server, lambda _, method, path: "conflict" if method == "PUT" else None) as (address, given),
        at(address),
    ):
        stores.TRIES, stores.LONGEST_PAUSE_S = 3, 0.01
        try:
            with pytest.raises(
                StoreError, match=r"s3://bucket/x/y: the store did not do as asked in 3 tries: .*run the same"
            ):
                open_files("s3://bucket/x").create("y", b"1")
        finally:
            stores.TRIES, stores.LONGEST_PAUSE_S = tries, cap
        assert given["conflict"] == 3


def test_a_bucket_that_is_not_there_is_named_at_once(server: str, recipe: Recipe, quiet: Callable[[], Display]) -> None:
    with faulty(server, lambda *_: None) as (address, given), at(address):
        with pytest.raises(StoreError, match="s3://nosuch/x: the bucket 'nosuch' does not exist"):
            open_files("s3://nosuch/x").create("y", b"1")
        remote = dataclasses.replace(recipe, store=dataclasses.replace(recipe.store, uri="s3://nosuch/x"))
        with pytest.raises(UsageError, match=r"store.uri = 's3://nosuch/x': the bucket 'nosuch' does not exist"):
            pipeline.run(remote, display=quiet())
    assert given["none"] < 10


def test_a_request_that_is_wrong_is_not_made_again(server: str) -> None:
    with faulty(server, lambda *_: "wrong") as (address, given), at(address):
        with pytest.raises(StoreError, match="refused: 400 ExpiredToken: it is too old"):
            open_files("s3://bucket/x").create("y", b"1")
        assert given["wrong"] == 1


def test_keys_that_are_set_to_nothing_are_not_set(server: str) -> None:
    with at(server, AWS_SESSION_TOKEN="", AWS_ENDPOINT_URL_S3="", AWS_PROFILE=" "):
        assert open_files("s3://bucket/empty").create("x", b"1")
        assert "AWS_SESSION_TOKEN" not in os.environ
    # Without any address this one would go out to AWS; that it is made at all is what failed before.
    done = subprocess.run(
        [sys.executable, "-c", "from curate.store.files import open_files; open_files('s3://bucket/x').store"],
        env={**os.environ, "AWS_ENDPOINT_URL": "", "AWS_ACCESS_KEY_ID": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_that_has_not_heard_of_a_compaction_hides_no_row(server: str) -> None:
    version = Version("size", "0123456789abcdef")

    def cells(shard: str, count: int) -> pa.Table:
        return pa.table({"shard": [shard] * count, "row": list(range(count)), "width": list(range(count))})

    with at(server):
        files = open_files("s3://bucket/shadow")
        for shard in "abc":
            publish(files, version, shard, cells(shard, 10))
        assert parts_of(files, version, "d") == []  # packs were listed: there were none
        compact = "from curate.store import files, packs; print(packs.compact(files.open_files('s3://bucket/shadow')))"
        done = subprocess.run([sys.executable, "-c", compact], capture_output=True, text=True, check=True)
        assert done.stdout == "(3, 1)\n"
        assert publish(files, version, "b", cells("b", 3)) is False
        table = read_parts(files, parts_of(files, version, "b"))
        assert table is not None
        assert table["row"].to_pylist() == list(range(10))
        assert len(list(files.list("parts"))) == 1


def test_a_mix_over_a_bad_connection_writes_the_same_bytes(server: str, tmp_path: Path) -> None:
    store = mixed_store.make(tmp_path, [[mixed_store.Row(i, raw=f"raw {i}") for i in range(12)]])
    asked = Settings(str(store), buckets="64x64", shard_rows=3)
    export(asked, str(tmp_path / "calm"), "inline")
    requests = itertools.count()

    def choose(number: int, method: str, path: str) -> str | None:
        """Every fourth request fails, in four ways in turn."""
        at = next(requests)
        return FAULTS[at // 4 % 4] if at % 4 == 1 else None

    with faulty(server, choose) as (address, given), at(address):
        export(asked, "s3://bucket/mix", "inline")
        files = open_files("s3://bucket/mix")
        found = {path: files.read(path) for path in files.list("")}
    assert min(given[fault] for fault in FAULTS[:4]) >= 2, given
    calm = LocalFiles(tmp_path / "calm")
    assert found == {path: calm.read(path) for path in (p.removeprefix("./") for p in calm.list(""))}


def test_a_run_over_a_bad_connection_writes_the_same_parts(
    server: str, finished_store: Path, recipe: Recipe, quiet: Callable[[], Display]
) -> None:
    for shard in Path(recipe.input.uri).glob("*.parquet"):
        client(server).put_object(Bucket="bucket", Key=f"in/{shard.name}", Body=shard.read_bytes())

    puts, rest = itertools.count(), itertools.count()

    def choose(number: int, method: str, path: str) -> str | None:
        """Every third put and every eleventh other request fails, in all ways in turn."""
        if method == "PUT":
            at = next(puts)
            return FAULTS[at // 3 % len(FAULTS)] if at % 3 == 2 else None
        at = next(rest)
        return FAULTS[at // 11 % 4] if at % 11 == 3 else None

    remote = dataclasses.replace(
        recipe,
        input=dataclasses.replace(recipe.input, uri="s3://bucket/in"),
        store=dataclasses.replace(recipe.store, uri="s3://bucket/bad"),
        engine=dataclasses.replace(recipe.engine, range_rows=20),
    )
    with faulty(server, choose) as (address, given), at(address, XDG_CACHE_HOME=str(finished_store.parent / "cache")):
        assert pipeline.run(remote, display=quiet()) == 0
        store = Store("s3://bucket/bad")
        assert verify(store) == []
        assert store.counts() == Store(finished_store).counts()
        store.close()
    assert min(given[fault] for fault in FAULTS) >= 2, given
    parts = {path: data for path, data in objects(server, "bad/").items() if path.startswith("parts/")}
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in parts.items() if path.endswith(".parquet")}
    assert hashes == part_hashes(finished_store)
