"""LoRA files of every trainer, by our loader and the host's own nodes: weights computed by hand, and bits put back."""

import json
import logging
import math
import re
from types import SimpleNamespace

import comfy.hooks
import comfy.model_management
import folder_paths
import pytest
import torch
import torch.nn.functional as F
from comfy.model_base import BaseModel
from comfy.weight_adapter import LoRAAdapter
from comfy_extras.nodes_model_merging import ModelMergeSimple, ModelSave
from comfy_extras.nodes_train import LoraModelLoader
from safetensors.torch import load_file, save_file
from sana_native.models.lora.convert import find_foreign, layer_aliases, sort_keys
from sana_native.models.lora.depthwise import find_depthwise_lora
from sana_native.models.lora.loader import load_lora
from sana_native.models.sana import convert as sana_convert
from sana_native.models.sana.model_base import SanaModel
from sana_native.tests.support import lora_layouts as layouts
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.lora_layouts import ALPHA, LAYERS, LAYOUTS, RANK, STOCK_LAYOUTS

FAMILIES = {
    "diffusers": "diffusers LoRA",
    "peft": "PEFT LoRA",
    "bare": "bare names LoRA",
    "peft_default": "bare names LoRA",
    "onetrainer": "OneTrainer LoRA",
    "onetrainer_flat": "OneTrainer LoRA",
    "simpletuner": "SimpleTuner LyCORIS LoRA",
    "kohya": "kohya LoRA",
    "comfy": "ComfyUI LoRA",
    "nvidia": "NVIDIA names LoRA",
    "nvidia_flat": "NVIDIA names LoRA",
}
TO_Q, TO_OUT = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_out.0"
DEPTHWISE, TALL, WIDE = (f"transformer_blocks.0.ff.conv_{name}" for name in ("depth", "inverted", "point"))
KINDS = [TO_Q, TO_OUT, DEPTHWISE, TALL, WIDE, "caption_projection.linear_1", "patch_embed.proj", "proj_out"]


@pytest.fixture
def model():
    return bench.model("sana")


@pytest.fixture(autouse=True)
def unpatched():
    """Unloads what a test drew with, so that the next one finds the weights of the file in the shared model."""
    yield
    comfy.model_management.unload_all_models()


@pytest.fixture
def loras(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors", ".pt"}))
    return tmp_path


def weights_of(model) -> dict[str, torch.Tensor]:
    """Of every layer, in the shape that files and trainers know."""
    weights = sana_convert.to_file_layout(model.model.diffusion_model.state_dict())
    return {key.removesuffix(".weight"): weight for key, weight in weights.items() if key.endswith(".weight")}


def patched(model, layer: str, part: str = "weight") -> torch.Tensor:
    """The weight as the host computes it for the next run, in float64."""
    key = f"diffusion_model.{layer}.{part}"
    return model.patch_weight_to_device(key, device_to=torch.device("cpu"), return_weight=True).double()


def assert_weight(model, layer: str, expected: torch.Tensor) -> None:
    weight = patched(model, layer)
    error = (weight - expected.reshape(weight.shape)).abs().max() / expected.abs().max()
    assert error < 1e-6, f"{layer} is {float(error)} off"


def stock(model, name: str, strength: float = 1.0):
    return bench.call("LoraLoaderModelOnly", model, name, strength)[0]


def own(model, path, strength: float = 1.0):
    return load_lora(model, str(path), strength)


def saved(folder, layout: str, lora, name: str = "style.safetensors"):
    save_file(LAYOUTS[layout](lora), folder / name)
    return folder / name


# Layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strength", [0.7, -1.5])
def test_every_layout_gives_the_weights_computed_by_hand(loras, model, layout, strength):
    weights = weights_of(model)
    lora = layouts.make_lora(weights)
    changed = own(model, saved(loras, layout, lora), strength)
    assert len(changed.patches) == len(LAYERS)
    for layer in LAYERS:
        weight = weights[layer]
        assert_weight(changed, layer, weight.double() + strength * lora[layer].change(weight.shape))


@pytest.mark.parametrize("layout", STOCK_LAYOUTS)
def test_the_stock_node_gives_the_same_bits_for_the_layouts_the_host_knows(loras, model, layout):
    path = saved(loras, layout, layouts.make_lora(weights_of(model)))
    ours, theirs = own(model, path, 0.7), stock(model, path.name, 0.7)
    assert theirs.patches.keys() == ours.patches.keys() and len(theirs.patches) == len(LAYERS)
    assert all(torch.equal(patched(ours, layer), patched(theirs, layer)) for layer in LAYERS)


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - set(STOCK_LAYOUTS)))
def test_the_stock_node_names_our_node_for_the_layouts_the_host_does_not_know(loras, model, layout):
    """NVIDIA's names share the embedding layers of no other layout, so nothing at all is applied."""
    path = saved(loras, layout, layouts.make_lora(weights_of(model), LAYERS[:8]))
    with pytest.raises(ValueError, match="No key of this LoRA names a layer.*SANA LoRA Loader"):
        stock(model, path.name)


def test_the_stock_node_with_a_clip_loads_the_same(loras, model):
    path = saved(loras, "diffusers", layouts.make_lora(weights_of(model)))
    changed, clip = bench.call("LoraLoader", model, bench.clip(), path.name, 0.7, 0.7)
    assert not clip.patcher.patches
    assert all(torch.equal(patched(changed, layer), patched(own(model, path, 0.7), layer)) for layer in LAYERS)


def test_sprint_takes_the_layers_that_only_it_has(loras):
    model = bench.model("sprint")
    weights = weights_of(model)
    layers = ["time_embed.timestep_embedder.linear_1", "time_embed.guidance_embedder.linear_2", TO_Q]
    layers += [TO_Q.replace("to_q", "to_k"), TO_Q.replace("to_q", "to_v")]
    lora = layouts.make_lora(weights, layers)
    for layout in ("diffusers", "kohya", "nvidia_flat"):
        changed = own(model, saved(loras, layout, lora))
        for layer in layers:
            assert_weight(changed, layer, weights[layer].double() + lora[layer].change(weights[layer].shape))


