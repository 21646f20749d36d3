"""The spine: rows in = rows out, nothing computed twice, both engines alike, and what kills a worker found."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from conftest import KILLS, part_hashes
from PIL import Image

from curate import pipeline
from curate.engine import cluster
from curate.engine.cluster import Cluster
from curate.engine.driver import Progress, _Ready, drive
from curate.engine.inline import Inline
from curate.engine.tasks import Compute, Index, Publish, Survey
from curate.engine.worker import Worker, cut
from curate.errors import CurateError
from curate.explain import lineage
from curate.plan import Operator
from curate.progress import Display
from curate.read import InputSpec, Shard
from curate.recipe import Recipe, to_toml
from curate.store import Store
from curate.store.files import LocalFiles
from curate.store.verify import forget, verify
from schemas.errors import RowError
from workers.sample import Sample

Quiet = Callable[[], Display]


def run(recipe: Recipe, quiet: Quiet, path: Sequence[Operator] = pipeline.PATH) -> tuple[int, dict[str, int]]:
    """Run the recipe; exit code and the number of cells that each operator computed."""
    code = pipeline.run(recipe, path=path, display=quiet())
    return code, computed(recipe)


def computed(recipe: Recipe) -> dict[str, int]:
    """The number of cells that each operator computed in the last run."""
    (report,) = Store(recipe.store.uri).rows("SELECT report->'cells' FROM runs ORDER BY run_id DESC LIMIT 1")
    return dict(json.loads(report[0]))


def changed(recipe: Recipe, section: str, **keys: Any) -> Recipe:
    """The recipe with some keys of a section replaced."""
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **keys)})


def test_every_input_row_is_one_row_of_samples(finished_store: Path) -> None:
    store = Store(finished_store)
    assert store.rows("SELECT shard, count(*), count(DISTINCT row) FROM samples GROUP BY 1 ORDER BY 1") == [
        ("train-00000", 20, 20), ("train-00001", 20, 20), ("train-00002", 7, 7),
    ]  # fmt: skip
    counts = store.counts()
    assert counts["rows"] == counts["kept"] + counts["dropped"] + counts["failed"] == 47
    assert counts["undecided"] == 0


def test_a_broken_row_is_one_row_of_errors_and_its_neighbours_are_scored(finished_store: Path) -> None:
    store = Store(finished_store)
    assert store.rows("SELECT row, operator, error FROM errors WHERE shard = 'train-00000' ORDER BY row") == [
        (3, "size", "truncated"), (5, "size", "empty"),
    ]  # fmt: skip
    assert store.rows("SELECT sha256 IS NOT NULL, keep, drop_reason FROM samples WHERE row_id = 'train-00000:3'") == [
        (True, False, None)
    ]
    assert store.rows("SELECT count(sharpness) FROM samples") == [(41,)]


@pytest.mark.usefixtures("finished_store")
def test_rejected_rows_never_reach_the_costly_operators(recipe: Recipe) -> None:
    cells = computed(recipe)
    store = Store(recipe.store.uri)
    sharp = store.rows("SELECT count(*) FROM samples WHERE sharpness_tile >= 60")[0][0]
    assert 0 < sharp < 41
    assert cells["faces"] == cells["caption"] == cells["translate"] == sharp
    assert cells["sharpness"] == 41
    assert store.rows("SELECT count(*) FROM samples WHERE drop_reason = 'sharp' AND faces IS NOT NULL") == [(0,)]


def test_exhaustive_scores_rejected_rows_too(recipe: Recipe, quiet: Quiet) -> None:
    _, cells = run(changed(recipe, "run", exhaustive=True), quiet)
    assert cells["faces"] == cells["caption"] == 41


@pytest.mark.usefixtures("finished_store")
def test_a_second_run_computes_nothing(recipe: Recipe, quiet: Quiet) -> None:
    before = part_hashes(Path(recipe.store.uri))
    code, cells = run(recipe, quiet)
    assert (code, cells) == (0, {})
    assert part_hashes(Path(recipe.store.uri)) == before


@pytest.mark.usefixtures("finished_store")
def test_a_tighter_threshold_computes_nothing_and_drops_more(recipe: Recipe, quiet: Quiet) -> None:
    kept = Store(recipe.store.uri).counts()["kept"]
    stricter = dataclasses.replace(recipe, policy=(("sharp", "sharpness_tile >= 1e9"), *recipe.policy[1:]))
    _, cells = run(stricter, quiet)
    assert cells == {}
    assert kept > Store(recipe.store.uri).counts()["kept"] == 0


@pytest.mark.usefixtures("finished_store")
def test_a_looser_threshold_computes_only_the_rows_that_it_lets_in(recipe: Recipe, quiet: Quiet) -> None:
    first = computed(recipe)
    looser = dataclasses.replace(recipe, policy=recipe.policy[1:])
    _, cells = run(looser, quiet)
    assert cells == dict.fromkeys(("faces", "caption", "translate"), 41 - first["faces"])
    assert Store(recipe.store.uri).rows("SELECT count(*), count(DISTINCT row_id), count(faces) FROM samples") == [
        (47, 47, 41)
    ]


@pytest.mark.usefixtures("finished_store")
def test_a_new_caption_prompt_computes_captions_and_their_translations_only(recipe: Recipe, quiet: Quiet) -> None:
    first = computed(recipe)
    store = Store(recipe.store.uri)
    old = store.rows("SELECT row_id, caption_en FROM samples WHERE keep ORDER BY 1")
    _, cells = run(changed(recipe, "caption", prompt="Say it another way."), quiet)
    assert cells == {"caption": first["caption"], "translate": first["translate"]}
    assert store.rows("SELECT row_id, caption_en FROM samples WHERE keep ORDER BY 1") != old
    versions = "SELECT count(DISTINCT fingerprint), count(*) FILTER (active) FROM captions WHERE language = 'en' "
    assert store.rows(versions + "AND kind = 'synthetic'") == [(2, first["caption"])]


def test_an_operator_that_is_added_later_computes_its_own_column_only(recipe: Recipe, quiet: Quiet) -> None:
    without = dataclasses.replace(changed(recipe, "aesthetic", engine="none"))
    run(without, quiet)
    _, cells = run(recipe, quiet)
    assert cells == {"aesthetic": 41}


@pytest.mark.usefixtures("finished_store")
@pytest.mark.usefixtures("ray_cluster")
def test_ray_and_inline_write_the_same_bytes(recipe: Recipe, quiet: Quiet, tmp_path: Path) -> None:
    on_ray = changed(changed(recipe, "store", uri=str(tmp_path / "other")), "engine", kind="ray", range_rows=3)
    run(on_ray, quiet)
    assert part_hashes(Path(recipe.store.uri)) == part_hashes(tmp_path / "other")


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests


class Trap:
    """A face counter that dies, hangs, raises or eats memory on pictures that are 131, 132, 133 or 134 px wide."""

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        for sample in samples:
            if sample.picture.header.width == 131:
                os.kill(os.getpid(), signal.SIGSEGV)
            if sample.picture.header.width == 132:
                re.match("(a+)+$", 60 * "a" + "b")  # native code that holds the interpreter's lock, for ages
            if sample.picture.header.width == 133:
                raise ValueError("no such face")
            if sample.picture.header.width == 134:
                bytearray(64 * 2**30)
        return [{"faces": 0, "face_area": 0.0, "face_boxes": [], "face_engine": "trap"} for _ in samples]


def with_trap() -> tuple[Operator, ...]:
    """The path with the trap in place of the face detector."""
    trap = {"load": lambda recipe: Trap(), "facts": lambda recipe: {"version": 1, "engine": "trap"}}
    return tuple(dataclasses.replace(op, **trap) if op.name == "faces" else op for op in pipeline.PATH)


def set_traps(recipe: Recipe) -> None:
    """Leave one shard; give four of its rows that pass the first gate the widths that the trap snaps at."""
    where = Path(recipe.input.uri) / "train-00001.parquet"
    table = pq.read_table(where)
    for other in Path(recipe.input.uri).glob("*.parquet"):
        other.unlink()
    data = table["image"].to_pylist()
    chosen = {7: 131, 11: 132, 13: 133, 15: 134}
    for row, width in chosen.items():
        out = io.BytesIO()
        Image.open(io.BytesIO(data[row])).resize((width, 80)).save(out, "PNG")
        data[row] = out.getvalue()
    pq.write_table(table.set_column(0, "image", pa.array(data, pa.binary())), where, row_group_size=8)


@pytest.mark.usefixtures("ray_cluster")
def test_what_kills_or_hangs_a_worker_is_flagged_alone(recipe: Recipe, quiet: Quiet, tmp_path: Path) -> None:
    set_traps(recipe)
    trapped = changed(recipe, "store", uri=str(tmp_path / "trapped"))
    trapped = changed(trapped, "engine", kind="ray", range_rows=2, batch_timeout_s=8.0, worker_memory_gb=4.0)
    code, _ = run(trapped, quiet, with_trap())
    store = Store(trapped.store.uri)
    assert code == 0, store.rows("FROM shards")
    assert store.rows("SELECT row_id, operator, error FROM errors WHERE operator = 'faces' ORDER BY row") == [
        ("train-00001:7", "faces", "worker_crash"),
        ("train-00001:11", "faces", "timeout"),
        ("train-00001:13", "faces", "operator_failed"),
        ("train-00001:15", "faces", "out_of_memory"),
    ]
    assert store.rows("SELECT count(*), count(DISTINCT row_id), count(sharpness) FROM samples") == [(20, 20, 18)]
    passed = store.rows("SELECT count(*) FROM samples WHERE sharpness_tile >= 60 AND error IS NULL")
    assert store.rows("SELECT count(faces) FROM samples") == passed


def test_an_inline_hang_in_python_is_a_timeout(recipe: Recipe, quiet: Quiet, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    data = []
    for width in (100, 132, 104):
        out = io.BytesIO()
        Image.effect_noise((width, 90), 90).save(out, "PNG")
        data.append(out.getvalue())
    pq.write_table(pa.table({"image": data}), folder / "a.parquet")
    slow = changed(changed(recipe, "input", uri=str(folder)), "engine", batch_timeout_s=0.3)
    run(slow, quiet, with_trap())
    assert Store(recipe.store.uri).rows("SELECT row, error FROM samples ORDER BY row") == [
        (0, None), (1, "timeout"), (2, None),
    ]  # fmt: skip


def test_a_batch_that_does_not_fit_in_memory_is_halved(recipe: Recipe, quiet: Quiet) -> None:
    sizes: list[int] = []

    def hungry(samples: Sequence[Sample]) -> list[dict[str, Any]]:
        sizes.append(len(samples))
        if len(samples) > 2:
            raise MemoryError("too much at once")
        return [{"faces": 0, "face_area": 0.0, "face_boxes": [], "face_engine": "hungry"} for _ in samples]

    replaced = {"load": lambda recipe: hungry, "facts": lambda recipe: {"version": 1, "engine": "hungry"}}
    path = tuple(dataclasses.replace(op, **replaced) if op.name == "faces" else op for op in pipeline.PATH)
    run(recipe, quiet, path)
    assert max(sizes) > 2
    assert Store(recipe.store.uri).rows("SELECT count(*) FROM errors WHERE operator = 'faces'") == [(0,)]


def test_an_unreadable_shard_fails_alone_with_exit_code_3(recipe: Recipe, quiet: Quiet) -> None:
    Path(recipe.input.uri, "train-00001.parquet").write_bytes(b"PAR1 this is no parquet file")
    code, _ = run(recipe, quiet)
    store = Store(recipe.store.uri)
    assert code == 3
    assert store.rows("SELECT count(*) FROM samples") == [(27,)]
    ((shard, error, message),) = store.rows("SELECT shard, error, message FROM shards WHERE error IS NOT NULL")
    assert (shard, error) == ("train-00001", "shard_unreadable")
    assert "train-00001.parquet" in message


@pytest.mark.usefixtures("finished_store")
def test_a_shard_that_changed_is_refused_and_its_rows_stay(recipe: Recipe, quiet: Quiet, shards: Path) -> None:
    table = pq.read_table(shards / "train-00002.parquet")
    pq.write_table(table.slice(2), shards / "train-00002.parquet")
    code, cells = run(recipe, quiet)
    store = Store(recipe.store.uri)
    assert (code, cells) == (3, {})
    assert store.rows("SELECT error FROM shards WHERE error IS NOT NULL") == [("shard_changed",)]
    assert store.rows("SELECT count(*) FROM samples WHERE shard = 'train-00002'") == [(7,)]


def test_more_failed_rows_than_allowed_is_exit_code_3(recipe: Recipe, quiet: Quiet) -> None:
    code, _ = run(changed(recipe, "run", max_failed_share=0.05), quiet)
    assert code == 3


def kill_while_it_works(command: list[str], store: Path, kills: int) -> None:
    """Start the run `kills` times, each time killing it when it has saved a few more files than before (0 to 2)."""
    moments = random.Random(20)
    for _ in range(kills):
        target = saved(store) + moments.randint(0, 2)
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and saved(store) <= target:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            shutil.rmtree(store)  # this time it was done before; the next kills hit a run from the start


def saved(store: Path) -> int:
    """Finished ranges and published parts so far: ranges that are replaced by their part count on."""
    return sum(1 for folder in ("staging", "parts") for path in (store / folder).rglob("[!.]*.parquet"))


@pytest.mark.usefixtures("finished_store")
def test_a_run_that_is_killed_many_times_ends_as_if_it_had_not_been(
    recipe: Recipe, quiet: Quiet, tmp_path: Path
) -> None:
    disturbed = changed(recipe, "store", uri=str(tmp_path / "disturbed"))
    disturbed = changed(disturbed, "engine", range_rows=2)
    where = tmp_path / "recipe.toml"
    where.write_text(to_toml(disturbed), "utf-8")
    command = [sys.executable, "-m", "curate.pipeline", str(where)]
    kill_while_it_works(command, tmp_path / "disturbed", KILLS)
    run(disturbed, quiet)
    assert part_hashes(tmp_path / "disturbed") == part_hashes(Path(recipe.store.uri))
    assert Store(disturbed.store.uri).counts() == Store(recipe.store.uri).counts()
    states = [state for (state,) in Store(disturbed.store.uri).rows("SELECT state FROM runs ORDER BY run_id")]
    assert states.pop() == "finished"
    assert "killed" in states
    assert "running" not in states


@pytest.mark.usefixtures("finished_store")
def test_a_run_on_ray_whose_driver_is_killed_ends_as_if_it_had_not_been(
    recipe: Recipe, quiet: Quiet, tmp_path: Path
) -> None:
    disturbed = changed(recipe, "store", uri=str(tmp_path / "disturbed"))
    where = tmp_path / "recipe.toml"
    where.write_text(to_toml(changed(disturbed, "engine", kind="ray", range_rows=1)), "utf-8")
    kill_while_it_works(
        [sys.executable, "-m", "curate.pipeline", str(where)], tmp_path / "disturbed", max(1, KILLS // 6)
    )
    run(disturbed, quiet)
    assert part_hashes(tmp_path / "disturbed") == part_hashes(Path(recipe.store.uri))


def test_a_kill_costs_at_most_the_open_range(recipe: Recipe, quiet: Quiet) -> None:
    prepared = pipeline.prepare(recipe)
    seen = 0

    def stop() -> bool:
        return seen >= 5

    class Counting(Inline):
        def submit(self, pool: str, task: Any) -> None:
            nonlocal seen
            seen += isinstance(task, Compute)
            super().submit(pool, task)

    interrupted = Progress(3)
    drive(prepared.plan, Counting(prepared.plan), prepared.shards, interrupted, lambda p: None, stop)
    assert interrupted.interrupted
    first = interrupted.tally.cells["size"]
    assert 0 < first < 47
    rest = Progress(3)
    drive(prepared.plan, Inline(prepared.plan), prepared.shards, rest, lambda p: None, lambda: False)
    assert first + rest.tally.cells["size"] == 47


def test_a_run_that_stops_within_its_second_stage_goes_on(recipe: Recipe, finished_once: Path) -> None:
    path = tuple(
        dataclasses.replace(op, pool="gpu") if op.name in ("caption", "translate") else op for op in pipeline.PATH
    )
    prepared = pipeline.prepare(changed(recipe, "engine", range_rows=2), path)
    assert [stage.pool for stage in prepared.plan.stages] == ["cpu", "gpu"]
    done: list[Compute] = []

    class Watched(Inline):
        def submit(self, pool: str, task: Any) -> None:
            done.extend([task] if isinstance(task, Compute) and task.stage == 1 else [])
            super().submit(pool, task)

    drive(prepared.plan, Watched(prepared.plan), prepared.shards, Progress(3), lambda p: None, lambda: bool(done))
    assert done
    assert list((Path(recipe.store.uri) / "staging" / prepared.plan.stages[1].key).rglob("*.parquet"))
    rest = Progress(3)
    drive(prepared.plan, Inline(prepared.plan), prepared.shards, rest, lambda p: None, lambda: False)
    assert rest.rows_done == 47
    assert part_hashes(Path(recipe.store.uri)) == part_hashes(finished_once / "store")


@pytest.mark.parametrize(("kind", "number"), [("inline", signal.SIGINT), ("ray", signal.SIGTERM)])
def test_a_signal_finishes_open_ranges_and_says_how_to_go_on(
    recipe: Recipe, tmp_path: Path, quiet: Quiet, kind: str, number: int
) -> None:
    where = tmp_path / "recipe.toml"
    where.write_text(to_toml(changed(recipe, "engine", range_rows=1, kind=kind)), "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "curate.pipeline", str(where)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    staging = Path(recipe.store.uri) / "staging"
    while process.poll() is None and not (staging.is_dir() and any(staging.rglob("*.parquet"))):
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "run the same command" in err
    assert "Traceback" not in err
    assert Store(recipe.store.uri).counts()["undecided"] > 0
    run(recipe, quiet)
    assert Store(recipe.store.uri).counts()["undecided"] == 0


def test_a_worker_on_a_node_that_does_not_see_the_store_says_so(recipe: Recipe, finished_store: Path) -> None:
    plan = pipeline.prepare(recipe).plan
    assert cluster._proof(plan).startswith("parts/input@")
    elsewhere = dataclasses.replace(plan, files=LocalFiles(finished_store.parent / "another node's"))
    with pytest.raises(CurateError, match="does not see the driver's store there; name a folder that all nodes mount"):
        Worker(elsewhere, isolated=False).load("cpu", cluster._proof(plan))


def test_a_shard_goes_on_with_the_worker_that_has_it_open_and_the_others_take_turns() -> None:
    a, b, c = (Shard(name, f"/{name}", "parquet", InputSpec("/")) for name in "abc")
    ready = _Ready()
    ready.add([Compute(shard, 0, (row,)) for shard in (a, b, c) for row in range(3)])
    ready.add([Index(c)])

    def take() -> str:
        task = ready.take()
        return f"{task.shard.id}{task.rows[0] if isinstance(task, Compute) else ''}" if task else ""

    assert [take(), take(), take()] == ["c", "a0", "b0"]
    ready.ended(Compute(a, 0, (0,)))
    assert [take(), take(), take()] == ["a1", "c0", "b1"]
    ready.drop("a")
    ready.ended(Compute(a, 0, (1,)))
    assert [take(), take(), take(), take(), len(ready)] == ["c1", "b2", "c2", "", 0]


def test_two_drivers_on_one_store_write_every_row_once(recipe: Recipe, finished_once: Path, tmp_path: Path) -> None:
    where = tmp_path / "recipe.toml"
    where.write_text(to_toml(changed(recipe, "engine", range_rows=2)), "utf-8")
    command = [sys.executable, "-m", "curate.pipeline", str(where)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert Store(recipe.store.uri).counts() == Store(finished_once / "store").counts()
    assert Store(recipe.store.uri).rows("SELECT count(*), count(DISTINCT row_id) FROM samples") == [(47, 47)]
    assert part_hashes(Path(recipe.store.uri)) == part_hashes(finished_once / "store")


def test_a_driver_that_reads_while_another_one_publishes_goes_on(recipe: Recipe) -> None:
    prepared = pipeline.prepare(recipe)
    plan, shard = prepared.plan, prepared.shards[0]
    other = Worker(plan, isolated=False)
    other.run(Index(shard))
    for rows in other.run(Survey(shard, 0)).ranges:
        other.run(Compute(shard, 0, rows))

    class Racing(LocalFiles):
        """The other driver publishes what was just listed."""

        published = 0

        def list(self, folder: str) -> Iterator[str]:
            found = [*super().list(folder)]
            if folder.startswith("staging") and not self.published:
                tally = other.run(Publish(shard, 0)).tally
                assert tally
                self.published = tally.commits["part"]
            return iter(found)

    files = Racing(Path(recipe.store.uri))
    survey = Worker(dataclasses.replace(plan, files=files), isolated=False).run(Survey(shard, 0))
    assert files.published
    assert (survey.ranges, survey.staged) == ((), False)


class Killer:
    """Ends a random worker process with SIGKILL each time that a few more ranges have come back."""

    def __init__(self, engine: Cluster, kills: int, moments: random.Random) -> None:
        self.engine, self.left, self.moments = engine, kills, moments
        self.pids: dict[Any, Any] = {}
        self.next = moments.randint(1, 5)

    def __call__(self, state: Progress) -> None:
        """Called by the driver after each answer."""
        actors = [actor for crew in self.engine.pools.values() for actor in crew.actors if actor.ready is None]
        for actor in actors:
            if actor.handle not in self.pids:
                self.pids[actor.handle] = actor.handle.__ray_call__.remote(lambda worker: os.getpid())
        # A row whose worker was killed is tried once more: twice in a row would make it the guilty one, rightly.
        suspects = {a.handle for a in actors if a.tasks and getattr(a.tasks[0][0], "stepwise", False)}
        known = [a.handle for a in actors if a.handle not in suspects and self._pid(a.handle)]
        if self.left and known and state.tally.cells["size"] >= self.next:
            os.kill(self._pid(self.moments.choice(known)), signal.SIGKILL)
            self.left -= 1
            self.next = state.tally.cells["size"] + self.moments.randint(3, 8)

    def _pid(self, handle: Any) -> int:
        ready, _ = ray.wait([self.pids[handle]], timeout=0)
        try:
            return int(ray.get(ready[0])) if ready else 0
        except ray.exceptions.RayActorError:
            return 0


@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_are_killed_at_random_cost_no_row(recipe: Recipe, finished_once: Path) -> None:
    """`make faults` comes to 40 kills in ten runs."""
    moments, kills = random.Random(7), min(4, KILLS)
    for _ in range(max(1, KILLS // 4)):
        shutil.rmtree(recipe.store.uri, ignore_errors=True)
        prepared = pipeline.prepare(changed(recipe, "engine", kind="ray", range_rows=1, workers=2))
        engine, progress = Cluster(prepared.plan), Progress(3)
        killer = Killer(engine, kills, moments)
        try:
            drive(prepared.plan, engine, prepared.shards, progress, killer, lambda: False)
        finally:
            engine.close()
        assert killer.left == 0
        assert progress.crashes <= kills
        assert not progress.tally.errors["worker_crash"]
        # A row is lost to each kill at most. (Of a row that is tried again, every operator's cell is staged by itself.)
        assert max(progress.tally.cells.values()) <= 47 + kills
        assert part_hashes(Path(recipe.store.uri)) == part_hashes(finished_once / "store")


@pytest.mark.usefixtures("ray_cluster")
def test_a_pool_shrinks_when_it_idles_and_grows_with_its_queue(recipe: Recipe) -> None:
    prepared = pipeline.prepare(changed(recipe, "engine", kind="ray", workers=2))
    engine = Cluster(prepared.plan)
    before = cluster.IDLE_S, cluster.LOOK_EVERY_S
    try:
        assert sum(engine.workers()["cpu"]) == 1
        while engine.workers()["cpu"] != (1, 0):
            engine.next(1.0)
        for _ in range(2):
            for shard in prepared.shards:
                engine.submit("cpu", Index(shard))
        ended = engine.next(0.0)
        assert sum(engine.workers()["cpu"]) == 2
        while len(ended) < 6:
            ended += engine.next(1.0)
        while engine.workers()["cpu"] != (2, 0):
            engine.next(1.0)
        cluster.IDLE_S = cluster.LOOK_EVERY_S = 0.0
        engine.next(0.0)
        assert engine.workers()["cpu"] == (1, 0)
        assert sorted(task.shard.id for task, _ in ended) == sorted(2 * [shard.id for shard in prepared.shards])
    finally:
        cluster.IDLE_S, cluster.LOOK_EVERY_S = before
        engine.close()


def test_ranges_end_with_row_groups_where_they_can() -> None:
    assert cut(range(20), [0, 8, 16], 6) == [range(6), range(6, 12), range(12, 16), range(16, 20)]
    assert cut([1, 2, 9, 10, 17], [0, 8, 16], 6) == [(1, 2, 9, 10, 17)]


def test_a_row_error_travels_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(RowError("truncated", "the file ends early", {"bytes": 3})))
    assert (error.code, error.message, error.columns) == ("truncated", "the file ends early", {"bytes": 3})


def test_a_worker_that_breaks_its_contract_stops_the_run(recipe: Recipe, quiet: Quiet) -> None:
    def wrong(samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return [{"faces": 0} for _ in samples]

    replaced = {"load": lambda recipe: wrong, "facts": lambda recipe: {"version": 1}}
    path = tuple(dataclasses.replace(op, **replaced) if op.name == "faces" else op for op in pipeline.PATH)
    prepared = pipeline.prepare(recipe, path)
    with pytest.raises(Exception, match="face_area"):
        drive(prepared.plan, Inline(prepared.plan), prepared.shards, Progress(3), lambda p: None, lambda: False)
    assert Worker(prepared.plan, isolated=False).plan is prepared.plan


def test_a_row_that_fails_alone_or_says_what_cannot_be_stored_costs_its_neighbours_nothing(
    recipe: Recipe, quiet: Quiet
) -> None:
    calls: list[int] = []

    def odd(samples: Sequence[Sample]) -> Sequence[dict[str, Any] | RowError]:
        calls.append(len(samples))
        found: list[dict[str, Any] | RowError] = []
        for sample in samples:
            values = {"faces": 0, "face_area": 0.0, "face_boxes": [], "face_engine": "odd"}
            if sample.row == 7:
                values["face_engine"] = "half of a pair: \ud800"
            if sample.row == 9:
                values["faces"] = 2**40
            found.append(RowError("operator_failed", "not this one \udfff") if sample.row == 11 else values)
        return found

    replaced = {"load": lambda recipe: odd, "facts": lambda recipe: {"version": 1, "engine": "odd"}}
    path = tuple(dataclasses.replace(op, **replaced) if op.name == "faces" else op for op in pipeline.PATH)
    code, cells = run(recipe, quiet, path)
    assert code == 0
    assert sum(calls) == cells["faces"]  # nobody was asked twice
    store = Store(recipe.store.uri)
    assert store.rows("SELECT row, message FROM errors WHERE operator = 'faces' AND shard LIKE '%0' ORDER BY row") == [
        (7, "face_engine = 'half of a pair: \\ud800' is no string"),
        (9, "faces = 1099511627776 is no int32"),
        (11, "not this one ?"),
    ]


def test_columns_of_every_odd_type_and_name_pass_through(recipe: Recipe, quiet: Quiet, shards: Path) -> None:
    table = pq.read_table(shards / "train-00002.parquet")
    rows = table.num_rows
    odd = {
        'a"b': pa.array(range(rows), pa.int32()),
        "half": pa.array(np.arange(rows, dtype=np.float16)),
        "vectors": pa.array([[np.float16(1.5)]] * rows, pa.list_(pa.float16())),
        "wide": pa.array([Decimal("1.5")] * rows, pa.decimal256(60, 3)),
        "zoned": pa.array([0] * rows, pa.timestamp("us", tz="UTC")),
    }
    for name, column in odd.items():
        table = table.append_column(name, column)
    for shard in shards.glob("*.parquet"):
        shard.unlink()
    pq.write_table(table, shards / "odd.parquet")
    strict = dataclasses.replace(recipe, policy=(("odd", '"a""b" >= 2 AND half < 6'),))
    code, _ = run(strict, quiet)
    assert code == 0
    store = Store(recipe.store.uri)
    assert store.rows('SELECT "a""b", half, vectors, wide, epoch(zoned) FROM samples WHERE row = 4') == [
        (4, 4.0, [1.5], "1.500", 0.0)
    ]
    assert lineage(store, "odd:4")["row_id"] == "odd:4"


def test_a_shard_whose_column_does_not_fit_the_policy_fails_alone(recipe: Recipe, quiet: Quiet, shards: Path) -> None:
    other = pq.read_table(shards / "train-00002.parquet")
    pq.write_table(other.append_column("x", pa.array(["many"] * other.num_rows)), shards / "train-00002.parquet")
    for name in ("train-00000", "train-00001"):
        table = pq.read_table(shards / f"{name}.parquet")
        pq.write_table(table.append_column("x", pa.array(range(table.num_rows))), shards / f"{name}.parquet")
    code, _ = run(dataclasses.replace(recipe, policy=(("x", "x >= 0"),)), quiet)
    store = Store(recipe.store.uri)
    assert code == 3
    assert store.rows("SELECT shard, error FROM shards WHERE error IS NOT NULL") == [("train-00002", "column_type")]
    assert store.rows("SELECT count(*) FROM samples WHERE shard <> 'train-00002' AND keep") == [(36,)]


def test_a_damaged_part_stops_its_shard_only_and_says_the_way_out(
    recipe: Recipe, quiet: Quiet, finished_store: Path
) -> None:
    part = next((finished_store / "parts").glob("sharpness@*/train-00001.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    code, _ = run(dataclasses.replace(recipe, policy=()), quiet)
    store = Store(finished_store)
    ((shard, error, message),) = store.rows("SELECT shard, error, message FROM shards WHERE error IS NOT NULL")
    assert (code, shard, error) == (3, "train-00001", "part_damaged")
    assert "curate store forget STORE train-00001" in message
    store.rebuild()
    assert store.counts()["rows"] == 47
    forget(store, "train-00001")
    assert run(recipe, quiet)[0] == 0
    assert verify(store) == []


def test_a_run_that_fails_is_recorded_as_failed(recipe: Recipe, quiet: Quiet) -> None:
    def broken(recipe: Recipe) -> Any:
        raise OSError("no such weights")

    path = tuple(dataclasses.replace(op, load=broken) if op.name == "faces" else op for op in pipeline.PATH)
    with pytest.raises(CurateError, match="operator faces does not load: OSError: no such weights"):
        pipeline.run(recipe, path=path, display=quiet())
    store = Store(recipe.store.uri)
    assert store.rows("SELECT state, exit_code FROM runs") == [("failed", 1)]
