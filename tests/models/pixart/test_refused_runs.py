"""Runs that PixArt cannot do are refused in one sentence, and what would be lost or spoiled silently is warned of."""

from functools import cache

import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete, ModelSamplingSD3
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingFlux
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
