from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_tiny import BUCKETS, console, recipe

from curate.errors import UsageError
from curate.train import checkpoint, run


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_workers_of_ray_train_end_where_one_process_does(train_mix: Path, train_base: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)

    def trained(name: str, **train: Any) -> Path:
        wanted = recipe(
            tmp_path / name, train_mix, model={"base": str(train_base)}, train={"lr": 1e-4, **train},
            phase=[{"steps": 1, "buckets": BUCKETS}], measure={"rows": 1},
        )  # fmt: skip
        run.run(wanted, console())
        return checkpoint.checkpoints(wanted.folder / "checkpoints")[-1]

    one, two = load_file(trained("one")), load_file(trained("two", engine="ray", workers=2))
    apart = [(one[name] - two[name]).abs() for name in one if name.startswith("exp_avg")]
    assert one.keys() == two.keys()
    assert len(apart) > 100
    assert max(float(d.max()) for d in apart) < 1e-6
    with pytest.raises(UsageError, match=r"train.weight_decay was 0.01 and is 0.1"):
        trained("two", engine="ray", workers=1, weight_decay=0.1)
