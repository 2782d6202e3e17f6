"""The midpoint solver and the grid of Lumina-Next's authors, against the reference's own form of both."""

import pytest
import torch
from comfy.k_diffusion import sampling as k_diffusion
from sana_native.samplers.midpoint import sample_midpoint
from sana_native.samplers.schedules import get_sigmas_flow_dpm, get_sigmas_flow_euler, get_sigmas_lumina
from sana_native.tests.support.flow_toys import curved_velocity, flow_denoiser, initial_noise

GOLDEN = [1, 0.96, 0.909091, 0.842105, 0.75, 0.615385, 0.4, 0]


def authors_times(points: int, shift: float) -> torch.Tensor:
    """From noise, 0, to image, 1, as the demo computes them."""
    times = torch.linspace(0, 1, points, dtype=torch.float64)
    return times / (times + shift - shift * times)


def authors_midpoint(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """torchdiffeq's fixed-grid midpoint over the time from noise to image; the slope is image - noise."""
    x = x.double()
    for start, end in zip(times, times[1:]):
        step = end - start
        half = x - curved_velocity(x, 1 - start) * step / 2
        x = x - curved_velocity(half, 1 - (start + step / 2)) * step
    return x


@pytest.mark.parametrize("points, shift", [(6, 4.0), (30, 4.0), (8, 1.0)])
def test_grid_and_solver_together_equal_the_authors(points, shift):
    sigmas = get_sigmas_lumina(points - 1, shift)
    assert (sigmas - (1 - authors_times(points, shift))).abs().max() <= 6e-8
    ours = sample_midpoint(flow_denoiser(), initial_noise(), sigmas, disable=True)
    expected = authors_midpoint(initial_noise(), authors_times(points, shift))
    assert (ours - expected).norm() / expected.norm() <= 3e-6


@pytest.mark.parametrize("name", ["dpm_2", "heun", "euler"])
def test_no_sampler_of_the_host_gives_the_same(name):
    sigmas, expected = get_sigmas_lumina(5, 4.0), authors_midpoint(initial_noise(), authors_times(6, 4.0))
    stock = getattr(k_diffusion, f"sample_{name}")(flow_denoiser(), initial_noise(), sigmas, disable=True)
    assert (stock - expected).norm() / expected.norm() > 1e-3


def test_golden_grid_of_eight_points_at_shift_four():
    assert get_sigmas_lumina(7, 4.0).tolist() == pytest.approx(GOLDEN, abs=1e-6)
    assert get_sigmas_lumina(29, 4.0)[-2].item() == pytest.approx(0.125)


def test_at_shift_one_the_grid_is_even():
    assert torch.equal(get_sigmas_lumina(4, 1.0), torch.tensor([1, 0.75, 0.5, 0.25, 0]))


def test_denoise_takes_the_end_of_a_longer_grid():
    assert torch.equal(get_sigmas_lumina(5, 4.0, denoise=0.5), get_sigmas_lumina(10, 4.0)[-6:])


@pytest.mark.parametrize("steps, shift, denoise", [(0, 4.0, 1.0), (4, 0.0, 1.0), (4, 4.0, 1.5)])
def test_settings_out_of_range_are_refused_as_in_other_grids(steps, shift, denoise):
    for grid in (get_sigmas_lumina, get_sigmas_flow_dpm, get_sigmas_flow_euler):
        with pytest.raises(ValueError, match="is needed"):
            grid(steps, shift, denoise)


def test_every_step_asks_at_its_begin_and_its_middle_and_is_reported_once():
    model, reports = flow_denoiser(), []
    sigmas = torch.tensor([1.0, 0.5, 0.5, 0.0])
    out = sample_midpoint(model, initial_noise(), sigmas, callback=reports.append, disable=True)
    assert model.calls == [1.0, 0.75, 0.5, 0.25] and torch.isfinite(out).all()
    assert [report["i"] for report in reports] == [0, 2]
