"""What the host's save nodes write, our loaders read back: the same tensors and the same configuration."""

import json
import shutil
from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_model_merging import CheckpointSave, CLIPSave, ModelSave, VAESave
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.sana.loader import load_sana
from sana_native.tests.support import tiny
from sana_native.tests.support.workbench import clip, folder, vae

# Variant -> transformer config and the scheduler's flow shift.
MODELS = {
    "SANA": ({}, 3.0),
    "SANA-1.5": ({"qk_norm": "rms_norm_across_heads"}, 3.0),
    "SANA-Sprint": ({"sprint": True, "guidance_embeds_scale": 0.2}, None),
    "SANA 4K": ({"sample_size": 128, "interpolation_scale": 2}, 6.0),
}


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def written(output: Path) -> Path:
    """The one file the host has written."""
    (file,) = output.rglob("*.safetensors")
    return file


def diffusers_folder(path: Path, variant: str) -> str:
    config, flow_shift = MODELS[variant]
    tiny.transformer(**config).save_pretrained(path / "transformer")
    if flow_shift is not None:
        (path / "scheduler").mkdir()
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"flow_shift": flow_shift}))
    return str(path)


def assert_equal_models(a, b) -> None:
    a, b = a.model.diffusion_model, b.model.diffusion_model
    assert a.config == b.config
    assert_equal_states(a.state_dict(), b.state_dict())


def assert_equal_states(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key])]
    assert not different


@pytest.mark.parametrize("variant", MODELS)
def test_a_saved_model_loads_with_equal_tensors_and_config(variant, output, tmp_path):
    model = load_sana(diffusers_folder(tmp_path / "model", variant))
    ModelSave().save(model, "diffusion_models/saved")
    loaded = load_sana(str(written(output)))
    assert_equal_models(loaded, model)
    assert loaded.model.model_sampling.shift == model.model.model_sampling.shift


