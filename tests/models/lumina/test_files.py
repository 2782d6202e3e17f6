"""Files of Lumina-Next and its Gemma-1: every layout and place, saving and loading again, and what is refused."""

import json
import shutil
from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_model_merging import CheckpointSave, CLIPSave, ModelSave
from sana_native.models.gemma.text_encoder import encode_prompts
from sana_native.models.gemma1.detection import check_gemma_1, detect_gemma_1, is_gemma_1
from sana_native.models.files.layout import to_host_gemma
from sana_native.models.gemma1.loader import load_gemma_1
from sana_native.models.lumina.convert import to_network_layout
from sana_native.models.lumina.detection import detect_lumina, is_lumina
from sana_native.models.lumina.loader import load_lumina
from sana_native.models.registry import load_model
from sana_native.tests.support import layouts, tiny
from sana_native.tests.support import workbench as bench


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return tiny.lumina().state_dict()


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def written(output: Path) -> Path:
    """The one file the host has written."""
    (file,) = output.rglob("*.safetensors")
    return file


def assert_equal_models(a, b) -> None:
    a, b = a.model.diffusion_model, b.model.diffusion_model
    assert a.config == b.config
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def velocity(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    context = torch.randn(1, 5, tiny.LUMINA_CAPTION_CHANNELS, generator=generator)
    with torch.inference_mode():
        return model.model.apply_model(
            torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([0.7]), c_crossattn=context
        )


# The authors' names, and diffusers' -> the same model to the last bit


@pytest.mark.parametrize(
    "name, prefix",
    [
        ("consolidated.00-of-01.safetensors", ""),
        ("consolidated.00-of-01.pth", ""),
        ("consolidated_ema.00-of-01.safetensors", ""),
        ("lumina next sft.safetensors", "model.diffusion_model."),
    ],
)
def test_a_file_of_the_authors_is_the_same_model_as_diffusers_folder(name, prefix, weights, tmp_path, caplog):
    caplog.set_level("INFO")
    path = layouts.save(tmp_path / name, layouts.prefixed(layouts.original_lumina(weights), prefix))
    model = load_model("transformer", path)
    assert "Alpha-VLLM layout" in caplog.text
    assert_equal_models(model, bench.lumina())
    assert torch.equal(velocity(model), velocity(bench.lumina()))


@pytest.mark.parametrize("place", ["", "transformer", "transformer/diffusion_pytorch_model.safetensors"])
def test_diffusers_folder_its_part_and_its_file_are_the_same_model(place):
    path = bench.lumina_folder() / place
    assert_equal_models(load_model("transformer", str(path)), bench.lumina())


def test_shards_and_16_bit_are_read(tmp_path):
    tiny.lumina().to(torch.bfloat16).save_pretrained(tmp_path / "transformer", max_shard_size="1MB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    model = load_model("transformer", str(tmp_path))
    expected = bench.lumina().model.diffusion_model.state_dict()
    state_dict = model.model.diffusion_model.state_dict()
    assert all(torch.equal(state_dict[key].bfloat16(), expected[key].bfloat16()) for key in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32])
def test_weights_take_the_chosen_format_and_compute_in_a_wide_one(dtype, weights, tmp_path):
    path = layouts.save(tmp_path / "lumina.safetensors", layouts.original_lumina(weights))
    model = load_lumina(path, {"dtype": dtype})
    assert model.model.diffusion_model.layers[0].attention.wq.weight.dtype == dtype
    error = bench.rms_error(velocity(model), velocity(bench.lumina()))
    assert error < {torch.float32: 1e-6, torch.bfloat16: 0.02, torch.float8_e4m3fn: 0.3}[dtype]


def test_the_folders_of_both_parts_are_offered_alone(tmp_path, monkeypatch):
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "diffusers", ([str(tmp_path)], known["diffusers"][1]))
    for part in ("transformer", "text_encoder"):
        shutil.copytree(bench.lumina_folder() / part, tmp_path / part.replace("_", " ") / "alone")
        names = bench.OURS["ModelLoader" if part == "transformer" else "GemmaLoader"].define_schema().inputs[0].options
        assert f"{part.replace('_', ' ')}/alone/" in names


