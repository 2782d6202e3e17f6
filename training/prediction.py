"""A model in training, called as a sampler calls it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .family import Family


class Prediction:
    """A model as `loss.Predict`. checkpointing: activations of a block are computed again instead of stored."""

    def __init__(self, patcher: Any, family: Family, checkpointing: bool = False):
        self.model, self.sampling = patcher.model, patcher.get_model_object("model_sampling")
        self.network, self.family = self.model.diffusion_model, family
        self.dtype, self.device = self.model.get_dtype_inference(), patcher.load_device
        blocks = range(len(getattr(self.network, self.family.blocks))) if checkpointing else ()
        replace = {("double_block", index): recomputed for index in blocks}
        self.options = {"patches_replace": {"dit": replace}} if replace else {}

    @property
    def shift(self) -> float | None:
        """Of a flow; None for a model that predicts noise."""
        shift = getattr(self.sampling, "shift", None)
        return None if shift is None else float(shift)

    def loss(self, x0: Tensor, states: Tensor, mask: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Losses (B,), as `loss.flow_loss` takes them."""
        return self.family.loss(self, x0, states, mask, sigma, noise)

    def scaled(self, latent: Tensor) -> Tensor:
        """A raw latent (B, C, H, W) at the variance that the model was trained on."""
        return self.model.process_latent_in(latent)

    def __call__(self, noisy: Tensor, sigma: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        timesteps = self.model.process_timestep(self.sampling.timestep(sigma).float())
        x, context = self.sampling.calculate_input(sigma, noisy).to(self.dtype), states.to(self.dtype)
        return self.network(x, timesteps, context, mask, transformer_options=dict(self.options)).float()


def recomputed(args: dict, extra: dict) -> dict:
    """A block, in the host's form of a replacement, whose activations are recomputed for its gradient."""
    block = extra["original_block"]
    if not torch.is_grad_enabled():
        return block(args)
    image = checkpoint(lambda img: block(args | {"img": img})["img"], args["img"], use_reentrant=False)
    return {"img": image, "txt": args["txt"]}
