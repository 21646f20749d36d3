"""The command line as a user meets it: exit codes, one clear line for each mistake, rows that come out as they are."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len
from rich.console import Console
from small_store import TINY, make_store
from small_store import recipe as small_recipe

from curate import cli, status
from curate.errors import StoreError, UsageError
from curate.recipe import to_toml
from curate.store import Store
from curate.store.query import run
from curate.table import show

ROWS = TINY + 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cli"))


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def process(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, as a shell starts it."""
    command = [sys.executable, "-m", "curate.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120)


def curate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same entry point in this process, which saves the imports."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["curate", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(sys.argv, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def sql(store: Path, query: str, *options: str) -> subprocess.CompletedProcess[str]:
    return curate("sql", store, query, *options)


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("curate: ")
    for word in words:
        assert word in done.stderr


def too_wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if cell_len(line) > 80]


# mistakes


def test_an_unknown_recipe_key_exits_2_and_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[input]\nuri = "x"\n[store]\nurl = "y"\n')
    assert_one_line(curate("run", tmp_path / "r.toml"), 2, "store.url", "did you mean 'uri'")


def test_an_unknown_section_by_set_exits_2(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("")
    assert_one_line(curate("run", tmp_path / "r.toml", "--set", "polcy.a=b"), 2, "[polcy]", "did you mean 'policy'")


def test_the_exit_code_and_the_line_reach_the_shell(tmp_path: Path) -> None:
    done = process("sql", tmp_path / "none", "select 1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"curate: ")
    assert b"Traceback" not in done.stderr


def test_an_unknown_command_exits_2() -> None:
    assert_one_line(curate("explane"), 2, "explane")


def test_a_missing_argument_exits_2() -> None:
    assert_one_line(curate("sql", "store"), 2, "SQL")


@pytest.mark.parametrize("command", [("sql", "select 1"), ("explain", "a:1"), ("status",), ("serve",)])
def test_a_store_that_is_not_there_is_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    name, *rest = command
    assert_one_line(curate(name, tmp_path / "none", *rest), 1, str(tmp_path / "none"), "curate run RECIPE")
    assert not (tmp_path / "none").exists()


def test_an_unknown_row_exits_2_with_the_nearest(store: Path) -> None:
    assert_one_line(curate("explain", store, "demo-00000:4711"), 2, f"demo-00000:{ROWS - 1}")


def test_bad_sql_is_one_line_and_exit_2(store: Path) -> None:
    assert_one_line(sql(store, "select widht from samples"), 2, "SQL: ", "widht")


@pytest.mark.parametrize("query", ["selec 1", "select 1; select 2", "", "select 'abc'::INT"])
def test_bad_sql_is_the_users_mistake(store: Path, query: str) -> None:
    opened = Store(store)
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        run(opened.connection(), query, 10, 10.0)
    opened.close()


def test_an_unknown_format_exits_2(store: Path) -> None:
    assert_one_line(sql(store, "select 1", "--format", "xml"), 2, "'xml'", "csv")


# the sandbox


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from glob('/*')",
        "copy (select 1) to 'stolen.csv'",
        "export database 'stolen'",
        "attach 'other.duckdb'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "pragma memory_limit = '8GB'",
        "delete from wide",
        "drop view samples",
        "update wide set error = NULL",
        "create table store.main.x as select 1",
    ],
)
def test_sql_reaches_nothing_but_the_index_and_changes_nothing(store: Path, query: str, tmp_path: Path) -> None:
    before = (store / "captions.duckdb").read_bytes()
    opened = Store(store)
    with pytest.raises(UsageError, match=r"^SQL: [^\n]+$"), contextlib.chdir(tmp_path):
        run(opened.connection(), query, 10, 10.0)
    opened.close()
    assert list(tmp_path.iterdir()) == []
    assert (store / "captions.duckdb").read_bytes() == before


def test_what_the_sandbox_denies_is_one_line_and_exit_2(store: Path) -> None:
    assert_one_line(sql(store, "select * from read_text('/etc/passwd')"), 2, "SQL: Permission Error")


def test_a_query_that_takes_too_long_is_stopped(store: Path) -> None:
    endless = "select count(*) from range(1000000) a, range(1000000) b where a.range * b.range % 7 = 3"
    assert_one_line(sql(store, endless, "--timeout", "0.2"), 2, "longer than 0.2 s", "--timeout")


# rows out

QUERY = (
    "select row_id, width, aspect, caption_raw, colors, keep, drop_reason from samples where row_id <> 'x' "
    "order by shard, row limit 9"
)


