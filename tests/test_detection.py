"""Configuration from keys and shapes: every released size, what only names and config.json tell, and refusals."""

import dataclasses

import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ldm.pixart.pixartms
import comfy.ops
import diffusers
import pytest
import safetensors.torch
import torch
import transformers
from sana_native.models import convert, loader
from sana_native.models.config import DCAEConfig, DCAEHalfConfig, SanaConfig
from sana_native.models.dc_ae import AutoencoderDC
from sana_native.models.model_detection import (
    DC_AE_KEYS,
    SANA_KEYS,
    detect_dc_ae,
    detect_gemma2,
    detect_sana,
    is_dc_ae,
    is_gemma2,
    is_sana,
)
from sana_native.models.sana import Sana
from sana_native.tests import layouts, tiny

SMALL, MEDIUM = (
    {"hidden_size": 1152, "num_cross_attention_heads": 16},
    {"hidden_size": 2240, "num_cross_attention_heads": 20},
)
SPRINT = {"qk_norm": True, "guidance_embeds": True}
# The released models: what they differ in, parameters, tensors in diffusers' layout, tensors of a block in NVIDIA's.
RELEASED = {
    "SANA 0.6B": (SMALL | {"depth": 28}, 591_747_872, 548, 15),
    "SANA 1.6B": (MEDIUM | {"depth": 20}, 1_604_462_752, 396, 15),
    "SANA-1.5 1.6B": (MEDIUM | {"depth": 20, "qk_norm": True}, 1_604_641_952, 476, 19),
    "SANA-1.5 4.8B": (MEDIUM | {"depth": 60, "qk_norm": True}, 4_721_825_952, 1396, 19),
    "SANA-Sprint 0.6B": (SMALL | {"depth": 28} | SPRINT, 593_501_216, 664, 19),
    "SANA-Sprint 1.6B": (MEDIUM | {"depth": 20} | SPRINT, 1_610_237_472, 480, 19),
}
DC_AE_HALF = {
    "block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "widths": (128, 256, 512, 512, 1024, 1024),
    "kernel_sizes": ((), (), (), (5,), (5,), (5,)),
}
DC_AE = DCAEConfig(
    image_channels=3,
    latent_channels=32,
    attention_head_dim=32,
    scaling_factor=0.41407,
    encoder=DCAEHalfConfig(layers=(2, 2, 2, 3, 3, 3), **DC_AE_HALF),
    decoder=DCAEHalfConfig(layers=(3,) * 6, **DC_AE_HALF),
)


