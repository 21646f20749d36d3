"""Parts are the truth: published once, readable by all; the index is derived, exactly once, and replaceable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from conftest import KILLS, ROOT, part_hashes

from curate import pipeline
from curate.errors import StoreError, UsageError
from curate.recipe import Recipe
from curate.store import Store
from curate.store import files as stores
from curate.store.files import LocalFiles, ObjectFiles, open_files
from curate.store.parts import Version, encode, fingerprint, list_parts, parse, parts_of, publish, read_parts
from curate.store.verify import forget, verify
from schemas.columns import indexed

V = Version("size", "0123456789abcdef")


def cells(rows: list[int], tag: str = "a") -> pa.Table:
    return pa.table({"shard": ["s"] * len(rows), "row": pa.array(rows, pa.int64()), "format": [tag] * len(rows)})


def test_a_published_file_is_never_overwritten(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    assert files.create("a/b", b"first")
    assert not files.create("a/b", b"second")
    assert files.read("a/b") == b"first"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b"]


def test_of_many_writers_of_one_name_one_wins(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    won: list[bytes] = []
    start = threading.Barrier(16)

    def write(mine: bytes) -> None:
        start.wait()
        if files.create("x", mine):
            won.append(mine)

    threads = [threading.Thread(target=write, args=(bytes([i]) * 1000,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert files.read("x") == won[0]


@pytest.mark.parametrize("way", [stores._rename_new, stores._rename_locked])
def test_where_files_have_no_second_name_the_first_writer_stays_too(
    tmp_path: Path, way: Callable[[Path, Path], bool]
) -> None:
    final, won = tmp_path / "part", []
    for i in range(8):
        (tmp_path / f".{i}").write_bytes(bytes([i]))
    start = threading.Barrier(8)

    def write(i: int) -> None:
        start.wait()
        if way(tmp_path / f".{i}", final):
            won.append(bytes([i]))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [final.read_bytes()] == won


def test_temporary_files_are_never_listed(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    files.create("parts/size@0123456789abcdef/s.parquet", b"x")
    (tmp_path / "parts" / "size@0123456789abcdef" / ".left-over.tmp").write_bytes(b"y")
    assert list(files.list("parts")) == ["parts/size@0123456789abcdef/s.parquet"]


@pytest.mark.parametrize(
    "path",
    ["parts/size@0123456789abcdef/a=b.c-d_e.parquet", "parts/size@0123456789abcdef/s+12.parquet"],
)
def test_a_part_path_reads_back(path: str) -> None:
    part = parse(path)
    assert part is not None
    assert part.path == path


@pytest.mark.parametrize("path", ["parts/size@x/s.parquet", "parts/size@0123/../s.parquet", "parts/operator.json"])
def test_other_paths_are_no_parts(path: str) -> None:
    assert parse(path) is None


def test_rows_are_published_once_and_later_rows_under_the_next_number(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    assert publish(files, V, "s", cells([0, 1, 2]))
    assert not publish(files, V, "s", cells([1, 2]))
    assert publish(files, V, "s", cells([2, 3], "b"))
    parts = parts_of(files, V, "s")
    assert [part.sequence for part in parts] == [0, 1] == [part.sequence for part in list_parts(files, V)]
    table = read_parts(files, parts)
    assert table is not None
    assert table.select(["row", "format"]).to_pylist() == [
        {"row": 0, "format": "a"}, {"row": 1, "format": "a"}, {"row": 2, "format": "a"}, {"row": 3, "format": "b"},
    ]  # fmt: skip


def test_parts_have_the_same_bytes_every_time() -> None:
    digests = {hashlib.sha256(encode(cells(list(range(5000))))).hexdigest() for _ in range(3)}
    assert len(digests) == 1


def test_a_fingerprint_depends_on_every_fact_and_not_on_their_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"a": 1, "b": 3})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3 server on loopback with an empty bucket, and the environment that points at it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    before = dict(os.environ)
    os.environ.update(
        AWS_ENDPOINT_URL=endpoint,
        AWS_ALLOW_HTTP="true",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_REGION="us-east-1",
        AWS_DEFAULT_REGION="us-east-1",
    )
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="bucket")
    client.close()
    yield "s3://bucket"
    os.environ.clear()
    os.environ.update(before)
    server.stop()


def test_an_object_store_publishes_create_if_absent(s3: str) -> None:
    files = open_files(f"{s3}/one")
    assert isinstance(files, ObjectFiles)
    assert files.create("parts/x", b"first")
    assert not files.create("parts/x", b"second")
    assert files.read("parts/x") == b"first"
    assert list(files.list("parts")) == ["parts/x"]
    files.delete("parts")
    assert list(files.list("parts")) == []
    with pytest.raises(FileNotFoundError):
        files.read("parts/x")


def test_a_run_into_an_object_store_gives_the_same_parts_and_the_same_answers(
    s3: str, recipe: Recipe, finished_store: Path, tmp_path: Path, quiet: object
) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    remote = dataclasses.replace(recipe, store=dataclasses.replace(recipe.store, uri=f"{s3}/run"))
    assert pipeline.run(remote, display=quiet()) == 0  # type: ignore[operator]
    there = open_files(f"{s3}/run")
    hashes = {part.path: hashlib.sha256(there.read(part.path)).hexdigest() for part in list_parts(there)}
    assert hashes == part_hashes(finished_store)
    question = "SELECT row_id, keep, drop_reason, error, caption_en, license FROM samples ORDER BY shard, row"
    assert Store(f"{s3}/run").rows(question) == Store(finished_store).rows(question)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown scheme 'ftp'"):
        open_files("ftp://host/store")


def test_a_folder_without_a_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store here; make one with: curate run"):
        Store(tmp_path).counts()


def test_the_index_is_rebuilt_from_parts_with_the_same_answers(finished_store: Path) -> None:
    store = Store(finished_store)
    before = {
        view: sorted(map(str, store.rows(f"FROM {view}"))) for view in ("samples", "captions", "scores", "errors")
    }
    store.close()
    (finished_store / "captions.duckdb").unlink()
    again = Store(finished_store)
    after = {view: sorted(map(str, again.rows(f"FROM {view}"))) for view in before}
    assert after == before


def test_a_damaged_index_is_set_aside_and_made_anew(finished_store: Path) -> None:
    (finished_store / "captions.duckdb").write_bytes(b"no database")
    Store(finished_store).ingest()
    assert Store(finished_store).counts()["rows"] == 47
    assert (finished_store / "captions.duckdb.damaged").read_bytes() == b"no database"


def test_ingesting_twice_adds_nothing(finished_store: Path) -> None:
    store = Store(finished_store)
    assert store.ingest() == 0
    assert store.rows("SELECT count(*), count(DISTINCT path) FROM commits")[0] == (27, 27)
    assert store.rows("SELECT count(*) FROM captions WHERE kind = 'raw'") == [(47,)]


def test_an_ingest_that_is_killed_leaves_the_old_index_whole(finished_store: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.duckdb"
    shutil.copyfile(finished_store / "captions.duckdb", old)
    command = (
        f"from curate.store import Store\nprint('go', flush=True)\nwhile True: Store({str(finished_store)!r}).rebuild()"
    )
    moments = random.Random(3)
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        threading.Event().wait(moments.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert Store(finished_store).counts()["rows"] == 47
    assert Store(finished_store).ingest() == 0


def test_readers_never_fail_while_the_index_is_replaced(finished_store: Path) -> None:
    stop = threading.Event()
    failures: list[str] = []

    def read() -> None:
        while not stop.is_set():
            store = Store(finished_store)
            if store.counts()["rows"] != 47:
                failures.append("rows")
            store.close()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        Store(finished_store).rebuild()
    stop.set()
    reader.join()
    assert not failures


def test_a_reader_with_a_lock_does_not_stop_an_ingest(finished_store: Path) -> None:
    with duckdb.connect(str(finished_store / "captions.duckdb")) as writer:
        assert Store(finished_store).rebuild() == 27
        assert writer.execute("SELECT count(*) FROM samples").fetchall() == [(47,)]


def test_a_store_that_is_open_sees_what_an_ingest_brought(finished_store: Path, recipe: Recipe, quiet: object) -> None:
    store = Store(finished_store)
    kept = store.counts()["kept"]
    everything = dataclasses.replace(recipe, policy=())
    pipeline.run(everything, display=quiet())  # type: ignore[operator]
    assert store.counts()["kept"] > kept


def test_a_run_that_went_silent_is_killed_and_one_that_is_under_way_is_not(finished_store: Path) -> None:
    store = Store(finished_store)
    record = json.loads(next(finished_store.glob("runs/*/run.json")).read_text()) | {"state": "running"}
    now = datetime.now(UTC)
    for run_id in ("29990101T000000", "29990102T000000"):
        store.files.replace(f"runs/{run_id}/run.json", json.dumps(record | {"run_id": run_id}).encode())

    def states(said: datetime) -> list[str]:
        status = {"run_id": "29990102T000000", "state": "running", "updated": said.isoformat(timespec="seconds")}
        store.files.replace("run_status.json", json.dumps(status).encode())
        store.ingest()
        return [state for (state,) in store.rows("SELECT state FROM runs ORDER BY run_id")]

    assert states(now) == ["finished", "killed", "running"]
    assert states(now - timedelta(seconds=60)) == ["finished", "killed", "killed"]


def test_operators_that_never_ran_cost_the_index_nothing_and_read_as_null(finished_store: Path) -> None:
    store = Store(finished_store)
    have = {name for (name, *_) in store.rows("DESCRIBE wide_cells")}
    assert {"sharpness", "_done_sharpness"} <= have
    assert not {"poster_caption_en", "_done_poster", "dedup_group", "train_loss"} & have
    asked = "count(*), count(poster_caption_en), count(dedup_group), count(train_loss), typeof(any_value(dedup_size))"
    assert store.rows(f"SELECT {asked} FROM samples") == [(47, 0, 0, 0, "INTEGER")]


def test_input_columns_keep_their_names_types_and_values(finished_store: Path) -> None:
    store = Store(finished_store)
    assert store.rows("SELECT typeof(license), count(*) FROM samples GROUP BY ALL") == [("VARCHAR", 47)]
    assert store.rows("SELECT license, count(*) FROM samples WHERE shard = 'train-00000' GROUP BY 1 ORDER BY 1") == [
        ("cc-by", 7), ("cc0", 13),
    ]  # fmt: skip


@pytest.mark.usefixtures("finished_store")
def test_shards_with_other_columns_and_types_share_one_table(
    recipe: Recipe, shards: Path, quiet: object, pictures: object
) -> None:
    import pyarrow.parquet as pq

    data = pictures(2, 9)  # type: ignore[operator]
    more = pa.table({"image": data, "caption": ["x", "y"], "license": [1, 2], "sharpness": [0.5, 0.25]})
    pq.write_table(more, shards / "train-00009.parquet")
    assert pipeline.run(recipe, display=quiet()) == 0  # type: ignore[operator]
    store = Store(recipe.store.uri)
    assert store.rows("SELECT license, input_sharpness FROM samples WHERE shard = 'train-00009' ORDER BY row") == [
        ("1", 0.5), ("2", 0.25),
    ]  # fmt: skip
    assert store.counts()["rows"] == 49


def test_drops_name_every_predicate_that_a_row_fails(finished_store: Path) -> None:
    rows = Store(finished_store).rows("SELECT DISTINCT drop_reason, failing FROM drops")
    assert rows == [("sharp", ["sharp"])]


def test_scores_hold_every_number_of_every_version(finished_store: Path) -> None:
    store = Store(finished_store)
    ((wide,),) = store.rows("SELECT sum(sharpness::DOUBLE) FROM samples")
    ((long,),) = store.rows("SELECT sum(value) FROM scores WHERE name = 'sharpness' AND active")
    assert wide == pytest.approx(long)


def test_verify_finds_nothing_wrong_with_a_sound_store(finished_store: Path) -> None:
    assert verify(Store(finished_store)) == []


def test_verify_names_a_torn_part_and_a_missing_one(finished_store: Path) -> None:
    parts = list_parts(LocalFiles(finished_store))
    sharpness = next(p for p in parts if p.version.operator == "sharpness")
    identity = next(p for p in parts if p.version.operator == "identity")
    torn = finished_store / sharpness.path
    torn.write_bytes(torn.read_bytes()[:-10])
    (finished_store / identity.path).unlink()
    problems = verify(Store(finished_store))
    assert any(sharpness.path in line and "does not read" in line for line in problems)
    assert any(identity.path in line and "the part is gone" in line for line in problems)


def test_a_forgotten_shard_is_scored_anew(finished_store: Path, recipe: Recipe, quiet: object) -> None:
    before = part_hashes(finished_store)
    store = Store(finished_store)
    assert forget(store, "train-00001") == 9
    assert store.counts()["rows"] == 27
    assert pipeline.run(recipe, display=quiet()) == 0  # type: ignore[operator]
    assert part_hashes(finished_store) == before
    with pytest.raises(UsageError, match="did you mean 'train-00001'"):
        forget(store, "train-0001")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "ATTACH '/tmp/other.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "PRAGMA enable_external_access = true",
        "CREATE TABLE store.main.t AS SELECT 1",
        "DELETE FROM commits",
        "EXPORT DATABASE '/tmp/out'",
        "SELECT getenv('HOME')",
        "CREATE SECRET s (TYPE s3)",
    ],
)
def test_the_sandbox_refuses(finished_once: Path, query: str) -> None:
    from curate.store import query as q

    with pytest.raises(UsageError):
        q.run(Store(finished_once / "store").connection(), query, 10, 10.0)


def test_a_query_that_takes_too_long_is_interrupted(finished_store: Path) -> None:
    from curate.store import query as q

    endless = "SELECT count(*) FROM range(1000000000) a, range(1000000000) b"
    with pytest.raises(UsageError, match=r"longer than 0\.2 s"):
        q.run(Store(finished_store).connection(), endless, 10, 0.2)


def test_an_index_that_duckdb_1_5_wrote_and_one_that_2_0_wrote_are_read_by_both(finished_store: Path) -> None:
    """Runs this file's tests of the store again under the other DuckDB, then crosses the files."""
    other = other_duckdb()
    environment = {**os.environ, "PYTHONPATH": str(other)}
    ask = (
        "import duckdb\nfrom curate.store import Store\n"
        f"s = Store({str(finished_store)!r})\nprint(duckdb.__version__, s.counts()['rows'])\n"
        "s.close()\ns.rebuild()\nprint(s.counts()['rows'])"
    )
    out = subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert out[0].split(".")[0] != duckdb.__version__.split(".")[0]
    assert out[1:] == ["47", "47"]
    assert Store(finished_store).counts()["rows"] == 47


