"""The model that a training works on: checked, and a copy of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ..models.pixart.model_sampling import require_noise_prediction
from ..models.runtime.precision import FLOAT16
from .families import PIXART, SANA, family_of
from .pictures import Size


def require_trainable(patcher: Any) -> None:
    """Raises ValueError with one sentence for a model that no LoRA can be trained on as it is loaded."""
    model = patcher.model
    family = family_of(model)
    if family is None:
        raise ValueError(
            f"No LoRA can be trained on a {type(model).__name__} model: connect the model of SANA Model Loader with a "
            "SANA, SANA-1.5, PixArt or Lumina-Next file."
        )
    if family is PIXART:
        require_plain_pixart(patcher)
    if getattr(model, "is_sprint", False):
        raise ValueError(
            "SANA-Sprint cannot be trained as a plain flow, which would undo its distillation to few steps: train the "
            "LoRA on the SANA model of its size and use it on Sprint, whose layers have the same names."
        )
    dtype = model.get_dtype_inference()
    if dtype == torch.float16:
        raise ValueError(
            "This model computes in float16, whose gradients underflow: load it with weight_dtype float32 (or bfloat16 "
            "when it was not trained in float16)."
        )
    if getattr(model.diffusion_model.config, "trained_in", None) == FLOAT16 and dtype != torch.float32:
        raise ValueError(
            f"This model was trained in float16 and saturates at its limit, so training it in {dtype} would give "
            "another model: load it with weight_dtype float32, or take the BF16 file of its size."
        )
    if any(isinstance(weight, QuantizedTensor) for weight in model.diffusion_model.parameters()):
        raise ValueError("This model has quantized weights: load its file in 16 or 32 bits to train on it.")


def require_wholly_trainable(patcher: Any) -> None:
    """Raises ValueError with one sentence for a model whose weights cannot all be trained as it is loaded."""
    model = patcher.model
    family = family_of(model)
    if family is not SANA:
        found = type(model).__name__ if family is None else family.name
        cure = "connect one of these from SANA Model Loader"
        cure += "" if family is None else ", or train a LoRA on this one with SANA Train LoRA"
        raise ValueError(f"SANA Train Model trains SANA and SANA-1.5, and this model is {found}: {cure}.")
    if model.is_sprint:
        raise ValueError(
            "SANA-Sprint cannot be trained as a plain flow, which would undo its distillation to few steps: train the "
            "SANA model of its size, or a LoRA on that, which acts on Sprint too."
        )
    require_trainable(patcher)
    narrow = next((one.dtype for one in model.diffusion_model.parameters() if one.element_size() < 2), None)
    if narrow is not None:
        raise ValueError(f"This model has weights in {narrow}, which no step would change: load it in 16 or 32 bits.")


def require_states(model: Any, states: Tensor) -> None:
    """Raises ValueError for text states (L, D) of another width than the model's."""
    wanted, found = model.diffusion_model.config.caption_channels, states.shape[-1]
    if wanted != found:
        raise ValueError(
            f"The captions were encoded to states of {found} where {family_of(model).name} needs {wanted}: connect its "
            "own text encoder from SANA Gemma Loader to SANA Encode Training Set."
        )


def require_latents(model: Any, latent: Tensor, size: Size) -> None:
    """Raises ValueError for a latent (C, H, W) of another number of channels or cells than a picture of this size,
    (height, width) px, has for the model."""
    latent_format, family = model.latent_format, family_of(model)
    sides = (side // latent_format.spacial_downscale_ratio for side in size)
    wanted = latent_format.latent_channels, *sides
    if wanted != tuple(latent.shape):
        height, width = size
        raise ValueError(
            f"A picture of {width} x {height} px was encoded to a latent of {shape_text(latent.shape)} where "
            f"{family.name} needs {shape_text(wanted)}: connect {family.vae(model)} to SANA Encode Training Set."
        )


def shape_text(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{channels} channels and {width} x {height} cells"


def require_plain_pixart(patcher: Any) -> None:
    """Raises ValueError for a PixArt that was distilled to few steps, and for one set to sample as another model."""
    distilled = patcher.model.config.distilled
    if distilled:
        raise ValueError(
            f"PixArt-{distilled} cannot be trained to predict plain noise, which would undo its distillation to few "
            "steps: train the LoRA on the PixArt that it was distilled from."
        )
    require_noise_prediction(patcher.get_model_object("model_sampling"))


def copy_for_training(patcher: Any) -> Any:
    """A copy of the model, loaded anew from its file with the patches it carries, so that the one given stays as it is.

    Outside inference mode, in which the host runs nodes and whose tensors no gradient goes through. Not in the host's
    dynamic memory, whose layers compute with copies of their weights: no gradient would reach the weights.
    """
    require_trainable(patcher)
    copy = patcher.clone(disable_dynamic=True, force_deepcopy=True)
    copy.model.requires_grad_(False)
    return copy


@contextmanager
def training_mode() -> Iterator[None]:
    """The host's mark of a training, and gradients as outside of its executor."""
    before = comfy.model_management.in_training
    with torch.inference_mode(False), torch.enable_grad():
        comfy.model_management.in_training = True
        try:
            yield
        finally:
            comfy.model_management.in_training = before
