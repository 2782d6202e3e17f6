"""Graphs saved by the last version, and prompts of scripts that leave out what has a default.

`saved_graphs.json` holds the nodes of the workflow files and blueprints of 22 November 2026, and one of every node with
values that differ from the defaults: the widget values as saved by position, and the inputs that they were.
"""

import inspect
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from sana_native.nodes import NODES
from sana_native.tests.support.graphs import SAMPLER_LINKS
from sana_native.tools.workflow import default, input_specs, read_widgets

SAVED = json.loads(Path(__file__).with_name("saved_graphs.json").read_text(encoding="utf-8"))
INFO = {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in NODES}


@pytest.mark.parametrize("graph", SAVED)
def test_every_saved_value_lands_on_the_input_that_it_was_saved_for(graph):
    for node in SAVED[graph]:
        info = INFO[node["type"]]
        inputs = read_widgets(info, node["widgets_values"])
        later = {
            name: default(spec) for name, spec in input_specs(info) if name in inputs.keys() - node["inputs"].keys()
        }
        assert inputs == node["inputs"] | later


def test_graphs_of_every_node_were_saved():
    assert {node["type"] for nodes in SAVED.values() for node in nodes} == INFO.keys()


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_optional_inputs_come_last(node):
    """The browser shows required inputs before optional ones, so any other order would move widgets."""
    optional = [bool(item.optional) for item in node.GET_SCHEMA().inputs]
    assert optional == sorted(optional)


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_an_input_may_be_left_out_where_all_from_it_on_have_a_default(node):
    inputs, parameters = node.GET_SCHEMA().inputs, inspect.signature(node.execute).parameters
    required = [item for item in inputs if not item.optional]
    assert not required or getattr(required[-1], "default", None) is None
    for item in inputs[len(required) :]:
        assert parameters[item.id].default == getattr(item, "default", None)  # a socket has none: it may be left open
        assert hasattr(item, "default") == (parameters[item.id].default is not None)


def prompt(steps: dict) -> dict:
    """The demo's graph as a script writes it, with as few inputs as possible."""
    folder = "sana-native-demo/"
    nodes = {
        "model": (
            "SanaNativeModelLoader",
            {"model_name": folder, "weight_dtype": "auto", "shift": 0.0, "clamp": "auto"},
        ),
        "clip": ("SanaNativeGemmaLoader", {"text_encoder_name": folder, "dtype": "auto"}),
        "vae": ("SanaNativeDCAELoader", {"vae_name": folder, "dtype": "auto"}),
        "text": (
            "SanaNativeGemmaEncode",
            {
                "clip": ["clip", 0],
                "prompt": "a cherry",
                "negative_prompt": "",
                "instruction": "off",
                "custom_instruction": "",
                "lower_case": False,
            },
        ),
        "latent": ("SanaNativeEmptyLatent", {"size": "custom", "width": 64, "height": 64}),
        "sampler": ("SanaNativeSampler", SAMPLER_LINKS | steps),
        "image": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["vae", 0]}),
        "save": ("SaveImage", {"images": ["image", 0], "filename_prefix": "saved"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def pixels(png: bytes) -> bytes:
    """Without the prompt, which the host writes into the file."""
    return Image.open(io.BytesIO(png)).tobytes()


def test_a_script_may_leave_out_what_has_a_default(comfy_server):
    server = comfy_server()
    left_out, given = (
        server.fetch_image(server.run(prompt(steps)).images()[-1])
        for steps in ({"steps": 3}, {"steps": 3, "seed": 0, "cfg": 4.5, "denoise": 1.0})
    )
    assert pixels(left_out) == pixels(given)
