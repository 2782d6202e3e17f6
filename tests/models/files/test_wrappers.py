"""Weights as trainers' wrappers save them: the names of the wrappers in front of keys and inside them are not read."""

import pytest
import safetensors.torch
import torch
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.files.layout import strip_prefix, unwrap
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.sana.loader import load_sana
from sana_native.tests.support import layouts, tiny

INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
IN_FRONT = ("ema.", "ema_model.", "unet.", "module._orig_mod.", "ema_model.module.", "_fsdp_wrapped_module.")


def inside(key: str, name: str, last: str = "transformer_blocks") -> str:
    """A key with a wrapper's name after the index of its block, and one before its last part."""
    parts = key.split(".")
    if parts[0] == last:
        parts.insert(2, name)
    parts.insert(-1, name)
    return ".".join(parts)


def loaded(path, state_dict: dict) -> dict[str, torch.Tensor]:
    safetensors.torch.save_file({key: tensor.clone() for key, tensor in state_dict.items()}, path)
    return load_sana(str(path)).model.diffusion_model.state_dict()


@pytest.fixture(scope="module")
def transformer() -> dict[str, torch.Tensor]:
    return tiny.transformer().state_dict()


@pytest.fixture
def path(tmp_path):
    tiny.transformer().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    return tmp_path / "model.safetensors"


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", INSIDE)
def test_a_wrapper_inside_the_keys_is_not_read(name, transformer, path):
    plain = loaded(path, transformer)
    assert_equal(loaded(path, {inside(key, name): tensor for key, tensor in transformer.items()}), plain)


@pytest.mark.parametrize("prefix", IN_FRONT)
def test_a_wrapper_in_front_of_the_keys_is_not_read(prefix, transformer, path):
    plain = loaded(path, transformer)
    assert_equal(loaded(path, {prefix + key: tensor for key, tensor in transformer.items()}), plain)


def test_nvidias_names_may_be_wrapped_too(transformer, path):
    plain = loaded(path, transformer)
    native = layouts.nvidia_sana(transformer)
    wrapped = {f"ema_model.{inside(key, '_orig_mod', 'blocks')}": tensor for key, tensor in native.items()}
    assert_equal(loaded(path, wrapped), plain)


def test_of_trained_weights_and_their_average_the_trained_are_taken(transformer, path):
    both = {f"model.{key}": tensor for key, tensor in transformer.items()}
    both |= {f"ema.{key}": torch.zeros_like(tensor) for key, tensor in transformer.items()}
    assert_equal(loaded(path, both), loaded(path, transformer))


@pytest.mark.parametrize("name", INSIDE)
def test_the_autoencoder_loads_wrapped(name, tmp_path):
    tiny.dc_ae().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    plain = load_dc_ae(str(tmp_path)).first_stage_model.state_dict()
    wrapped = {f"ema.{inside(key, name)}": tensor for key, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(wrapped, file)
    assert_equal(load_dc_ae(str(tmp_path)).first_stage_model.state_dict(), plain)


def test_the_text_encoder_loads_wrapped(tmp_path):
    tokens = tiny.tokenizer(tmp_path)
    tiny.gemma(len(tokens)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    plain = load_gemma(str(tmp_path)).cond_stage_model.state_dict()
    wrapped = {
        f"module.{inside(key, '_orig_mod')}": tensor for key, tensor in safetensors.torch.load_file(file).items()
    }
    safetensors.torch.save_file(wrapped, file)
    assert_equal(load_gemma(str(tmp_path)).cond_stage_model.state_dict(), plain)


@pytest.mark.parametrize("key", ["my_orig_mod.weight", "x._orig_module.weight", "a._orig_mod"])
def test_a_name_that_only_resembles_a_wrappers_stays(key):
    assert unwrap(key) == key and strip_prefix({key: 1}, ("ema.",)) == {key: 1}
