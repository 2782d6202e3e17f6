"""Old graphs of ComfyUI_ExtraModels: the host replaces what can be replaced exactly, and the picture is ours."""

import copy
import io
import json

import numpy as np
import pytest
from app.node_replace_manager import NodeReplaceManager
from comfy_api.latest import io as api
from PIL import Image
from sana_native.nodes import NODES
from sana_native.nodes.replacements import replacements
from sana_native.tests.support import workbench as bench
from sana_native.tools.comfy_server import ServerError

import nodes as host_nodes

DEMO = "sana-native-demo/"
# Inputs as the old pack's versions name them; the first version of the loader had no dtype.
OLD_INPUTS = {
    "SanaCheckpointLoader": {"ckpt_name", "model"},
    "GemmaLoader": {"model_name", "device", "dtype"},
    "ExtraVAELoader": {"vae_name", "vae_type", "dtype"},
    "SanaTextEncode": {"text", "GEMMA"},
    "GemmaTextEncode": {"text", "GEMMA"},
    "EmptySanaLatentImage": {"width", "height", "batch_size"},
    "SanaResolutionCond": {"cond", "width", "height"},
    "PixArtCheckpointLoader": {"ckpt_name", "model"},
    "PixArtCheckpointLoaderSimple": {"ckpt_name"},
    "PixArtLoraLoader": {"model", "lora_name", "strength"},
    "T5v11Loader": {"t5v11_name", "t5v11_ver", "path_type", "device", "dtype"},
    "PixArtT5TextEncode": {"text", "T5"},
    "T5TextEncode": {"text", "T5"},
    "PixArtResolutionCond": {"cond", "width", "height"},
}


def node(kind: str, **inputs) -> dict:
    # The host's own rule: a node to be replaced must have a "_meta", as the frontend's export gives it.
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def sampling(seed: int) -> dict:
    return {"seed": seed, "steps": 3, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


def old_graph(seed: int = 1) -> dict:
    return {
        "1": node("SanaCheckpointLoader", ckpt_name=DEMO, model="SanaMS_1600M_P1_D20"),
        "2": node("GemmaLoader", model_name=DEMO, device="cpu", dtype="default"),
        "3": node("ExtraVAELoader", vae_name=DEMO, vae_type="dcae-f32c32-sana-1.0", dtype="BF16"),
        "4": node("SanaTextEncode", text="a red apple", GEMMA=["2", 0]),
        "5": node("GemmaTextEncode", text="blurry", GEMMA=["2", 0]),
        "6": node("SanaResolutionCond", cond=["4", 0], width=96, height=128),
        "7": node("EmptySanaLatentImage", width=96, height=128, batch_size=2),
        "8": node(
            "KSampler", model=["1", 0], positive=["6", 0], negative=["5", 0], latent_image=["7", 0], **sampling(seed)
        ),
        "9": node("VAEDecode", samples=["8", 0], vae=["3", 0]),
        "10": node("SaveImage", images=["9", 0], filename_prefix="old"),
    }


def own_graph() -> dict:
    graph = old_graph()
    rest = {"custom_instruction": "", "lower_case": False, "negative_prompt": ""}
    graph |= {
        "1": node("SanaNativeModelLoader", model_name=DEMO, weight_dtype="auto", shift=0.0, clamp="auto"),
        "2": node("SanaNativeGemmaLoader", text_encoder_name=DEMO, dtype="auto"),
        "3": node("SanaNativeDCAELoader", vae_name=DEMO, dtype="auto"),
        "4": node("SanaNativeGemmaEncode", clip=["2", 0], prompt="a red apple", instruction="on", **rest),
        "5": node("SanaNativeGemmaEncode", clip=["2", 0], prompt="blurry", instruction="off", **rest),
        "7": node("SanaNativeEmptyLatent", size="custom", aspect_ratio="1:1", width=96, height=128, batch_size=2),
    }
    del graph["6"]
    graph["8"]["inputs"]["positive"] = ["4", 0]
    return graph


@pytest.fixture
def manager(monkeypatch) -> NodeReplaceManager:
    """The host's own, with our replacements, in a host that knows our nodes."""
    known = host_nodes.NODE_CLASS_MAPPINGS | {node.GET_SCHEMA().node_id: node for node in NODES}
    monkeypatch.setattr(host_nodes, "NODE_CLASS_MAPPINGS", known)
    made = NodeReplaceManager()
    for replacement in replacements():
        made.register(replacement)
    return made


every_replacement = pytest.mark.parametrize("new", replacements(), ids=lambda new: new.old_node_id)


@every_replacement
def test_only_inputs_that_every_old_version_has_are_taken(new):
    taken = {row["old_id"] for row in new.input_mapping if "old_id" in row}
    assert taken <= OLD_INPUTS[new.old_node_id]
    assert set(new.old_widget_ids) | {"GEMMA", "T5", "cond", "model"} >= OLD_INPUTS[new.old_node_id]


@every_replacement
def test_every_required_input_of_the_new_node_is_given(new, manager):
    kind = host_nodes.NODE_CLASS_MAPPINGS[new.new_node_id]
    given = {row["new_id"] for row in new.input_mapping}
    inputs = kind.INPUT_TYPES()
    assert set(inputs["required"]) == given & set(inputs["required"]) and given <= {
        name for group in inputs.values() for name in group
    }
    assert manager.has_replacement(new.old_node_id)


def test_fixed_values_are_valid():
    ours = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in NODES}
    for new in replacements():
        if new.new_node_id in ours:
            inputs = {item.id: item for item in ours[new.new_node_id].inputs}
            for row in new.input_mapping:
                if "set_value" in row and isinstance(inputs[row["new_id"]], api.Combo.Input):
                    assert row["set_value"] in inputs[row["new_id"]].options


