"""Configuration from tensors, config.json and names, in this order of trust, and files that are not SANA's."""

import dataclasses
from functools import partial

import comfy.ldm.pixart.pixartms
import diffusers
import pytest
import safetensors.torch
import torch
from sana_native.models.dc_ae.detection import DC_AE_KEYS, is_dc_ae
from sana_native.models.registry import FAMILIES, load_model
from sana_native.models.sana.detection import SANA_KEYS, detect_sana, is_sana
from sana_native.tests.models.test_released import meta as released
from sana_native.tests.support import controlnets, layouts, pixart, tiny
from sana_native.tests.support.foreign_files import FOREIGN, of_host, on_meta


def meta_sana(name: str) -> dict[str, torch.Tensor]:
    return released("diffusers", name)


def meta_dc_ae() -> dict[str, torch.Tensor]:
    return released("diffusers", "dc-ae-f32c32-sana-1.0 and 1.1")


@pytest.mark.parametrize(
    "side, scale, shift",
    [(16, None, 3.0), (32, None, 3.0), (64, 1.0, 3.0), (128, 2.0, 6.0)],
    ids=["512", "1024", "2K", "4K"],
)
def test_length_of_the_position_table_tells_the_size_and_goes_before_the_name(side, scale, shift):
    config = detect_sana(meta_sana("SANA 1.6B"), "renamed_512px_2Kpx.pth", positions=side**2)
    assert (config.sample_size, config.interpolation_scale, config.shift) == (side, scale, shift)


def test_config_json_goes_before_position_table_and_name():
    source = {"sample_size": 128, "interpolation_scale": 2, "guidance_embeds_scale": 0.2, "num_layers": 20}
    config = detect_sana(meta_sana("SANA 1.6B"), "Sana_1600M_512px.pth", source, positions=256)
    assert (config.sample_size, config.interpolation_scale, config.guidance_embeds_scale) == (128, 2.0, 0.2)


def test_config_json_without_interpolation_scale_means_no_positional_embedding():
    config = detect_sana(meta_sana("SANA 1.6B"), source_config={"sample_size": 64})
    assert config.interpolation_scale is None


def test_flow_shift_of_the_scheduler_goes_before_all_else():
    config = detect_sana(meta_sana("SANA 1.6B"), "Sana_600M_1024px_4Kpx.pth", {"sample_size": 128, "flow_shift": 2.5})
    assert config.shift == 2.5


