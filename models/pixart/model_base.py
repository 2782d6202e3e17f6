"""PixArt as a host model: which conditioning reaches the network, and what is refused on the way in and out."""

import logging

import comfy.conds
import comfy.model_base
import torch
from comfy.model_base import BaseModel, ModelType
from torch import Tensor

from ..runtime.precision import require_finite
from ..runtime.text_conds import MaskCond, TextCond, without_padding
from .config import LCM, RATIO, TOKENS, PixArtConfig
from .model import PixArt
from .model_sampling import ModelSamplingLCM

logger = logging.getLogger(__name__)

CONDITIONING_CURE = "encode the prompt again, without a LoRA on its clip"
LATENT_CURE = "look for the node that made it, often a VAE Encode in float16; use bfloat16 or float32 there"
TEXT_LOADER = "load a T5-XXL encoder with SANA Gemma Loader"


def require_text(context: Tensor | None, mask: Tensor | None, channels: int) -> None:
    """Raises ValueError for a conditioning that is no T5-XXL's."""
    if context is None or context.shape[-1] != channels:
        found = "without text states" if context is None else f"{context.shape[-1]} wide"
        raise ValueError(
            f"This conditioning is {found} where PixArt needs T5-XXL's states of {channels}: {TEXT_LOADER}, and encode "
            "the prompt with its clip."
        )
    if mask is not None and mask.shape[-1] != context.shape[1]:
        raise ValueError(
            f"This conditioning has {context.shape[1]} text positions but a mask for {mask.shape[-1]}, as "
            "Conditioning (Concat) leaves it: write both texts into one prompt, or use Conditioning (Combine)."
        )


def require_latent(shape: tuple[int, ...]) -> None:
    """Raises ValueError for a latent that no 4-channel autoencoder of images has made."""
    if len(shape) != 4:
        raise ValueError(
            f"The latent to denoise has {len(shape)} dimensions, {tuple(shape)}, but PixArt needs the 4 of an image: "
            "take SANA Empty Latent or Empty Latent Image instead of a video's or a sound's latent."
        )


class PixArtModel(comfy.model_base.PixArt):
    """PixArt-alpha and PixArt-Sigma.

    The base class is chosen for the names of layers in a LoRA, which the host gives its own PixArt: stock LoRA nodes
    find q, k and v in the fused layers by them. What it defines of the conditioning is replaced.
    """

    def __init__(self, model_config, device=None):
        BaseModel.__init__(self, model_config, ModelType.EPS, device=device, unet_model=PixArt)
        if self.config.distilled == LCM:
            self.model_sampling = ModelSamplingLCM(model_config)

    @property
    def config(self) -> PixArtConfig:
        return self.model_config.unet_config["config"]

    def extra_conds(self, **kwargs) -> dict:
        conds = BaseModel.extra_conds(self, **kwargs)
        context, mask = kwargs.get("cross_attn"), kwargs.get("attention_mask")
        require_text(context, mask, self.config.caption_channels)
        require_finite(context, "The conditioning", CONDITIONING_CURE)
        context, mask = without_padding(context, mask)
        self.warn_of_length(context.shape[1])
        # Once to the device here: the host would send them with every step, which then waits for the copy.
        device = kwargs.get("device", context.device)
        conds["c_crossattn"] = TextCond(context.to(device))
        conds["attention_mask"] = MaskCond(mask.to(device), padded=not bool(mask.all()))
        if self.config.micro_conditions:
            size = kwargs.get("height"), kwargs.get("width")  # of the host's CLIP Text Encode for PixArt-alpha
            if None in size:
                size = [RATIO * side for side in kwargs["noise"].shape[-2:]]  # of the whole, also with an area
            conds["image_size"] = comfy.conds.CONDRegular(torch.tensor([[*map(round, size)]], device=device))
        return conds

    def warn_of_length(self, tokens: int) -> None:
        trained = TOKENS[self.config.family]
        if tokens > trained:
            logger.warning(
                "SANA: the prompt has %d tokens, but %s was trained on %d at most: shorten it.",
                *(tokens, self.config.family, trained),
            )

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        if any(residual is not None for part in (control or {}).values() for residual in part):
            raise ValueError("A ControlNet has no effect on PixArt in this version: bypass its Apply node.")
        return super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        require_latent(latent.shape)
        channels = self.latent_format.latent_channels
        if latent.shape[1] != channels:
            raise ValueError(
                f"This latent has {latent.shape[1]} channels where {self.config.family} needs {channels}: encode the "
                "image with the VAE in the model's own folder, not with another model's."
            )
        require_finite(latent, "The latent to denoise", LATENT_CURE)
        return super().process_latent_in(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        if not torch.isfinite(latent).all():
            raise ValueError(
                f"Denoising gave a latent with NaN or infinity in {self.get_dtype_inference()}: load the model with "
                "weight_dtype bfloat16 or float32."
            )
        return super().process_latent_out(latent)
