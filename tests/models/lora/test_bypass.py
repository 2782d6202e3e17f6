"""A LoRA in the host's bypass mode: computed beside the layers as its weights are, or refused in one sentence."""

import logging

import comfy.model_management
import comfy.sd
import pytest
import torch
from sana_native.models.files.saving import quantize_file
from sana_native.models.registry import FAMILIES, load_model
from sana_native.tests.support import lora_layouts as layouts
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.lora_layouts import LAYOUTS

TO_Q, TO_OUT = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_out.0"
DEPTHWISE, TALL, WIDE = (f"transformer_blocks.0.ff.conv_{name}" for name in ("depth", "inverted", "point"))
CURE = "load it with SANA LoRA Loader"


@pytest.fixture
def model():
    yield bench.model("sana")
    comfy.model_management.unload_all_models()


def bypassed(model, tensors: dict[str, torch.Tensor]):
    """As the host's node Load LoRA (Bypass) calls it."""
    return comfy.sd.load_bypass_lora_for_models(model, None, tensors, 1.0, 1.0)[0]


def shapes(model) -> dict[str, torch.Tensor]:
    """Weights in the shape that files and trainers know, by layer."""
    weights = model.model.diffusion_model.state_dict()
    found = {key.removesuffix(".weight"): weight for key, weight in weights.items() if key.endswith(".weight")}
    return found | {layer: found[layer][:, :, None, None] for layer in (TALL, WIDE)}


def lora(model, *layers: str) -> dict[str, torch.Tensor]:
    return LAYOUTS["diffusers"](layouts.make_lora(shapes(model), list(layers)))


@pytest.mark.parametrize("layer", [TO_Q, TALL, WIDE, "patch_embed.proj"])
def test_it_generates_what_the_changed_weights_generate(model, layer):
    """Factors of the 1x1 convolutions of a Mix-FFN have four dimensions, the layers two."""
    tensors = lora(model, layer)
    conditioning = bench.encoded()
    beside = bench.draw(bypassed(model, tensors), conditioning)
    within = bench.draw(comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 1.0)[0], conditioning)
    assert (beside - within).norm() / within.norm() < 1e-5
    assert (beside - bench.draw(model, conditioning)).norm() / within.norm() > 1e-4


def test_it_acts_on_the_1x1_convolutions_of_quantized_weights(tmp_path):
    """The host's linear layer of narrow weights is not torch's class."""
    path = str(tmp_path / "int8.safetensors")
    quantize_file(FAMILIES, str(bench.folder() / "sana"), path, "int8", "transformer")
    model = load_model("transformer", path)
    tensors = lora(model, WIDE)
    layer = model.model.diffusion_model.get_submodule(WIDE)
    clone = bypassed(model, tensors)
    x = torch.randn(1, layer.in_features, generator=torch.Generator().manual_seed(3))
    clone.inject_model()
    changed = layer(x)
    clone.eject_model()
    assert (changed - layer(x)).norm() > 0


@pytest.mark.parametrize("width", [96, 1152])
def test_a_lora_of_another_width_is_refused(model, width):
    other = {layer: torch.empty(width, width) for layer in (TO_Q, TO_OUT)}
    tensors = LAYOUTS["diffusers"](layouts.make_lora(other, [TO_Q, TO_OUT]))
    told = rf"for another size of SANA: it changes .*attn1\.to_\S+ by {width} x {width} values where this model has 64"
    with pytest.raises(ValueError, match=told):
        bypassed(model, tensors)


def test_one_layer_of_another_width_is_left_over(model, caplog):
    wrong = LAYOUTS["diffusers"](layouts.make_lora({TO_Q: torch.empty(96, 96)}, [TO_Q]))
    with caplog.at_level(logging.WARNING):
        mixed = bypassed(model, lora(model, TO_OUT) | wrong)
    assert f"1 of 2 layers of a LoRA are left over: it changes {TO_Q} by 96 x 96 values" in caplog.text
    assert torch.equal(
        bench.draw(mixed, bench.encoded()), bench.draw(bypassed(model, lora(model, TO_OUT)), bench.encoded())
    )


def test_a_depthwise_convolution_is_refused_with_the_cure(model):
    with pytest.raises(ValueError, match=rf"Bypass mode cannot compute this LoRA on {DEPTHWISE}: {CURE}"):
        bypassed(model, lora(model, TO_Q, DEPTHWISE))


def test_factors_over_all_channels_of_a_depthwise_convolution_are_refused_with_the_cure(model):
    dense = {
        f"transformer.{DEPTHWISE}.lora_A.weight": torch.ones(4, 320, 3, 3),
        f"transformer.{DEPTHWISE}.lora_B.weight": torch.ones(1, 4, 1, 1),
    }
    with pytest.raises(ValueError, match=rf"Bypass mode cannot compute this LoRA on {DEPTHWISE}: {CURE}"):
        bypassed(model, dense)


def test_a_dora_is_refused_because_its_magnitudes_would_not_count(model):
    tensors = lora(model, TO_Q) | {f"transformer.{TO_Q}.dora_scale": torch.ones(64, 1)}
    with pytest.raises(ValueError, match=f"is a DoRA, whose magnitudes bypass mode leaves out: {CURE}"):
        bypassed(model, tensors)


def test_nan_is_refused(model):
    tensors = lora(model, TO_Q)
    tensors[f"transformer.{TO_Q}.lora_B.weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=f"holds NaN or infinity in what it adds to {TO_Q}"):
        bypassed(model, tensors)


def test_injections_of_other_kinds_pass(model):
    from comfy.patcher_extension import PatcherInjection

    clone = model.clone()
    clone.set_injections("other", [PatcherInjection(inject=print, eject=print)])
    assert list(clone.injections) == ["other"]