# Saving


def test_a_saved_model_has_the_authors_names_and_loads_again(output, weights):
    ModelSave().save(bench.lumina(), "diffusion_models/saved")
    saved = safetensors.torch.load_file(written(output))
    own = {key.removeprefix("model.diffusion_model.") for key in saved}
    assert own == set(layouts.original_lumina(weights))
    assert_equal_models(load_model("transformer", str(written(output))), bench.lumina())


def feature(clip) -> torch.Tensor:
    with torch.inference_mode():
        return encode_prompts(clip, "a red cat", "")[0][0][0]


def test_a_text_encoder_saved_twice_keeps_all_its_layers_and_its_states(output, tmp_path):
    CLIPSave().save(bench.lumina_clip(), "text_encoders/first")
    first = load_model("text_encoder", str(written(output)))
    shutil.move(written(output), tmp_path / "first.safetensors")
    CLIPSave().save(first, "text_encoders/second")
    second = load_model("text_encoder", str(written(output)))
    layers = bench.lumina_clip().cond_stage_model.gemma_2b.transformer.model.layers
    assert len(second.cond_stage_model.gemma_2b.transformer.model.layers) == len(layers)
    assert torch.equal(feature(second), feature(bench.lumina_clip()))


def test_a_checkpoint_of_several_parts_is_read_by_either_loader(output):
    CheckpointSave().save(bench.lumina(), bench.lumina_clip(), bench.vae(), "checkpoints/whole")
    assert_equal_models(load_model("transformer", str(written(output))), bench.lumina())
    assert torch.equal(feature(load_model("text_encoder", str(written(output)))), feature(bench.lumina_clip()))


# Gemma-1


@pytest.fixture(scope="module")
def gemma_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    tiny.gemma_1().save_pretrained(folder, max_shard_size="20MB")
    shutil.copy(bench.lumina_folder() / "tokenizer" / "tokenizer.model", folder)
    return folder


def test_shards_of_gemma_with_the_tokenizer_beside_them_are_read(gemma_folder):
    assert len(list(gemma_folder.glob("*.safetensors"))) > 1
    assert torch.equal(feature(load_model("text_encoder", str(gemma_folder))), feature(bench.lumina_clip()))


def test_a_single_file_with_the_names_of_the_causal_model_is_read(tmp_path):
    state_dict = layouts.prefixed(tiny.gemma_1().state_dict(), "model.")
    state_dict["lm_head.weight"] = state_dict["model.embed_tokens.weight"]
    path = layouts.save(tmp_path / "gemma-2b.safetensors", state_dict)
    shutil.copy(bench.lumina_folder() / "tokenizer" / "tokenizer.model", tmp_path)
    assert torch.equal(feature(load_model("text_encoder", path)), feature(bench.lumina_clip()))


def test_norms_stay_wide_in_a_16_bit_file(tmp_path):
    shutil.copytree(bench.lumina_folder() / "tokenizer", tmp_path / "tokenizer")
    tiny.gemma_1().to(torch.bfloat16).save_pretrained(tmp_path / "text_encoder")
    clip = load_gemma_1(str(tmp_path))
    model = clip.cond_stage_model.gemma_2b.transformer.model
    assert model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert model.layers[0].input_layernorm.weight.dtype == torch.float32
    reference = tiny.gemma_1()
    with torch.inference_mode():
        for parameter in reference.parameters():
            parameter.copy_(parameter.bfloat16())
        ids = torch.tensor([clip.tokenizer.encode("a red cat")])
        expected = reference(ids, output_hidden_states=True).hidden_states[-2]
    assert (feature(clip) - expected).norm() / expected.norm() <= 1e-5


def test_gemma_1_without_a_tokenizer_is_refused(tmp_path):
    tiny.gemma_1().save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(
        FileNotFoundError, match="has no tokenizer inside, and there is no tokenizer.model beside it: pu"
    ):
        load_model("text_encoder", str(tmp_path))


