"""Every way one set of weights lies on disk, whoever saved it, loads to equal tensors, configuration and output."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers.training_utils
import folder_paths
import pytest
import safetensors.torch
import torch
import transformers
from comfy_extras.nodes_model_merging import CheckpointSave, CLIPSave, ModelSave, VAESave
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.sana.loader import load_sana
from sana_native.tests.models.sana.test_convert import equal_states, latent_of, sana_state
from sana_native.tests.support import layouts, tiny, workbench
from sana_native.tests.support.workbench import clip, vae

FLOAT32 = {"dtype": torch.float32}
FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.fixture(scope="module")
def source() -> Path:
    """A diffusers folder with SANA-Sprint, whose keys are all there are: qk-norm and guidance embedding included."""
    return workbench.folder() / "sprint"


@pytest.fixture(scope="module")
def weights(source) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(source / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def config(source) -> dict:
    return json.loads((source / "transformer" / "config.json").read_text())


@pytest.fixture(scope="module")
def latent(source) -> torch.Tensor:
    latent = latent_of(load_sana(str(source), FLOAT32))
    assert latent.std() > 0.1
    return latent


@pytest.fixture(scope="module")
def same_model(source, weights, latent) -> Callable[[str | Path], None]:
    """Loads a path, and compares it with the diffusers folder."""
    expected = load_sana(str(source), FLOAT32).model.diffusion_model.config

    def compare(path: str | Path) -> None:
        model = load_sana(str(path), FLOAT32)
        assert equal_states(sana_state(model), weights)
        assert model.model.diffusion_model.config == expected
        assert torch.equal(latent_of(model), latent)

    return compare


def nested(*names: str) -> Callable[[dict], dict]:
    """The weights below names, with the training state beside them."""

    def nest(weights: dict) -> dict:
        content = dict(weights)
        for name in names:
            content = {name: content}
        return content | layouts.training_state(weights)

    return nest


# NVIDIA's .pth -> its content, made of the weights in NVIDIA's layout.
PTH = {
    "as released": lambda weights: {"state_dict": weights},
    "weights alone": dict,
    "from training": nested("state_dict"),
    "averaged weights only": nested("state_dict_ema"),
    "below ema": nested("ema"),
    "below model": nested("model"),
    "below module and model": nested("module", "model"),
    "data parallel": lambda weights: nested("state_dict")(layouts.prefixed(weights, "module.")),
    "compiled and data parallel": lambda weights: {"state_dict": layouts.prefixed(weights, "module._orig_mod.")},
    "of a trainer's module": lambda weights: nested("state_dict")(layouts.prefixed(weights, "model.")),
    "without leftovers": lambda weights: {
        "state_dict": {key: weights[key] for key in weights if not key.startswith(("pos_", "logvar", "y_embedder.y_e"))}
    },
}


@pytest.mark.parametrize("content", PTH)
@pytest.mark.parametrize("layout", [layouts.nvidia_sana, dict], ids=["nvidia", "diffusers"])
def test_pth(content, layout, weights, config, same_model, tmp_path):
    same_model(layouts.save(tmp_path / "sana.pth", PTH[content](layout(weights)), config))


def test_the_trained_weights_go_before_their_average(weights, config, same_model, tmp_path):
    native = layouts.nvidia_sana(weights)
    average = {key: tensor + 1 for key, tensor in native.items()}
    same_model(layouts.save(tmp_path / "a.pth", {"state_dict_ema": average, "state_dict": native}, config))


PREFIXES = ["", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "net.", "module.", "_orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", [layouts.nvidia_sana, dict], ids=["nvidia", "diffusers"])
def test_single_safetensors(prefix, layout, weights, config, same_model, tmp_path):
    path = tmp_path / "sana.safetensors"
    same_model(layouts.save(path, layouts.prefixed(layout(weights), prefix), config))


def test_diffusers_folder_component_folder_and_file(source, same_model):
    folder = source / "transformer"
    for path in (source, folder, folder / "diffusion_pytorch_model.safetensors"):
        same_model(path)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """Three or more shards with an index, as diffusers writes large models."""
    path = tmp_path_factory.mktemp("sharded")
    tiny.transformer(sprint=True).save_pretrained(path / "transformer", max_shard_size="150KB")
    assert len(list(path.glob("transformer/*-of-*.safetensors"))) >= 3
    return path


def test_shards_by_folder_index_and_each_of_them(sharded, same_model):
    folder = sharded / "transformer"
    same_model(sharded)
    same_model(folder / "diffusion_pytorch_model.safetensors.index.json")
    for path in folder.glob("*-of-*.safetensors"):
        same_model(path)


def test_shards_without_their_index(sharded, same_model, tmp_path):
    for file in sharded.glob("transformer/*"):
        if "index" not in file.name:
            shutil.copy(file, tmp_path)
    same_model(next(tmp_path.glob("*-00002-of-*.safetensors")))


@pytest.mark.parametrize("variant", FORMATS)
@pytest.mark.parametrize("size", ["10GB", "150KB"], ids=["one file", "shards"])
def test_variants(weights, variant, size, tmp_path):
    """fp16, bf16 and fp32 by folder and by file, with the values of that format."""
    dtype = FORMATS[variant]
    tiny.transformer(sprint=True).to(dtype).save_pretrained(
        tmp_path / "transformer", variant=variant, max_shard_size=size
    )
    for path in (tmp_path, next((tmp_path / "transformer").glob("*.safetensors"))):
        state = sana_state(load_sana(str(path), FLOAT32))
        assert equal_states(state, {key: tensor.to(dtype).float() for key, tensor in weights.items()})


def test_int4_of_another_engine_is_refused_and_never_chosen_in_a_folder(source, same_model, tmp_path):
    """As in the BF16 release: int4 beside the others, in packed weights that only its own engine reads."""
    shutil.copytree(source / "transformer", tmp_path / "transformer")
    int4 = tmp_path / "transformer" / "diffusion_pytorch_model.int4.safetensors"
    block = "transformer_blocks.0.attn.qkv_proj"
    layouts.save(int4, {f"{block}.qweight": torch.zeros(8, 8, dtype=torch.int8), f"{block}.wscales": torch.ones(8)})
    same_model(tmp_path)
    with pytest.raises(ValueError, match=r"int4.safetensors is a .*, not a SANA transformer\.$"):
        load_sana(str(int4))


def test_folder_saved_by_onetrainer(weights, tmp_path):
    """Its only format: the whole pipeline by diffusers, weights in the chosen precision, the optimizer beside it."""
    pipeline = tiny.save_pipeline(tmp_path / "base", sprint=True)
    pipeline.to(torch.bfloat16).save_pretrained(tmp_path / "my style")
    (tmp_path / "my style" / "optimizer").mkdir()
    torch.save({"state": {}}, tmp_path / "my style" / "optimizer" / "optimizer.pt")
    state = sana_state(load_sana(str(tmp_path / "my style"), FLOAT32))
    assert equal_states(state, {key: tensor.bfloat16().float() for key, tensor in weights.items()})
    load_dc_ae(str(tmp_path / "my style"))


def test_checkpoint_saved_by_simpletuner(same_model, tmp_path):
    """checkpoint-N without model_index.json: the transformer, its average by EMAModel, and training states."""
    model = tiny.transformer(sprint=True)
    average = diffusers.training_utils.EMAModel(
        model.parameters(), model_cls=type(model), model_config=dict(model.config), decay=0.5
    )
    checkpoint = tmp_path / "checkpoint-500"
    model.save_pretrained(checkpoint / "transformer", max_shard_size="10GB")
    average.save_pretrained(checkpoint / "transformer_ema")
    torch.save(average.state_dict(), checkpoint / "transformer_ema" / "ema_model.pt")
    (checkpoint / "training_state.json").write_text('{"global_step": 500}')
    torch.save({}, checkpoint / "optimizer.bin")
    same_model(checkpoint)
    same_model(checkpoint / "transformer_ema")


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.mark.parametrize("renamed", ["sprint.safetensors", "sprint.sft"])
def test_file_saved_by_the_hosts_nodes(renamed, source, same_model, output, tmp_path):
    """Save Model, and Save Checkpoint with the three parts in one file that all three loaders take."""
    model = load_sana(str(source), FLOAT32)
    ModelSave().save(model, "diffusion_models/saved")
    CheckpointSave().save(model, clip(), vae(), "checkpoints/saved")
    for number, file in enumerate(sorted(output.rglob("*.safetensors"))):
        path = shutil.move(file, tmp_path / f"{number} {renamed}")
        same_model(path)
    assert number == 1
    checkpoint = str(tmp_path / f"0 {renamed}")
    assert equal_states(load_gemma(checkpoint).cond_stage_model.state_dict(), clip().cond_stage_model.state_dict())
    assert equal_states(load_dc_ae(checkpoint).first_stage_model.state_dict(), vae().first_stage_model.state_dict())


# --- Gemma -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma() -> Path:
    return workbench.folder() / "sana"


@pytest.fixture(scope="module")
def gemma_weights(gemma) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(gemma / "text_encoder" / "model.safetensors")


@pytest.fixture(scope="module")
def spiece(gemma) -> torch.Tensor:
    return torch.frombuffer(bytearray((gemma / "tokenizer" / "tokenizer.model").read_bytes()), dtype=torch.uint8)


@torch.inference_mode()
def states_of(loaded) -> torch.Tensor:
    return loaded.encode_from_tokens(loaded.tokenize("a cat in a busy city street"))


def same_encoder(path) -> None:
    loaded = load_gemma(str(path))
    assert equal_states(loaded.cond_stage_model.state_dict(), clip().cond_stage_model.state_dict())
    assert torch.equal(states_of(loaded), states_of(clip()))


def test_gemma_in_shards_by_folder_index_and_each_of_them(gemma, tmp_path):
    shutil.copytree(gemma / "tokenizer", tmp_path / "tokenizer")
    tiny.gemma(600).save_pretrained(tmp_path / "text_encoder", max_shard_size="500KB")
    folder = tmp_path / "text_encoder"
    assert len(list(folder.glob("*-of-*.safetensors"))) >= 2
    for path in (tmp_path, folder, folder / "model.safetensors.index.json", *folder.glob("*-of-*.safetensors")):
        same_encoder(path)


def test_gemma_folder_of_the_hub_with_its_tokenizer_inside(gemma, gemma_weights, tmp_path):
    """gemma-2-2b-it: keys of the causal model, tied head and all."""
    tied = layouts.prefixed(gemma_weights, "model.") | {"lm_head.weight": gemma_weights["embed_tokens.weight"].clone()}
    config = transformers.Gemma2Config.from_pretrained(gemma / "text_encoder").to_dict()
    layouts.save(tmp_path / "model.safetensors", tied, config | {"architectures": ["Gemma2ForCausalLM"]})
    shutil.copy(gemma / "tokenizer" / "tokenizer.model", tmp_path)
    same_encoder(tmp_path)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "gemma2_2b.transformer.model.", "text_encoders.gemma2_2b.transformer.model."]
)
def test_gemma_in_one_file_with_its_tokenizer(prefix, gemma_weights, spiece, tmp_path):
    """As core's templates link it: gemma_2_2b_it_elm_bf16.safetensors."""
    content = layouts.prefixed(gemma_weights, prefix) | {"spiece_model": spiece}
    same_encoder(layouts.save(tmp_path / "gemma_2_2b_it_elm_bf16.safetensors", content))