def test_no_two_layers_share_a_name():
    """Underscores for dots lose nothing, and NVIDIA's names are none of diffusers'."""
    for family in bench.FAMILIES:
        layers = weights_of(bench.model(family))
        aliases = layer_aliases(layers)
        singles = [targets[0] for targets in aliases.values() if len(targets) == 1]
        assert set(singles) == set(layers) and max(map(singles.count, singles)) == 2
        fused = {name for name, targets in aliases.items() if len(targets) > 1}
        assert fused == {f"blocks_{n}_{name}" for n in (0, 1) for name in ("attn_qkv", "cross_attn_kv_linear")}


def test_the_base_classes_lend_their_names_alone():
    """All that they define besides is overridden, so nothing of another model is in ours."""
    bases = [base for base in SanaModel.__mro__[1:] if issubclass(base, BaseModel) and base is not BaseModel]
    defined = {name for base in bases for name in vars(base) if not name.startswith("__") or name == "__init__"}
    assert len(bases) == 2 and defined <= set(vars(SanaModel))
    assert bench.model("sana").model.extra_conds_shapes(reference_latents=[torch.ones(1, 32, 4, 4)]) == {}


# The scale


def test_the_alpha_in_a_file_header_counts(loras, model):
    weights = weights_of(model)
    lora = layouts.make_lora(weights)
    layouts.save_with_header(loras / "style.safetensors", lora)
    for changed in (own(model, loras / "style.safetensors"), stock(model, "style.safetensors")):
        for layer in LAYERS:
            assert_weight(changed, layer, weights[layer].double() + lora[layer].change(weights[layer].shape))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"alpha_pattern": {"attn1.to_q": 12}}, 12 / RANK),
        ({"alpha_pattern": {r"transformer_blocks\.0\..*to_q": 12}}, 12 / RANK),
        ({"alpha_pattern": {"to_k": 12}}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / math.sqrt(RANK)),
    ],
)
def test_patterns_and_rank_stabilised_scale_in_a_file_header_count(loras, model, config, scale):
    weight = weights_of(model)[TO_Q]
    lora = layouts.make_lora(weights_of(model), [TO_Q])
    layouts.save_with_header(loras / "style.safetensors", lora, **config)
    change = lora[TO_Q].change(weight.shape) / lora[TO_Q].scale * scale
    for changed in (own(model, loras / "style.safetensors"), stock(model, "style.safetensors")):
        assert_weight(changed, TO_Q, weight.double() + change)


def test_the_configuration_in_a_peft_folder_counts(loras, model):
    weights = weights_of(model)
    lora = layouts.make_lora(weights)
    tensors = layouts.named(lora, layouts.dotted("base_model.model."), "lora_A", "lora_B", alpha=True)
    save_file({k: v for k, v in tensors.items() if not k.endswith(".alpha")}, loras / "adapter_model.safetensors")
    (loras / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}))
    changed = own(model, loras / "adapter_model.safetensors")
    for layer in LAYERS:
        assert_weight(changed, layer, weights[layer].double() + lora[layer].change(weights[layer].shape))
    plain = own(model, saved(loras, "peft", lora))  # the configuration is that of PEFT's own file alone
    assert_weight(plain, TO_Q, weights[TO_Q].double() + lora[TO_Q].change(weights[TO_Q].shape))


