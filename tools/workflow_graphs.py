"""The graphs of `workflows/`, each one idea: which nodes in which frames, and the note that says what to change.

Released models are drawn with the settings of their model cards; the demo's graphs need no download.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .workflow import BYPASSED
from .workflow_blueprint import Blueprint
from .workflow_build import Group, Node, Output
from .workflow_files import DC_AE, DEMO, DEMO_SPRINT, GEMMA, LORA, SANA, SANA_2K, SANA_4K, SPRINT

COLORS = ("#3f789e", "#8a6d3b", "#5b7f4b", "#6b5b95", "#7a4b5b")

PROMPT = (
    "a cozy reading corner by a rainy window, a ginger cat asleep on a stack of old books, warm lamp light, film photo"
)
WIDE_PROMPT = (
    "a terraced mountain village at sunrise seen from across the valley, slate roofs, thin smoke over the chimneys, "
    "every stone wall in focus, landscape photo"
)
DEMO_PROMPT = "a big strawberry top left and a small rocket bottom right on a yellow background"
DEMO_OTHER_PROMPT = "a red apple and a rocket on a yellow background"
DEMO_SIZE, DEMO_SEED, DEMO_CFG = 256, 5, 4.5
DEMO_REMARK = (
    "Runs at once, on the small model that comes with the pack: one or two things on a plain background, {size} px.\n\n"
    "Things, sizes, places and backgrounds it knows are listed in `demo/README.md`; it also reads Chinese and emoji."
).format(size=DEMO_SIZE)

Model = dict | str
"""A released file, or the name of a model that comes with the pack."""


SPRINT_GUIDANCE = 4.5


@dataclass(frozen=True)
class Graph:
    """Frames from left to right, each a column of nodes, and the note beside them."""

    groups: Sequence[Group]
    note: Node

    @property
    def nodes(self) -> list[Node]:
        return [*(node for group in self.groups for node in group.nodes), self.note]

    @property
    def runs_at_once(self) -> bool:
        """Whether the pack brings every file the graph needs."""
        return not any(node.models for node in self.nodes)


def graphs() -> dict[str, Graph]:
    """Name of the file -> its graph."""
    steps = {"steps": 20, "cfg": 4.5}
    sprint = {"guidance": SPRINT_GUIDANCE, "cfg": 1.0}
    return {
        "sana_txt2img": text_to_image(
            SANA, PROMPT, 1024, "Write your prompt and press Run. 20 steps and cfg 4.5 are the model's own.", **steps
        ),
        "sana_txt2img_ksampler": stock_nodes(),
        "sana_2k_txt2img": text_to_image(
            SANA_2K,
            WIDE_PROMPT,
            2048,
            "The 2K model knows where in the picture it is, so draw at 2048 px; `aspect_ratio` gives the other shapes "
            "it was trained on. Where the free memory would not do, decoding goes in exact tiles by itself: the "
            "picture is the same.",
            **steps,
        ),
        "sana_4k_txt2img": text_to_image(
            SANA_4K,
            WIDE_PROMPT,
            4096,
            "Draws at 4096 px. The model takes its own flow shift, 6, by itself.\n\nWith `tiling` at "
            "`auto`, where the free memory would not do for the whole picture, decoding goes in exact tiles, as large "
            "as there is room for: the picture is the same, without seams. `tile_size` and `overlap` are for `on` "
            "alone.",
            **steps,
        ),
        "sana_img2img": image_to_image(),
        "sana_seed_batch": batch_of_seeds(),
        "sana_lora": with_lora(),
        "sana_prompt_enhance": prompt_enhancement(),
        "sana_sprint_txt2img": text_to_image(
            SPRINT,
            PROMPT,
            1024,
            "`steps`: 1 to 4. Keep cfg at 1; how strongly the prompt counts is set in the Guidance node (4 to 5).",
            steps=2,
            **sprint,
        ),
        "sana_sprint_realtime": text_to_image(
            SPRINT,
            PROMPT,
            1024,
            "Draws while you type: open the arrow beside Run and choose **Run (On Change)**, then change the prompt. "
            "The seed stays, so that the picture changes with the words alone.\n\nFor a stream of pictures choose "
            "**Run (Instant)** and set `control after generate` to randomize. One step is the fastest, two look "
            "better. Nothing is saved; put Save Image in place of Preview Image to keep what you see.",
            control="fixed",
            keep=False,
            steps=1,
            **sprint,
        ),
        "demo_txt2img": text_to_image(
            DEMO, DEMO_PROMPT, DEMO_SIZE, DEMO_REMARK, seed=DEMO_SEED, steps=20, cfg=DEMO_CFG
        ),
        "demo_sprint": text_to_image(
            DEMO_SPRINT,
            DEMO_PROMPT,
            DEMO_SIZE,
            DEMO_REMARK + "\n\nThis one is distilled to 1 to 4 steps. Keep cfg at 1; how strongly the prompt counts is "
            "set in the Guidance node.",
            seed=DEMO_SEED,
            steps=2,
            **sprint,
        ),
        "demo_img2img": demo_image_to_image(),
    }


def blueprints() -> dict[str, Blueprint]:
    """Name, as the list of nodes shows it -> blueprint."""
    return {
        "Text to Image (SANA)": text_to_image_block(
            SANA, "Draws a picture with SANA from a prompt, at the sizes it was trained on.", steps=20, cfg=4.5
        ),
        "Text to Image (SANA-Sprint)": text_to_image_block(
            SPRINT,
            "Draws a picture with SANA-Sprint from a prompt in 1 to 4 steps.",
            guidance=SPRINT_GUIDANCE,
            steps=2,
            cfg=1.0,
        ),
    }


def text_to_image_block(model: dict, description: str, guidance: float | None = None, **sampling: float) -> Blueprint:
    """The graph of `text_to_image` without its last node, the widgets that matter on its face."""
    graph = text_to_image(model, PROMPT, 1024, "", guidance=guidance, **sampling)
    files, text, draw, _ = graph.groups
    (encoded, latent, *scale), (drawn, image) = text.nodes, draw.nodes
    guided = [(scale[0], "guidance")] if scale else [(drawn, "cfg")]
    return Blueprint(
        groups=[files, text, draw],
        shown=[
            (encoded, "prompt"),
            *([] if scale else [(encoded, "negative_prompt")]),
            *((latent, widget) for widget in ("size", "aspect_ratio", "batch_size")),
            *((drawn, widget) for widget in ("seed", "steps")),
            *guided,
            *zip(files.nodes, ("model_name", "text_encoder_name", "vae_name"), strict=True),
        ],
        output=image[0],
        description=description,
        aliases=["sana", "text to image", "txt2img", "nvidia", *(["sprint"] if scale else [])],
    )


def text_to_image(
    model: Model,
    prompt: str,
    size: int,
    remark: str,
    *,
    guidance: float | None = None,
    keep: bool = True,
    control: str = "randomize",
    **sampling: float,
) -> Graph:
    """Loaders -> prompt -> SANA Sampler -> picture; with `guidance` for SANA-Sprint."""
    transformer, gemma, vae = loaders(model)
    text, latent = encode(gemma, prompt), empty(size)
    extra = []
    if guidance is not None:
        extra = [Node("FluxGuidance", {"conditioning": text[0], "guidance": guidance}, title="Guidance")]
    drawn = sample(transformer, extra[0] if extra else text[0], text[1], latent, control, **sampling)
    image = decode(vae, drawn)
    shown = save(image) if keep else Node("PreviewImage", {"images": image})
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent, *extra]),
            ("Draw", [drawn, image]),
            ("Picture", [shown]),
        ),
        note(remark, files_of(model)),
    )


def stock_nodes() -> Graph:
    """The same picture with the host's own nodes after the loaders."""
    transformer, gemma, vae = loaders(SANA)
    positive = Node("CLIPTextEncode", {"clip": gemma, "text": PROMPT}, title="Prompt")
    negative = Node("CLIPTextEncode", {"clip": gemma, "text": ""}, title="Negative prompt (leave empty)")
    latent = Node("EmptyLatentImage", {"width": 1024, "height": 1024})
    links = {"model": transformer, "positive": positive, "negative": negative, "latent_image": latent}
    drawn = Node(
        "KSampler", links | {"steps": 20, "cfg": 4.5, "sampler_name": "sana_flow_dpm", "scheduler": "sana_flow"}
    )
    image = Node("VAEDecode", {"samples": drawn, "vae": vae})
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [positive, negative, latent]),
            ("Draw", [drawn, image]),
            ("Picture", [save(image)]),
        ),
        note(
            "Only the loaders are SANA's own; every other node is ComfyUI's. `sana_flow_dpm` with `sana_flow` is the "
            "released solver.\n\nCLIP Text Encode puts the instruction before every text but an empty one: for a "
            "negative prompt use SANA Gemma Encode.",
            files_of(SANA),
        ),
    )


