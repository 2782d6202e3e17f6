"""Authors' keys are mapped one by one to diffusers', and what no tensor tells is found beside or in the file."""

import json
import shutil
from pathlib import Path

import comfy.sample
import pytest
import safetensors.torch
import torch
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.sana import convert as sana_convert
from sana_native.models.sana.loader import load_sana
from sana_native.models.sana.supported_models import config_tensor
from sana_native.tests.support import layouts, tiny

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
    """A diffusers folder with the plain transformer and the autoencoder."""
    path = tmp_path_factory.mktemp("plain")
    tiny.transformer().save_pretrained(path / "transformer")
    tiny.dc_ae().save_pretrained(path / "vae")
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
    return sana_convert.to_file_layout(patcher.model.diffusion_model.state_dict())


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
    assert equal_states(sana_convert.convert_nvidia_sana(native), original)


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
