"""Which format a layer gets, what it becomes in the file, and sizes from shapes alone, also of released models."""

import json
import re

import pytest
import torch
from comfy.ops import get_layout_class
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from sana_native.models.files.quantize import (
    INT8,
    PRESETS,
    Narrow,
    Rules,
    choose,
    largest_group,
    layout_of_file,
    plan,
    quantize_state_dict,
    quantize_weight,
    stored,
)
from sana_native.models.gemma.quantization import gemma_rules
from sana_native.models.sana.quantization import sana_architecture, sana_rules
from sana_native.tests.support.quantized import weights
from sana_native.tools import make_memory_table
from torch import Tensor

SHAPES = [(200, 1152), (96, 5600), (33, 48), (40, 64), (5, 7)]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def restored(weight: Tensor, narrow: Narrow, parts: dict[str, Tensor]) -> Tensor:
    """The wide weight as the host has it from a file's tensors."""
    scale = {"scale": parts["weight_scale"]}
    if narrow.kind == "nvfp4":
        scale = {"scale": parts["weight_scale_2"], "block_scale": parts["weight_scale"]}
    if narrow.group:
        scale |= {"convrot_groupsize": narrow.group} | ({"convrot": True} if narrow.kind == INT8 else {})
    layout = QUANT_ALGOS[narrow.kind]["comfy_tensor_layout"]
    params = get_layout_class(layout).Params(orig_dtype=torch.float32, orig_shape=tuple(weight.shape), **scale)
    return QuantizedTensor(parts["weight"], layout, params).dequantize()


@pytest.mark.parametrize(
    ("columns", "group"),
    [(1152, 64), (2880, 64), (2240, 64), (5600, 16), (2048, 256), (2304, 256), (9216, 256), (7, 0)],
)
def test_the_group_is_the_largest_that_divides(columns, group):
    assert largest_group(columns) == group


RULES = Rules(narrow="^a$|^b$|^c$", tables="^t$", sensitive="^b$", sensitive_w4a4="^c$", wide_products="^c$")


@pytest.mark.parametrize(
    ("layer", "columns", "preset", "expected"),
    [
        ("a", 1152, "int8", Narrow(INT8, 64)),
        ("a", 40, "int8", Narrow(INT8)),
        ("a", 1152, "fp8", Narrow("float8_e4m3fn")),
        ("c", 1152, "fp8", Narrow("float8_e4m3fn", wide_product=True)),
        ("a", 1152, "nvfp4", Narrow("nvfp4")),
        ("c", 1152, "nvfp4", Narrow("nvfp4")),
        ("b", 1152, "nvfp4", Narrow(INT8, 64, why="it loses too much in 4 bits")),
        ("a", 1152, "w4a4", Narrow("convrot_w4a4", 64)),
        ("c", 1152, "w4a4", Narrow(INT8, 64, why="it loses too much in 4 bits")),
        ("a", 5600, "w4a4", Narrow(INT8, 16, why="64 does not divide its inputs")),
        ("t", 2304, "w4a4", Narrow(INT8, 256, why="the host reads no 4-bit table")),
        ("t", 2304, "fp8", Narrow("float8_e4m3fn")),
    ],
)
def test_the_format_of_a_layer(layer, columns, preset, expected):
    assert choose(layer, columns, preset, RULES) == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_tensors_are_those_foretold(preset, shape):
    narrow = choose("a", shape[1], preset, RULES)
    found = quantize_weight(noise(*shape), narrow)
    assert {end: (tensor.dtype, tuple(tensor.shape)) for end, tensor in found.items()} == stored(shape, narrow)


