"""Subgraph blueprints: listed by the host, whole, and drawing the same picture as the graph they stand for."""

import copy
import io
import json
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sana_native.tests.support.released_files import save_released
from sana_native.tools.make_workflows import workflows
from sana_native.tools.workflow import set_inputs, to_api
from sana_native.tools.workflow_blueprint import INPUT_NODE, OUTPUT_NODE, unfold
from sana_native.tools.workflow_build import pack_version

FOLDER = Path(__file__).resolve().parents[2] / "subgraphs"
# Blueprint -> the shared workflow that it stands for.
SAME_AS = {"Text to Image (SANA)": "sana_txt2img", "Text to Image (SANA-Sprint)": "sana_sprint_txt2img"}
SMALL = {"size": "custom", "width": 128, "height": 128}
every = pytest.mark.parametrize("name", sorted(SAME_AS))


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def with_save_image(blueprint: dict) -> dict:
    """As a user has it on the canvas: the one node, its picture saved."""
    workflow = copy.deepcopy(blueprint)
    number = workflow["nodes"][0]["id"]
    images = {"name": "images", "type": "IMAGE", "link": 1}
    save = {"id": number + 1, "type": "SaveImage", "inputs": [images], "outputs": [], "widgets_values": ["blueprint"]}
    workflow["nodes"].append(save)
    workflow["links"] = [[1, number, 0, number + 1, 0, "IMAGE"]]
    return workflow


def test_there_is_a_blueprint_for_sana_and_one_for_sprint():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(SAME_AS)


@every
def test_file_is_what_the_builder_writes(name, object_info):
    assert workflows(object_info)[f"subgraphs/{name}.json"] == load(name)


def test_host_lists_them_among_its_own(comfy_server):
    url = f"{comfy_server().url}/global_subgraphs"
    with urllib.request.urlopen(url) as answer:
        listed = {key: entry for key, entry in json.load(answer).items() if entry["source"] == "custom_node"}
    assert sorted(entry["name"] for entry in listed.values()) == sorted(SAME_AS)
    for key, entry in listed.items():
        assert entry["info"]["node_pack"].startswith("custom_nodes.")
        with urllib.request.urlopen(f"{url}/{urllib.parse.quote(key)}") as answer:
            assert json.loads(json.load(answer)["data"]) == load(entry["name"])


@every
def test_file_holds_one_node_whose_type_is_the_subgraph(name):
    """What the frontend demands of a blueprint."""
    blueprint = load(name)
    (node,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"] and node["title"] == subgraph["name"] == name
    assert node["id"] not in [inner["id"] for inner in subgraph["nodes"]]
    assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == ("sana-native", pack_version())
    assert blueprint["extra"]["BlueprintDescription"] and "sana" in blueprint["extra"]["BlueprintSearchAliases"]
    assert len({load(other)["definitions"]["subgraphs"][0]["id"] for other in SAME_AS}) == len(SAME_AS)


@every
def test_every_widget_on_its_face_is_linked_to_one_inside(name):
    blueprint = load(name)
    (node,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    inner, links = {n["id"]: n for n in subgraph["nodes"]}, {link["id"]: link for link in subgraph["links"]}
    shown = [slot["name"] for slot in node["inputs"]]
    assert shown == [end["name"] for end in subgraph["inputs"]] and len(set(shown)) == len(shown) > 8
    assert {"prompt", "seed", "steps", "model_name", "text_encoder_name", "vae_name"} <= set(shown)
    for number, (end, proxy) in enumerate(zip(subgraph["inputs"], node["properties"]["proxyWidgets"], strict=True)):
        (link,) = (links[key] for key in end["linkIds"])
        slot = inner[link["target_id"]]["inputs"][link["target_slot"]]
        assert (link["origin_id"], link["origin_slot"]) == (INPUT_NODE, number)
        assert (slot["link"], slot["widget"]["name"], slot["type"]) == (link["id"], end["name"], end["type"])
        assert proxy == [str(link["target_id"]), end["name"]]


@every
def test_links_inside_are_known_at_both_ends(name):
    (subgraph,) = load(name)["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    ids = [link["id"] for link in subgraph["links"]]
    assert len(set(ids)) == len(ids) and subgraph["state"]["lastLinkId"] == max(ids)
    for link in subgraph["links"]:
        if link["origin_id"] != INPUT_NODE:
            output = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in output["links"] and output["type"] == link["type"]
        if link["target_id"] == OUTPUT_NODE:
            assert subgraph["outputs"][link["target_slot"]]["linkIds"] == [link["id"]]
        else:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]


@every
def test_blueprint_draws_the_picture_of_the_workflow_it_stands_for(name, comfy_server):
    server = comfy_server(prepare=save_released)
    graph = json.loads((FOLDER.parent / "workflows" / f"{SAME_AS[name]}.json").read_text(encoding="utf-8"))
    drawn = []
    for workflow in (unfold(with_save_image(load(name))), graph):
        prompt = set_inputs(to_api(workflow, server.object_info()), "SanaNativeEmptyLatent", **SMALL)
        (image,) = server.run(prompt, timeout=120).images()
        drawn.append(np.asarray(Image.open(io.BytesIO(server.fetch_image(image)))))
    assert drawn[0].std() > 10 and np.array_equal(*drawn)


def test_value_linked_to_the_face_of_a_subgraph_reaches_the_node_inside(object_info):
    workflow = with_save_image(load("Text to Image (SANA)"))
    node = workflow["nodes"][0]
    source = {"id": 90, "type": "PrimitiveInt", "inputs": [], "outputs": [{"type": "INT", "links": [2]}]}
    workflow["nodes"].append(source | {"widgets_values": [7, "fixed"]})
    slot = next(number for number, entry in enumerate(node["inputs"]) if entry["name"] == "steps")
    node["inputs"][slot]["link"] = 2
    workflow["links"].append([2, 90, 0, node["id"], slot, "INT"])
    prompt = to_api(unfold(workflow), object_info)
    (sampler,) = (entry for entry in prompt.values() if entry["class_type"] == "SanaNativeSampler")
    assert sampler["inputs"]["steps"] == ["90", 0] and sampler["inputs"]["cfg"] == 4.5


def test_unfolding_leaves_other_graphs_and_its_argument_as_they_are():
    plain = json.loads((FOLDER.parent / "workflows" / "sana_txt2img.json").read_text(encoding="utf-8"))
    assert unfold(plain) == plain
    workflow = with_save_image(load("Text to Image (SANA)"))
    before = copy.deepcopy(workflow)
    unfold(workflow)
    assert workflow == before
