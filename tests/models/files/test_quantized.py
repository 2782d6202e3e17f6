"""Files whose linear layers the host has quantized: each format and spelling, their error, LoRA, saving, faults."""

import json
from functools import partial

import folder_paths
import pytest
import torch
from comfy.ops import get_layout_class
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_extras.nodes_model_merging import CheckpointSave, CLIPSave, ModelSave
from safetensors.torch import load_file, save_file
from sana_native.tests.support import layouts
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.quantized import (
    is_linear,
    load_gemma,
    load_sana,
    mark,
    quantized,
    states_equal,
    weights,
    write_model,
)
from torch import Tensor

# Allowed root mean square error of a prediction in units of the unquantized one's. A weight's rounding error is about
# 2.6 % (e4m3: 3 bits of mantissa), 5 % (e5m2: 2 bits), 1 % (int8: 1/127 of the largest) and 9 % (4 bits); on the way
# through two blocks it grows by 1 to 2 times. Measured, for SANA and Sprint: e4m3 0.027 and 0.033, e5m2 0.058 and
# 0.087, int8 0.012 and 0.016, mxfp8 0.028 and 0.033, nvfp4 0.127 and 0.175.
BOUNDS = {
    "float8_e4m3fn": 0.05,
    "float8_e5m2": 0.12,
    "int8_tensorwise": 0.025,
    "mxfp8": 0.05,
    "nvfp4": 0.25,
}
SMALL = 1e-3  # no format is so exact: a smaller error would mean that nothing was quantized
KINDS = pytest.mark.parametrize("kind", BOUNDS)
FAMILIES = pytest.mark.parametrize("family", bench.FAMILIES)


@pytest.fixture
def write(tmp_path):
    return partial(write_model, tmp_path)


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@KINDS
@FAMILIES
def test_a_quantized_model_stays_near_the_full_one(write, kind, family):
    patcher = load_sana(write(quantized(weights(family), kind)))
    layer = patcher.model.diffusion_model.transformer_blocks[1].attn1.to_q
    assert isinstance(layer.weight, QuantizedTensor) and layer.quant_format == kind
    error = bench.rms_error(bench.velocity(patcher), bench.velocity(bench.model(family)))
    assert SMALL < error < BOUNDS[kind]


@KINDS
def test_a_quantized_model_draws(write, kind):
    patcher = load_sana(write(quantized(weights("sana"), kind)))
    out, exact = (bench.draw(model, bench.encoded(), steps=4) for model in (patcher, bench.model("sana")))
    assert torch.isfinite(out).all() and bench.rms_error(out, exact) < 3 * BOUNDS[kind]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@FAMILIES
def test_a_file_of_plain_float8_loads_as_its_values(write, dtype, family):
    """Without scales: what a cast to float8 left is all there is, so the result equals that of the rounded weights."""
    narrow = {key: tensor.to(dtype) for key, tensor in weights(family).items()}
    exact = load_sana(write({key: tensor.float() for key, tensor in narrow.items()}, "wide"))
    assert torch.equal(bench.velocity(load_sana(write(narrow))), bench.velocity(exact))
    kept = load_sana(write(narrow), {"dtype": dtype})
    assert kept.model.get_dtype() == dtype and bench.relative(bench.velocity(kept), bench.velocity(exact)) < 1e-6


