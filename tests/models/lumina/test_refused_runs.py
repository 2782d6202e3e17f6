"""Runs that Lumina-Next cannot do are refused in one sentence, and what would be lost silently is warned of."""

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_gits import GITSScheduler
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from comfy_extras.nodes_sag import SelfAttentionGuidance
from sana_native.nodes.warnings import warn_about_runs
from sana_native.tests.support import workbench as bench

SEED = 7


@pytest.fixture
def model():
    watched = bench.lumina().clone()
    warn_about_runs(watched)
    return watched


@pytest.fixture(scope="module")
def conds():
    return bench.call(bench.OURS["GemmaEncode"], bench.lumina_clip(), "a red cat", "blurry")


def zeros(*shape: int) -> dict:
    return {"samples": torch.zeros(*shape)}


def ksampler(model, conds, latent, steps: int = 1, scheduler: str = "sana_flow_euler", denoise: float = 1.0):
    return bench.call("KSampler", model, SEED, steps, 4.0, "euler", scheduler, *conds, latent, denoise)[0]["samples"]


def sampled(model, conds, sigmas: torch.Tensor) -> torch.Tensor:
    euler = comfy.samplers.sampler_object("euler")
    inputs = (model, True, SEED, 1.0, *conds, euler, sigmas, zeros(1, 4, 8, 8))
    return bench.call(SamplerCustom, *inputs)[0]["samples"]


@pytest.mark.parametrize("scheduler", [AlignYourStepsScheduler, GITSScheduler])
def test_noise_levels_above_one_are_refused(scheduler, model, conds):
    settings = ("SDXL", 10, 1.0) if scheduler is AlignYourStepsScheduler else (1.2, 10, 1.0)
    (sigmas,) = bench.call(scheduler, *settings)
    with pytest.raises(ValueError, match="begin at 14.6.*, but Lumina-Next's flow has levels from 1 to 0: use SANA Fl"):
        sampled(model, conds, sigmas)


def test_a_first_noise_level_without_a_step_is_refused(model, conds):
    with pytest.raises(ValueError, match="This run has no step, only a first noise level of 1"):
        sampled(model, conds, torch.tensor([1.0]))


def test_the_packs_sampler_names_the_flow_that_a_node_replaced(model, conds):
    (changed,) = bench.call(ModelSamplingDiscrete, model, "eps", False)
    with pytest.raises(ValueError, match="This Lumina-Next model was set to sample as ModelSamplingDiscrete.*: bypass"):
        bench.call(bench.OURS["Sampler"], changed, *conds, zeros(1, 4, 8, 8), SEED, 1, 4.0)


@pytest.mark.parametrize("shape", [(1, 4, 3, 8, 8), (1, 16, 1, 8, 8), (1, 64, 32)])
def test_the_empty_latent_of_a_video_or_a_sound_is_refused(shape, model, conds):
    with pytest.raises(ValueError, match=rf"has {len(shape)} dimensions, .*, but Lumina-Next needs the 4 of an image:"):
        ksampler(model, conds, zeros(*shape))


def test_an_area_outside_the_image_is_refused(model, conds):
    (positive,) = bench.call("ConditioningSetArea", conds[0], 64, 64, 512, 256, 1.0)
    with pytest.raises(ValueError, match="begins at row 32, column 64, outside the latent of 8 x 8 cells of 8 px: set"):
        ksampler(model, (positive, conds[1]), zeros(1, 4, 8, 8))


def test_an_image_lost_at_full_noise_gets_a_warning(model, conds, caplog):
    image = {"samples": torch.ones(1, 4, 8, 8)}
    ksampler(model, conds, image, 2, denoise=0.9)
    assert "Set denoise to 0.66 or less: this run starts from pure noise and ignores the image." in caplog.text
    caplog.clear()
    bench.call(bench.OURS["Sampler"], model, *conds, image, SEED, 2, 4.0, 1.0)
    assert "Set denoise to 0.66 or less: this run starts from pure noise and ignores the image." in caplog.text
    caplog.clear()
    ksampler(model, conds, image, 2, denoise=0.66)
    assert "ignores the image" not in caplog.text


def test_self_attention_guidance_is_refused(model, conds):
    (patched,) = bench.call(SelfAttentionGuidance, model, 0.5, 2.0)
    with pytest.raises(ValueError, match="Self-Attention Guidance reads the map .* cannot be replaced: bypass that"):
        ksampler(patched, conds, zeros(1, 4, 8, 8))


@pytest.mark.parametrize("node", [FreeU, FreeU_V2])
def test_freeu_is_refused_where_it_is_applied(node, model):
    with pytest.raises(ValueError, match="FreeU scales the skip connections of a UNet, .* bypass that node"):
        bench.call(node, model, 1.1, 1.2, 0.9, 0.2)


def with_solver(model, conds, sampler: str, scheduler: str, steps: int = 4, latent=None, denoise: float = 1.0) -> None:
    latent = latent or zeros(1, 4, 8, 8)
    bench.call("KSampler", model, SEED, steps, 4.0, sampler, scheduler, *conds, latent, denoise)


@pytest.mark.parametrize("sampler", ["lcm", "sana_scm"])
def test_a_sampler_for_distilled_models_gets_a_warning(sampler, model, conds, caplog):
    with_solver(model, conds, sampler, "sana_flow_euler")
    assert f"Choose the sampler euler: {sampler} is for distilled models, which Lumina-Next is not." in caplog.text
    caplog.clear()
    with_solver(model, conds, sampler, "sana_flow_euler", steps=1)
    assert "for distilled models" not in caplog.text


def test_a_new_image_that_does_not_begin_at_pure_noise_gets_a_warning(model, conds, caplog):
    with_solver(model, conds, "euler", "ddim_uniform")
    assert "Choose the scheduler sana_flow_euler, denoise 1: a new image begins at noise level 1, not 0." in caplog.text
    caplog.clear()
    with_solver(model, conds, "euler", "ddim_uniform", latent={"samples": torch.ones(1, 4, 8, 8)})
    assert "a new image begins" not in caplog.text


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        *(("euler", name) for name in ("sana_flow_euler", "sana_lumina", "normal", "simple", "beta", "karras")),
        ("sana_midpoint", "sana_lumina"),
    ],
)
@pytest.mark.parametrize("steps", [4, 20])
def test_fit_samplers_and_schedulers_get_no_warning(steps, sampler, scheduler, model, conds, caplog):
    with_solver(model, conds, sampler, scheduler, steps)
    assert "SANA: Choose" not in caplog.text