def test_csv_json_and_parquet_give_the_same_rows(store: Path, tmp_path: Path) -> None:
    paths = {kind: tmp_path / f"rows.{kind}" for kind in ("csv", "json", "parquet")}
    for kind, path in paths.items():
        assert sql(store, QUERY, "--format", kind, "--out", str(path)).returncode == 0
    parquet = pq.read_table(paths["parquet"]).to_pylist()
    assert len(parquet) == 9
    assert [json.loads(line) for line in paths["json"].read_text("utf-8").splitlines()] == parquet
    read = list(csv.DictReader(io.StringIO(paths["csv"].read_text("utf-8"))))
    assert [row["row_id"] for row in read] == [row["row_id"] for row in parquet]
    assert [row["caption_raw"] for row in read] == [row["caption_raw"] or "" for row in parquet]
    assert [json.loads(row["colors"] or "null") for row in read] == [row["colors"] for row in parquet]


def test_standard_output_takes_parquet_too(store: Path) -> None:
    done = process("sql", store, QUERY, "--format", "parquet")
    assert pq.read_table(pa.BufferReader(done.stdout)).num_rows == 9


def test_limit_holds_for_every_format(store: Path) -> None:
    done = sql(store, "select row_id from samples", "--format", "json", "--limit", "3")
    assert len(done.stdout.splitlines()) == 3
    done = sql(store, "select row_id from samples", "--format", "csv")
    assert len(done.stdout.splitlines()) == ROWS + 1


def test_a_table_says_that_there_are_more_rows(store: Path) -> None:
    done = sql(store, "select row_id from samples order by shard, row")
    lines = done.stdout.splitlines()
    assert lines[-1] == "the first 40 rows; --limit 0 shows all"
    assert lines[2] == "demo-00000:0"
    assert len(lines) == 43
    whole = sql(store, "select row_id from samples", "--limit", "0").stdout.splitlines()
    assert len(whole) == ROWS + 2
    assert "more rows" not in whole[-1]


@pytest.mark.parametrize(
    "query", ["select * from samples limit 3", QUERY, "select caption_zh, caption_en from samples"]
)
def test_a_table_fits_eighty_columns(store: Path, query: str) -> None:
    done = sql(store, query)
    assert done.returncode == 0
    assert too_wide(done.stdout) == []
    assert "\x1b" not in done.stdout


def table_lines(table: pa.Table, limit: int = 0, width: int = 80) -> list[str]:
    out = io.StringIO()
    show(table, limit, Console(file=out, width=width))
    return out.getvalue().splitlines()


def test_wide_characters_keep_columns_straight() -> None:
    lines = table_lines(pa.table({"text": ["一幅正方形图片，米色" * 9, "plain " * 30], "n": [1, 22]}))
    assert {cell_len(line) for line in lines[2:]} == {80}
    assert all("…" in line for line in lines[2:])


def test_numbers_are_never_cut_and_floats_are_short() -> None:
    table = pa.table({"score": [0.123456789, 1234567.891], "id": [1, 12345678901234], "text": ["x" * 500, ""]})
    lines = table_lines(table)
    assert "0.1235" in lines[2]
    assert "1234568" in lines[3]
    assert "12345678901234" in lines[3]


def test_null_is_told_from_empty_text_and_nested_values_are_compact() -> None:
    table = pa.table({"a": [None, ""], "b": [[1.5, None], list(range(40))], "c": [{"x": 1}, None]})
    lines = table_lines(table)
    assert lines[2].split("  ")[0] == "NULL"
    assert "[1.5, NULL]" in lines[2]
    assert "40 in all]" in lines[3]
    assert "{x: 1}" in lines[2]


def test_many_columns_become_one_record_a_block() -> None:
    lines = table_lines(pa.table({f"column_{i}": [float(i), 2.0] for i in range(30)}))
    assert lines[0].startswith("── row 1 ─")
    assert len(lines) == 2 * 31
    assert lines[1].split() == ["column_0", "0"]


def test_text_cannot_move_the_cursor_or_turn_the_line_around() -> None:
    (line,) = table_lines(pa.table({"t": ["a\x1b[2Jb\r\nc\u202ed\x07"]}))[2:]
    assert line == "a\ufffd[2Jb↵c\ufffdd\ufffd"


def test_two_columns_of_one_name_are_both_shown() -> None:
    lines = table_lines(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]))
    assert lines[2].split() == ["1", "2"]


