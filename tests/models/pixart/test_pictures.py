"""Whole runs through the pack's nodes against diffusers' pipelines: same weights, same noise."""

import logging
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from sana_native.models.pixart.model import MIDDLE_BLOCK
from sana_native.models.registry import load_model
from sana_native.nodes.warnings import warn_about_runs
from sana_native.samplers.schedules import get_sigmas_pixart
from sana_native.tests.support import pixart
from sana_native.tests.support import workbench as bench

PROMPT, NEGATIVE = "A red cat, on the Moon", "blurry, dark"
SEED = 42
RELATIVE = 3e-6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(kind, distilled) -> diffusers' pipeline, and MODEL, CLIP and path of its saved folder."""

    @cache
    def folder(kind: str, distilled: str = ""):
        path = tmp_path_factory.mktemp("models") / f"{pixart.KINDS[kind][-1]}{'-' + distilled if distilled else ''}"
        pipeline = pixart.pipeline(kind, distilled, true_vae=kind.endswith(" 512") and not distilled)
        pipeline.save_pretrained(path)
        return pipeline, load_model("transformer", str(path)), load_model("text_encoder", str(path)), str(path)

    return folder


def noise(batch_size: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch_size, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(SEED))


def run(model, clip, height: int, width: int, steps: int, cfg: float, batch_size: int = 1, **options):
    """The latent of SANA Empty Latent, SANA Gemma Encode and SANA Sampler."""
    conds = bench.call(bench.OURS["GemmaEncode"], clip, PROMPT, options.pop("negative", NEGATIVE), lower_case=True)
    latent = bench.empty(width, height, batch_size)
    return bench.call(bench.OURS["Sampler"], model, *conds, latent, SEED, steps, cfg, **options)[0]["samples"]


def of_reference(pipeline, height: int, width: int, steps: int, cfg: float, batch_size: int = 1, **options):
    options = {"negative_prompt": [NEGATIVE] * batch_size, "output_type": "latent"} | options
    return pipeline(
        [PROMPT] * batch_size,
        num_inference_steps=steps,
        guidance_scale=cfg,
        height=height,
        width=width,
        latents=noise(batch_size, height, width),
        use_resolution_binning=False,
        **options,
    ).images


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("kind", "steps", "batch_size", "negative"),
    [("Sigma 512", 14, 2, NEGATIVE), ("Sigma 512", 20, 1, ""), ("alpha 1024-MS", 20, 1, NEGATIVE)],
)
def test_a_run_with_cfg_equals_the_released_pipeline(kind, steps, batch_size, negative, folders):
    pipeline, model, clip, _ = folders(kind)
    ours = run(model, clip, 320, 192, steps, 4.5, batch_size, negative=negative)
    expected = of_reference(pipeline, 320, 192, steps, 4.5, batch_size, negative_prompt=[negative] * batch_size)
    scale = pipeline.vae.config.scaling_factor
    assert relative(ours * scale, expected) < RELATIVE


@pytest.mark.parametrize("kind", ["Sigma 512", "alpha 512"])
def test_the_picture_is_the_reference_s_to_50_db(kind, folders):
    pipeline, model, clip, path = folders(kind)
    alpha = isinstance(pipeline, diffusers.PixArtAlphaPipeline)
    assert alpha == kind.startswith("alpha") and pipeline.vae.config.scaling_factor == (0.18215 if alpha else 0.13025)
    vae = load_model("vae", path)
    latent = run(model, clip, 256, 192, 8, 4.5, 2)
    ours = bench.call("VAEDecode", vae, {"samples": latent})[0].numpy()
    expected = of_reference(pipeline, 256, 192, 8, 4.5, 2, output_type="np")
    assert ours.std() > 0.02, "a flat picture would prove nothing"
    assert 10 * np.log10(1 / ((ours - expected) ** 2).mean()) >= 50


def test_perturbed_attention_equals_the_released_pipeline(folders):
    """At one scale: the pipeline's own adaptive one does not run, as it asks whether three timesteps are below zero."""
    scale = 3.0
    pipeline, model, clip, _ = folders("Sigma 512")
    perturbed = diffusers.PixArtSigmaPAGPipeline(**pipeline.components, pag_applied_layers=["blocks.1"])
    perturbed.set_progress_bar_config(disable=True)
    expected = of_reference(perturbed, 128, 96, 6, 4.5, pag_scale=scale)
    factor = pipeline.vae.config.scaling_factor
    for blocks in ("auto", "1"):  # half way in a network of two
        (guided,) = bench.call(bench.OURS["PAG"], model, scale, blocks)
        ours = run(guided, clip, 128, 96, 6, 4.5) * factor
        assert relative(ours, expected) < 1e-5
    assert relative(run(model, clip, 128, 96, 6, 4.5) * factor, expected) > 1e-3