def image_to_image() -> Graph:
    transformer, gemma, vae = loaders(SANA)
    picture = Node("LoadImage", {"image": "example.png"}, title="Picture to start from")
    fitted = Node(
        "ImageScaleToTotalPixels",
        {"image": picture, "upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 32},
    )
    latent = Node("SanaNativeDCAEEncode", {"vae": vae, "pixels": fitted})
    text = encode(gemma, "an oil painting, thick brush strokes, evening light")
    drawn = sample(transformer, text[0], text[1], latent, steps=20, cfg=4.5, denoise=0.6)
    image = decode(vae, drawn)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Start", [picture, fitted, latent]),
            ("Prompt", [text]),
            ("Draw", [drawn, image]),
            ("Picture", [save(image)]),
        ),
        note(
            "Choose your picture, say what it shall become, and set `denoise` in SANA Sampler: 0.3 keeps nearly all, "
            "0.6 keeps the composition, 1 keeps nothing. The picture is brought to about one megapixel, the size the "
            "model was trained at.",
            files_of(SANA),
        ),
    )


def batch_of_seeds() -> Graph:
    transformer, gemma, vae = loaders(SANA)
    text, latent = encode(gemma, PROMPT), empty(1024, batch_size=4)
    one = Node("LatentFromBatch", {"samples": latent, "batch_index": 2}, title="Only this one", mode=BYPASSED)
    drawn = sample(transformer, text[0], text[1], one, "increment", steps=20, cfg=4.5)
    image = decode(vae, drawn)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent, one]),
            ("Draw", [drawn, image]),
            ("Pictures", [save(image)]),
        ),
        note(
            "Every run draws `batch_size` pictures from one seed, and the seed counts up by one for the next run.\n\n"
            "To draw a single one of them again, for example with more steps: set the seed back, switch on **Only this "
            "one** (Ctrl+B) and give its number in `batch_index`, counted from 0. It comes out as it was in the batch.",
            files_of(SANA),
        ),
    )


