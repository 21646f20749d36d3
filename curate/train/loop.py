"""The training loop.

    train(recipe, mixes, base, place)          trains what is left to train, from the newest checkpoint on

Everything that is drawn is a function of (seed, step, slot); the state is parameters, EMA, moments and the step. So a
run that is killed anywhere ends bit-equal to one that is not (CPU, float32), and two processes end where one does but
for the order of sums. The loop knows of the machine only (rank, world, device).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from curate.errors import CurateError, UsageError
from curate.train import checkpoint, grid, models, recipe, schedule, text
from curate.train.checkpoint import State
from curate.train.data import Batch, PhaseData, Place, Tools, manifest_of, timed
from curate.train.evaluate import Validation
from curate.train.latents import LatentCache
from curate.train.log import Log, Window
from curate.train.loss import squared_errors
from curate.train.recipe import Phase, Recipe

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel


def train(
    wanted: Recipe, mixes: Sequence[str], base: Path, place: Place, console: Console
) -> tuple[UNet2DConditionModel, State, Tools]:
    """Train the phases of a recipe, each on its mix; the UNet comes back with its last (not averaged) weights.

    Raises UsageError when a checkpoint belongs to another recipe, model or data, CurateError when gradients stay
    non-finite.
    """
    import torch

    # Models and state: the UNet learns, the others are frozen; from the newest checkpoint, if there is one.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = wanted.model.precision != "float32"
    folder = wanted.folder
    facts = facts_of(wanted, mixes, base)
    unet, state, tools = assemble(wanted, base, place)
    params, ema, optimizer = state.params, state.ema, state.optimizer
    saved = checkpoint.checkpoints(folder / "checkpoints")
    if saved:
        checkpoint.load(saved[-1], state, facts)
    model = distributed(unet, wanted, place)
    writes = place.rank == 0
    if writes:
        checkpoint.tidy(folder / "checkpoints")
    log = Log(
        folder, "/".join(folder.parts[-2:]), state.step, wanted.steps, writes, wanted.log.tensorboard, console,
        phase_that_begins(wanted, state.step),
    )  # fmt: skip
    if warning := models.other_prediction(base, wanted.model.unet, wanted.model.prediction):
        log.note(warning)
    if saved:
        log.note(f"going on from step {state.step} ({saved[-1].name})")

    began, skipped = 0, 0
    with log:
        for number, (phase, mix) in enumerate(zip(wanted.phases, mixes, strict=True)):
            if state.step >= began + phase.steps:
                began += phase.steps
                continue
            data = PhaseData(wanted, number, mix, tools, place)
            check = Validation(wanted, phase, mix, tools, place)
            bars = torch.tensor(schedule.alpha_bar(phase.schedule), dtype=torch.float32, device=place.device)
            prediction = cast(schedule.Prediction, wanted.model.prediction)
            weights = schedule.loss_weight(phase.schedule, prediction, wanted.train.min_snr_gamma)
            weight = torch.tensor(weights, dtype=torch.float32, device=place.device)
            scaling = float(tools.vae.config.scaling_factor)
            micro = wanted.train.micro_batch or data.share
            window = Window(place.world, len(bars), place.device)
            if state.step == began:
                check.run(state, unet, log)

            for batch, waited in timed(data.stream(state.step - began, phase.steps)):
                arrived = time.perf_counter()
                batch = batch.to(place.device)
                started = time.perf_counter()

                # The mean over the samples of all ranks: DDP takes the mean over ranks of these means.
                losses = []
                for start in range(0, data.share, micro):
                    part = batch.part(start, start + micro)
                    with last_sync(model, start + micro >= data.share):
                        loss = squared_errors(
                            model, clean=(part.mean + part.std * part.sample) * scaling, noise=part.noise,
                            steps=part.timesteps, bars=bars, hidden=part.hidden, pooled=part.pooled,
                            time_ids=part.time_ids, prediction=prediction, precision=wanted.model.precision,
                        )  # fmt: skip
                        (loss * weight[part.timesteps]).sum().div(data.share).backward()  # type: ignore[no-untyped-call]
                    losses.append(loss.detach())
                found = torch.cat(losses)
                norm = float(torch.nn.utils.clip_grad_norm_(params.values(), wanted.train.clip or math.inf))

                # A step whose gradients are not finite changes nothing; all ranks see the same norm.
                rate = learning_rate(wanted, phase, state.step - began)
                skipped = 0 if math.isfinite(norm) else skipped + 1
                if skipped:
                    refuse_endless(skipped, wanted, name_culprits(batch, found, state.step + 1, place, log))
                else:
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                computed = time.perf_counter()
                if ema and not skipped:
                    decay = min(wanted.train.ema, (1 + state.step) / (10 + state.step))
                    torch._foreach_lerp_(list(ema.values()), [p.detach() for p in params.values()], 1 - decay)
                state.step += 1
                done = state.step - began
                window.add(batch, found, norm, bool(skipped))
                window.clock(waited, computed - started, time.perf_counter() - arrived)

                if done % wanted.log.every == 0 or done == phase.steps:
                    line = window.close()
                    log.write("train", state.step, phase=phase.name, lr=rate, **line)
                    log.show(state.step, f"loss {line['loss']:.4f}, {line['images_per_s']:.1f} images/s")
                if done == phase.steps or (wanted.measure.every and done % wanted.measure.every == 0):
                    check.run(state, unet, log)
                if writes and wanted.measure.grid_every and done % wanted.measure.grid_every == 0:
                    scores = grid.sheets(unet, state, wanted, phase, mix, tools, place)[1]
                    log.write("samples", state.step, phase=phase.name, **scores)
                if done == phase.steps or done % wanted.checkpoint.every == 0:
                    same_everywhere(params, place)
                    if writes:
                        checkpoint.save(folder / "checkpoints", state, facts, wanted.checkpoint.keep)
            began += phase.steps
    return unet, state, tools


def facts_of(wanted: Recipe, mixes: Sequence[str], base: Path) -> dict[str, str]:
    """What a checkpoint belongs to: a recipe, the models that it began with, and data."""
    return {
        "recipe": recipe.fingerprint(wanted),
        "base": models.identity(base),
        "data": " ".join(str(manifest_of(mix)["tree"]) for mix in mixes),
    }


def assemble(wanted: Recipe, base: Path, place: Place) -> tuple[UNet2DConditionModel, State, Tools]:
    """The models on the device, and the state of a run that has not begun."""
    import torch

    unet = prepare_unet(wanted, base).to(place.device)
    if place.device.type == "cuda":  # convolutions run faster so; buckets are few, and each is timed once
        unet.to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = True
    params = models.trainable(unet)
    optimizer = torch.optim.AdamW(
        params.values(), lr=0.0, betas=(0.9, wanted.train.beta2), weight_decay=wanted.train.weight_decay,
        fused=place.device.type == "cuda",
    )  # fmt: skip
    ema = {name: p.detach().clone() for name, p in params.items()} if wanted.train.ema else {}
    return unet, State(0, params, ema, optimizer), load_tools(wanted, base, place)


def restore(wanted: Recipe, base: Path, place: Place) -> tuple[UNet2DConditionModel, State, Tools]:
    """The models of a run as its newest checkpoint has them; raises UsageError when there is none."""
    unet, state, tools = assemble(wanted, base, place)
    saved = checkpoint.checkpoints(wanted.folder / "checkpoints")
    if not saved:
        raise UsageError(f"{wanted.folder}: no checkpoint there; train it first")
    checkpoint.load(saved[-1], state, {"recipe": recipe.fingerprint(wanted), "base": models.identity(base)})
    return unet, state, tools


def phase_that_begins(wanted: Recipe, step: int) -> str:
    """The name of the phase whose first step is the next one; empty in the midst of a phase."""
    began = 0
    for phase in wanted.phases:
        if step == began:
            return phase.name
        began += phase.steps
    return ""


def learning_rate(wanted: Recipe, phase: Phase, step: int) -> float:
    """Linear warm-up, then constant or half a cosine down to zero: a function of the step of the phase."""
    high = phase.lr or wanted.train.lr
    warm = wanted.train.warmup_steps
    if step < warm:
        return high * (step + 1) / warm
    if wanted.train.decay == "constant":
        return high
    return high * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(phase.steps - warm, 1)))


def prepare_unet(wanted: Recipe, base: Path) -> UNet2DConditionModel:
    """The UNet that the recipe asks for, on the CPU: of the base or drawn anew, with LoRA or without."""
    seed = wanted.train.seed
    unet = models.load_unet(base) if wanted.model.unet == "trained" else models.make_unet(wanted.model.unet, seed)
    unet.train()
    if wanted.model.lora_rank:
        models.add_lora(unet, wanted.model.lora_rank, wanted.model.lora_alpha, seed)
    if wanted.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def load_tools(wanted: Recipe, base: Path, place: Place) -> Tools:
    """The frozen autoencoder and text encoder, and the caches that the recipe asks for."""
    import torch

    half = torch.bfloat16 if wanted.model.precision == "bfloat16" and place.device.type == "cuda" else torch.float32
    encoder = text.load_text(base, place.device, half)
    return Tools(
        models.load_vae(base).to(place.device),
        encoder,
        LatentCache(wanted.cache, models.identity(base / "vae")) if wanted.data.cache_latents else None,
        text.TextCache(wanted.cache, encoder) if wanted.data.cache_text else None,
    )


def distributed(unet: UNet2DConditionModel, wanted: Recipe, place: Place) -> torch.nn.Module:
    """The UNet as the loop calls it: itself, compiled, or wrapped so that ranks share gradients."""
    import torch

    model: torch.nn.Module = torch.compile(unet) if wanted.model.compile else unet  # type: ignore[assignment]
    if place.world > 1:
        devices = [place.device] if place.device.type == "cuda" else None
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    return model


@contextlib.contextmanager
def last_sync(model: torch.nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients in the last micro-batch only."""
    from torch.nn.parallel import DistributedDataParallel

    with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext():
        yield


