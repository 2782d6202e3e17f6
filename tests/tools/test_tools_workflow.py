"""Workflow files: writing them, and turning them into the prompt the real frontend would queue."""

import json
import re

import pytest
from sana_native.tools import workflow
from sana_native.tools.workflow_build import ROOT, Group, Node, build
from sana_native.tools.workflow_routes import box_of, drawn_paths, runs_under

PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 255}},
    "2": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": "x"},
        "_meta": {"title": "Save"},
    },
}


def txt2img():
    """A stock graph with every kind of link and widget: seeds with control, combos, text, links into widgets."""
    checkpoint = Node(
        "CheckpointLoaderSimple",
        {"ckpt_name": "model.safetensors"},
        models=[{"name": "model.safetensors", "url": "https://a.example/m", "directory": "checkpoints"}],
    )
    positive = Node("CLIPTextEncode", {"clip": checkpoint[1], "text": "a red fox"}, title="Prompt")
    negative = Node("CLIPTextEncode", {"clip": checkpoint[1]}, title="Negative")
    size = Node("PrimitiveInt", {"value": 256}, control="fixed")
    latent = Node("EmptyLatentImage", {"width": size, "height": 128})
    sampler = Node(
        "KSampler",
        {
            "model": checkpoint,
            "positive": positive,
            "negative": negative,
            "latent_image": latent,
            "seed": 7,
            "steps": 3,
            "cfg": 4.5,
        },
        control="fixed",
        title="Denoise",
    )
    decode = Node("VAEDecode", {"samples": sampler, "vae": checkpoint[2]})
    save = Node("SaveImage", {"images": decode})
    note = Node("MarkdownNote", {"text": "hello"})
    nodes = [checkpoint, positive, negative, size, latent, sampler, decode, save, note]
    return nodes, [Group("Text", [[positive, negative]])]


def test_built_workflow_becomes_the_prompt_it_describes(object_info):
    nodes, groups = txt2img()
    prompt = workflow.to_api(json.loads(json.dumps(build(nodes, object_info, groups=groups))), object_info)
    assert list(prompt) == [str(number) for number in range(1, 9)]
    assert prompt["6"] == {
        "class_type": "KSampler",
        "_meta": {"title": "Denoise"},
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["5", 0],
            "seed": 7,
            "steps": 3,
            "cfg": 4.5,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    }
    assert prompt["5"]["inputs"] == {"width": ["4", 0], "height": 128, "batch_size": 1}
    assert prompt["2"]["inputs"] == {"clip": ["1", 1], "text": "a red fox"}
    assert prompt["8"]["inputs"]["filename_prefix"] == "ComfyUI"


