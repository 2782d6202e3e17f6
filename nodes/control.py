"""ControlNet nodes: a name from a list -> CONTROL_NET, and the scribble that it is shown."""

from comfy_api.latest import io

from ..models.controlnet.config import WIRINGS
from ..models.controlnet.scribble import MAX_THICKNESS, MODES, SKETCH, scribble
from ..models.registry import load_model
from .files import list_controlnets, resolve_controlnet

WIRING_CHOICES = {"from file": None} | {wiring: wiring for wiring in WIRINGS}


class SanaNativeControlNetLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeControlNetLoader",
            display_name="SANA ControlNet Loader",
            category="model/loaders",
            description="Loads a ControlNet for SANA or PixArt-alpha, for Apply ControlNet; the authors' file with its "
            "base or diffusers'.",
            search_aliases=["controlnet", "sana controlnet", "pixart controlnet", "hed", "scribble", "load controlnet"],
            inputs=[
                io.Combo.Input(
                    "control_net_name",
                    options=list_controlnets(),
                    tooltip="File in models/controlnet, or with control in its name in models/checkpoints or "
                    "models/diffusion_models, or a folder in models/diffusers, with a slash at its end. Of NVIDIA's "
                    "or PixArt's .pth the ControlNet alone is read; SANA Model Loader reads the base.",
                ),
                io.Combo.Input(
                    "wiring",
                    options=list(WIRING_CHOICES),
                    default="from file",
                    advanced=True,
                    optional=True,
                    tooltip="How ControlNet and model are joined. from file: NVlabs for NVIDIA's layout, diffusers for "
                    "diffusers'. Set it for weights that were converted from one to the other, which fit the wiring "
                    "that they were trained in. PixArt's has one wiring.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    tooltip="The ControlNet, for Apply ControlNet with the model's VAE; the image is white on black."
                )
            ],
        )

    @classmethod
    def execute(cls, control_net_name: str, wiring: str = "from file") -> io.NodeOutput:
        options = {"wiring": WIRING_CHOICES[wiring]}
        return io.NodeOutput(load_model("controlnet", resolve_controlnet(control_net_name), options))


class SanaNativeScribble(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeScribble",
            display_name="SANA Scribble",
            category="image/filters",
            description="Makes white lines on black of a drawing or an edge map, as SANA's ControlNets expect them.",
            search_aliases=["scribble", "hed", "sketch", "preprocessor", "lineart", "fake scribble"],
            inputs=[
                io.Image.Input("image", tooltip="A drawing, or what an edge detector such as HED gives."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=SKETCH,
                    optional=True,
                    tooltip="sketch: a drawing, inverted where its border is bright, then cut at half of the range. "
                    "edge map: a soft map of edges, thinned to their peaks and redrawn as even lines, as NVIDIA does.",
                ),
                io.Int.Input(
                    "thickness",
                    default=2,
                    min=0,
                    max=MAX_THICKNESS,
                    optional=True,
                    tooltip="Width of the lines: 0 thins them, 1 to 3 leave them as they are, from 4 on they get wider "
                    "by half of it in pixels. The ControlNets were trained on 0 to 24.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="White lines on black, for the image of Apply ControlNet.")],
        )

    @classmethod
    def execute(cls, image, mode: str = SKETCH, thickness: int = 2) -> io.NodeOutput:
        return io.NodeOutput(scribble(image, mode, thickness))