def test_gemma_in_one_file_takes_the_tokenizer_beside_it(gemma, gemma_weights, tmp_path):
    path = layouts.save(tmp_path / "gemma.safetensors", layouts.prefixed(gemma_weights, "model."))
    with pytest.raises(FileNotFoundError, match="gemma.safetensors has no tokenizer inside.*: put Gemma's"):
        load_gemma(path)
    shutil.copy(gemma / "tokenizer" / "tokenizer.model", tmp_path)
    same_encoder(path)


def test_gemma_in_scaled_fp8(gemma_weights, spiece, tmp_path):
    """The older marks, `scaled_fp8` and a scale a layer: as good as the same numbers in full."""
    packed: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn), "spiece_model": spiece}
    plain: dict[str, torch.Tensor] = {"spiece_model": spiece}
    for key, tensor in layouts.prefixed(gemma_weights, "model.").items():
        packed[key] = plain[key] = tensor
        if "_proj" in key:
            scale = tensor.abs().max() / 448
            packed[key] = (tensor / scale).to(torch.float8_e4m3fn)
            packed[key.replace(".weight", ".scale_weight")] = scale.reshape(1)
            plain[key] = packed[key].float() * scale
    fp8 = states_of(load_gemma(layouts.save(tmp_path / "gemma_2_2b_it_elm_fp8_scaled.safetensors", packed)))
    full = states_of(load_gemma(layouts.save(tmp_path / "full.safetensors", plain)))
    assert workbench.relative(fp8, full) < 1e-4


