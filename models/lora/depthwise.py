"""A LoRA on a depthwise convolution that mixes its channels, which no depthwise weight can hold: a branch beside it.

The branch is an object patch on the Mix-FFN, so the host moves and counts its factors with the model's weights.
"""

import comfy.model_patcher
import comfy.ops
import torch.nn.functional as F
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ..files.layout import BRANCH


class DepthwiseLoRA(nn.Module):
    """x (B, C, H, W) -> what one LoRA adds to the convolution's result, (B, C, H, W).

    down (r, C, k, k), then up (1, r, 1, 1), the same for every channel, as OneTrainer trains it, or (C, r / C, 1, 1), a
    share of the rank for each, as PEFT does.
    """

    def __init__(self, strength: float, down: Tensor, up: Tensor, alpha: float | None = None):
        super().__init__()
        self.strength, self.alpha = strength, alpha
        self.down, self.up = (nn.Parameter(factor.detach().clone(), requires_grad=False) for factor in (down, up))

    def forward(self, x: Tensor) -> Tensor:
        rank = self.down.shape[0]
        down, up = (comfy.ops.cast_to_input(factor, x) for factor in (self.down, self.up))
        scale = self.strength * (1.0 if self.alpha is None else self.alpha / rank)
        hidden = F.conv2d(x, down, padding=down.shape[-1] // 2)
        return F.conv2d(hidden, up * scale, groups=rank // up.shape[1])

    def with_alpha(self, alpha: float) -> "DepthwiseLoRA":
        return DepthwiseLoRA(self.strength, self.down, self.up, alpha)


class Branches(nn.ModuleList):
    """Several LoRAs on one convolution: the sum of what they add."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self)
        return sum(others, first)


def find_depthwise_lora(patch, weight: Tensor, strength: float) -> DepthwiseLoRA | None:
    """The branch for a plain LoRA with factors over all channels of a depthwise convolution; None for others."""
    if type(patch) is not LoRAAdapter or weight.ndim != 4 or weight.shape[1] != 1:
        return None
    up, down, alpha, mid, magnitude, _ = patch.weights
    channels = weight.shape[0]
    if mid is not None or magnitude is not None or down.shape[1:] != (channels, *weight.shape[2:]):
        return None
    rank = down.shape[0]
    if not rank or up.shape not in ((1, rank, 1, 1), (channels, rank // channels, 1, 1)) or rank % len(up):
        return None
    return DepthwiseLoRA(strength, down, up, alpha)


def branch_key(weight_key: str) -> str:
    """Object patch of the branch beside a convolution, by the key of its weight: `<Mix-FFN>.conv_depth.weight`."""
    return f"{weight_key.rsplit('.', 2)[0]}.{BRANCH}"


def add_depthwise_lora(patcher: comfy.model_patcher.ModelPatcher, weight_key: str, lora: DepthwiseLoRA) -> None:
    """Adds the branch to those that the patcher has for the convolution already; other clones keep theirs."""
    before = patcher.object_patches.get(branch_key(weight_key), ())
    patcher.add_object_patch(branch_key(weight_key), Branches([*before, lora]))


def set_latest_alpha(patcher: comfy.model_patcher.ModelPatcher, weight_key: str, alpha: float) -> None:
    """Gives its alpha to the branch that was added last."""
    *before, latest = patcher.object_patches[branch_key(weight_key)]
    patcher.add_object_patch(branch_key(weight_key), Branches([*before, latest.with_alpha(alpha)]))


def without_branches(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model, which no weight of a branch belongs to."""
    return {key: tensor for key, tensor in state_dict.items() if f".{BRANCH}." not in key}
