"""Noise levels from a given sigma on: they begin there, fall to 0, and are at 1 those of the whole grid."""

import math

import comfy.samplers
import pytest
import torch
from comfy.model_sampling import EPS, ModelSamplingDiscrete
from sana_native.samplers.schedules import (
    get_sigmas_flow_dpm,
    get_sigmas_flow_euler,
    get_sigmas_pixart,
    get_sigmas_scm,
)
from sana_native.samplers.strength import (
    flow_dpm_from,
    flow_euler_from,
    pixart_from,
    scm_from,
    simple_from,
    unshift,
)

FLOWS = {
    "dpm": (lambda steps, sigma: flow_dpm_from(steps, 3.0, sigma), lambda steps: get_sigmas_flow_dpm(steps, 3.0)),
    "euler": (lambda steps, sigma: flow_euler_from(steps, 4.0, sigma), lambda steps: get_sigmas_flow_euler(steps, 4.0)),
    "scm": (scm_from, get_sigmas_scm),
}
every_flow = pytest.mark.parametrize("name", FLOWS)
steps_of = pytest.mark.parametrize("steps", [1, 2, 4, 20])


@every_flow
@steps_of
def test_at_one_it_is_the_whole_grid(name, steps):
    ours, whole = FLOWS[name]
    assert torch.equal(ours(steps, 1.0), whole(steps))


@every_flow
@steps_of
@pytest.mark.parametrize("sigma", [0.01, 0.3, 0.5, 0.9])
def test_it_begins_at_sigma_and_falls_to_zero(name, steps, sigma):
    sigmas = FLOWS[name][0](steps, sigma)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    assert float(sigmas[0]) == pytest.approx(sigma, abs=1e-6) and sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())


def test_half_the_steps_begin_far_above_half_the_noise():
    assert float(get_sigmas_flow_dpm(20, 3.0, 0.5)[0]) == pytest.approx(0.75, abs=1e-3)
    assert unshift(0.75, 3.0) == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_pixart_begins_at_the_timestep_with_as_much_noise_as_the_flow(steps):
    assert torch.equal(pixart_from(steps, 1.0), get_sigmas_pixart(steps))
    sigmas = pixart_from(steps, 0.5)
    assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    assert 0.97 < float(sigmas[0]) <= 1.0  # sigma / (1 - sigma)


def test_the_simple_grid_is_the_hosts_at_one_and_its_lower_part_below():
    sampling = type("Sampling", (ModelSamplingDiscrete, EPS), {})()
    whole = comfy.samplers.calculate_sigmas(sampling, "simple", 4)
    assert torch.equal(simple_from(sampling.sigmas, 4, 1.0), whole)
    lower = simple_from(sampling.sigmas, 4, 0.3)
    assert float(lower[0]) <= 0.3 / 0.7 < float(lower[0]) * 1.02 and lower[-1] == 0
    assert bool((lower.diff() < 0).all())


def test_more_steps_than_there_are_levels_are_refused():
    with pytest.raises(ValueError, match=r"500 steps are more than the \d+ timesteps that PixArt has below sigma 0.3"):
        pixart_from(500, 0.3)
    with pytest.raises(ValueError, match=r"4 steps are more than the 2 levels below sigma 0.5: lower steps, or raise"):
        simple_from(torch.tensor([0.1, 0.5, 2.0]), 4, 0.5)


@pytest.mark.parametrize("sigma", [0.0, 1.2, math.nan])
def test_a_sigma_out_of_range_is_refused(sigma):
    with pytest.raises(ValueError, match="denoise is .*, but as a sigma it is above 0 and up to 1"):
        flow_dpm_from(4, 3.0, sigma)
