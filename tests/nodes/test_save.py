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
    monkeypatch.setattr(save.args, "disable_metadata", True)
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


@pytest.mark.parametrize(
    ("load", "socket", "told"),
    [
        (bench.lumina, "model", "The MODEL is a Lumina-Next transformer, which is .*, only a SANA transformer is"),
        (bench.lumina_clip, "clip", "The CLIP is a Gemma-1 text encoder, which is .*, only a Gemma-2 text encoder is"),
    ],
)
def test_a_family_that_is_not_written_narrow_is_refused_by_name(load, socket, told, output):
    with pytest.raises(ValueError, match=told):
        call(OURS["QuantizeSave"], **{socket: load()})
    assert not written(output)


def test_another_model_is_refused(output, monkeypatch):
    model = bench.fresh_model("sana")
    monkeypatch.setattr(
        model, "state_dict_for_saving", lambda: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}
    )
    with pytest.raises(
        ValueError, match="^The MODEL is a Stable Diffusion model .+, not a SANA transformer: connect that"
    ):
        call(SAVE, model, None, "int8", "mine")
    assert not written(output)