def test_auto_perturbs_block_14_of_the_released_depth():
    assert [min(MIDDLE_BLOCK, depth // 2) for depth in (28, 42)] == [14, 14]


def test_ksampler_with_stock_encode_and_latent_nodes_equals_sana_sampler(folders):
    _, model, clip, _ = folders("Sigma 512")
    ours = run(model, clip, 320, 192, 6, 4.5)
    conds = [bench.call("CLIPTextEncode", clip, text.lower())[0] for text in (PROMPT, NEGATIVE)]
    latent = bench.call("EmptyLatentImage", 192, 320)[0]
    stock = bench.call("KSampler", model, SEED, 6, 4.5, "dpmpp_2m", "sana_pixart", *conds, latent, 1.0)[0]["samples"]
    assert torch.equal(ours, stock)


def test_prompts_of_unequal_length_take_one_call_a_step(folders, monkeypatch):
    _, model, clip, _ = folders("Sigma 512")
    seen = bench.count_calls(monkeypatch, model)
    run(model, clip, 128, 128, 3, 4.5)
    assert seen.batches == [2, 2, 2]


def test_dmd_is_one_step_of_unit_noise_at_timestep_400(folders):
    pipeline, model, clip, _ = folders("alpha 512", "DMD")
    assert model.model.config.distilled == "DMD"
    ours = run(model, clip, 256, 256, 20, 1.0)
    expected = of_reference(pipeline, 256, 256, 1, 1.0, timesteps=[400])
    assert relative(ours * pipeline.vae.config.scaling_factor, expected) < 1e-5


def test_dmd_refuses_an_image_and_less_than_pure_noise(folders):
    _, model, clip, _ = folders("alpha 512", "DMD")
    conds = bench.call(bench.OURS["GemmaEncode"], clip, PROMPT, "")
    image = {"samples": noise(1, 128, 128)}
    with pytest.raises(ValueError, match="begins at pure noise, 157.4, not at .*: set denoise to 1"):
        bench.call(bench.OURS["Sampler"], model, *conds, bench.empty(), SEED, 1, 1.0, 0.5)
    with pytest.raises(ValueError, match="makes new images and ignores the one it was given: use SANA Empty Latent"):
        bench.call(bench.OURS["Sampler"], model, *conds, image, SEED, 1, 1.0)


def test_lcm_visits_the_distilled_timesteps_and_its_first_prediction_is_the_reference_s(folders, monkeypatch):
    pipeline, model, clip, _ = folders("alpha 1024-MS", "LCM")
    assert model.model.config.distilled == "LCM"
    ours = run(model, clip, 256, 256, 1, 1.0)
    expected = of_reference(pipeline, 256, 256, 1, 1.0)
    assert relative(ours * pipeline.vae.config.scaling_factor, expected) < 1e-5
    seen = []
    network = model.model.diffusion_model
    forward = network._forward

    def recorded(x, timesteps, *args, **kwargs):
        seen.append(int(timesteps[0]))
        return forward(x, timesteps, *args, **kwargs)

    monkeypatch.setattr(network, "_forward", recorded)
    run(model, clip, 128, 128, 4, 1.0)
    assert seen == [999, 759, 499, 259]


def test_an_lcm_model_set_by_the_stock_node_samples_alike(folders):
    _, model, clip, _ = folders("alpha 1024-MS", "LCM")
    stock = ModelSamplingDiscrete().patch(model, "lcm", False)[0]
    assert torch.equal(run(model, clip, 128, 128, 4, 1.0), run(stock, clip, 128, 128, 4, 1.0))


def test_settings_that_spoil_a_run_get_a_warning(folders, caplog):
    caplog.set_level(logging.WARNING)
    _, model, clip, _ = folders("alpha 1024-MS", "LCM")
    model = model.clone()
    warn_about_runs(model)
    run(model, clip, 128, 128, 10, 4.5)
    assert "Set cfg to 1: PixArt's LCM was distilled without guidance, so 4.5 spoils the image." in caplog.text
    assert "Set steps to 4: PixArt's LCM is made for 1 to 8, not 10." in caplog.text
    assert "Choose size 1024 in SANA Empty Latent: the checkpoint was not trained on 128 x 128 px." in caplog.text


def test_the_alpha_model_warns_of_a_prompt_that_it_was_not_trained_on(folders, caplog):
    _, model, clip, _ = folders("alpha 1024-MS", "LCM")
    conds = [bench.call("CLIPTextEncode", clip, text)[0] for text in ("cat " * 150, "")]
    bench.call(bench.OURS["Sampler"], model, *conds, bench.empty(), SEED, 1, 1.0)
    assert "the prompt has 151 tokens, but PixArt-alpha was trained on 120 at most: shorten it" in caplog.text


def test_the_scheduler_refuses_a_model_of_other_noise_levels():
    with pytest.raises(ValueError, match="begins at PixArt's highest noise level 157.4, but .* is 1: choose"):
        bench.ksampler(bench.model("sana"), bench.encoded(), sampler="euler", scheduler="sana_pixart")


def test_an_image_is_changed_in_part_and_a_mask_keeps_the_rest(folders):
    _, model, clip, _ = folders("Sigma 512")
    image = noise(1, 128, 128) / 0.13025
    conds = bench.call(bench.OURS["GemmaEncode"], clip, PROMPT, NEGATIVE)
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    latent = bench.call("SetLatentNoiseMask", {"samples": image}, mask)[0]
    out = bench.call("KSampler", model, SEED, 4, 4.5, "dpmpp_2m", "sana_pixart", *conds, latent, 0.6)[0]["samples"]
    assert torch.allclose(out[:, :, 10:], image[:, :, 10:], atol=1e-4)
    assert float((out - image)[:, :, :6].abs().mean()) > 0.1


def test_the_sigmas_of_half_a_run_are_the_end_of_the_whole():
    assert torch.equal(get_sigmas_pixart(5, 0.5), get_sigmas_pixart(10)[-6:])
