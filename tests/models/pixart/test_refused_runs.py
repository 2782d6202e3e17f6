"""Runs that PixArt cannot do are refused in one sentence, and what would be lost or spoiled silently is warned of."""

from functools import cache

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete, ModelSamplingSD3
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingFlux
from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_gits import GITSScheduler
from comfy_extras.nodes_sag import SelfAttentionGuidance
from sana_native.models.registry import load_model
from sana_native.nodes.warnings import warn_about_runs
from sana_native.tests.support import pixart
from sana_native.tests.support import workbench as bench

SEED = 7


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """(kind, distilled) -> a model that the loader node would give, from a small folder of the release's name."""

    @cache
    def load_folder(kind: str = "Sigma 512", distilled: str = ""):
        path = tmp_path_factory.mktemp("models") / f"{pixart.KINDS[kind][-1]}{'-' + distilled if distilled else ''}"
        pixart.pipeline(kind, distilled).save_pretrained(path)
        model = load_model("transformer", str(path))
        warn_about_runs(model)
        return model

    return load_folder


def conds() -> tuple[list, list]:
    generator = torch.Generator().manual_seed(5)
    return tuple([[torch.randn(1, length, pixart.TEXT_WIDTH, generator=generator), {}]] for length in (5, 1))


def zeros(*shape: int) -> dict:
    return {"samples": torch.zeros(*shape)}


def packs_sampler(model, latent=None, steps: int = 2, cfg: float = 1.0, denoise: float = 1.0) -> torch.Tensor:
    latent = latent or zeros(1, 4, 8, 8)
    return bench.call(bench.OURS["Sampler"], model, *conds(), latent, SEED, steps, cfg, denoise)[0]["samples"]


def ksampler(model, latent=None, steps: int = 2, scheduler: str = "normal", denoise: float = 1.0) -> torch.Tensor:
    inputs = (model, SEED, steps, 1.0, "euler", scheduler, *conds(), latent or zeros(1, 4, 8, 8), denoise)
    return bench.call("KSampler", *inputs)[0]["samples"]


@pytest.mark.parametrize(
    ("node", "settings"),
    [
        (ModelSamplingSD3, (3.0,)),
        (ModelSamplingAuraFlow, (3.0,)),
        (ModelSamplingFlux, (1.15, 0.5, 64, 64)),
        (ModelSamplingDiscrete, ("v_prediction", False)),
        (ModelSamplingDiscrete, ("x0", False)),
        (ModelSamplingDiscrete, ("eps", True)),
        (ModelSamplingContinuousEDM, ("eps", 120.0, 0.002)),
    ],
)
@pytest.mark.parametrize("distilled", ["", "DMD"])
@pytest.mark.parametrize("sample", [packs_sampler, ksampler])
def test_another_kind_of_sampling_is_refused(sample, distilled, node, settings, load):
    (changed,) = bench.call(node, load("alpha 512" if distilled else "Sigma 512", distilled), *settings)
    with pytest.raises(ValueError, match=r"This PixArt model was set to sample as .* it predicts noise at .*: bypass"):
        sample(changed)


@pytest.mark.parametrize("sampling", ["eps", "lcm"])
def test_the_stock_node_s_own_noise_prediction_and_lcm_pass(sampling, load):
    (changed,) = bench.call(ModelSamplingDiscrete, load(), sampling, False)
    assert torch.isfinite(packs_sampler(changed)).all() and torch.isfinite(ksampler(changed)).all()


def test_the_models_own_lcm_passes(load):
    assert torch.isfinite(packs_sampler(load("alpha 1024-MS", "LCM"))).all()


@pytest.mark.parametrize("scheduler", [AlignYourStepsScheduler, GITSScheduler])
def test_a_new_image_from_another_models_first_noise_level_gets_a_warning(scheduler, load, caplog):
    settings = ("SDXL", 10, 1.0) if scheduler is AlignYourStepsScheduler else (1.2, 10, 1.0)
    (sigmas,) = bench.call(scheduler, *settings)
    sampled(load(), sigmas)
    assert (
        "Choose the scheduler sana_pixart, denoise 1: a new image begins at noise level 157.4, not 14.6" in caplog.text
    )


