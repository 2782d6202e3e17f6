"""Every layout and every way of lying on disk gives the same model: authors' keys, prefixes, shards, folders."""

import json
import shutil
from pathlib import Path

import comfy.sample
import pytest
import safetensors.torch
import torch
from sana_native.models import convert
from sana_native.models.loader import load_dc_ae, load_gemma, load_sana
from sana_native.models.supported_models import config_tensor
from sana_native.tests import layouts, tiny

VARIANTS = {
    "SANA": {},
    "SANA-1.5": {"qk_norm": "rms_norm_across_heads"},
    "SANA-Sprint": {"sprint": True},
}
FLOAT32 = {"dtype": torch.float32}


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, tmp_path_factory) -> Path:
    """A diffusers folder with the transformer of one variant."""
    path = tmp_path_factory.mktemp("model") / request.param
    tiny.transformer(**VARIANTS[request.param]).save_pretrained(path / "transformer")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A diffusers folder with the plain transformer, the autoencoder and the text encoder."""
    path = tmp_path_factory.mktemp("plain")
    words = tiny.tokenizer(path / "tokenizer")
    tiny.transformer().save_pretrained(path / "transformer")
    tiny.dc_ae().save_pretrained(path / "vae")
    tiny.gemma(len(words)).save_pretrained(path / "text_encoder")
    return path


def weights_of(folder: Path, component: str = "transformer") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / component / "diffusion_pytorch_model.safetensors")


def save_pth(path: Path, state_dict: dict, config_from: Path | None) -> str:
    """NVIDIA's way of saving; config.json beside it where the width is of no release."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state_dict, "epoch": 3, "optimizer": {"lr": 1e-4}}, path)
    if config_from is not None:
        shutil.copy(config_from / "transformer" / "config.json", path.parent)
    return str(path)