def test_no_rows_is_said() -> None:
    assert table_lines(pa.table({"a": pa.array([], pa.int32())}))[-1] == "no rows"


# status


def written(folder: Path, **changes: Any) -> datetime:
    now = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    values: dict[str, Any] = {
        "state": "running", "updated": now.isoformat(timespec="seconds"), "seconds": 300.0, "shards_total": 8,
        "shards_done": 2, "shards_failed": 0, "rows_known": 4000, "rows_done": 2000, "rows_computed": 2600,
        "rows_per_second": 8.7, "eta_seconds": 900, "errors": {"truncated": 3, "empty": 9}, "crashes": 1,
        "waiting_for": "a worker",
    }  # fmt: skip
    (folder / "run_status.json").write_text(json.dumps(values | changes))
    return now


def said(folder: Path, now: datetime) -> str:
    out = io.StringIO()
    status.show(str(folder), Console(file=out, width=80), now)
    assert too_wide(out.getvalue()) == []
    return out.getvalue()


def test_status_of_a_running_run_tells_how_far_it_is_and_what_it_waits_for(tmp_path: Path) -> None:
    text = said(tmp_path, written(tmp_path) + timedelta(seconds=5))
    for words in ("running", "2 of 8", "2,000 done of 4,000", "8.7 rows/s", "15 min", "9 empty, 3 truncated"):
        assert words in text
    assert "worker crashes: 1" in text
    assert "waiting for a worker" in text
    assert "no sign of life" not in text


def test_a_killed_run_gives_no_sign_of_life(tmp_path: Path) -> None:
    text = said(tmp_path, written(tmp_path) + timedelta(seconds=40))
    assert "no sign of life since 40 s" in text
    assert "run the same command" in text


def test_a_finished_run_may_be_old(tmp_path: Path) -> None:
    now = written(tmp_path, state="finished", waiting_for="", crashes=0, errors={})
    text = said(tmp_path, now + timedelta(days=9))
    assert text.startswith("finished   took 5 min")
    assert "no sign of life" not in text


def test_a_damaged_status_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run_status.json").write_text("{")
    with pytest.raises(StoreError, match=r"run_status\.json: damaged"):
        status.show(str(tmp_path))


def test_status_after_a_run(store: Path) -> None:
    done = curate("status", store)
    assert done.returncode == 0
    assert done.stdout.startswith("finished")
    assert f"{ROWS} done of {ROWS} known" in done.stdout


# dry run


def planned(folder: Path, *sets: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(to_toml(small_recipe(folder)))
    options: Iterable[str] = (word for each in sets for word in ("--set", each))
    done = curate("run", path, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_a_dry_run_of_a_finished_store_has_nothing_to_do_and_does_nothing(store: Path) -> None:
    before = sorted(path for path in store.rglob("*") if path.is_file())
    text = planned(store.parent)
    assert "to do   nothing; everything is done" in text
    assert sorted(path for path in store.rglob("*") if path.is_file()) == before
    plan = text.partition("\nrecipe\n")[0]
    assert [line for line in too_wide(plan) if str(store.parent) not in line] == []


def test_a_dry_run_counts_what_a_changed_key_would_compute(store: Path) -> None:
    text = planned(store.parent, "photometry.luma_px=256")
    (line,) = [line for line in text.splitlines() if line.startswith("photometry ")]
    assert "0 of 1" in line
    assert f"to do   {ROWS - 3} rows in 1 shard" in text  # three rows failed before photometry


def test_a_dry_run_lists_the_policy_as_it_judges_and_ends_with_the_recipe(store: Path) -> None:
    text = planned(store.parent)
    names = [line.split()[1] for line in text.splitlines() if line[:1].isdigit()]
    assert names == ["resolution", "quality", "sharp"]
    assert "after sharpness" in text
    assert '"sharp" = "sharpness_tile >= 60"' in text.partition("\nrecipe\n")[2]


def test_a_dry_run_of_a_new_store_says_that_nothing_was_read_yet(store: Path, tmp_path: Path) -> None:
    text = planned(store.parent, f"store.uri={tmp_path / 'new'}")
    assert "all rows of 1 shard not read yet" in text
    assert not (tmp_path / "new").exists()


def test_the_command_line_loads_nothing_that_takes_long() -> None:
    """Commands import what they need when they run, so that help and errors come at once."""
    code = "import sys, curate.cli; print(*{'duckdb', 'numpy', 'pyarrow', 'cv2', 'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
