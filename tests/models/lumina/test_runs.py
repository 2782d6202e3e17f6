"""Whole runs of Lumina-Next in the host against diffusers' LuminaPipeline, and the host's own nodes on the model."""

import comfy.samplers
import diffusers
import numpy as np
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingDiscrete, ModelSamplingSD3, RescaleCFG
from sana_native.models.lumina.config import LuminaOptions
from sana_native.models.lumina.guidance import with_options
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.workbench import OURS, call

PROMPT, NEGATIVE, SEED, STEPS, CFG = "a red cat, on the moon", "blurry", 42, 8, 4.0
MINIMUM_PSNR = 50.0


@pytest.fixture(scope="module")
def pipeline():
    loaded = diffusers.LuminaPipeline.from_pretrained(bench.lumina_folder())
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def model():
    return bench.lumina()


@pytest.fixture(scope="module")
def conds():
    return call(OURS["GemmaEncode"], bench.lumina_clip(), PROMPT, NEGATIVE)


def empty(width: int = 128, height: int = 128, batch_size: int = 1) -> dict:
    return {"samples": torch.zeros(batch_size, 4, height // 8, width // 8)}


def noise(width: int, height: int, batch_size: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(SEED))


def reference(pipeline, width: int, height: int, batch_size: int = 1, **options) -> torch.Tensor:
    """Latent of diffusers' pipeline, unscaled as the host's latents are."""
    out = pipeline(
        [PROMPT] * batch_size,
        negative_prompt=[NEGATIVE] * batch_size,
        latents=noise(width, height, batch_size),
        width=width,
        height=height,
        guidance_scale=CFG,
        num_inference_steps=STEPS,
        output_type="latent",
        **options,
    ).images
    return out / pipeline.vae.config.scaling_factor


def sample(model, conds, latent, *, steps=STEPS, cfg=CFG, sampler="euler", scheduler="normal", denoise=1.0):
    return call("KSampler", model, SEED, steps, cfg, sampler, scheduler, *conds, latent, denoise)[0]["samples"]


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


def picture(pipeline, latent: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        image = pipeline.vae.decode(latent).sample
    return np.floor(pipeline.image_processor.postprocess(image, output_type="np") * 255)


def psnr(ours: np.ndarray, expected: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(((ours - expected) ** 2).mean(), 1e-12))


@pytest.mark.parametrize("width, height, batch_size", [(128, 128, 1), (192, 96, 2)], ids=["square", "wide batch of 2"])
def test_the_packs_sampler_equals_the_pipeline_to_the_picture(pipeline, model, conds, width, height, batch_size):
    expected = reference(pipeline, width, height, batch_size)
    latent = empty(width, height, batch_size)
    ours = call(OURS["Sampler"], model, *conds, latent, SEED, STEPS, CFG, 1.0)[0]["samples"]
    assert relative(ours, expected) <= 3e-6
    assert picture(pipeline, expected).std() > 20, "a flat picture would prove nothing"
    assert psnr(picture(pipeline, ours), picture(pipeline, expected)) >= MINIMUM_PSNR


def test_stock_nodes_equal_the_pipeline(pipeline, model):
    encode = [call("CLIPTextEncode", bench.lumina_clip(), text)[0] for text in (PROMPT, NEGATIVE)]
    assert relative(sample(model, encode, empty()), reference(pipeline, 128, 128)) <= 3e-6


def test_the_watershed_of_the_options_node_equals_the_pipelines(pipeline, model, conds):
    (changed,) = call(OURS["LuminaOptions"], model, "custom", 0.3, "always", True, "3")
    ours = sample(changed, conds, empty(192, 96))
    assert relative(ours, reference(pipeline, 192, 96, scaling_watershed=0.3)) <= 3e-6
    assert relative(sample(model, conds, empty(192, 96)), ours) > 1e-3


def test_the_empty_latent_of_the_pack_becomes_one_of_this_family(model, conds):
    latent = call(OURS["EmptyLatent"], "custom", "1:1", 128, 96, 1)[0]
    ours = call(OURS["Sampler"], model, *conds, latent, SEED, 2, CFG, 1.0)[0]["samples"]
    assert ours.shape == (1, 4, 12, 16)
    assert torch.equal(ours, call(OURS["Sampler"], model, *conds, empty(128, 96), SEED, 2, CFG, 1.0)[0]["samples"])


def denoised(model, conds, cfg: float) -> torch.Tensor:
    """One prediction from pure noise, by a run of a single step."""
    return sample(model, conds, empty(), steps=1, cfg=cfg)


def test_the_fourth_channel_is_not_guided(model, conds):
    plain, guided = denoised(model, conds, 1.0), denoised(model, conds, 4.0)
    assert (guided[:, 3] - plain[:, 3]).abs().max() <= 1e-5
    assert all((guided[:, i] - plain[:, i]).abs().max() > 1e-2 for i in range(3))


def test_all_channels_are_guided_when_asked_for(model, conds):
    guided = denoised(with_options(model, LuminaOptions(guided_channels=4)), conds, 4.0)
    assert (guided[:, 3] - denoised(model, conds, 4.0)[:, 3]).abs().max() > 1e-2


@pytest.mark.parametrize("node", [ModelSamplingSD3, ModelSamplingAuraFlow], ids=lambda node: node.__name__)
def test_either_shift_node_sets_the_shift_alone(model, conds, node):
    (shifted,) = call(node, model, 4.0)
    expected = [1.0, 0.923077, 0.8, 0.571429, 0.0]
    sigmas = comfy.samplers.calculate_sigmas(shifted.get_model_object("model_sampling"), "sana_lumina", 4)
    assert sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    out = sample(shifted, conds, empty(), steps=3, sampler="sana_midpoint", scheduler="sana_lumina")
    (other,) = call(ModelSamplingAuraFlow, model, 4.0)
    again = sample(other, conds, empty(), steps=3, sampler="sana_midpoint", scheduler="sana_lumina")
    assert relative(out, again) <= 2e-6


def test_the_packs_sampler_uses_diffusers_grid_with_the_models_shift(model, conds):
    (shifted,) = call(ModelSamplingAuraFlow, model, 4.0)
    ours = call(OURS["Sampler"], shifted, *conds, empty(), SEED, 4, CFG, 1.0)[0]["samples"]
    assert relative(ours, sample(shifted, conds, empty(), steps=4, scheduler="sana_flow_euler")) <= 1e-6


def test_another_kind_of_sampling_is_refused(model, conds):
    (patched,) = call(ModelSamplingDiscrete, model, "eps", False)
    with pytest.raises(ValueError, match="This Lumina-Next model was set to sample as ModelSamplingDiscrete.*: bypass"):
        sample(patched, conds, empty(), steps=1)


def test_image_to_image_and_inpainting_leave_what_they_should(model, conds):
    start = {"samples": noise(128, 96) * 5}
    changed = sample(model, conds, start, steps=3, denoise=0.5)
    assert torch.isfinite(changed).all() and not torch.equal(changed, start["samples"])
    mask = torch.zeros(1, 96, 128)
    mask[:, :, 64:] = 1
    inpainted = sample(model, conds, start | {"noise_mask": mask}, steps=3, denoise=0.7)
    assert (inpainted[..., :8] - start["samples"][..., :8]).abs().max() <= 1e-5
    assert (inpainted[..., 8:] - start["samples"][..., 8:]).abs().max() > 1e-2


def test_a_prompt_and_a_negative_of_other_length_are_one_pass_a_step(model, conds, monkeypatch):
    seen = bench.count_calls(monkeypatch, model)
    sample(model, conds, empty(), steps=3)
    assert conds[0][0][0].shape[1] != conds[1][0][0].shape[1] and seen.batches == [2, 2, 2]


def test_zeroed_prompts_give_a_finite_image(model, conds):
    (zeroed,) = call("ConditioningZeroOut", conds[1])
    assert torch.isfinite(sample(model, (conds[0], zeroed), empty(), steps=2)).all()


def test_concatenated_prompts_work_without_a_mask(model, conds):
    (both,) = call("ConditioningConcat", *conds)
    assert torch.isfinite(sample(model, (both, conds[1]), empty(), steps=1)).all()


def test_a_node_that_guides_otherwise_gets_a_warning(model, conds, caplog):
    (patched,) = call(RescaleCFG, model, 0.7)
    from sana_native.nodes.warnings import warn_about_runs

    warned = patched.clone()
    warn_about_runs(warned)
    sample(warned, conds, empty(), steps=1)
    assert "Bypass RescaleCFG: it guides all channels, where Lumina-Next was tuned for three of four." in caplog.text


def test_the_loader_node_loads_it_and_says_what_it_is(monkeypatch, caplog, conds):
    caplog.set_level("INFO")
    monkeypatch.setattr("sana_native.nodes.loaders.resolve", lambda *_: str(bench.lumina_folder()))
    (loaded,) = call(OURS["ModelLoader"], "lumina/", "auto", 4.0)
    assert loaded.get_model_object("model_sampling").shift == 4.0
    message = next(record.getMessage() for record in caplog.records if "Lumina-Next" in record.getMessage())
    assert "is Lumina-Next, 288 wide, 2 deep (" in message and "diffusers layout), known by the keys" in message
    caplog.clear()
    sample(loaded, conds, empty(), steps=1)
    assert "Bypass" not in caplog.text


# What is refused


def test_the_states_of_gemma_2_are_refused(model):
    with pytest.raises(ValueError, match="This conditioning is 64 wide where Lumina-Next needs Gemma-1's states of 32"):
        sample(model, bench.encoded(), empty(), steps=1)


def test_sana_refuses_the_states_of_gemma_1(conds):
    with pytest.raises(ValueError, match="This conditioning is 32 wide where SANA needs Gemma's states of 64"):
        bench.draw(bench.model("sana"), conds)


def test_the_latent_of_a_dc_ae_is_refused(model, conds):
    cure = r"has 32 channels where Lumina-Next needs 4: encode .* the VAE of SDXL \(Load VAE\), .* SANA Empty Latent\."
    with pytest.raises(ValueError, match=cure):
        sample(model, conds, bench.clean_latent(), steps=1, denoise=0.5)


def test_the_options_node_refuses_another_family():
    with pytest.raises(
        ValueError, match="SANA Lumina Options got a SanaModel model: connect a Lumina-Next of SANA Mod"
    ):
        call(OURS["LuminaOptions"], bench.model("sana"))


@pytest.mark.parametrize("preset, expected", [
    ("diffusers", LuminaOptions()),
    ("authors", LuminaOptions(0.3, "above 1024 px")),
    ("custom", LuminaOptions(0.5, "off", False, 4)),
])  # fmt: skip
def test_presets_of_the_options_node(model, preset, expected):
    before = dict(model.model_options["transformer_options"])
    (changed,) = call(OURS["LuminaOptions"], model, preset, 0.5, "off", False, "all")
    assert changed.model_options["transformer_options"]["lumina"] == expected
    assert model.model_options["transformer_options"] == before
