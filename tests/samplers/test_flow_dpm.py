"""Flow-DPM: agreement with diffusers and the host, exact solutions, convergence, contract, errors."""

import importlib
import math
from functools import partial

import comfy.model_sampling
import pytest
import torch
from comfy.k_diffusion import sampling as k_diffusion
from sana_native.benchmarks import fake_cuda
from sana_native.samplers import flow_dpm
from sana_native.samplers.flow_dpm import sample_flow_dpm
from sana_native.samplers.schedules import get_sigmas_flow_dpm, get_sigmas_flow_euler
from sana_native.tests.support.flow_toys import curved_velocity, fake_denoiser, flow_denoiser, initial_noise

ORDERS = [1, 2, 3]
MEAN, STD = 0.7, 0.4  # of the Gaussian toy data


def gaussian_velocity(x, sigma):
    """Exact velocity when the data are N(MEAN, STD^2): (x - E[x0 | x]) / sigma."""
    alpha = 1 - sigma
    x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
    return (x - x0) / sigma


def gaussian_solution(z, sigma):
    """The probability flow keeps every element's z-score."""
    return (1 - sigma) * MEAN + math.hypot((1 - sigma) * STD, sigma) * z


def gaussian_error(order, steps):
    """Error of a run in float64 over sigmas uniform in log SNR, from 0.95 to 0.05."""
    sigmas = torch.sigmoid(torch.linspace(3, -3, steps + 1, dtype=torch.float64))
    z = initial_noise(dtype=torch.float64)
    start, model = gaussian_solution(z, sigmas[0]), flow_denoiser(gaussian_velocity)
    x = sample_flow_dpm(model, start, sigmas, disable=True, order=order)
    return (x - gaussian_solution(z, sigmas[-1])).abs().max().item()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps, shift", [(1, 3), (2, 3), (3, 3), (4, 6), (5, 1), (14, 3), (15, 4), (20, 3), (40, 6)])
def test_trajectory_equals_diffusers(order, steps, shift):
    diffusers = importlib.import_module("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        final_sigmas_type="zero",
        solver_order=order,
    )
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    expected = [initial_noise()]
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps):
        expected.append(scheduler.step(curved_velocity(expected[-1], sigma), timestep, expected[-1]).prev_sample)
    states = []
    x = sample_flow_dpm(
        flow_denoiser(),
        initial_noise(),
        get_sigmas_flow_dpm(steps, shift),
        disable=True,
        order=order,
        callback=lambda info: states.append(info["x"]),
    )
    assert len(states) == steps
    assert max((a - b).abs().max() for a, b in zip([*states, x], expected)) <= 1e-5


def hosts_order_2(model, x, sigmas, callback=None):
    no_noise = {"eta": 0.0, "s_noise": 0.0, "noise_sampler": lambda *_: 0.0}
    return k_diffusion.sample_dpmpp_2m_sde(model, x, sigmas, callback=callback, disable=True, **no_noise)


@pytest.mark.parametrize("last", [0.0, 0.2])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20, 40])
@pytest.mark.parametrize("grid", [get_sigmas_flow_dpm, get_sigmas_flow_euler])
def test_the_second_order_is_the_hosts_to_its_rounding(grid, steps, last):
    """Also from sigma 1, which the host moves a little for this solver, and to a level above 0, of a divided run."""
    sigmas, x = grid(steps, 3.0), initial_noise(2)
    sigmas = torch.cat([sigmas[sigmas > last], torch.tensor([last])])
    infos, expected = [], []
    ours = sample_flow_dpm(flow_denoiser(), x, sigmas, callback=infos.append, disable=True)
    stock = hosts_order_2(flow_denoiser(), x, sigmas, expected.append)
    assert (ours - stock).norm() / stock.norm() < 1e-5
    for own, host in zip(infos, expected, strict=True):
        assert own.keys() == host.keys() and own["i"] == host["i"]
        assert own["sigma"] == host["sigma"] and own["sigma_hat"] == host["sigma_hat"]
        for name in ("x", "denoised"):
            assert (own[name] - host[name]).norm() / host[name].norm() < 1e-5


@pytest.mark.parametrize("order", [2, 3])
def test_a_step_never_waits_for_the_device(order):
    """Between two calls of the model; fake tensors have no values, so that asking for one raises."""
    with fake_cuda.device():
        x, sigmas = torch.empty(2, 32, 8, 8, device="cuda"), torch.empty(5, device="cuda")
        levels, infos = [0.9, 0.7, 0.5, 0.2, 0.0], []
        steps = partial(flow_dpm._sample_multistep, fake_denoiser(), x, sigmas, levels, order, {}, infos.append, True)
        cost = fake_cuda.count(steps)
    assert cost.uploads == [] and len(infos) == 4 and infos[0]["sigma"].device.type == "cuda"
    # The ones; in 4 steps the batch's sigmas and the toy's two; in 3 the scaling and an addition for each prediction.
    assert cost.kernels == 1 + 4 * 3 + 3 + (1 + 2 + 2)


