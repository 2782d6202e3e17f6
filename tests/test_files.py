"""What goes wrong with files: every fault is one sentence that names the file, what was expected and the cure."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import sentencepiece
import torch
from sana_native.models import loader
from sana_native.models.checkpoint import read_checkpoint
from sana_native.models.convert import NVIDIA_UNUSED_KEYS
from sana_native.models.gemma import encode_prompts
from sana_native.models.loader import load_dc_ae, load_gemma, load_sana
from sana_native.tests import layouts, tiny
from sana_native.tests.test_convert import latent_of

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


@pytest.mark.parametrize("component", COMPONENTS)
def test_truncated_safetensors_is_named_with_the_cure(model, component):
    file = model / component / FILES[component]
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(
        ValueError, match=rf"{FILES[component]} is damaged, incomplete or no weight file \(.+\): download it again\.$"
    ):
        LOADERS[component](str(model))


@pytest.mark.parametrize("name", ["empty.safetensors", "empty.pth"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_empty_file_is_named_with_the_cure(component, name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=rf"{name} is damaged, incomplete or no weight file \(.+\): download it again\.$"
    ):
        LOADERS[component](str(tmp_path / name))


def text_file(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6420000000\n")


def zip_file(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not weights")


def list_file(path: Path) -> None:
    torch.save([1, 2, 3], path)


def one_tensor_file(path: Path) -> None:
    torch.save(torch.ones(3), path)


@pytest.mark.parametrize("name", ["renamed.safetensors", "renamed.pth"])
@pytest.mark.parametrize("make", [text_file, zip_file, list_file, one_tensor_file])
def test_other_files_with_a_weight_files_name_are_refused(make, name, tmp_path):
    make(tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"{name} is (damaged, incomplete or no weight file \(.+\)|not a weight file.*): download"
    ):
        load_sana(str(tmp_path / name))


def test_truncated_pth_is_named_with_the_cure(model):
    torch.save({"state_dict": read(model, "transformer")}, model / "cut.pth")
    (model / "cut.pth").write_bytes((model / "cut.pth").read_bytes()[:-1000])
    with pytest.raises(
        ValueError, match=r"cut.pth is damaged, incomplete or no weight file \(.+\): download it again\.$"
    ):
        load_sana(str(model / "cut.pth"))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def save_bare(payload, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_bare], ids=["zip", "bare pickle"])
def test_code_in_a_pth_is_refused_and_does_not_run(save, tmp_path):
    target = tmp_path / "proof"
    save({"state_dict": {"x_embedder.proj.weight": torch.ones(1)}, "config": Payload(target)}, tmp_path / "evil.pth")
    with pytest.raises(
        ValueError,
        match=r"evil.pth holds Python objects besides tensors, .* could run code: use the safetensors file of this "
        r"model",
    ):
        load_sana(str(tmp_path / "evil.pth"))
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))
    assert target.exists(), "the payload works where nothing stops it"


def test_missing_shard_is_named(tmp_path):
    tiny.transformer().save_pretrained(tmp_path / "transformer", max_shard_size="150KB")
    shards = sorted((tmp_path / "transformer").glob("*-of-*.safetensors"))
    shards[1].unlink()
    for path in (tmp_path, shards[0]):
        with pytest.raises(
            FileNotFoundError,
            match=rf"belongs to a set of {len(shards)} files, and {shards[1].name} is not beside it: download",
        ):
            load_sana(str(path))


@pytest.mark.parametrize("component", COMPONENTS)
def test_folder_without_weights_is_named(model, component):
    (model / component / FILES[component]).unlink()
    with pytest.raises(
        FileNotFoundError,
        match=rf"The folder .*{component} holds no diffusion_pytorch_model or model.safetensors .*: download",
    ):
        LOADERS[component](str(model))


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
    sound = read_checkpoint(str(whole), component)
    state_dict = in_other_layout(component, sound.state_dict) if " " in request.param else sound.state_dict

    def load(tensors: dict) -> None:
        checkpoint = dataclasses.replace(sound, state_dict=dict(tensors))
        monkeypatch.setattr(loader, "read_checkpoint", lambda *_: checkpoint)
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
            match=r"(does not fit|looks like|is a DC-AE with|This DC-AE has|is a SANA|config.json beside) .*: ",
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


@pytest.mark.parametrize("component", COMPONENTS)
def test_extra_tensor_is_counted_and_named(model, component):
    write(model, component, read(model, component) | {"surplus.weight": torch.ones(1)})
    with pytest.raises(
        ValueError, match=r"\(1 unexpected, such as (model\.)?surplus.weight of \d+ tensors\): download it again\.$"
    ):
        LOADERS[component](str(model))


def test_damaged_saved_configuration_is_named(model):
    write(model, "transformer", read(model, "transformer") | {"sana_config": torch.zeros(8, dtype=torch.uint8)})
    with pytest.raises(ValueError, match=r"The configuration saved in .*transformer/.* is damaged: save it"):
        load_sana(str(model))


def test_position_table_of_another_rank_is_refused(model):
    write(model, "transformer", layouts.nvidia_sana(read(model, "transformer")) | {"pos_embed": torch.zeros(3)})
    with pytest.raises(ValueError, match="looks like a SANA transformer but has tensors of other shapes: download it"):
        load_sana(str(model))


def test_patch_convolution_of_another_rank_is_refused(model):
    state_dict = read(model, "transformer")
    state_dict["patch_embed.proj.weight"] = state_dict["patch_embed.proj.weight"][..., None].clone()
    write(model, "transformer", state_dict)
    with pytest.raises(
        ValueError, match="looks like a SANA transformer but has tensors of other shapes: download it again"
    ):
        load_sana(str(model))


def test_wrong_shape_is_named_with_both_shapes(model):
    state_dict = read(model, "transformer")
    state_dict["transformer_blocks.1.attn1.to_k.weight"] = torch.ones(64, 32)
    write(model, "transformer", state_dict)
    with pytest.raises(
        ValueError, match=r"transformer_blocks.1.attn1.to_k.weight has shape \(64, 32\), expected \(64, 64\): download"
    ):
        load_sana(str(model))


def with_nan(folder: Path, component: str, key: str) -> None:
    state_dict = read(folder, component)
    state_dict[key].view(-1)[0] = float("nan")
    write(folder, component, state_dict)


def test_nan_in_the_transformer_ends_sampling_with_a_sentence(model):
    with_nan(model, "transformer", "proj_out.weight")
    with pytest.raises(
        ValueError, match="Denoising gave a latent with NaN or infinity in torch.float32: load the model"
    ):
        latent_of(load_sana(str(model), {"dtype": torch.float32}))


def test_nan_in_the_text_encoder_is_named_when_a_prompt_is_encoded(model):
    with_nan(model, "text_encoder", "layers.1.mlp.up_proj.weight")
    with pytest.raises(
        ValueError,
        match="The text encoder gave states with NaN or infinity: load it in bfloat16 or float32, or download its "
        "weights again",
    ):
        encode_prompts(load_gemma(str(model)), "a cat", "")


@torch.inference_mode()
def test_nan_in_the_autoencoder_is_named_on_decoding_and_encoding(model):
    with_nan(model, "vae", "decoder.conv_out.weight")
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


def test_missing_tokenizer_is_named_with_the_cure(model):
    (model / "tokenizer" / "tokenizer.model").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"text_encoder/model.safetensors has no tokenizer inside, and there is no tokenizer.model beside it: put "
        r"Gemma's",
    ):
        load_gemma(str(model))


def test_tokenizer_beside_the_file_is_found(model):
    shutil.move(model / "tokenizer" / "tokenizer.model", model / "text_encoder")
    assert load_gemma(str(model / "text_encoder" / "model.safetensors")).tokenizer is not None


def test_tokenizer_with_more_pieces_than_the_model_embeds_is_refused(model):
    state_dict = read(model, "text_encoder")
    state_dict["embed_tokens.weight"] = state_dict["embed_tokens.weight"][:500].clone()
    write(model, "text_encoder", state_dict)
    with pytest.raises(
        ValueError,
        match=r"The tokenizer of .* has 600 pieces but the model embeds 500: put the tokenizer.model of this very",
    ):
        load_gemma(str(model))


def test_tokenizer_that_is_no_tokenizer_is_refused(model):
    (model / "tokenizer" / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(
        ValueError, match="The tokenizer of .*text_encoder/model.safetensors is no SentencePiece model: put the"
    ):
        load_gemma(str(model))


def test_empty_tokenizer_counts_as_none(model):
    (model / "tokenizer" / "tokenizer.model").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="has no tokenizer inside, and there is no tokenizer.model beside it"):
        load_gemma(str(model))


def test_tokenizer_of_another_family_is_refused(model):
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sleeps on the mat"] * 20),
        model_writer=other,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (model / "tokenizer" / "tokenizer.model").write_bytes(other.getvalue())
    with pytest.raises(
        ValueError, match=r"is not Gemma's \(its special tokens are padding -1 and start 1, not 0 and 2\): put the"
    ):
        load_gemma(str(model))


def test_autoencoder_with_another_scaling_factor_is_refused(model):
    config = json.loads((model / "vae" / "config.json").read_text())
    (model / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.3189}))
    with pytest.raises(
        ValueError,
        match=r"DC-AE with 32 latent channels and scaling factor 0.3189; SANA's has 32 and 0.41407: use "
        r"dc-ae-f32c32-sana-1.0 or 1.1",
    ):
        load_dc_ae(str(model))


@pytest.mark.parametrize(
    "content, problem", [("{", "is not valid JSON"), ("[1]", "holds a JSON list where an object is expected")]
)
def test_damaged_config_json_is_named(model, content, problem):
    (model / "transformer" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"transformer/config.json {problem}.*: download it again\.$"):
        load_sana(str(model))


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