def equal_states(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def sana_state(patcher) -> dict[str, torch.Tensor]:
    return patcher.model.diffusion_model.state_dict()


def latent_of(patcher, steps: int = 4) -> torch.Tensor:
    """A few steps of the host's own euler at cfg 1."""
    generator = torch.Generator().manual_seed(3)
    condition = [
        [torch.randn(1, 300, tiny.CAPTION_CHANNELS, generator=generator), {"attention_mask": torch.ones(1, 300)}]
    ]
    latent = torch.zeros(1, 32, 2, 3)
    noise = torch.randn(latent.shape, generator=generator)
    return comfy.sample.sample(
        patcher, noise, steps, 1.0, "euler", "simple", condition, condition, latent, disable_pbar=True, seed=1
    )


def test_nvidias_pth_gives_the_same_tensors_config_and_latent_as_the_diffusers_folder(folder, tmp_path):
    state_dict = layouts.nvidia_sana(weights_of(folder))
    pth = load_sana(save_pth(tmp_path / "sana.pth", state_dict, folder), FLOAT32)
    reference = load_sana(str(folder), FLOAT32)
    assert equal_states(sana_state(pth), sana_state(reference))
    assert pth.model.diffusion_model.config == reference.model.diffusion_model.config
    latent = latent_of(pth)
    assert torch.equal(latent, latent_of(reference)) and latent.std() > 0.1


def test_converted_keys_are_exactly_diffusers_and_every_source_key_is_consumed(folder):
    original = weights_of(folder)
    native = layouts.nvidia_sana(original)
    assert not set(native) & set(original) - {"scale_shift_table"}
    assert equal_states(convert.convert_nvidia_sana(native), original)


def test_nvidias_training_leftovers_may_be_absent(folder, tmp_path):
    state_dict = layouts.nvidia_sana(weights_of(folder))
    for key in ("pos_embed", "y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias"):
        state_dict.pop(key, None)
    pth = load_sana(save_pth(tmp_path / "sana.pth", state_dict, folder), FLOAT32)
    assert equal_states(sana_state(pth), weights_of(folder))


@pytest.mark.parametrize("layout", [dict, layouts.nvidia_sana], ids=["diffusers", "nvidia"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "module."])
def test_prefixes_of_saved_models_are_stripped(plain, layout, prefix, tmp_path):
    state_dict = {prefix + key: tensor.contiguous() for key, tensor in layout(weights_of(plain)).items()}
    safetensors.torch.save_file(state_dict, tmp_path / "prefixed.safetensors")
    shutil.copy(plain / "transformer" / "config.json", tmp_path)
    assert equal_states(sana_state(load_sana(str(tmp_path / "prefixed.safetensors"), FLOAT32)), weights_of(plain))


def test_pth_of_a_width_of_no_release_asks_for_config_json_and_loads_once_it_is_there(plain, tmp_path):
    path = save_pth(tmp_path / "tiny.pth", layouts.nvidia_sana(weights_of(plain)), None)
    with pytest.raises(
        ValueError,
        match=r"tiny.pth is a SANA transformer of width 64, whose number of cross-attention heads no tensor tells: "
        r"put its config.json beside the weights\.$",
    ):
        load_sana(path)
    shutil.copy(plain / "transformer" / "config.json", tmp_path)
    assert load_sana(path).model.diffusion_model.config.num_cross_attention_heads == 4


def test_config_tensor_inside_the_file_replaces_config_json(plain, tmp_path):
    config = load_sana(str(plain)).model.diffusion_model.config
    state_dict = weights_of(plain) | {"sana_config": config_tensor(config)}
    safetensors.torch.save_file(state_dict, tmp_path / "alone.safetensors")
    assert load_sana(str(tmp_path / "alone.safetensors")).model.diffusion_model.config == config


def test_stray_config_json_of_another_class_is_not_believed(plain, tmp_path):
    shutil.copy(plain / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "vae.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "scaling_factor": 0.18215}))
    assert load_dc_ae(str(tmp_path / "vae.safetensors")).first_stage_model.config.scaling_factor == 0.41407


def test_dc_ae_in_its_authors_layout_gives_the_same_tensors_image_and_latent_as_the_diffusers_folder(plain, tmp_path):
    state_dict = layouts.original_dc_ae(weights_of(plain, "vae"))
    assert not set(state_dict) & set(weights_of(plain, "vae"))
    safetensors.torch.save_file(state_dict, tmp_path / "model.safetensors")
    original, reference = load_dc_ae(str(tmp_path / "model.safetensors"), FLOAT32), load_dc_ae(str(plain), FLOAT32)
    assert equal_states(original.first_stage_model.state_dict(), reference.first_stage_model.state_dict())
    generator = torch.Generator().manual_seed(4)
    image, latent = torch.rand(1, 64, 96, 3, generator=generator), torch.randn(1, 32, 2, 3, generator=generator)
    assert torch.equal(original.encode(image), reference.encode(image))
    assert torch.equal(original.decode(latent), reference.decode(latent))


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_dc_ae_inside_a_checkpoint_is_found_by_its_prefix(plain, prefix, tmp_path):
    state_dict = {prefix + key: tensor for key, tensor in weights_of(plain, "vae").items()}
    safetensors.torch.save_file(state_dict | {"model.diffusion_model.x": torch.ones(1)}, tmp_path / "all.safetensors")
    assert equal_states(
        load_dc_ae(str(tmp_path / "all.safetensors"), FLOAT32).first_stage_model.state_dict(), weights_of(plain, "vae")
    )


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """The plain transformer in three or more shards with an index, as diffusers writes large models."""
    path = tmp_path_factory.mktemp("sharded")
    tiny.transformer().save_pretrained(path / "transformer", max_shard_size="150KB")
    assert len(list(path.glob("transformer/*-of-*.safetensors"))) >= 3
    return path


def test_shards_load_from_the_folder_the_component_folder_the_index_and_every_shard(sharded, plain):
    folder = sharded / "transformer"
    picks = [
        sharded,
        folder,
        folder / "diffusion_pytorch_model.safetensors.index.json",
        *folder.glob("*-of-*.safetensors"),
    ]
    for path in picks:
        assert equal_states(sana_state(load_sana(str(path), FLOAT32)), weights_of(plain)), path


def test_shards_load_without_their_index(sharded, plain, tmp_path):
    for file in sharded.glob("transformer/*"):
        if "index" not in file.name:
            shutil.copy(file, tmp_path)
    path = next(tmp_path.glob("*-00002-of-*.safetensors"))
    assert equal_states(sana_state(load_sana(str(path), FLOAT32)), weights_of(plain))


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("size", ["10GB", "150KB"], ids=["one file", "shards"])
def test_variant_names_are_found_in_a_folder(plain, variant, size, tmp_path):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    tiny.transformer().to(dtype).save_pretrained(tmp_path / "transformer", variant=variant, max_shard_size=size)
    loaded = sana_state(load_sana(str(tmp_path), {"dtype": dtype}))
    assert equal_states(loaded, {key: tensor.to(dtype) for key, tensor in weights_of(plain).items()})


def test_gemma_loads_sharded_and_whole_with_the_same_states(plain, tmp_path):
    shutil.copytree(plain / "tokenizer", tmp_path / "tokenizer")
    tiny.gemma(600).save_pretrained(tmp_path / "text_encoder", max_shard_size="500KB")
    assert len(list(tmp_path.glob("text_encoder/*-of-*.safetensors"))) >= 2
    a, b = (load_gemma(str(path)).cond_stage_model.state_dict() for path in (tmp_path, plain))
    assert equal_states(a, b)
