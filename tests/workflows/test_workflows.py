"""The shared workflow files: as their builder writes them, complete, tidy, listed by the host, and every one runs."""

import io
import json
import os
import re
import urllib.request
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.supported_models
import folder_paths
import numpy as np
import pytest
from PIL import Image
from sana_native.tests.support.clips import save_large_clip
from sana_native.tests.support.released_files import place, save_released
from sana_native.tools.comfy_server import ServerError
from sana_native.tools.make_thumbnails import thumbnail
from sana_native.tools.make_workflows import workflows
from sana_native.tools.workflow import (
    BYPASSED,
    choices,
    default,
    has_control,
    has_upload,
    input_specs,
    is_widget,
    set_inputs,
    to_api,
)
from sana_native.tools.workflow_build import (
    ELEMENT_HEIGHT,
    ERROR_STRIP,
    GROWING,
    HOST_VERSION,
    LIVE_PREVIEW_HEIGHT,
    NOTES,
    PREVIEW_GROWTH,
    Node,
    Output,
    expand,
    grown_specs,
    pack_version,
)
from sana_native.tools.workflow_files import CLIP_TEXT, CLIP_VISION
from sana_native.tools.workflow_graphs import graphs
from sana_native.tools.workflow_routes import TITLE_HEIGHT, drawn_paths, runs_under

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
DEMOS = [name for name in NAMES if name.startswith("demo")]
RELEASED = [name for name in NAMES if name not in DEMOS]
REFINED = "pixart_sigma_refined"
THUMBNAIL_BYTES = 30_000
# Pixels of a small notebook's page, and what the page leaves around the nodes.
WINDOW, FIT_PADDING = (1366, 768), 10
# Values that depend on the files a user has.
FILE_WIDGETS = {"model_name", "text_encoder_name", "vae_name", "lora_name", "control_net_name", "image"}
# What the test models are drawn at in place of the released sizes: seconds instead of hours.
SMALL, LARGE = 128, 512
# Of graphs that start from the picture of 128 x 96 px, two of them scaled to whole cells, one by pixels; or enlarge.
SIZES_FROM_FILES = {
    "sana_img2img": (96, 160, 3),
    "sana_sprint_refine": (96, 160, 3),
    "sana_inpaint": (96, 128, 3),
    "sana_outpaint": (111, 148 + 400, 3),
    "sana_hires_fix": (SMALL * 3 // 2, SMALL * 3 // 2, 3),
}
ROOM = 0.35  # GiB, where decoding LARGE in float32 takes 0.27 in the smallest exact tiles and 0.45 whole
# Of what the demo cannot show, the thumbnail is the graph itself.
DRAWN = [
    "sana_lora",
    "sana_blend",
    "sana_controlnet_scribble",
    "sana_hires_fix",
    "sana_prompt_enhance",
    "lumina_next_txt2img",
    "lumina_next_2k",
    "pixart_sigma_txt2img",
    "pixart_alpha_lcm",
    "pixart_sigma_refined",
    "sana_clip_score",
    "sana_train_lora",
    "sana_train_model",
]
SCORED = "sana_clip_score"
TRAININGS = ["sana_train_lora", "sana_train_model"]
every = pytest.mark.parametrize("name", NAMES)


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def ours(node: dict) -> bool:
    return node["type"].startswith("SanaNative")


# The files


def test_every_file_has_its_entry_in_the_builder():
    assert NAMES == sorted(graphs())


@pytest.fixture(scope="module")
def built(object_info) -> dict[str, dict]:
    return workflows(object_info)


@every
def test_file_is_what_the_builder_writes(name, built):
    assert built[f"workflows/{name}.json"] == load(name)


@every
def test_prompt_of_the_file_is_the_graph_that_was_described(name, object_info):
    """The shared form and the form that a server runs: the second is made here from the description alone."""
    nodes = graphs()[name].nodes
    ids = {node: str(number) for number, node in enumerate(nodes, 1)}

    def value(given: object) -> object:
        if not isinstance(given, Node | Output):
            return given
        source, slot = (given, 0) if isinstance(given, Node) else (given.node, given.slot)
        if source.mode == BYPASSED:
            return value(next(link for link in source.inputs.values() if isinstance(link, Node | Output)))
        return [ids[source], slot]

    expected = {}
    for node in nodes:
        if node.type not in NOTES and node.mode != BYPASSED:
            specs = expand(input_specs(object_info[node.type]), node.inputs)
            shown = {key: default(spec) for key, spec in specs if is_widget(spec)}
            expected[ids[node]] = (node.type, shown | {key: value(given) for key, given in node.inputs.items()})
    prompt = to_api(load(name), object_info)
    assert {number: (node["class_type"], node["inputs"]) for number, node in prompt.items()} == expected


@every
def test_every_required_input_reaches_the_server(name, object_info):
    for node in to_api(load(name), object_info).values():
        required = object_info[node["class_type"]]["input"].get("required", {})
        # Of an input that grows with its links, the first one.
        named = {name if spec[0] != GROWING else grown_specs(spec, {}, name)[0][0] for name, spec in required.items()}
        assert named <= set(node["inputs"]), node["class_type"]


@every
def test_every_widget_has_a_value_that_the_host_allows(name, object_info):
    for node in load(name)["nodes"]:
        if node["type"] in NOTES:
            assert [type(value) for value in node["widgets_values"]] == [str]
            continue
        prompt = to_api({"nodes": [node | {"inputs": [], "mode": 0}], "links": []}, object_info)[str(node["id"])]
        specs = expand(input_specs(object_info[node["type"]]), prompt["inputs"])
        widgets = [(key, spec) for key, spec in specs if is_widget(spec)]
        uploads = any(has_upload(spec) for _, spec in widgets)
        assert len(node["widgets_values"]) == sum(1 + has_control(key, spec) for key, spec in widgets) + uploads
        assert None not in node["widgets_values"]
        for key, spec in widgets:
            value, limits = prompt["inputs"][key], spec[1] if len(spec) > 1 else {}
            if choices(spec) and key not in FILE_WIDGETS:
                assert value in choices(spec), (node["type"], key)
            if isinstance(value, int | float) and "min" in limits:
                assert limits["min"] <= value <= limits["max"], (node["type"], key)


@every
def test_links_are_known_at_both_ends(name):
    workflow = load(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    assert len(nodes) == len(workflow["nodes"]) and len(links) == len(workflow["links"])
    assert (workflow["last_node_id"], workflow["last_link_id"]) == (max(nodes), max(links))
    for number, source, source_slot, target, target_slot, kind in links.values():
        output, entry = nodes[source]["outputs"][source_slot], nodes[target]["inputs"][target_slot]
        assert number in output["links"] and entry["link"] == number
        assert output["type"] == kind and entry["type"] in (kind, "*")
    ends = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    starts = [number for node in nodes.values() for slot in node["outputs"] for number in slot["links"]]
    assert sorted(ends) == sorted(starts) == sorted(links)


def test_no_two_files_share_an_id():
    assert len({load(name)["id"] for name in NAMES}) == len(NAMES)


@every
def test_every_node_names_the_pack_and_version_it_comes_from(name):
    for node in load(name)["nodes"]:
        if node["type"] not in NOTES:
            pack = ("sana-native", pack_version()) if ours(node) else ("comfy-core", HOST_VERSION)
            assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == pack


# The files to download


@pytest.mark.parametrize("name", RELEASED)
def test_missing_files_can_be_offered_for_download(name):
    """The frontend offers a file when a widget's value is its name; the folder must be one the loader reads."""
    loaders = [node for node in load(name)["nodes"] if "Loader" in node["type"]]
    # Reads the ControlNet out of the file of the model loader.
    controls = [loaders.pop(i) for i, node in enumerate(loaders) if node["type"] == "SanaNativeControlNetLoader"]
    folders = {
        "SanaNativeModelLoader": "diffusion_models",
        "SanaNativeLoraLoader": "loras",
        "SanaNativeGemmaLoader": "text_encoders",
        "SanaNativeDCAELoader": "vae",
        "VAELoader": "vae",
        "CheckpointLoaderSimple": "checkpoints",  # with a VAE in it
        "CLIPVisionLoader": "clip_vision",
        "CLIPLoader": "text_encoders",
    }
    named = {folders[node["type"]] for node in loaders}
    assert named >= {"diffusion_models", "text_encoders"} and named & {"vae", "checkpoints"}
    note = next(node for node in load(name)["nodes"] if node["type"] in NOTES)["widgets_values"][0]
    for node in loaders:
        (model,) = node["properties"]["models"]
        assert set(model) == {"name", "url", "directory"} and model["directory"] == folders[node["type"]]
        assert model["name"] in node["widgets_values"] and model["directory"] in folder_paths.folder_names_and_paths
        assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+", model["url"])
        assert f"models/{model['directory']}: [{model['name']}]({model['url']})" in note
        downloaded = model["url"].rpartition("/")[2]
        assert downloaded == model["name"] or f"(downloaded as {downloaded}: rename it)" in note
    for node in controls:
        assert node["widgets_values"][0] == f"diffusion_models/{loaders[0]['widgets_values'][0]}"


@pytest.mark.parametrize("name", DEMOS)
def test_demo_needs_no_download(name):
    assert not [node for node in load(name)["nodes"] if "models" in node["properties"]]


# The canvas


def box(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom with the title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def apart(a: tuple, b: tuple) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@every
def test_nodes_do_not_overlap_and_stand_in_one_frame_each(name):
    workflow = load(name)
    nodes = workflow["nodes"]
    for number, node in enumerate(nodes):
        assert all(apart(box(node), box(other)) for other in nodes[number + 1 :]), node["type"]
    frames = []
    for group in workflow["groups"]:
        left, top, width, height = group["bounding"]
        frames.append((left, top, left + width, top + height))
    assert all(apart(a, b) for number, a in enumerate(frames) for b in frames[number + 1 :])
    for node in nodes:
        left, top, right, bottom = box(node)
        around = [f for f in frames if f[0] <= left and f[1] <= top and right <= f[2] and bottom <= f[3]]
        touching = [f for f in frames if not apart(f, (left, top, right, bottom))]
        assert around == touching and len(around) == (node["type"] not in NOTES), node["type"]


@every
def test_graph_has_titled_frames_and_one_note_that_says_what_to_change(name):
    workflow = load(name)
    assert all(group["title"] for group in workflow["groups"])
    (note,) = (node for node in workflow["nodes"] if node["type"] in NOTES)
    text = note["widgets_values"][0]
    assert note["title"] == "What to change" and len(text) > 60
    assert "`" not in text, "inline code has no contrast on a note in Nodes 2.0"


@every
def test_it_opens_readable_in_a_small_window(name):
    """The page fits all nodes into three quarters of a window and leaves out text below a scale of 0.57."""
    workflow = load(name)
    boxes = [box(node) for node in workflow["nodes"]]
    width = max(b[2] for b in boxes) - min(b[0] for b in boxes) + 2 * FIT_PADDING
    height = max(b[3] for b in boxes) - min(b[1] for b in boxes) + 2 * FIT_PADDING
    assert min(0.75 * WINDOW[0] / width, 0.75 * WINDOW[1] / height) >= 0.65
    assert len(workflow["groups"]) == 4
    note = next(node for node in workflow["nodes"] if node["type"] in NOTES)
    assert box(note)[3] <= min(group["bounding"][1] for group in workflow["groups"]), "the note is above"


@every
def test_no_link_runs_under_a_node(name):
    workflow = load(name)
    boxes = [box(node) for node in workflow["nodes"]]
    assert not [link for link, points in drawn_paths(workflow).items() if runs_under(points, boxes)]


@every
def test_nodes_have_the_room_that_the_pages_own_elements_need(name):
    """In Nodes 2.0, a strip for a missing file included; the heights were read from the page."""
    for node in load(name)["nodes"]:
        missing = ERROR_STRIP if node["properties"].get("models") else 0
        assert node["size"][1] >= ELEMENT_HEIGHT.get(node["type"], 0) + missing, node["type"]


@every
def test_below_a_sampler_there_is_room_for_its_preview_and_advanced_inputs(name):
    nodes = load(name)["nodes"]
    for sampler in (node for node in nodes if node["type"] in LIVE_PREVIEW_HEIGHT):
        left, _, right, bottom = box(sampler)
        below = [node["type"] for node in nodes if box(node)[1] >= bottom and not (
            box(node)[2] <= left or right <= box(node)[0])]  # fmt: skip
        frames = [group["bounding"] for group in load(name)["groups"]]
        (frame,) = [f for f in frames if f[0] <= left and right <= f[0] + f[2]]
        assert not below and frame[1] + frame[3] >= bottom + PREVIEW_GROWTH


# The host


def test_host_lists_and_serves_every_file_and_its_thumbnail(web_server):
    server = web_server
    with urllib.request.urlopen(f"{server.url}/workflow_templates") as answer:
        assert sorted(json.load(answer)["sana-native"]) == NAMES
    for name in NAMES:
        with urllib.request.urlopen(f"{server.url}/api/workflow_templates/sana-native/{name}.json") as answer:
            assert json.load(answer) == load(name)
        with urllib.request.urlopen(f"{server.url}/api/workflow_templates/sana-native/{name}.jpg") as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"


@pytest.fixture(scope="module")
def server(comfy_server):
    return comfy_server(prepare=save_released)


def small(prompt: dict, side: int = SMALL) -> dict:
    """The prompt at sizes for the tiny models; file names, words, seeds, steps and everything else stay."""
    sizes = {
        "SanaNativeEmptyLatent": {"size": "custom", "width": side, "height": side},
        "EmptyLatentImage": {"width": side, "height": side},
        "ImageScaleToTotalPixels": {"megapixels": side * side / 2**20},
        "TextGenerate": {"max_length": 8},
    }
    for kind, values in sizes.items():
        if any(node["class_type"] == kind for node in prompt.values()):
            prompt = set_inputs(prompt, kind, **values)
    return prompt


def pictures(server, prompt: dict) -> list[np.ndarray]:
    images = server.run(prompt, timeout=300).images()
    return [np.asarray(Image.open(io.BytesIO(server.fetch_image(image)))) for image in images]


@pytest.mark.parametrize("name", [name for name in RELEASED if name not in (REFINED, SCORED, *TRAININGS)])
def test_workflow_runs_with_the_files_it_names(name, server):
    drawn = pictures(server, small(to_api(load(name), server.object_info())))
    size = SIZES_FROM_FILES.get(name, (SMALL, SMALL, 3))
    assert [picture.shape for picture in drawn] == [size] * (4 if name == "sana_seed_batch" else 1)
    assert all(picture.std() > 10 for picture in drawn), "a flat picture"
    assert len({picture.tobytes() for picture in drawn}) == len(drawn)


@pytest.mark.parametrize("name", TRAININGS)
def test_training_runs_with_the_files_it_names_and_a_folder(name, server):
    """The demo's pictures stand for the user's; as it is, the graph asks for a folder."""
    folder = server.base_directory / "input" / "mine"
    folder.mkdir(exist_ok=True)
    for number in range(10):
        with Image.open(ROOT / "demo" / "pictures" / f"{number:02}.png") as picture:
            picture.save(folder / f"{number}.png")
    prompt = to_api(load(name), server.object_info())
    with pytest.raises(ServerError, match="No folder was entered: enter the folder with the pictures"):
        server.run(prompt, timeout=300)
    prompt = set_inputs(prompt, "SanaNativeTrainingSet", folder="mine", size=SMALL, trigger_word="a light")
    kind = "SanaNativeTrainLora" if name == "sana_train_lora" else "SanaNativeTrainModel"
    result = server.run(set_inputs(prompt, kind, steps=2, accumulation=1, preset="custom"), timeout=300)
    saved = [one for number, output in result.outputs.items() for one in output.get("images", [])
             if prompt[number]["class_type"] == "SaveImage"]  # fmt: skip
    before, after = (np.asarray(Image.open(io.BytesIO(server.fetch_image(image)))) for image in saved)
    assert before.shape == after.shape == (SMALL, SMALL, 3) and not np.array_equal(before, after)
    place = "loras" if name == "sana_train_lora" else "diffusion_models"
    assert list((server.base_directory / "models" / place).glob(f"{name.replace('_train', '')}_00001.safetensors"))


@pytest.mark.heavy
def test_an_image_is_scored_by_both_halves_of_a_clip(server):
    vision, text = place(server.base_directory, CLIP_VISION), place(server.base_directory, CLIP_TEXT)
    save_large_clip(vision)
    os.link(vision, text)
    prompt = small(to_api(load(SCORED), server.object_info()))
    prompt = set_inputs(prompt, "EmptyLatentImage", batch_size=2)
    words = next(node["inputs"]["value"] for node in prompt.values() if node["_meta"]["title"] == "Prompt")
    of_the_prompt, of_another = (
        report(server, prompt),
        report(server, set_inputs(prompt, "SANA CLIP Score", text="a boat")),
    )
    assert [line.split("  ")[1] for line in of_the_prompt[:2]] == [words] * 2
    scores = [float(line.split()[0]) for line in (*of_the_prompt[:2], *of_another[:2])]
    assert all(0 < score <= 100 for score in scores) and len(set(scores)) == 4
    assert of_the_prompt[2] == f"mean {sum(scores[:2]) / 2:.2f}, N = 2"


def report(server, prompt: dict) -> list[str]:
    """Lines of what Preview as Text shows."""
    (text,) = (output["text"][0] for output in server.run(prompt, timeout=300).outputs.values() if "text" in output)
    return text.splitlines()


def test_the_refiner_goes_on_from_sigmas_latent_without_a_vae_between(object_info):
    """SDXL's refiner is too large to run here; both models have one format of latents, and the links are whole."""
    prompt = to_api(load(REFINED), object_info)
    of = {node["class_type"]: number for number, node in prompt.items() if node["class_type"] != "CLIPTextEncode"}
    refine, checkpoint = prompt[of["KSampler"]]["inputs"], of["CheckpointLoaderSimple"]
    assert refine["latent_image"] == [of["SanaNativeSampler"], 0] and refine["model"] == [checkpoint, 0]
    assert 0.2 <= refine["denoise"] <= 0.3
    texts = [prompt[refine[side][0]]["inputs"] for side in ("positive", "negative")]
    assert [text["clip"] for text in texts] == [[checkpoint, 1]] * 2 and texts[1]["text"] == ""
    assert texts[0]["text"] == prompt[of["SanaNativeGemmaEncode"]]["inputs"]["prompt"]
    assert prompt[of["VAEDecode"]]["inputs"] == {"samples": [of["KSampler"], 0], "vae": [checkpoint, 2]}
    assert comfy.supported_models.SDXLRefiner.latent_format is comfy.latent_formats.SDXL, "as Sigma's is"


def test_sigma_of_the_refined_graph_runs_without_the_refiner(server):
    prompt = small(to_api(load(REFINED), server.object_info()))
    whole = small(to_api(load("pixart_sigma_txt2img"), server.object_info()))
    of = {node["class_type"]: number for number, node in prompt.items()}
    latent = prompt[of["KSampler"]]["inputs"]["latent_image"]
    prompt[of["VAEDecode"]]["inputs"] = {"samples": latent, "vae": ["vae", 0]}
    refiners = {"CheckpointLoaderSimple", "CLIPTextEncode", "KSampler"}
    prompt = {number: node for number, node in prompt.items() if node["class_type"] not in refiners}
    prompt["vae"] = next(node for node in whole.values() if node["class_type"] == "VAELoader")
    (drawn,) = pictures(server, prompt)
    assert drawn.shape == (SMALL, SMALL, 3) and drawn.std() > 10, "a flat picture"


def test_one_picture_of_the_batch_can_be_drawn_alone(server):
    """The node that picks it is bypassed in the file; switched on, it gives the same picture as in the batch."""
    workflow = load("sana_seed_batch")
    batch = pictures(server, small(to_api(workflow, server.object_info())))
    (picker,) = (node for node in workflow["nodes"] if node["mode"] == BYPASSED)
    picker["mode"] = 0
    (alone,) = pictures(server, small(to_api(workflow, server.object_info())))
    index = picker["widgets_values"][0]
    differences = [np.abs(alone.astype(int) - picture.astype(int)).max() for picture in batch]
    assert differences[index] <= 1 and min(differences[:index] + differences[index + 1 :]) > 50


def test_prompt_is_what_gemma_wrote(server):
    prompt = small(to_api(load("sana_prompt_enhance"), server.object_info()))
    result = server.run(prompt, timeout=300)
    (written,) = (output["text"][0] for output in result.outputs.values() if "text" in output)
    assert written.strip()
    by_hand = set_inputs(prompt, "SanaNativeGemmaEncode", prompt=written)
    by_hand = set_inputs(by_hand, "SaveImage", filename_prefix="by-hand")  # else the host gives what it has kept
    assert np.array_equal(pictures(server, by_hand)[0], pictures(server, prompt)[0])


def test_guidance_of_both_sprint_graphs_acts(server):
    for name in ("sana_sprint_txt2img", "sana_sprint_realtime"):
        prompt = small(to_api(load(name), server.object_info()))
        other = set_inputs(prompt, "FluxGuidance", guidance=1.0)
        assert not np.array_equal(pictures(server, prompt)[0], pictures(server, other)[0])


def test_4k_is_decoded_in_exact_tiles_where_memory_is_short(comfy_server):
    """And the picture is the whole one, which ComfyUI's own tiles are not."""
    total = comfy.model_management.get_total_memory(comfy.model_management.vae_device()) / 2**30
    server = comfy_server("--reserve-vram", f"{total - ROOM:.2f}", prepare=save_released)
    prompt = small(to_api(load("sana_4k_txt2img"), server.object_info()), LARGE)
    prompt = set_inputs(prompt, "SanaNativeDCAELoader", dtype="float32")
    ways = {}, {"tiling": "off"}, {"tiling": "on", "tile_size": 256, "overlap": 32}
    prompts = [set_inputs(prompt, "SanaNativeDCAEDecode", **way) for way in ways]
    tiled, whole, blended = (pictures(server, prompt)[0].astype(int) for prompt in prompts)
    assert server.log().count(f"SANA: {LARGE} x {LARGE} px in tiles of 256 px, exactly as the whole") == 1
    assert np.abs(tiled - whole).max() <= 1 and np.abs(blended - whole).max() > 20


# The bundled models


def as_array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(float)


@pytest.mark.parametrize("name", DEMOS)
def test_demo_draws_its_own_thumbnail(name, comfy_server):
    """As it is, its seed included; the last picture is the one that it saves."""
    drawn = as_array(thumbnail(name, comfy_server()))
    shown = as_array(Image.open(FOLDER / f"{name}.jpg"))
    assert drawn.shape == shown.shape == (256, 256, 3) and drawn.std() > 20
    assert np.square(drawn - shown).mean() < 65, "less than 30 dB"


@pytest.mark.parametrize("name", ["sana_txt2img", "sana_sprint_txt2img", "sana_seed_batch", "sana_pag"])
def test_a_released_graphs_thumbnail_is_what_the_demo_makes_of_it(name, comfy_server):
    drawn = as_array(thumbnail(name, comfy_server()))
    shown = as_array(Image.open(FOLDER / f"{name}.jpg"))
    assert drawn.shape == shown.shape == (384, 384, 3) and drawn[:300].std() > 20
    assert np.square(drawn - shown).mean() < 65, "less than 30 dB"


def test_every_thumbnail_has_a_picture_of_its_own():
    small = [np.asarray(Image.open(FOLDER / f"{name}.jpg").convert("RGB").resize((16, 16))) for name in RELEASED]
    differences = [np.abs(a.astype(int) - b).mean() for number, a in enumerate(small) for b in small[number + 1 :]]
    # All but those that draw their graph, and three that show what became of one image.
    drawn = len(DRAWN) * (len(DRAWN) - 1) // 2
    assert len(differences) == len(RELEASED) * (len(RELEASED) - 1) // 2 and sorted(differences)[drawn + 3] > 10


def test_the_demo_says_how_far_two_settings_are_apart(comfy_server):
    """And says so of equal ones."""
    server = comfy_server()
    prompt = to_api(load("demo_compare"), server.object_info())
    (apart,) = report(server, prompt)
    assert re.fullmatch(r"PSNR \d\d\.\d\d dB, SSIM 0\.\d{4}, largest difference 0\.\d{4}", apart)
    (same,) = report(server, set_inputs(prompt, "First setting", steps=20))
    assert same == "equal, bit for bit"


def test_less_denoising_keeps_more_of_the_demos_first_picture(comfy_server):
    server = comfy_server()
    prompt = to_api(load("demo_img2img"), server.object_info())
    (chosen,) = (node["inputs"]["denoise"] for node in prompt.values() if node["_meta"]["title"] == "Second image")
    changes = []
    for denoise in (0.1, chosen, 1.0):
        first, drawn = pictures(server, set_inputs(prompt, "Second image", denoise=denoise))
        changes.append(np.abs(first.astype(float) - drawn).mean())
    assert 0 < changes[0] < changes[1] < changes[2]


# The thumbnails


@every
def test_thumbnail_is_a_small_square_picture(name):
    path = FOLDER / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.width == picture.height >= 256
    assert path.stat().st_size < THUMBNAIL_BYTES


def test_there_is_no_thumbnail_of_a_graph_that_is_gone():
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == NAMES


@pytest.mark.parametrize("name", DRAWN)
def test_thumbnail_of_what_the_demo_cannot_show_is_a_drawing_of_its_graph(name):
    """Fonts and scaling may differ by a shade between versions of Pillow."""
    drawn, shown = (as_array(picture) for picture in (thumbnail(name, None), Image.open(FOLDER / f"{name}.jpg")))
    assert np.abs(drawn - shown).mean() < 2
