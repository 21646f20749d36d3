"""What a run tells Prometheus, at `run.metrics = "host:port"`: the same for both engines, since the driver counts.

Nothing is counted twice: a scrape reads the run's Progress. docs/deploy.md lists the metrics, deploy/grafana
draws them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from curate.engine.driver import Progress
from curate.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class RunCollector:
    """Turns the progress of a run into metrics whenever it is asked."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def collect(self) -> Iterator[Metric]:
        """The metrics as they stand. Dicts are copied in one step each: the driver goes on meanwhile."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

        progress, tally = self.progress, self.progress.tally
        cells, failures = dict(tally.cells), dict(tally.failures)
        images = CounterMetricFamily("curate_images", "Images by step and outcome", labels=["step", "outcome"])
        for step, count in cells.items():
            failed = {error: n for (operator, error), n in failures.items() if operator == step}
            images.add_metric([step, "done"], count - sum(failed.values()))
            for error, n in failed.items():
                images.add_metric([step, error], n)
        yield images
        seconds = SummaryMetricFamily("curate_step_seconds", "Worker seconds per image, by step", labels=["step"])
        for step, spent in dict(tally.seconds).items():
            seconds.add_metric([step], count_value=cells.get(step, 0), sum_value=spent)
        yield seconds
        commits = SummaryMetricFamily("curate_commit_seconds", "Seconds to write one range or part", labels=["kind"])
        for kind, spent in dict(tally.commit_seconds).items():
            commits.add_metric([kind], count_value=tally.commits[kind], sum_value=spent)
        yield commits
        queue = GaugeMetricFamily("curate_queue_depth", "Tasks that wait for a worker, by pool", labels=["pool"])
        for pool, depth in dict(progress.queued).items():
            queue.add_metric([pool], depth)
        yield queue
        running = GaugeMetricFamily("curate_tasks", "Tasks that were handed to workers, by pool", labels=["pool"])
        for pool, count in dict(progress.running).items():
            running.add_metric([pool], count)
        yield running
        workers = GaugeMetricFamily("curate_workers", "Workers by pool and state", labels=["pool", "state"])
        for pool, (ready, starting) in dict(progress.workers).items():
            workers.add_metric([pool, "ready"], ready)
            workers.add_metric([pool, "starting"], starting)
        yield workers
        yield CounterMetricFamily("curate_worker_crashes", "Workers that died", value=progress.crashes)
        shards = GaugeMetricFamily("curate_shards", "Shards by state", labels=["state"])
        failed_shards = len(progress.shard_errors)
        shards.add_metric(["done"], progress.shards_done - failed_shards)
        shards.add_metric(["failed"], failed_shards)
        shards.add_metric(["open"], progress.shards_total - progress.shards_done)
        yield shards
        yield GaugeMetricFamily(
            "curate_ingest_lag_parts",
            "Parts published by the run that the index lacks",
            value=progress.parts_not_indexed,
        )
        yield GaugeMetricFamily(
            "curate_gpu_memory_bytes", "The most GPU memory that one worker has held", value=tally.gpu_bytes
        )


@contextmanager
def served(address: str, progress: Progress) -> Iterator[int]:
    """Serve the metrics of a run at host:port while the block lasts; yields the port (0 in `address` takes a free one).

    Nothing is served for an empty address. Raises UsageError for one that is none or is taken.
    """
    if not address:
        yield 0
        return
    from prometheus_client import CollectorRegistry, start_http_server

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"run.metrics = {address!r} must be host:port, e.g. 127.0.0.1:9464")
    registry = CollectorRegistry()
    registry.register(RunCollector(progress))
    try:
        server, thread = start_http_server(int(port), host, registry)
    except OSError as why:
        raise UsageError(f"run.metrics = {address!r} cannot be served: {why.strerror or why}") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
