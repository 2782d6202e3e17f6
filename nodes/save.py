"""The save nodes: a MODEL or CLIP -> files in the host's narrow formats, a CONTROL_NET -> a file without its base."""

import logging
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..models.controlnet.saving import save_controlnet
from ..models.files.file_errors import shown
from ..models.files.quantize import PRESETS
from ..models.files.saving import check_model, quantize_model
from ..models.registry import FAMILIES
from .metadata import metadata_of_graph

logger = logging.getLogger(__name__)

# Component -> folder below the output folder. The host looks for models in the first two, the pack adds the third.
FOLDERS = {"transformer": "diffusion_models", "text_encoder": "clip", "controlnet": "controlnet"}
NAME_LENGTH = 200  # bytes; file systems take 255, and a preset, a number and endings follow


class SanaNativeQuantizeSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeQuantizeSave",
            display_name="SANA Quantize & Save",
            category="model/merging",
            description="Writes a SANA, PixArt or Lumina-Next model, or its text encoder, with narrow weights, for "
            "less memory and disk.",
            search_aliases=["quantize", "int8", "fp8", "nvfp4", "save model", "clip save"],
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Model of SANA Model Loader in 16 or 32 bits; LoRAs are merged into the file.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoder of SANA Gemma Loader in 16 or 32 bits; written to a file of its own.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="int8",
                    optional=True,
                    tooltip="Format of the weights. int8: half of 16 bits, the closest to them, native from Turing on. "
                    "fp8: as small, native from Ada on. nvfp4: a third, native on Blackwell. w4a4: a third, native "
                    "from Turing on, visibly less exact.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="sana",
                    optional=True,
                    tooltip="Start of the names below output/diffusion_models and output/clip; the preset and a "
                    "number follow. The loaders list the files at once.",
                ),
            ],
            outputs=[io.String.Output(display_name="paths", tooltip="Paths of the files written, one a line.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model=None, clip=None, preset: str = "int8", filename_prefix: str = "sana") -> io.NodeOutput:
        connected = {"transformer": model, "text_encoder": clip}
        paths = save_parts(connected, preset, filename_prefix, metadata_of_graph(cls.hidden))
        return io.NodeOutput("\n".join(paths))


class SanaNativeControlNetSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeControlNetSave",
            display_name="SANA ControlNet Save",
            category="model/merging",
            description="Writes a SANA ControlNet without its base as a safetensors file in 16 bits.",
            search_aliases=["save controlnet", "extract controlnet", "convert controlnet"],
            inputs=[
                io.ControlNet.Input("control_net", tooltip="ControlNet of SANA ControlNet Loader."),
                io.String.Input(
                    "filename_prefix",
                    default="sana_controlnet",
                    optional=True,
                    tooltip="Start of the name below output/controlnet; a number follows. SANA ControlNet Loader lists "
                    "the file.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Path of the file written.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, control_net, filename_prefix: str = "sana_controlnet") -> io.NodeOutput:
        path = next_path(FOLDERS["controlnet"], filename_prefix)
        size = save_controlnet(control_net, path, metadata_of_graph(cls.hidden))
        logger.info("SANA: wrote %s (%.3g GB)", path, size / 1e9)
        return io.NodeOutput(path)


def save_parts(parts: dict[str, object], preset: str, prefix: str, metadata: dict[str, str]) -> list[str]:
    """Writes a file for each part that is connected and returns their paths.

    Raises ValueError when none is, and before anything is written when one of them cannot be.
    """
    connected = {component: part for component, part in parts.items() if part is not None}
    if not connected:
        raise ValueError("There is nothing to quantize: connect a model, a clip, or both.")
    for component, part in connected.items():
        check_model(FAMILIES, component, part)
    paths = {component: next_path(FOLDERS[component], prefix, preset) for component in connected}
    for component, part in connected.items():
        logger.info("SANA: %s", quantize_model(FAMILIES, component, part, paths[component], preset, metadata))
    return list(paths.values())


def next_path(folder: str, prefix: str, preset: str = "") -> str:
    """The next free name in a folder below the output folder, numbered as the host numbers its own.

    preset: follows the prefix in the name.

    Raises ValueError or OSError with one sentence for a prefix that cannot be part of a name or leads elsewhere.
    """
    check_prefix(folder, prefix)
    output, start = folder_paths.get_output_directory(), f"{folder}/{prefix}_{preset}".rstrip("_")
    try:
        place, name, counter, *_ = folder_paths.get_save_image_path(start, output)
    except OSError as error:
        raise OSError(
            f"The folder of filename_prefix {shown(prefix)} cannot be made in {shown(os.path.join(output, folder))} "
            f"({error.strerror or type(error).__name__}): choose another name, or free this one."
        ) from error
    return os.path.join(place, f"{name}_{counter:05}_.safetensors")


def check_prefix(folder: str, prefix: str) -> None:
    """Raises ValueError for a prefix that no file can have, or that leads out of the folder the loaders list."""
    if any(sign < " " for sign in prefix) or prefix.encode("utf-8", "ignore").decode() != prefix:
        raise ValueError(f"filename_prefix {shown(prefix)} holds a character that no file name can have: retype it.")
    *folders, name = prefix.split("/")
    if any(part and not part.strip(" .") for part in (name, *(one for one in folders if one not in (".", "..")))):
        raise ValueError(f"filename_prefix {shown(prefix)} names nothing but spaces or dots: give it a name.")
    if max(len(name.encode()) for name in prefix.split("/")) > NAME_LENGTH:
        raise ValueError(
            f"filename_prefix {shown(prefix)} is too long: use at most {NAME_LENGTH} bytes between two slashes."
        )
    output = os.path.realpath(folder_paths.get_output_directory())
    root = os.path.join(output, folder)
    place = os.path.realpath(os.path.dirname(os.path.join(root, *f"{prefix}_".split("/"))))
    if not Path(place).is_relative_to(root):
        raise ValueError(
            f"filename_prefix {shown(prefix)} leads out of {shown(root)}, whose files the loaders list: leave out "
            "what leads there, such as .. or a link."
        )
