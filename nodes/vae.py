"""Image <-> latent through DC-AE, in tiles when they are asked for or needed."""

from comfy_api.latest import io

from ..models.dc_ae.vae import decode_image, encode_image

CATEGORY = "model/latent/sana"
TILING = ["auto", "off", "on"]


def tiling_inputs() -> list:
    return [
        io.Combo.Input(
            "tiling",
            options=TILING,
            default="auto",
            optional=True,
            tooltip="auto: in one piece, or in exact tiles when memory is insufficient; the result is the same. off: "
            "exact tiles only after memory has run out. on: always in ComfyUI's own tiles, which differ slightly from "
            "the whole, because part of DC-AE attends to the full image.",
        ),
        io.Int.Input(
            "tile_size",
            default=1024,
            min=128,
            max=8192,
            step=32,
            advanced=True,
            optional=True,
            tooltip="Side of a tile in pixels. Below 1024, seams can show in plain areas.",
        ),
        io.Int.Input(
            "overlap",
            default=128,
            min=0,
            max=4096,
            step=32,
            advanced=True,
            optional=True,
            tooltip="Pixels that neighboring tiles share and blend.",
        ),
    ]


class SanaNativeDCAEEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeDCAEEncode",
            display_name="SANA DC-AE Encode",
            category=CATEGORY,
            description="Encodes an image into SANA's latent, cropped to a multiple of 32 px.",
            search_aliases=["vae encode", "image to latent"],
            inputs=[
                io.Vae.Input("vae", tooltip="DC-AE from SANA DC-AE Loader."),
                io.Image.Input("pixels", tooltip="The image; sides that are no multiple of 32 px are cropped evenly."),
                *tiling_inputs(),
            ],
            outputs=[io.Latent.Output(tooltip="32 channels at 1/32 of the image size.")],
        )

    @classmethod
    def execute(cls, vae, pixels, tiling: str = "auto", tile_size: int = 1024, overlap: int = 128) -> io.NodeOutput:
        return io.NodeOutput({"samples": encode_image(vae, pixels, tiling, tile_size, overlap)})


class SanaNativeDCAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeDCAEDecode",
            display_name="SANA DC-AE Decode",
            category=CATEGORY,
            description="Decodes SANA's latent into an image.",
            search_aliases=["vae decode", "latent to image"],
            inputs=[
                io.Vae.Input("vae", tooltip="DC-AE from SANA DC-AE Loader."),
                io.Latent.Input("samples", tooltip="Latent of 32 channels, from a sampler."),
                *tiling_inputs(),
            ],
            outputs=[io.Image.Output(tooltip="The image, 32 times the latent's size.")],
        )

    @classmethod
    def execute(cls, vae, samples, tiling: str = "auto", tile_size: int = 1024, overlap: int = 128) -> io.NodeOutput:
        return io.NodeOutput(decode_image(vae, samples["samples"], tiling, tile_size, overlap))