def released_config(name: str) -> SanaConfig:
    common = {
        "caption_channels": 2304,
        "in_channels": 32,
        "out_channels": 32,
        "qk_norm": False,
        "guidance_embeds": False,
        "guidance_embeds_scale": 0.1,
        "interpolation_scale": None,
        "sample_size": 32,
        "shift": 3.0,
        "clamp_attention": None,
    }
    own = RELEASED[name][0]
    return SanaConfig(**common | {"mlp_hidden_size": own["hidden_size"] * 5 // 2} | own)


def meta_sana(name: str) -> dict[str, torch.Tensor]:
    return Sana(released_config(name), device="meta", operations=comfy.ops.disable_weight_init).state_dict()


def meta_dc_ae() -> dict[str, torch.Tensor]:
    return AutoencoderDC(DC_AE, device="meta", operations=comfy.ops.disable_weight_init).state_dict()


@pytest.mark.parametrize("name", RELEASED)
def test_released_size_has_its_exact_parameters_and_tensors(name):
    _, parameters, tensors, _ = RELEASED[name]
    state_dict = meta_sana(name)
    assert (sum(t.numel() for t in state_dict.values()), len(state_dict)) == (parameters, tensors)


@pytest.mark.parametrize("name", RELEASED)
def test_released_size_has_the_keys_and_shapes_of_diffusers(name):
    config = released_config(name)
    with torch.device("meta"):
        reference = diffusers.SanaTransformer2DModel(
            num_attention_heads=config.hidden_size // 32,
            num_layers=config.depth,
            num_cross_attention_heads=config.num_cross_attention_heads,
            cross_attention_head_dim=config.hidden_size // config.num_cross_attention_heads,
            cross_attention_dim=config.hidden_size,
            guidance_embeds=config.guidance_embeds,
            qk_norm="rms_norm_across_heads" if config.qk_norm else None,
        )
    assert shapes(meta_sana(name)) == shapes(reference.state_dict())


def shapes(state_dict) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state_dict.items()}


@pytest.mark.parametrize("name", RELEASED)
def test_released_size_is_recognised_from_diffusers_layout(name):
    state_dict = meta_sana(name)
    assert is_sana(state_dict) and detect_sana(state_dict) == released_config(name)


@pytest.mark.parametrize("name", RELEASED)
def test_released_size_is_recognised_from_nvidias_layout(name):
    state_dict = meta_sana(name)
    native = layouts.nvidia_sana(state_dict)
    assert len([key for key in native if key.startswith("blocks.0.")]) == RELEASED[name][3]
    assert convert.is_nvidia_sana(native) and not convert.is_nvidia_sana(state_dict)
    converted = convert.convert_nvidia_sana(native)
    assert shapes(converted) == shapes(state_dict)
    assert detect_sana(converted, positions=native["pos_embed"].shape[1]) == released_config(name)


def test_dc_ae_has_its_exact_parameters_and_tensors_and_the_keys_of_diffusers():
    state_dict = meta_dc_ae()
    assert (sum(t.numel() for t in state_dict.values()), len(state_dict)) == (312_250_275, 375)
    with torch.device("meta"):
        reference = diffusers.AutoencoderDC(
            encoder_block_types=DC_AE_HALF["block_types"],
            decoder_block_types=DC_AE_HALF["block_types"],
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
        )
    assert shapes(state_dict) == shapes(reference.state_dict())


def test_dc_ae_is_recognised_in_both_layouts():
    state_dict = meta_dc_ae()
    native = layouts.original_dc_ae(state_dict)
    assert convert.is_original_dc_ae(native) and not convert.is_original_dc_ae(state_dict)
    converted = convert.convert_original_dc_ae(native)
    assert shapes(converted) == shapes(state_dict)
    for layout in (state_dict, converted):
        assert is_dc_ae(layout) and detect_dc_ae(layout) == DC_AE


def test_gemma_2_2b_is_recognised_with_its_real_widths():
    config = transformers.Gemma2Config(
        hidden_size=2304, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4
    )
    with torch.device("meta"):
        state_dict = {f"model.{key}": tensor for key, tensor in transformers.Gemma2Model(config).state_dict().items()}
    assert is_gemma2(state_dict) and detect_gemma2(state_dict) == {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }


# File name, then sample_size, interpolation_scale, shift, clamp_attention.
NAMED = {
    "Sana_600M_512px_MultiLing.pth": (16, None, 3.0, True),
    "Sana_600M_1024px_MultiLing.pth": (32, None, 4.0, True),
    "Sana_1600M_512px.pth": (16, None, 3.0, True),
    "Sana_1600M_512px_MultiLing.pth": (16, None, 3.0, True),
    "Sana_1600M_1024px.pth": (32, None, 3.0, True),
    "Sana_1600M_1024px_MultiLing.pth": (32, None, 3.0, True),
    "Sana_1600M_1024px_diffusers/transformer/diffusion_pytorch_model.fp16.safetensors": (32, None, 3.0, True),
    "Sana_1600M_1024px_diffusers/transformer/diffusion_pytorch_model.bf16.safetensors": (32, None, 3.0, True),
    "Sana_1600M_1024px_BF16.pth": (32, None, 3.0, None),
    "Sana_1600M_1024px_BF16_diffusers/transformer/diffusion_pytorch_model.safetensors": (32, None, 3.0, None),
    "Sana_1600M_2Kpx_BF16.pth": (64, 1.0, 3.0, None),
    "Sana_1600M_4Kpx_BF16.pth": (128, 2.0, 6.0, None),
    "SANA1.5_1.6B_1024px.pth": (32, None, 3.0, None),
    "my_own_model.safetensors": (32, None, 3.0, None),
}


@pytest.mark.parametrize("file", NAMED)
def test_file_name_tells_what_no_tensor_does(file):
    config = detect_sana(meta_sana("SANA 1.6B"), file)
    assert (config.sample_size, config.interpolation_scale, config.shift, config.clamp_attention) == NAMED[file]


def test_checkpoints_with_qk_norm_were_never_trained_in_float16_whatever_their_name():
    assert detect_sana(meta_sana("SANA-1.5 1.6B"), "Sana_1600M_1024px.pth").clamp_attention is None


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


def on_meta(build) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build().state_dict()


def of_host(build, **config) -> dict[str, torch.Tensor]:
    return build(**config, device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init).state_dict()


SD_UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
           "channel_mult": [1, 2], "num_heads": 4, "use_spatial_transformer": True, "transformer_depth": [1, 1],
           "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1], "context_dim": 64}  # fmt: skip
FLUX = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000,
        "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}  # fmt: skip
EMBEDDER = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 64}}
# What it is called in the message (and whose layout) -> keys of the real class with few layers.
FOREIGN = {
    "a PixArt model (host)": lambda: of_host(comfy.ldm.pixart.pixartms.PixArtMS, depth=1),
    "a PixArt model (diffusers)": lambda: on_meta(lambda: diffusers.PixArtTransformer2DModel(num_layers=1)),
    "a Flux-like model (host)": lambda: of_host(comfy.ldm.flux.model.Flux, **FLUX),
    "a Flux-like model (diffusers)": lambda: on_meta(
        lambda: diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    ),
    "a Stable Diffusion 3 model (host)": lambda: of_host(
        comfy.ldm.modules.diffusionmodules.mmdit.MMDiT, depth=1, adm_in_channels=64, context_embedder_config=EMBEDDER
    ),
    "a Stable Diffusion 3 model (diffusers)": lambda: on_meta(lambda: diffusers.SD3Transformer2DModel(num_layers=1)),
    "a Stable Diffusion model (host)": lambda: of_host(
        comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel, **SD_UNET
    ),
    "a Stable Diffusion model (diffusers)": lambda: on_meta(diffusers.UNet2DConditionModel),
    "a Stable Diffusion ControlNet": lambda: on_meta(diffusers.ControlNetModel),
    "another family's VAE": lambda: on_meta(diffusers.AutoencoderKL),
    "a CLIP text encoder": lambda: on_meta(
        lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(num_hidden_layers=1))
    ),
    "a T5 text encoder": lambda: on_meta(lambda: transformers.T5EncoderModel(transformers.T5Config(num_layers=1))),
    "a Gemma-3 text encoder": lambda: on_meta(
        lambda: transformers.Gemma3TextModel(transformers.Gemma3TextConfig(num_hidden_layers=1))
    ),
    "another language model": lambda: on_meta(
        lambda: transformers.LlamaModel(transformers.LlamaConfig(num_hidden_layers=1))
    ),
    "a SANA ControlNet, which this version does not load": lambda: on_meta(
        lambda: diffusers.SanaControlNetModel(num_layers=1)
    ),
    "a SANA-Video transformer, which this version does not load": lambda: on_meta(
        lambda: diffusers.SanaVideoTransformer3DModel(num_layers=1)
    ),
}
LOADERS = {
    "a SANA transformer": loader.load_sana,
    "a Gemma-2 text encoder": loader.load_gemma,
    "a DC-AE autoencoder": loader.load_dc_ae,
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
        with pytest.raises(ValueError, match=rf"foreign.safetensors is {name}.*, not {expected}\.$"):
            load(path)


def lora_keys():
    return [f"transformer.transformer_blocks.0.attn1.to_{part}.lora_{half}.weight" for part in "qkv" for half in "AB"]


@pytest.mark.parametrize("expected", LOADERS)
def test_every_loader_names_a_lora_a_merged_controlnet_and_an_unknown_file(expected, tmp_path):
    merged = [*layouts.nvidia_sana(tiny.transformer().state_dict()), "controlnet.0.before_proj.weight"]
    for keys, name in (
        (lora_keys(), r"a LoRA \(load it with a LoRA node\)"),
        (merged, "a SANA ControlNet merged with its base, which this version does not load"),
        (["b", "a", "c"], r"something else \(3 tensors, such as a, b\)"),
        ([], "a file without tensors"),
    ):
        with pytest.raises(ValueError, match=rf"x.safetensors is {name}, not {expected}\.$"):
            LOADERS[expected](save(tmp_path / "x.safetensors", keys))


def test_each_loader_names_the_two_other_parts_of_sana_and_their_loaders(tmp_path):
    gemma = on_meta(lambda: tiny.gemma(600))
    parts = {
        "a SANA transformer": (tiny.transformer().state_dict(), "SANA Model Loader"),
        "a Gemma-2 text encoder": ({f"model.{key}": None for key in gemma}, "SANA Gemma Loader"),
        "a DC-AE autoencoder": (tiny.dc_ae().state_dict(), "SANA DC-AE Loader"),
    }
    for expected, load in LOADERS.items():
        for found, (state_dict, right_loader) in parts.items():
            if found != expected:
                with pytest.raises(ValueError, match=rf"is {found} \(use {right_loader}\), not {expected}\.$"):
                    load(save(tmp_path / "part.safetensors", state_dict))


def test_parts_in_their_authors_layouts_are_named_too(tmp_path):
    native = layouts.nvidia_sana(tiny.transformer().state_dict())
    with pytest.raises(ValueError, match="is a SANA transformer .*, not a DC-AE autoencoder"):
        loader.load_dc_ae(save(tmp_path / "x.safetensors", native))
    with pytest.raises(ValueError, match="is a DC-AE autoencoder .*, not a SANA transformer"):
        loader.load_sana(save(tmp_path / "x.safetensors", layouts.original_dc_ae(tiny.dc_ae().state_dict())))


def test_dc_ae_of_other_models_is_refused_by_name(tmp_path):
    state_dict = on_meta(lambda: diffusers.AutoencoderDC(encoder_layers_per_block=(0, 4, 8, 2, 2, 2)))
    with pytest.raises(
        ValueError, match=r"is a DC-AE for other models \(SANA's are dc-ae-f32c32-sana-1.0 and 1.1\), not"
    ):
        loader.load_dc_ae(save(tmp_path / "x.safetensors", state_dict))


def test_configuration_is_compared_whole():
    base = released_config("SANA 1.6B")
    assert all(base != dataclasses.replace(base, **{field.name: -1}) for field in dataclasses.fields(base))
