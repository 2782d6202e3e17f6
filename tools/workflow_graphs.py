"""The graphs of `workflows/`, each one idea: which nodes in which frames, and the note that says what to change.

Released models have the settings of their model cards; the demo's graphs need no download.

Widths are such that a graph opens at a scale of 0.65 and more in a window of 1366 x 768 px, where text is readable,
and that names of files are not cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .workflow import BYPASSED
from .workflow_blueprint import Blueprint
from .workflow_build import Group, Node, Output
from .workflow_files import (
    CLIP_TEXT,
    CLIP_VISION,
    DC_AE,
    DEMO,
    DEMO_SPRINT,
    DEMO_SPRINT_CONTROLNET,
    DEMO_SPRINT_CONTROLNET_FOLDER,
    GEMMA,
    GEMMA_1,
    GEMMA_1_REST,
    GEMMA_1_TOKENIZER,
    LORA,
    LUMINA,
    PIXART_LCM,
    PIXART_SIGMA,
    SANA,
    SANA_2K,
    SANA_4K,
    SANA_CONTROLNET,
    SD1_VAE,
    SDXL_REFINER,
    SDXL_VAE,
    SPRINT,
    T5_FP8,
    T5_FP16,
)

COLORS = ("#3f789e", "#8a6d3b", "#5b7f4b", "#6b5b95", "#7a4b5b")

PROMPT = (
    "a cozy reading corner by a rainy window, a ginger cat asleep on a stack of old books, warm lamp light, film photo"
)
WIDE_PROMPT = (
    "a terraced mountain village at sunrise seen from across the valley, slate roofs, thin smoke over the chimneys, "
    "every stone wall in focus, landscape photo"
)
DEMO_PROMPT = "a big strawberry top left and a small rocket bottom right on a yellow background"
DEMO_INPAINT_PROMPT = "a big strawberry top left and a small apple bottom right on a yellow background"
DEMO_OTHER_PROMPT = "a red apple and a rocket on a yellow background"
DEMO_LEARNED_PROMPT = "a big traffic light left and a cat right on a blue background"
DEMO_PICTURES = "sana-native-demo-pictures/"
TRAINING_SET = 215  # width
DEMO_SIZE, DEMO_SEED, DEMO_CFG = 256, 5, 4.5
PAINTER = "Painter"  # the host's own
DEMO_BRUSH = 8  # px of the drawing; the lines of the scribbles that its ControlNet was trained on have 2 to 15
DEMO_CONTROL = 0.5  # strength at which the demo SANA-Sprint follows lines and still draws the thing, as measured
DEMO_REMARK = (
    f"Needs no download: the demo model comes with the pack. It generates one or two things on a plain background, "
    f"{DEMO_SIZE} px, from English, Chinese or emoji.\n\n"
    "Try: a big cat in the center on a blue background. Other things: dog, fox, panda, penguin, fish, butterfly, tree, "
    "sunflower, apple, lemon, pizza, cake, house, car, rocket, guitar, umbrella, star, moon, heart. Sizes: small, big. "
    "Places: left, right, top left, bottom right, in the center. Colors are those of the background."
)

Model = dict | str
"""A released file, or the name of a model that comes with the pack."""


SPRINT_GUIDANCE = 4.5


# Widths of the columns of a graph with four of them.
LOADERS, TEXT, SAMPLER, IMAGE = 370, 345, 300, 340


@dataclass(frozen=True)
class Graph:
    """Frames from left to right, each of one or more columns of nodes, and the note above them."""

    groups: Sequence[Group]
    note: Node

    @property
    def nodes(self) -> list[Node]:
        return [*(node for group in self.groups for node in group.nodes), self.note]


def graphs() -> dict[str, Graph]:
    """Name of the file -> its graph."""
    steps = {"steps": 20, "cfg": 4.5}
    sprint = {"guidance": SPRINT_GUIDANCE, "cfg": 1.0}
    return {
        "sana_txt2img": text_to_image(
            SANA,
            PROMPT,
            1024,
            "Write your prompt and press Run. 20 steps and cfg 4.5 are the model's own settings.",
            **steps,
        ),
        "sana_txt2img_ksampler": stock_nodes(),
        "sana_2k_txt2img": text_to_image(
            SANA_2K,
            WIDE_PROMPT,
            2048,
            "The 2K model has positional embeddings, so generate at 2048 px; **aspect_ratio** offers the other shapes "
            "it was trained on. When memory is insufficient, the image is decoded in exact tiles, with the same "
            "result.",
            **steps,
        ),
        "sana_4k_txt2img": text_to_image(
            SANA_4K,
            WIDE_PROMPT,
            4096,
            "Generates at 4096 px. The model's own flow shift, 6, is set automatically.\n\nWith **tiling** at auto, "
            "the image is decoded in exact tiles when memory is insufficient: the same image, without seams. "
            "**tile_size** and **overlap** act with tiling on only.",
            **steps,
        ),
        "sana_img2img": image_to_image(),
        "sana_controlnet_scribble": with_controlnet(),
        "sana_seed_batch": batch_of_seeds(),
        "sana_lora": with_lora(),
        "sana_pag": perturbed_attention(),
        "sana_blend": blended_prompts(),
        "sana_prompt_enhance": prompt_enhancement(),
        "sana_prompt_file": prompt_file(
            SANA,
            "sana-native-example.jsonl",
            "1024",
            "A run for every prompt of a file. Put your txt, json, jsonl or csv file into ComfyUI's input folder, "
            "press R, and choose it.",
        ),
        "sana_sprint_txt2img": text_to_image(
            SPRINT,
            PROMPT,
            1024,
            "**steps**: 1 to 4. Keep cfg at 1; how strongly the prompt counts is set in the Guidance node (4 to 5).",
            steps=2,
            **sprint,
        ),
        "sana_sprint_realtime": text_to_image(
            SPRINT,
            PROMPT,
            1024,
            "Generates while you type: open the arrow beside Run and choose **Run (On Change)**, then change the "
            "prompt. The seed is fixed, so the image changes with the prompt alone.\n\nFor a stream of images choose "
            "**Run (Instant)** and set **control after generate** to randomize. One step is fastest, two look better. "
            "Nothing is saved; use Save Image instead of Preview Image for that.",
            control="fixed",
            save_it=False,
            steps=1,
            **sprint,
        ),
        "lumina_next_txt2img": lumina_text_to_image(),
        "lumina_next_2k": lumina_2k(),
        "pixart_sigma_txt2img": pixart_text_to_image(
            PIXART_SIGMA,
            SDXL_VAE,
            "PixArt-Sigma as released: 20 steps of DPM-Solver++ and cfg 4.5, both found by SANA Sampler. "
            "**aspect_ratio** offers the shapes it was trained on.",
            steps=20,
            cfg=4.5,
        ),
        "pixart_alpha_lcm": pixart_text_to_image(
            PIXART_LCM,
            SD1_VAE,
            "PixArt-alpha distilled to 4 steps. Keep cfg at 1: it was distilled without guidance, so the negative "
            "prompt does not act. Prompts up to 120 tokens. Leave LCM in any file name: only that tells it is "
            "distilled.",
            steps=4,
            cfg=1.0,
        ),
        "pixart_sigma_refined": pixart_refined(),
        "demo_txt2img": text_to_image(
            DEMO, DEMO_PROMPT, DEMO_SIZE, DEMO_REMARK, seed=DEMO_SEED, steps=20, cfg=DEMO_CFG
        ),
        "demo_sprint": text_to_image(
            DEMO_SPRINT,
            DEMO_PROMPT,
            DEMO_SIZE,
            DEMO_REMARK
            + "\n\nDistilled to 1 to 4 **steps**. Keep cfg at 1; how strongly the prompt counts is set in the "
            "Guidance node.",
            seed=DEMO_SEED,
            steps=2,
            **sprint,
        ),
        "demo_img2img": demo_image_to_image(),
        **({"demo_scribble": demo_scribble()} if DEMO_SPRINT_CONTROLNET_FOLDER.is_dir() else {}),
        "sana_inpaint": inpaint(
            "a vase of dried flowers",
            "Right-click Load Image, **Open in MaskEditor**, paint over what is to change, describe the whole image. "
            "Beyond mask and **feather** all stays as it was. For small parts: SANA Inpaint Crop before, Stitch after.",
        ),
        "sana_outpaint": inpaint(
            "a wide landscape under a clear sky",
            "Choose your image, describe all of the larger one, and enter the pixels to add at each side, any number. "
            "They begin as a mirror image; with **denoise** at 1 nothing of that is left.",
            {"left": 200, "right": 200},
            0.95,
        ),
        "sana_hires_fix": hires_fix(),
        "sana_sprint_refine": sprint_refine(),
        "demo_inpaint": demo_inpaint(),
        "demo_compare": demo_compare(),
        "sana_clip_score": clip_score(),
        "demo_train_lora": demo_train_lora(),
        "sana_train_lora": train_lora(),
        "sana_train_model": train_model(),
        "demo_prompt_file": prompt_file(
            DEMO,
            "sana-native-demo.txt",
            "256",
            "A run for every prompt of a file; this one and the demo model come with the pack. A file of yours belongs "
            "into ComfyUI's input folder.",
        ),
    }


def blueprints() -> dict[str, Blueprint]:
    """Name, as the list of nodes shows it -> blueprint."""
    return {
        "Text to Image (SANA)": text_to_image_block(
            SANA,
            "Generates an image with SANA from a prompt, at the sizes it was trained on or any other.",
            steps=20,
            cfg=4.5,
        ),
        "Text to Image (SANA-Sprint)": text_to_image_block(
            SPRINT,
            "Generates an image with SANA-Sprint from a prompt in 1 to 4 steps.",
            guidance=SPRINT_GUIDANCE,
            steps=2,
            cfg=1.0,
        ),
    }


def text_to_image_block(model: dict, description: str, guidance: float | None = None, **sampling: float) -> Blueprint:
    """The graph of `text_to_image` without its last node, the widgets that matter on its face."""
    graph = text_to_image(model, PROMPT, 1024, "", guidance=guidance, **sampling)
    files, text, generate, result = graph.groups
    (encoded, latent), (*scale, drawn), image = text.nodes, generate.nodes, result.nodes[0]
    guided = [(scale[0], "guidance")] if scale else [(drawn, "cfg")]
    return Blueprint(
        groups=[files, text, generate, Group(result.title, [[image]], result.color)],
        shown=[
            (encoded, "prompt"),
            *([] if scale else [(encoded, "negative_prompt")]),
            *((latent, widget) for widget in ("size", "aspect_ratio", "width", "height", "batch_size")),
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
    save_it: bool = True,
    control: str = "randomize",
    **sampling: float,
) -> Graph:
    """Loaders -> prompt -> SANA Sampler -> image; with `guidance` for SANA-Sprint."""
    transformer, gemma, vae = loaders(model, LOADERS)
    text, latent = encode(gemma, prompt, width=TEXT), empty(size)
    extra = []
    if guidance is not None:
        inputs = {"conditioning": text[0], "guidance": guidance}
        extra = [Node("FluxGuidance", inputs, title="Guidance")]
    positive = extra[0] if extra else text[0]
    drawn = sample(transformer, positive, text[1], latent, control, width=SAMPLER, **sampling)
    image = decode(vae, drawn, IMAGE)
    shown = save(image) if save_it else Node("PreviewImage", {"images": image})
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate", [*extra, drawn]),
            ("Image", [image, shown]),
        ),
        note(remark, files_of(model)),
    )


def stock_nodes() -> Graph:
    """The same image with the host's own nodes after the loaders."""
    transformer, gemma, vae = loaders(SANA)
    positive = Node("CLIPTextEncode", {"clip": gemma, "text": PROMPT}, title="Prompt", width=TEXT)
    negative = Node("CLIPTextEncode", {"clip": gemma, "text": ""}, title="Negative prompt (leave empty)", width=TEXT)
    latent = Node("EmptyLatentImage", {"width": 1024, "height": 1024})
    links = {"model": transformer, "positive": positive, "negative": negative, "latent_image": latent}
    settings = {"steps": 20, "cfg": 4.5, "sampler_name": "sana_flow_dpm", "scheduler": "sana_flow"}
    drawn = Node("KSampler", links | settings, width=SAMPLER)
    image = Node("VAEDecode", {"samples": drawn, "vae": vae}, width=IMAGE)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [positive, negative, latent]),
            ("Generate", [drawn]),
            ("Image", [image, save(image)]),
        ),
        note(
            "Only the loaders are SANA's own; every other node is ComfyUI's. The sampler **sana_flow_dpm** with the "
            "scheduler **sana_flow** is the released solver.\n\nCLIP Text Encode puts the instruction before every "
            "text except an empty one. For a negative prompt use SANA Gemma Encode.",
            files_of(SANA),
        ),
    )


