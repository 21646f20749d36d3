"""Where the loop runs: one process, the processes of torchrun, or workers of Ray Train on the pipeline's cluster.

    curate train RECIPE
    torchrun --nproc-per-node 8 -m curate.train RECIPE
    curate train RECIPE --set train.engine=ray --set train.workers=8

Whatever starts it, the loop gets a Place: rank, world, device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from curate.errors import CurateError, UsageError
from curate.train.checkpoint import write_bytes
from curate.train.data import Place

PATIENCE = timedelta(hours=2)  # ranks wait while rank 0 writes a checkpoint or makes a mix
RAY_FAILURES = 3  # workers that may be lost before the run fails; each time it goes on from its checkpoint


class Here(AbstractContextManager[Place]):
    """The Place of this process; under torchrun it joins the others and leaves them at the end."""

    def __enter__(self) -> Place:
        import torch

        cuda = torch.cuda.is_available()
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if self.world > 1:
            torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
        return Place(int(os.environ.get("RANK", "0")), self.world, device)

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def on_ray(work: Callable[[Place], None], workers: int, folder: Path) -> None:
    """Run `work` in Ray Train's workers, one for each GPU or CPU; raises CurateError when they fail for good.

    `folder` must be one that all nodes share. A worker that dies takes the others with it; all begin again and go on
    from the newest checkpoint.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def worker() -> None:
        from ray import train
        from ray.train.torch import get_device

        context = train.get_context()
        place = Place(context.get_world_rank(), context.get_world_size(), get_device())
        try:
            work(place)
        except UsageError as why:  # all workers meet it, and would again: nothing to begin anew for
            if place.rank == 0:
                write_bytes(refused, str(why).encode())

    refused = folder.absolute() / "ray" / "refused.txt"
    refused.unlink(missing_ok=True)
    ours = not ray.is_initialized()
    if ours:
        named = os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID")
        if named:
            ray.init(address="auto", logging_level=logging.WARNING)
        else:
            ray.init(address="local", logging_level=logging.WARNING, include_dashboard=False)
    gpu = bool(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    trainer = TorchTrainer(
        worker,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(refused.parent),
            failure_config=FailureConfig(max_failures=RAY_FAILURES),
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=int(PATIENCE.total_seconds())),
    )
    try:
        trainer.fit()
    except Exception as why:  # Ray wraps what a worker raised in classes of its own
        raise _plain(why) from why
    finally:
        if ours:
            ray.shutdown()
    if refused.exists():
        raise UsageError(refused.read_text("utf-8"))


def _plain(why: Exception) -> CurateError:
    """What a worker raised, when it is ours; else the last line of what Ray says."""
    failures = getattr(why, "worker_failures", None) or {}
    for failure in failures.values():
        cause = getattr(failure, "cause", None) or failure
        if isinstance(cause, CurateError):
            return cause
    return CurateError(f"training on Ray failed: {str(why).strip().splitlines()[-1]}")
