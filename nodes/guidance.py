"""Guidance besides cfg: perturbed attention, a negative prompt inside the attention, CFG-Zero*."""

from comfy_api.latest import io

from ..models.runtime.attention_patches import depth_of
from ..models.runtime.negative_attention import Strength, with_negative_attention
from ..samplers.guidance import (
    AUTO,
    PerturbedAttention,
    ZeroStarGuidance,
    parse_blocks,
    with_cfg_zero_star,
    with_perturbed_attention,
)


class SanaNativePAG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativePAG",
            display_name="SANA PAG",
            category="model/patch",
            description="Perturbed-attention guidance: steps away from what the network predicts with one block's "
            "self-attention switched off, which sharpens structure.",
            search_aliases=["perturbed attention guidance", "pag"],
            inputs=[
                io.Model.Input("model", tooltip="SANA, SANA-1.5, SANA-Sprint or PixArt."),
                io.Float.Input(
                    "scale",
                    default=2.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    optional=True,
                    tooltip="Strength, added to cfg: 2 for SANA, 3 for PixArt; 0 is off. Acts at 1 too, as in "
                    "diffusers; NVIDIA's code switches it off there.",
                ),
                io.String.Input(
                    "blocks",
                    default=AUTO,
                    optional=True,
                    tooltip="Blocks to perturb: auto for the family's own (8 for SANA 1.6B, else 14, half way in "
                    "shallow networks), or numbers such as 8, 9.",
                ),
                io.Float.Input(
                    "adaptive",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    advanced=True,
                    optional=True,
                    tooltip="What the scale loses with every timestep below 1000, as in diffusers: 0.002 ends a scale "
                    "of 2 at the last step.",
                ),
                io.Float.Input(
                    "sigma_start",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    optional=True,
                    tooltip="Noise level at which it begins, 1 for the start; for PixArt the timestep / 1000.",
                ),
                io.Float.Input(
                    "sigma_end",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    optional=True,
                    tooltip="Noise level below which it ends, 0 for never. 0.5 spares the extra pass in the later "
                    "steps.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with this guidance; the one that came in stays as it is.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        scale: float = 2.0,
        blocks: str = AUTO,
        adaptive: float = 0.0,
        sigma_start: float = 1.0,
        sigma_end: float = 0.0,
    ) -> io.NodeOutput:
        numbers = parse_blocks(blocks, depth_of(model.model.diffusion_model, "SANA PAG"))
        guidance = PerturbedAttention(scale, numbers, adaptive, sigma_start, sigma_end)
        return io.NodeOutput(with_perturbed_attention(model, guidance))


class SanaNativeNAG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeNAG",
            display_name="SANA NAG",
            category="model/patch",
            description="Normalized attention guidance: a negative prompt inside the attention to the text, without a "
            "second pass. Gives SANA-Sprint a negative prompt.",
            search_aliases=["normalized attention guidance", "nag", "negative prompt sprint"],
            inputs=[
                io.Model.Input("model", tooltip="SANA-Sprint at cfg 1; SANA, SANA-1.5 and PixArt at any cfg."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What to avoid, one text: the negative output of SANA Gemma Encode. Acts at cfg 1 too.",
                ),
                io.Float.Input(
                    "scale",
                    default=5.0,
                    min=1.0,
                    max=20.0,
                    step=0.1,
                    optional=True,
                    tooltip="How far the attention is led away from the negative text; 1 has no effect.",
                ),
                io.Float.Input(
                    "tau",
                    default=2.5,
                    min=1.0,
                    max=10.0,
                    step=0.1,
                    advanced=True,
                    optional=True,
                    tooltip="Limit of what is led away, in norms of the attention to the prompt. Lower is calmer.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    optional=True,
                    tooltip="Share of the result beside the plain attention; 0 has no effect.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with this guidance; the one that came in stays as it is.")],
        )

    @classmethod
    def execute(cls, model, negative, scale: float = 5.0, tau: float = 2.5, alpha: float = 0.25) -> io.NodeOutput:
        return io.NodeOutput(with_negative_attention(model, negative, Strength(scale, tau, alpha)))


class SanaNativeCFGZeroStar(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeCFGZeroStar",
            display_name="SANA CFG-Zero Star",
            category="model/patch",
            description="CFG-Zero* on the velocity of a flow: guides from the rescaled unconditional prediction, and "
            "does not move in the first steps.",
            search_aliases=["cfg zero star", "cfgzerostar", "zero init"],
            inputs=[
                io.Model.Input("model", tooltip="SANA, SANA-1.5 or Lumina-Next, sampled with a cfg above 1."),
                io.Int.Input(
                    "zero_init_steps",
                    default=1,
                    min=0,
                    max=2,
                    optional=True,
                    tooltip="First steps with a velocity of zero: 1 as published, 0 for the rescaling alone.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with this guidance; the one that came in stays as it is.")],
        )

    @classmethod
    def execute(cls, model, zero_init_steps: int = 1) -> io.NodeOutput:
        return io.NodeOutput(with_cfg_zero_star(model, ZeroStarGuidance(zero_init_steps)))
