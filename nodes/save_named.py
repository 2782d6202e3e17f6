"""Images under given names: safe on every system, written whole or not at all, and not again where they exist."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..scale.rows import safe_name
from .metadata import metadata_of_graph

NODE_ID, NAME_INPUT = "SanaNativeSaveNamed", "name"
FORMATS = ("png", "jpg", "webp")
FOLDER = "prompts"
# Tags of EXIF, as the host uses them for a webp: its own "prompt:" and "workflow:"; and what the image shows.
EXIF_DESCRIPTION, EXIF_WORKFLOW, EXIF_PROMPT = 0x010E, 0x010F, 0x0110


def detail_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "quality",
            default=92,
            min=1,
            max=100,
            optional=True,
            advanced=True,
            tooltip="Of jpg and webp.",
        ),
        io.String.Input(
            "prompt",
            default="",
            optional=True,
            force_input=True,
            tooltip="The image's own prompt, written into the file as text.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            optional=True,
            force_input=True,
            tooltip="The image's own seed, written into the file as text.",
        ),
    ]


class SanaNativeSaveNamed(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeSaveNamed",
            display_name="SANA Save Named",
            category="image",
            description="Saves images under names of their own, as those of SANA Prompts From File, and skips what is "
            "saved already before it is generated.",
            search_aliases=["save image", "save with name", "resume", "prompt file"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", lazy=True, tooltip="One image for each name; not asked for what exists."),
                io.String.Input(
                    NAME_INPUT,
                    tooltip="Name of the file without its ending, or a list of names. Signs that no file name can "
                    "have become _.",
                ),
                io.String.Input(
                    "folder",
                    default=FOLDER,
                    optional=True,
                    tooltip="Folder below ComfyUI's output folder; a slash makes a folder inside.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="png",
                    optional=True,
                    tooltip="png: exact, with the graph inside. jpg and webp: smaller; webp holds the graph too.",
                ),
                io.Boolean.Input(
                    "skip_existing",
                    default=True,
                    optional=True,
                    tooltip="Neither generates nor writes an image whose file exists, so that a stopped run goes on. "
                    "off: overwrites it.",
                ),
                *detail_inputs(),
            ],
            outputs=[io.String.Output(display_name="paths", tooltip="Paths of the files, one a line.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def check_lazy_status(cls, name, folder=FOLDER, format="png", skip_existing=True, **_) -> list[str]:
        require_names(name)
        existing = all(is_saved(one, only(folder), only(format)) for one in name)
        return [] if existing and only(skip_existing) else ["images"]

    @classmethod
    def execute(
        cls, images, name, folder=FOLDER, format="png", skip_existing=True, quality=92, prompt="", seed=0
    ) -> io.NodeOutput:
        target = Target(only(folder), only(format), only(quality), only(skip_existing), metadata_of_graph(cls.hidden))
        pictures = name_pictures(images, name, prompt, seed)
        # The first of a batch last: where it is, all are, as is_saved takes it.
        saved = {one[1]: target.save(*one) for one in sorted(pictures, key=lambda one: one[1].endswith("_0"))}
        files = [saved[one[1]] for one in pictures] or [target.find(one) for one in name]
        paths = [os.path.join(target.place, file["filename"]) for file in files]
        return io.NodeOutput("\n".join(paths), ui={"images": files})


def require_names(names: Sequence[str]) -> None:
    """Raises ValueError for an empty name, under which every graph's images would be the same file."""
    if not all(name.strip() for name in names):
        raise ValueError("An image has no name: write one in name, or link the name of SANA Prompts From File.")


def only(value):
    """The value of an input that is one for all images; a list where the host gives all inputs as lists."""
    return value[0] if isinstance(value, list | tuple) else value


def folder_parts(folder: str) -> list[str]:
    """Safe names of the folders of a path below the output folder, out of which none leads."""
    return [safe_name(part) for part in re.split(r"[/\\]", folder) if part.strip(" .")]


def path_of(name: str, folder: str, format: str) -> str:
    return os.path.join(folder_paths.get_output_directory(), *folder_parts(folder), f"{safe_name(name)}.{format}")


def is_saved(name: str, folder: str, format: str) -> bool:
    """Whether the image of a name is there, or the first of a batch of that name."""
    return os.path.exists(path_of(name, folder, format)) or os.path.exists(path_of(f"{name}_0", folder, format))