def image_to_image() -> Graph:
    transformer, gemma, vae = loaders(SANA, 318)
    start = Node("LoadImage", {"image": "example.png"}, title="Image to start from", width=262)
    fitted = Node(
        "ImageScaleToTotalPixels",
        {"image": start, "upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 32},
        title="Scale",
    )
    latent = Node("SanaNativeDCAEEncode", {"vae": vae, "pixels": fitted})
    text = encode(gemma, "an oil painting, thick brush strokes, evening light", width=285)
    drawn = sample(transformer, text[0], text[1], latent, steps=20, cfg=4.5, denoise=0.6, width=250)
    image = decode(vae, drawn, 255)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Image to start from, and prompt", [start, fitted], [text, latent]),
            ("Generate", [drawn]),
            ("Image", [image, save(image)]),
        ),
        note(
            "Choose your image, describe what it is to become, and set **denoise** in SANA Sampler: 0.3 preserves "
            "nearly everything, 0.6 preserves the composition, 1 preserves nothing. The image is scaled to about one "
            "megapixel, the size the model was trained at.",
            files_of(SANA),
        ),
    )


def with_controlnet() -> Graph:
    """NVIDIA's one file for both loaders, the host's own apply node."""
    width = 210
    transformer, gemma, vae = loaders(SANA_CONTROLNET, 266)
    start = Node("LoadImage", {"image": "example.png"}, title="Drawing", width=224)
    lines = Node("SanaNativeScribble", {"image": start})
    text, latent = encode(gemma, "a lighthouse on a cliff at dusk, oil painting", width=213), empty(1024)
    name = f"{SANA_CONTROLNET['directory']}/{SANA_CONTROLNET['name']}"
    control = Node("SanaNativeControlNetLoader", {"control_net_name": name}, width=width)
    links = {"positive": text[0], "negative": text[1], "control_net": control, "image": lines, "vae": vae}
    applied = Node("ControlNetApplyAdvanced", links)
    drawn = sample(transformer, applied[0], applied[1], latent, steps=20, cfg=4.5, width=width)
    image = decode(vae, drawn, width)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Drawing and prompt", [start, lines], [text, latent]),
            ("Generate", [control, applied], [drawn]),
            ("Image", [image, save(image)]),
        ),
        note(
            "Choose a drawing of lines and describe what they are. For a photo put an edge detector before SANA "
            "Scribble and set its **mode** to edge map, or put Fake Scribble Lines of comfyui_controlnet_aux in its "
            "place, with **safe** at disable. **strength** and **end_percent** say how closely it is followed.",
            files_of(SANA_CONTROLNET),
            whole_folder=False,
        ),
    )


