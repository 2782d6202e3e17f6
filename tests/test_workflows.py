"""The shared workflow files: as their builder writes them, complete, and only of nodes that exist."""

import json
from pathlib import Path

import pytest
from sana_native.tools.make_workflows import workflows
from sana_native.tools.workflow import to_api
from sana_native.tools.workflow_build import build

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_every_file_has_its_entry_in_the_builder():
    assert NAMES == sorted(workflows())


@pytest.mark.parametrize("name", NAMES)
def test_file_is_what_the_builder_writes(name, object_info):
    parts = workflows()[name]
    assert build(parts["nodes"], object_info, name=name, groups=parts["groups"]) == load(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_required_input_reaches_the_server(name, object_info):
    for node in to_api(load(name), object_info).values():
        required = object_info[node["class_type"]]["input"].get("required", {})
        assert set(required) <= set(node["inputs"]), node["class_type"]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("demo")])
def test_missing_files_can_be_offered_for_download(name):
    """The frontend offers a file when a widget's value is its name; the folder must be one the loader reads."""
    loaders = [node for node in load(name)["nodes"] if node["type"].endswith("Loader")]
    assert [model["directory"] for node in loaders for model in node["properties"]["models"]] == [
        "diffusion_models",
        "text_encoders",
        "vae",
    ]
    for node in loaders:
        for model in node["properties"]["models"]:
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/")


@pytest.mark.parametrize("name", NAMES)
def test_our_nodes_name_the_pack_they_come_from(name):
    for node in load(name)["nodes"]:
        if node["type"].startswith("SanaNative"):
            assert node["properties"]["cnr_id"] == "sana-native"
            assert node["properties"]["ver"]