def test_a_saved_4k_model_keeps_what_no_tensor_tells(output, tmp_path):
    ModelSave().save(load_sana(diffusers_folder(tmp_path / "model", "SANA 4K")), "diffusion_models/saved")
    config = load_sana(str(written(output))).model.diffusion_model.config
    assert (config.num_cross_attention_heads, config.sample_size, config.interpolation_scale, config.shift) == (
        4,
        128,
        2.0,
        6.0,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_loaded_in_16_bits_is_saved_in_them(dtype, output, tmp_path):
    model = load_sana(diffusers_folder(tmp_path / "model", "SANA"), {"dtype": dtype})
    ModelSave().save(model, "diffusion_models/saved")
    state_dict = safetensors.torch.load_file(written(output))
    assert {tensor.dtype for key, tensor in state_dict.items() if not key.endswith("sana_config")} == {dtype}
    assert_equal_models(load_sana(str(written(output)), {"dtype": dtype}), model)


def test_options_chosen_on_loading_are_saved(output, tmp_path):
    model = load_sana(diffusers_folder(tmp_path / "model", "SANA"), {"shift": 2.5, "clamp": True})
    ModelSave().save(model, "diffusion_models/saved")
    config = load_sana(str(written(output))).model.diffusion_model.config
    assert (config.shift, config.clamp_attention) == (2.5, True)


def test_a_saved_model_saved_again_is_the_same_file(output, tmp_path):
    ModelSave().save(load_sana(diffusers_folder(tmp_path / "model", "SANA")), "diffusion_models/saved")
    first = safetensors.torch.load_file(written(output))
    ModelSave().save(load_sana(str(written(output))), "diffusion_models/again")
    assert_equal_states(safetensors.torch.load_file(next(output.rglob("again*"))), first)


def test_clip_save_writes_one_file_with_tokenizer_that_loads_with_equal_states(output):
    CLIPSave().save(clip(), "text_encoders/saved")
    loaded = load_gemma(str(written(output)))
    assert_equal_states(loaded.cond_stage_model.state_dict(), clip().cond_stage_model.state_dict())
    assert torch.equal(
        loaded.tokenizer.state_dict()["gemma2_2b.spiece_model"], clip().tokenizer.state_dict()["gemma2_2b.spiece_model"]
    )
    a, b = (encoder.encode_from_tokens(encoder.tokenize("a cat")) for encoder in (loaded, clip()))
    assert torch.equal(a, b)


def test_the_hosts_own_clip_loader_reads_what_clip_save_wrote(output):
    CLIPSave().save(clip(), "text_encoders/saved")
    widths = {"vocab_size": 600, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    stock = comfy.sd.load_clip(
        [str(written(output))], clip_type=comfy.sd.CLIPType.PIXELDIT, model_options={"gemma2_2b_model_config": widths}
    )
    ours = clip().cond_stage_model.gemma2_2b.transformer.state_dict()
    assert_equal_states(stock.cond_stage_model.gemma2_2b.transformer.state_dict(), ours)
    assert stock.tokenize("a cat") == clip().tokenize("a cat")


def test_a_saved_autoencoder_loads_with_equal_tensors_and_config(output):
    VAESave().save(vae(), "vae/saved")
    loaded = load_dc_ae(str(written(output)))
    assert loaded.first_stage_model.config == vae().first_stage_model.config
    assert_equal_states(loaded.first_stage_model.state_dict(), vae().first_stage_model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_autoencoder_is_saved_in_the_format_it_was_loaded_in(dtype, output):
    VAESave().save(load_dc_ae(str(folder() / "sana"), {"dtype": dtype}), "vae/saved")
    assert {tensor.dtype for tensor in safetensors.torch.load_file(written(output)).values()} == {dtype}


def test_checkpoint_save_puts_all_three_in_one_file_that_every_loader_reads(output, tmp_path):
    model = load_sana(diffusers_folder(tmp_path / "model", "SANA 4K"))
    CheckpointSave().save(model, clip(), vae(), "checkpoints/saved")
    path = str(written(output))
    assert_equal_models(load_sana(path), model)
    assert_equal_states(load_gemma(path).cond_stage_model.state_dict(), clip().cond_stage_model.state_dict())
    assert_equal_states(load_dc_ae(path).first_stage_model.state_dict(), vae().first_stage_model.state_dict())


def test_a_saved_file_loads_from_any_folder_without_what_lay_beside_the_original(output, tmp_path):
    model = load_sana(diffusers_folder(tmp_path / "model", "SANA 4K"))
    ModelSave().save(model, "diffusion_models/saved")
    moved = shutil.move(written(output), tmp_path / "Sana_1600M_512px.safetensors")
    assert_equal_models(load_sana(str(moved)), model)


# With a LoRA merged, and in other formats


def patched(source, weight: str, seed: int = 4):
    """A clone whose one weight is changed, as a LoRA does."""
    shape = source.model.state_dict()[weight].shape
    change = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1
    clone = source.clone()
    assert clone.add_patches({weight: ("diff", (change,))}) == [weight]
    return clone, change


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("variant", MODELS)
def test_a_merged_lora_is_saved_as_the_model_applies_it(variant, dtype, output, tmp_path):
    model = load_sana(diffusers_folder(tmp_path / "model", variant), {"dtype": dtype})
    key = "transformer_blocks.1.ff.conv_point.weight"
    before = model.model.diffusion_model.state_dict()[key].clone()
    clone, change = patched(model, f"diffusion_model.{key}")
    ModelSave().save(clone, "diffusion_models/saved")
    clone.load(clone.load_device, full_load=True)
    loaded = load_sana(str(written(output)), {"dtype": dtype})
    assert_equal_models(loaded, clone)
    after = loaded.model.diffusion_model.state_dict()[key]
    coarse = {None: 1e-6, torch.bfloat16: 0.02, torch.float8_e4m3fn: 0.2}[dtype]  # of the rounding
    assert torch.allclose(after.float(), before.float() + change, atol=coarse, rtol=coarse)


def test_a_text_encoder_is_saved_with_its_lora_merged(output):
    source = load_gemma(str(folder() / "sana"))
    weight = "gemma2_2b.transformer.model.layers.1.mlp.up_proj.weight"
    changed = source.clone()
    changed.patcher, _ = patched(source.patcher, weight)
    CLIPSave().save(changed, "text_encoders/saved")
    loaded = load_gemma(str(written(output)))
    a, b, c = (encoder.encode_from_tokens(encoder.tokenize("a cat")) for encoder in (loaded, changed, clip()))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_narrow_text_encoder_is_saved_bit_for_bit(dtype, output):
    narrow = load_gemma(str(folder() / "sana"), {"dtype": dtype})
    CLIPSave().save(narrow, "text_encoders/saved")
    loaded = load_gemma(str(written(output)), {"dtype": dtype})
    assert_equal_states(loaded.cond_stage_model.state_dict(), narrow.cond_stage_model.state_dict())


@pytest.mark.parametrize("trained_in_float16", [True, False])
def test_how_a_model_was_trained_is_saved(trained_in_float16, output, tmp_path):
    chosen = {"trained_in_float16": trained_in_float16}
    model = load_sana(diffusers_folder(tmp_path / "model", "SANA"), chosen)
    ModelSave().save(model, "diffusion_models/saved")
    config = load_sana(str(written(output))).model.diffusion_model.config
    assert config == model.model.diffusion_model.config
    assert config.trained_in == ("float16" if trained_in_float16 else "bfloat16")
    assert config.clamp_attention is trained_in_float16
