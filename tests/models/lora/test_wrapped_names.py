"""LoRA files of wrapped models, GLoRA, and files that lack a factor: applied to the last key, or said why not."""

import logging

import comfy.lora
import pytest
import safetensors.torch
import torch
from sana_native.models.lora.loader import load_lora
from sana_native.tests.support import workbench as bench

BLOCK = "transformer_blocks.{}.attn1.to_{}"
LAYERS = [BLOCK.format(block, part) for block in (0, 1) for part in "qkv"]
INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
IN_FRONT = ("ema.", "ema_model.", "unet.", "ema_model.module.", "base_model.model._orig_mod.", "transformer._orig_mod.")


@pytest.fixture(scope="module")
def model():
    return bench.model("sana")


@pytest.fixture(scope="module")
def lora(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for layer in LAYERS:
        rows, columns = model.model.diffusion_model.get_submodule(layer).weight.shape
        made[f"{layer}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
        made[f"{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=generator)
    return made


def applied(model, path, tensors: dict, caplog) -> dict[str, torch.Tensor]:
    """Weights with the LoRA; every key is applied, as the log says."""
    safetensors.torch.save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        clone = load_lora(model, str(path), 1.0)
    assert f"{len(tensors)} of {len(tensors)} keys applied" in caplog.text
    return {layer: weight_of(clone, layer) for layer in LAYERS}


def weight_of(patcher, layer: str) -> torch.Tensor:
    key = f"diffusion_model.{layer}.weight"
    weight = patcher.model.get_submodule(f"diffusion_model.{layer}").weight.detach().float().clone()
    return comfy.lora.calculate_weight(patcher.patches[key], weight, key)


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("place", [2, 3, 4])
def test_a_wrapper_inside_the_keys_is_not_read(name, place, model, lora, tmp_path, caplog):
    def wrap(key: str) -> str:
        parts = key.split(".")
        return ".".join([*parts[:place], name, *parts[place:]])

    plain = applied(model, tmp_path / "x.safetensors", lora, caplog)
    wrapped = {wrap(key): tensor for key, tensor in lora.items()}
    assert_same(applied(model, tmp_path / "x.safetensors", wrapped, caplog), plain)


@pytest.mark.parametrize("prefix", IN_FRONT)
def test_a_wrapper_in_front_of_the_keys_is_not_read(prefix, model, lora, tmp_path, caplog):
    plain = applied(model, tmp_path / "x.safetensors", lora, caplog)
    wrapped = {prefix + key: tensor for key, tensor in lora.items()}
    assert_same(applied(model, tmp_path / "x.safetensors", wrapped, caplog), plain)


def test_a_wrapper_with_underscores_for_dots_is_not_read(model, lora, tmp_path, caplog):
    def wrap(key: str) -> str:
        layer, _, half = key.rpartition(".lora_")
        layer = layer.replace("transformer_blocks.", "_orig_mod.transformer_blocks.").replace(
            ".attn1", "._orig_mod.attn1"
        )
        return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if half[0] == 'A' else 'up'}.weight"

    plain = applied(model, tmp_path / "x.safetensors", lora, caplog)
    wrapped = {wrap(key): tensor for key, tensor in lora.items()}
    assert_same(applied(model, tmp_path / "x.safetensors", wrapped, caplog), plain)


def glora(model, old: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = {}
    for layer in LAYERS:
        rows, columns = model.model.diffusion_model.get_submodule(layer).weight.shape
        shapes = {"a1": (columns, 4), "a2": (4, columns), "b1": (rows, 4), "b2": (4, columns)}
        if old:
            shapes = {"a1": (4, columns), "a2": (columns, 4), "b1": (4, columns), "b2": (rows, 4)}
        for part, shape in shapes.items():
            made[f"transformer.{layer}.{part}.weight"] = torch.randn(shape, generator=generator) / 10
        made[f"transformer.{layer}.alpha"] = torch.tensor(2.0)
    return made


@pytest.mark.parametrize("old", [False, True], ids=["present", "old"])
def test_glora_is_applied(old, model, tmp_path, caplog):
    tensors = glora(model, old)
    found = applied(model, tmp_path / "x.safetensors", tensors, caplog)
    assert "GLoRA" in caplog.text and found.keys() == set(LAYERS)
    for layer, weight in found.items():
        own = model.model.diffusion_model.get_submodule(layer).weight.detach().double()
        a1, a2, b1, b2 = (tensors[f"transformer.{layer}.{part}.weight"].double() for part in ("a1", "a2", "b1", "b2"))
        change = own @ a2 @ a1 + b2 @ b1 if old else own @ a1 @ a2 + b1 @ b2
        torch.testing.assert_close(weight.double(), own + change * 2 / 4, rtol=1e-5, atol=1e-5)


def test_glora_of_another_size_is_refused(model, tmp_path):
    tensors = {key: tensor.repeat(2, 2) if tensor.ndim else tensor for key, tensor in glora(model, False).items()}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="x.safetensors .* is for another size of SANA: it changes .* use it with the"):
        load_lora(model, str(tmp_path / "x.safetensors"), 1.0)


def test_a_file_with_one_factor_alone_is_refused(model, lora, tmp_path):
    halves = {key: tensor for key, tensor in lora.items() if "lora_A" in key}
    safetensors.torch.save_file(halves, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError,
        match=r"x.safetensors \(bare names LoRA\) has transformer_blocks.0.attn1.to_\w.lora_A.weight without its "
        r"counterpart, as 6 of its keys have none: save it again from the trainer, or download it again\.$",
    ):
        load_lora(model, str(tmp_path / "x.safetensors"), 1.0)


def test_a_layer_with_one_factor_alone_is_named(model, lora, tmp_path, caplog):
    left = f"{LAYERS[0]}.lora_A.weight"
    kept = {key: tensor for key, tensor in lora.items() if key != f"{LAYERS[0]}.lora_B.weight"}
    safetensors.torch.save_file(kept, tmp_path / "x.safetensors")
    load_lora(model, str(tmp_path / "x.safetensors"), 1.0)
    assert f"10 of 11 keys applied (bare names LoRA); left over: {left} (without its counterpart)" in caplog.text