def legacy(state_dict: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Scaled float8 as files of 2024 and 2025 spell it."""
    out = {f"{prefix}scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for key, tensor in state_dict.items():
        if not key.endswith("comfy_quant"):
            out[prefix + key.replace("weight_scale", "scale_weight")] = tensor
    return out


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("spelling", ["legacy", "metadata"])
def test_every_spelling_of_scaled_float8_is_the_same_model(write, spelling, prefix):
    state_dict = quantized(weights("sana"), "float8_e4m3fn")
    expected = bench.velocity(load_sana(write(state_dict, "present")))
    if spelling == "legacy":
        path = write(legacy(state_dict, prefix))
    else:
        layers = {prefix + key.removesuffix(".comfy_quant"): {"format": "float8_e4m3fn"}
                  for key in state_dict if key.endswith("comfy_quant")}  # fmt: skip
        bare = {prefix + key: tensor for key, tensor in state_dict.items() if not key.endswith("comfy_quant")}
        path = write(bare, metadata={"_quantization_metadata": json.dumps({"layers": layers})})
    assert torch.equal(bench.velocity(load_sana(path)), expected)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise"])
@FAMILIES
def test_nvidias_fused_layers_are_split_with_their_scales(write, kind, family):
    fused = quantized(layouts.nvidia_sana(weights(family)), kind, lambda key, tensor: (
        is_linear(key, tensor) and ".weight" in key and key.split(".")[0] in ("blocks", "t_block", "final_layer")
    ))  # fmt: skip
    patcher = load_sana(write(fused))
    assert isinstance(patcher.model.diffusion_model.transformer_blocks[0].attn2.to_v.weight, QuantizedTensor)
    assert SMALL < bench.rms_error(bench.velocity(patcher), bench.velocity(bench.model(family))) < BOUNDS[kind]


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise"])
def test_a_quantized_text_encoder_stays_near_the_full_one(tmp_path, kind):
    source = bench.folder() / "sana" / "text_encoder" / "model.safetensors"
    path = tmp_path / "gemma.safetensors"
    save_file(quantized(load_file(source), kind, lambda key, tensor: is_linear(key, tensor) and "layers" in key), path)
    (tmp_path / "tokenizer.model").write_bytes((bench.folder() / "sana" / "tokenizer" / "tokenizer.model").read_bytes())
    clip = load_gemma(str(path))
    states, exact = (bench.call("CLIPTextEncode", encoder, "a cat")[0][0][0] for encoder in (clip, bench.clip()))
    assert SMALL < bench.rms_error(states, exact) < 2 * BOUNDS[kind]  # softmax doubles it


# LoRA and saving


def patch() -> dict:
    generator = torch.Generator().manual_seed(4)
    change = torch.randn(64, 64, generator=generator) * 0.1
    names = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_out.0")
    return {f"diffusion_model.{name}.weight": ("diff", (change,)) for name in names}


@KINDS
def test_a_patch_on_a_quantized_layer_acts_as_on_a_full_one(write, kind):
    plain = bench.velocity(bench.model("sana"))
    outs = []
    for source in (bench.fresh_model("sana"), load_sana(write(quantized(weights("sana"), kind)))):
        patcher = source.clone()
        assert len(patcher.add_patches(patch())) == 2
        patcher.load(patcher.load_device, full_load=True)
        outs.append(bench.velocity(patcher))
    assert bench.rms_error(outs[0], plain) > 2 * bench.rms_error(outs[1], outs[0])
    assert bench.rms_error(outs[1], outs[0]) < BOUNDS[kind]


@KINDS
@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_saved_quantized_model_loads_bit_for_bit(write, output, kind, family):
    model = load_sana(write(quantized(weights(family), kind)))
    ModelSave().save(model, "diffusion_models/saved")
    (file,) = output.rglob("*.safetensors")
    loaded = load_sana(str(file))
    assert loaded.model.diffusion_model.config == model.model.diffusion_model.config
    assert states_equal(loaded.model.diffusion_model.state_dict(), model.model.diffusion_model.state_dict())
    assert torch.equal(bench.velocity(loaded), bench.velocity(model))


@KINDS
def test_a_patch_is_saved_inside_the_quantized_weights(write, output, kind):
    patched = load_sana(write(quantized(weights("sana"), kind))).clone()
    patched.add_patches(patch())
    ModelSave().save(patched, "diffusion_models/saved")
    (file,) = output.rglob("*.safetensors")
    loaded = load_sana(str(file))
    layer = loaded.model.diffusion_model.transformer_blocks[0].attn1.to_q
    assert isinstance(layer.weight, QuantizedTensor)
    patched.load(patched.load_device, full_load=True)
    assert torch.equal(bench.velocity(loaded), bench.velocity(patched))


def test_a_checkpoint_of_quantized_parts_loads_bit_for_bit(write, output, tmp_path):
    model = load_sana(write(quantized(weights("sana"), "float8_e4m3fn")))
    source = load_file(bench.folder() / "sana" / "text_encoder" / "model.safetensors")
    chosen = quantized(source, "float8_e4m3fn", lambda key, tensor: is_linear(key, tensor) and "layers" in key)
    save_file(chosen, tmp_path / "gemma.safetensors")
    (tmp_path / "tokenizer.model").write_bytes((bench.folder() / "sana" / "tokenizer" / "tokenizer.model").read_bytes())
    clip = load_gemma(str(tmp_path / "gemma.safetensors"))
    CheckpointSave().save(model, clip, bench.vae(), "checkpoints/saved")
    CLIPSave().save(clip, "text_encoders/saved")
    whole, single = sorted(map(str, output.rglob("*.safetensors")))
    assert torch.equal(bench.velocity(load_sana(whole)), bench.velocity(model))
    expected = bench.call("CLIPTextEncode", clip, "a cat")[0][0][0]
    for path in (whole, single):
        assert torch.equal(bench.call("CLIPTextEncode", load_gemma(path), "a cat")[0][0][0], expected)


# Faults

LAYER = "transformer_blocks.1.attn1.to_q"


def broken(change) -> dict[str, Tensor]:
    state_dict = quantized(weights("sana"), "float8_e4m3fn")
    change(state_dict)
    return state_dict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sd: sd.pop(f"{LAYER}.weight_scale"), f"quantized as float8_e4m3fn but {LAYER}.weight_scale is missin"),
        (lambda sd: sd.pop(f"{LAYER}.weight"), f"quantized as float8_e4m3fn but {LAYER}.weight is missing: download"),
        (lambda sd: sd.pop("proj_out.bias"), r"does not fit its architecture \(1 missing, such as proj_out.bias of"),
        (lambda sd: sd.update(extra=torch.ones(1)), r"does not fit its architecture \(1 unexpected, such as extra of"),
        (
            lambda sd: sd.update({f"{LAYER}.weight": sd[f"{LAYER}.weight"][:, :32]}),
            rf"{LAYER}.weight has shape \(64, 32\), expected \(64, 64\): download it again",
        ),
        (lambda sd: sd.update({f"{LAYER}.comfy_quant": mark("fp2")}), f"quantized as fp2 \\({LAYER}\\), and this Comf"),
        (
            lambda sd: sd.update({f"{LAYER}.comfy_quant": torch.tensor([123, 1], dtype=torch.uint8)}),
            "The configuration saved in .+ is damaged: save it again",
        ),
        (
            lambda sd: sd.update({"patch_embed.proj.comfy_quant": mark("float8_e4m3fn"),
                                  "patch_embed.proj.weight_scale": torch.ones(())}),
            "has patch_embed.proj quantized, which is no linear layer",
        ),
    ],
)  # fmt: skip
def test_a_damaged_quantized_file_is_refused_in_one_sentence(write, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_sana(write(broken(change), "my model"))
    text = str(error.value)
    assert "my model.safetensors" in text and "\n" not in text and text.endswith(".")


def said(**entries):
    return torch.tensor(list(json.dumps(entries).encode()), dtype=torch.uint8)


def rotated(group: object) -> Tensor:
    return said(format="int8_tensorwise", convrot=True, convrot_groupsize=group)


SCALE, CODES, MARK = (f"{LAYER}.{part}" for part in ("weight_scale", "weight", "comfy_quant"))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("int8_tensorwise", {SCALE: torch.ones(40, 1)}, r"has shape \(40, 1\), expected \(64, 1\) or \(\)"),
        ("int8_tensorwise", {MARK: mark("float8_e4m3fn")}, "weight has int8 numbers, expected float8_e4m3fn"),
        ("int8_tensorwise", {MARK: rotated(100)}, "groups of 100 of 64 inputs, expected a power of 4"),
        ("int8_tensorwise", {MARK: rotated(32)}, "comfy_quant rotates groups of 32 of 64 inputs"),
        ("int8_tensorwise", {MARK: rotated(256)}, "comfy_quant rotates groups of 256 of 64 inputs"),
        ("int8_tensorwise", {MARK: rotated("x")}, "comfy_quant rotates groups of x of 64 inputs"),
        ("int8_tensorwise", {MARK: said(format="int8_tensorwise", convrot=True)}, "groups of 256 of 64 inputs"),
        ("float8_e4m3fn", {SCALE: torch.ones(64, 1)}, r"has shape \(64, 1\), expected \(\) or \(1,\)"),
        ("float8_e4m3fn", {CODES: torch.ones(64, 64, dtype=torch.uint8)}, "weight has uint8 numbers, expected float8"),
        ("nvfp4", {SCALE: torch.ones(64, 4).to(torch.float8_e4m3fn)}, r"shape \(64, 4\), expected \(128, 4\)"),
        ("nvfp4", {SCALE: torch.ones(128, 4)}, "weight_scale has float32 numbers, expected float8_e4m3fn"),
        ("nvfp4", {f"{SCALE}_2": torch.ones(64)}, r"weight_scale_2 has shape \(64,\), expected one number"),
        ("mxfp8", {SCALE: torch.ones(64, 4).to(torch.float8_e8m0fnu)}, r"shape \(64, 4\), expected \(128, 4\)"),
    ],
)  # fmt: skip
def test_a_layer_that_does_not_fit_its_format_is_refused(write, kind, change, message):
    path = write(quantized(weights("sana"), kind) | change, "my model")
    with pytest.raises(ValueError, match=f"my model.safetensors is quantized as .+ but {LAYER}.+{message}.*: download"):
        load_sana(path)


@pytest.mark.parametrize("kind", ["int8_tensorwise", "float8_e4m3fn", "mxfp8", "nvfp4"])
def test_scales_of_nan_are_refused(write, kind):
    state_dict = quantized(weights("sana"), kind)
    bad = torch.full(state_dict[SCALE].shape, float("nan")).to(state_dict[SCALE].dtype)
    with pytest.raises(ValueError, match=f"my model.safetensors holds NaN or infinity in {SCALE}: download it again"):
        load_sana(write(state_dict | {SCALE: bad}, "my model"))


def test_marks_in_the_metadata_that_are_damaged_are_refused(write):
    path = write(weights("sana"), "my model", metadata={"_quantization_metadata": "{"})
    with pytest.raises(ValueError, match="The configuration saved in .+my model.safetensors is damaged: save it again"):
        load_sana(path)


def flat_pointwise(state_dict: dict) -> dict:
    """The 1x1 convolutions of Mix-FFN as matrices (N, K)."""
    return {key: tensor.flatten(1) if is_pointwise(key) else tensor for key, tensor in state_dict.items()}


def is_pointwise(key: str, _tensor=None) -> bool:
    return key.endswith(("ff.conv_inverted.weight", "ff.conv_point.weight"))


def test_pointwise_convolutions_may_be_stored_as_matrices(write):
    source = weights("sana")
    flat = flat_pointwise(source)
    assert any(flat[key].ndim != source[key].ndim for key in source)
    found, plain = (
        load_sana(write(state_dict)).model.diffusion_model.state_dict() for state_dict in (flat, dict(source))
    )
    assert found.keys() == plain.keys() and all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.parametrize("shape", ["matrices", "convolutions"])
def test_pointwise_convolutions_may_be_quantized(write, shape):
    state_dict = quantized(flat_pointwise(weights("sana")), "float8_e4m3fn", is_pointwise)
    layers = [key for key in state_dict if is_pointwise(key)]
    assert all(state_dict[key].dtype == torch.float8_e4m3fn for key in layers) and len(layers) == 4
    if shape == "convolutions":
        state_dict |= {key: state_dict[key][:, :, None, None] for key in layers}
    found = load_sana(write(state_dict)).model.diffusion_model
    for key in layers:
        stored = state_dict[key].flatten(1).float() * state_dict[f"{key}_scale"].float()
        own = found.get_submodule(key.removesuffix(".weight")).weight.dequantize().float()
        torch.testing.assert_close(own, stored, rtol=1e-2, atol=0)


def test_formats_are_those_of_the_host():
    """A new one of the host's shows up here, to be tested above."""
    assert set(QUANT_ALGOS) == set(BOUNDS) | {"convrot_w4a4"}
    assert not [kind for kind in QUANT_ALGOS if get_layout_class(QUANT_ALGOS[kind]["comfy_tensor_layout"]) is None]
