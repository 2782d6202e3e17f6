"""Names in the host's lists: added once, nothing replaced, and usable from the stock nodes' own code."""

import logging
import math
from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models_base
import pytest
import torch
from comfy.k_diffusion import sampling as k_diffusion
from comfy.model_sampling import ModelSamplingFlux
from sana_native.samplers import registration, schedules
from sana_native.samplers.flow_dpm import sample_flow_dpm
from sana_native.tests.support.flow_toys import curved_velocity, flow_model_sampling, initial_noise

SAMPLERS = ["sana_flow_dpm", "sana_scm", "sana_midpoint"]
SCHEDULERS = ["sana_flow", "sana_flow_euler", "sana_scm", "sana_lumina"]


@pytest.fixture
def host():
    """The host's lists without our names; put back afterwards."""
    names, handlers = (comfy.samplers.SAMPLER_NAMES, comfy.samplers.SCHEDULER_NAMES), comfy.samplers.SCHEDULER_HANDLERS
    saved = [list(n) for n in names], dict(handlers), dict(vars(k_diffusion))

    def forget():
        for name in {*SAMPLERS, *SCHEDULERS}:
            for known in names:
                known[:] = [n for n in known if n != name]
            handlers.pop(name, None)
            vars(k_diffusion).pop(f"sample_{name}", None)

    forget()
    yield SimpleNamespace(samplers=names[0], schedulers=names[1], handlers=handlers)
    forget()
    names[0][:], names[1][:] = saved[0]
    handlers.update(saved[1])
    vars(k_diffusion).update(saved[2])


@pytest.fixture
def registered(host):
    registration.register()
    return host


def snapshot(host):
    return list(host.samplers), list(host.schedulers), dict(host.handlers), dict(vars(k_diffusion))


def test_names_are_added_at_the_end_and_nothing_else_changes(host):
    before = snapshot(host)
    registration.register()
    after = snapshot(host)
    assert after[0] == before[0] + SAMPLERS and after[1] == before[1] + SCHEDULERS
    assert {name for name in after[2] if after[2][name] is not before[2].get(name)} == set(SCHEDULERS)
    added = {name for name in after[3] if after[3][name] is not before[3].get(name)}
    assert added == {f"sample_{name}" for name in SAMPLERS}
    assert comfy.samplers.KSampler.SAMPLERS is host.samplers and comfy.samplers.KSampler.SCHEDULERS is host.schedulers


def test_registering_twice_changes_nothing_and_says_nothing(host, caplog):
    registration.register()
    before = snapshot(host)
    registration.register()
    assert snapshot(host) == before and not caplog.records


def test_a_taken_name_stays_with_its_owner(host, caplog):
    k_diffusion.sample_sana_scm = print
    host.samplers.append("sana_scm")
    host.handlers["sana_flow"] = theirs = comfy.samplers.SchedulerHandler(print)
    host.schedulers.append("sana_flow")
    with caplog.at_level(logging.WARNING):
        registration.register()
    assert k_diffusion.sample_sana_scm is print and host.handlers["sana_flow"] is theirs
    assert host.samplers.count("sana_scm") == host.schedulers.count("sana_flow") == 1
    assert "sana_flow_dpm" in host.samplers and "sana_flow_euler" in host.schedulers
    assert [record.getMessage().split(" is already")[0] for record in caplog.records] == [
        "SANA: the sampler name sana_scm",
        "SANA: the scheduler name sana_flow",
    ]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_schedulers_take_the_shift_of_the_model_and_the_steps_of_the_user(steps):
    model_sampling = flow_model_sampling(shift=4.0)
    expected = [
        schedules.get_sigmas_flow_dpm(steps, 4.0),
        schedules.get_sigmas_flow_euler(steps, 4.0),
        schedules.get_sigmas_scm(steps),
        schedules.get_sigmas_lumina(steps, 4.0),
    ]
    for name, sigmas in zip(SCHEDULERS, expected):
        assert torch.equal(comfy.samplers.calculate_sigmas(model_sampling, name, steps), sigmas)


def test_shift_falls_back_to_three():
    assert torch.equal(registration.sana_flow(SimpleNamespace(), 5), schedules.get_sigmas_flow_dpm(5, 3.0))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_refuse_a_model_whose_noise_levels_are_not_those_of_a_flow(name):
    with pytest.raises(ValueError, match="give flow noise levels from 1 to 0, but this model's begin at 14.61"):
        registration.SCHEDULERS[name](SimpleNamespace(sigma_max=torch.tensor(14.6146)), 20)