def test_config_json_of_another_model_is_refused():
    source = {"num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 60}
    with pytest.raises(
        ValueError,
        match=r"config.json beside a.pth describes a transformer of width 2240 and depth 60, but .* 2240 wide and 20 "
        r"deep: put",
    ):
        detect_sana(meta_sana("SANA 1.6B"), "a.pth", source)


def test_width_of_no_release_is_refused_without_config_json():
    with pytest.raises(
        ValueError, match=r"a.pth is a SANA transformer of width 64, .* no tensor tells: put its config.json beside"
    ):
        detect_sana(tiny.transformer().state_dict(), "a.pth")


@pytest.mark.parametrize("key", SANA_KEYS)
def test_transformer_without_a_key_of_the_family_is_not_detected(key):
    state_dict = meta_sana("SANA 0.6B")
    del state_dict[key]
    assert not is_sana(state_dict)


@pytest.mark.parametrize("key", DC_AE_KEYS)
def test_autoencoder_without_a_key_of_the_family_is_not_detected(key):
    state_dict = meta_dc_ae()
    del state_dict[key]
    assert not is_dc_ae(state_dict)


def test_five_dimensional_patch_convolution_is_not_an_image_transformer():
    state_dict = meta_sana("SANA 0.6B")
    state_dict["patch_embed.proj.weight"] = state_dict["patch_embed.proj.weight"][:, :, None]
    assert not is_sana(state_dict)


COMPONENTS = dict.fromkeys(family.component for family in FAMILIES)
# What a loader takes, as it says -> the loader.
LOADERS = {
    " or ".join(family.name for family in FAMILIES if family.component == component): partial(load_model, component)
    for component in COMPONENTS
}


def save(path, state_dict) -> str:
    """A file with the keys of a state dict; the tensors are of one number."""
    safetensors.torch.save_file({key: torch.zeros(1) for key in state_dict}, path)
    return str(path)


@pytest.mark.parametrize("family", FOREIGN)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."], ids=["plain", "prefixed"])
def test_every_loader_names_the_foreign_family_it_refuses(family, prefix, tmp_path):
    path = save(tmp_path / "foreign.safetensors", [prefix + key for key in FOREIGN[family]()])
    name = family.partition(" (")[0]
    for expected, load in LOADERS.items():
        with pytest.raises(
            ValueError, match=rf"foreign.safetensors is {name}.*, not {expected}(: pick another file)?\.$"
        ):
            load(path)


def lora_keys():
    return [f"transformer.transformer_blocks.0.attn1.to_{part}.lora_{half}.weight" for part in "qkv" for half in "AB"]


@pytest.mark.parametrize("expected", LOADERS)
def test_every_loader_names_a_lora_and_an_unknown_file(expected, tmp_path):
    for keys, name in (
        (lora_keys(), r"a LoRA \(load it with a LoRA node\)"),
        (["b", "a", "c"], r"something else \(3 tensors, such as a, b\)"),
        ([], "a file without tensors"),
    ):
        with pytest.raises(ValueError, match=rf"x.safetensors is {name}, not {expected}(: pick another file)?\.$"):
            LOADERS[expected](save(tmp_path / "x.safetensors", keys))


def test_each_loader_names_what_other_loaders_take(tmp_path):
    gemma = on_meta(lambda: tiny.gemma(600))
    parts = {
        "a SANA transformer": (tiny.transformer().state_dict(), "SANA Model Loader"),
        "a Lumina-Next transformer": (on_meta(tiny.lumina), "SANA Model Loader"),
        "a Gemma-2 text encoder": ({f"model.{key}": None for key in gemma}, "SANA Gemma Loader"),
        "a DC-AE autoencoder": (tiny.dc_ae().state_dict(), "SANA DC-AE Loader"),
        "a PixArt transformer": (of_host(comfy.ldm.pixart.pixartms.PixArtMS, depth=1), "SANA Model Loader"),
        "a T5 text encoder": (on_meta(pixart.t5), "SANA Gemma Loader"),
        "an AutoencoderKL": (on_meta(diffusers.AutoencoderKL), "SANA DC-AE Loader"),
        "a SANA ControlNet": (on_meta(controlnets.reference), "SANA ControlNet Loader"),
    }
    for expected, load in LOADERS.items():
        for found, (state_dict, right_loader) in parts.items():
            if found not in expected:
                with pytest.raises(ValueError, match=rf"is {found} \(use {right_loader}\), not {expected}\.$"):
                    load(save(tmp_path / "part.safetensors", state_dict))


@pytest.mark.parametrize("layout", ["alone", "merged with its base"])
def test_nvidias_controlnet_is_named_to_the_loaders_of_other_parts(layout, tmp_path):
    base, control = tiny.transformer().state_dict(), controlnets.reference().state_dict()
    content = controlnets.nvidia_branch(control) if layout == "alone" else controlnets.merged(base, control)
    path = save(tmp_path / "x.safetensors", content)
    for component in ("vae", "text_encoder"):
        with pytest.raises(ValueError, match=r"x.safetensors is a SANA ControlNet \(use SANA ControlNet Loader\), not"):
            load_model(component, path)


def test_parts_in_their_authors_layouts_are_named_too(tmp_path):
    native = layouts.nvidia_sana(tiny.transformer().state_dict())
    with pytest.raises(ValueError, match="is a SANA transformer .*, not a DC-AE autoencoder"):
        load_model("vae", save(tmp_path / "x.safetensors", native))
    with pytest.raises(ValueError, match="is a DC-AE autoencoder .*, not a SANA transformer"):
        load_model("transformer", save(tmp_path / "x.safetensors", layouts.original_dc_ae(tiny.dc_ae().state_dict())))


def test_dc_ae_of_other_models_is_refused_by_name(tmp_path):
    state_dict = on_meta(lambda: diffusers.AutoencoderDC(encoder_layers_per_block=(0, 4, 8, 2, 2, 2)))
    with pytest.raises(
        ValueError, match=r"is a DC-AE for other models \(SANA's are dc-ae-f32c32-sana-1.0 and 1.1\), not"
    ):
        load_model("vae", save(tmp_path / "x.safetensors", state_dict))


def test_configuration_is_compared_whole():
    base = detect_sana(meta_sana("SANA 1.6B"))
    assert all(base != dataclasses.replace(base, **{field.name: -1}) for field in dataclasses.fields(base))
