"""The ControlNet loader's list and the file that its save node writes."""

import logging
import os
from pathlib import Path

import folder_paths
import pytest
import safetensors
import torch
from sana_native.models.controlnet.config import DIFFUSERS
from sana_native.nodes import files
from sana_native.tests.support import controlnets, tiny
from sana_native.tests.support.workbench import OURS, call

LOADER, SAVE = OURS["ControlNetLoader"], OURS["ControlNetSave"]


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """The host's folders, empty but for a ControlNet in each place where one may lie."""
    for name in ("controlnet", "checkpoints", "diffusion_models", "diffusers"):
        folder = tmp_path / name
        folder.mkdir()
        _, endings = folder_paths.folder_names_and_paths.get(name, ([], set()))
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(folder)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(files, "MODEL_FOLDERS", files.ModelFolders())
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    base, control = tiny.transformer(num_layers=4), controlnets.reference()
    control.save_pretrained(tmp_path / "diffusers" / "sana" / "controlnet")
    base.save_pretrained(tmp_path / "diffusers" / "sana" / "transformer")
    control.save_pretrained(tmp_path / "diffusers" / "alone")
    for folder in ("controlnet", "checkpoints", "diffusion_models"):
        controlnets.save_merged(tmp_path / folder, base, control)
    os.rename(tmp_path / "controlnet" / "Sana_ControlNet_HED.pth", tmp_path / "controlnet" / "renamed.pth")
    (tmp_path / "checkpoints" / "another.safetensors").write_bytes(b"")
    return tmp_path


def test_the_list_has_folders_files_and_merged_checkpoints(models):  # noqa: ARG001 - sets the folders
    assert [name for name in files.list_controlnets() if "demo" not in name] == [
        "alone/",
        "sana/",
        "renamed.pth",
        "checkpoints/Sana_ControlNet_HED.pth",
        "diffusion_models/Sana_ControlNet_HED.pth",
    ]


def test_every_name_of_the_list_loads(models):  # noqa: ARG001 - as above
    for name in files.list_controlnets():
        (control,) = call(LOADER, name)
        assert control.control_model.config.blocks.depth >= 2
    assert call(LOADER, "sana/", DIFFUSERS)[0].control_model.config.wiring == DIFFUSERS


def test_the_model_loader_lists_the_same_merged_file(models):  # noqa: ARG001 - as above
    (model,) = call(OURS["ModelLoader"], "checkpoints/Sana_ControlNet_HED.pth")
    assert len(model.model.diffusion_model.transformer_blocks) == 4


@pytest.mark.parametrize("name", ["gone.pth", "checkpoints/gone_control.pth", "gone/"])
def test_a_name_that_is_gone_asks_to_pick_again(models, name):  # noqa: ARG001 - as above
    with pytest.raises(FileNotFoundError, match="any more: refresh the list and pick again"):
        call(LOADER, name)


def test_the_saved_file_is_listed_and_loads(models, monkeypatch, caplog):
    (control,) = call(LOADER, "renamed.pth")
    with caplog.at_level(logging.INFO):
        (path,) = call(SAVE, control, "mine")
    assert path == str(models / "output" / "controlnet" / "mine_00001_.safetensors")
    assert f"wrote {path}" in caplog.text
    with safetensors.safe_open(path, "pt") as file:
        assert all(key.startswith("controlnet.") for key in file.keys())  # noqa: SIM118 - no mapping
    files.add_output_controlnets()
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    assert "mine_00001_.safetensors" in files.list_controlnets()
    (again,) = call(LOADER, "mine_00001_.safetensors")
    assert again.control_model.config == control.control_model.config
    weight = again.control_model.input_block.weight
    assert torch.allclose(weight.float(), control.control_model.input_block.weight.float(), rtol=1e-2)


def test_a_prefix_that_leads_out_of_the_folder_is_refused(models):  # noqa: ARG001 - as above
    (control,) = call(LOADER, "renamed.pth")
    with pytest.raises(ValueError, match="leads out of"):
        call(SAVE, control, "../mine")
