"""What surrounds Lumina-Next's network in a run: guidance on some channels only, the options, and the run's checks."""

import math
from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from .config import CUSTOM, OPTIONS_KEY, PRESETS, LuminaOptions

UNUSED_PATCHES = ("attn1", "attn2")  # what the host's nodes patch and this network does not call


def options_of(model_options: Mapping[str, Any]) -> LuminaOptions:
    return model_options.get("transformer_options", {}).get(OPTIONS_KEY) or LuminaOptions()


def guide_channels(args: dict[str, Any]) -> Tensor:
    """Classifier-free guidance on the first channels, as the host calls it: x - denoised, each (B, 4, H, W).

    The reference guides three of four and takes the last one from the prompt's pass.
    """
    cond, uncond, scale = args["cond"], args["uncond"], args["cond_scale"]
    if math.isclose(scale, 1.0):
        return cond
    number = options_of(args["model_options"]).guided_channels
    guided = uncond[:, :number] + (cond[:, :number] - uncond[:, :number]) * scale
    return torch.cat([guided, cond[:, number:]], dim=1)


def choose_options(preset: str, custom: LuminaOptions) -> LuminaOptions:
    return custom if preset == CUSTOM else PRESETS[preset]


def with_options(patcher: comfy.model_patcher.ModelPatcher, options: LuminaOptions) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that samples with these options. Raises ValueError for a model of another family."""
    if getattr(patcher.model, "guided_by", None) is not guide_channels:
        raise ValueError(
            f"SANA Lumina Options got a {type(patcher.model).__name__} model: connect a Lumina-Next of SANA Model "
            "Loader, or bypass this node."
        )
    clone = patcher.clone()
    clone.model_options["transformer_options"][OPTIONS_KEY] = options
    return clone


def check_guidance(model_options: Mapping[str, Any]) -> list[str]:
    """A warning where another node guides in the place of `guide_channels`, [] when there is nothing to say."""
    function = model_options.get("sampler_cfg_function")
    if function is guide_channels:
        return []
    owner = getattr(function, "__qualname__", type(function).__name__).split(".")[0]
    return [f"Bypass {owner}: it guides all channels, where Lumina-Next was tuned for three of four."]


def check_patches(transformer_options: Mapping[str, Any], control: Any) -> list[str]:  # noqa: ARG001 - refused elsewhere
    """One sentence for each kind of patch in a pass that has no effect on this network."""
    patches, replaced = transformer_options.get("patches", {}), transformer_options.get("patches_replace", {})
    return [
        f"Bypass the node that patches {name}, such as Perturbed-Attention Guidance: it has no effect on Lumina-Next."
        for name in UNUSED_PATCHES
        if replaced.get(name) or patches.get(f"{name}_patch") or patches.get(f"{name}_output_patch")
    ]