def inpaint(prompt: str, remark: str, added: dict[str, int] | None = None, denoise: float = 1.0) -> Graph:
    """An image changed in a part, or with `added` pixels at its sides, over the original."""
    transformer, gemma, vae = loaders(SANA, 318)
    start = Node("LoadImage", {"image": "example.png"}, title="Image to change", width=240)
    image, mask = start, {"mask": start[1]}
    if added:
        settings = {"upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 1}
        image, mask = Node("ImageScaleToTotalPixels", {"image": start, **settings}, title="Scale"), {}
    text = encode(gemma, prompt, width=265)
    latent = Node("SanaNativeInpaintLatent", {"vae": vae, "image": image, **mask, **(added or {})})
    settings = {"steps": 20, "cfg": 4.5, "denoise": denoise, "inpaint_start": "auto", "width": 240}
    sampled = sample(transformer, text[0], text[1], latent, **settings)
    result = Node("VAEDecode", {"samples": sampled, "vae": vae})
    inputs = {"original": latent[2], "result": result, "mask": latent[1]}
    whole = Node("SanaNativeInpaintComposite", inputs, width=280)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Image, and prompt", [start, *([image] if added else [])], [text, latent]),
            ("Generate", [sampled]),
            ("Image", [result, whole, save(whole)]),
        ),
        note(remark, files_of(SANA)),
    )


def hires_fix() -> Graph:
    transformer, gemma, vae = loaders(SANA, 318)
    text, latent = encode(gemma, WIDE_PROMPT, width=265), empty(1024)
    settings = {"steps": 20, "cfg": 4.5, "width": 240}
    first = sample(transformer, text[0], text[1], latent, title="First pass", **settings)
    larger = Node("SanaNativeUpscaleLatent", {"vae": vae, "samples": first, "factor": 1.5})
    second = sample(transformer, text[0], text[1], larger, title="Second pass", denoise=0.35, **settings)
    image = decode(vae, second, 250)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate", [first]),
            ("Enlarge and refine", [larger, second], [image, save(image)]),
        ),
        note(
            "The image is generated at a trained size, enlarged, and refined. **factor** sets how much larger, "
            "**denoise** of the second pass how much is new: 0.3 to 0.4 adds detail, from 0.5 on things move. From a "
            "factor of 2 on things can repeat: use the 2K model for the second pass, same text and VAE.",
            files_of(SANA),
        ),
    )