def test_built_workflow_has_what_the_frontend_needs(object_info):
    nodes, groups = txt2img()
    built = build(nodes, object_info, groups=groups)
    by_id = {node["id"]: node for node in built["nodes"]}
    assert (built["version"], built["last_node_id"], built["last_link_id"]) == (0.4, 9, len(built["links"]))
    for link_id, source, source_slot, target, target_slot, kind in built["links"]:
        assert link_id in by_id[source]["outputs"][source_slot]["links"]
        assert by_id[source]["outputs"][source_slot]["type"] == kind
        assert by_id[target]["inputs"][target_slot]["link"] == link_id
    assert by_id[6]["widgets_values"] == [7, "fixed", 3, 4.5, "euler", "simple", 1.0]
    assert by_id[1]["properties"]["cnr_id"] == "comfy-core"
    assert by_id[1]["properties"]["models"][0]["directory"] == "checkpoints"
    assert by_id[9]["widgets_values"] == ["hello"]
    boxes = [(*node["pos"], *node["size"]) for node in built["nodes"]]
    for number, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[number + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, "two nodes overlap"


def test_frames_that_hold_every_node_become_columns_of_one_width(object_info):
    image = Node("EmptyImage")
    invert = Node("ImageInvert", {"image": image})
    save = Node("SaveImage", {"images": invert})
    groups = [Group("Make", [[image, invert]]), Group("Show", [[save]])]
    built = build([image, invert, save, Node("MarkdownNote", {"text": "hello"})], object_info, groups=groups)
    boxes = [(*node["pos"], *node["size"]) for node in built["nodes"]]
    assert boxes[0][0] == boxes[1][0] and boxes[0][2] == boxes[1][2] and boxes[0][1] < boxes[1][1]
    assert boxes[0][0] < boxes[2][0], "the frames in their order"
    assert boxes[3][1] + boxes[3][3] < boxes[0][1] and boxes[3][2] > boxes[2][0], "the note above all of them"


def test_a_link_that_would_run_under_a_node_is_led_around_it(object_info):
    image = Node("EmptyImage")
    between = Node("ImageBlur", {"image": image})
    last = Node("ImageBatch", {"image1": image, "image2": between})
    built = build([image, between, last], object_info, groups=[Group("All", [[image], [between], [last]])])
    boxes = [box_of(node) for node in built["nodes"]]
    paths = drawn_paths(built)
    straight = drawn_paths(built | {"extra": {}})
    (around,) = {point["linkIds"][0] for point in built["extra"]["reroutes"]}
    assert around == built["links"][1][0] and runs_under(straight[around], boxes)
    assert not [link for link, points in paths.items() if runs_under(points, boxes)]


def test_note_is_as_high_as_its_text_without_the_addresses_of_links(object_info):
    texts = ("[here](https://a.example/" + "a" * 400 + ")", "word " * 200)
    heights = [build([Node("MarkdownNote", {"text": text})], object_info)["nodes"][0]["size"][1] for text in texts]
    assert heights[0] < 100 < heights[1]


def test_bypassed_node_is_saved_so(object_info):
    image = Node("EmptyImage")
    invert = Node("ImageInvert", {"image": image}, mode=workflow.BYPASSED)
    built = build([image, invert, Node("SaveImage", {"images": invert})], object_info)
    assert [node["mode"] for node in built["nodes"]] == [0, workflow.BYPASSED, 0]
    assert list(workflow.to_api(built, object_info)) == ["1", "3"]


def test_an_input_that_grows_has_a_free_socket_after_those_with_links(object_info):
    one, other = Node("EmptyImage"), Node("EmptyImage", {"width": 64})
    batch = Node("BatchImagesNode", {"images.image0": one, "images.image1": other})
    built = build([one, other, batch], object_info)
    assert [(slot["name"], slot["type"], "shape" in slot) for slot in built["nodes"][2]["inputs"]] == [
        ("images.image0", "IMAGE", False), ("images.image1", "IMAGE", True), ("images.image2", "IMAGE", True)
    ]  # fmt: skip
    prompt = workflow.to_api(built, object_info)
    assert prompt["3"]["inputs"] == {"images.image0": ["1", 0], "images.image1": ["2", 0]}
    with pytest.raises(workflow.WorkflowError, match=r"BatchImagesNode\.images\.image0 needs a link"):
        build([Node("BatchImagesNode")], object_info)


def test_upload_button_has_its_value(object_info):
    built = build([Node("LoadImage", {"image": "a.png"})], object_info)
    assert built["nodes"][0]["widgets_values"] == ["a.png", "image"]
    assert workflow.to_api(built, object_info)["1"]["inputs"] == {"image": "a.png"}


def test_same_description_gives_the_same_file(object_info):
    one, two = (json.dumps(build(*txt2img()[:1], object_info, name="same")) for _ in range(2))
    assert one == two


def test_pack_nodes_carry_the_pack_and_its_version(object_info):
    ours = {**object_info["EmptyImage"], "python_module": "custom_nodes.sana native-pack"}
    built = build([Node("Ours", {})], {"Ours": ours})
    version = re.search(r'version = "([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert built["nodes"][0]["properties"] == {"Node name for S&R": "Ours", "cnr_id": "sana-native", "ver": version}


@pytest.mark.parametrize(
    "nodes, sentence",
    [
        ([Node("Nope")], "There is no node Nope; check its spelling"),
        ([Node("EmptyImage", {"widht": 1})], "EmptyImage has no input widht; it has batch_size, color, height, width"),
        ([Node("SaveImage")], "SaveImage.images needs a link"),
        ([Node("SaveImage", {"images": Node("EmptyImage")})], "SaveImage.images reads EmptyImage, which is not among"),
    ],
)
def test_mistakes_in_a_description_are_named(object_info, nodes, sentence):
    with pytest.raises(workflow.WorkflowError, match=sentence):
        build(nodes, object_info)


def test_output_that_does_not_exist_is_named(object_info):
    image = Node("EmptyImage")
    with pytest.raises(workflow.WorkflowError, match="EmptyImage has 1 outputs, but SaveImage.images asks for"):
        build([image, Node("SaveImage", {"images": image[2]})], object_info)


def test_dynamic_combo_brings_its_own_inputs(object_info):
    image = Node("EmptyImage")
    resize = Node(
        "ResizeImageMaskNode", {"input": image, "resize_type": "scale by multiplier", "resize_type.multiplier": 0.5}
    )
    built = build([image, resize, Node("SaveImage", {"images": resize})], object_info)
    inputs = workflow.to_api(built, object_info)["2"]["inputs"]
    assert inputs["resize_type"] == "scale by multiplier" and inputs["resize_type.multiplier"] == 0.5
    specs = dict(workflow.input_specs(object_info["ResizeImageMaskNode"]))
    assert inputs["scale_method"] in workflow.choices(specs["scale_method"])


def chain(object_info, mode=0):
    """EmptyImage -> ImageInvert (of the given mode) -> SaveImage."""
    image = Node("EmptyImage")
    invert = Node("ImageInvert", {"image": image})
    built = build([image, invert, Node("SaveImage", {"images": invert})], object_info)
    built["nodes"][1]["mode"] = mode
    return built


def test_bypassed_node_passes_its_input_on(object_info):
    prompt = workflow.to_api(chain(object_info, workflow.BYPASSED), object_info)
    assert "2" not in prompt and prompt["3"]["inputs"]["images"] == ["1", 0]


def test_muted_node_leaves_nothing(object_info):
    prompt = workflow.to_api(chain(object_info, workflow.MUTED), object_info)
    assert "2" not in prompt and "images" not in prompt["3"]["inputs"]


def test_reroutes_and_primitives_are_seen_through(object_info):
    built = chain(object_info)
    built["nodes"][1] = {
        "id": 2,
        "type": "Reroute",
        "inputs": [{"name": "", "type": "*", "link": 1}],
        "outputs": [{"name": "", "type": "IMAGE", "links": [2]}],
    }
    built["nodes"].append(
        {"id": 4, "type": "PrimitiveNode", "outputs": [{"type": "INT", "links": [3]}], "widgets_values": [96, "fixed"]}
    )
    built["links"].append([3, 4, 0, 1, 0, "INT"])
    built["nodes"][0]["inputs"][0]["link"] = 3
    prompt = workflow.to_api(built, object_info)
    assert prompt["3"]["inputs"]["images"] == ["1", 0] and prompt["1"]["inputs"]["width"] == 96


def test_upload_button_does_not_shift_the_values_after_it(object_info):
    assert workflow.read_widgets(object_info["LoadImageMask"], ["a.png", "alpha", "image"]) == {
        "image": "a.png",
        "channel": "alpha",
    }


def test_short_or_named_widget_lists_are_filled_with_defaults(object_info):
    assert workflow.read_widgets(object_info["EmptyImage"], [64])["height"] == 512
    assert workflow.read_widgets(object_info["EmptyImage"], {"width": 64, "unknown": 1}) == {"width": 64}


def test_unknown_node_type_names_the_cure(object_info):
    built = chain(object_info)
    built["nodes"][1]["type"] = "SomePacksNode"
    with pytest.raises(workflow.WorkflowError, match="holds the node SomePacksNode, which this ComfyUI lacks"):
        workflow.to_api(built, object_info)


def test_set_inputs_finds_nodes_by_title_or_class_and_keeps_the_original():
    changed = workflow.set_inputs(workflow.set_inputs(PROMPT, "Save", filename_prefix="x"), "EmptyImage", width=8)
    assert changed["2"]["inputs"]["filename_prefix"] == "x" and changed["1"]["inputs"]["width"] == 8
    assert PROMPT["1"]["inputs"]["width"] == 64


def test_set_inputs_refuses_what_does_not_exist():
    with pytest.raises(workflow.WorkflowError, match="0 nodes are called Nope, expected one"):
        workflow.set_inputs(PROMPT, "Nope", width=1)
    with pytest.raises(workflow.WorkflowError, match="EmptyImage has no input widht; it has width, height"):
        workflow.set_inputs(PROMPT, "EmptyImage", widht=1)


def test_built_workflow_runs_on_the_server(comfy_server, object_info):
    result = comfy_server().run(workflow.to_api(chain(object_info), object_info), timeout=60)
    assert len(result.images()) == 1
