"""The host's CONTROL_NET of a PixArt ControlNet, for its own Apply ControlNet, KSampler and the like."""

import comfy.latent_formats

from ..pixart.config import ALPHA, PATCH_SIZE, PixArtConfig
from ..pixart.model import PixArt
from ..runtime.base_control import BaseControlNet

SAMPLE_SIZE = 128  # for the estimate of memory where no name tells the native one


class PixArtControlNet(BaseControlNet):
    """A PixArt ControlNet as the host handles it. control_model: a `PixArtControl` of `model.py`."""

    conds = ("attention_mask", "image_size")

    def latent_format_of(self, model):
        """The base's own, whose patch embedding reads the control image."""
        return comfy.latent_formats.SD15() if model is None else model.latent_format

    def require_model(self, model) -> None:
        network = model.diffusion_model
        if not isinstance(network, PixArt):
            raise ValueError(
                f"A PixArt ControlNet was applied to a model of another family ({type(model).__name__}): bypass its "
                "Apply node, or load a PixArt-alpha model with SANA Model Loader."
            )
        own, base = self.control_model.config, network.config
        if base.hidden_size != own.hidden_size or base.depth <= own.depth:
            raise ValueError(
                f"This ControlNet has {own.depth} blocks of width {own.hidden_size} and the model {base.depth} of "
                f"width {base.hidden_size}: load a PixArt-alpha of this width with at least {own.depth + 1} blocks."
            )
        if not self.fits_vae(model.latent_format):
            raise ValueError(
                "The VAE of Apply ControlNet is another model's: connect PixArt's own, which encodes the control image "
                "for a PixArt ControlNet."
            )

    def check(self, base) -> list[str]:
        if not isinstance(base, PixArtConfig):
            return []  # `require_model` refuses it
        found = []
        if base.family != ALPHA:
            found.append(f"Load a {ALPHA} model: PixArt's ControlNets were not trained for {base.family}.")
        if self.is_bright:
            found.append(
                "Invert the control image: PixArt's ControlNet expects a HED map, white on black, and it is bright."
            )
        return found

    def size_of_run(self) -> tuple[int, int, int]:
        own = self.control_model.config
        return ((own.sample_size or SAMPLE_SIZE) // PATCH_SIZE) ** 2, own.hidden_size, own.depth