def test_the_store_and_the_policy_work_under_the_other_duckdb() -> None:
    if "CURATE_OTHER_DUCKDB" in os.environ:
        pytest.skip("this is the other DuckDB")
    environment = {**os.environ, "PYTHONPATH": str(other_duckdb()), "CURATE_OTHER_DUCKDB": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/test_store.py",
        "tests/test_policy.py",
        "-x",
        "-p",
        "no:cacheprovider",
    ]
    # Not what has little to do with DuckDB and takes long: files, S3, kills, processes of their own.
    others = ("read_by_both", "writer", "publish", "object_store", "killed", "readers", "apart", "dies", "forgotten")
    ran = subprocess.run(
        [*command, "-k", f"not ({' or '.join(others)})"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:]


def other_duckdb() -> Path:
    """A folder with the DuckDB of the other major version, installed there once by pip."""
    version = "2.0.0" if duckdb.__version__.startswith("1.") else "1.5.6"
    folder = ROOT / ".cache" / f"duckdb-{version}"
    if not (folder / "duckdb").is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*install, f"duckdb=={version}"], check=True, capture_output=True)
    return folder


def test_equally_named_columns_of_a_query_are_all_written(finished_once: Path, tmp_path: Path) -> None:
    from curate.store import query as q

    table = q.run(Store(finished_once / "store").connection(), "SELECT 1 AS a, 2 AS a, 3 AS a_1", 0, 10.0)
    q.write(table, "json", tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written.values()) == [1, 2, 3]  # the names of repeats differ between DuckDB 1.5 and 2.0


