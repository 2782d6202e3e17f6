"""PixArt as a host model: which conditioning reaches the network, and what is refused on the way in and out."""

import logging

import comfy.conds
import comfy.model_base
import torch
from comfy.model_base import BaseModel, ModelType
from torch import Tensor

from ..runtime.latent_checks import require_image_latent, require_latent
from ..runtime.precision import require_finite_result
from ..runtime.run_checks import require_area
from ..runtime.text_conds import TOKEN_WEIGHTS, other_width, require_text, text_conds
from .config import ALPHA, LCM, RATIO, SIGMA, TOKENS, PixArtConfig
from .model import PixArt
from .model_sampling import ModelSamplingLCM, require_noise_prediction

logger = logging.getLogger(__name__)

TEXT_CURE = "load a T5-XXL encoder with SANA Gemma Loader, and encode the prompt with its clip"
RESULT_CURE = "load the model with weight_dtype bfloat16 or float32"
LATENT_NODES = "SANA Empty Latent or Empty Latent Image, or VAE Encode for an image"
VAES = {SIGMA: "SDXL", ALPHA: "Stable Diffusion 1"}
VAE_CURE = (
    "encode the image with the VAE of {} (Load VAE), not with a DC-AE or another model's VAE; for a new image connect "
    "SANA Empty Latent"
)


def require_own_control(control: dict | None) -> None:
    """Raises ValueError for residuals of another family's ControlNet: PixArt's are tokens at the input of a block."""
    for part, residuals in (control or {}).items():
        if any(each is not None and (part != "input" or each.ndim != 3) for each in residuals):
            raise ValueError(
                "This ControlNet is of another family and has no effect on PixArt: bypass its Apply node, or load "
                "PixArt's with SANA ControlNet Loader."
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
        require_noise_prediction(self.model_sampling)
        if kwargs.get("noise") is not None:
            require_image_latent(kwargs["noise"].shape, "PixArt", LATENT_NODES)
            require_area(kwargs.get("area"), kwargs["noise"].shape[2:], RATIO)
        conds = BaseModel.extra_conds(self, **kwargs)
        context, mask = kwargs.get("cross_attn"), kwargs.get("attention_mask")
        channels = self.config.caption_channels
        if found := other_width(context, channels):
            raise ValueError(
                f"This conditioning is {found} where PixArt needs T5-XXL's states of {channels}: {TEXT_CURE}."
            )
        require_text(context, mask)
        device = kwargs.get("device")
        conds |= text_conds(context, mask, device, kwargs.get(TOKEN_WEIGHTS))
        self.warn_of_length(conds["c_crossattn"].cond.shape[1])
        if self.config.micro_conditions:
            size = kwargs.get("height"), kwargs.get("width")  # of the host's CLIP Text Encode for PixArt-alpha
            if 0 in size:
                raise ValueError(
                    f"CLIP Text Encode (PixArt Alpha) has the size {size[1]} x {size[0]}: set width and height to "
                    "those of the image."
                )
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
        require_own_control(control)
        return super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        family = self.config.family
        cure = VAE_CURE.format(VAES[family])
        require_latent(latent, self.latent_format.latent_channels, family, LATENT_NODES, cure)
        return super().process_latent_in(latent)

    def process_latent_out(self, latent: Tensor) -> Tensor:
        require_finite_result(latent, self.get_dtype_inference(), RESULT_CURE)
        return super().process_latent_out(latent)
