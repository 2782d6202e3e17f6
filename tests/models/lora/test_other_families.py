"""Stock LoRA and merge nodes on PixArt and Lumina-Next: what has no effect or mixes models is refused."""

import comfy.sd
import pytest
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from sana_native.models.pixart.loader import load_pixart
from sana_native.tests.support import pixart
from sana_native.tests.support import workbench as bench

FAMILIES = ("PixArt-Sigma", "PixArt-alpha", "Lumina-Next")


def load(kind: str, folder):
    if kind == "Lumina-Next":
        return bench.fresh_lumina()
    release = "alpha 512" if kind == "PixArt-alpha" else "Sigma 512"
    return load_pixart(pixart.save(pixart.reference(release), release, "authors", folder), {"family": kind})


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict:
    return {kind: load(kind, tmp_path_factory.mktemp("models")) for kind in FAMILIES}


def lora(name: str, width: int, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(rank, width), f"{name}.lora_B.weight": torch.ones(width, rank)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("PixArt-Sigma", "PixArt-alpha"),
        ("PixArt-alpha", "PixArt-Sigma"),
        ("PixArt-Sigma", "Lumina-Next"),
        ("Lumina-Next", "PixArt-alpha"),
    ],
)
def test_models_of_two_families_are_not_merged(models, one, other):
    told = f"These models cannot be merged: the other one is {other}, this one is {one}: merge models of the same kind"
    with pytest.raises(ValueError, match=told):
        ModelMergeSimple().merge(models[one], models[other], 0.5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_models_of_one_family_merge(models, kind):
    (merged,) = ModelMergeSimple().merge(models[kind], models[kind], 0.5)
    names = models[kind].model.diffusion_model.state_dict()
    assert merged.patches.keys() == {f"diffusion_model.{name}" for name in names}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_stock_lora_of_another_model_is_refused(models, kind):
    cure = "trained on Lumina-Next" if kind == "Lumina-Next" else "load it with SANA LoRA Loader"
    with pytest.raises(ValueError, match=f"No key of this LoRA names a layer of this {kind} model .*: .*{cure}"):
        comfy.sd.load_lora_for_models(models[kind], None, lora("transformer.single_transformer_blocks.0.a", 8), 1.0, 0)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("PixArt-Sigma", "transformer.transformer_blocks.0.attn1.to_k"),
        ("Lumina-Next", "diffusion_model.layers.0.attention.wq"),
    ],
)
def test_a_stock_lora_of_another_width_is_refused(models, kind, layer):
    with pytest.raises(ValueError, match=f"This LoRA is for another size of {kind}: it changes .* by 64 x 64 values"):
        comfy.sd.load_lora_for_models(models[kind], None, lora(layer, 64), 1.0, 0)
