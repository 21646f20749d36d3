from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from curate.train.schedule import SCHEDULES, alpha_bar, loss_weight, noised, scheduler_config, snr, target

# diffusers 0.42 converts tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

KNOWN = {
    "sdxl": {100: 0.894223, 250: 0.673793, 500: 0.276333, 750: 0.056170, 900: 0.014151, 999: 0.004660},
    "kolors_released": {
        100: 0.894016, 250: 0.672594, 500: 0.273756, 750: 0.054719, 900: 0.013567, 999: 0.004408, 1050: 0.002307,
        1099: 0.001183,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_alpha_bar_has_its_known_values(name: str) -> None:
    bar = alpha_bar(name)
    assert {t: round(float(bar[t]), 6) for t in KNOWN[name]} == KNOWN[name]


def test_the_exact_extension_begins_with_sdxl_and_the_released_one_does_not() -> None:
    exact = SCHEDULES["exact_extension"]
    assert (exact.steps, round(exact.beta_end, 10)) == (1100, 0.0138277688)
    assert np.abs(alpha_bar("exact_extension")[:1000] - alpha_bar("sdxl")).max() < 1e-15
    drift = np.abs(alpha_bar("kolors_released")[:1000] - alpha_bar("sdxl"))
    assert (int(drift.argmax()), round(float(drift.max()), 5)) == (505, 0.00258)


def test_the_last_step_of_each_schedule_is_as_noisy_as_documented() -> None:
    ends = {name: round(float(snr(name)[-1]), 6) for name in SCHEDULES}
    assert ends == {"sdxl": 0.004682, "kolors_released": 0.001184, "exact_extension": 0.001272, "zero_snr": 0.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_sampling_and_training_agree_on_alpha_bar(name: str) -> None:
    config = scheduler_config(name, "v_prediction")
    theirs = EulerDiscreteScheduler(**config).alphas_cumprod
    # diffusers replaces the terminal 0 by 2^-24, so that sigma stays finite.
    assert np.abs(theirs.numpy() - alpha_bar(name)).max() < 2e-6
    trained = DDPMScheduler(
        num_train_timesteps=config["num_train_timesteps"], beta_start=config["beta_start"],
        beta_end=config["beta_end"], beta_schedule="scaled_linear", rescale_betas_zero_snr=SCHEDULES[name].zero_snr,
    )  # fmt: skip
    assert np.abs(trained.alphas_cumprod.numpy() - alpha_bar(name)).max() < 2e-6


def test_fifty_steps_of_kolors_begin_at_1079_and_end_at_1() -> None:
    scheduler = EulerDiscreteScheduler(**scheduler_config("kolors_released", "epsilon"))
    scheduler.set_timesteps(50)
    assert (int(scheduler.timesteps[0]), int(scheduler.timesteps[-1])) == (1079, 1)


def test_zero_snr_is_sampled_from_its_last_step() -> None:
    scheduler = EulerDiscreteScheduler(**scheduler_config("zero_snr", "v_prediction"))
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 999


def test_min_snr_weights_are_those_of_diffusers() -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=1100, beta_start=0.00085, beta_end=0.014, beta_schedule="scaled_linear"
    )
    ratio = compute_snr(scheduler, torch.arange(1100)).double().numpy()
    least = np.minimum(ratio, 5)
    np.testing.assert_allclose(loss_weight("kolors_released", "epsilon", 5), least / ratio, rtol=1e-4)
    np.testing.assert_allclose(loss_weight("kolors_released", "v_prediction", 5), least / (ratio + 1), rtol=1e-4)
    weight = loss_weight("kolors_released", "epsilon", 5)
    assert [round(float(weight[t]), 5) for t in (0, 100)] == [0.00425, 0.59274]
    assert (weight[200:] == 1).all()
    assert (loss_weight("sdxl", "epsilon", 0) == 1).all()


def test_zero_snr_is_trained_where_sampling_begins() -> None:
    weight = loss_weight("zero_snr", "v_prediction", 5)
    assert (weight[-1], round(float(weight[900]), 6)) == (1.0, 1.0)
    ratio = snr("zero_snr")
    assert (weight[ratio < 4] == 1).all()  # the plain error of v wherever noise prevails
    np.testing.assert_allclose(weight[ratio > 4], 5 / (ratio[ratio > 4] + 1))


def test_noise_and_targets_are_those_of_diffusers() -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    clean, noise = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    bar = torch.tensor(alpha_bar("sdxl"), dtype=torch.float32)[t][:, None, None, None]
    torch.testing.assert_close(noised(clean, noise, bar), scheduler.add_noise(clean, noise, t), atol=1e-5, rtol=1e-5)
    velocity = scheduler.get_velocity(clean, noise, t)
    torch.testing.assert_close(target(clean, noise, bar, "v_prediction"), velocity, atol=1e-5, rtol=1e-5)
    assert target(clean, noise, bar, "epsilon") is noise
