"""Images of the demo's model with narrow weights beside those with exact ones."""

import comfy.model_management
import pytest
import torch
from sana_native.models.files.saving import quantize_file
from sana_native.models.registry import FAMILIES
from sana_native.tests.support.quantized import load_sana
from sana_native.tools.host import ROOT

# A prompt that leaves a choice open may become another composition by the smallest change, so the median counts.
PROMPTS = [
    "a big strawberry top left and a small rocket bottom right on a yellow background",
    "a big cat face on a blue background",
    "a medium pizza at the bottom left, pink background",
    "a white background and a big snowman in the center",
    "with a purple background, a drawing of a huge sunflower in the center",
    "a red background with a small balloon at the top right",
]
STEPS = 10


@pytest.fixture(scope="module")
def painter(demo):
    return demo.generate.Painter(ROOT / "demo" / "checkpoint")


@pytest.fixture(scope="module")
def exact(painter):
    return painter.paint(PROMPTS, list(range(len(PROMPTS))), steps=STEPS)


@pytest.mark.parametrize(("preset", "decibels"), [("int8", 44.0), ("fp8", 36.0)])
def test_images_with_narrow_weights_are_those_with_exact_ones(
    demo, painter, exact, tmp_path, monkeypatch, preset, decibels
):
    path = str(tmp_path / "sana.safetensors")
    quantize_file(FAMILIES, str(ROOT / "demo" / "checkpoint"), path, preset)
    patcher = load_sana(path)
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    monkeypatch.setattr(painter, "patcher", patcher)
    monkeypatch.setattr(painter, "network", patcher.model.diffusion_model)
    found = demo.train.data.psnr(painter.paint(PROMPTS, list(range(len(PROMPTS))), steps=STEPS), exact)
    assert decibels < float(torch.median(found)) < 70, found
