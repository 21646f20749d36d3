"""What a run says while it goes: metrics.jsonl always, TensorBoard when asked, a bar on a terminal, lines elsewhere.

    {"kind": "train", "step": 120, "loss": 0.31, "loss_by_t": [...], "images_per_s": 41.0, "data_wait": 0.004, ...}
    {"kind": "validation", "step": 120, "weights": "ema", "loss": 0.33, "by": {"caption": {"raw": 0.34, ...}, ...}}

A run that goes on from step s first drops what it will write again: the lines after s, and those of a phase that begins
at s. So the file tells one story.
"""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from curate.train.checkpoint import write_bytes

if TYPE_CHECKING:
    import torch

    from curate.train.data import Batch

BINS = 10  # of timesteps
PLAIN_EVERY_S = 10.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


class Log:
    """Writes on one rank only; on the others every call does nothing."""

    def __init__(
        self, folder: Path, name: str, step: int, steps: int, writes: bool, tensorboard: bool, console: Console,
        begins: str = "",
    ) -> None:  # fmt: skip
        """`begins` names the phase that begins at `step`, if one does."""
        self.path = folder / "metrics.jsonl"
        self.writes, self.console, self.said, self.board = writes, console, 0.0, None
        self.progress: Progress | None = None
        if not writes:
            return
        kept = [
            line for line in read_metrics(self.path)
            if line.get("step", 0) < step or (line["step"] == step and line.get("phase", "") != begins)
        ]  # fmt: skip
        write_bytes(self.path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, TextColumn("{task.fields[said]}"), console=console, transient=True)
            self.task = self.progress.add_task(name, total=steps, completed=step, said="")
        self.name, self.steps = name, steps

    def __enter__(self) -> Log:
        if self.progress:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress:
            self.progress.stop()
        if self.board:
            self.board.close()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One line of metrics.jsonl, and its numbers as scalars of TensorBoard."""
        if not self.writes:
            return
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.board:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def show(self, step: int, said: str) -> None:
        """The state of the run in a few words."""
        if not self.writes:
            return
        if self.progress:
            self.progress.update(self.task, completed=step, said=said)
        elif time.monotonic() - self.said >= PLAIN_EVERY_S:
            self.said = time.monotonic()
            self.console.print(f"{self.name}: step {step}/{self.steps}, {said}", highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line for the reader."""
        if self.writes:
            self.console.print(text, highlight=False, soft_wrap=True)


class Window:
    """What the steps since the last log line add up to; sums over ranks are taken when it is closed."""

    def __init__(self, world: int, timesteps: int, device: torch.device) -> None:
        self.world, self.timesteps, self.device = world, timesteps, device
        self._open()

    def _open(self) -> None:
        import torch

        self.sums = torch.zeros(2, BINS, device=self.device)  # losses and samples by timestep
        self.kinds: Counter[str] = Counter()
        self.norm = self.waited = self.computed = self.whole = 0.0
        self.steps = self.samples = self.skipped = 0

    def add(self, batch: Batch, losses: torch.Tensor, norm: float, skipped: bool) -> None:
        """What one step of this rank did."""
        bins = batch.timesteps * BINS // self.timesteps
        if not skipped:
            self.sums[0].index_add_(0, bins, losses)
            self.sums[1].index_add_(0, bins, losses.new_ones(len(losses)))
            self.norm += norm
        self.kinds.update(batch.kinds)
        self.steps += 1
        self.samples += len(losses)
        self.skipped += skipped

    def clock(self, waited: float, computed: float, present: float) -> None:
        """Seconds: for the batch; in forward, backward and optimizer; from its arrival to the end of the step."""
        self.waited += waited
        self.computed += computed
        self.whole += waited + present

    def close(self) -> dict[str, Any]:
        """The figures over all ranks; the next window begins."""
        import torch

        kinds = torch.tensor([self.kinds[k] for k in ("raw", "synthetic", "dropped")], device=self.device)
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(self.sums)
            dist.all_reduce(kinds)
        losses, counts = self.sums.double().cpu().tolist()
        raw, synthetic, dropped = kinds.tolist()
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else _rss_bytes()
        line = {
            "loss": round(sum(losses) / max(sum(counts), 1), 6),
            "loss_by_t": [round(a / b, 6) if b else None for a, b in zip(losses, counts, strict=True)],
            "gradient_norm": round(self.norm / max(self.steps - self.skipped, 1), 6),
            "images_per_s": round(self.samples * self.world / self.whole, 3),
            "data_wait": round(self.waited / self.whole, 5),
            "overhead": round(1 - (self.waited + self.computed) / self.whole, 5),
            "raw_share": round(raw / max(raw + synthetic, 1), 5),
            "dropped_share": round(dropped / max(raw + synthetic + dropped, 1), 5),
            "steps": self.steps,
            "skipped": self.skipped,
            "peak_memory_gb": round(peak / 1e9, 3),
        }
        self._open()
        return line


def _rss_bytes() -> int:
    """Largest resident size of this process so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