class TinyFlow(torch.nn.Module):
    """Network of the toy field, with the host's forward signature; time comes as 1000 * sigma."""

    def __init__(self, **_):
        super().__init__()
        self.dtype = torch.float32

    def forward(self, x, timesteps, **_):
        return curved_velocity(x, timesteps.view(-1, 1, 1, 1) / 1000)


@pytest.fixture
def patcher():
    class Latent(comfy.latent_formats.LatentFormat):
        latent_channels = 32

    config = comfy.supported_models_base.BASE({})
    config.sampling_settings, config.latent_format = {"shift": 3.0}, Latent()
    config.custom_operations, config.optimizations, config.memory_usage_factor = None, {}, 1.0
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW, unet_model=TinyFlow)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def ksample(patcher, sampler, scheduler, latent=None, **options):
    latent = torch.zeros(1, 32, 4, 4) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, 5)
    cond = [[torch.zeros(1, 1, 8), {}]]
    return comfy.sample.sample(
        patcher,
        noise,
        options.pop("steps", 6),
        1.0,
        sampler,
        scheduler,
        cond,
        cond,
        latent,
        disable_pbar=True,
        seed=5,
        **options,
    )


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_stock_sampler_node_path_runs_every_pair_and_reports_every_step(patcher, sampler, scheduler):
    reported = []
    image = ksample(patcher, sampler, scheduler, callback=lambda i, x0, _, total: reported.append((i, total, x0.shape)))
    assert torch.isfinite(image).all() and image.std() > 0.1
    assert reported == [(i, 6, image.shape) for i in range(6)]
    assert torch.equal(image, ksample(patcher, sampler, scheduler))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_img2img_keeps_the_input_and_masked_places_stay(patcher, sampler):
    latent, mask = torch.full((1, 32, 4, 4), 0.8), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    image = ksample(patcher, sampler, "sana_flow", latent, denoise=0.3)
    assert (image - latent).abs().mean() < (ksample(patcher, sampler, "sana_flow") - latent).abs().mean()
    painted = ksample(patcher, sampler, "sana_flow", latent, noise_mask=mask)
    assert (painted - latent)[..., 2:].abs().max() < 1e-6 < (painted - latent)[..., :2].abs().max()


@pytest.mark.usefixtures("registered")
def test_ksampler_object_passes_the_order_on(patcher):
    sigmas, latent = schedules.get_sigmas_flow_dpm(8, 3.0), torch.zeros(1, 32, 4, 4)
    cond = [[torch.zeros(1, 1, 8), {}]]
    images = [
        comfy.sample.sample_custom(
            patcher,
            comfy.sample.prepare_noise(latent, 5),
            1.0,
            comfy.samplers.KSAMPLER(sample_flow_dpm, {"order": order}),
            sigmas,
            cond,
            cond,
            latent,
            disable_pbar=True,
            seed=5,
        )
        for order in (1, 2, 3)
    ]
    assert torch.equal(images[1], ksample(patcher, "sana_flow_dpm", "sana_flow", steps=8))
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_first_order_run_divided_over_two_samplers_equals_a_whole_one(patcher):
    sigmas, noise, cond = schedules.get_sigmas_flow_euler(6, 3.0), initial_noise(), [[torch.zeros(1, 1, 8), {}]]
    euler = comfy.samplers.KSAMPLER(sample_flow_dpm, {"order": 1})

    def run(noise, sigmas, latent):
        return comfy.sample.sample_custom(patcher, noise, 1.0, euler, sigmas, cond, cond, latent, disable_pbar=True)

    empty = torch.zeros_like(noise)
    half = run(noise, sigmas[:4], empty)
    assert (run(empty, sigmas[3:], half) - run(noise, sigmas, empty)).abs().max() <= 1e-6


def test_the_shift_of_fluxs_class_is_the_exponential_of_what_it_holds():
    flux = ModelSamplingFlux()
    flux.set_parameters(shift=math.log(3.0))
    assert registration.flow_shift_of(flux) == pytest.approx(3.0)
    assert torch.allclose(
        flux.sigmas.flip(0)[::500], schedules.flow_shift(torch.arange(20, 0, -1) / 20, 3.0), atol=1e-6
    )
    assert registration.flow_shift_of(flow_model_sampling(4.0)) == 4.0
