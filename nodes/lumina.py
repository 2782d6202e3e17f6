"""The options of Lumina-Next: how other image sizes than the trained one are treated, and what is guided."""

from comfy_api.latest import io

from ..models.lumina.config import CUSTOM, PRESETS, SIZE_SCALING, LuminaOptions
from ..models.lumina.guidance import choose_options, with_options

GUIDED_CHANNELS = {"3": 3, "all": 4}


class SanaNativeLuminaOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeLuminaOptions",
            display_name="SANA Lumina Options",
            category="model/patch",
            description="Sets how Lumina-Next scales positions and attention with the image size, and what it guides.",
            search_aliases=["lumina", "lumina next", "scaling watershed", "proportional attention", "rope scaling"],
            inputs=[
                io.Model.Input("model", tooltip="A Lumina-Next from SANA Model Loader."),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default="diffusers",
                    optional=True,
                    tooltip="diffusers: as its pipeline, and as without this node. authors: as the demo of Alpha-VLLM, "
                    "with ModelSamplingAuraFlow at 4, sana_midpoint and sana_lumina. custom: the settings below.",
                ),
                io.Float.Input(
                    "watershed",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Share of the way from noise to image on which positions are stretched; then the base of "
                    "the frequencies is raised instead. diffusers 1, authors 0.3. With custom only.",
                ),
                io.Combo.Input(
                    "size_scaling",
                    options=list(SIZE_SCALING),
                    default="always",
                    optional=True,
                    tooltip="When positions are scaled with the area of the image: always, above 1024 px only for "
                    "areas above 1024 x 1024, or off. With custom only.",
                ),
                io.Boolean.Input(
                    "proportional_attention",
                    default=True,
                    optional=True,
                    tooltip="Sharpens the self-attention with the number of image tokens, as both references do. With "
                    "custom only.",
                ),
                io.Combo.Input(
                    "guided_channels",
                    options=list(GUIDED_CHANNELS),
                    default="3",
                    optional=True,
                    tooltip="Latent channels that cfg acts on: the first 3, as both references do, or all 4. With "
                    "custom only.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with these options; the one that came in stays as it is.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        preset: str = "diffusers",
        watershed: float = 1.0,
        size_scaling: str = "always",
        proportional_attention: bool = True,
        guided_channels: str = "3",
    ) -> io.NodeOutput:
        custom = LuminaOptions(watershed, size_scaling, proportional_attention, GUIDED_CHANNELS[guided_channels])
        return io.NodeOutput(with_options(model, choose_options(preset, custom)))