def sprint_refine() -> Graph:
    """An image of any model, refined in one step."""
    transformer, gemma, vae = loaders(SPRINT, 318)
    start = Node("LoadImage", {"image": "example.png"}, title="Image to refine", width=240)
    settings = {"upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 32}
    fitted = Node("ImageScaleToTotalPixels", {"image": start, **settings}, title="Scale")
    latent = Node("SanaNativeDCAEEncode", {"vae": vae, "pixels": fitted})
    text = encode(gemma, "a detailed photo, sharp focus", width=265)
    guided = Node("FluxGuidance", {"conditioning": text[0], "guidance": SPRINT_GUIDANCE}, title="Guidance")
    settings = {"steps": 1, "cfg": 1.0, "denoise": 0.25, "strength_as": "sigma", "width": 240}
    refined = sample(transformer, guided, text[1], latent, **settings)
    image = decode(vae, refined, 250)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Image to refine, and prompt", [start, fitted], [text, latent]),
            ("Refine", [guided, refined]),
            ("Image", [image, save(image)]),
        ),
        note(
            "Choose an image of any model and describe it. SANA-Sprint refines it in one step. With **strength_as** at "
            "sigma, **denoise** is the share of noise: 0.15 retouches, 0.3 changes details, 0.5 recomposes.",
            files_of(SPRINT),
        ),
    )


def batch_of_seeds() -> Graph:
    transformer, gemma, vae = loaders(SANA, LOADERS)
    text, latent = encode(gemma, PROMPT, width=TEXT), empty(1024, batch_size=4)
    one = Node("LatentFromBatch", {"samples": latent, "batch_index": 2}, title="Only this one", mode=BYPASSED)
    drawn = sample(transformer, text[0], text[1], one, "increment", steps=20, cfg=4.5, width=SAMPLER)
    image = decode(vae, drawn, IMAGE)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate", [one, drawn]),
            ("Images", [image, save(image)]),
        ),
        note(
            "Every run generates **batch_size** images from one seed; the seed is raised by one for the next run.\n\n"
            "To generate one of them again, for example with more steps: set the seed back, enable **Only this one** "
            "(Ctrl+B) and set its number in **batch_index**, counted from 0. The image is the same as in the batch.",
            files_of(SANA),
        ),
    )


def with_lora() -> Graph:
    transformer, gemma, vae = loaders(SANA, LOADERS)
    changed = Node(
        "SanaNativeLoraLoader",
        {"model": transformer, "lora_name": LORA["name"], "strength_model": 1.0},
        models=[LORA],
    )
    text, latent = encode(gemma, "a photo of sks dog in a bucket", width=TEXT), empty(1024)
    drawn = sample(changed, text[0], text[1], latent, steps=20, cfg=4.5, width=SAMPLER)
    image = decode(vae, drawn, IMAGE)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate with the LoRA", [changed, drawn]),
            ("Image", [image, save(image)]),
        ),
        note(
            "Choose your LoRA and use its trigger prompt; the log counts its keys. If the effect is weak, it was "
            "trained without SANA's instruction: set **instruction** to off. For a second LoRA add another loader.",
            [*files_of(SANA), LORA],
        ),
    )


def perturbed_attention() -> Graph:
    transformer, gemma, vae = loaders(SANA, 318)
    guided = Node("SanaNativePAG", {"model": transformer, "scale": 2.0}, width=240)
    text, latent = encode(gemma, PROMPT, width=280), empty(1024)
    drawn = sample(guided, text[0], text[1], latent, steps=20, cfg=4.5, width=250)
    image = decode(vae, drawn, 255)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate with PAG", [guided], [drawn]),
            ("Image", [image, save(image)]),
        ),
        note(
            "Perturbed-attention guidance makes structure clearer, at the cost of one more pass a step. Try a "
            "**scale** of 2 to 3; bypass SANA PAG (Ctrl+B) to compare. Raise **sigma_end** to 0.5 to spare the extra "
            "pass in the later steps.",
            files_of(SANA),
        ),
    )


def blended_prompts() -> Graph:
    transformer, gemma, vae = loaders(SANA, 318)
    first = encode(gemma, "a red fox sitting in deep snow, portrait photo", "First prompt", 270)
    text = "a snowy owl sitting in deep snow, portrait photo"
    second = Node("CLIPTextEncode", {"clip": gemma, "text": text}, title="Second prompt", width=270)
    blend = Node("SanaNativeBlendPrompts", {"prompt_a": first[0], "prompt_b": second, "share": 0.5}, width=245)
    latent = empty(1024)
    drawn = sample(transformer, blend, first[1], latent, steps=20, cfg=4.5, width=250)
    image = decode(vae, drawn, 255)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Two prompts", [first, second]),
            ("Blend and generate", [blend, latent], [drawn]),
            ("Image", [image, save(image)]),
        ),
        note(
            "**share** is how much of the second prompt counts: 0 is the first alone, 1 the second alone. Each token "
            "of both counts by its share, in one pass. Single parts of the first prompt are weighted in brackets, as "
            "in (snow:1.4).",
            files_of(SANA),
        ),
    )


def prompt_enhancement() -> Graph:
    transformer, gemma, vae = loaders(SANA, 318)
    settings = {"max_length": 200, "sampling_mode": "on", "sampling_mode.temperature": 0.7}
    written = Node(
        "TextGenerate", {"clip": gemma, "prompt": "a cat in a library", **settings}, title="Short prompt", width=280
    )
    shown = Node("PreviewAny", {"source": written}, title="Gemma's prompt", width=250)
    text, latent = encode(gemma, written, width=265), empty(1024)
    drawn = sample(transformer, text[0], text[1], latent, steps=20, cfg=4.5, width=250)
    image = decode(vae, drawn, 255)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Expand the prompt", [written], [text, latent]),
            ("Generate", [shown, drawn]),
            ("Image", [image, save(image)]),
        ),
        note(
            "Write a short prompt: Gemma, SANA's text encoder, expands it, asked with the instruction SANA was "
            "trained with. **temperature** or another seed give another text. With **use_default_template** off, "
            "Gemma gets the text as it is.",
            files_of(SANA),
        ),
    )


