"""Nodes that measure and compare images: CLIP score, difference of two images, a grid with labels."""

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..evaluation.embed import embed_images, embed_texts
from ..evaluation.grid import Cell, draw_grid
from ..evaluation.intervals import mean_of
from ..evaluation.metrics import clip_scores
from ..evaluation.pictures import difference_map, difference_of
from .save_named import only

CATEGORY = "image"


class SanaNativeClipScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeClipScore",
            display_name="SANA CLIP Score",
            category=CATEGORY,
            description="How well images match a text: 100 times the cosine of their CLIP embeddings. Needs the two "
            "halves of one CLIP, such as CLIP ViT-L/14.",
            search_aliases=["clip score", "evaluate", "metric", "text alignment"],
            inputs=[
                io.Image.Input("images", tooltip="An image or a batch; each is scored."),
                io.ClipVision.Input("clip_vision", tooltip="From Load CLIP Vision: clip-vit-large-patch14."),
                io.Clip.Input("clip", tooltip="From Load CLIP of type stable_diffusion: the same file's text half."),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="The prompt, as it is: no weights. CLIP reads 75 tokens. As many lines as images: a line "
                    "for each.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="score", tooltip="Mean of the images; SANA's papers print 27 to 29."),
                io.String.Output(display_name="report", tooltip="The score of each image, and the mean's interval."),
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, clip_vision, clip, text: str) -> io.NodeOutput:
        if not text.strip():
            raise ValueError("There is no text: write the prompt that the images are compared with.")
        texts = texts_for(text, len(images))
        scores = clip_scores(embed_images(clip_vision, images), embed_texts(clip, texts))
        return io.NodeOutput(float(scores.mean()), score_report(scores, texts))


class SanaNativePictureDifference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativePictureDifference",
            display_name="SANA Picture Difference",
            category=CATEGORY,
            description="How far two images of one size differ, as PSNR and SSIM, and where: for the same seed with "
            "another number format, solver or step count.",
            search_aliases=["psnr", "ssim", "compare images", "difference", "heat map", "metric"],
            inputs=[
                io.Image.Input("image", tooltip="An image or a batch."),
                io.Image.Input("other", tooltip="As many images of the same size, or one that all are compared with."),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=0.1,
                    max=255.0,
                    step=0.1,
                    optional=True,
                    tooltip="Of the map alone: a difference of 1 / gain is as bright as can be.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="psnr", tooltip="In dB, the mean of the batch; 100 for equal images."),
                io.Float.Output(display_name="ssim", tooltip="From 0 to 1, which equal images have."),
                io.Image.Output(display_name="map", tooltip="Where they differ: black is equal, bright is far."),
                io.String.Output(display_name="report", tooltip="The figures of each image, one a line."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, other: Tensor, gain: float = 4.0) -> io.NodeOutput:
        pairs = pairs_of(image, other)
        found = [difference_of(a, b) for a, b in pairs]
        maps = torch.stack([difference_map(a, b, gain) for a, b in pairs])
        psnr, ssim = (np.mean([min(getattr(one, name), 100.0) for one in found]) for name in ("psnr", "ssim"))
        return io.NodeOutput(float(psnr), float(ssim), maps, "\n".join(map(str, found)))


class SanaNativeGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeGrid",
            display_name="SANA Grid",
            category=CATEGORY,
            description="Images of any sizes in rows and columns of one image, with a line of text below each.",
            search_aliases=["xy plot", "contact sheet", "image grid", "compare", "labels"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch, a list, or both: all are drawn in their order."),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=64,
                    optional=True,
                    tooltip="Images beside one another. 0: about as many as rows.",
                ),
                io.String.Input(
                    "labels",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A line for each image in ASCII, or a list of texts; other signs, such as é, become boxes.",
                ),
                io.String.Input("title", default="", optional=True, tooltip="A line above all, in ASCII."),
                io.Int.Input(
                    "side",
                    default=256,
                    min=32,
                    max=2048,
                    optional=True,
                    tooltip="Longer side of each image in the grid, in pixels.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The grid.")],
        )

    @classmethod
    def execute(cls, images, columns=0, labels="", title="", side=256) -> io.NodeOutput:
        pictures = [to_picture(one) for batch in images for one in batch]
        sheet = draw_grid(rows_of(pictures, labels, only(columns)), side=only(side), title=only(title))
        return io.NodeOutput(torch.from_numpy(np.array(sheet)).float()[None] / 255)


def texts_for(text: str, count: int) -> list[str]:
    """A text for each image: its lines if there are as many, else the whole for all."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines if len(lines) == count else [text] * count


def score_report(scores: np.ndarray, texts: list[str]) -> str:
    lines = [f"{score:.2f}  {text}" for score, text in zip(scores, texts, strict=True)]
    mean = mean_of(scores)
    reach = "" if mean.low is None else f", 95 % interval {mean.low:.2f} to {mean.high:.2f}"
    return "\n".join([*lines, f"mean {mean.value:.2f}{reach}, N = {mean.count}"])


def pairs_of(image: Tensor, other: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Images with what each is compared with.  Raises: ValueError for batches of two lengths."""
    if len(other) not in (1, len(image)):
        raise ValueError(f"{len(image)} images cannot be compared with {len(other)}: give as many, or one for all.")
    return [(one, other[i if len(other) > 1 else 0].to(one)) for i, one in enumerate(image)]


def to_picture(image: Tensor) -> Image.Image:
    """(H, W, C) of 0 to 1 in 8 bits; one channel is gray."""
    image = image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3]
    return Image.fromarray((255 * image.float().cpu().clamp(0, 1)).round().byte().numpy())


def rows_of(pictures: list[Image.Image], labels: list[str] | str, columns: int) -> list[list[Cell]]:
    """Cells in rows; a missing label is empty, and one too many is not drawn. labels: lines of one text, or texts."""
    several = isinstance(labels, list) and len(labels) > 1
    lines = [label.replace("\n", " ") for label in labels] if several else only(labels).splitlines()
    columns = columns or max(1, int(np.ceil(np.sqrt(len(pictures)))))
    cells = [Cell(one, (lines[i],) if i < len(lines) else ("",) * bool(lines)) for i, one in enumerate(pictures)]
    return [cells[start : start + columns] for start in range(0, len(cells), columns)]
