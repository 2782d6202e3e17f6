"""Writes workflows/*.json: the graphs that users open and share, each one idea.

python -m tools.make_workflows            needs a running environment (see tools/host.py)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from .comfy_server import ComfyServer
from .host import prepare_base
from .workflow_build import Group, Node, build

ROOT = Path(__file__).resolve().parent.parent
DEMO = "sana-native-demo/"
HUB = "https://huggingface.co"


def file(name: str, path: str, directory: str) -> dict[str, str]:
    return {"name": name, "url": f"{HUB}/{path}", "directory": directory}


SANA = file(
    "Sana_1600M_1024px_BF16.pth",
    "Efficient-Large-Model/Sana_1600M_1024px_BF16/resolve/main/checkpoints/Sana_1600M_1024px_BF16.pth",
    "diffusion_models",
)
SPRINT = file(
    "Sana_Sprint_1.6B_1024px.pth",
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px/resolve/main/checkpoints/Sana_Sprint_1.6B_1024px.pth",
    "diffusion_models",
)
GEMMA = file(
    "gemma_2_2b_it_elm_bf16.safetensors",
    "Comfy-Org/PixelDiT/resolve/main/text_encoders/gemma_2_2b_it_elm_bf16.safetensors",
    "text_encoders",
)
DC_AE = file(
    "dc-ae-f32c32-sana-1.1.safetensors", "mit-han-lab/dc-ae-f32c32-sana-1.1/resolve/main/model.safetensors", "vae"
)

FILES_NOTE = """Files (the names are free, pick them in the loaders):
- models/diffusion_models: {model}
- models/text_encoders: {gemma}
- models/vae: {vae}

A whole diffusers folder in models/diffusers works too: pick it in all three loaders."""


def loaders(model: dict[str, str] | None) -> list[Node]:
    """Model, text encoder and autoencoder; the bundled demo for None."""
    if model is None:
        names, files = (DEMO,) * 3, ((),) * 3
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


def note(text: str) -> Node:
    return Node("Note", {"text": text}, title="What to change")


def text_to_image(
    model: dict[str, str] | None, prompt: str, sampler: dict, size: dict, remark: str, guidance: float | None = None
) -> dict:
    """Loaders -> prompt -> SANA Sampler -> picture; with `guidance` for SANA-Sprint."""
    transformer, gemma, vae = loaders(model)
    encode = Node("SanaNativeGemmaEncode", {"clip": gemma, "prompt": prompt}, title="Prompt")
    latent = Node("SanaNativeEmptyLatent", size)
    positive, extra = encode[0], []
    if guidance is not None:
        extra = [Node("FluxGuidance", {"conditioning": encode[0], "guidance": guidance}, title="Guidance")]
        positive = extra[0]
    sample = Node(
        "SanaNativeSampler",
        {"model": transformer, "positive": positive, "negative": encode[1], "latent_image": latent} | sampler,
    )
    decode = Node("SanaNativeDCAEDecode", {"vae": vae, "samples": sample})
    save = Node("SaveImage", {"images": decode, "filename_prefix": "sana"})
    nodes = [transformer, gemma, vae, encode, latent, *extra, sample, decode, save, note(remark)]
    return {"nodes": nodes, "groups": [Group("Files", [transformer, gemma, vae])]}


def stock_nodes() -> dict:
    """The same picture with the host's own nodes after the loaders."""
    transformer, gemma, vae = loaders(SANA)
    positive = Node("CLIPTextEncode", {"clip": gemma, "text": PROMPT}, title="Prompt")
    negative = Node("CLIPTextEncode", {"clip": gemma, "text": ""}, title="Negative prompt (leave empty)")
    latent = Node("EmptyLatentImage", {"width": 1024, "height": 1024})
    sample = Node(
        "KSampler",
        {
            "model": transformer,
            "positive": positive,
            "negative": negative,
            "latent_image": latent,
            "steps": 20,
            "cfg": 4.5,
        }
        | {"sampler_name": "sana_flow_dpm", "scheduler": "sana_flow"},
    )
    decode = Node("VAEDecode", {"samples": sample, "vae": vae})
    save = Node("SaveImage", {"images": decode, "filename_prefix": "sana"})
    remark = (
        "Only the loaders are SANA's own. CLIP Text Encode puts the instruction before every text but an empty one: "
        "for a negative prompt use SANA Gemma Encode.\n\n" + files_note(SANA)
    )
    nodes = [transformer, gemma, vae, positive, negative, latent, sample, decode, save, note(remark)]
    return {"nodes": nodes, "groups": [Group("Files", [transformer, gemma, vae])]}


def files_note(model: dict[str, str]) -> str:
    return FILES_NOTE.format(model=model["name"], gemma=GEMMA["name"], vae=DC_AE["name"])


PROMPT = (
    "a cozy reading corner by a rainy window, a ginger cat asleep on a stack of old books, warm lamp light, film photo"
)


def workflows() -> dict[str, dict]:
    full = {"size": "1024", "aspect_ratio": "1:1"}
    demo = {"size": "custom", "width": 128, "height": 128}
    return {
        "sana_txt2img": text_to_image(SANA, PROMPT, {"steps": 20, "cfg": 4.5}, full, files_note(SANA)),
        "sana_sprint_txt2img": text_to_image(
            SPRINT,
            PROMPT,
            {"steps": 2, "cfg": 1.0},
            full,
            "1 to 4 steps. Keep cfg at 1; the guidance scale is in the Guidance node (4 to 5).\n\n"
            + files_note(SPRINT),
            guidance=4.5,
        ),
        "sana_txt2img_ksampler": stock_nodes(),
        "demo_txt2img": text_to_image(
            None,
            "a red apple on a blue background",
            {"steps": 20, "cfg": 3.0},
            demo,
            "Runs at once on the small model that comes with the pack: one thing on one plain background, 128 px. "
            "demo/README.md lists the things and backgrounds it knows.",
        ),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(prepare_base(Path(folder)), cpu=True) as server:
        object_info = server.object_info()
    for name, parts in workflows().items():
        workflow = build(parts["nodes"], object_info, name=name, groups=parts["groups"])
        text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
        (ROOT / "workflows" / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