def prompt_file(model: Model, file: str, size: str, remark: str) -> Graph:
    """A line of a file with all its settings -> image under the line's name."""
    transformer, gemma, vae = loaders(model, 318)
    rows = Node("SanaNativePromptsFromFile", {"file": file, "size": size}, width=285)
    prompt, negative, width, height, seed, steps, cfg, name = (rows[slot] for slot in range(8))
    links = {"clip": gemma, "prompt": prompt, "negative_prompt": negative}
    text = Node("SanaNativeGemmaEncode", links, title="Prompt of the line", width=262)
    latent = Node("SanaNativeEmptyLatent", {"size": "custom", "width": width, "height": height})
    drawn = sample(transformer, text[0], text[1], latent, seed=seed, steps=steps, cfg=cfg, width=250)
    image = decode(vae, drawn, 255)
    saved = Node("SanaNativeSaveNamed", {"images": image, "name": name, "prompt": prompt, "seed": seed}, width=255)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompts, line by line", [rows], [text, latent]),
            ("Generate", [drawn]),
            ("Images", [image, saved]),
        ),
        note(
            f"{remark} Tags at a prompt's end are its own settings: --ar 16:9, --size 1216x832, --seed 5, --neg "
            "blurry, --steps 28, --cfg 5. Press Run once: every image is saved in output/prompts before the next "
            "begins. Run again after a stop: only missing images are generated.",
            files_of(model),
        ),
    )


def demo_image_to_image() -> Graph:
    """Generates an image first, so that there is one to start from without any file."""
    width = 217
    transformer, gemma, vae = loaders(DEMO, 235)
    before = encode(gemma, DEMO_PROMPT, "First prompt", 230)
    after = Node("CLIPTextEncode", {"clip": gemma, "text": DEMO_OTHER_PROMPT}, title="Second prompt")
    latent = Node("EmptyLatentImage", {"width": DEMO_SIZE, "height": DEMO_SIZE}, width=width)
    settings = {"seed": DEMO_SEED, "steps": 20, "cfg": DEMO_CFG, "width": width}
    sampled = sample(transformer, before[0], before[1], latent, **settings, title="First image")
    first = decode(vae, sampled, width)
    shown = Node("PreviewImage", {"images": first})
    encoded = Node("SanaNativeDCAEEncode", {"vae": vae, "pixels": first})
    second = sample(transformer, after, before[1], encoded, **settings, title="Second image", denoise=0.5)
    image = decode(vae, second, width)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompts", [before, after]),
            ("First image", [latent, sampled], [first, encoded, shown]),
            ("Second image", [second], [image, save(image)]),
        ),
        note(
            "The first image is encoded and regenerated with the second prompt, which names no places: those come "
            "from the first image. **denoise** of the second sampler sets how much is new; at 1 nothing of the first "
            "is left. For an image of yours, link Load Image to SANA DC-AE Encode. The demo model comes with the "
            "pack; the note in demo_txt2img lists things it knows."
        ),
    )


def demo_scribble() -> Graph:
    """Draws in the host's own Painter; written once the demo's ControlNet is trained.

    On a linked image the Painter shows no rows for its size and colour, and is low enough for a small window.
    """
    width = 217
    transformer, gemma, vae = loaders(DEMO_SPRINT, 225)
    paper = Node("EmptyImage", {"width": DEMO_SIZE, "height": DEMO_SIZE}, title="Black paper", width=width)
    properties = {"painterBrushSize": DEMO_BRUSH}
    drawing = Node(PAINTER, {"image": paper, "width": DEMO_SIZE, "height": DEMO_SIZE}, properties=properties,
                   title="Draw here", width=240)  # fmt: skip
    lines = Node("SanaNativeScribble", {"image": drawing})
    control = Node("SanaNativeControlNetLoader", {"control_net_name": DEMO_SPRINT_CONTROLNET}, width=width)
    text = encode(gemma, "a tree on a blue background", width=width)
    latent = Node("EmptyLatentImage", {"width": DEMO_SIZE, "height": DEMO_SIZE}, width=width)
    links = {"positive": text[0], "negative": text[1], "control_net": control, "image": lines, "vae": vae}
    applied = Node("ControlNetApplyAdvanced", links | {"strength": DEMO_CONTROL})
    guided = Node("FluxGuidance", {"conditioning": applied[0], "guidance": SPRINT_GUIDANCE}, title="Guidance")
    drawn = sample(transformer, guided, applied[1], latent, "fixed", seed=DEMO_SEED, steps=2, cfg=1.0, width=width)
    image = decode(vae, drawn, width)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and drawing", [text, paper], [drawing]),
            ("Control", [lines, control, applied, guided]),
            ("Image", [latent, drawn], [image, Node("PreviewImage", {"images": image})]),
        ),
        note(
            "The Painter draws with **Nodes 2.0** on, a switch in ComfyUI's menu. Draw the outline of a thing in "
            "white, name it in the prompt, press Run. With **Run (Instant)**, in the arrow beside Run, the image "
            "follows the drawing: a line counts as the next begins, so end with a click. Model and ControlNet come "
            "with the pack; the note in demo_txt2img lists what they know."
        ),
    )


