"""SCM sampling: agreement with diffusers and the host, the noise of its steps, the contract."""

import importlib
import math
from functools import partial

import comfy.model_sampling
import pytest
import torch
from comfy.k_diffusion import sampling as k_diffusion
from sana_native.benchmarks import fake_cuda
from sana_native.samplers import scm
from sana_native.samplers.noise import mix_seed, step_noise_sampler
from sana_native.samplers.schedules import get_sigmas_scm, get_times_scm, scm_time_to_sigma
from sana_native.samplers.scm import sample_scm
from sana_native.tests.support.flow_toys import curved_velocity, fake_denoiser, flow_denoiser, initial_noise

SEED = 1234


def trigflow(latents, t):
    """The velocity field as SANA-Sprint's pipeline shows it to an SCM scheduler, latents of standard deviation 0.5."""
    s = scm_time_to_sigma(t)
    q = (s**2 + (1 - s) ** 2).sqrt()
    x = latents / 0.5 * q
    return 0.5 * ((1 - 2 * s) * x + (1 - 2 * s + 2 * s**2) * curved_velocity(x, s)) / q


def diffusers_run(monkeypatch, times):
    scheduling_scm = importlib.import_module("diffusers.schedulers.scheduling_scm")
    scheduler = scheduling_scm.SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    scheduler.set_timesteps(len(times) - 1, timesteps=times, max_timesteps=None, intermediate_timesteps=None)
    noise_sampler = step_noise_sampler(initial_noise(), SEED)
    monkeypatch.setattr(scheduling_scm, "randn_tensor", lambda *_, **__: noise_sampler(None, None))
    latents = initial_noise() * 0.5
    for t in scheduler.timesteps[:-1]:
        latents, denoised = scheduler.step(trigflow(latents, t), t, latents, return_dict=False)
    return denoised / 0.5


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("max_time", [1.5708, math.atan(80 / 0.5), 1.2])
def test_image_equals_diffusers_given_the_same_noise(monkeypatch, steps, max_time):
    times = get_times_scm(steps, max_time, min(1.3, max_time / 2))
    start = initial_noise() / (times[0].cos() + times[0].sin())  # the reference's first state, seen as a flow state
    x = sample_scm(flow_denoiser(), start, scm_time_to_sigma(times), {"seed": SEED}, disable=True)
    assert (x - diffusers_run(monkeypatch, times)).abs().max() <= 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_image_of_the_default_schedule_equals_diffusers_but_for_the_cut_of_the_first_sigma(monkeypatch, steps):
    # 1 instead of 1.0000037, times the slope of the toy field
    x = sample_scm(flow_denoiser(), initial_noise(), get_sigmas_scm(steps), {"seed": SEED}, disable=True)
    assert (x - diffusers_run(monkeypatch, get_times_scm(steps))).abs().max() <= 5e-5