def test_of_two_runs_that_began_in_the_same_second_the_later_one_is_active(
    finished_store: Path,
) -> None:
    (first,) = (finished_store / "runs").iterdir()
    later = dict(
        json.loads((first / "run.json").read_text("utf-8")), run_id=f"{first.name}+0001", policy=[], predicates=[]
    )
    (finished_store / "runs" / later["run_id"]).mkdir()
    (finished_store / "runs" / later["run_id"] / "run.json").write_text(json.dumps(later), "utf-8")
    store = Store(finished_store)
    store.ingest()
    assert store.rows("SELECT count(*) FROM policy") == [(0,)]


@pytest.mark.usefixtures("finished_store")
def test_columns_of_the_input_may_have_any_name(recipe: Recipe, shards: Path, quiet: object, pictures: object) -> None:
    import pyarrow.parquet as pq

    data = pictures(2, 9)  # type: ignore[operator]
    names = ["id", "fingerprint", "verdict", "number", "done_size", "_id", "row_id", "Shard", "select", 'a"b']
    more = pa.table({"image": data, "caption": ["x", "y"], **{name: [f"{name} 0", f"{name} 1"] for name in names}})
    pq.write_table(more, shards / "train-00009.parquet")
    assert pipeline.run(recipe, display=quiet()) == 0  # type: ignore[operator]
    found = (
        Store(recipe.store.uri).sql("SELECT * FROM samples WHERE shard = 'train-00009' AND row = 1").to_arrow_table()
    )
    shown = {"_id": "input__id", "row_id": "input_row_id", "Shard": "input_Shard"}
    assert {name: found[shown.get(name, name)][0].as_py() for name in names} == {name: f"{name} 1" for name in names}