@pytest.mark.parametrize("stock, order", [(k_diffusion.sample_euler, 1), (k_diffusion.sample_dpmpp_2m_sde, 2)])
def test_third_order_loop_falls_back_to_the_lower_orders_of_the_host(monkeypatch, stock, order):
    step_orders = flow_dpm.step_orders
    monkeypatch.setattr(flow_dpm, "step_orders", lambda sigmas, _: step_orders(sigmas, order))
    x, sigmas = initial_noise(), get_sigmas_flow_dpm(12, 3.0)
    options = {"eta": 0.0, "s_noise": 0.0, "noise_sampler": lambda *_: 0.0} if order == 2 else {}
    ours = sample_flow_dpm(flow_denoiser(), x, sigmas, disable=True, order=3)
    assert (ours - stock(flow_denoiser(), x, sigmas, disable=True, **options)).abs().max() <= 2e-6


@pytest.mark.parametrize(
    "steps, final, expected",
    [
        (1, 0, [1]),
        (2, 0, [1, 1]),
        (3, 0, [1, 2, 1]),
        (4, 0, [1, 2, 2, 1]),
        (5, 0, [1, 2, 3, 2, 1]),
        (14, 0, [1, 2] + [3] * 10 + [2, 1]),
        (15, 0, [1, 2] + [3] * 12 + [1]),
        (4, 0.2, [1, 2, 3, 3]),
        (0, 0, []),
        (-1, 0, []),
    ],
)
def test_order_of_every_step(steps, final, expected):
    assert flow_dpm.step_orders([1.0] * steps + [final] if steps >= 0 else []) == expected


@pytest.mark.parametrize("order", ORDERS)
def test_constant_prediction_is_followed_exactly(order):
    z, target = initial_noise(dtype=torch.float64), 0.3
    sigmas = torch.tensor([0.9, 0.7, 0.6, 0.2, 0.1], dtype=torch.float64)
    model = flow_denoiser(lambda x, sigma: (x - target) / sigma)
    x = sample_flow_dpm(model, (1 - sigmas[0]) * target + sigmas[0] * z, sigmas, disable=True, order=order)
    assert (x - ((1 - sigmas[-1]) * target + sigmas[-1] * z)).abs().max() <= 1e-14


def test_gaussian_data_are_solved_with_the_order_of_each_solver():
    errors = {order: [gaussian_error(order, steps) for steps in (32, 64, 128)] for order in ORDERS}
    slopes = {order: math.log2(e[1] / e[2]) for order, e in errors.items()}
    assert slopes[1] == pytest.approx(1, abs=0.1) and slopes[2] == pytest.approx(2, abs=0.1) and slopes[3] > 1.95
    for first, second, third in zip(*errors.values()):
        assert third < 0.5 * second and second < 0.1 * first


@pytest.mark.parametrize("order, limit", [(1, 0.08), (2, 0.004), (3, 0.013)])
def test_a_whole_run_ends_near_the_known_image(order, limit):
    z, sigmas = initial_noise(dtype=torch.float64), get_sigmas_flow_dpm(40, 3.0).double()
    x = sample_flow_dpm(flow_denoiser(gaussian_velocity), z, sigmas, disable=True, order=order)
    assert (x - gaussian_solution(z, 0.0)).abs().max() < limit * z.abs().max()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("order", ORDERS)
def test_pure_noise_at_sigma_one_stays_finite(order, steps):
    sigmas = get_sigmas_flow_euler(steps, 3.0)
    assert sigmas[0] == 1
    assert torch.isfinite(sample_flow_dpm(flow_denoiser(), initial_noise(), sigmas, disable=True, order=order)).all()


def test_higher_orders_are_nearer_to_the_known_image_also_from_sigma_one():
    z, sigmas = initial_noise(dtype=torch.float64), get_sigmas_flow_dpm(20, 3.0).double()
    sigmas[0] = 1
    first, second, third = (
        (
            sample_flow_dpm(flow_denoiser(gaussian_velocity), z, sigmas, disable=True, order=order)
            - gaussian_solution(z, 0.0)
        )
        .abs()
        .max()
        for order in ORDERS
    )
    assert third < 0.7 * first and second < 0.7 * first


def test_a_prediction_infinitely_far_away_has_no_weight():
    far, near = [-math.inf, -2.0, -1.0], [-1e12, -2.0, -1.0]
    for ends in ([], [0.0]):
        weights = flow_dpm.multistep_weights(0.5, [*far, *ends])
        assert weights[-1] == 0 and weights == pytest.approx(flow_dpm.multistep_weights(0.5, [*near, *ends]), abs=1e-9)
    assert flow_dpm.multistep_weights(0.5, [-math.inf, 0.0]) == [0.5]


