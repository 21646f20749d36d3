from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from train_tiny import BUCKETS, STEPS, console, make_mix, recipe, train_in_process

from curate.errors import CurateError, UsageError
from curate.store import Store
from curate.train import checkpoint, evaluate, loop, models, run
from curate.train.checkpoint import averaged
from curate.train.data import Place
from curate.train.log import Log, read_metrics
from curate.train.recipe import Recipe

HERE = Place(0, 1, torch.device("cpu"))
# Children are forked from a server that has imported everything: a kill costs a second and not twenty.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["curate.train.run", "diffusers.models.unets.unet_2d_condition", "train_tiny"])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def mix(train_mix: Path) -> Path:
    return train_mix


@pytest.fixture(scope="module")
def base(train_base: Path) -> Path:
    return train_base


def small(out: Path, mix: Path, **sections: Any) -> Recipe:
    """A recipe over the models of the fixture `base`."""
    model = {"base": str(mix.parent / "base")} | sections.pop("model", {})
    return recipe(out, mix, model=model, **sections)


@pytest.fixture(scope="module")
def trained(mix: Path, base: Path) -> Path:
    """A finished run of STEPS steps that nothing disturbed."""
    folder = mix.parent / "trained"
    run.run(small(folder, mix, checkpoint={"keep": 0}), console())
    return folder