def test_text_encoder_saved_by_the_hosts_node(output):
    CLIPSave().save(clip(), "clip/saved")
    (file,) = output.rglob("*.safetensors")
    same_encoder(file)


# --- DC-AE -----------------------------------------------------------------------------------------------------------

AUTOENCODERS = {"sana": tiny.dc_ae, "lite": tiny.dc_ae_lite}


@pytest.fixture(scope="module", params=AUTOENCODERS)
def autoencoder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("autoencoder") / request.param
    AUTOENCODERS[request.param]().save_pretrained(path / "vae")
    return path


@torch.inference_mode()
def same_autoencoder(path, folder: Path) -> None:
    loaded, reference = load_dc_ae(str(path), FLOAT32), diffusers.AutoencoderDC.from_pretrained(folder / "vae")
    assert equal_states(loaded.first_stage_model.state_dict(), dict(reference.state_dict()))
    generator = torch.Generator().manual_seed(4)
    image, latent = torch.rand(1, 64, 96, 3, generator=generator), torch.randn(1, 32, 2, 3, generator=generator)
    raw = reference.encode(image.movedim(-1, 1) * 2 - 1).latent
    picture = ((reference.decode(latent).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(loaded.encode(image), raw, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loaded.decode(latent), picture, atol=1e-4, rtol=1e-4)
    assert picture.std() > 0.02


def autoencoder_weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae.", "module."])
@pytest.mark.parametrize("layout", [layouts.original_dc_ae, dict], ids=["authors", "diffusers"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_dc_ae_in_one_file(autoencoder, prefix, layout, ending, tmp_path):
    """Without config.json: the Lite decoder is told by its tensors too."""
    content = layouts.prefixed(layout(autoencoder_weights(autoencoder)), prefix)
    if ending == "pth":
        content = {"state_dict": content, "epoch": 1}
    same_autoencoder(layouts.save(tmp_path / f"model.{ending}", content), autoencoder)


def test_dc_ae_in_folders_and_shards(autoencoder, tmp_path):
    for path in (autoencoder, autoencoder / "vae"):
        same_autoencoder(path, autoencoder)
    AUTOENCODERS[autoencoder.name]().save_pretrained(tmp_path / "vae", max_shard_size="500KB")
    same_autoencoder(tmp_path, autoencoder)


def test_autoencoder_saved_by_the_hosts_node(autoencoder, output):
    VAESave().save(load_dc_ae(str(autoencoder), FLOAT32), "vae/saved")
    (file,) = output.rglob("*.safetensors")
    same_autoencoder(file, autoencoder)


def test_dc_ae_whose_config_json_asks_for_what_no_sana_has_is_refused(autoencoder, tmp_path):
    shutil.copytree(autoencoder / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"decoder_in_shortcut": False}))
    with pytest.raises(ValueError, match="asks for decoder_in_shortcut False, which no SANA autoencoder has: use"):
        load_dc_ae(str(tmp_path))


def test_nothing_stays_allowed_for_unpickling_after_a_load(weights, config, tmp_path):
    """Only while a file is read does torch take numpy's arrays, which NVIDIA's training saves."""
    path = layouts.save(tmp_path / "a.pth", nested("state_dict")(layouts.nvidia_sana(weights)), config)
    before = set(torch.serialization.get_safe_globals())
    load_sana(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with contextlib.suppress(ValueError):
        load_dc_ae(path)
    assert set(torch.serialization.get_safe_globals()) == before
