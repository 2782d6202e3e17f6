"""Latents at SANA's trained resolutions: an empty one, and one to be refined at a larger size."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..models.editing.latents import PIXEL, UPSCALE_METHODS, upscale_latent
from ..models.sana.resolution import ASPECT_RATIOS, RATIO, bin_size, describe_rounding
from .warnings import show

CUSTOM = "custom"


class SanaNativeEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 1024, "min": 32, "max": 16384, "step": RATIO, "optional": True}
        return io.Schema(
            node_id="SanaNativeEmptyLatent",
            display_name="SANA Empty Latent",
            category="model/latent/sana",
            description="An empty latent at a size SANA and PixArt were trained on, or at any multiple of 32 px.",
            search_aliases=["sana resolution", "sana size", "empty latent", "aspect ratio"],
            inputs=[
                io.Combo.Input(
                    "size",
                    options=["512", "1024", "2048", "4096", CUSTOM, "256"],
                    default="1024",
                    optional=True,
                    tooltip="Side in pixels of the square the checkpoint was trained on (its name says 256, 512, 1024, "
                    "2K or 4K). custom takes width and height below.",
                ),
                io.Combo.Input(
                    "aspect_ratio",
                    options=list(ASPECT_RATIOS),
                    default="1:1",
                    optional=True,
                    tooltip="Width to height. The nearest size SANA and PixArt were trained on with about as many "
                    "pixels is used. Ignored with custom.",
                ),
                io.Int.Input("width", **side, tooltip="Image width in pixels, with size custom; a multiple of 32."),
                io.Int.Input("height", **side, tooltip="Image height in pixels, with size custom; a multiple of 32."),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    optional=True,
                    tooltip="Number of images generated at once.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="32 channels at 1/32 of the image size; a sampler makes them 4 at 1/8 for PixArt."
                )
            ],
        )

    @classmethod
    def execute(
        cls, size: str = "1024", aspect_ratio: str = "1:1", width: int = 1024, height: int = 1024, batch_size: int = 1
    ) -> io.NodeOutput:
        if size != CUSTOM:
            width, height = bin_size(int(size), aspect_ratio)
        show(describe_rounding(width, height))
        shape = (batch_size, 32, height // RATIO, width // RATIO)
        samples = torch.zeros(shape, device=comfy.model_management.intermediate_device())
        return io.NodeOutput({"samples": samples, "downscale_ratio_spacial": RATIO})


class SanaNativeUpscaleLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeUpscaleLatent",
            display_name="SANA Upscale Latent",
            category="model/latent/sana",
            description="Enlarges a latent in whole cells for a second pass: decodes, scales and encodes in one node.",
            search_aliases=["hires fix", "upscale latent", "latent upscale by", "second pass"],
            inputs=[
                io.Vae.Input("vae", tooltip="The autoencoder of the latent, also the one of PixArt or Lumina-Next."),
                io.Latent.Input("samples", tooltip="Latent of an image, from a sampler or an encoder."),
                io.Float.Input(
                    "factor",
                    default=2.0,
                    min=0.1,
                    max=8.0,
                    step=0.05,
                    optional=True,
                    tooltip="Enlargement of each side, rounded to whole cells of 32 px (8 px with PixArt and "
                    "Lumina-Next).",
                ),
                io.Float.Input(
                    "megapixels",
                    default=0.0,
                    min=0.0,
                    max=64.0,
                    step=0.05,
                    optional=True,
                    tooltip="Size in place of factor, in units of 1024 x 1024 px. 0 uses factor.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(UPSCALE_METHODS),
                    default=PIXEL,
                    optional=True,
                    tooltip="pixel: decode, scale bicubically, encode; preserves the image. latent: interpolate the "
                    "latent, which is quick but blurs; for a denoise of 0.5 and more.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The larger latent, for a sampler with denoise 0.3 to 0.5.")],
        )

    @classmethod
    def execute(cls, vae, samples, factor: float = 2.0, megapixels: float = 0.0, method: str = PIXEL) -> io.NodeOutput:
        return io.NodeOutput(upscale_latent(vae, samples, factor, megapixels, method))
