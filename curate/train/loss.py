"""The error of a prediction: the one piece of mathematics that training and validation share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curate.train import schedule

if TYPE_CHECKING:
    import torch


def squared_errors(
    unet: torch.nn.Module,
    *,
    clean: torch.Tensor,
    noise: torch.Tensor,
    steps: torch.Tensor,
    bars: torch.Tensor,
    hidden: torch.Tensor,
    pooled: torch.Tensor,
    time_ids: torch.Tensor,
    prediction: schedule.Prediction,
    precision: str,
) -> torch.Tensor:
    """Mean squared error of the prediction for each sample, [n], float32: what training and validation share."""
    import torch

    bar = bars[steps][:, None, None, None]
    noisy = schedule.noised(clean, noise, bar)
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        said = unet(
            noisy, steps, encoder_hidden_states=hidden, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}
        ).sample
    error: torch.Tensor = (said.float() - schedule.target(clean, noise, bar, prediction)).square().mean((1, 2, 3))
    return error
