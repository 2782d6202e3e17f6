"""PixArt's grid of timesteps and DMD's step, as pure functions."""

import math

import diffusers
import numpy as np
import pytest
import torch
from sana_native.samplers.dmd import sample_pixart_dmd
from sana_native.samplers.schedules import get_sigmas_pixart, pixart_sigma

LEVELS = torch.tensor([pixart_sigma(t) for t in range(1000)], dtype=torch.float64)


def timesteps(steps: int) -> list[int]:
    """Timesteps of the grid's sigmas, which are exact."""
    sigmas = get_sigmas_pixart(steps)[:-1].double()
    found = (LEVELS[None].log() - sigmas[:, None].log()).abs().argmin(dim=1)
    assert float((LEVELS[found] / sigmas - 1).abs().max()) < 1e-6
    return found.tolist()


def test_timesteps_equal_the_reference_for_every_number_of_steps():
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    for steps in [*range(1, 61), 92, 220, 500, 998, 999]:
        scheduler.set_timesteps(steps)
        assert timesteps(steps) == scheduler.timesteps.tolist(), steps
    for steps in range(1, 1000):
        expected = np.linspace(0, 999, steps + 1).round()[::-1][:-1].astype(int).tolist()
        step = 999 / steps
        assert [round(k * step) for k in range(steps, 0, -1)] == expected, steps


@pytest.mark.parametrize(("steps", "middle"), [(6, 500), (12, 500), (14, 500), (20, 500), (26, 499), (30, 499)])
def test_the_middle_timestep_is_rounded_as_the_reference_rounds_it(steps, middle):
    assert timesteps(steps)[steps // 2] == middle


def test_golden_sigmas_of_20_steps():
    sigmas = get_sigmas_pixart(20).tolist()
    assert sigmas[:3] == pytest.approx([157.407272, 96.176094, 60.271412], rel=1e-6)
    assert sigmas[10:13] == pytest.approx([3.442967, 2.635654, 2.041087], rel=1e-6)
    assert sigmas[-3:] == pytest.approx([0.34226, 0.17601, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_sigmas_pixart(0), "steps is 0, but at least 1 is needed"),
        (
            lambda: get_sigmas_pixart(1000),
            "1000 steps are more than the 999 timesteps PixArt was trained on: lower steps",
        ),
        (lambda: get_sigmas_pixart(20, 0.01), "2000 steps are more .* trained on: raise denoise, or lower steps"),
        (lambda: get_sigmas_pixart(20, 0.0), "denoise is 0.0, but a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dmd_predicts_once_from_unit_noise_at_timestep_400():
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigmas = get_sigmas_pixart(3)
    seen = []

    def denoiser(x, sigma):
        seen.append((x, sigma))
        return x * 0.5

    steps = []
    out = sample_pixart_dmd(denoiser, noise * math.sqrt(1 + float(sigmas[0]) ** 2), sigmas, callback=steps.append)
    (x, sigma), *others = seen
    assert not others and len(steps) == 1
    assert float(sigma[0]) == pytest.approx(2.0410871, rel=1e-6)
    assert torch.allclose(x / math.sqrt(1 + float(sigma[0]) ** 2), noise, atol=1e-5)
    assert torch.equal(out, x * 0.5)


def test_dmd_refuses_to_begin_below_pure_noise():
    with pytest.raises(ValueError, match="sana_pixart_dmd begins at pure noise, 157.4, not at 2: set denoise to 1"):
        sample_pixart_dmd(lambda x, sigma: x, torch.ones(1, 4, 8, 8), torch.tensor([2.0, 0.0]))  # noqa: ARG005
