"""SANA as a host model: which conditioning reaches the network, and what is refused on the way in and out."""

import comfy.conds
import comfy.model_base
import torch
from comfy.model_base import BaseModel, ModelType
from torch import Tensor

from ..runtime.latent_checks import require_image_latent, require_latent
from ..runtime.precision import require_finite_result
from ..runtime.run_checks import require_area
from ..runtime.text_conds import TOKEN_WEIGHTS, other_width, require_text, text_conds
from ..runtime.zero_padding import ZERO_PADDED, mask_of_rows
from .model_sampling import ModelSamplingSana, require_flow, time_factor
from .patch_checks import refuse_unconditional_pass
from .resolution import RATIO

DEFAULT_GUIDANCE = 4.5  # the middle of the scales SANA-Sprint was distilled with (4, 4.5, 5)
TIMESTEPS = 1000  # of SANA's training
TIMESTEP_ROUNDING = 3e-5  # keeps a whole timestep whole when its sigma is rounded to float32; more would lift others
TEXT_CURE = "encode the prompt with SANA Gemma Encode, or CLIP Text Encode with the clip of SANA Gemma Loader"
LATENT_NODES = "SANA Empty Latent, or SANA DC-AE Encode for an image"
VAE_CURE = "encode the image with a DC-AE (SANA DC-AE Loader), not with another model's VAE"
RESULT_CURE = (
    "load the model with another weight_dtype (bfloat16 for BF16, SANA-1.5 and Sprint checkpoints; float16 or float32 "
    "with clamp on for the float16 ones)"
)
UNCONDITIONAL = 1  # the host's mark of an unconditional pass in "cond_or_uncond"


class SanaModel(comfy.model_base.QwenImage, comfy.model_base.HunyuanDiT):
    """SANA, SANA-1.5 and SANA-Sprint.

    The base classes are chosen for their names alone, which decide what the host takes for a layer in a LoRA: for the
    first "transformer.<layer>", "<layer>" and "lycoris_<layer>", for the second "base_model.model.<layer>", as trainers
    of SANA write. The host has no other way for a model to name its layers, and asks for these classes nowhere else; a
    test holds both. Nothing else of them is used: what they define is BaseModel's again here.
    """

    extra_conds_shapes = BaseModel.extra_conds_shapes

    def __init__(self, model_config, device=None):
        BaseModel.__init__(self, model_config, ModelType.FLOW, device=device, unet_model=model_config.network)
        self.model_sampling = ModelSamplingSana(model_config)

    @property
    def is_sprint(self) -> bool:
        return self.diffusion_model.config.guidance_embeds

    def extra_conds(self, **kwargs) -> dict:
        require_flow(self.model_sampling)
        if kwargs.get("noise") is not None:
            require_image_latent(kwargs["noise"].shape, "SANA", LATENT_NODES)
            require_area(kwargs.get("area"), kwargs["noise"].shape[2:], RATIO)
        conds = BaseModel.extra_conds(self, **kwargs)
        context, mask = kwargs.get("cross_attn"), kwargs.get("attention_mask")
        channels = self.diffusion_model.config.caption_channels
        if found := other_width(context, channels):
            raise ValueError(
                f"This conditioning is {found} where SANA needs Gemma's states of {channels}: {TEXT_CURE}."
            )
        if kwargs.get(ZERO_PADDED):
            mask = mask_of_rows(context, mask)
        require_text(context, mask)
        device = kwargs.get("device")
        conds |= text_conds(context, mask, device, kwargs.get(TOKEN_WEIGHTS))
        if self.is_sprint:
            guidance = kwargs.get("guidance")  # None too, from the host's FluxDisableGuidance
            scale = DEFAULT_GUIDANCE if guidance is None else float(guidance)
            conds["guidance"] = comfy.conds.CONDRegular(torch.tensor([scale], device=device))
        return conds

    def process_timestep(self, timestep: Tensor, **kwargs) -> Tensor:  # noqa: ARG002 - the host's signature
        if self.is_sprint:
            return timestep / time_factor(self.model_sampling)  # the network embeds sigma itself
        # SANA was trained on whole timesteps. The factor is 1 unless a stock node has set another multiplier.
        return torch.trunc(timestep * (TIMESTEPS / time_factor(self.model_sampling)) + TIMESTEP_ROUNDING)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        if self.is_sprint and UNCONDITIONAL in transformer_options.get("cond_or_uncond", []):
            refuse_unconditional_pass(transformer_options)
        return super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        require_latent(latent, self.latent_format.latent_channels, "SANA", LATENT_NODES, VAE_CURE)
        return super().process_latent_in(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        require_finite_result(latent, self.get_dtype_inference(), RESULT_CURE)
        return super().process_latent_out(latent)