def with_lora() -> Graph:
    transformer, gemma, vae = loaders(SANA)
    changed = Node(
        "SanaNativeLoraLoader",
        {"model": transformer, "lora_name": LORA["name"], "strength_model": 1.0},
        models=[LORA],
    )
    text, latent = encode(gemma, "a photo of sks dog in a bucket"), empty(1024)
    drawn = sample(changed, text[0], text[1], latent, steps=20, cfg=4.5)
    image = decode(vae, drawn)
    return Graph(
        frames(
            ("Files", [transformer, changed, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Draw", [drawn, image]),
            ("Picture", [save(image)]),
        ),
        note(
            "Pick your LoRA, from any trainer, and write the words it was trained with; the console tells how many of "
            "its keys were applied. `strength_model`: 1 as trained, 0 switches it off. For a second LoRA put another "
            "loader behind the first.\n\nThe one linked here is a small example of diffusers' training script, "
            "published by a user; see its page for what it shows. Many were trained without SANA's instruction: if the "
            "effect is weak, set `instruction` to off.",
            [*files_of(SANA), LORA],
        ),
    )


def prompt_enhancement() -> Graph:
    transformer, gemma, vae = loaders(SANA)
    short = Node("PrimitiveStringMultiline", {"value": "a cat in a library"}, title="Short prompt")
    written = Node(
        "TextGenerate",
        {
            "clip": gemma,
            "prompt": short,
            "max_length": 200,
            "sampling_mode": "on",
            "sampling_mode.temperature": 0.7,
        },
        title="Gemma writes it out",
    )
    shown = Node("PreviewAny", {"source": written}, title="What Gemma wrote")
    text, latent = encode(gemma, written), empty(1024)
    drawn = sample(transformer, text[0], text[1], latent, steps=20, cfg=4.5)
    image = decode(vae, drawn)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Enhance", [short, written, shown]),
            ("Prompt and size", [text, latent]),
            ("Draw", [drawn, image]),
            ("Picture", [save(image)]),
        ),
        note(
            "Write a few words: the Gemma that SANA has loaded for its text anyway writes them out into a detailed "
            "prompt, asked with the instruction SANA was trained with. Another seed or `temperature` gives another "
            "text; `sampling_mode` off always gives the same.\n\nWith `use_default_template` off, Gemma is given the "
            "text as it stands.",
            files_of(SANA),
        ),
    )