# Root mean square error of normal numbers.
ERRORS = {"int8": 0.012, "fp8": 0.03, "nvfp4": 0.11, "w4a4": 0.16}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_host_restores_the_weight(preset, shape):
    weight, narrow = noise(*shape), choose("a", shape[1], preset, RULES)
    error = (restored(weight, narrow, quantize_weight(weight, narrow)) - weight).norm() / weight.norm()
    assert 0 < error < ERRORS[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_weight_of_zeros_stays_zero(preset):
    weight = torch.zeros(32, 64)
    narrow = choose("a", 64, preset, RULES)
    assert torch.equal(restored(weight, narrow, quantize_weight(weight, narrow)), weight)


def test_convrot_spreads_an_outlier():
    """One column thirty times the others, as Mix-FFN's inputs have: rotated, it does not set the scale of a row."""
    weight = noise(64, 64)
    weight[:, 5] *= 30
    plain, rotated = (
        float((restored(weight, narrow, quantize_weight(weight, narrow)) - weight).norm() / weight.norm())
        for narrow in (Narrow(INT8), Narrow(INT8, 64))
    )
    assert rotated < plain / 3


@pytest.mark.parametrize("preset", ["int8", "fp8"])
def test_a_large_weight_in_parts_is_the_same(preset, monkeypatch):
    weight, narrow = noise(100, 64), choose("a", 64, preset, RULES)
    whole = quantize_weight(weight, narrow)
    monkeypatch.setattr("sana_native.models.files.quantize.CHUNK", 64 * 7)
    parts = quantize_weight(weight, narrow)
    assert parts.keys() == whole.keys()
    # The rotation is a product, whose last bit depends on the number of rows; a code on the edge goes to either side.
    assert (parts["weight"].float() - whole["weight"].float()).abs().max() <= (preset == "int8")
    torch.testing.assert_close(parts["weight_scale"], whole["weight_scale"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_convolution_of_one_pixel_is_a_matrix(preset):
    weight, narrow = noise(32, 64), choose("a", 64, preset, RULES)
    found, expected = quantize_weight(weight[:, :, None, None], narrow), quantize_weight(weight, narrow)
    assert all(torch.equal(found[end], expected[end]) for end in expected)


# The rules of the families


def kinds_of(state_dict: dict[str, Tensor], preset: str, rules) -> dict[str, str]:
    planned = plan(state_dict, preset, rules(state_dict))
    return {layer: narrow.kind for layer, narrow in planned.narrow.items()} | dict.fromkeys(planned.wide, "wide")


@pytest.mark.parametrize("family", ["sana", "sprint"])
@pytest.mark.parametrize("preset", PRESETS)
def test_layers_of_a_sana_transformer(family, preset):
    kinds = kinds_of(weights(family), preset, sana_rules)
    wide = {layer for layer, kind in kinds.items() if kind == "wide"}
    assert {re.sub(r"\d+", "N", layer.removesuffix("_1").removesuffix("_2"), count=1) for layer in wide} >= {
        "caption_projection.linear",
        "proj_out",
        "patch_embed.proj",
        "time_embed.linear",
        "transformer_blocks.N.ff.conv_depth",
    }
    assert all(re.match(r"caption_projection|proj_out|patch_embed|time_embed|.+\.conv_depth$", layer) for layer in wide)
    four, eight = PRESETS[preset], INT8
    expected = {
        "int8": (eight, eight, eight, eight),
        "fp8": (four, four, four, four),
        "nvfp4": (four, four, eight, eight),
        "w4a4": (four, eight, eight, eight),
    }[preset]
    first, last = "transformer_blocks.0.", "transformer_blocks.1."
    names = (f"{first}ff.conv_inverted", f"{first}ff.conv_point", f"{first}attn2.to_v", f"{last}attn1.to_q")
    assert tuple(kinds[name] for name in names) == expected
    assert len(kinds) - len(wide) == 2 * 10  # attention to image and to text, four each, and two of Mix-FFN


def test_float8_products_that_stay_wide():
    state_dict = weights("sana")
    planned = plan(state_dict, "fp8", sana_rules(state_dict)).narrow
    assert {
        layer.partition(".0.")[2] for layer, narrow in planned.items() if narrow.wide_product and ".0." in layer
    } == {
        "ff.conv_point",
        "attn2.to_q",
    }


def test_sprint_is_known_by_its_guidance():
    assert (sana_architecture(weights("sana")), sana_architecture(weights("sprint"))) == ("sana", "sana-sprint")


@pytest.mark.parametrize("family", ["sana", "sprint"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_file_has_the_layout_foretold(family, preset):
    state_dict = weights(family)
    rules = sana_rules(state_dict)
    found = quantize_state_dict(state_dict, preset, rules)
    foretold = layout_of_file(state_dict, plan(state_dict, preset, rules))
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in found.items()} == foretold
    assert {dtype for key, (dtype, _) in foretold.items() if key.endswith("bias")} == {torch.bfloat16}


def test_a_model_trained_in_float16_keeps_it_where_it_is_wide():
    state_dict = weights("sana") | {"sana_config": json_tensor({"trained_in": "float16"})}
    found = layout_of_file(state_dict, plan(state_dict, "int8", sana_rules(state_dict)))
    assert found["proj_out.weight"][0] == torch.float16


def json_tensor(value: object) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def test_gemmas_table_is_narrow_and_its_norms_are_not():
    state_dict = {
        "model.embed_tokens.weight": noise(32, 64),
        "model.norm.weight": noise(64),
        "model.layers.0.mlp.up_proj.weight": noise(96, 64),
        "model.layers.0.self_attn.o_proj.weight": noise(64, 64),
    }
    assert kinds_of(state_dict, "w4a4", gemma_rules) == {
        "model.embed_tokens": INT8,
        "model.layers.0.mlp.up_proj": "convrot_w4a4",
        "model.layers.0.self_attn.o_proj": "convrot_w4a4",
    }


# Released models, from the lists of their tensors


# GB: one byte for a narrow number and two for a wide one.
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("SANA 0.6B", {"16 bits": 1.18, "int8": 0.61}),
        ("SANA 1.6B", {"16 bits": 3.21, "int8": 1.65}),
        ("SANA-1.5 4.8B", {"16 bits": 9.44, "int8": 4.78}),
        ("Gemma-2-2b", {"16 bits": 5.23, "int8": 2.61}),
        (make_memory_table.MODELS["PixArt-Sigma"], {"16 bits": 2 * 0.610856, "int8": 0.63}),
        (make_memory_table.MODELS["T5-XXL"], {"16 bits": 9.52, "int8": 4.77, "fp8": 4.76}),
        (make_memory_table.MODELS["Lumina-Next"], {"16 bits": 2 * 1.627386, "int8": 1.86}),
        (make_memory_table.MODELS["Gemma-1 2B"], {"16 bits": 5.01, "int8": 2.51}),
    ],
)
def test_sizes_of_released_models(model, expected):
    found = make_memory_table.sizes(model)
    for column, size in expected.items():
        assert found[column] == pytest.approx(size, rel=0.01)
    assert max(found["nvfp4"], found["w4a4"]) < 0.75 * found["fp8"] < 0.75 * found["int8"]


def test_the_page_on_memory_is_what_the_code_computes():
    page = make_memory_table.PAGE.read_text(encoding="utf-8")
    assert page == make_memory_table.page(), "run python -m tools.make_memory_table"
