"""The shared workflow files in the real server against diffusers' pipelines: same weights, same noise."""

import io
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from sana_native.models.gemma.text_encoder import INSTRUCTION
from sana_native.tests.support import tiny
from sana_native.tools.workflow import set_inputs, to_api

ROOT = Path(__file__).resolve().parents[2]
PROMPT, NEGATIVE = "a red cat, on the moon", "blurry, dark"
SEED = 42
MINIMUM_PSNR = 50.0


def save_models(base: Path) -> None:
    for name, sprint in (("tiny-sana", False), ("tiny-sprint", True)):
        tiny.save_pipeline(base / "models" / "diffusers" / name, sprint)


@pytest.fixture(scope="module")
def server(comfy_server):
    return comfy_server(prepare=save_models)


def load_graph(server, workflow: str, model: str) -> dict:
    prompt = to_api(
        json.loads((ROOT / "workflows" / f"{workflow}.json").read_text(encoding="utf-8")), server.object_info()
    )
    prompt = set_inputs(prompt, "SanaNativeModelLoader", model_name=model)
    prompt = set_inputs(prompt, "SanaNativeGemmaLoader", text_encoder_name=model)
    return set_inputs(prompt, "SanaNativeDCAELoader", vae_name=model)


def pictures(server, prompt: dict) -> np.ndarray:
    images = server.run(prompt, timeout=300).images()
    return np.stack([np.asarray(Image.open(io.BytesIO(server.fetch_image(image)))) for image in images])


def psnr(ours: np.ndarray, reference: np.ndarray) -> float:
    """Of 8-bit pictures; the reference is rounded as the host's SaveImage does, downwards."""
    difference = ours.astype(float) - np.floor(reference * 255)
    return 10 * np.log10(255**2 / max((difference**2).mean(), 1e-12))


def start_noise(batch_size: int, width: int, height: int) -> torch.Tensor:
    return torch.randn(batch_size, 32, height // 32, width // 32, generator=torch.Generator().manual_seed(SEED))


def reference_pipeline(server, name: str) -> diffusers.DiffusionPipeline:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(server.base_directory / "models" / "diffusers" / name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("width", "height", "batch_size"), [(256, 256, 1), (320, 192, 2)], ids=["square", "wide batch of 2"]
)
def test_sana_with_cfg_and_negative_equals_the_reference_pipeline(server, width, height, batch_size):
    prompt = load_graph(server, "sana_txt2img", "tiny-sana/")
    prompt = set_inputs(prompt, "SanaNativeGemmaEncode", prompt=PROMPT, negative_prompt=NEGATIVE)
    prompt = set_inputs(
        prompt, "SanaNativeEmptyLatent", size="custom", width=width, height=height, batch_size=batch_size
    )
    prompt = set_inputs(prompt, "SanaNativeSampler", seed=SEED, steps=20, cfg=4.5)

    expected = reference_pipeline(server, "tiny-sana")(
        [PROMPT] * batch_size,
        negative_prompt=[NEGATIVE] * batch_size,
        num_inference_steps=20,
        guidance_scale=4.5,
        height=height,
        width=width,
        latents=start_noise(batch_size, width, height),
        use_resolution_binning=False,
        complex_human_instruction=INSTRUCTION.split("\n"),
        output_type="np",
    ).images

    ours = pictures(server, prompt)
    assert ours.std() > 20, "a flat picture would prove nothing"
    assert psnr(ours, expected) >= MINIMUM_PSNR


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sprint_equals_the_reference_pipeline(server, steps, monkeypatch):
    width, height = 320, 192
    prompt = load_graph(server, "sana_sprint_txt2img", "tiny-sprint/")
    prompt = set_inputs(prompt, "SanaNativeGemmaEncode", prompt=PROMPT)
    prompt = set_inputs(prompt, "SanaNativeEmptyLatent", size="custom", width=width, height=height)
    prompt = set_inputs(prompt, "SanaNativeSampler", seed=SEED, steps=steps)

    ours = pictures(server, prompt)

    pipeline = reference_pipeline(server, "tiny-sprint")
    noise = start_noise(1, width, height)
    feed_step_noise(monkeypatch, noise)
    expected = pipeline(
        PROMPT,
        num_inference_steps=steps,
        intermediate_timesteps=1.3 if steps == 2 else None,
        guidance_scale=4.5,
        height=height,
        width=width,
        latents=noise,
        use_resolution_binning=False,
        complex_human_instruction=INSTRUCTION.split("\n"),
        output_type="np",
    ).images
    assert ours.std() > 20, "a flat picture would prove nothing"
    assert psnr(ours, expected) >= MINIMUM_PSNR


def feed_step_noise(monkeypatch, like: torch.Tensor) -> None:
    """Gives the reference scheduler our noise for its steps, in the order of its draws."""
    from diffusers.schedulers import scheduling_scm
    from sana_native.samplers.noise import step_noise_sampler

    sampler = step_noise_sampler(like, SEED)
    monkeypatch.setattr(scheduling_scm, "randn_tensor", lambda *_args, **_kwargs: sampler(None, None))


def test_stock_nodes_after_our_loaders_draw_the_same_picture(server):
    stock = load_graph(server, "sana_txt2img_ksampler", "tiny-sana/")
    stock = set_inputs(stock, "KSampler", seed=SEED, steps=6)
    stock = set_inputs(stock, "EmptyLatentImage", width=256, height=192)
    block = load_graph(server, "sana_txt2img", "tiny-sana/")
    block = set_inputs(block, "SanaNativeSampler", seed=SEED, steps=6)
    block = set_inputs(block, "SanaNativeEmptyLatent", size="custom", width=256, height=192)

    assert np.array_equal(pictures(server, stock), pictures(server, block))


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(server):
    prompt = load_graph(server, "sana_sprint_txt2img", "tiny-sprint/")
    prompt = set_inputs(prompt, "SanaNativeEmptyLatent", size="custom", width=128, height=128)
    # A changed filename makes the host save again what it has cached up to there.
    first, other, again = (
        pictures(
            server,
            set_inputs(set_inputs(prompt, "SanaNativeSampler", seed=seed), "SaveImage", filename_prefix=f"seed-{i}"),
        )
        for i, seed in enumerate((1, 2, 1))
    )

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