def demo_inpaint() -> Graph:
    """Generates an image, and one thing of it anew, in a square that two masks make."""
    width = 217
    transformer, gemma, vae = loaders(DEMO_SPRINT, 235)
    before = Node("CLIPTextEncode", {"clip": gemma, "text": DEMO_PROMPT}, title="First prompt", width=230)
    outside = Node("SolidMask", {"value": 0.0, "width": DEMO_SIZE, "height": DEMO_SIZE}, title="Whole image")
    square = Node("SolidMask", {"value": 1.0, "width": 116, "height": 116}, title="Square")
    places = {"destination": outside, "source": square, "x": 130, "y": 130, "operation": "add"}
    mask = Node("MaskComposite", places, title="Square at the bottom right")
    latent = Node("EmptyLatentImage", {"width": DEMO_SIZE, "height": DEMO_SIZE}, width=width)
    settings = {"seed": DEMO_SEED, "steps": 2, "cfg": 1.0, "width": width, "control": "fixed"}
    sampled = sample(transformer, before, Output(before, 0), latent, **settings, title="First image")
    first = decode(vae, sampled, width)
    target = Node("SanaNativeInpaintLatent", {"vae": vae, "image": first, "mask": mask})
    after = Node("CLIPTextEncode", {"clip": gemma, "text": DEMO_INPAINT_PROMPT}, title="Second prompt")
    second = sample(transformer, after, Output(after, 0), target, **settings, title="Masked part", inpaint_start="auto")
    result = decode(vae, second, width)
    inputs = {"original": target[2], "result": result, "mask": target[1]}
    whole = Node("SanaNativeInpaintComposite", inputs, width=width)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("First prompt, and mask", [before, outside, square, mask]),
            ("First image", [latent, sampled], [first, target]),
            ("Inpaint", [after, second], [result, whole, save(whole)]),
        ),
        note(
            "Needs no download. The square at the bottom right is generated anew from the second prompt, the rest "
            "stays bit for bit. Move it with **x** and **y**, or take Load Image and its **Open in MaskEditor** for an "
            "image of yours. With **inpaint_start** at auto SANA-Sprint sees the rest of the image."
        ),
    )


def demo_compare() -> Graph:
    """One prompt and seed with two settings of the sampler: both images, where they differ, and how far."""
    width = 209
    transformer, gemma, vae = loaders(DEMO, 215)
    text = encode(gemma, DEMO_PROMPT, width=213)
    latent = Node("EmptyLatentImage", {"width": DEMO_SIZE, "height": DEMO_SIZE}, width=213)
    seed = Node("PrimitiveInt", {"value": DEMO_SEED}, title="Seed of both", control="fixed", width=width)
    links = {"model": transformer, "positive": text[0], "negative": text[1], "latent_image": latent, "seed": seed}
    settings = links | {"cfg": DEMO_CFG, "sampler_name": "sana_flow_dpm", "scheduler": "sana_flow"}
    first, second = (
        Node("KSampler", settings | {"steps": steps}, title, control="fixed", width=width)
        for title, steps in (("First setting", 4), ("Second setting", 20))
    )
    one, other = (Node("VAEDecode", {"samples": drawn, "vae": vae}, width=width) for drawn in (first, second))
    apart = Node("SanaNativePictureDifference", {"image": one, "other": other}, width=width)
    figures = Node("PreviewAny", {"source": apart[3]}, title="How far apart", width=width)
    images = {f"images.image{number}": image for number, image in enumerate((one, other, apart[2]))}
    batch = Node("BatchImagesNode", images, width=width)
    labels = "4 steps\n20 steps\nwhere they differ"
    grid = Node("SanaNativeGrid", {"images": batch, "columns": 2, "labels": labels, "title": apart[3]}, width=279)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate twice", [seed, first], [one, second]),
            ("Compare", [other, apart, batch, figures], [grid, save(grid)]),
        ),
        note(
            "Needs no download. Both samplers have the same prompt and seed: change **steps**, **cfg**, "
            "**sampler_name** or **scheduler** of one, and its line in **labels**. PSNR: above 40 dB a difference is "
            "hardly seen, below 20 dB it is another image. SSIM: 1 is equal. The map is black where they are equal. "
            "For many settings and prompts, with times: make compare, in a git clone of the pack."
        ),
    )


def clip_score() -> Graph:
    """An image, and how well it matches its prompt."""
    transformer, gemma, vae = loaders(SANA, 318)
    written = Node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", width=255)
    text = encode(gemma, written, "Encoded for SANA", 255)
    latent = Node("EmptyLatentImage", {"width": 1024, "height": 1024})
    drawn = sample(transformer, text[0], text[1], latent, steps=20, cfg=4.5, width=235)
    image = Node("VAEDecode", {"samples": drawn, "vae": vae})
    vision = Node("CLIPVisionLoader", {"clip_name": CLIP_VISION["name"]}, models=[CLIP_VISION], width=300)
    words = {"clip_name": CLIP_TEXT["name"], "type": "stable_diffusion"}
    clip = Node("CLIPLoader", words, models=[CLIP_TEXT])
    score = Node("SanaNativeClipScore", {"images": image, "clip_vision": vision, "clip": clip, "text": written})
    figures = Node("PreviewAny", {"source": score[1]}, title="CLIP score")
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt", [written, text]),
            ("Generate", [latent, drawn]),
            ("Image and score", [vision, clip, image, score], [save(image, 262), figures]),
        ),
        note(
            "The score is 100 times the cosine of image and prompt in CLIP's space; SANA's papers print 27 to 29. "
            "Raise **batch_size** to score more; from 10 images on the mean has a 95 % interval.",
            [*files_of(SANA), CLIP_VISION, CLIP_TEXT],
            whole_folder=False,
        ),
    )


def demo_train_lora() -> Graph:
    """Ten pictures of a thing that the demo model does not know become a LoRA, which then generates it elsewhere."""
    width = 209
    transformer, gemma, vae = loaders(DEMO, 215)
    pictures = Node(
        "SanaNativeTrainingSet", {"folder": DEMO_PICTURES, "size": DEMO_SIZE, "bins": False}, width=TRAINING_SET
    )
    encoded = Node("SanaNativeEncodeTrainingSet", {"training_set": pictures, "vae": vae, "clip": gemma})
    latent = Node("EmptyLatentImage", {"width": DEMO_SIZE, "height": DEMO_SIZE})
    watched = encode(gemma, "a big traffic light in the center on a pink background", "Prompt to watch", 213)
    other = Node("CLIPTextEncode", {"clip": gemma, "text": DEMO_LEARNED_PROMPT}, title="Prompt for the LoRA")
    settings = {"steps": 60, "learning_rate": 0.001, "layers": "attention + mix-ffn", "batch_size": 5}
    settings |= {"sample_every": 20, "schedule": "cosine", "save_every": 0}
    trained = train("SanaNativeTrainLora", transformer, encoded, watched, vae, "demo_lora", 268, **settings)
    learned = Node("LoraModelLoader", {"model": transformer, "lora": trained[0]}, width=width)
    drawn = sample(learned, other, watched[1], latent, "fixed", seed=DEMO_SEED, steps=20, cfg=DEMO_CFG, width=width)
    image = Node("VAEDecode", {"samples": drawn, "vae": vae}, width=width)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            # The set ends its column, for its report grows it.
            ("Pictures and prompts", [latent, encoded, pictures], [watched, other]),
            ("Train", [trained]),
            ("Use the LoRA", [learned, drawn], [image, save(image)]),
        ),
        note(
            "Needs no download: press Run. Ten pictures of a traffic light, which the demo model does not know, become "
            "a LoRA in a minute or two; SANA Train LoRA shows the prompt to watch before, while and after, and the "
            "loss. Cancel keeps what was learned; with **resume** at latest it goes on. Your own pictures: enter a "
            "folder. For SANA: sana_train_lora."
        ),
    )


