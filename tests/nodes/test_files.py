"""Files as they lie on disks: every tensor is missed or found wrong by name, and loading changes nothing.

The kinds of bad files are in `test_bad_files.py`.
"""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.files.reader import Checkpoint
from sana_native.models.files.validation import WHOLE
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.gemma.text_encoder import encode_prompts
from sana_native.models.sana.convert import NVIDIA_UNUSED_KEYS
from sana_native.models.sana.loader import load_sana
from sana_native.tests.models.sana.test_convert import latent_of
from sana_native.tests.support import layouts, tiny

LOADERS = {"transformer": load_sana, "text_encoder": load_gemma, "vae": load_dc_ae}
FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
COMPONENTS = list(LOADERS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A sound diffusers folder; never written to."""
    path = tmp_path_factory.mktemp("whole")
    words = tiny.tokenizer(path / "tokenizer")
    tiny.transformer().save_pretrained(path / "transformer")
    tiny.dc_ae().save_pretrained(path / "vae")
    tiny.gemma(len(words)).save_pretrained(path / "text_encoder")
    return path


@pytest.fixture
def model(whole, tmp_path) -> Path:
    """A copy of the sound folder for a test to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def read(folder: Path, component: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / component / FILES[component])


def write(folder: Path, component: str, state_dict: dict) -> None:
    safetensors.torch.save_file(state_dict, folder / component / FILES[component])


@pytest.mark.parametrize("component", COMPONENTS)
def test_missing_file_asks_to_pick_again(component):
    with pytest.raises(
        FileNotFoundError, match=r"/nowhere/x.safetensors does not exist: pick the file again after refreshing"
    ):
        LOADERS[component]("/nowhere/x.safetensors")


def in_other_layout(component: str, state_dict: dict) -> dict:
    """The authors' layout, without what its files may lack."""
    if component == "vae":
        return layouts.original_dc_ae(state_dict)
    return {key: tensor for key, tensor in layouts.nvidia_sana(state_dict).items() if key not in NVIDIA_UNUSED_KEYS}


@pytest.fixture(
    params=["transformer", "text_encoder", "vae", "transformer in NVIDIA's layout", "vae in its authors' layout"]
)
def damaged(request, whole, monkeypatch):
    """A component's tensors, and a function that loads it with other ones; only the reading of the file is left out."""
    component = request.param.partition(" ")[0]
    sound = Checkpoint.read(str(whole), component)
    state_dict = in_other_layout(component, sound.state_dict) if " " in request.param else sound.state_dict

    def load(tensors: dict) -> None:
        checkpoint = dataclasses.replace(sound, state_dict=dict(tensors), whole=dict(tensors))
        monkeypatch.setattr(Checkpoint, "read", lambda *_: checkpoint)
        LOADERS[component](str(whole))

    load(state_dict)
    return state_dict, load


def test_every_missing_tensor_is_refused_by_name(damaged):
    state_dict, load = damaged
    for key in state_dict:
        with pytest.raises(
            ValueError,
            match=r"(looks like .* but .* is missing|does not fit its architecture \(.*missing.*): download it again",
        ):
            load({other: tensor for other, tensor in state_dict.items() if other != key})


def test_every_tensor_of_a_wrong_shape_is_refused(damaged):
    state_dict, load = damaged
    for key in state_dict:
        with pytest.raises(
            ValueError,
            match=r"(does not fit|looks like|is a DC-AE with|has attention over|is a SANA|config.json beside) .*: ",
        ):
            load(state_dict | {key: torch.zeros(1)})


def test_one_missing_tensor_is_counted_and_named(model):
    state_dict = read(model, "transformer")
    del state_dict["transformer_blocks.1.attn2.to_k.bias"]
    write(model, "transformer", state_dict)
    with pytest.raises(
        ValueError,
        match=r"transformer/diffusion_pytorch_model.safetensors does not fit its architecture "
        r"\(1 missing, such as transformer_blocks.1.attn2.to_k.bias of \d+ tensors\): download it again\.$",
    ):
        load_sana(str(model))


def with_nan(folder: Path, component: str, key: str) -> None:
    """NaN in the middle of a large tensor, where loading does not look."""
    state_dict = read(folder, component)
    values = state_dict[key].view(-1)
    assert values.numel() > WHOLE
    values[values.numel() // 2] = float("nan")
    write(folder, component, state_dict)


def test_nan_in_the_transformer_ends_sampling_with_a_sentence(model):
    with_nan(model, "transformer", "transformer_blocks.1.ff.conv_inverted.weight")
    with pytest.raises(
        ValueError, match="Denoising gave a latent with NaN or infinity in torch.float32: load the model"
    ):
        latent_of(load_sana(str(model), {"dtype": torch.float32}))


def test_nan_in_the_text_encoder_is_named_when_a_prompt_is_encoded(model):
    with_nan(model, "text_encoder", "layers.1.self_attn.q_proj.weight")
    with pytest.raises(
        ValueError,
        match="The text encoder gave states with NaN or infinity: load it in bfloat16 or float32, or download its "
        "weights again",
    ):
        encode_prompts(load_gemma(str(model)), "a cat", "")


@torch.inference_mode()
def test_nan_in_the_autoencoder_is_named_on_decoding_and_encoding(model):
    with_nan(model, "vae", "decoder.conv_in.weight")
    with_nan(model, "vae", "encoder.conv_out.weight")
    vae = load_dc_ae(str(model))
    with pytest.raises(
        ValueError,
        match="The image decoded by DC-AE holds NaN or infinity: load the autoencoder in bfloat16 or float32",
    ):
        vae.decode(torch.zeros(1, 32, 1, 1))
    with pytest.raises(
        ValueError, match="The latent encoded by DC-AE holds NaN or infinity: check the node that made the image"
    ):
        vae.encode(torch.zeros(1, 32, 32, 3))
    with pytest.raises(ValueError, match="The latent encoded by DC-AE holds NaN or infinity"):
        vae.encode_tiled(torch.zeros(1, 64, 64, 3))


def test_tokenizer_beside_the_file_is_found(model):
    shutil.move(model / "tokenizer" / "tokenizer.model", model / "text_encoder")
    assert load_gemma(str(model / "text_encoder" / "model.safetensors")).tokenizer is not None


def test_paths_with_spaces_and_letters_of_any_script_load(whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "mödel дом 图 (1)"))
    for component, load in LOADERS.items():
        load(str(folder))
        shutil.copy(folder / component / "config.json", folder / "config.json")
        os.replace(folder / component / FILES[component], folder / f"wéights 图 {component}.safetensors")
        shutil.copy(folder / "tokenizer" / "tokenizer.model", folder)
        load(str(folder / f"wéights 图 {component}.safetensors"))


def test_loading_leaves_the_files_as_they_are(whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    patcher = load_sana(str(whole))
    latent_of(patcher)
    load_gemma(str(whole))
    load_dc_ae(str(whole)).decode(torch.zeros(1, 32, 1, 1))
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