def test_a_damaged_header_is_named(loras, model):
    save_file({f"transformer.{TO_Q}.lora_A.weight": torch.ones(4, 64),
               f"transformer.{TO_Q}.lora_B.weight": torch.ones(64, 4)},
              loras / "style.safetensors", {"lora_adapter_metadata": "{"})  # fmt: skip
    with pytest.raises(
        ValueError, match="lora_adapter_metadata of .*style.safetensors is damaged: save the LoRA again"
    ):
        own(model, loras / "style.safetensors")
    with pytest.raises(ValueError, match="lora_adapter_metadata of this LoRA is damaged"):
        stock(model, "style.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_file_in_few_bits_is_computed_in_many(loras, model, dtype):
    weights = weights_of(model)
    lora = layouts.make_lora(weights)
    tensors = {key: tensor.to(dtype) for key, tensor in LAYOUTS["kohya"](lora).items()}
    save_file(tensors, loras / "style.safetensors")
    for low in lora.values():
        low.down, low.up = low.down.to(dtype).float(), low.up.to(dtype).float()
    for changed in (own(model, loras / "style.safetensors"), stock(model, "style.safetensors")):
        for layer in LAYERS:
            assert_weight(changed, layer, weights[layer].double() + lora[layer].change(weights[layer].shape))


# LoHa, LoKr, DoRA


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def loha(shape, rank: int = 3) -> tuple[dict, torch.Tensor]:
    rows, columns = shape[0], math.prod(shape[1:])
    parts = {f"hada_w{n}_a": randn(rows, rank, seed=n) for n in (1, 2)}
    parts |= {f"hada_w{n}_b": randn(rank, columns, seed=10 + n) for n in (1, 2)}
    double = {name: tensor.double() for name, tensor in parts.items()}
    product = (double["hada_w1_a"] @ double["hada_w1_b"]) * (double["hada_w2_a"] @ double["hada_w2_b"])
    return parts | {"alpha": torch.tensor(1.5)}, (product * 1.5 / rank).reshape(shape)


def lokr(shape, first: tuple[int, int], decompose: str = "", rank: int = 2) -> tuple[dict, torch.Tensor]:
    """decompose: the factors that are products of two of low rank, "1", "2" or both."""
    second = shape[0] // first[0], math.prod(shape[1:]) // first[1]
    parts, factors = {"alpha": torch.tensor(3.0)}, []
    for n, (rows, columns) in ((1, first), (2, second)):
        if str(n) in decompose:
            parts |= {f"lokr_w{n}_a": randn(rows, rank, seed=n), f"lokr_w{n}_b": randn(rank, columns, seed=n + 5)}
            factors.append(parts[f"lokr_w{n}_a"].double() @ parts[f"lokr_w{n}_b"].double())
        else:
            factor = randn(rows, columns, seed=n)
            whole = n == 2 and len(shape) == 4  # a full second factor of a convolution keeps its kernel
            parts[f"lokr_w{n}"] = factor.reshape(rows, -1, *shape[2:]) if whole else factor
            factors.append(factor.double())
    scale = 3.0 / rank if decompose else 1.0
    return parts, (torch.kron(*factors) * scale).reshape(shape)


def first_factor(shape) -> tuple[int, int]:
    return (4, 1) if shape[1] == 1 else (4, 4)


def save_parts(path, changes: dict[str, dict], prefix: str = "lycoris_"):
    """prefix: with underscores for the layer's dots when it ends in one."""
    name = layouts.flat(prefix) if prefix.endswith("_") else layouts.dotted(prefix)
    save_file(
        {f"{name(layer)}.{part}": tensor for layer, parts in changes.items() for part, tensor in parts.items()}, path
    )
    return path


KRON = {f"LoKr {which or 'full'}": which for which in ("", "1", "2", "12")}


@pytest.mark.parametrize("prefix", ["lycoris_", "lora_unet_", "transformer.", "base_model.model.", "lora_transformer_"])
@pytest.mark.parametrize("kind", ["LoHa", *KRON])
def test_lycoris_products_equal_those_computed_by_hand(loras, model, kind, prefix):
    weights = weights_of(model)
    made = {
        layer: loha(weights[layer].shape)
        if kind == "LoHa"
        else lokr(weights[layer].shape, first_factor(weights[layer].shape), KRON[kind])
        for layer in KINDS
    }
    path = save_parts(loras / "style.safetensors", {layer: parts for layer, (parts, _) in made.items()}, prefix)
    results = [own(model, path, 0.7)] + ([] if prefix == "lora_transformer_" else [stock(model, path.name, 0.7)])
    for changed in results:
        for layer, (_, change) in made.items():
            assert_weight(changed, layer, weights[layer].double() + 0.7 * change)


def decomposed(weight: torch.Tensor, change: torch.Tensor, magnitude: torch.Tensor, axis: int) -> torch.Tensor:
    """DoRA: the changed weight, one row or column at a time, brought to the length that was trained."""
    merged = weight.double() + change
    out = torch.empty_like(merged)
    for index in range(merged.shape[axis]):
        part = merged.select(axis, index)
        out.select(axis, index).copy_(part * magnitude.double().flatten()[index] / part.square().sum().sqrt())
    return out


@pytest.mark.parametrize("strength", [1.0, 0.7, -0.5])
@pytest.mark.parametrize(
    ("prefix", "axis", "spelling"),
    [
        ("lycoris_", 0, "dora_scale"),
        ("lycoris_", 1, "dora_scale"),
        ("transformer.", 0, "dora_scale"),
        ("transformer.", 1, "dora_scale"),
        ("transformer.", 0, "lora_magnitude_vector"),
        ("base_model.model.", 0, "lora_magnitude_vector"),
        ("base_model.model.", 0, "lora_magnitude_vector.default.weight"),
        ("transformer.", 0, "lora_magnitude_vector.weight"),
    ],
)
def test_dora_equals_the_one_computed_by_hand(loras, model, prefix, axis, spelling, strength):
    weights, changes, expected = weights_of(model), {}, {}
    lora = layouts.make_lora(weights, KINDS)
    for layer in KINDS:
        weight, low = weights[layer], lora[layer]
        shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
        magnitude = 1 + randn(weight.shape[axis], seed=3)
        if spelling == "dora_scale":
            stored = magnitude.reshape(shape)
        else:  # PEFT's
            stored = magnitude if weight.ndim == 2 else magnitude.reshape(1, -1, 1, 1)
        changes[layer] = {"lora_down.weight": low.down, "lora_up.weight": low.up, "alpha": torch.tensor(low.alpha)}
        changes[layer][spelling] = stored
        full = decomposed(weight, low.change(weight.shape), magnitude, axis)
        expected[layer] = weight.double() + strength * (full - weight.double())
    path = save_parts(loras / "style.safetensors", changes, prefix)
    results = [own(model, path, strength)]
    if spelling == "dora_scale":
        results.append(stock(model, path.name, strength))
    for changed in results:
        for layer in KINDS:
            assert_weight(changed, layer, expected[layer])


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_dora_on_lycoris_products_equals_the_one_computed_by_hand(loras, model, kind):
    weight = weights_of(model)[TO_OUT]
    parts, change = loha(weight.shape) if kind == "LoHa" else lokr(weight.shape, (4, 4), "2")
    magnitude = 1 + randn(64, 1, seed=3)
    path = save_parts(loras / "style.safetensors", {TO_OUT: parts | {"dora_scale": magnitude}})
    for changed in (own(model, path), stock(model, path.name)):
        assert_weight(changed, TO_OUT, decomposed(weight, change, magnitude, 0))


QKV = [f"transformer_blocks.0.attn1.to_{name}" for name in "qkv"]


def fused_case(kind: str, weights) -> tuple[dict, torch.Tensor]:
    """Parts of NVIDIA's fused layer and the weight expected of it, rows of q, k and v one below the other."""
    weight = torch.cat([weights[layer] for layer in QKV]).double()
    if kind == "LoHa":
        parts, change = loha(weight.shape)
        return parts, weight + change
    if kind.startswith("LoKr"):
        parts, change = lokr(weight.shape, (4, 4), kind.removeprefix("LoKr "))
        return parts, weight + change
    low = layouts.make_lora({"fused": weight}, ["fused"])["fused"]
    magnitude = 1 + randn(192, 1, seed=3)
    parts = {"lora_down.weight": low.down, "lora_up.weight": low.up, "alpha": torch.tensor(low.alpha)}
    return parts | {"dora_scale": magnitude}, decomposed(weight, low.change(weight.shape), magnitude, 0)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr ", "LoKr 2", "LoKr 12", "DoRA"])
def test_a_fused_layer_is_split_exactly(loras, model, kind):
    weights = weights_of(model)
    parts, expected = fused_case(kind, weights)
    path = save_parts(loras / "style.safetensors", {"blocks.0.attn.qkv": parts}, "")
    changed = own(model, path)
    for layer, rows in zip(QKV, expected.tensor_split(3), strict=True):
        assert_weight(changed, layer, rows)


def test_a_fused_dora_with_one_magnitude_an_input_is_left_over(loras, model):
    """Its norm runs over q, k and v together, which three layers cannot keep."""
    parts, _ = fused_case("DoRA", weights_of(model))
    parts["dora_scale"] = torch.ones(1, 64)
    path = save_parts(loras / "style.safetensors", {"blocks.0.attn.qkv": parts}, "")
    with pytest.raises(ValueError, match=r"None of the 4 keys of .*style.safetensors \(NVIDIA names DoRA, such as"):
        own(model, path)


def test_full_changes_of_weights_and_biases_are_applied(loras, model):
    """LyCORIS' "full" algorithm, and what the host's training node writes for norms and biases."""
    weights = weights_of(model)
    changes = {
        TO_OUT: {"diff": randn(64, 64), "diff_b": randn(64, seed=2)},
        "caption_norm": {"diff": randn(64, seed=3)},
    }
    for prefix in ("lycoris_", "diffusion_model."):
        path = save_parts(loras / "style.safetensors", changes, prefix)
        bias = model.model.diffusion_model.get_submodule(TO_OUT).bias.double()
        for changed in (own(model, path, 0.5), stock(model, path.name, 0.5)):
            for layer in (TO_OUT, "caption_norm"):
                assert_weight(changed, layer, weights[layer].double() + 0.5 * changes[layer]["diff"].double())
            assert torch.allclose(patched(changed, TO_OUT, "bias"), bias + 0.5 * changes[TO_OUT]["diff_b"].double())


# Adapters that mix the channels of a depthwise convolution


def dense_pair(kind: str) -> layouts.Low:
    """Factors over all 320 channels: OneTrainer's give one map for all, PEFT's a map for each."""
    if kind == "onetrainer":
        return layouts.Low(randn(RANK, 320, 3, 3) * 0.2, randn(1, RANK, 1, 1, seed=2))
    return layouts.Low(randn(320, 320, 3, 3) * 0.2, randn(320, 1, 1, 1, seed=2), 160.0)


def drawn_with_hook(model, changes) -> torch.Tensor:
    """The latent of a network whose depthwise convolution has these pairs of convolutions added, times a strength."""

    def add(module, inputs, out):  # noqa: ARG001 - torch's call
        for low, strength in changes:
            hidden = F.conv2d(inputs[0], low.down, padding=1)
            out = out + strength * low.scale * F.conv2d(hidden, low.up, groups=hidden.shape[1] // low.up.shape[1])
        return out

    handle = model.model.diffusion_model.get_submodule(DEPTHWISE).register_forward_hook(add)
    try:
        return bench.draw(model, bench.encoded())
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["onetrainer", "peft"])
@pytest.mark.parametrize("load", ["own", "stock"])
def test_a_dense_lora_on_a_depthwise_convolution_acts_as_it_was_trained(loras, model, kind, load):
    low = dense_pair(kind)
    if kind == "onetrainer":
        saved(loras, "onetrainer", {DEPTHWISE: low})
    else:
        layouts.save_with_header(loras / "style.safetensors", {DEPTHWISE: low}, lora_alpha=low.alpha)
    read = (lambda m, s: own(m, loras / "style.safetensors", s)) if load == "own" else (
        lambda m, s: stock(m, "style.safetensors", s))  # fmt: skip
    plain = bench.draw(model, bench.encoded())
    once, twice = read(model, 0.7), read(read(model, 0.7), -1.5)
    expected = drawn_with_hook(model, [(low, 0.7)])
    assert bench.relative(expected, plain) > 1e-2
    assert bench.relative(bench.draw(once, bench.encoded()), expected) < 1e-5
    assert (
        bench.relative(
            bench.draw(twice, bench.encoded()),
            drawn_with_hook(model, [(low, 0.7), (low, -1.5)]),
        )
        < 1e-5
    )
    assert torch.equal(bench.draw(model, bench.encoded()), plain)


def branches_of(network) -> set[str]:
    return {name for name, _ in network.named_parameters() if ".depthwise_lora." in name}


def test_the_host_moves_and_counts_such_factors_and_takes_them_off_again(loras, model):
    """They are parameters of the network while the model is loaded with the LoRA, and of no other clone."""
    layouts.save_with_header(loras / "style.safetensors", {DEPTHWISE: dense_pair("peft")}, lora_alpha=160.0)
    network, changed = model.model.diffusion_model, own(model, loras / "style.safetensors")
    size = comfy.model_management.module_size(network)
    bench.draw(changed, bench.encoded())
    names = {f"{DEPTHWISE.rpartition('.')[0]}.depthwise_lora.0.{factor}" for factor in ("down", "up")}
    assert branches_of(network) == names
    walked = {f"{name}.{part}" for *_, name, _, parameters in changed._load_list() for part in parameters}
    assert {f"diffusion_model.{name}" for name in names} <= walked
    factors = dict(network.named_parameters())
    assert comfy.model_management.module_size(network) == size + sum(factors[name].nbytes for name in names)
    bench.draw(model, bench.encoded())
    assert branches_of(network) == set()


def test_a_saved_model_has_no_keys_of_such_factors(loras, model, tmp_path, monkeypatch):
    layouts.save_with_header(loras / "style.safetensors", {DEPTHWISE: dense_pair("peft")}, lora_alpha=160.0)
    changed = own(model, loras / "style.safetensors")
    bench.draw(changed, bench.encoded())
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    with torch.inference_mode():
        ModelSave().save(changed, "saved")
    (path,) = (tmp_path / "output").rglob("*.safetensors")
    assert not [key for key in load_file(path) if "depthwise_lora" in key]


@pytest.mark.parametrize("four_dimensions", [True, False], ids=["(N, K, 1, 1)", "(N, K)"])
@pytest.mark.parametrize("kind", ["factors", "difference"])
@pytest.mark.parametrize("layer", [TALL, WIDE])
def test_a_lora_on_a_1x1_convolution_lands_in_both_shapes(loras, model, layer, kind, four_dimensions):
    weight = weights_of(model)[layer]
    rows, columns = weight.shape[:2]
    end = (1, 1) if four_dimensions else ()
    if kind == "factors":
        down, up = randn(3, columns, *end), randn(rows, 3, *end, seed=1)
        parts, change = {"lora_A.weight": down, "lora_B.weight": up}, up.flatten(1).double() @ down.flatten(1).double()
    else:
        change = randn(rows, columns, seed=2).double()
        parts = {"diff": change.float().reshape(rows, columns, *end)}
    path = save_parts(loras / "style.safetensors", {layer: parts}, "transformer.")
    for changed in (own(model, path), stock(model, path.name)):
        assert_weight(changed, layer, weight.double() + change.reshape(weight.shape))


def test_onetrainers_loha_keeps_the_dimensions_of_a_convolution(loras, model):
    """Factors with four dimensions, and for the depthwise convolution one row of all its values."""
    weights, changes, expected = weights_of(model), {}, {}
    for layer in (DEPTHWISE, TALL, WIDE):
        weight = weights[layer]
        rows = 1 if layer == DEPTHWISE else weight.shape[0]
        inner = (320, 3, 3) if layer == DEPTHWISE else weight.shape[1:]
        parts = {f"hada_w{n}_a": randn(rows, 3, 1, 1, seed=n) for n in (1, 2)}
        parts |= {f"hada_w{n}_b": randn(3, *inner, seed=n + 4) for n in (1, 2)}
        first, second = (
            parts[f"hada_w{n}_a"].double().flatten(1) @ parts[f"hada_w{n}_b"].double().flatten(1) for n in (1, 2)
        )
        changes[layer] = parts | {"alpha": torch.tensor(1.5)}
        expected[layer] = weight.double() + (first * second * 1.5 / 3).reshape(weight.shape)
    path = save_parts(loras / "style.safetensors", changes, "transformer.")
    for changed in (own(model, path), stock(model, path.name)):
        for layer, weight in expected.items():
            assert_weight(changed, layer, weight)


@pytest.mark.parametrize("layer", [DEPTHWISE, TALL])
def test_a_tucker_decomposed_lokr_equals_the_one_computed_by_hand(loras, model, layer):
    """The host itself leaves such a weight as it is, with an error in the log."""
    weight = weights_of(model)[layer]
    inner = weight.shape[1] // first_factor(weight.shape)[1]
    kernel = weight.shape[2:]
    parts = {
        "lokr_w1": randn(*first_factor(weight.shape)),
        "lokr_w2_a": randn(2, weight.shape[0] // 4, seed=1),
        "lokr_w2_b": randn(2, inner, seed=2),
        "lokr_t2": randn(2, 2, *kernel, seed=3),
        "alpha": torch.tensor(1.5),
    }
    double = {name: tensor.double() for name, tensor in parts.items()}
    change = torch.zeros(weight.shape, dtype=torch.float64)
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            second = double["lokr_w2_a"].T @ double["lokr_t2"][:, :, y, x] @ double["lokr_w2_b"]
            change[:, :, y, x] = torch.kron(double["lokr_w1"], second) * 1.5 / 2
    path = save_parts(loras / "style.safetensors", {layer: parts})
    for changed in (own(model, path), stock(model, path.name)):
        assert_weight(changed, layer, weight.double() + change)


@pytest.mark.parametrize("axis", [0, 1])
def test_onetrainers_dora_of_a_depthwise_convolution_is_one_row(loras, model, axis):
    weight = weights_of(model)[DEPTHWISE]
    low = dense_pair("onetrainer")
    magnitude = 1 + randn(weight.shape[axis], seed=3)
    parts = {"lora_down.weight": low.down, "lora_up.weight": low.up, "alpha": torch.tensor(low.alpha)}
    parts["dora_scale"] = magnitude.reshape([-1 if dim == axis else 1 for dim in range(4)])
    path = save_parts(loras / "style.safetensors", {DEPTHWISE: parts}, "transformer.")
    for changed in (own(model, path), stock(model, path.name)):
        assert_weight(changed, DEPTHWISE, decomposed(weight, low.change(weight.shape), magnitude, axis))


# Strength, stacking, removal


def test_strength_zero_is_the_model_itself(loras, model):
    path = saved(loras, "diffusers", layouts.make_lora(weights_of(model)))
    assert own(model, path, 0.0) is model and stock(model, path.name, 0.0) is model


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize("load", ["own", "stock"])
def test_a_lora_changes_the_image_and_leaves_no_trace_when_removed(loras, family, load):
    model, conds = bench.model(family), bench.encoded()
    layers = [layer for layer in LAYERS if "emb.timestep" not in layer]
    path = saved(loras, "diffusers", layouts.make_lora(weights_of(model), layers))
    before = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    plain = bench.draw(model, conds)
    changed = own(model, path) if load == "own" else stock(model, path.name)
    drawn = bench.draw(changed, conds)
    assert bench.relative(drawn, plain) > 1e-2
    assert torch.equal(bench.draw(model, conds), plain)
    assert torch.equal(bench.draw(changed, conds), drawn)
    bench.draw(model, conds)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.model.state_dict().items())


def test_the_node_gives_the_image_of_its_loader(loras, model):
    path = saved(loras, "nvidia", layouts.make_lora(weights_of(model)))
    changed = bench.call(bench.OURS["LoraLoader"], model, path.name, 0.7)[0]
    assert torch.equal(bench.draw(changed, bench.encoded()), bench.draw(own(model, path, 0.7), bench.encoded()))


def test_stacked_loras_add_up(loras, model):
    weights = weights_of(model)
    first, second = (layouts.make_lora(weights, seed=seed) for seed in (1, 2))
    paths = saved(loras, "onetrainer", first, "a.safetensors"), saved(loras, "nvidia", second, "b.safetensors")
    stacked = own(own(model, paths[0], 0.7), paths[1], -0.4)
    mixed = own(stock(model, "a.safetensors", 0.7), paths[1], -0.4)
    for layer in LAYERS:
        shape = weights[layer].shape
        expected = weights[layer].double() + 0.7 * first[layer].change(shape) - 0.4 * second[layer].change(shape)
        assert_weight(stacked, layer, expected)
        assert torch.equal(patched(stacked, layer), patched(mixed, layer))
    assert not model.patches


def test_a_second_lora_without_a_header_leaves_the_scale_of_the_first(loras, model):
    weights = weights_of(model)
    lora = layouts.make_lora(weights, [TO_Q])
    layouts.save_with_header(loras / "a.safetensors", lora)
    saved(loras, "diffusers", layouts.make_lora(weights, [TO_OUT]), "b.safetensors")
    changed = stock(stock(model, "a.safetensors"), "b.safetensors")
    assert_weight(changed, TO_Q, weights[TO_Q].double() + lora[TO_Q].change(weights[TO_Q].shape))


def test_one_lora_and_its_negative_cancel(loras, model):
    path = saved(loras, "simpletuner", layouts.make_lora(weights_of(model)))
    both = own(own(model, path, 1.0), path, -1.0)
    for layer in LAYERS:
        assert_weight(both, layer, weights_of(model)[layer].double())


def test_a_low_vram_load_gives_the_same_image(loras, model):
    """Weights that stay outside the device are patched when they are used."""
    lora, magnitude = (
        layouts.make_lora(weights_of(model)),
        {f"transformer.{TO_Q}.lora_magnitude_vector": torch.ones(64)},
    )
    save_file(LAYOUTS["diffusers"](lora) | magnitude, loras / "style.safetensors")
    fresh = bench.fresh_model("sana")
    changed = own(fresh, loras / "style.safetensors")
    expected = {layer: patched(changed, layer) for layer in LAYERS}
    changed.load(torch.device("cpu"), lowvram_model_memory=1, force_patch_weights=False)
    network = changed.model.diffusion_model
    for layer in LAYERS:
        module = network.get_submodule(layer)
        assert module.weight_function, f"{layer} is not patched at use"
        weight = module.weight
        for function in module.weight_function:
            weight = function(weight.clone())
        assert torch.equal(weight.double(), expected[layer])
    changed.unpatch_model()


# What is said


def messages(caplog, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level and r.getMessage().startswith("SANA:")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_line_tells_how_many_keys_were_applied_and_whose_layout_it_is(loras, model, caplog, layout):
    path = saved(loras, layout, layouts.make_lora(weights_of(model)))
    count = len([key for key in LAYOUTS[layout]({}) | LAYOUTS[layout](layouts.make_lora(weights_of(model)))
                 if not key.startswith(("text_encoder", "bundle_emb"))])  # fmt: skip
    with caplog.at_level(logging.INFO):
        own(model, path)
    ignored = ", 4 of the text encoder ignored" if layout == "onetrainer" else ""
    (line,) = messages(caplog, logging.INFO)
    assert line.endswith(f"style.safetensors: {count} of {count} keys applied ({FAMILIES[layout]}){ignored}")
    assert not messages(caplog, logging.WARNING)


def test_the_stock_node_says_how_many_keys_were_applied(loras, model, caplog):
    path = saved(loras, "kohya", layouts.make_lora(weights_of(model)))
    with caplog.at_level(logging.INFO):
        stock(model, path.name)
    assert messages(caplog, logging.INFO) == ["SANA: 48 keys of a LoRA applied, to 16 layers"]


def test_a_lora_that_is_partly_applied_is_a_warning_with_the_first_key_left_over(loras, model, caplog):
    lora = layouts.make_lora(weights_of(model))
    deeper = {layer.replace("blocks.1", "blocks.59"): low for layer, low in lora.items()}
    path = saved(loras, "diffusers", deeper)
    own(model, path)
    (line,) = messages(caplog, logging.WARNING)
    assert re.search(
        r"style.safetensors: 24 of 32 keys applied \(diffusers LoRA\); left over: "
        r"transformer\.transformer_blocks\.59\.attn2\.to_k\.lora_A\.weight "
        r"\(trained on 60 blocks or more, this model has 2\)$",
        line,
    )


def test_an_incomplete_adapter_is_left_over_and_the_rest_applied(loras, model, caplog):
    tensors = LAYOUTS["kohya"](layouts.make_lora(weights_of(model), [TO_Q, TO_OUT]))
    del tensors["lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight"]
    save_file(tensors, loras / "style.safetensors")
    assert list(own(model, loras / "style.safetensors").patches) == [f"diffusion_model.{TO_OUT}.weight"]
    (line,) = messages(caplog, logging.WARNING)
    assert "3 of 5 keys applied (kohya LoRA); left over: lora_unet_transformer_blocks_0_attn1_to_q.alpha" in line


def test_an_adapter_that_does_not_fit_its_layer_is_left_over(loras, model, caplog):
    lora = layouts.make_lora(weights_of(model), [TO_OUT])
    lora[DEPTHWISE] = layouts.Low(torch.ones(4, 300, 3, 3), torch.ones(320, 4, 1, 1))
    path = saved(loras, "diffusers", lora)
    assert (
        list(own(model, path).patches) == list(stock(model, path.name).patches) == [f"diffusion_model.{TO_OUT}.weight"]
    )
    ours, theirs = messages(caplog, logging.WARNING)
    assert f"2 of 4 keys applied (diffusers LoRA); left over: transformer.{DEPTHWISE}.lora_A.weight" in ours
    assert f"1 of 2 layers of a LoRA are left over: it changes {DEPTHWISE} by 320 x 2700 values" in theirs


@pytest.mark.parametrize(
    ("part", "shape"),
    [("lora_down.weight", (5, 64)), ("lora_up.weight", (65, 4)), ("dora_scale", (63, 1)), ("dora_scale", (1, 63))],
)
def test_factors_that_do_not_belong_together_are_left_over(loras, model, caplog, part, shape):
    tensors = LAYOUTS["kohya"](layouts.make_lora(weights_of(model), [TO_Q, TO_OUT]))
    tensors[f"lora_unet_transformer_blocks_0_attn1_to_q.{part}"] = torch.ones(shape)
    save_file(tensors, loras / "style.safetensors")
    assert list(own(model, loras / "style.safetensors").patches) == [f"diffusion_model.{TO_OUT}.weight"]
    (line,) = messages(caplog, logging.WARNING)
    assert (
        f"3 of {len(tensors)} keys applied" in line and "left over: lora_unet_transformer_blocks_0_attn1_to_q." in line
    )


def of_width(width: int) -> dict[str, torch.Tensor]:
    shapes = {layer: torch.empty(width, width) for layer in (TO_Q, TO_OUT)}
    return LAYOUTS["diffusers"](layouts.make_lora(shapes, [TO_Q, TO_OUT]))


@pytest.mark.parametrize(("width", "hint"), [(1152, r" \(0\.6B, by its width\)"), (96, "")])
def test_a_lora_of_another_size_is_refused(loras, model, width, hint):
    save_file(of_width(width), loras / "style.safetensors")
    told = rf"it changes transformer_blocks.0.attn1.to_\S+ by {width} x {width} values where this model has 64 x 64"
    with pytest.raises(
        ValueError, match=rf"style.safetensors \(diffusers LoRA\) is for another size of SANA{hint}: {told}"
    ):
        own(model, loras / "style.safetensors")
    with pytest.raises(ValueError, match=rf"for another size of SANA: it changes .* by {width} x {width} values"):
        stock(model, "style.safetensors")
    assert not model.patches


FOREIGN = {
    "Stable Diffusion or SDXL": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
    "Flux or a model like it": "transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight",
    "Stable Diffusion 3 or a model like it": "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight",
    "PixArt or a model like it": "transformer.transformer_blocks.0.ff.net.0.proj.lora_A.weight",
    "SANA-Video": "transformer.transformer_blocks.0.ff.conv_temp.lora_A.weight",
    "another model": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
}


@pytest.mark.parametrize("other", FOREIGN)
def test_a_lora_for_another_model_is_refused(loras, model, other):
    """Also where some of its layers have the names and widths of ours, as PixArt's and SANA-Video's attention has."""
    tensors = LAYOUTS["diffusers"](layouts.make_lora(weights_of(model), [TO_Q]))
    key = FOREIGN[other]
    tensors |= {
        key: torch.ones(4, 64),
        key.replace("lora_A", "lora_B").replace("lora_down", "lora_up"): torch.ones(64, 4),
    }
    save_file(tensors, loras / "style.safetensors")
    with pytest.raises(
        ValueError, match=rf"style.safetensors is a LoRA for {other}, not for SANA \(it has .*use it with"
    ):
        own(model, loras / "style.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_stock_node_refuses_a_lora_whose_training_failed(loras, model, value):
    tensors = LAYOUTS["diffusers"](layouts.make_lora(weights_of(model), [TO_Q]))
    tensors[f"transformer.{TO_Q}.lora_B.weight"][1, 2] = value
    save_file(tensors, loras / "style.safetensors")
    with pytest.raises(ValueError, match=rf"NaN or infinity in what it adds to {re.escape(TO_Q)}, so its training"):
        stock(model, "style.safetensors")


@pytest.mark.parametrize("load", ["own", "stock"])
@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(loras, model, load, strength):
    path = saved(loras, "diffusers", layouts.make_lora(weights_of(model)))
    with pytest.raises(ValueError, match="has strength (nan|inf), which is no number: set it to 1"):
        own(model, path, strength) if load == "own" else stock(model, path.name, strength)


@pytest.mark.parametrize(
    ("down", "up"),
    [((4, 320, 3, 3), (1, 2, 1, 1)), ((3, 320, 3, 3), (320, 1, 1, 1)), ((4, 320, 3, 3), (1, 4, 3, 3)),
     ((0, 320, 3, 3), (1, 0, 1, 1))],
    ids=["ranks differ", "no share for each", "kernel above", "rank 0"],
)  # fmt: skip
def test_factors_that_do_not_fit_each_other_are_no_branch(model, down, up):
    adapter = LoRAAdapter(set(), (torch.zeros(up), torch.zeros(down), None, None, None, None))
    assert find_depthwise_lora(adapter, weights_of(model)[DEPTHWISE], 1.0) is None


@pytest.mark.parametrize(
    "config", [{"lora_alpha": [1]}, {"lora_alpha": float("nan")}, {"alpha_pattern": 5}, {"alpha_pattern": {"(": 1}}],
    ids=str,
)  # fmt: skip
def test_a_header_with_damaged_alphas_is_told(loras, model, config):
    layouts.save_with_header(loras / "style.safetensors", layouts.make_lora(weights_of(model), [TO_Q]), **config)
    for read in (lambda: own(model, loras / "style.safetensors"), lambda: stock(model, "style.safetensors")):
        with pytest.raises(ValueError, match="lora_adapter_metadata of .* is damaged: save (it|the LoRA) again"):
            read()


def hooked(model, patches: dict):
    return model.clone().add_hook_patches(comfy.hooks.WeightHook(), patches)


def test_a_hook_lora_is_checked_as_others(model, caplog):
    nan = LoRAAdapter(set(), (torch.full((64, 2), torch.nan), torch.ones(2, 64), None, None, None, None))
    with pytest.raises(ValueError, match="NaN or infinity in what it adds to"):
        hooked(model, {f"diffusion_model.{TO_Q}.weight": nan})
    wide = LoRAAdapter(set(), (torch.ones(96, 2), torch.ones(2, 96), None, None, None, None))
    with pytest.raises(ValueError, match="for another size of SANA"):
        hooked(model, {f"diffusion_model.{TO_Q}.weight": wide})
    low = dense_pair("peft")
    beside = LoRAAdapter(set(), (low.up, low.down, None, None, None, None))
    hooked(model, {f"diffusion_model.{DEPTHWISE}.weight": beside})
    assert "in a way that no weight can hold, which hooks leave out" in caplog.text


@pytest.mark.parametrize("use", ["merge", "save"])
def test_what_merges_and_saved_models_leave_out_is_said(loras, model, caplog, tmp_path, monkeypatch, use):
    layouts.save_with_header(loras / "style.safetensors", {DEPTHWISE: dense_pair("peft")}, lora_alpha=160.0)
    changed = own(model, loras / "style.safetensors")
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    with torch.inference_mode():
        ModelMergeSimple().merge(model, changed, 0.5) if use == "merge" else ModelSave().save(changed, "saved")
    assert f"is no part of {'merges' if use == 'merge' else 'saved models'}" in caplog.text


def test_models_of_different_kinds_are_not_merged():
    sana, sprint = (bench.model(family) for family in bench.FAMILIES)
    with pytest.raises(ValueError, match="cannot be merged: .* merge models of the same kind and size"):
        ModelMergeSimple().merge(sana, sprint, 0.5)


def test_none_of_our_own_layers_is_taken_for_another_models(model):
    lora = layouts.make_lora({name: weight for name, weight in weights_of(model).items() if weight.ndim > 1}, [
        name for name, weight in weights_of(model).items() if weight.ndim > 1])  # fmt: skip
    for layout in LAYOUTS:
        assert find_foreign(sort_keys(LAYOUTS[layout](lora))) is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"transformer.layers.7.mix.lora_A.weight": (4, 64), "transformer.layers.7.mix.lora_B.weight": (64, 4)},
         r"None of the 2 keys of .*safetensors \(diffusers LoRA, such as transformer.layers.7.mix.*diffusers layout"),
        ({f"transformer.{TO_Q}.oft_R.weight": (4, 64)}, r"of a kind that is not supported \(OneTrainer OFT\)"),
        ({"text_encoder.layers.0.mlp.up_proj.lora_down.weight": (4, 64)}, "trains the text encoder alone .1 keys"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3), "time_embedding.linear_1.weight": (4, 4)},
         "style.safetensors is no LoRA but a Stable Diffusion model"),
    ],
    ids=["unknown", "oft", "text encoder", "no LoRA"],
)  # fmt: skip
def test_a_file_of_which_nothing_applies_is_refused_with_what_it_is(loras, model, tensors, message):
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, loras / "style.safetensors")
    with pytest.raises(ValueError, match=message):
        own(model, loras / "style.safetensors")


