"""Checkpoints: one safetensors file each, written beside its place, synced and renamed, so that it is whole or absent.

    checkpoints/step-00001000.safetensors     params/..., ema/..., exp_avg/..., exp_avg_sq/...; float32
    its header                                step, hash of the recipe, hash of the data

Nothing else is state: sample order, crops, captions, noise and learning rate are functions of (seed, step, slot).
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import CurateError, UsageError

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"step-(\d{8})\.safetensors")


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str], durable: bool = True
) -> None:
    """Write a safetensors file atomically: temporary file, fsync, rename, fsync of the folder.

    Caches are not `durable`: nobody waits for an fsync, and what a power cut damages is made again.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, dict(facts)
        )
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def load_cached(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a cache file in float32, or None when it is not there or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (FileNotFoundError, SafetensorError):
        return None


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a small file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass
class State:
    """What training changes. The dictionaries have the same names in the same order; optimizer moments may be empty."""

    step: int
    params: dict[str, torch.nn.Parameter]
    ema: dict[str, torch.Tensor]
    optimizer: torch.optim.Optimizer


@contextlib.contextmanager
def averaged(state: State) -> Iterator[None]:
    """The model with its averaged weights while the block lasts; afterwards its own are back, bit for bit."""
    _swap(state)
    try:
        yield
    finally:
        _swap(state)


def _swap(state: State) -> None:
    import torch

    with torch.no_grad():
        for name, average in state.ema.items():
            own = state.params[name].clone()
            state.params[name].copy_(average)
            average.copy_(own)


def save(folder: Path, state: State, facts: Mapping[str, str], keep: int) -> Path:
    """Write the state and delete all but the newest `keep` checkpoints (0: keep all)."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in state.params.items():
        tensors[f"params/{name}"] = parameter
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}/{name}"] = value
    tensors |= {f"ema/{name}": value for name, value in state.ema.items()}
    path = folder / f"step-{state.step:08d}.safetensors"
    save_tensors(path, tensors, {**facts, "step": str(state.step)})
    if keep:
        for old in checkpoints(folder)[:-keep]:
            old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, oldest first. Temporary files of a killed run are no checkpoints."""
    return sorted(path for path in folder.glob("step-*.safetensors") if NAME.fullmatch(path.name))


def tidy(folder: Path) -> None:
    """Delete what killed runs left half-written: 41 GB each for SDXL."""
    for path in folder.glob(".step-*.tmp"):
        path.unlink(missing_ok=True)


def refuse_other(found: Mapping[str, str], facts: Mapping[str, str], where: object) -> None:
    """Raise UsageError when what a run began with (`found`: recipe, base, data) is not what it should go on with."""
    for fact, value in facts.items():
        if found.get(fact) != value:
            raise UsageError(
                f"{where}: its {fact} is {found.get(fact, 'unknown')}, this run's is {value}. A run goes on "
                "only with what it began with: restore that, or choose another output.uri"
            )


def facts_in(path: Path) -> dict[str, str]:
    """The header of a checkpoint: step, recipe, base, data; empty when the file is damaged, which `load` tells."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def load(path: Path, state: State, facts: Mapping[str, str]) -> None:
    """Bring the state to what the file holds; raises UsageError when `facts` (recipe, data) are not the file's."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            refuse_other(found, facts, path)
            names = set(file.keys())
            with torch.no_grad():
                for name, parameter in state.params.items():
                    parameter.copy_(file.get_tensor(f"params/{name}"))
                    if f"ema/{name}" in names:
                        state.ema[name].copy_(file.get_tensor(f"ema/{name}"))
                    moments = ("exp_avg", "exp_avg_sq", "step")
                    state.optimizer.state[parameter] = {
                        moment: _placed(file.get_tensor(f"{moment}/{name}"), moment, parameter)
                        for moment in moments
                        if f"{moment}/{name}" in names
                    }
    except (SafetensorError, OSError, KeyError) as why:
        raise CurateError(
            f"{path}: not a checkpoint of this model ({why}); delete it to go on from the one before"
        ) from None
    state.step = int(found["step"])


def _placed(value: torch.Tensor, moment: str, parameter: torch.Tensor) -> torch.Tensor:
    """AdamW keeps its step counter on the CPU, except when it is fused; its moments lie as the parameter does."""
    import torch

    if moment == "step":
        return value.to(parameter.device) if parameter.is_cuda else value
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
