"""SANA's noise schedules: golden values, agreement with diffusers, cutting by denoise, errors."""

import importlib
import math
import re

import pytest
import torch
from sana_native.samplers import schedules

GRIDS = [schedules.get_sigmas_flow_dpm, schedules.get_sigmas_flow_euler]
STEPS, SHIFTS = [1, 2, 3, 7, 20, 50], [1, 3, 4, 6]


def diffusers_dpm(steps, shift):
    diffusers = importlib.import_module("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(
    "u, shift, expected",
    [(0.999, 3, 0.999666), (0.001, 3, 0.002994), (0.999, 4, 0.99975), (0.999, 6, 0.999833), (0.3, 1, 0.3)],
)
def test_flow_shift_golden_values(u, shift, expected):
    assert schedules.flow_shift(u, shift) == pytest.approx(expected, abs=1e-6)
    assert schedules.flow_shift(torch.tensor(u), shift).item() == pytest.approx(expected, abs=1e-6)


def test_flow_dpm_golden_values():
    four, twenty = schedules.get_sigmas_flow_dpm(4, 3), schedules.get_sigmas_flow_dpm(20, 6)
    assert four.tolist() == pytest.approx([0.999666, 0.899640, 0.749625, 0.499667, 0], abs=1e-6)
    assert twenty[[1, 10, 19]].tolist() == pytest.approx([0.991132, 0.856898, 0.239808], abs=1e-6)


def test_flow_euler_golden_values():
    sigmas = schedules.get_sigmas_flow_euler(28, 3)
    assert sigmas[:5].tolist() == pytest.approx([1.0, 0.987381, 0.974108, 0.960129, 0.945387], abs=1e-6)
    assert sigmas[-2].item() == pytest.approx(0.0089286, abs=1e-7)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_flow_dpm_equals_diffusers(steps, shift):
    assert (schedules.get_sigmas_flow_dpm(steps, shift) - diffusers_dpm(steps, shift).sigmas).abs().max() <= 1e-7


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_flow_euler_equals_diffusers(steps, shift):
    diffusers = importlib.import_module("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert (schedules.get_sigmas_flow_euler(steps, shift) - scheduler.sigmas).abs().max() <= 1e-7


@pytest.mark.parametrize("steps", range(1, 101))
@pytest.mark.parametrize("shift", [3, 4, 6])
def test_truncated_float32_time_equals_the_integer_timesteps_of_diffusers(steps, shift):
    # Shift 1 is left out: there the reference's own rounding turns 333 into 332 at some step counts.
    times = (1000 * schedules.get_sigmas_flow_dpm(steps, shift)[:-1] + 3e-5).long()
    assert times.tolist() == diffusers_dpm(steps, shift).timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20])
def test_scm_times_equal_diffusers(steps):
    diffusers = importlib.import_module("diffusers")
    scheduler = diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    assert (schedules.get_times_scm(steps) - scheduler.timesteps).abs().max() <= 2e-7
    scheduler.set_timesteps(steps, max_timesteps=1.5683, intermediate_timesteps=None)
    assert (schedules.get_times_scm(steps, 1.5683, None) - scheduler.timesteps).abs().max() <= 2e-7


@pytest.mark.parametrize(
    "t, expected",
    [
        (1.5708, 1.0000037),
        (1.4, 0.8528954),
        (1.3, 0.7827080),
        (1.2, 0.7200567),
        (1.1, 0.6627045),
        (1.0, 0.608979),
        (math.pi / 4, 0.5),
        (0.0, 0.0),
    ],
)
def test_scm_time_to_sigma_golden_values(t, expected):
    assert schedules.scm_time_to_sigma(t) == pytest.approx(expected, abs=1e-6)
    assert schedules.scm_time_to_sigma(torch.tensor(t)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "steps, intermediate, expected",
    [
        (1, 1.3, [1, 0]),
        (2, 1.3, [1, 0.7827080, 0]),
        (2, None, [1, 0.5000009, 0]),
        (3, 1.3, [1, 0.6339759, 0.3660261, 0]),
        (4, 1.3, [1, 0.7071084, 0.5, 0.2928938, 0]),
    ],
)
def test_scm_sigmas_golden_values(steps, intermediate, expected):
    sigmas = schedules.get_sigmas_scm(steps, intermediate_time=intermediate)
    assert sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    assert sigmas[0] == 1  # exactly: beyond 1 the host drops ControlNets and conditioning ranges


def test_scm_denoise_lowers_the_first_angle_and_drops_the_intermediate_one():
    assert schedules.get_times_scm(2, denoise=0.5).tolist() == pytest.approx([0.7854, 0.3927, 0], abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_denoise_keeps_the_end_of_a_longer_grid(grid):
    assert torch.equal(grid(10, 3.0, denoise=0.4), grid(25, 3.0)[-11:])
    assert grid(10, 3.0, denoise=0.5)[0] < 0.78


@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
@pytest.mark.parametrize(
    "schedule",
    [lambda n: GRIDS[0](n, 6.0), lambda n: GRIDS[1](n, 6.0), schedules.get_sigmas_scm, schedules.get_times_scm],
    ids=["dpm", "euler", "scm", "times"],
)
def test_schedules_descend_strictly_from_the_noise_to_zero_in_float32(schedule, steps):
    sigmas = schedule(steps)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0 and sigmas[0] > 0.99


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: schedules.get_sigmas_flow_dpm(0, 3.0), "steps is 0, but at least 1 is needed"),
        (lambda: schedules.get_sigmas_flow_euler(-1, 3.0), "steps is -1, but at least 1 is needed"),
        (lambda: schedules.get_times_scm(0), "steps is 0, but at least 1 is needed"),
        (lambda: schedules.get_sigmas_flow_dpm(20, 3.0, 0.0), "denoise is 0.0, but a number above 0 and up to 1"),
        (lambda: schedules.get_sigmas_flow_euler(20, 3.0, 1.5), "denoise is 1.5, but a number above 0 and up to 1"),
        (lambda: schedules.get_sigmas_scm(2, denoise=-0.1), "denoise is -0.1, but a number above 0 and up to 1"),
        (lambda: schedules.get_sigmas_flow_dpm(20, 0), "shift is 0, but a number above 0 is needed"),
        (lambda: schedules.get_sigmas_scm(1, max_time=2.0), "max_time is 2.0, but an angle above 0 and up to 1.5708"),
        (lambda: schedules.get_sigmas_scm(2, intermediate_time=1.6), "intermediate_time is 1.6, but an angle between"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "max_time, intermediate", [(1.5708, 1.5708), (1.4, 1.4), (1.3, 1.5708), (1.3, 1.3), (1.2, 1.3), (0.01, 1.3)]
)
def test_the_cure_of_an_intermediate_angle_above_the_first_is_accepted(max_time, intermediate):
    with pytest.raises(ValueError, match="needed; set it to 1.3") as error:
        schedules.get_times_scm(2, max_time, intermediate)
    told = re.search(r"set it to ([\d.]+\d)(?: and max_time to ([\d.]+\d))?", str(error.value)).groups()
    times = schedules.get_times_scm(2, float(told[1] or max_time), float(told[0]))
    assert (times.diff() < 0).all()
