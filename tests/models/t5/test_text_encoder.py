"""T5 as PixArt's text encoder against transformers' T5EncoderModel, and the files that it comes in."""

import json
from functools import cache

import comfy.quant_ops
import folder_paths
import pytest
import safetensors.torch
import torch
import transformers
from comfy_extras.nodes_model_merging import CLIPSave
from comfy_extras.nodes_textgen import TextGenerate
from sana_native.models.gemma.text_encoder import encode_prompts
from sana_native.models.registry import load_model
from sana_native.models.t5.loader import load_t5
from sana_native.tests.support import pixart

LONG = "cat dog " * 330


@cache
def reference() -> transformers.T5EncoderModel:
    return pixart.t5()


@cache
def tokenizer():
    return pixart.t5_tokenizer()


@pytest.fixture
def path(tmp_path) -> str:
    reference().save_pretrained(tmp_path / "pipeline" / "text_encoder")
    return str(tmp_path / "pipeline")


def states(text: str, length: int = 300) -> torch.Tensor:
    """The reference's states of a padded prompt, those that its mask keeps."""
    tokens = tokenizer()(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = reference()(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return out[:, : int(tokens.attention_mask.sum())]


@pytest.mark.parametrize("text", ["", "a cat", "Ein Käse, 3:4!", LONG], ids=["empty", "short", "umlaut", "long"])
def test_states_of_a_prompt_equal_the_masked_reference(text, path):
    clip = load_model("text_encoder", path)
    ours = clip.encode_from_tokens(clip.tokenize(text))
    assert ours.shape == states(text).shape
    assert float((ours - states(text)).abs().max()) < 2e-5


def test_a_prompt_is_cut_as_transformers_cuts_it_and_the_empty_one_is_its_end(path, caplog):
    clip = load_t5(path)
    (row,) = clip.tokenize(LONG)["t5xxl"]
    assert [token for token, _ in row] == tokenizer()(LONG, max_length=300, truncation=True).input_ids
    assert "the first 299 tokens count, so the last " in caplog.text
    assert clip.tokenize("")["t5xxl"] == [[(1, 1.0)]]


def test_lower_case_and_weights_act_and_half_a_character_is_refused(path):
    clip = load_t5(path)
    assert clip.tokenize("A CAT ", lower_case=True) == clip.tokenize("a cat")
    assert 1.2 in [weight for _, weight in clip.tokenize("(cat:1.2)")["t5xxl"][0]]
    with pytest.raises(ValueError, match="half a character, as a cut emoji leaves it: delete it"):
        clip.tokenize("a \ud83d cat")


def test_the_encode_node_s_function_takes_it_and_reads_no_instruction(path):
    clip = load_t5(path)
    positive, negative = encode_prompts(clip, "A cat", "", None, True)
    plain = clip.encode_from_tokens(clip.tokenize("a cat"))
    assert torch.equal(positive[0][0], plain) and negative[0][0].shape[1] == 1
    weighted = [encode_prompts(clip, "A (cat:1.2)", "", None, True, weights)[0] for weights in (False, True)]
    assert torch.equal(weighted[0][0][0], weighted[1][0][0]) and "token_weights" not in weighted[1][0][1]


def test_shards_a_single_file_and_a_whole_t5_load_alike(path, tmp_path):
    reference().save_pretrained(tmp_path / "shards", max_shard_size="4MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole = dict(reference().state_dict()) | {"decoder.block.0.x": torch.ones(1), "lm_head.weight": torch.ones(1)}
    whole["encoder.embed_tokens.weight"] = whole.pop("shared.weight")  # as some files name it
    safetensors.torch.save_file(whole, tmp_path / "t5-v1_1-xxl.safetensors")
    expected = load_t5(path).cond_stage_model.state_dict()
    for other in (tmp_path / "shards", tmp_path / "t5-v1_1-xxl.safetensors"):
        found = load_t5(str(other)).cond_stage_model.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_stay_narrow(dtype, path):
    clip = load_t5(path, {"dtype": dtype})
    assert clip.cond_stage_model.t5xxl.transformer.shared.weight.dtype == dtype
    error = clip.encode_from_tokens(clip.tokenize("a cat")) - states("a cat")
    assert float(error.norm() / states("a cat").norm()) < 0.02


def eight_bits(state_dict: dict) -> dict:
    """As the host's scaled fp8 files are: matrices of the blocks with a scale each, and a mark for the file."""
    out = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in state_dict.items():
        if "relative" in key or "norm" in key or not key.startswith("encoder.block"):
            out[key] = tensor.half()
            continue
        scale = tensor.abs().max() / 448
        out[key] = (tensor / scale).to(torch.float8_e4m3fn)
        out[key.replace(".weight", ".scale_weight")] = scale[None].float()
    return out


def test_a_file_in_8_bits_loads_and_keeps_them(tmp_path):
    state_dict = dict(reference().state_dict())
    state_dict.pop("encoder.embed_tokens.weight", None)
    safetensors.torch.save_file(eight_bits(state_dict), tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors")
    clip = load_t5(str(tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors"))
    weight = clip.cond_stage_model.t5xxl.transformer.encoder.block[0].layer[0].SelfAttention.q.weight
    assert isinstance(weight, comfy.quant_ops.QuantizedTensor)
    error = clip.encode_from_tokens(clip.tokenize("a cat")) - states("a cat")
    assert float(error.norm() / states("a cat").norm()) < 0.15


def test_what_clip_save_writes_loads_with_equal_states(path, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    clip = load_t5(path)
    CLIPSave().save(clip, "text_encoders/saved")
    (file,) = (tmp_path / "output").rglob("*.safetensors")
    loaded = load_t5(str(file))
    a, b = (encoder.encode_from_tokens(encoder.tokenize("a cat")) for encoder in (loaded, clip))
    assert torch.equal(a, b)


def changed(tmp_path, change) -> str:
    state_dict = dict(reference().state_dict())
    state_dict.pop("encoder.embed_tokens.weight", None)  # the same tensor as the first
    change(state_dict)
    safetensors.torch.save_file(state_dict, tmp_path / "x.safetensors")
    return str(tmp_path / "x.safetensors")


def widen(width: int):
    def change(state_dict: dict) -> None:
        state_dict["shared.weight"] = torch.ones(8, width)

    return change


def without(key: str):
    return lambda state_dict: state_dict.pop(key)


def ungate(state_dict: dict) -> None:
    state_dict["encoder.block.0.layer.1.DenseReluDense.wi.weight"] = torch.zeros(1)


def bias_each(state_dict: dict) -> None:
    state_dict["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"] = torch.zeros(32, 4)


def shorten(state_dict: dict) -> None:
    state_dict["shared.weight"] = state_dict["shared.weight"][:600].clone()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (widen(768), r"is T5 v1.1 base, but PixArt reads the states of T5 v1.1 XXL: use t5-v1_1-xxl\.$"),
        (widen(4096), r"has 2 layers where 24 are expected: download it again\.$"),
        (shorten, r"embeds 600 tokens where T5's tokenizer has 32100: use t5-v1_1-xxl\.$"),
        (bias_each, r"is a UMT5 text encoder \(use the host's own loader\), not "),
        (
            without("encoder.final_layer_norm.weight"),
            r"looks like a T5 text encoder but .* is missing: download",
        ),
        (without("encoder.block.1.layer.1.layer_norm.weight"), r"does not fit its architecture \(1 missing, "),
    ],
)
def test_another_or_damaged_t5_is_refused_in_one_sentence(change, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        load_model("text_encoder", changed(tmp_path, change))


def test_a_t5_of_version_1_is_refused(tmp_path):
    def change(state_dict: dict) -> None:
        ungate(state_dict)
        for key in [key for key in state_dict if "wi_" in key]:
            del state_dict[key]

    with pytest.raises(ValueError, match=r"is a T5 1.0 text encoder \(use t5-v1_1-xxl\), not "):
        load_model("text_encoder", changed(tmp_path, change))


def test_the_configuration_beside_another_component_is_of_no_matter(path, tmp_path):
    (tmp_path / "pipeline" / "text_encoder" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert load_t5(path).cond_stage_model.t5xxl.transformer.num_layers == 2


def test_text_generation_is_refused(path):
    with pytest.raises(ValueError, match="T5 encodes PixArt's prompts only: take the Gemma-2 of SANA to generate text"):
        TextGenerate.execute(load_t5(path), "a cat", 4, {"sampling_mode": "off"})


@pytest.mark.parametrize("text", ["一只猫", "猫, 狗.", "🐈 🐕"])
def test_a_prompt_of_unknown_characters_alone_gets_a_notice(text, path, caplog):
    clip = load_t5(path)
    clip.tokenize(text)
    assert "T5 knows no letter of this prompt, so it says nothing of the image: write it in English" in caplog.text
    caplog.clear()
    for known in ("a cat 🐈", "", " "):
        clip.tokenize(known)
    assert not caplog.text