def saved_in(graph: dict, node_id: str, slot: int) -> Callable[[str], bool]:
    """Tells of a name whether every SANA Save Named that a graph gives the output has its image already."""
    targets = []
    for node in graph.values():
        inputs = node["inputs"]
        if node["class_type"] == NODE_ID and inputs.get(NAME_INPUT) == [node_id, slot]:
            place = inputs.get("folder", FOLDER), inputs.get("format", FORMATS[0])
            known = inputs.get("skip_existing", True) is True and all(isinstance(value, str) for value in place)
            targets.append(place if known else None)
    if not targets or None in targets:
        return lambda _name: False
    return lambda name: all(is_saved(name, *place) for place in targets)


def name_pictures(
    images: Sequence[Tensor | None], names: Sequence[str], prompts: Sequence[str] | str, seeds: Sequence[int] | int
) -> list[tuple[Tensor, str, dict[str, str]]]:
    """Image (H, W, C), name and texts of each image; none where no image was asked for.

    images: (B, H, W, C) each. A name for several images gets their number behind it. Raises ValueError where names and
    images cannot be matched.
    """
    images = [image for image in images if image is not None]
    frames = [frame for image in images for frame in image]
    if frames and len(names) == len(frames):
        images = [frame[None] for frame in frames]
    elif len(names) == 1 and frames:
        images = [torch.stack(frames)] if len({frame.shape for frame in frames}) == 1 else [frames]
    elif len(names) != len(images) and frames:
        raise ValueError(f"There are {len(frames)} images and {len(names)} names: give one name for each image.")
    found = []
    for number, image in enumerate(images):
        texts = {}
        if isinstance(prompts, list | tuple) and prompts:
            texts["Description"] = prompts[min(number, len(prompts) - 1)]
        if isinstance(seeds, list | tuple) and seeds:
            texts["Seed"] = str(seeds[min(number, len(seeds) - 1)])
        several = len(image) > 1
        found += [(frame, f"{names[number]}_{k}" if several else names[number], texts) for k, frame in enumerate(image)]
    return found


class Target:
    """Where and how images are written.

    graph: texts for the file, {} for none.
    """

    def __init__(self, folder: str, format: str, quality: int, skip_existing: bool, graph: dict[str, str]):
        self.folder, self.format, self.quality, self.skip_existing = folder, format, quality, skip_existing
        self.graph = graph
        self.place = os.path.dirname(path_of("image", folder, format))

    def find(self, name: str) -> dict[str, str]:
        """The file of a name as the browser is told of it."""
        path = path_of(name, self.folder, self.format)
        first = path if os.path.exists(path) else path_of(f"{name}_0", self.folder, self.format)
        return self.describe(first)

    def describe(self, path: str) -> dict[str, str]:
        return {"filename": os.path.basename(path), "subfolder": "/".join(folder_parts(self.folder)), "type": "output"}

    def save(self, image: Tensor, name: str, texts: dict[str, str]) -> dict[str, str]:
        """Writes an image (H, W, C) of 0 to 1, unless it is there, and describes its file.

        Under its name only when it is whole, so that what a stopped run leaves does not count as saved. Raises OSError.
        """
        path = path_of(name, self.folder, self.format)
        if self.skip_existing and os.path.exists(path):
            return self.describe(path)
        part = f"{path}.{os.getpid()}.part"
        try:
            os.makedirs(self.place, exist_ok=True)
            self.write(to_picture(image), part, texts)
            os.replace(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.remove(part)
            reason = error.strerror or type(error).__name__
            raise OSError(f"{path} cannot be written ({reason}): choose another folder, or free some space.") from error
        return self.describe(path)

    def write(self, picture: Image.Image, path: str, texts: dict[str, str]) -> None:
        if self.format == "png":
            info = PngInfo()
            for key, text in (self.graph | texts).items():
                info.add_text(key, text)
            picture.save(path, "PNG", pnginfo=info, compress_level=4)  # the host's own level
            return
        exif = picture.getexif()
        if texts:
            lines = "\n".join(f"{key}: {text}" for key, text in texts.items())
            exif[EXIF_DESCRIPTION] = lines.encode("utf-8", "replace")  # of a str Pillow keeps ASCII alone
        if self.format == "webp":
            for tag, key in ((EXIF_PROMPT, "prompt"), (EXIF_WORKFLOW, "workflow")):
                if key in self.graph:
                    exif[tag] = f"{key}:{self.graph[key]}"
            picture.save(path, "WEBP", quality=self.quality, exif=exif)
        else:
            picture.convert("RGB").save(path, "JPEG", quality=self.quality, exif=exif)


def to_picture(image: Tensor) -> Image.Image:
    """(H, W, C) of 0 to 1 in 8 bits, as the host's own save nodes round it."""
    return Image.fromarray(np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8))