def test_an_index_made_apart_is_the_same(finished_store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = Store(finished_store)
    before = store.rows("SELECT * FROM samples ORDER BY shard, row")
    store.path.unlink()
    told: list[dict[str, int]] = []
    assert store.ingest(closing=told.append, apart=True) == len(list_parts(store.files))
    assert store.rows("SELECT * FROM samples ORDER BY shard, row") == before
    assert told == [store.counts()]
    assert capfd.readouterr() == ("", "")


def test_an_index_process_that_dies_is_one_line_and_leaves_the_old_index(finished_store: Path) -> None:
    store = Store(finished_store)
    before = store.path.read_bytes()

    def kill(_: dict[str, int]) -> None:
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in children.read_text().split():
                if b"curate.store.apart" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(StoreError, match=r"ended with code -9; nothing is lost, make it with: curate store ingest"):
        store.ingest(closing=kill, apart=True)
    assert store.path.read_bytes() == before


@pytest.mark.usefixtures("finished_store")
def test_a_version_that_is_active_no_more_and_active_again_keeps_its_cells(recipe: Recipe, quiet: object) -> None:
    captions = "SELECT active, kind, language, count(*) FROM captions GROUP BY ALL ORDER BY ALL"
    scores = "SELECT active, operator, count(*), sum(value) FROM scores GROUP BY ALL ORDER BY ALL"
    errors = "SELECT operator, error, count(*) FROM errors GROUP BY ALL ORDER BY ALL"
    blunt = dataclasses.replace(recipe, sharpness=dataclasses.replace(recipe.sharpness, long_side_px=96))
    answers = []
    for each in (recipe, blunt, recipe):
        assert pipeline.run(each, display=quiet()) == 0  # type: ignore[operator]
        store = Store(recipe.store.uri)
        answers.append([store.rows(query) for query in (captions, scores, errors)])
        store.rebuild()
        assert [store.rows(query) for query in (captions, scores, errors)] == answers[-1]
    first, second, third = ([[row for row in rows if row[0] is True] for rows in answer[:2]] for answer in answers)
    assert first == third
    assert first != second
    assert answers[0][2] == answers[2][2]
    former = [row for row in answers[1][1] if row[0] is False]
    assert [row[1:] for row in former if row[1] == "sharpness"] == [r[1:] for r in first[1] if r[1] == "sharpness"]


def test_embeddings_stay_in_the_parts_and_are_read_from_them() -> None:
    assert indexed(pa.list_(pa.float32()))
    assert not indexed(pa.list_(pa.float16()))


def test_cells_come_from_the_parts_of_the_active_version(finished_store: Path) -> None:
    store = Store(finished_store)
    tables = list(store.cells("size", ["width"]))
    assert [t.column_names for t in tables] == [["shard", "row", "error", "width"]] * 3
    have = [
        cell
        for t in tables
        for cell in zip(t["shard"].to_pylist(), t["row"].to_pylist(), t["width"].to_pylist(), strict=True)
    ]
    assert sorted(have) == store.rows("SELECT shard, row, width FROM wide_cells WHERE _done_size ORDER BY shard, row")
    assert list(store.cells("dedup")) == []
