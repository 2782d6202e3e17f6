"""Draw every node of the pack among its neighbours, for its help pages: web/docs/<node>/graph.png and graph_zh.png.

    make screenshots    (needs Chromium, and a font with Chinese signs such as Debian's fonts-wqy-zenhei)

The host's page draws them, so they show what a user sees. Neighbours are folded: only the node itself is in full.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from .browser import Tab, open_chromium, serve_fresh

ROOT = Path(__file__).resolve().parent.parent
FILES = {"en": "graph.png", "zh": "graph_zh.png"}
MARGIN, GAP, ROW = 24, 48, 48  # in the graph's units, which are CSS pixels here
SCALE = 1.5  # pixels per unit
COLOURS = 128  # of the picture's palette; the page is mostly greys
LARGEST_FILE = 50_000  # bytes


@dataclass(frozen=True)
class Scene:
    """A node's neighbours: before it by its inputs, after it as (output, type, input); and values for its widgets."""

    before: dict[str, tuple[str, int]] = field(default_factory=dict)
    after: list[tuple[int, str, str]] = field(default_factory=list)
    widgets: dict[str, object] = field(default_factory=dict)
    width: int = 0  # when the node's own is too small for its title or a file's name


MODEL, CLIP, VAE = ("SanaNativeModelLoader", 0), ("SanaNativeGemmaLoader", 0), ("SanaNativeDCAELoader", 0)
TO_SAMPLER, TO_CUSTOM, COMPOSITE = "SanaNativeSampler", "SamplerCustom", "SanaNativeInpaintComposite"
SCENES = {
    "SanaNativeModelLoader": Scene(
        after=[(0, TO_SAMPLER, "model")], widgets={"model_name": "Sana_1600M_1024px_BF16.pth"}, width=360
    ),
    "SanaNativeGemmaLoader": Scene(
        after=[(0, "SanaNativeGemmaEncode", "clip")],
        widgets={"text_encoder_name": "gemma_2_2b_it_elm_bf16.safetensors"},
        width=460,
    ),
    "SanaNativeDCAELoader": Scene(
        after=[(0, "SanaNativeDCAEDecode", "vae"), (0, "SanaNativeDCAEEncode", "vae")],
        widgets={"vae_name": "dc-ae-f32c32-sana-1.1.safetensors"},
        width=400,
    ),
    "SanaNativeLoraLoader": Scene(
        {"model": MODEL},
        [(0, TO_SAMPLER, "model")],
        {"lora_name": "my_style.safetensors", "strength_model": 0.8},
    ),
    "SanaNativeLuminaOptions": Scene({"model": MODEL}, [(0, TO_SAMPLER, "model")], {"preset": "authors"}),
    "SanaNativeQuantizeSave": Scene({"model": MODEL, "clip": CLIP}, width=300),
    "SanaNativeControlNetLoader": Scene(
        after=[(0, "ControlNetApplyAdvanced", "control_net")],
        widgets={"control_net_name": "Sana_1600M_1024px_BF16_ControlNet_HED.pth"},
        width=480,
    ),
    "SanaNativeControlNetSave": Scene({"control_net": ("SanaNativeControlNetLoader", 0)}, width=300),
    "SanaNativeScribble": Scene({"image": ("LoadImage", 0)}, [(0, "ControlNetApplyAdvanced", "image")], width=260),
    "SanaNativeGemmaEncode": Scene(
        {"clip": CLIP},
        [(0, TO_SAMPLER, "positive"), (1, TO_SAMPLER, "negative")],
        {"prompt": "a ginger cat asleep on a stack of old books, warm lamp light, film photo"},
    ),
    "SanaNativeEmptyLatent": Scene(after=[(0, TO_SAMPLER, "latent_image")]),
    "SanaNativeSampler": Scene(
        {
            "model": MODEL,
            "positive": ("SanaNativeGemmaEncode", 0),
            "negative": ("SanaNativeGemmaEncode", 1),
            "latent_image": ("SanaNativeEmptyLatent", 0),
        },
        [(0, "SanaNativeDCAEDecode", "samples")],
    ),
    "SanaNativeDCAEDecode": Scene({"vae": VAE, "samples": ("SanaNativeSampler", 0)}, [(0, "SaveImage", "images")]),
    "SanaNativeDCAEEncode": Scene({"vae": VAE, "pixels": ("LoadImage", 0)}, [(0, TO_SAMPLER, "latent_image")]),
    "SanaNativeInpaintLatent": Scene(
        {"vae": VAE, "image": ("LoadImage", 0), "mask": ("LoadImage", 1)},
        [(0, TO_SAMPLER, "latent_image"), (1, COMPOSITE, "mask"), (2, COMPOSITE, "original")],
    ),
    "SanaNativeInpaintComposite": Scene(
        {
            "original": ("SanaNativeInpaintLatent", 2),
            "result": ("SanaNativeDCAEDecode", 0),
            "mask": ("SanaNativeInpaintLatent", 1),
        },
        [(0, "SaveImage", "images")],
        width=240,
    ),
    "SanaNativeInpaintCrop": Scene(
        {"image": ("LoadImage", 0), "mask": ("LoadImage", 1)},
        [
            (0, "SanaNativeInpaintStitch", "crop"),
            (1, "SanaNativeInpaintLatent", "image"),
            (2, "SanaNativeInpaintLatent", "mask"),
        ],
    ),
    "SanaNativeInpaintStitch": Scene(
        {"crop": ("SanaNativeInpaintCrop", 0), "image": ("SanaNativeDCAEDecode", 0)}, [(0, "SaveImage", "images")]
    ),
    "SanaNativeUpscaleLatent": Scene({"vae": VAE, "samples": (TO_SAMPLER, 0)}, [(0, TO_SAMPLER, "latent_image")]),
    "SanaNativeFlowScheduler": Scene({"model": MODEL}, [(0, TO_CUSTOM, "sigmas")]),
    "SanaNativeFlowDPMSampler": Scene(after=[(0, TO_CUSTOM, "sampler")]),
    "SanaNativeSCMScheduler": Scene(after=[(0, TO_CUSTOM, "sigmas")], widgets={"steps": 2}),
    "SanaNativeBlendPrompts": Scene(
        {"prompt_a": ("SanaNativeGemmaEncode", 0), "prompt_b": ("SanaNativeGemmaEncode", 0)},
        [(0, TO_SAMPLER, "positive")],
        {"share": 0.5},
        width=240,
    ),
    "SanaNativePAG": Scene({"model": MODEL}, [(0, TO_SAMPLER, "model")]),
    "SanaNativeNAG": Scene(
        {"model": MODEL, "negative": ("SanaNativeGemmaEncode", 1)}, [(0, TO_SAMPLER, "model")], width=240
    ),
    "SanaNativeCFGZeroStar": Scene({"model": MODEL}, [(0, TO_SAMPLER, "model")], width=270),
    "SanaNativeSCMSampler": Scene(after=[(0, TO_CUSTOM, "sampler")], width=240),
    "SanaNativePromptsFromFile": Scene(
        after=[
            (0, "SanaNativeGemmaEncode", "prompt"),
            (2, "SanaNativeEmptyLatent", "width"),
            (4, TO_SAMPLER, "seed"),
            (7, "SanaNativeSaveNamed", "name"),
        ],
        widgets={"file": "sana-native-example.jsonl"},
        width=330,
    ),
    "SanaNativePromptBatch": Scene(
        {"clip": CLIP},
        [(0, TO_SAMPLER, "positive"), (1, TO_SAMPLER, "negative"), (2, "SanaNativeEmptyLatent", "batch_size")],
        {"prompts": "a ginger cat asleep on old books\na lighthouse in a storm\na fruit market in the morning"},
        width=330,
    ),
    "SanaNativeSeeds": Scene(after=[(0, "SamplerCustomAdvanced", "noise")], widgets={"seeds": "4, 7, 4711"}, width=240),
    "SanaNativeSize": Scene(
        after=[(0, "SanaNativeEmptyLatent", "width"), (1, "SanaNativeEmptyLatent", "height")],
        widgets={"width": 1280, "height": 960},
        width=240,
    ),
    "SanaNativeFitBack": Scene(
        {"image": ("SanaNativeDCAEDecode", 0)},
        [(0, "SanaNativeSaveNamed", "images")],
        {"width": 1280, "height": 960},
        width=240,
    ),
    "SanaNativeClipScore": Scene(
        {"images": ("SanaNativeDCAEDecode", 0), "clip_vision": ("CLIPVisionLoader", 0), "clip": ("CLIPLoader", 0)},
        [(1, "PreviewAny", "source")],
        {"text": "a ginger cat asleep on a stack of old books"},
        width=300,
    ),
    "SanaNativePictureDifference": Scene(
        {"image": ("SanaNativeDCAEDecode", 0), "other": ("LoadImage", 0)},
        [(2, "SaveImage", "images"), (3, "PreviewAny", "source")],
        width=280,
    ),
    "SanaNativeGrid": Scene(
        {"images": ("SanaNativeDCAEDecode", 0)},
        [(0, "SaveImage", "images")],
        {"labels": "4 steps\n8 steps\n20 steps", "title": "Flow-DPM"},
        width=300,
    ),
    "SanaNativeSaveNamed": Scene(
        {
            "images": ("SanaNativeDCAEDecode", 0),
            "name": ("SanaNativePromptsFromFile", 7),
            "prompt": ("SanaNativePromptsFromFile", 0),
            "seed": ("SanaNativePromptsFromFile", 4),
        },
        width=280,
    ),
    "SanaNativeTrainingSet": Scene(
        after=[(0, "SanaNativeEncodeTrainingSet", "training_set"), (1, "PreviewAny", "source")], width=300
    ),
    "SanaNativeEncodeTrainingSet": Scene(
        {"training_set": ("SanaNativeTrainingSet", 0), "vae": VAE, "clip": CLIP},
        [(0, "SanaNativeTrainLora", "encoded_set")],
        width=280,
    ),
    "SanaNativeTrainLora": Scene(
        {
            "model": MODEL,
            "encoded_set": ("SanaNativeEncodeTrainingSet", 0),
        },
        [(0, "LoraModelLoader", "lora"), (3, "PreviewImage", "images")],
        width=260,
    ),
    "SanaNativeTrainModel": Scene(
        {
            "model": MODEL,
            "encoded_set": ("SanaNativeEncodeTrainingSet", 0),
        },
        [(0, TO_SAMPLER, "model"), (3, "PreviewImage", "images")],
        width=260,
    ),
}
# Empty, but there: the page frames nodes whose file is missing.
FOLDERS = {
    "model_name": "diffusion_models",
    "text_encoder_name": "text_encoders",
    "vae_name": "vae",
    "lora_name": "loras",
    "control_net_name": "controlnet",
}
MODEL_FILES = [
    f"models/{FOLDERS[name]}/{value}"
    for scene in SCENES.values()
    for name, value in scene.widgets.items()
    if name in FOLDERS
]

