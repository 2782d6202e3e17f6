"""A step never waits for a GPU: conditionings are there before it, and nothing asks for a value of a tensor."""

import comfy.conds
import comfy.samplers
import pytest
import torch
from comfy.model_sampling import CONST
from sana_native.benchmarks import fake_cuda
from sana_native.models.runtime.precision import Precision
from sana_native.models.runtime.text_conds import MaskCond, TextCond
from sana_native.models.sana.config import SanaConfig
from sana_native.models.sana.loader import choose_network
from sana_native.models.sana.model_sampling import ModelSamplingSana
from sana_native.models.sana.supported_models import SanaSupported
from sana_native.tests.support import workbench as bench

WIDTH = 64
PRECISION = Precision(torch.bfloat16, torch.bfloat16, False, "as it was trained")
META = torch.device("meta")


def config(sprint: bool, interpolation_scale: float | None) -> SanaConfig:
    return SanaConfig(
        WIDTH, 2, 4, WIDTH, 96, 32, 32, sprint, sprint, 0.1, interpolation_scale, 64, 3.0, clamp_attention=None
    )


def conds(sprint: bool, length: int, padded: bool) -> dict:
    """Of one text, as `SanaModel.extra_conds` hands them to the host."""
    mask = torch.ones(1, length, dtype=torch.long, device="cuda")
    given = {"c_crossattn": TextCond(torch.empty(1, length, WIDTH, device="cuda"))}
    given["attention_mask"] = MaskCond(mask, padded)
    if sprint:
        given["guidance"] = comfy.conds.CONDRegular(torch.empty(1, device="cuda"))
    return given


@pytest.mark.parametrize("sprint", [False, True])
@pytest.mark.parametrize("interpolation_scale", [None, 1.0], ids=["1024 px", "2K"])
@pytest.mark.parametrize("texts", [[(16, False)], [(16, False), (16, False)], [(16, True), (48, True)]], ids=str)
def test_a_network_step_as_the_host_calls_it_never_waits_for_the_device(sprint, interpolation_scale, texts):
    supported = SanaSupported(config(sprint, interpolation_scale), PRECISION, *choose_network(torch.device("cuda")))
    model = supported.get_model({}, device=META)
    with fake_cuda.device():
        fake_cuda.move(model)
        given = comfy.samplers.cond_cat([conds(sprint, *text) for text in texts])
        assert (given["attention_mask"] is None) == all(not padded for _, padded in texts)
        x, sigma = (torch.empty(len(texts), *shape, device="cuda") for shape in ((32, 5, 7), ()))
        cost = fake_cuda.count(lambda: model.apply_model(x, sigma, **given, transformer_options={}))
    assert cost.uploads == [] and cost.kernels > 60


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_conditionings_are_sent_to_the_device_once(family):
    """Before the steps, to the device that the host names; "meta" stands in for a GPU."""
    model, (positive, _) = bench.model(family).model, bench.encoded()
    given = {"cross_attn": positive[0][0], "attention_mask": positive[0][1]["attention_mask"]}
    for device in (META, torch.device("cpu")):
        made = model.extra_conds(**given, device=device)
        assert {cond.cond.device for cond in made.values()} == {device}
        assert ("guidance" in made) == (family == "sprint")


def test_only_a_batch_without_padding_goes_without_a_mask():
    whole, padded = (MaskCond(torch.ones(1, 16), flag) for flag in (False, True))
    assert whole.concat([]) is None and whole.concat([whole.process_cond(1)]) is None
    assert torch.equal(padded.concat([]), torch.ones(1, 16))
    assert torch.equal(whole.concat([padded]), torch.ones(2, 16))
    longer = MaskCond(torch.ones(1, 32), padded=False)
    assert torch.equal(whole.concat([longer]), torch.tensor([[1.0] * 16 + [0.0] * 16, [1.0] * 32]))


@pytest.mark.parametrize(("used", "padded"), [(16, False), (15, True), (17, True), (32, False)])
def test_padding_is_found_before_the_mask_is_on_the_device(used, padded):
    mask = (torch.arange(48) < used).long()[None]
    made = bench.model("sana").model.extra_conds(
        cross_attn=torch.randn(1, 48, bench.tiny.CAPTION_CHANNELS), attention_mask=mask, device=META
    )
    assert made["attention_mask"].padded == padded
    assert made["attention_mask"].process_cond(3).padded == padded


def test_a_text_without_padding_gives_the_same_velocity_with_and_without_its_mask():
    network = bench.model("sana").model.diffusion_model
    x, context = torch.randn(1, 32, 3, 5), torch.randn(1, 16, bench.tiny.CAPTION_CHANNELS)
    with torch.inference_mode():
        with_mask = network(x, torch.full((1,), 500.0), context, torch.ones(1, 16))
        assert torch.allclose(network(x, torch.full((1,), 500.0), context, None), with_mask, atol=1e-6)


# Noising the first latent


def sana_sampling() -> ModelSamplingSana:
    return bench.model("sana").model.model_sampling


def test_noising_the_first_latent_never_waits_for_the_device():
    sampling = sana_sampling()
    with fake_cuda.device():
        noise, sigma = torch.empty(1, 32, 4, 4, device="cuda"), torch.empty(1, device="cuda")
        cost = fake_cuda.count(lambda: sampling.noise_scaling(sigma, noise, noise))
    assert cost.uploads == []


@pytest.mark.parametrize(("sigma", "expected"), [(0.9998, 1.0), (0.5, 0.5)])
def test_the_first_level_counts_as_pure_noise_unless_the_latent_brings_its_own(sigma, expected):
    sampling, noise = sana_sampling(), torch.full((1, 32, 2, 2), 2.0)
    latent, level = torch.full_like(noise, 3.0), torch.tensor([sigma])
    out = sampling.noise_scaling(level, noise, latent)
    assert torch.allclose(out, expected * noise + (1 - expected) * latent)
    silent = sampling.noise_scaling(level, torch.zeros_like(noise), latent)
    assert torch.equal(silent, CONST.noise_scaling(sampling, level, torch.zeros_like(noise), latent))