def train_lora() -> Graph:
    return training(
        "SanaNativeTrainLora",
        "sana_lora",
        "Enter the **folder** of 10 to 30 pictures, each with a .txt of its name that says what it shows, and a "
        "**trigger_word** such as sks dog. Cancel keeps what was learned, **resume** at latest goes on. Then use "
        "sana_lora.",
        preset="LoRA small",
        accumulation=4,
        sample_every=100,
    )


def train_model() -> Graph:
    return training(
        "SanaNativeTrainModel",
        "sana_model",
        "Trains all weights on hundreds of pictures: enter their **folder**, each with a .txt. Takes over 29 GB of GPU "
        "memory; 19 with **optimizer** AdamW 8-bit, 10 without a float32 copy. For few pictures: sana_train_lora.",
        steps=2000,
        accumulation=8,
        warmup=100,
        validation=8,
        sample_every=250,
    )


def training(kind: str, name: str, remark: str, **settings: object) -> Graph:
    """A folder of the user's -> a LoRA or a model of SANA, with a prompt to watch."""
    transformer, gemma, vae = loaders(SANA, 318)
    pictures = Node("SanaNativeTrainingSet", {"size": 1024}, width=TRAINING_SET)
    found = Node("PreviewAny", {"source": pictures[1]}, title="What was found")
    encoded = Node("SanaNativeEncodeTrainingSet", {"training_set": pictures, "vae": vae, "clip": gemma})
    watched = encode(gemma, "a photo of sks dog on a beach", "Prompt to watch", 240)
    trained = train(kind, transformer, encoded, watched, vae, name, 300, **settings)
    curve = Node("PreviewImage", {"images": trained[3]}, title="Loss", width=280)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Pictures and a prompt", [pictures, encoded, found], [watched]),
            ("Train", [trained]),
            ("Before, after, and the loss", [save(trained[2], 280), curve]),
        ),
        note(remark, files_of(SANA)),
    )


def train(
    kind: str, model: Node, encoded: Node, watched: Node, vae: Node, name: str, width: float, **settings: object
) -> Node:
    """A training node with a prompt to watch."""
    links = {"model": model, "encoded_set": encoded, "name": name, "vae": vae}
    links |= {"sample_positive": watched[0], "sample_negative": watched[1]}
    return Node(kind, links | settings, width=width)


def lumina_text_to_image() -> Graph:
    """As diffusers' pipeline does it."""
    transformer, gemma, vae = lumina_loaders()
    text, latent = encode(gemma, PROMPT), empty(1024)
    drawn = sample(transformer, text[0], text[1], latent, steps=30, cfg=4.0)
    image = Node("VAEDecode", {"samples": drawn, "vae": vae}, width=IMAGE)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate", [drawn]),
            ("Image", [image, save(image)]),
        ),
        lumina_note(
            "Lumina-Next as diffusers runs it: 30 steps of Euler, cfg 4 on three of the four latent channels. English "
            "and Chinese prompts, without an instruction."
        ),
    )