def hosts_run(model, x, sigmas, callback=None):
    return k_diffusion.sample_lcm(
        model, x, sigmas, callback=callback, disable=True, noise_sampler=step_noise_sampler(x, SEED)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize("noise_scale", [None, 0.9])
def test_every_step_equals_the_lcm_sampler_of_the_host_with_the_same_noise(steps, dtype, noise_scale):
    sigmas, x = get_sigmas_scm(steps), initial_noise(2, dtype=dtype)  # the host's sigmas are in float32
    model = flow_denoiser(lambda x, sigma: curved_velocity(x, sigma).to(dtype))
    if noise_scale is not None:
        model.inner_model.model_patcher.get_model_object("model_sampling").noise_scale = noise_scale
    infos, expected = [], []
    ours = sample_scm(model, x, sigmas, {"seed": SEED}, infos.append, disable=True)
    assert torch.equal(ours, hosts_run(model, x, sigmas, expected.append))
    for own, host in zip(infos, expected, strict=True):
        assert own.keys() == host.keys() and own["i"] == host["i"]
        assert all(torch.equal(own[name], host[name]) for name in ("x", "sigma", "sigma_hat", "denoised"))


def test_a_model_of_another_kind_is_noised_as_the_host_does():
    class Eps(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    sigmas, x = torch.tensor([14.0, 3.0, 0.0]), initial_noise()
    model = flow_denoiser(model_sampling=Eps())
    assert torch.equal(sample_scm(model, x, sigmas, {"seed": SEED}, disable=True), hosts_run(model, x, sigmas))


def test_a_step_never_waits_for_the_device():
    with fake_cuda.device():
        x, sigmas = torch.empty(2, 32, 8, 8, device="cuda"), torch.empty(4, device="cuda")
        noise, infos = [torch.empty_like(x), torch.empty_like(x), None], []
        steps = partial(scm._sample_steps, fake_denoiser(), x, sigmas, noise, {}, infos.append, True)
        cost = fake_cuda.count(steps)
    assert cost.uploads == [] and len(infos) == 3 and infos[0]["denoised"].device.type == "cuda"
    assert cost.kernels == 1 + 3 * 3 + 2 * 5


def test_the_noise_is_on_the_device_before_the_first_step(monkeypatch):
    """A copy between two steps would wait for the one before."""
    calls, sampler = [], step_noise_sampler(initial_noise(), SEED)
    monkeypatch.setattr(scm, "step_noise_sampler", lambda *_: lambda *given: calls.append("noise") or sampler(*given))
    sample_scm(flow_denoiser(), initial_noise(), get_sigmas_scm(3), None, lambda _: calls.append("step"), True)
    assert calls == ["noise"] * 2 + ["step"] * 3


def test_gaussian_posterior_keeps_mean_and_gains_the_right_spread():
    # One consistency step from pure noise with the exact x0 of a point mass is exact; re-noising has std sigma.
    seen = []
    model = flow_denoiser(lambda x, sigma: (x - 0.3) / sigma)
    sigmas = torch.tensor([1.0, 0.6, 0.0])
    x = sample_scm(model, initial_noise(64), sigmas, {"seed": SEED}, lambda info: seen.append(info["x"]), True)
    assert (x - 0.3).abs().max() <= 1e-6
    assert seen[1].mean().item() == pytest.approx(0.4 * 0.3, abs=0.01)
    assert seen[1].std().item() == pytest.approx(0.6, abs=0.01)


def test_model_is_asked_once_per_step_at_the_sigmas_given():
    sigmas, infos, model = torch.tensor([0.9, 0.77, 0.31, 0.0]), [], flow_denoiser()
    x = sample_scm(model, initial_noise(2), sigmas, {"seed": SEED}, infos.append, True)
    assert model.calls == pytest.approx([0.9, 0.77, 0.31])
    assert [info["i"] for info in infos] == [0, 1, 2] and [float(info["sigma"]) for info in infos] == model.calls
    assert torch.equal(x, infos[-1]["denoised"])  # not noised again after the last step


def test_seed_decides_and_items_of_a_batch_equal_single_images():
    def run(x, seed):
        return sample_scm(flow_denoiser(), x, get_sigmas_scm(3), {"seed": seed}, disable=True)

    noise = initial_noise(3)
    assert torch.equal(run(noise, 7), run(noise, 7))
    assert (run(noise, 7) - run(noise, 8)).abs().max() > 0.1
    assert (run(noise, 7)[:1] - run(noise[:1], 7)).abs().max() <= 1e-6


def test_missing_seed_counts_as_zero_and_the_global_random_state_is_left_alone():
    state, x = torch.get_rng_state(), initial_noise()
    without = sample_scm(flow_denoiser(), x, get_sigmas_scm(3), disable=True)
    assert torch.equal(without, sample_scm(flow_denoiser(), x, get_sigmas_scm(3), {"seed": 0}, disable=True))
    assert torch.equal(state, torch.get_rng_state())


def test_empty_schedule_returns_the_latent():
    x = initial_noise()
    for sigmas in (torch.tensor([]), torch.tensor([0.7])):
        assert sample_scm(flow_denoiser(), x, sigmas, disable=True) is x


@pytest.mark.parametrize("shape", [(32, 1, 1), (32, 2, 2), (32, 5, 7), (4, 3, 3), (3, 1, 1)])
def test_step_noise_of_the_first_item_is_that_of_a_single_image_at_every_step(shape):
    single, batch = step_noise_sampler(torch.empty(1, *shape), SEED), step_noise_sampler(torch.empty(4, *shape), SEED)
    for _ in range(3):
        one, four = single(None, None), batch(None, None)
        assert torch.equal(one[0], four[0])
        assert all(not torch.equal(four[0], item) for item in four[1:])


def test_step_noise_is_normal_new_at_every_step_and_of_the_dtype_of_the_latent():
    noise_sampler = step_noise_sampler(torch.empty(2, 32, 64, 64, dtype=torch.float16), SEED)
    first, second = noise_sampler(None, None), noise_sampler(None, None)
    assert first.dtype == torch.float16 and first.shape == (2, 32, 64, 64)
    start = torch.randn(32, 64, 64, generator=torch.Generator().manual_seed(SEED))
    items = torch.stack([*first, *second, start]).double()
    assert (items.mean((1, 2, 3)).abs() < 0.01).all() and ((items.std((1, 2, 3)) - 1).abs() < 0.01).all()
    correlation = torch.corrcoef(items.flatten(1)) - torch.eye(5)
    assert correlation.abs().max() < 0.015  # also with the starting noise of the same seed


def test_seeds_are_mixed_over_64_bits():
    words = [mix_seed(seed, step, item) for seed in (0, 1, 2**32, 2**64 - 1) for step in range(20) for item in range(5)]
    assert len(set(words)) == len({word & 0xFFFFFFFF for word in words}) == 400
    assert all(0 <= word < 2**64 for word in words)
    # The first outputs of the published splitmix64 generator started at 0
    assert mix_seed(0) == 0xE220A8397B1DCDAF


def test_items_of_a_batch_have_the_noise_of_their_number_wherever_they_are():
    noise = initial_noise(4)
    plain = sample_scm(flow_denoiser(), noise, get_sigmas_scm(3), {"seed": SEED}, disable=True)
    numbers = [0, 1, 2, 3]
    assert torch.equal(
        plain, sample_scm(flow_denoiser(), noise, get_sigmas_scm(3), {"seed": SEED}, disable=True, batch_index=numbers)
    )
    some = sample_scm(
        flow_denoiser(), noise[[3, 1]], get_sigmas_scm(3), {"seed": SEED}, disable=True, batch_index=[3, 1]
    )
    assert (some - plain[[3, 1]]).abs().max() <= 1e-6
    assert (
        sample_scm(flow_denoiser(), noise[[3]], get_sigmas_scm(3), {"seed": SEED}, disable=True) - plain[3]
    ).std() > 0.1


def test_numbers_for_another_batch_are_refused():
    with pytest.raises(ValueError, match="holds 2 images but numbers in batch_index for 3: use Latent From Batch"):
        step_noise_sampler(torch.empty(2, 32, 2, 2), SEED, [0, 1, 2])
