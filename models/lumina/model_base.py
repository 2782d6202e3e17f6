"""Lumina-Next as a host model: which conditioning reaches the network, and what is refused on the way in and out."""

import comfy.model_base
from comfy.model_base import ModelType
from comfy.model_sampling import CONST
from torch import Tensor

from ..runtime.latent_checks import require_image_latent, require_latent
from ..runtime.precision import require_finite_result
from ..runtime.run_checks import HIGHEST_FLOW, require_area
from ..runtime.text_conds import TOKEN_WEIGHTS, other_width, require_text, text_conds
from .config import RATIO
from .guidance import guide_channels
from .model import Lumina

TEXT_CURE = "load gemma-2b, not Gemma-2, with SANA Gemma Loader, and encode the prompt with its clip"
RESULT_CURE = "load the model with weight_dtype bfloat16 or float32"
LATENT_NODES = "SANA Empty Latent or Empty Latent Image, or VAE Encode for an image"
VAE_CURE = (
    "encode the image with the VAE of SDXL (Load VAE), not with a DC-AE or another model's VAE; for a new image "
    "connect SANA Empty Latent"
)


def require_flow(model_sampling: object) -> None:
    """Raises ValueError where a stock node has put another kind of sampling in the place of the flow."""
    if isinstance(model_sampling, CONST) and float(model_sampling.sigma_max) <= HIGHEST_FLOW:
        return
    kinds = " with ".join(base.__name__ for base in type(model_sampling).__bases__)
    raise ValueError(
        f"This Lumina-Next model was set to sample as {kinds}, but it was trained on a rectified flow: bypass the "
        "ModelSampling node that set it, or take ModelSamplingAuraFlow, which changes the shift only."
    )


class LuminaModel(comfy.model_base.BaseModel):
    """Lumina-Next T2I and SFT."""

    guided_by = staticmethod(guide_channels)

    def __init__(self, model_config, device=None):
        super().__init__(model_config, ModelType.FLOW, device=device, unet_model=Lumina)

    def extra_conds(self, **kwargs) -> dict:
        require_flow(self.model_sampling)
        if kwargs.get("noise") is not None:
            require_image_latent(kwargs["noise"].shape, "Lumina-Next", LATENT_NODES)
            require_area(kwargs.get("area"), kwargs["noise"].shape[2:], RATIO)
        conds = super().extra_conds(**kwargs)
        context, mask = kwargs.get("cross_attn"), kwargs.get("attention_mask")
        channels = self.diffusion_model.config.caption_channels
        if found := other_width(context, channels):
            raise ValueError(
                f"This conditioning is {found} where Lumina-Next needs Gemma-1's states of {channels}: {TEXT_CURE}."
            )
        require_text(context, mask)
        return conds | text_conds(context, mask, kwargs.get("device"), kwargs.get(TOKEN_WEIGHTS))

    def process_timestep(self, timestep: Tensor, **kwargs) -> Tensor:  # noqa: ARG002 - the host's signature
        # The network embeds sigma itself; nodes that set a shift may set another multiplier, or have none.
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        if control is not None:
            raise ValueError("There is no ControlNet for Lumina-Next: bypass the ControlNet node.")
        return super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        require_latent(latent, self.latent_format.latent_channels, "Lumina-Next", LATENT_NODES, VAE_CURE)
        return super().process_latent_in(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        require_finite_result(latent, self.get_dtype_inference(), RESULT_CURE)
        return super().process_latent_out(latent)
