"""Replacements for ComfyUI_ExtraModels' SANA, PixArt and T5 nodes in old graphs, made by the host without that pack.

The new node has the old one's purpose and settings; the host refuses names of files that the loaders do not list, and
the user picks them again. Left as they are, because nothing here takes their place exactly:
SanaResolutionSelect and PixArtResolutionSelect (two numbers; SANA Empty Latent offers the sizes), PixArtControlNetCond
(there is no ControlNet for PixArt here), ScmModelSampling (a guidance scale on the model;
the host's FluxGuidance puts it on the prompt), the sampler name "scm" inside a KSampler (sana_scm, with its schedule),
EXMCLIPLoader (mostly for other models), and the nodes of LuminaWrapper, whose model, text and sampler have sockets of
their own (SANA Model Loader, SANA Gemma Loader, SANA Gemma Encode and SANA Sampler do their work).

Source: the nodes' inputs in Efficient-Large-Model/ComfyUI_ExtraModels and city96/ComfyUI_ExtraModels. Only inputs that
every version of a node requires are mapped, because the host fails on one that a prompt does not have.
"""

from comfy_api.latest import ComfyAPI, io

from .host_server import running_server

# The frontend keeps the wires of an output only when told of it. The server, told the same, looks for the wire under
# the name the next input had before its node was replaced in turn, and fails; as text the index is none of its own.
SAME_OUTPUT = [{"new_idx": 0, "old_idx": "0"}]


def taken(new_id: str, old_id: str) -> dict[str, str]:
    return {"new_id": new_id, "old_id": old_id}


def fixed(new_id: str, value: object) -> dict[str, object]:
    return {"new_id": new_id, "set_value": value}


def encode(instruction: str, encoder: str = "GEMMA", lower_case: bool = False) -> list[dict]:
    """Of a text encode node with one text: our node's first output is its conditioning. encoder: its input."""
    return [
        taken("clip", encoder),
        taken("prompt", "text"),
        fixed("negative_prompt", ""),
        fixed("instruction", instruction),
        fixed("custom_instruction", ""),
        fixed("lower_case", lower_case),
    ]


def pixart_rows() -> list[tuple[str, list[str], str, list[dict]]]:
    """Old node, its widgets, our node, and where each of its inputs comes from."""
    model = [
        taken("model_name", "ckpt_name"),
        fixed("weight_dtype", "auto"),
        fixed("shift", 0.0),
        fixed("clamp", "auto"),
    ]
    lora = [taken("model", "model"), taken("lora_name", "lora_name"), taken("strength_model", "strength")]
    t5 = [taken("text_encoder_name", "t5v11_name"), fixed("dtype", "auto")]
    return [
        ("PixArtCheckpointLoader", ["ckpt_name", "model"], "SanaNativeModelLoader", model),
        ("PixArtCheckpointLoaderSimple", ["ckpt_name"], "SanaNativeModelLoader", model),
        ("PixArtLoraLoader", ["lora_name", "strength"], "SanaNativeLoraLoader", lora),
        ("T5v11Loader", ["t5v11_name", "t5v11_ver", "path_type", "device", "dtype"], "SanaNativeGemmaLoader", t5),
        ("PixArtT5TextEncode", ["text"], "SanaNativeGemmaEncode", encode("off", "T5", lower_case=True)),
        ("T5TextEncode", ["text"], "SanaNativeGemmaEncode", encode("off", "T5")),
        # Models that embed the image's size take the latent's here.
        (
            "PixArtResolutionCond",
            ["width", "height"],
            "ConditioningSetAreaStrength",
            [taken("conditioning", "cond"), fixed("strength", 1.0)],
        ),
    ]


def replacements() -> list[io.NodeReplace]:
    rows = [
        (
            "SanaCheckpointLoader",
            ["ckpt_name", "model", "dtype"],
            "SanaNativeModelLoader",
            [
                taken("model_name", "ckpt_name"),
                fixed("weight_dtype", "auto"),
                fixed("shift", 0.0),
                fixed("clamp", "auto"),
            ],
        ),
        (
            "GemmaLoader",
            ["model_name", "device", "dtype"],
            "SanaNativeGemmaLoader",
            [taken("text_encoder_name", "model_name"), fixed("dtype", "auto")],
        ),
        (
            "ExtraVAELoader",
            ["vae_name", "vae_type", "dtype"],
            "SanaNativeDCAELoader",
            [taken("vae_name", "vae_name"), fixed("dtype", "auto")],
        ),
        ("SanaTextEncode", ["text"], "SanaNativeGemmaEncode", encode("on")),
        ("GemmaTextEncode", ["text"], "SanaNativeGemmaEncode", encode("off")),
        (
            "EmptySanaLatentImage",
            ["width", "height", "batch_size"],
            "SanaNativeEmptyLatent",
            [
                fixed("size", "custom"),
                fixed("aspect_ratio", "1:1"),
                *(taken(name, name) for name in ("width", "height", "batch_size")),
            ],
        ),
        # SANA is not conditioned on the image's size, so this node did nothing. Nor does the host's node at strength 1.
        (
            "SanaResolutionCond",
            ["width", "height"],
            "ConditioningSetAreaStrength",
            [taken("conditioning", "cond"), fixed("strength", 1.0)],
        ),
    ]
    return [
        io.NodeReplace(new, old, old_widget_ids=widgets, input_mapping=inputs, output_mapping=SAME_OUTPUT)
        for old, widgets, new, inputs in [*rows, *pixart_rows()]
    ]


async def register_replacements() -> None:
    """Hands them to the host's server; without one there are no graphs to replace nodes in."""
    if running_server() is None:
        return
    api = ComfyAPI()
    for replacement in replacements():
        await api.node_replacement.register(replacement)
