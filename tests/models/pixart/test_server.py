"""A PixArt through the real server, from one diffusers folder in all three loaders, against diffusers' pipeline."""

import io

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from sana_native.tests.support import pixart

NAME, SEED, WIDTH, HEIGHT = "PixArt-Sigma-XL-2-512-MS", 42, 192, 128
PROMPT, NEGATIVE = "A red cat, on the Moon", "blurry, dark"


def save_models(base) -> None:
    pixart.pipeline("Sigma 512", true_vae=True).save_pretrained(base / "models" / "diffusers" / NAME)


@pytest.fixture(scope="module")
def server(comfy_server):
    return comfy_server(prepare=save_models)


def graph() -> dict:
    prompts = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "lower_case": True}
    nodes = {
        "1": ("SanaNativeModelLoader", {"model_name": f"{NAME}/", "family": "auto"}),
        "2": ("SanaNativeGemmaLoader", {"text_encoder_name": f"{NAME}/"}),
        "3": ("SanaNativeDCAELoader", {"vae_name": f"{NAME}/"}),
        "4": ("SanaNativeGemmaEncode", {"clip": ["2", 0], **prompts}),
        "5": ("SanaNativeEmptyLatent", {"size": "custom", "width": WIDTH, "height": HEIGHT, "batch_size": 2}),
        "6": ("SanaNativeSampler", {"model": ["1", 0], "positive": ["4", 0], "negative": ["4", 1],
                                    "latent_image": ["5", 0], "seed": SEED, "steps": 6, "cfg": 4.5}),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["3", 0]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "pixart"}),
    }  # fmt: skip
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def test_a_batch_that_is_not_square_equals_the_reference_pipeline(server):
    images = server.run(graph(), timeout=300).images()
    ours = np.stack([np.asarray(Image.open(io.BytesIO(server.fetch_image(image)))) for image in images])
    pipeline = diffusers.PixArtSigmaPipeline.from_pretrained(server.base_directory / "models" / "diffusers" / NAME)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(SEED))
    expected = pipeline(
        [PROMPT] * 2,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=6,
        guidance_scale=4.5,
        height=HEIGHT,
        width=WIDTH,
        latents=noise,
        use_resolution_binning=False,
        output_type="np",
    ).images
    assert ours.std() > 5, "a flat picture would prove nothing"
    error = ((ours.astype(float) - np.floor(expected * 255)) ** 2).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-12)) >= 50
