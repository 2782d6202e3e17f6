"""The shared workflow file in the real server against diffusers' LuminaPipeline: same weights, same noise."""

import io
import json
from pathlib import Path

import comfy.sd
import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sana_native.tests.support import tiny
from sana_native.tests.support.released_files import place, save_lumina
from sana_native.tools.workflow import set_inputs, to_api
from sana_native.tools.workflow_files import SDXL_VAE

ROOT = Path(__file__).resolve().parents[3]
PROMPT, NEGATIVE, SEED, STEPS, CFG = "a red cat, on the moon", "blurry", 42, 10, 4.0
MINIMUM_PSNR = 50.0
FOLDER = "tiny-lumina"


def save_models(base: Path) -> None:
    tiny.save_lumina_pipeline(base / "models" / "diffusers" / FOLDER)
    save_lumina(base)  # for its autoencoder, which the stock loader reads


@pytest.fixture(scope="module")
def server(comfy_server):
    return comfy_server(prepare=save_models)


@pytest.mark.parametrize(
    ("width", "height", "batch_size"), [(128, 128, 1), (192, 96, 2)], ids=["square", "wide batch of 2"]
)
@torch.inference_mode()
def test_the_template_equals_the_reference_pipeline(server, width, height, batch_size):
    workflow = json.loads((ROOT / "workflows" / "lumina_next_txt2img.json").read_text(encoding="utf-8"))
    prompt = set_inputs(to_api(workflow, server.object_info()), "SanaNativeModelLoader", model_name=f"{FOLDER}/")
    prompt = set_inputs(prompt, "SanaNativeGemmaLoader", text_encoder_name=f"{FOLDER}/")
    prompt = set_inputs(prompt, "SanaNativeGemmaEncode", prompt=PROMPT, negative_prompt=NEGATIVE)
    size = {"size": "custom", "width": width, "height": height, "batch_size": batch_size}
    prompt = set_inputs(prompt, "SanaNativeEmptyLatent", **size)
    prompt = set_inputs(prompt, "SanaNativeSampler", seed=SEED, steps=STEPS)
    images = server.run(prompt, timeout=300).images()
    ours = np.stack([np.asarray(Image.open(io.BytesIO(server.fetch_image(image)))) for image in images])

    pipeline = diffusers.LuminaPipeline.from_pretrained(server.base_directory / "models" / "diffusers" / FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(batch_size, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(SEED))
    latent = pipeline(
        [PROMPT] * batch_size,
        negative_prompt=[NEGATIVE] * batch_size,
        num_inference_steps=STEPS,
        guidance_scale=CFG,
        width=width,
        height=height,
        latents=noise,
        output_type="latent",
    ).images
    vae = comfy.sd.VAE(sd=safetensors.torch.load_file(place(server.base_directory, SDXL_VAE)))
    expected = np.floor(vae.decode(latent / pipeline.vae.config.scaling_factor).numpy() * 255)

    assert ours.shape == expected.shape and ours.std() > 20, "a flat picture would prove nothing"
    error = ((ours.astype(float) - expected) ** 2).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-12)) >= MINIMUM_PSNR
