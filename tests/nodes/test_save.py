"""SANA Quantize & Save: which files it writes, what they are called and say, and what it refuses."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import folder_paths
import pytest
import safetensors
import torch
from comfy.cli_args import args
from comfy.quant_ops import QuantizedTensor
from sana_native.models.registry import load_model
from sana_native.nodes import save
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.quantized import load_gemma, load_sana
from sana_native.tests.support.workbench import OURS, call

SAVE = OURS["QuantizeSave"]


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def written(output: Path) -> list[str]:
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())


def test_model_and_clip_become_two_files_that_the_loaders_read(output):
    model, clip = bench.fresh_model("sprint"), bench.clip()
    (paths,) = call(SAVE, model, clip, "int8", "mine")
    assert paths.split("\n") == [str(output / name) for name in (
        "diffusion_models/mine_int8_00001_.safetensors", "clip/mine_int8_00001_.safetensors",
    )]  # fmt: skip
    loaded, encoder = load_sana(paths.split("\n")[0]), load_gemma(paths.split("\n")[1])
    assert loaded.model.is_sprint and 0 < bench.rms_error(bench.velocity(loaded), bench.velocity(model)) < 0.05
    states = [call("CLIPTextEncode", one, "a cat")[0][0][0] for one in (encoder, clip)]
    assert 0 < bench.rms_error(*states) < 0.05


@pytest.mark.parametrize(("inputs", "folder"), [(("model",), "diffusion_models"), (("clip",), "clip")])
def test_one_of_them_becomes_one_file(output, inputs, folder):
    parts = {"model": bench.fresh_model("sana"), "clip": bench.clip()}
    call(SAVE, preset="fp8", filename_prefix="sub/mine", **{name: parts[name] for name in inputs})
    assert written(output) == [f"{folder}/sub/mine_fp8_00001_.safetensors"]


def test_names_count_up(output):
    for _ in range(2):
        call(SAVE, None, bench.clip(), "int8", "mine")
    assert written(output) == [f"clip/mine_int8_0000{number}_.safetensors" for number in (1, 2)]


def test_the_hosts_own_loader_reads_the_text_encoder(output):  # noqa: ARG001 - sets the folder
    (path,) = call(SAVE, None, bench.clip(), "int8", "mine")
    widths = {"vocab_size": 600, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    with torch.inference_mode():
        stock = comfy.sd.load_clip(
            [path], clip_type=comfy.sd.CLIPType.PIXELDIT, model_options={"gemma2_2b_model_config": widths}
        )
        ours = load_gemma(path)
    found, expected = (one.cond_stage_model.gemma2_2b.transformer.state_dict() for one in (stock, ours))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key].float(), tensor.float()), key


def test_layers_that_stay_wide_are_named_in_the_log(output, caplog):  # noqa: ARG001 - sets the folder
    with caplog.at_level(logging.INFO, "sana_native"):
        call(SAVE, bench.fresh_model("sana"), None, "nvfp4", "mine")
    (text,) = (record.getMessage() for record in caplog.records if "is written" in record.getMessage())
    for part in (
        "mine_nvfp4_00001_.safetensors is written",
        "layers nvfp4",
        "In int8_tensorwise because it loses too much in 4 bits: ",
        "Wide because it loses most per byte: ",
        "caption_projection.linear_1, caption_projection.linear_2, proj_out.",
        "Wide because the host keeps convolutions wide: patch_embed.proj, transformer_blocks.{0-1}.ff.conv_depth.",
    ):
        assert part in text


def test_the_graph_is_kept_as_the_hosts_save_nodes_keep_it(output, monkeypatch):
    hidden = SimpleNamespace(prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}})
    metadata = save.metadata_of_graph(hidden)
    assert metadata == {"prompt": json.dumps({"1": {}}), "workflow": json.dumps({"nodes": []})}
    save.save_parts({"text_encoder": bench.clip()}, "int8", "mine", metadata)
    with safetensors.safe_open(output / written(output)[0], "pt") as file:
        told = file.metadata()
    assert metadata.items() <= told.items() and told["modelspec.architecture"] == "gemma-2"
    monkeypatch.setattr(args, "disable_metadata", True)
    assert save.metadata_of_graph(hidden) == {}


def test_nothing_connected_is_one_sentence():
    with pytest.raises(ValueError, match="^There is nothing to quantize: connect a model, a clip, or both.$"):
        call(SAVE)


def test_a_quantized_model_is_refused(output):
    (path,) = call(SAVE, bench.fresh_model("sana"), None, "int8", "mine")
    with pytest.raises(
        ValueError, match="^The MODEL is already quantized, and a second rounding would only add errors"
    ):
        call(SAVE, load_sana(path), None, "int8", "again")
    assert len(written(output)) == 1


def test_lumina_and_its_text_encoder_become_files_that_the_same_loaders_read(output):
    (paths,) = call(SAVE, bench.lumina(), bench.lumina_clip(), "fp8", "mine")
    assert len(written(output)) == 2
    with torch.inference_mode():
        parts = ("transformer", "text_encoder")
        model, clip = (load_model(part, path) for part, path in zip(parts, paths.split("\n"), strict=True))
    assert isinstance(model.model.diffusion_model.layers[0].attention.wq.weight, QuantizedTensor)
    states = [call("CLIPTextEncode", one, "a cat")[0][0][0] for one in (clip, bench.lumina_clip())]
    assert 0 < bench.rms_error(*states) < 0.1


def test_another_model_is_refused(output, monkeypatch):
    model = bench.fresh_model("sana")
    monkeypatch.setattr(
        model, "state_dict_for_saving", lambda: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}
    )
    with pytest.raises(
        ValueError,
        match="^The MODEL is a Stable Diffusion model .+, not a SANA transformer or a PixArt transformer or a "
        "Lumina-Next transformer: connect that of SANA Model Loader.",
    ):
        call(SAVE, model, None, "int8", "mine")
    assert not written(output)


def lora(layer: str, *shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    names = (f"{layer}.lora_up.weight", f"{layer}.lora_down.weight")
    return {name: torch.full(shape, 0.1) for name, shape in zip(names, shapes, strict=True)}


def test_a_lora_in_bypass_mode_is_refused(output):
    """It computes beside the weights; the file would be the model without it."""
    linear = lora("diffusion_model.transformer_blocks.0.attn1.to_q", (64, 4), (4, 64))
    text = lora("text_encoders.gemma2_2b.transformer.model.layers.0.mlp.up_proj", (96, 4), (4, 64))
    with torch.inference_mode():
        model, _ = comfy.sd.load_bypass_lora_for_models(bench.fresh_model("sana"), None, linear, 1.0, 0)
        _, clip = comfy.sd.load_bypass_lora_for_models(None, bench.clip(), text, 0, 1.0)
    told = "^The {} has a LoRA in bypass mode, which is in no weight and so in no file: load it with {} instead"
    with pytest.raises(ValueError, match=told.format("MODEL", "SANA LoRA Loader")):
        call(SAVE, model, None, "int8", "mine")
    with pytest.raises(ValueError, match=told.format("CLIP", "Load LoRA")):
        call(SAVE, None, clip, "int8", "mine")
    assert not written(output)


def test_a_lora_beside_a_depthwise_convolution_is_refused(output):
    model = bench.fresh_model("sana")
    name = "transformer_blocks.0.ff.conv_depth"
    channels = model.model.diffusion_model.get_submodule(name).weight.shape[0]
    mixing = lora(f"diffusion_model.{name}", (1, 4, 1, 1), (4, channels, 3, 3))
    with torch.inference_mode():
        changed, _ = comfy.sd.load_lora_for_models(model, None, mixing, 1.0, 0)
    assert any(key.endswith(".depthwise_lora") for key in changed.object_patches)
    with pytest.raises(
        ValueError, match="^The MODEL has a LoRA that mixes .+ and load it on the new file's model with SANA LoRA L"
    ):
        call(SAVE, changed, None, "int8", "mine")
    assert not written(output)


def test_nothing_is_written_when_one_of_two_is_refused(output):
    (path,) = call(SAVE, None, bench.clip(), "int8", "mine")
    with pytest.raises(ValueError, match="^The CLIP is already quantized"):
        call(SAVE, bench.fresh_model("sana"), load_gemma(path), "int8", "again")
    assert written(output) == ["clip/mine_int8_00001_.safetensors"]


NAMELESS = (" ", "...", "..", ". .", "a/  ", "  /a", ".../a")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("../x", "filename_prefix ../x leads out of .+/clip, whose files the loaders list: leave out"),
        ("../../x", "filename_prefix ../../x leads out of .+/clip, whose files"),
        ("a/../../x", "leads out of .+/clip, whose files"),
        ("link/x", "leads out of .+/clip, whose files"),
        ("a\0b", r"filename_prefix a\?b holds a character that no file name can have: retype it"),
        ("a\nb", r"filename_prefix a.b holds a character that no file name can have: retype it"),
        ("\ud800", r"filename_prefix \? holds a character that no file name can have"),
        *((prefix, "filename_prefix .* names nothing but spaces or dots: give it a name") for prefix in NAMELESS),
        ("x" * 300, "filename_prefix x+…x+ is too long: use at most 200 bytes between two slashes"),
        ("sub/" + "z" * 300 + "/q", "is too long"),
        ("字" * 80, "is too long"),
        ("taken/x", r"The folder of filename_prefix taken/x cannot be made in .+/clip \(Not a directory\): choose an"),
        ("taken/sub/x", r"The folder of filename_prefix taken/sub/x cannot be made in .+ \(Not a directory\)"),
    ],
)
def test_a_prefix_that_cannot_be_used_is_one_sentence(output, prefix, message):
    (output / "clip").mkdir()
    (output / "clip" / "taken").write_text("a file")
    (output / "elsewhere").mkdir()
    (output / "clip" / "link").symlink_to(output / "elsewhere")
    with pytest.raises((ValueError, OSError), match=message) as error:
        call(SAVE, None, bench.clip(), "int8", prefix)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert written(output) == ["clip/taken"]


@pytest.mark.parametrize("prefix", ["", "/a", "a/", "./a", "a//b", ".a", "a b", "🦊é", "%year%/x", "x" * 200])
def test_a_prefix_that_stays_in_its_folder_is_used(output, prefix):
    (path,) = call(SAVE, None, bench.clip(), "int8", prefix)
    (name,) = written(output)
    assert path == str(output / name) and name.startswith("clip/")


def test_the_folder_may_not_be_a_file(output):
    (output / "clip").write_text("a file")
    with pytest.raises(
        OSError, match=r"^The folder of filename_prefix x cannot be made in .+/clip \(Not a directory\)"
    ):
        call(SAVE, None, bench.clip(), "int8", "x")