def barrier(place: Place) -> None:
    """Wait until all ranks are here; what one writes before it, the others may read after it."""
    if place.world > 1:
        import torch.distributed as dist

        dist.barrier()


def name_culprits(batch: Batch, losses: torch.Tensor, step: int, place: Place, log: Log) -> list[str]:
    """The rows whose losses are not finite, on all ranks; all rows of the step when only gradients are not."""
    bad = [
        {"row_id": row_id, "timestep": t, "caption": caption}
        for row_id, t, caption, fine in zip(
            batch.row_ids, batch.timesteps.tolist(), batch.captions, losses.isfinite().tolist(), strict=True
        )
        if not fine
    ]
    everyone = [(bad, batch.row_ids)]
    if place.world > 1:
        import torch.distributed as dist

        everyone = [(bad, batch.row_ids)] * place.world
        dist.all_gather_object(everyone, (bad, batch.row_ids))
    named = [row for rows, _ in everyone for row in rows]
    log.write("nonfinite", step, samples=named, step_rows=[row_id for _, rows in everyone for row_id in rows])
    names = [str(row["row_id"]) for row in named] or [row_id for _, rows in everyone for row_id in rows]
    log.note(f"step {step}: not finite, skipped; rows {', '.join(names[:8])}")
    return names


def refuse_endless(skipped: int, wanted: Recipe, names: Sequence[str]) -> None:
    """Raise CurateError after too many steps in a row that had to be skipped."""
    if skipped > wanted.train.max_skipped:
        raise CurateError(
            f"{skipped} steps in a row had gradients that are not finite, the last with rows {', '.join(names[:8])}; "
            "lower train.lr or leave those rows out (metrics.jsonl names all of them)"
        )


def same_everywhere(params: Mapping[str, torch.Tensor], place: Place) -> None:
    """Raise CurateError when ranks have drifted apart: their weights must be equal, bit for bit."""
    if place.world == 1:
        return
    import torch
    import torch.distributed as dist

    sums = [(p.detach().double().sum(), p.detach().double().square().sum()) for p in params.values()]
    mine = torch.stack([torch.stack(pair) for pair in sums])
    theirs = [torch.empty_like(mine) for _ in range(place.world)]
    dist.all_gather(theirs, mine)
    if not all(torch.equal(theirs[0], other) for other in theirs):
        raise CurateError("the weights of the processes are no longer equal: a fault of memory, network or library")