def test_a_pixart_graph_becomes_ours(manager):
    graph = {
        "1": node("PixArtCheckpointLoader", ckpt_name="x.pth", model="PixArtMS_XL_2"),
        "2": node("PixArtLoraLoader", model=["1", 0], lora_name="y.safetensors", strength=0.5),
        "3": node("T5v11Loader", t5v11_name="t5", t5v11_ver="xxl", path_type="folder", device="cpu", dtype="default"),
        "4": node("PixArtT5TextEncode", text="A cat", T5=["3", 0]),
        "5": node("PixArtResolutionCond", cond=["4", 0], width=1024, height=768),
    }
    manager.apply_replacements(graph)
    kinds = {key: value["class_type"] for key, value in graph.items()}
    assert kinds == {
        "1": "SanaNativeModelLoader",
        "2": "SanaNativeLoraLoader",
        "3": "SanaNativeGemmaLoader",
        "4": "SanaNativeGemmaEncode",
        "5": "ConditioningSetAreaStrength",
    }
    assert graph["2"]["inputs"] == {"model": ["1", 0], "lora_name": "y.safetensors", "strength_model": 0.5}
    encode = graph["4"]["inputs"]
    assert (encode["clip"], encode["prompt"], encode["lower_case"]) == (["3", 0], "A cat", True)
    assert graph["5"]["inputs"]["conditioning"] == ["4", 0]


def test_nothing_is_replaced_where_the_old_pack_is_installed(manager):
    host_nodes.NODE_CLASS_MAPPINGS.update(dict.fromkeys(OLD_INPUTS, object))
    graph = old_graph()
    manager.apply_replacements(graph)
    assert graph == old_graph()


def test_graphs_without_old_nodes_stay_as_they_are(manager):
    graph = own_graph()
    manager.apply_replacements(graph)
    assert graph == own_graph()


def test_nodes_without_an_exact_counterpart_are_left(manager):
    of_lumina = ["DownloadAndLoadLuminaModel", "LuminaGemmaTextEncode", "LuminaT2ISampler"]
    kinds = ["SanaResolutionSelect", "PixArtResolutionSelect", "ScmModelSampling", "EXMCLIPLoader", *of_lumina]
    graph = {str(number): node(kind, model="x") for number, kind in enumerate(kinds)}
    before = copy.deepcopy(graph)
    manager.apply_replacements(graph)
    assert graph == before


def test_the_conditioning_that_takes_the_place_of_sana_resolution_cond_changes_no_bit():
    positive, negative = bench.encoded()
    (changed,) = bench.call("ConditioningSetAreaStrength", positive, 1.0)
    conds = (positive, negative)
    assert bench.ksampler(bench.model("sana"), (changed, negative)).equal(bench.ksampler(bench.model("sana"), conds))


# Through the real server


def pictures(server, graph: dict) -> np.ndarray:
    images = server.run(graph, timeout=300).images()
    return np.stack([np.asarray(Image.open(io.BytesIO(server.fetch_image(image)))) for image in images])


def test_the_browser_is_offered_every_replacement(comfy_server):
    offered = json.loads(comfy_server()._request("/node_replacements"))
    assert {name: offered[name][0]["new_node_id"] for name in OLD_INPUTS} == {
        new.old_node_id: new.new_node_id for new in replacements()
    }


def test_an_old_graph_draws_the_pictures_of_our_nodes(comfy_server):
    server = comfy_server()
    old, own = pictures(server, old_graph()), pictures(server, own_graph())
    assert old.shape == (2, 128, 96, 3) and old.std() > 10
    assert np.array_equal(old, own)


def test_a_name_of_the_old_pack_that_is_no_file_here_is_refused_by_name(comfy_server):
    graph = old_graph()
    graph["2"]["inputs"]["model_name"] = "unsloth/gemma-2-2b-it-bnb-4bit"
    with pytest.raises(ServerError, match="GemmaLoader.*not in list.*unsloth/gemma-2-2b-it-bnb-4bit"):
        comfy_server().queue(graph)