def test_other_gemmas_are_told_apart():
    state_dict = to_host_gemma(tiny.gemma_1().state_dict())
    assert is_gemma_1(state_dict)
    assert not is_gemma_1(state_dict | {"model.embed_tokens.weight": torch.empty(32000, 32, device="meta")})
    assert not is_gemma_1(state_dict | {"model.layers.0.pre_feedforward_layernorm.weight": torch.empty(32)})
    large = detect_gemma_1(state_dict | {"model.embed_tokens.weight": torch.empty(256000, 3072, device="meta")})
    with pytest.raises(
        ValueError, match="x is Gemma-1 7B, but Lumina-Next reads the states of Gemma-1 2B: use gemma-2b"
    ):
        check_gemma_1("x", large, {})
    with pytest.raises(ValueError, match="x has 17 layers where 18 are expected: download it again"):
        check_gemma_1("x", large | {"hidden_size": 2048, "num_hidden_layers": 17}, {})


# What is refused


def refused(tmp_path, state_dict, match: str, **options) -> None:
    path = layouts.save(tmp_path / "x.safetensors", state_dict)
    with pytest.raises(ValueError, match=match):
        load_model("transformer", path, options)


def test_the_model_of_may_2024_is_refused_by_name(weights, tmp_path):
    old = layouts.original_lumina(weights)
    for key in [key for key in old if key.startswith("layers.") and ".adaLN_modulation." in key]:
        old[key] = old[key].repeat_interleave(3, 0)[: 6 * 288]
    refused(tmp_path, old, "is a Lumina-Next as it was before June 2024, .*: take the present file of Alpha-VLLM's Lu")


def test_queries_of_its_own_for_the_text_are_refused(weights, tmp_path):
    key = "layers.1.attn2.to_q.weight"
    match = rf"has queries of its own for the text \({key} differs from attn1's\), which .*: take Alpha-VLLM's Lumina-N"
    refused(tmp_path, weights | {key: weights[key] + 1e-3}, match)


def test_lumina_2_is_left_to_the_host(weights, tmp_path):
    other = layouts.original_lumina(weights) | {"noise_refiner.0.attention.qkv.weight": torch.ones(1)}
    refused(tmp_path, other, r"is a Lumina 2 model \(use the host's own loader\), not a SANA .*or a Lumina-N")


def test_float16_is_refused(weights, tmp_path):
    match = (
        "x.safetensors is a Lumina-Next transformer, which overflows in the float16 asked for by weight_dtype: set w"
    )
    refused(tmp_path, layouts.original_lumina(weights), match, dtype=torch.float16)


def test_a_file_that_lacks_a_tensor_is_refused(weights, tmp_path):
    incomplete = layouts.original_lumina(weights)
    del incomplete["layers.1.attention.wk_y.weight"]
    refused(tmp_path, incomplete, "does not fit its architecture .1 missing, such as layers.1.attention.wk_y.weight")


def test_a_config_of_another_model_is_refused(weights, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "LuminaNextDiT2DModel", "num_kv_heads": 8}))
    refused(
        tmp_path, weights, "The config.json beside .* says num_kv_heads = 8, but its tensors have 2: put this model"
    )


# The released size


RELEASED = {"hidden_size": 2304, "num_layers": 24, "num_attention_heads": 32, "num_kv_heads": 8, "multiple_of": 256,
            "cross_attention_dim": 2048}  # fmt: skip


def test_the_released_model_has_the_released_number_of_parameters():
    import diffusers
    from sana_native.models.lumina.model import Lumina

    with torch.device("meta"):
        released = diffusers.LuminaNextDiT2DModel(**RELEASED).state_dict()
    assert sum(tensor.numel() for tensor in released.values()) == 1_754_898_976
    state_dict = to_network_layout(released)
    assert is_lumina(state_dict)
    config = detect_lumina(state_dict)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.mlp_hidden_size) == (32, 8, 72, 6144)
    assert (config.conditioning_size, config.caption_channels, config.in_channels) == (1024, 2048, 4)
    own = Lumina(config, device="meta", operations=torch.nn).state_dict()
    assert {key: tensor.shape for key, tensor in own.items()} == {
        key: tensor.shape for key, tensor in state_dict.items()
    }
    assert sum(tensor.numel() for tensor in own.values()) == 1_627_386_400