def last(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.checkpoints(folder / "checkpoints")[-1])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal but for the order of sums: moments of gradients within 1e-6, and weights but for a few in 100,000.

    Where a gradient is almost 0, Adam divides rounding by rounding.
    """
    apart = {name: (a[name] - b[name]).abs() for name in a}
    moments = max(float(d.max()) for name, d in apart.items() if name.startswith("exp_avg"))
    weights = torch.cat([d.flatten() for name, d in apart.items() if name.startswith("params/")])
    return moments < 1e-6 and float((weights > 1e-6).float().mean()) < 1e-4 and float(weights.max()) < 1e-4


def test_the_loss_on_rows_never_trained_on_falls_by_half(mix: Path, base: Path, tmp_path: Path) -> None:
    wanted = small(tmp_path, mix, phase=[{"steps": 24, "buckets": "32x32"}], train={"lr": 2e-3, "ema": 0.8})
    run.run(wanted, console())
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "validation"]
    held_out = [line["loss"] for line in lines if line["split"] == "validation" and line["weights"] == "raw"]
    assert held_out[-1] < 0.5 * held_out[0]
    averaged_out = [line["loss"] for line in lines if line["split"] == "validation" and line["weights"] == "ema"]
    assert averaged_out[-1] < 0.7 * held_out[0]


def test_a_run_that_was_killed_again_and_again_ends_bit_equal(
    mix: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    wanted = small(tmp_path, mix, checkpoint={"every": 1})
    draw = np.random.default_rng(0)
    for _ in range(3):
        child = CHILDREN.Process(target=train_in_process, args=(wanted,))
        child.start()
        child.join(float(draw.uniform(0.2, 2.5)))
        if child.pid and child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
    run.run(wanted, console())
    assert same(last(tmp_path), last(trained))
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))


def test_a_kill_right_after_each_checkpoint_ends_bit_equal(
    mix: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    for saved in checkpoint.checkpoints(trained / "checkpoints")[:-1]:
        folder = tmp_path / saved.stem
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(saved, folder / "checkpoints")
        (folder / "checkpoints" / ".step-00000099.safetensors.1.tmp").write_bytes(b"half a checkpoint")
        run.run(small(folder, mix), console())
        assert same(last(folder), last(trained))
        assert not list((folder / "checkpoints").glob(".*"))


def test_two_processes_end_where_one_does(mix: Path, base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train": {"lr": 1e-4}, "phase": [{"steps": 3, "buckets": BUCKETS}]}
    run.run(small(tmp_path / "one", mix, **settings), console())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wanted = small(tmp_path / "two", mix, **settings)
    children = [CHILDREN.Process(target=train_in_process, args=(wanted, rank, 2, port)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert close(one, two)
    tables = [pq.read_table(tmp_path / n / "validation/train/step-00000003-ema.parquet") for n in ("one", "two")]
    rows = [sorted(zip(*(t[c].to_pylist() for c in ("row_id", "caption", "timestep")), strict=True)) for t in tables]
    assert rows[0] == rows[1]


def test_micro_batches_change_nothing_but_the_order_of_sums(mix: Path, base: Path, tmp_path: Path) -> None:
    phase = [{"steps": 2, "buckets": BUCKETS}]
    for micro in (0, 1):
        run.run(small(tmp_path / str(micro), mix, train={"micro_batch": micro, "lr": 1e-4}, phase=phase), console())
    assert close(last(tmp_path / "0"), last(tmp_path / "1"))


def test_what_a_run_began_with_it_must_go_on_with(
    mix: Path, base: Path, trained: Path, finished_once: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    other = make_mix(finished_once / "store", tmp_path / "mix", seed=7)
    before = (folder / "recipe.toml").read_bytes()
    for state in ("finished", "interrupted"):
        with pytest.raises(UsageError, match=r"train.lr was 0.001 and is 0.0005. A run goes on only with"):
            run.run(small(folder, mix, train={"lr": 5e-4}), console())
        with pytest.raises(UsageError, match=r"its data is \w+, this run's is \w+"):
            run.run(small(folder, other, model={"base": str(base)}), console())
        assert (folder / "recipe.toml").read_bytes() == before, state
        (folder / "finished.json").unlink(missing_ok=True)


def test_a_longer_run_goes_on_where_a_shorter_one_ended(mix: Path, base: Path, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    with pytest.raises(UsageError, match=f"has {STEPS} steps already, more than the {STEPS - 1}"):
        run.run(small(folder, mix, phase=[{"steps": STEPS - 1, "buckets": BUCKETS}]), console())
    run.run(small(folder, mix, phase=[{"steps": STEPS + 1, "buckets": BUCKETS}]), console())
    assert json.loads((folder / "finished.json").read_text())["steps"] == STEPS + 1
    assert checkpoint.checkpoints(folder / "checkpoints")[-1].name == f"step-{STEPS + 1:08d}.safetensors"


def test_a_damaged_checkpoint_is_one_line(mix: Path, base: Path, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / "finished.json").unlink()
    newest = checkpoint.checkpoints(folder / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(CurateError, match="not a checkpoint of this model"):
        run.run(small(folder, mix), console())


def test_a_finished_run_is_left_alone(mix: Path, base: Path, trained: Path) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    run.run(small(trained, mix, checkpoint={"keep": 0}), console())
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_weights_that_are_measured_are_the_averaged_ones_and_come_back_untouched(
    mix: Path, base: Path, trained: Path
) -> None:
    unet, state, tools = loop.restore(small(trained, mix), base, HERE)
    own = {name: p.detach().clone() for name, p in state.params.items()}
    average = {name: p.clone() for name, p in state.ema.items()}
    assert not same(own, average)
    some = evaluate.probes(str(mix), "validation", 2, BUCKETS, tools, HERE)

    def measured() -> list[float]:
        table = evaluate.measure(unet, some, tools, HERE, name="sdxl", prediction="epsilon")
        found: list[float] = table["loss"].to_pylist()
        return found

    raw = measured()
    with averaged(state):
        assert same({name: p.detach() for name, p in state.params.items()}, average)
        assert measured() != raw
    assert same({name: p.detach() for name, p in state.params.items()}, own)
    assert same(state.ema, average)
    assert measured() == raw
    assert unet.training


def test_validation_covers_every_row_caption_and_timestep(mix: Path, trained: Path) -> None:
    table = pq.read_table(trained / "validation" / "train" / f"step-{STEPS:08d}-ema.parquet")
    found = set(
        zip(table["row_id"].to_pylist(), table["caption"].to_pylist(), table["timestep"].to_pylist(), strict=True)
    )
    assert len(found) == table.num_rows
    assert {t for _, _, t in found} == {50, 150, 300, 450, 600, 750, 900, 950}
    assert set(table["split"].to_pylist()) == {"train", "validation"}
    line = next(line for line in read_metrics(trained / "metrics.jsonl") if line["kind"] == "validation")
    assert set(line["by"]) == {"timestep", "caption", "category", "tier"}
    assert len(line["by"]["timestep"]) == 8


def test_the_log_tells_what_the_run_did(trained: Path) -> None:
    lines = [line for line in read_metrics(trained / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["images_per_s"] > 0
        assert 0 <= line["data_wait"] < 1
        assert 0 <= line["overhead"] < 1
        assert 0 <= line["raw_share"] <= 1
        assert line["peak_memory_gb"] > 0.05
        assert len(line["loss_by_t"]) == 10
        assert line["gradient_norm"] > 0


def test_a_latent_that_is_not_finite_is_named_and_changes_nothing(mix: Path, base: Path, tmp_path: Path) -> None:
    cache = {"cache": str(tmp_path / "cache")}
    wanted = small(tmp_path / "run", mix, data=cache, phase=[{"steps": 2, "buckets": BUCKETS}])
    data = loop.PhaseData(wanted, 0, str(mix), loop.load_tools(wanted, base, HERE), HERE)
    culprit = data.batch(0).row_ids[2]
    for path in (tmp_path / "cache" / "latents").rglob("*.safetensors"):
        found = load_file(path)
        with torch.no_grad():
            if _row_of(path) == culprit:
                save_file({"mean": found["mean"] * float("nan"), "std": found["std"]}, path, {"row_id": culprit})
    run.run(wanted, console())
    (line,) = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "nonfinite"][:1]
    assert (line["step"], [row["row_id"] for row in line["samples"]]) == (1, [culprit])
    assert all(tensor.isfinite().all() for tensor in last(tmp_path / "run").values())
    with pytest.raises(CurateError, match=f"1 steps in a row .* {culprit}"):
        run.run(small(tmp_path / "strict", mix, data=cache, train={"max_skipped": 0}), console())


def _row_of(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return str(file.metadata()["row_id"])


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_exported_model_says_what_the_trained_one_says(mix: Path, base: Path, tmp_path: Path, kind: str) -> None:
    from diffusers import KolorsPipeline

    model = {"lora_rank": 4, "lora_alpha": 8.0} if kind == "lora" else {}
    wanted = small(
        tmp_path, mix, model=model, checkpoint={"export": True},
        phase=[{"name": "quality", "steps": 2, "buckets": BUCKETS, "lr": 1e-2}],
    )  # fmt: skip
    run.run(wanted, console())
    unet, state, tools = loop.restore(wanted, base, HERE)
    if kind == "full":
        pipeline = KolorsPipeline.from_pretrained(tmp_path / "model")
        assert pipeline.scheduler.config.num_train_timesteps == 1100
        assert pipeline.scheduler.config.beta_end == 0.014
    else:
        pipeline = KolorsPipeline.from_pretrained(base)
        untouched = models.load_unet(base).state_dict()
        frozen = {k.replace(".base_layer", ""): v for k, v in unet.state_dict().items() if "lora" not in k}
        assert same(frozen, untouched)
        pipeline.load_lora_weights(tmp_path / "lora")
        config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (4, 8.0)
        by_peft = PeftModel.from_pretrained(models.load_unet(base), str(tmp_path / "lora"))
    pipeline.set_progress_bar_config(disable=True)
    hidden, _, pooled, _ = pipeline.encode_prompt(
        "a red bus", max_sequence_length=tools.encoder.length, do_classifier_free_guidance=False
    )
    ids = torch.tensor([[64.0, 48.0, 0, 3, 32, 32]])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    said = {"text_embeds": pooled, "time_ids": ids}
    with averaged(state), torch.inference_mode():
        ours = unet.eval()(x, 700, hidden, added_cond_kwargs=said).sample
        theirs = pipeline.unet(x, 700, hidden, added_cond_kwargs=said).sample
        first = models.load_unet(base).eval()(x, 700, hidden, added_cond_kwargs=said).sample
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert (ours - first).abs().max() > 1e-3
    if kind == "lora":
        with torch.inference_mode():
            by_them = by_peft.eval()(x, 700, hidden, added_cond_kwargs=said).sample
        torch.testing.assert_close(ours, by_them, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_two_phases_are_measured_and_drawn_each_under_its_own_schedule_and_size(
    mix: Path, base: Path, tmp_path: Path
) -> None:
    phases = [
        {"name": "concept", "steps": 1, "buckets": "32x32"},
        {"name": "quality", "steps": 1, "buckets": "48x48"},
    ]
    (tmp_path / "prompts.txt").write_text('# two\na red bus\na sign that says "home"\n')
    drawn = {"grid_seeds": 1, "grid_every": 1, "sampling_steps": 2, "prompts": str(tmp_path / "prompts.txt"), "rows": 1}
    said = console()
    for name, measure in (("with", drawn), ("without", {"rows": 1})):
        run.run(small(tmp_path / name, mix, measure=measure, phase=phases), said)
    assert same(last(tmp_path / "with"), last(tmp_path / "without"))
    tables = {
        f"{path.parent.name}/{path.name}": set(pq.read_table(path)["timestep"].to_pylist())
        for path in (tmp_path / "with" / "validation").rglob("*.parquet")
    }
    assert {name: max(steps) for name, steps in tables.items()} == {
        "concept/step-00000000-raw.parquet": 950, "concept/step-00000001-raw.parquet": 950,
        "concept/step-00000001-ema.parquet": 950, "quality/step-00000001-raw.parquet": 1050,
        "quality/step-00000001-ema.parquet": 1050, "quality/step-00000002-raw.parquet": 1050,
        "quality/step-00000002-ema.parquet": 1050,
    }  # fmt: skip
    checks = [line for line in read_metrics(tmp_path / "with" / "metrics.jsonl") if line["kind"] == "validation"]
    first = next(c["loss"] for c in checks if (c["phase"], c["split"]) == ("quality", "validation"))
    assert f"validation loss, raw weights: {first:.4f} -> " in "\n".join(run.summary(tmp_path / "with"))
    sizes = {}
    for path in (tmp_path / "with" / "grids").glob("*.png"):
        with Image.open(path) as sheet:
            sizes[path.name] = sheet.size
    assert sizes == {
        f"step-0000000{step}-{weights}.png": (side, 2 * side)
        for step, side in ((1, 32), (2, 48)) for weights in ("ema", "raw")
    }  # fmt: skip
    lines = json.loads((tmp_path / "with" / "grids" / "step-00000002-ema.json").read_text())
    assert [(line["seed"], line["text"]) for line in lines] == [(0, None), (0, "home")]
    assert json.loads((tmp_path / "with" / "finished.json").read_text())["text_match"] == 0.0


def test_losses_go_back_to_the_store(mix: Path, base: Path, finished_store: Path, tmp_path: Path) -> None:
    wanted = small(
        tmp_path / "run", mix, data={"store": str(finished_store)}, phase=[{"steps": 1, "buckets": BUCKETS}],
        measure={"write_back_rows": 6},
    )  # fmt: skip
    run.run(wanted, console())
    store = Store(str(finished_store))
    found = store.rows(
        "SELECT row_id, train_loss, train_loss_none, train_caption_gain, train_split, train_run FROM samples "
        "WHERE train_loss IS NOT NULL"
    )
    table = pq.read_table(next((tmp_path / "run" / "losses").iterdir()))
    assert {row[0] for row in found} == set(table["row_id"].to_pylist())
    assert len(found) == 12
    assert {row[4] for row in found} == {"train", "validation"}
    assert {row[5] for row in found} == {"run@1"}
    assert all(abs(gain - (1 - loss / none)) < 1e-4 for _, loss, none, gain, _, _ in found)
    reasons = dict(store.rows("SELECT drop_reason, count(train_loss) FROM samples WHERE error IS NULL GROUP BY ALL"))
    assert reasons[None] > 0
    assert reasons["sharp"] > 0


def test_losses_of_many_rows_are_measured_in_pieces_that_a_kill_does_not_lose(
    mix: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    unet, _, tools = loop.restore(small(trained, mix), base, HERE)
    rows = evaluate.Rows(str(mix), "validation", 5, "32x32", tools)

    def measured(folder: Path, world: int) -> dict[str, Any]:
        for rank in range(world):
            place = Place(rank, world, HERE.device)
            how: dict[str, Any] = {"name": "sdxl", "prediction": "epsilon", "kinds": ("none",), "chunk": 2}
            evaluate.measure_rows(unet, rows, folder, place, lambda text: None, **how)
        return {path.name: pq.read_table(path) for path in sorted(folder.iterdir())}

    whole = measured(tmp_path / "one", 1)
    assert {name: table.num_rows for name, table in whole.items()} == {
        "validation-000000.parquet": 16, "validation-000001.parquet": 16, "validation-000002.parquet": 8,
    }  # fmt: skip
    assert measured(tmp_path / "two", 2) == whole
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    (tmp_path / "one" / "validation-000001.parquet").unlink()
    (tmp_path / "one" / ".validation-000001.parquet.tmp").write_bytes(b"half")
    assert measured(tmp_path / "one", 1) == whole
    again = {path.name for path in (tmp_path / "one").iterdir() if path.stat().st_mtime_ns != kept[path.name]}
    assert again == {"validation-000001.parquet"}


def test_a_run_that_goes_on_writes_no_line_twice(tmp_path: Path) -> None:
    def lines() -> list[tuple[str, int, str]]:
        return [(line["kind"], line["step"], line["phase"]) for line in read_metrics(tmp_path / "metrics.jsonl")]

    def log(step: int, begins: str) -> Log:
        return Log(tmp_path, "run", step, 9, True, False, console(), begins)

    first = log(0, "concept")
    first.write("validation", 0, phase="concept")
    first.write("train", 1, phase="concept")
    again = log(0, "concept")  # killed before its first checkpoint
    assert lines() == []
    again.write("validation", 0, phase="concept")
    again.write("train", 2, phase="concept")
    again.write("validation", 2, phase="concept")
    again.write("validation", 2, phase="quality")
    again.write("train", 3, phase="quality")
    log(2, "quality")  # killed in the second phase, before its first checkpoint
    assert lines() == [("validation", 0, "concept"), ("train", 2, "concept"), ("validation", 2, "concept")]


def test_a_last_run_without_averages_and_caches_learns_the_same(mix: Path, base: Path, tmp_path: Path) -> None:
    phase = [{"steps": 2, "buckets": BUCKETS}]
    for name, data in (("cached", {}), ("online", {"cache_latents": False, "cache_text": False})):
        run.run(small(tmp_path / name, mix, data=data, train={"ema": 0.0}, phase=phase), console())
    assert same(last(tmp_path / "cached"), last(tmp_path / "online"))
    assert not any(name.startswith("ema/") for name in last(tmp_path / "cached"))