def test_half_log_snr_at_and_beyond_the_ends():
    assert [flow_dpm.half_log_snr(s) for s in (1.0000037, 1.0, 0.5, 0.0)] == [-math.inf, -math.inf, 0.0, math.inf]
    assert flow_dpm.half_log_snr(0.25) == pytest.approx(math.log(3))


@pytest.mark.parametrize("order", ORDERS)
def test_model_is_asked_once_per_step_at_the_sigmas_given(order):
    sigmas = torch.tensor([0.93, 0.55, 0.5, 0.11, 0.02, 0.0])
    model, infos = flow_denoiser(), []
    x = sample_flow_dpm(model, initial_noise(2), sigmas, callback=infos.append, disable=True, order=order)
    assert model.calls == pytest.approx(sigmas[:-1].tolist())
    assert [info["i"] for info in infos] == list(range(5))
    assert [float(info["sigma"]) for info in infos] == [float(info["sigma_hat"]) for info in infos] == model.calls
    assert all(info["x"].shape == info["denoised"].shape == x.shape for info in infos)
    assert torch.equal(infos[0]["x"], initial_noise(2)) and (x - infos[-1]["denoised"]).abs().max() <= 1e-6


@pytest.mark.parametrize("order", ORDERS)
def test_items_of_a_batch_equal_single_images_and_runs_repeat(order):
    sigmas, noise = get_sigmas_flow_dpm(8, 3.0), initial_noise(3)
    batch = sample_flow_dpm(flow_denoiser(), noise, sigmas, {"seed": 1}, disable=True, order=order)
    again = sample_flow_dpm(flow_denoiser(), noise, sigmas, {"seed": 2}, disable=True, order=order)
    single = sample_flow_dpm(flow_denoiser(), noise[1:2], sigmas, disable=True, order=order)
    assert torch.equal(batch, again)  # no noise is added, so the seed does not matter
    assert (batch[1:2] - single).abs().max() <= 1e-6
    assert torch.equal(noise, initial_noise(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("order", ORDERS)
def test_state_keeps_its_dtype(order, dtype):
    states, model = [], flow_denoiser(lambda x, s: curved_velocity(x, s).to(dtype))
    x = sample_flow_dpm(
        model,
        initial_noise(dtype=dtype),
        get_sigmas_flow_dpm(5, 3.0).to(dtype),
        disable=True,
        callback=lambda info: states.append(info["x"]),
        order=order,
    )
    assert {state.dtype for state in [*states, x]} == {dtype}


@pytest.mark.parametrize("order", ORDERS)
def test_empty_schedule_returns_the_latent(order):
    x = initial_noise()
    for sigmas in (torch.tensor([]), torch.tensor([0.7])):
        assert sample_flow_dpm(flow_denoiser(), x, sigmas, disable=True, order=order) is x


@pytest.mark.parametrize("order", [0, 4, 2.5])
def test_unknown_order_is_refused(order):
    with pytest.raises(ValueError, match=f"Flow-DPM was asked for order {order}, but it has 1, 2 and 3; choose 2"):
        sample_flow_dpm(flow_denoiser(), initial_noise(), get_sigmas_flow_dpm(4, 3.0), order=order)


def test_a_model_that_is_no_flow_is_refused():
    class Eps(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    with pytest.raises(ValueError, match="Flow-DPM steps along a rectified flow, but this model samples as Eps"):
        sample_flow_dpm(flow_denoiser(model_sampling=Eps()), initial_noise(), get_sigmas_flow_dpm(4, 3.0))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("levels", [(1.0, 0.5, 0.0, 0.5, 0.0), (0.0, 0.5, 1.0)])
def test_a_level_of_zero_before_the_last_is_refused(order, levels):
    x = initial_noise()
    with pytest.raises(ValueError, match=r"noise levels .*0, .*, but only the last may be 0: take the schedule apart"):
        sample_flow_dpm(flow_denoiser(curved_velocity), x, torch.tensor(levels), order=order)


@pytest.mark.parametrize("order", ORDERS)
def test_steps_of_no_length_are_skipped_and_still_counted(order):
    levels, repeated = [1.0, 0.7, 0.3, 0.0], [1.0, 1.0, 0.7, 0.7, 0.7, 0.3, 0.0, 0.0]
    infos, model = [], flow_denoiser()
    plain = sample_flow_dpm(flow_denoiser(), initial_noise(), torch.tensor(levels), disable=True, order=order)
    x = sample_flow_dpm(model, initial_noise(), torch.tensor(repeated), None, infos.append, True, order)
    assert torch.equal(x, plain) and model.calls == pytest.approx([1.0, 0.7, 0.3], abs=1e-3)
    assert [info["i"] for info in infos] == [1, 4, 5]


def test_a_schedule_of_one_level_repeated_leaves_the_latent():
    x = initial_noise()
    for order in ORDERS:
        assert torch.equal(sample_flow_dpm(flow_denoiser(), x, torch.tensor([0.5, 0.5]), disable=True, order=order), x)