def test_a_lora_with_nan_is_refused(loras, model):
    lora = layouts.make_lora(weights_of(model), [TO_Q])
    lora[TO_Q].up[3, 2] = float("nan")
    path = saved(loras, "diffusers", lora)
    with pytest.raises(
        ValueError, match=rf"style.safetensors holds NaN or infinity in transformer.{TO_Q}.lora_B.weight"
    ):
        own(model, path)


def test_our_node_refuses_a_model_of_another_family(loras, model):
    path = saved(loras, "diffusers", layouts.make_lora(weights_of(model), [TO_Q]))
    other = SimpleNamespace(model=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="SANA LoRA Loader got a Linear model: connect the model of SANA Model Loader"):
        own(other, path)


def test_the_stock_node_names_our_node_for_a_dora_of_peft(loras, model):
    lora = layouts.make_lora(weights_of(model), [TO_Q])
    layouts.save_with_header(loras / "style.safetensors", lora, use_dora=True)
    with pytest.raises(
        ValueError, match="is a DoRA, whose .* the stock nodes do not read: load it with SANA LoRA Loader"
    ):
        stock(model, "style.safetensors")


def test_merge_nodes_still_patch_the_model(model):
    """They hand over lists of patches, which the checks of LoRAs let pass."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    other = bench.fresh_model("sana")
    with torch.no_grad():
        other.model.diffusion_model.get_submodule(TO_Q).weight.mul_(3.0)
    merged = bench.call(ModelMergeSimple, other, model, 0.5)[0]
    assert_weight(merged, TO_Q, weights_of(model)[TO_Q].double() * 2.0)


# The reference


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd")
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("alpha", [4, 12])
def test_the_velocity_equals_that_of_diffusers_with_the_same_file(loras, dora, alpha):
    """A file written by diffusers and peft themselves, read back by both."""
    import diffusers
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point", "caption_projection.linear_1",
               "patch_embed.proj", "time_embed.linear", "timestep_embedder.linear_2", "proj_out"]  # fmt: skip
    # A rank that the groups divide is all that PEFT allows for the depthwise convolution, and its DoRA cannot do it.
    ranks = {} if dora else {"conv_depth": 320}
    trained = tiny.transformer()
    trained.add_adapter(
        LoraConfig(r=4, lora_alpha=alpha, rank_pattern=ranks, use_dora=dora, target_modules=targets + list(ranks))
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
    diffusers.SanaPipeline.save_lora_weights(
        loras, get_peft_model_state_dict(trained), **_collate_lora_metadata({"transformer": trained})
    )

    reference = tiny.transformer()
    pipeline = diffusers.SanaPipeline(None, None, None, reference, diffusers.DPMSolverMultistepScheduler())
    x, context = randn(2, 32, 4, 4, seed=1) * 5, randn(2, 9, 64, seed=2) * 5
    timesteps, mask = torch.tensor([900.0, 400.0]), torch.ones(2, 9)

    def velocity():
        with torch.no_grad():
            return reference(x, context, timesteps, encoder_attention_mask=mask, return_dict=False)[0]

    plain = velocity()
    pipeline.load_lora_weights(loras, weight_name="pytorch_lora_weights.safetensors")
    expected = velocity()
    assert bench.relative(expected, plain) > 0.1
    changed = own(bench.fresh_model("sana", dtype=torch.float32), loras / "pytorch_lora_weights.safetensors")
    changed.patch_model(torch.device("cpu"))
    with torch.no_grad():
        found = changed.model.diffusion_model(
            x,
            timesteps,
            context=context,
            attention_mask=mask,
            transformer_options=changed.model_options["transformer_options"],
        )
    changed.unpatch_model()
    assert bench.relative(found, expected) < 1e-5


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "LoHa", "LoKr", "LoKr full"])
def test_a_folder_written_by_peft_gives_the_weights_that_peft_merges(loras, model, kind):
    import peft

    targets = ["to_q", "to_out.0", "conv_inverted", "conv_point", "proj_out"]
    config = {
        "LoRA": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=targets),
        "DoRA": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=targets),
        "LoHa": lambda: peft.LoHaConfig(r=4, alpha=6, alpha_pattern={"to_q": 10}, target_modules=targets),
        "LoKr": lambda: peft.LoKrConfig(r=2, alpha=6, decompose_both=True, target_modules=targets),
        "LoKr full": lambda: peft.LoKrConfig(r=32, alpha=6, target_modules=targets),
    }[kind]()
    trained = peft.get_peft_model(tiny.transformer(), config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.requires_grad:
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
    trained.save_pretrained(loras)
    changed = own(model, loras / "adapter_model.safetensors")
    merged = trained.merge_and_unload().state_dict()
    assert len(changed.patches) == 13
    for key in changed.patches:
        layer = key.removeprefix("diffusion_model.").removesuffix(".weight")
        assert_weight(changed, layer, merged[f"{layer}.weight"].double())


def test_a_lora_trained_with_the_stock_nodes_loads_with_ours(loras):
    """The layout of the host's training node, here a file made as it makes it."""
    model = bench.model("sana")
    lora = layouts.make_lora(weights_of(model))
    tensors = LAYOUTS["comfy"](lora)
    theirs = bench.call(LoraModelLoader, model, dict(tensors), 0.7)[0]
    save_file(tensors, loras / "style.safetensors")
    ours = own(model, loras / "style.safetensors", 0.7)
    assert all(torch.equal(patched(ours, layer), patched(theirs, layer)) for layer in LAYERS)
