"""Noise schedules by name, and what follows from them: alpha-bar, SNR, targets, loss weights.

    alpha_bar("kolors_released")[999]        0.0044084
    snr("sdxl")[-1]                          0.004682

All of them are "scaled linear": sqrt(beta) is a straight line in t (Rombach et al. 2022; diffusers' DDPMScheduler).
Kolors lengthens SDXL's 1000 steps to 1100 for its high-resolution phase, so that the last step is nearly pure noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Prediction = Literal["epsilon", "v_prediction"]
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """A scaled-linear schedule of `steps` betas from `beta_start` to `beta_end`, as a scheduler of diffusers has it."""

    steps: int
    beta_start: float
    beta_end: float
    zero_snr: bool = False
    about: str = ""


SCHEDULES = {
    "sdxl": Schedule(1000, 0.00085, 0.012, about="Stable Diffusion XL; Kolors' concept phase"),
    "kolors_released": Schedule(1100, 0.00085, 0.014, about="scheduler_config.json of the released Kolors weights"),
    # The straight line of sqrt(beta) through SDXL's ends, drawn on for 100 steps: the first 1000 alpha-bar are SDXL's.
    "exact_extension": Schedule(
        1100,
        0.00085,
        (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) / 999 * 1099) ** 2,
        about="SDXL's line of sqrt(beta) drawn on to 1100 steps (beta_end 0.0138277688)",
    ),
    "zero_snr": Schedule(
        1000, 0.00085, 0.012, zero_snr=True, about="sdxl rescaled to end in pure noise (Lin et al. 2024, algorithm 1)"
    ),
}


@cache
def alpha_bar(name: str) -> Reals:
    """alpha-bar_t = product of (1 - beta_s) for s <= t, float64, read-only."""
    schedule = SCHEDULES[name]
    betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, schedule.steps) ** 2
    bar = np.cumprod(1 - betas)
    if schedule.zero_snr:
        root = np.sqrt(bar)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        bar = root**2
    bar.flags.writeable = False
    return bar


def snr(name: str) -> Reals:
    """Signal-to-noise ratio alpha-bar / (1 - alpha-bar) of every step."""
    bar = alpha_bar(name)
    return bar / (1 - bar)


def loss_weight(name: str, prediction: Prediction, gamma: float) -> Reals:
    """Weight of the squared error at every step: min-SNR (Hang et al. 2023, section 3.4), or ones for `gamma` 0.

    min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v. Under a schedule that ends in pure noise the
    latter would be 0 at the step that sampling begins with: min(SNR + 1, gamma) / (SNR + 1) there, which is the plain
    error of v (Lin et al. 2024) wherever noise prevails.
    """
    if not gamma:
        return np.ones(SCHEDULES[name].steps)
    ratio = snr(name)
    least: Reals = np.minimum(ratio, gamma)
    if SCHEDULES[name].zero_snr:
        least = np.minimum(ratio + 1, gamma)
    if prediction == "v_prediction":
        weight: Reals = least / (ratio + 1)
        return weight
    return np.divide(least, ratio, out=np.ones_like(ratio), where=ratio > 0)


def noised(clean: torch.Tensor, noise: torch.Tensor, bar: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(bar) x_0 + sqrt(1 - bar) noise; `bar` is alpha-bar of each sample, shaped [n, 1, 1, 1]."""
    return bar.sqrt() * clean + (1 - bar).sqrt() * noise


def target(clean: torch.Tensor, noise: torch.Tensor, bar: torch.Tensor, prediction: Prediction) -> torch.Tensor:
    """What the model learns to predict: the noise, or v = sqrt(bar) noise - sqrt(1 - bar) x_0 (Salimans & Ho 2022)."""
    if prediction == "epsilon":
        return noise
    return bar.sqrt() * noise - (1 - bar).sqrt() * clean


def scheduler_config(name: str, prediction: Prediction) -> dict[str, Any]:
    """Arguments of diffusers' EulerDiscreteScheduler for sampling from a model trained on this schedule."""
    schedule = SCHEDULES[name]
    return {
        "num_train_timesteps": schedule.steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "rescale_betas_zero_snr": schedule.zero_snr,
        # Leading spacing never samples the last step, the one that matters with zero terminal SNR (Lin et al. 2024).
        "timestep_spacing": "trailing" if schedule.zero_snr else "leading",
        "steps_offset": 1,
        "interpolation_type": "linear",
    }