def lumina_2k() -> Graph:
    """Twice the trained side, as the authors' demo does it."""
    transformer, gemma, vae = lumina_loaders(285)
    options = Node("SanaNativeLuminaOptions", {"model": transformer, "preset": "authors"}, width=265)
    shifted = Node("ModelSamplingAuraFlow", {"model": options, "shift": 4.0}, title="Flow shift")
    text, latent = encode(gemma, WIDE_PROMPT, width=280), empty(2048)
    links = {"model": shifted, "positive": text[0], "negative": text[1], "latent_image": latent}
    settings = {"steps": 29, "cfg": 4.0, "sampler_name": "sana_midpoint", "scheduler": "sana_lumina"}
    drawn = Node("KSampler", links | settings, width=260)
    image = Node("VAEDecode", {"samples": drawn, "vae": vae}, width=255)
    return Graph(
        frames(
            ("Files", [transformer, gemma, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate", [options, shifted], [drawn]),
            ("Image", [image, save(image)]),
        ),
        lumina_note(
            "Generates at 2048 px, twice the trained side, as the authors do: flow shift 4, the midpoint solver on "
            "their grid (each step runs the model twice), and positions scaled by their time-aware rule. For 1024 px "
            "change the size only."
        ),
    )


def lumina_loaders(width: float = LOADERS) -> list[Node]:
    """Model, Gemma-1, and the VAE of SDXL by ComfyUI's own loader."""
    return [
        Node("SanaNativeModelLoader", {"model_name": LUMINA["name"]}, models=[LUMINA], width=width),
        Node("SanaNativeGemmaLoader", {"text_encoder_name": GEMMA_1["name"]}, models=[GEMMA_1], width=width),
        Node("VAELoader", {"vae_name": SDXL_VAE["name"]}, models=[SDXL_VAE], width=width),
    ]


def lumina_note(text: str) -> Node:
    """The note, with what must lie beside the first part of Gemma-1."""
    beside = " and ".join(f"[{have['name']}]({have['url']})" for have in (GEMMA_1_REST, GEMMA_1_TOKENIZER))
    return note(
        f"{text}\n\nGemma-1 comes in two parts: put {beside} beside the first, best in a folder of their own. "
        "Lumina-Next has 6.5 GB, Gemma-1 5.0 GB (Google's terms), the VAE 0.3 GB.",
        [LUMINA, GEMMA_1, SDXL_VAE],
        whole_folder=False,
    )


def pixart_text_to_image(model: dict, vae_file: dict, remark: str, **sampling: float) -> Graph:
    transformer, t5 = pixart_loaders(model, LOADERS)
    vae = Node("VAELoader", {"vae_name": vae_file["name"]}, models=[vae_file], width=LOADERS)
    text, latent = encode(t5, PROMPT), empty(1024)
    drawn = sample(transformer, text[0], text[1], latent, **sampling)
    image = Node("VAEDecode", {"samples": drawn, "vae": vae}, width=IMAGE)
    return Graph(
        frames(
            ("Files", [transformer, t5, vae]),
            ("Prompt and size", [text, latent]),
            ("Generate", [drawn]),
            ("Image", [image, save(image)]),
        ),
        pixart_note(remark, [model, T5_FP8, vae_file]),
    )


def pixart_refined() -> Graph:
    """SDXL's refiner goes on from Sigma's latent, which has SDXL's format, so nothing is decoded between the two."""
    width = 209
    transformer, t5 = pixart_loaders(PIXART_SIGMA, 281)
    refiner = Node("CheckpointLoaderSimple", {"ckpt_name": SDXL_REFINER["name"]}, models=[SDXL_REFINER], width=281)
    written = Node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", width=width)
    text, latent = encode(t5, written, "For PixArt", 213), empty(1024)
    positive = Node("CLIPTextEncode", {"clip": refiner[1], "text": written}, title="For the refiner", width=213)
    negative = Node("CLIPTextEncode", {"clip": refiner[1], "text": ""}, title="Negative, for the refiner")
    drawn = sample(transformer, text[0], text[1], latent, steps=20, cfg=4.5, width=width)
    links = {"model": refiner[0], "positive": positive, "negative": negative, "latent_image": drawn}
    settings = {"steps": 20, "cfg": 4.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 0.25}
    refined = Node("KSampler", links | settings, title="Refine", width=width)
    image = Node("VAEDecode", {"samples": refined, "vae": refiner[2]}, width=width)
    return Graph(
        frames(
            ("Files", [transformer, t5, refiner]),
            ("Prompt and size", [written, latent, negative], [text, positive]),
            ("Generate, then refine", [drawn], [refined]),
            ("Image", [image, save(image)]),
        ),
        pixart_note(
            "SDXL's refiner adds detail to PixArt-Sigma's latent, which has the same format. **denoise** of Refine: "
            "0.2 to 0.3; more changes the image.",
            [PIXART_SIGMA, T5_FP8, SDXL_REFINER],
        ),
    )


def pixart_loaders(model: dict, width: float) -> list[Node]:
    """Model, and T5 in 8 bits."""
    return [
        Node("SanaNativeModelLoader", {"model_name": model["name"]}, models=[model], width=width),
        Node("SanaNativeGemmaLoader", {"text_encoder_name": T5_FP8["name"]}, models=[T5_FP8], width=width),
    ]


def pixart_note(text: str, files: Sequence[dict[str, str]]) -> Node:
    """The note, with what T5 takes and what may stand in its place."""
    return note(
        f"{text}\n\nT5 has 8 bits here, 5.2 GB; [{T5_FP16['name']}]({T5_FP16['url']}), 9.8 GB, is more exact. It "
        "leaves the GPU before PixArt comes (2.4 GB on disk), and another seed does not load it again. Licenses: "
        "PixArt openrail++, T5 Apache 2.0, the rest as their pages state.",
        files,
        whole_folder=False,
    )


def loaders(model: Model, width: float = LOADERS) -> list[Node]:
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
        Node(kind, {widget: name}, models=have, width=width)
        for (kind, widget), name, have in zip(kinds, names, files, strict=True)
    ]


def files_of(model: Model) -> list[dict[str, str]]:
    return [] if isinstance(model, str) else [model, GEMMA, DC_AE]


def note(text: str, files: Sequence[dict[str, str]] = (), whole_folder: bool = True) -> Node:
    """A Markdown note; with `files` it ends in the list of what to download, and the names to give.

    whole_folder: a diffusers folder serves as all of them.
    """
    if files:
        downloads = "; ".join(map(_download, files))
        text += f"\n\n**Files** {downloads}. Names are free: choose yours in the loaders."
        if whole_folder:
            text += " A whole diffusers folder in models/diffusers serves as all three."
    return Node("MarkdownNote", {"text": text}, title="What to change")


def _download(have: dict[str, str]) -> str:
    downloaded = have["url"].rpartition("/")[2]
    renamed = "" if downloaded == have["name"] else f" (downloaded as {downloaded}: rename it)"
    return f"models/{have['directory']}: [{have['name']}]({have['url']}){renamed}"


def encode(clip: Node, prompt: object, title: str = "Prompt", width: float = TEXT) -> Node:
    # A prompt that Gemma has written may have brackets of its own.
    widgets = {"prompt": prompt, "weights": not isinstance(prompt, Node)}
    return Node("SanaNativeGemmaEncode", {"clip": clip, **widgets}, title=title, width=width)


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
    width: float = SAMPLER,
    **widgets: float,
) -> Node:
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return Node("SanaNativeSampler", links | widgets, title, control=control, width=width)


def decode(vae: Node, latent: Node, width: float = IMAGE) -> Node:
    return Node("SanaNativeDCAEDecode", {"vae": vae, "samples": latent}, width=width)


def save(image: Node | Output, width: float = 0) -> Node:
    width = width or image.width
    return Node("SaveImage", {"images": image, "filename_prefix": "sana"}, width=width)


def frames(*described: tuple) -> list[Group]:
    """Frames as title and columns; a column without nodes is left out."""
    return [
        Group(title, [column for column in columns if column], COLORS[number % len(COLORS)])
        for number, (title, *columns) in enumerate(described)
    ]