def demo_image_to_image() -> Graph:
    """Draws a picture first, so that there is one to start from without any file."""
    transformer, gemma, vae = loaders(DEMO)
    before, after = encode(gemma, DEMO_PROMPT, "First prompt"), encode(gemma, DEMO_OTHER_PROMPT, "Second prompt")
    latent = empty(DEMO_SIZE)
    settings = {"seed": DEMO_SEED, "steps": 20, "cfg": DEMO_CFG}
    first = decode(vae, sample(transformer, before[0], before[1], latent, **settings, title="First drawing"))
    encoded = Node("SanaNativeDCAEEncode", {"vae": vae, "pixels": first})
    second = sample(transformer, after[0], after[1], encoded, **settings, title="Second drawing", denoise=0.5)
    image = decode(vae, second)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("First prompt and size", [before, latent]),
            ("First picture", [first.inputs["samples"], first, Node("PreviewImage", {"images": first})]),
            ("Second prompt", [after]),
            ("Draw from the first picture", [encoded, second, image]),
            ("Second picture", [save(image)]),
        ),
        note(
            "The first picture is drawn, encoded, and drawn over with the second prompt, which names no places: those "
            "come from the first picture. `denoise` in the second drawing says how much is new; at 1 nothing of the "
            "first is left.\n\nTo start from a picture of yours, link Load Image into SANA DC-AE Encode.\n\n"
            + DEMO_REMARK
        ),
    )


def loaders(model: Model) -> list[Node]:
    """Model, text encoder and autoencoder."""
    if isinstance(model, str):
        names, files = (model, DEMO, DEMO), ((), (), ())
    else:
        names, files = (model["name"], GEMMA["name"], DC_AE["name"]), ([model], [GEMMA], [DC_AE])
    kinds = (
        ("SanaNativeModelLoader", "model_name"),
        ("SanaNativeGemmaLoader", "text_encoder_name"),
        ("SanaNativeDCAELoader", "vae_name"),
    )
    return [
        Node(kind, {widget: name}, models=have) for (kind, widget), name, have in zip(kinds, names, files, strict=True)
    ]


def files_of(model: Model) -> list[dict[str, str]]:
    return [] if isinstance(model, str) else [model, GEMMA, DC_AE]


def note(text: str, files: Sequence[dict[str, str]] = ()) -> Node:
    """A Markdown note; with `files` it ends in the list of what to download."""
    if files:
        rows = "\n".join(f"- `models/{have['directory']}`: [{have['name']}]({have['url']})" for have in files)
        text += (
            f"\n\n## Files\n{rows}\n\nThe names are free: pick yours in the loaders. A whole diffusers folder in "
            "`models/diffusers` works for model, text encoder and autoencoder."
        )
    return Node("MarkdownNote", {"text": text}, title="What to change")


def encode(clip: Node, prompt: object, title: str = "Prompt") -> Node:
    return Node("SanaNativeGemmaEncode", {"clip": clip, "prompt": prompt}, title=title)


def empty(size: int, batch_size: int = 1) -> Node:
    trained = size in (512, 1024, 2048, 4096)
    chosen = {"size": str(size)} if trained else {"size": "custom", "width": size, "height": size}
    return Node("SanaNativeEmptyLatent", chosen | {"batch_size": batch_size})


def sample(
    model: Node,
    positive: Node | Output,
    negative: Output,
    latent: Node,
    control: str = "randomize",
    title: str = "",
    **widgets: float,
) -> Node:
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return Node("SanaNativeSampler", links | widgets, title, control=control)


def decode(vae: Node, latent: Node) -> Node:
    return Node("SanaNativeDCAEDecode", {"vae": vae, "samples": latent})


def save(image: Node) -> Node:
    return Node("SaveImage", {"images": image, "filename_prefix": "sana"})


def frames(*columns: tuple[str, list[Node]]) -> list[Group]:
    return [Group(title, nodes, COLORS[number % len(COLORS)]) for number, (title, nodes) in enumerate(columns)]
