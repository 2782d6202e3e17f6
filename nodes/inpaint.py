"""Inpainting and outpainting: masks on the cells of a latent, results over the original, small parts enlarged."""

from comfy_api.latest import io

from ..models.editing.crop import crop_to_mask, stitch
from ..models.editing.latents import PAD, SIDES, cell_of, encode_target, inpaint_target
from ..models.editing.masks import ANY, CELL_RULES, Sides, composite

IMAGE_CATEGORY = "image/mask"
CropPlace = io.Custom("SANA_CROP")


def side_input(side: str) -> io.Int.Input:
    return io.Int.Input(
        side,
        default=0,
        min=0,
        max=8192,
        optional=True,
        tooltip=f"Outpainting: pixels to add at the {side}, any number. They begin as a mirror image.",
    )


def feather_input() -> io.Int.Input:
    return io.Int.Input(
        "feather",
        default=24,
        min=0,
        max=512,
        optional=True,
        tooltip="Pixels outside the mask over which the result fades into the original. Beyond them the original stays "
        "bit for bit.",
    )


class SanaNativeInpaintLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeInpaintLatent",
            display_name="SANA Inpaint Latent",
            category="model/latent/sana",
            description="Encodes an image with a mask on whole latent cells, and adds pixels to outpaint.",
            search_aliases=["inpaint", "outpaint", "vae encode for inpainting", "set latent noise mask", "pad image"],
            inputs=[
                io.Vae.Input("vae", tooltip="DC-AE from SANA DC-AE Loader; Load VAE for PixArt and Lumina-Next."),
                io.Image.Input("image", tooltip="The image to change or to extend, of any size."),
                io.Mask.Input(
                    "mask", optional=True, tooltip="White is generated anew. Not needed if only sides are added."
                ),
                io.Int.Input(
                    "grow",
                    default=1,
                    min=0,
                    max=16,
                    optional=True,
                    tooltip="Cells to generate around the masked ones, for a smooth transition; a cell is 32 px wide, "
                    "8 px with PixArt and Lumina-Next.",
                ),
                io.Combo.Input(
                    "cells",
                    options=list(CELL_RULES),
                    default=ANY,
                    optional=True,
                    tooltip="any pixel: every cell that the mask touches. half: cells it covers by half. soft: cells "
                    "get the mask's mean, for Differential Diffusion.",
                ),
                io.Combo.Input(
                    "sides",
                    options=list(SIDES),
                    default=PAD,
                    optional=True,
                    tooltip="For sides that are no multiple of a cell. pad: the image is mirrored up to the next one, "
                    "which the composite removes. crop: cut evenly, and the border stays as it is.",
                ),
                *map(side_input, ("left", "top", "right", "bottom")),
            ],
            outputs=[
                io.Latent.Output(tooltip="The encoded image with a noise mask, for every sampler."),
                io.Mask.Output(tooltip="The mask in pixels with the added sides, for SANA Inpaint Composite."),
                io.Image.Output(tooltip="The image with the added sides, for SANA Inpaint Composite."),
            ],
        )

    @classmethod
    def execute(
        cls,
        vae,
        image,
        mask=None,
        grow: int = 1,
        cells: str = ANY,
        sides: str = PAD,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
    ) -> io.NodeOutput:
        added = Sides(left, top, right, bottom)
        target = inpaint_target(image, mask, cell_of(vae), added, rule=cells, grow=grow, fit=sides)
        return io.NodeOutput(encode_target(vae, target), target.mask, target.canvas)


class SanaNativeInpaintComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeInpaintComposite",
            display_name="SANA Inpaint Composite",
            category=IMAGE_CATEGORY,
            description="Puts the generated part over the original, which stays bit for bit outside mask and feather.",
            search_aliases=["inpaint", "outpaint", "paste", "image composite masked", "feather", "seam"],
            inputs=[
                io.Image.Input("original", tooltip="The image of SANA Inpaint Latent."),
                io.Image.Input("result", tooltip="The decoded image; what was padded or cropped is undone."),
                io.Mask.Input("mask", tooltip="The mask of SANA Inpaint Latent."),
                feather_input(),
            ],
            outputs=[io.Image.Output(tooltip="The original with the generated part in it.")],
        )

    @classmethod
    def execute(cls, original, result, mask, feather: int = 24) -> io.NodeOutput:
        return io.NodeOutput(composite(original, result, mask, feather))


class SanaNativeInpaintCrop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeInpaintCrop",
            display_name="SANA Inpaint Crop",
            category=IMAGE_CATEGORY,
            description="Cuts out what is masked and enlarges it to the model's size, so that small parts get detail.",
            search_aliases=["inpaint", "crop and stitch", "only masked", "detailer", "face"],
            inputs=[
                io.Image.Input("image", tooltip="The image to change in a small place."),
                io.Mask.Input("mask", tooltip="White is generated anew; the part around it is cut out."),
                io.Int.Input(
                    "size",
                    default=1024,
                    min=128,
                    max=4096,
                    step=32,
                    optional=True,
                    tooltip="Side in pixels of the square with as many pixels as the enlarged part: what the model "
                    "was trained at.",
                ),
                io.Int.Input(
                    "context",
                    default=64,
                    min=0,
                    max=2048,
                    optional=True,
                    tooltip="Pixels of the image around the mask that are cut out with it, for the model to see.",
                ),
            ],
            outputs=[
                CropPlace.Output(
                    display_name="crop", tooltip="The original and where the part lies in it, for SANA Inpaint Stitch."
                ),
                io.Image.Output(tooltip="The enlarged part, for SANA Inpaint Latent."),
                io.Mask.Output(tooltip="Its mask, for SANA Inpaint Latent."),
            ],
        )

    @classmethod
    def execute(cls, image, mask, size: int = 1024, context: int = 64) -> io.NodeOutput:
        return io.NodeOutput(*crop_to_mask(image, mask, size, context))


class SanaNativeInpaintStitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeInpaintStitch",
            display_name="SANA Inpaint Stitch",
            category=IMAGE_CATEGORY,
            description="Scales a part of SANA Inpaint Crop back and puts it into the original, without a seam.",
            search_aliases=["inpaint", "crop and stitch", "uncrop", "paste"],
            inputs=[
                CropPlace.Input("crop", tooltip="The place from SANA Inpaint Crop."),
                io.Image.Input("image", tooltip="The decoded part, at whatever size."),
                feather_input(),
            ],
            outputs=[io.Image.Output(tooltip="The original with the new part in it.")],
        )

    @classmethod
    def execute(cls, crop, image, feather: int = 24) -> io.NodeOutput:
        return io.NodeOutput(stitch(crop, image, feather))
