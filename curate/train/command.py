"""What `curate train` does with its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from curate.errors import CurateError, UsageError
from curate.train import recipe


def train(targets: Sequence[str], overrides: Sequence[str], compare: bool, dry_run: bool) -> None:
    """Train one recipe; or compare: each target is the folder of a finished run, or a recipe that is trained first."""
    console = Console(stderr=True)
    if not compare:
        if len(targets) != 1:
            raise UsageError(f"curate train {' '.join(targets)}: one RECIPE, or several runs with --compare")
        wanted = recipe.load(targets[0], overrides)
        refuse_missing()
        from curate.train import run

        if dry_run:
            run.show_plan(wanted, Console())
        else:
            run.run(wanted, console)
        return
    if dry_run:
        raise UsageError("--compare and --dry-run do not go together")
    folders = []
    for target in targets:
        if Path(target).is_dir():
            folders.append(Path(target))
            continue
        wanted = recipe.load(target, overrides)
        refuse_missing()
        from curate.train import run

        run.run(wanted, console)
        folders += [wanted.folder / "arms" / arm.name for arm in wanted.arms] or [wanted.folder]
    if len(folders) < 2:
        raise UsageError(f"curate train --compare {' '.join(targets)}: name two runs or more")
    from curate.train.compare import compare_folders

    compare_folders(folders, console)


def refuse_missing() -> None:
    """Raise CurateError when the libraries of training are not installed."""
    lacking = [name for name in ("torch", "diffusers", "peft", "safetensors") if find_spec(name) is None]
    if lacking:
        raise CurateError(f"training needs {', '.join(lacking)}: pip install 'curate[train]'")
