"""Which parts a device with little memory holds while text is encoded, the latent denoised and the image decoded."""

from pathlib import Path

import pytest
from sana_native.benchmarks import stage_memory
from sana_native.tests.support import pixart
from sana_native.tools.workflow import set_inputs

NAME = "PixArt-Sigma-XL-2-512-MS"
ENCODER, DENOISER, AUTOENCODER = "T5TextEncoder", "PixArtModel", "AutoencoderKL"
# Bytes of the device. The host leaves some 1 GB to what a network computes, so the first has no room for two models.
BUDGETS = {"short": 900_000_000, "ample": 60_000_000_000}


def prepare(base: Path) -> None:
    pixart.pipeline("Sigma 512", true_vae=True).save_pretrained(base / "models" / "diffusers" / NAME)
    source = Path(stage_memory.__file__)
    (base / "custom_nodes" / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def graph() -> dict:
    nodes = {
        "model": ("SanaNativeModelLoader", {"model_name": f"{NAME}/"}),
        "clip": ("SanaNativeGemmaLoader", {"text_encoder_name": f"{NAME}/"}),
        "vae": ("SanaNativeDCAELoader", {"vae_name": f"{NAME}/"}),
        "text": ("SanaNativeGemmaEncode", {"clip": ["clip", 0], "prompt": "a red cat"}),
        "latent": ("SanaNativeEmptyLatent", {"size": "custom", "width": 64, "height": 64}),
        "sampler": ("SanaNativeSampler", {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1],
                                          "latent_image": ["latent", 0], "seed": 1, "steps": 3, "cfg": 4.5}),
        "image": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["vae", 0]}),
        "save": ("SaveImage", {"images": ["image", 0], "filename_prefix": "pixart"}),
    }  # fmt: skip
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


@pytest.fixture(scope="module")
def runs(comfy_server):
    """Budget -> what was counted in a run and in one with another seed, and the nodes that ran in the second."""
    server = comfy_server(prepare=prepare)

    def two_runs(budget: str):
        stage_memory.ask(server.url, BUDGETS[budget])
        prompt = set_inputs(graph(), "SanaNativeGemmaEncode", prompt=f"a red cat, {budget}")
        assert len(server.run(prompt, timeout=300).images()) == 1
        first = stage_memory.ask(server.url)
        again = server.run(set_inputs(prompt, "SanaNativeSampler", seed=2), timeout=300)
        return first, stage_memory.ask(server.url), set(again.seconds)

    return {budget: two_runs(budget) for budget in BUDGETS}


def test_each_part_has_left_before_the_next_computes_where_memory_is_short(runs):
    first, _, _ = runs["short"]
    assert {stage: set(told["held"]) for stage, told in first.items()} == {
        "encode": {ENCODER},
        "denoise": {DENOISER},
        "decode": {AUTOENCODER},
    }
    assert {stage: told["calls"] for stage, told in first.items()} == {"encode": 2, "denoise": 3, "decode": 1}


def test_all_parts_stay_where_there_is_memory(runs):
    first, _, _ = runs["ample"]
    assert set(first["decode"]["held"]) == {ENCODER, DENOISER, AUTOENCODER}


@pytest.mark.parametrize("budget", BUDGETS)
def test_another_seed_neither_loads_nor_runs_the_text_encoder(budget, runs):
    _, second, ran = runs[budget]
    assert set(second) == {"denoise", "decode"} and second["denoise"]["calls"] == 3
    assert not ran & {"clip", "text"} and "sampler" in ran
    if budget == "short":
        assert all(ENCODER not in told["held"] for told in second.values())