@pytest.mark.parametrize("scheduler", ["normal", "karras", "beta", "ddim_uniform", "kl_optimal", "sana_pixart"])
def test_the_stock_schedulers_of_the_model_get_none(scheduler, load, caplog):
    ksampler(load(), steps=20, scheduler=scheduler)
    ksampler(load(), {"samples": torch.ones(1, 4, 8, 8)}, 2, scheduler, 0.5)
    assert "new image begins" not in caplog.text and "ignores the image" not in caplog.text


def sampled(model, sigmas: torch.Tensor, latent=None) -> torch.Tensor:
    euler = comfy.samplers.sampler_object("euler")
    return bench.call(SamplerCustom, model, True, SEED, 1.0, *conds(), euler, sigmas, latent or zeros(1, 4, 8, 8))[0][
        "samples"
    ]


@pytest.mark.parametrize("shape", [(1, 4, 3, 8, 8), (1, 16, 1, 8, 8), (1, 64, 32)])
def test_the_empty_latent_of_a_video_or_a_sound_is_refused(shape, load):
    with pytest.raises(ValueError, match=rf"has {len(shape)} dimensions, .*, but PixArt needs the 4 of an image: take"):
        ksampler(load(), zeros(*shape))


def test_an_area_outside_the_image_is_refused(load):
    positive, negative = conds()
    (positive,) = bench.call("ConditioningSetArea", positive, 64, 64, 512, 256, 1.0)
    with pytest.raises(ValueError, match="begins at row 32, column 64, outside the latent of 8 x 8 cells of 8 px: set"):
        bench.call(bench.OURS["Sampler"], load(), positive, negative, zeros(1, 4, 8, 8), SEED, 1, 1.0)


def test_an_image_lost_at_full_noise_gets_a_warning(load, caplog):
    image = {"samples": torch.ones(1, 4, 8, 8)}
    for sample in (lambda: ksampler(load(), image, 2, "sana_pixart", 0.9), lambda: packs_sampler(load(), image, 2)):
        caplog.clear()
        sample()
        assert "Set denoise to 0.66 or less: this run starts from pure noise and ignores the image." in caplog.text
    caplog.clear()
    packs_sampler(load(), image, 2, denoise=0.66)
    assert "ignores the image" not in caplog.text


@pytest.mark.parametrize("node", [FreeU, FreeU_V2])
def test_freeu_is_refused_where_it_is_applied(node, load):
    with pytest.raises(ValueError, match="FreeU scales the skip connections of a UNet, .* bypass that node"):
        bench.call(node, load(), 1.1, 1.2, 0.9, 0.2)


def test_self_attention_guidance_acts_on_the_softmax_map(load):
    (guided,) = bench.call(SelfAttentionGuidance, load(), 0.5, 2.0)
    latent = zeros(1, 4, 16, 16)
    assert float((packs_sampler(guided, latent, cfg=4.5) - packs_sampler(load(), latent, cfg=4.5)).abs().max()) > 1e-3


@pytest.mark.parametrize("scheduler", ["sana_flow", "sana_flow_euler", "sana_scm", "sana_lumina"])
def test_a_flow_s_scheduler_names_pixarts_own(scheduler, load):
    with pytest.raises(
        ValueError, match=r"flow noise levels .* 157.4, as PixArt's do: choose sana_pixart for a PixArt"
    ):
        ksampler(load(), scheduler=scheduler)


def test_a_flow_s_sampler_names_pixarts_own(load):
    flow_dpm = comfy.samplers.sampler_object("sana_flow_dpm")
    inputs = (load(), True, SEED, 1.0, *conds(), flow_dpm, torch.tensor([157.4, 1.0, 0.0]), zeros(1, 4, 8, 8))
    with pytest.raises(
        ValueError, match="choose a stock sampler such as dpmpp_2m, for a PixArt with the scheduler sana_p"
    ):
        bench.call(SamplerCustom, *inputs)


@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["auto", "given"])
@pytest.mark.parametrize(
    ("kind", "distilled", "own"),
    [("Sigma 512", "", "PixArt-Sigma begins at 157.4: use Basic Scheduler with sana_pixart in its"),
     ("alpha 1024-MS", "LCM", "PixArt-alpha begins at 157.4: use Basic Scheduler with simple in its")],
)  # fmt: skip
def test_the_flow_scheduler_names_pixarts_own(kind, distilled, own, shift, load):
    with pytest.raises(ValueError, match=rf"SANA Flow Scheduler has noise levels from 1 to 0, and {own} place\."):
        bench.call(bench.OURS["FlowScheduler"], load(kind, distilled), 20, "flow_dpm", shift, 1.0)