# Adds the node and its folded neighbours, one for each type on each side; returns the ids on the left and on the right.
_BUILD = """([kind, before, after, widgets, width]) => {
    const last = app.graph.last_node_id;
    app.graph.clear();
    app.graph.last_node_id = last;  // the page gives a new node of an old number the old one's values
    const add = (type) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        return node;
    };
    const side = () => {
        const nodes = new Map();
        return {nodes, get: (type) => {
            if (!nodes.has(type)) {
                nodes.set(type, add(type));
                nodes.get(type).collapse();
            }
            return nodes.get(type);
        }};
    };
    const main = add(kind), left = side(), right = side();
    for (const [name, value] of Object.entries(widgets)) {
        main.widgets.find((widget) => widget.name === name).value = value;
    }
    main.setSize([Math.max(main.size[0], width), main.size[1]]);
    const input = (node, name) => node.inputs.findIndex((slot) => slot.name === name);
    for (const [name, [type, output]] of Object.entries(before)) {
        left.get(type).connect(output, main, input(main, name));
    }
    for (const [output, type, name] of after) {
        const node = right.get(type);
        main.connect(output, node, input(node, name));
    }
    const ids = ({nodes}) => [...nodes.values()].map((node) => node.id);
    return [main.id, ids(left), ids(right)];
}"""
# Folded nodes know their width once they are drawn. Left ones end and right ones begin at one distance from the node.
_PLACE = """([main, left, right, gap, row]) => {
    const node = (id) => app.graph.getNodeById(id), middle = node(main);
    middle.pos = [0, 0];
    left.forEach((id, index) => { node(id).pos = [-gap - node(id)._collapsed_width, index * row] });
    right.forEach((id, index) => { node(id).pos = [middle.size[0] + gap, index * row] });
}"""
_BOUNDS = """() => {
    const boxes = app.graph.nodes.map((node) => node.getBounding());
    const left = Math.min(...boxes.map((box) => box[0])), top = Math.min(...boxes.map((box) => box[1]));
    return [left, top, Math.max(...boxes.map((box) => box[0] + box[2])) - left,
            Math.max(...boxes.map((box) => box[1] + box[3])) - top];
}"""
_SHOW_AT = """([x, y]) => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [x, y]; app.canvas.setDirty(true, true) }"""
# Bare: no overlays of the page, no dots on the wires, no badges.
BARE = {
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.LinkMarkers": 0,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}


def draw(tab: Tab, kind: str, scene: Scene) -> bytes:
    """Return a PNG of the node of that type among its neighbours."""
    main, left, right = tab.page.evaluate(_BUILD, [kind, scene.before, scene.after, scene.widgets, scene.width])
    tab.settle()
    tab.page.evaluate(_PLACE, [main, left, right, GAP, ROW])
    tab.settle()
    x, y, width, height = tab.page.evaluate(_BOUNDS)
    place = 100  # of the picture's corner on the page, clear of the page's own border
    tab.page.evaluate(_SHOW_AT, [place + MARGIN - x, place + MARGIN - y])
    tab.settle()
    clip = {"x": place, "y": place, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN}
    return tab.page.screenshot(clip=clip)


def pictures(language: str) -> Iterator[tuple[str, bytes]]:
    """Yield each node's type and its picture as PNG."""
    with serve_fresh(MODEL_FILES) as server, open_chromium() as browser:
        tab = Tab(browser, server.url, language=language, scale=SCALE, settings=BARE)
        tab.close_templates().command("Workspace.ToggleFocusMode")
        tab.page.get_by_test_id("side-toolbar").wait_for(state="detached")
        for kind, scene in SCENES.items():
            yield kind, draw(tab, kind, scene)
        tab.close()


def save(picture: Image.Image, path: Path) -> None:
    """With fewer colors where the node is so tall that its file would be too large."""
    for colors in range(COLOURS, 7, -4):
        picture.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < LARGEST_FILE:
            return


def main() -> None:
    for language, name in FILES.items():
        for kind, png in pictures(language):
            save(Image.open(io.BytesIO(png)).convert("RGB"), ROOT / "web" / "docs" / kind / name)


if __name__ == "__main__":
    main()
