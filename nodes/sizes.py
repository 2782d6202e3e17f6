"""Any size asked for: the nearest one that SANA was trained on, and the image fitted back to what was asked."""

import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..models.sana.resolution import bin_sides, exact_sides, scaled_sides

EXACT = "exact"
COVER, CONTAIN = "cover", "contain"
LARGE, MOSTLY_CROPPED = 2**26, 4  # pixels of a scaled image; how many times those that are wanted


def side_input(name: str, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=1024, min=1, max=16384, optional=True, tooltip=tooltip)


class SanaNativeSize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeSize",
            display_name="SANA Size",
            category="model/latent/sana",
            description="The size to generate at for an image of any size: the nearest trained one, or the next "
            "multiple of 32.",
            search_aliases=["resolution", "aspect ratio", "bucket", "binning"],
            inputs=[
                side_input("width", "Width of the image that is wanted, in pixels."),
                side_input("height", "Height of the image that is wanted, in pixels."),
                io.Combo.Input(
                    "size",
                    options=["512", "1024", "2048", "4096", "256", EXACT],
                    default="1024",
                    optional=True,
                    tooltip="Side of the square the checkpoint was trained on: the trained size nearest in shape is "
                    "used. exact: the wanted size, rounded up to multiples of 32.",
                ),
            ],
            outputs=[
                io.Int.Output(display_name="width", tooltip="Width to generate at, for SANA Empty Latent."),
                io.Int.Output(display_name="height", tooltip="Height to generate at, for SANA Empty Latent."),
            ],
        )

    @classmethod
    def execute(cls, width: int = 1024, height: int = 1024, size: str = "1024") -> io.NodeOutput:
        return io.NodeOutput(*(exact_sides(width, height) if size == EXACT else bin_sides(int(size), width, height)))


class SanaNativeFitBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeFitBack",
            display_name="SANA Fit Back",
            category="image/transform",
            description="Scales and crops a generated image to the size that was wanted, to the pixel.",
            search_aliases=["resize", "crop", "image scale", "resolution"],
            inputs=[
                io.Image.Input("image", tooltip="The generated image."),
                side_input("width", "Width that is wanted, in pixels."),
                side_input("height", "Height that is wanted, in pixels."),
                io.Combo.Input(
                    "fit",
                    options=[COVER, CONTAIN],
                    default=COVER,
                    optional=True,
                    tooltip="cover: fills the size, and crops what stands out on both sides. contain: crops nothing, "
                    "and one side may be shorter.",
                ),
                io.Combo.Input(
                    "method",
                    options=["lanczos", "bicubic"],
                    default="lanczos",
                    optional=True,
                    tooltip="lanczos: the sharpest, in 8 bits. bicubic: in full precision, with antialiasing.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The image at the wanted size.")],
        )

    @classmethod
    def execute(
        cls, image, width: int = 1024, height: int = 1024, fit: str = COVER, method: str = "lanczos"
    ) -> io.NodeOutput:
        return io.NodeOutput(fit_back(image, width, height, fit == COVER, method))


def fit_back(image: Tensor, width: int, height: int, cover: bool, method: str) -> Tensor:
    """(B, H, W, C) scaled to cover (width, height) and cropped in its center, or to fit inside it.

    Raises ValueError for a shape so far from the image's that most of a huge image would be cropped off again.
    """
    scaled = scaled_sides(image.shape[2], image.shape[1], (width, height), cover)
    if scaled[0] * scaled[1] > max(LARGE, MOSTLY_CROPPED * width * height):
        raise ValueError(
            f"{width} x {height} px is too far from the shape of the image, {image.shape[2]} x {image.shape[1]} px, "
            f"which would be scaled to {scaled[0]} x {scaled[1]} px and cropped: set fit to contain, or correct the "
            "size."
        )
    if scaled != (image.shape[2], image.shape[1]):
        image = resize(image.movedim(-1, 1), *scaled, method).movedim(1, -1)
    if not cover:
        return image
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return image[:, top : top + height, left : left + width]


def resize(pixels: Tensor, width: int, height: int, method: str) -> Tensor:
    if method == "lanczos":
        return comfy.utils.common_upscale(pixels, width, height, "lanczos", "disabled")
    scaled = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return scaled.clamp(0, 1)