@pytest.mark.parametrize(("kind", "vae"), [("Sigma 512", "SDXL"), ("alpha 512", "Stable Diffusion 1")])
def test_the_latent_of_a_dc_ae_is_refused_with_the_vae_to_take(kind, vae, load):
    cure = rf"has 32 channels .* needs 4: encode the image with the VAE of {vae} \(Load VAE\), .* SANA Empty Latent\."
    with pytest.raises(ValueError, match=cure):
        ksampler(load(kind), {"samples": torch.ones(1, 32, 4, 4)})


def test_an_empty_latent_of_32_channels_is_made_one_of_4(load):
    (latent,) = bench.call(bench.OURS["EmptyLatent"], "custom", "1:1", 64, 96)
    assert latent["samples"].shape == (1, 32, 3, 2) and ksampler(load(), latent).shape == (1, 4, 12, 8)


def test_an_image_size_of_nothing_is_refused(load):
    positive, negative = conds()
    positive[0][1].update(width=0, height=512)
    with pytest.raises(
        ValueError, match=r"CLIP Text Encode \(PixArt Alpha\) has the size 0 x 512: set width and height"
    ):
        bench.call(bench.OURS["Sampler"], load("alpha 1024-MS"), positive, negative, zeros(1, 4, 8, 8), SEED, 1, 1.0)


# Steps of no length


def custom(model, sampler: str, sigmas: list[float], latent=None) -> torch.Tensor:
    solver = comfy.samplers.sampler_object(sampler)
    inputs = (True, SEED, 4.5, *conds(), solver, torch.tensor(sigmas), latent or zeros(1, 4, 8, 8))
    return bench.call(SamplerCustom, model, *inputs)[0]["samples"]


SOLVERS = ("euler", "heun", "dpm_2", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde",
           "uni_pc", "uni_pc_bh2", "deis", "ipndm", "ipndm_v", "lms", "res_multistep", "gradient_estimation",
           "sa_solver", "seeds_2", "er_sde", "ddim", "ddpm")  # fmt: skip


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_step_of_no_length_changes_nothing(sampler, load):
    once = custom(load(), sampler, [157.4, 20.0, 3.0, 0.4, 0.0])
    assert torch.isfinite(once).all() and once.std() > 0.1
    assert torch.equal(custom(load(), sampler, [157.4, 157.4, 20.0, 3.0, 3.0, 3.0, 0.4, 0.0, 0.0]), once)


def test_an_lcm_steps_again_at_the_same_noise_level(load):
    model = load("alpha 1024-MS", "LCM")
    once, twice = (custom(model, "lcm", [157.4, *levels, 0.0]) for levels in ([3.0], [3.0, 3.0]))
    assert torch.isfinite(twice).all() and not torch.equal(once, twice)


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        ([157.4], "This run has no step, only a first noise level of 157.4: give it at least one step."),
        ([157.4, 157.4], "This run has no step, only a first noise level of 157.4: give it at least one step."),
        ([157.4, 0.0, 3.0, 0.0], "Noise level 2 of 4 is 0, but only the last may be: a step from 0 is undefined"),
        ([157.4, float("nan"), 0.0], "The noise levels hold nan, which is none: choose another scheduler"),
        ([157.4, -1.0], "The noise levels hold -1, which is none: choose another scheduler"),
    ],
)
def test_noise_levels_that_no_solver_can_step_along_are_refused(sigmas, sentence, load):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        custom(load(), "dpmpp_2m", sigmas)


@pytest.mark.parametrize("sigmas", [[], [0.0], [0.5], [0.0, 0.0]])
def test_a_run_without_a_step_leaves_an_image_finite(sigmas, load):
    image = {"samples": torch.ones(1, 4, 8, 8)}
    assert torch.isfinite(custom(load(), "dpmpp_2m", sigmas, image)).all()


def test_the_stock_grid_of_more_steps_than_timesteps_is_sampled(load):
    sigmas = comfy.samplers.calculate_sigmas(load().get_model_object("model_sampling"), "simple", 1200)
    assert (sigmas[1:] == sigmas[:-1]).any()
    assert torch.isfinite(custom(load(), "dpmpp_2m", sigmas.tolist()[-20:])).all()
