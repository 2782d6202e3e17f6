"""A negative prompt inside the attention to the text, in the pass of the prompt itself: for models that run at cfg 1.

Source: Normalized Attention Guidance, arXiv 2505.21179, section 3; scale, tau and alpha as in its code and in the
host's node, which has the formula for self-attention and a second pass. The network is asked through the host's own
hooks: the negative text lies behind the prompt's, and the replaced attention takes the two apart again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..layers import mask_bias
from .attention_patches import depth_of
from .text_conds import counted_text, other_width

KEY = "sana_native_nag"
UNCONDITIONAL = 1  # the host's mark of an unconditional pass in "cond_or_uncond"
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Strength:
    """scale: 1 has no effect. tau: how many times the prompt's norm the result may have. alpha: its share, 0 to 1."""

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25


def guide_attention(positive: Tensor, negative: Tensor, strength: Strength) -> Tensor:
    """What attention to the prompt gives, (B, N, C), led away from what attention to the negative text gives."""
    guided = positive * strength.scale - negative * (strength.scale - 1)
    norm, guided_norm = (x.float().norm(p=1, dim=-1, keepdim=True).clamp_min(NORM_EPS) for x in (positive, guided))
    factor = (strength.tau * norm / guided_norm).clamp(max=1).to(guided)
    return torch.lerp(positive, guided * factor, strength.alpha)


class NegativeAttention:
    """Puts a negative text behind the prompt's; a wrapper of the network, which is called as SANA and PixArt call it.

    context (1, L, C) and mask (1, L): of the negative text, copied to the device at the first step alone.
    """

    def __init__(self, context: Tensor, mask: Tensor, depth: int, strength: Strength):
        self.context, self.mask, self.depth, self.strength = context, mask, depth, strength

    def __call__(
        self, execute: Callable, x, timesteps, context, attention_mask, other, transformer_options, **kwargs
    ) -> Tensor:
        negative, mask = self.on_device_of(context)
        options = self.with_attention(
            transformer_options,
            partial(
                self.attend,
                biases=(mask_bias(attention_mask, x.dtype), mask_bias(mask, x.dtype)),
                length=context.shape[1],
                passes=transformer_options.get("cond_or_uncond") or [0],
            ),
        )
        rows = context.shape[0]
        own = torch.ones(context.shape[:2], device=x.device) if attention_mask is None else attention_mask
        context = torch.cat([context, negative.expand(rows, -1, -1)], dim=1)
        attention_mask = torch.cat([own, mask.expand(rows, -1).to(own.device)], dim=1)
        return execute(x, timesteps, context, attention_mask, other, options, **kwargs)

    def on_device_of(self, context: Tensor) -> tuple[Tensor, Tensor]:
        self.context, self.mask = self.context.to(context), self.mask.to(context.device)
        return self.context, self.mask

    def with_attention(self, options: dict, attend: Callable) -> dict:
        """The options in which every block's attention to the text is this one."""
        replace = options.get("patches_replace", {})
        if replace.get("attn2"):
            raise ValueError(
                "Another node replaces the attention to the text, as SANA NAG does: bypass one of the two."
            )
        blocks = {("double_block", block): attend for block in range(self.depth)}
        return options | {"patches_replace": replace | {"attn2": blocks}}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, biases, length: int, passes) -> Tensor:
        """q (B, N, C), k and v (B, L + M, C) of the prompt's L positions and the negative's M -> (B, N, C)."""
        outs = []
        for bias, part in zip(biases, (slice(0, length), slice(length, None)), strict=True):
            mask = None if bias is None else bias.expand(q.shape[0], q.shape[1], -1)
            outs.append(
                optimized_attention(
                    *(q, k[:, part], v[:, part]), extra_options["n_heads"], mask=mask, transformer_options=extra_options
                )
            )
        positive, negative = outs
        guided = guide_attention(positive, negative, self.strength)
        if UNCONDITIONAL not in passes:
            return guided
        chosen = (positive if kind == UNCONDITIONAL else guided for kind in passes)
        return torch.cat([part.chunk(len(passes))[i] for i, part in enumerate(chosen)])


def with_negative_attention(
    patcher: comfy.model_patcher.ModelPatcher, negative: list, strength: Strength
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that has this negative conditioning inside its attention to the text.

    Raises ValueError for a network whose attention is not patched, and for a conditioning that is another model's or
    more than one text.
    """
    network = patcher.model.diffusion_model
    depth = depth_of(network, "SANA NAG")
    context, mask = text_of(negative, network.config.caption_channels)
    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, NegativeAttention(context, mask, depth, strength))
    return clone


def text_of(conditioning: list, channels: int) -> tuple[Tensor, Tensor]:
    """States (1, L, C) and mask (1, L) of the one text of a conditioning. Raises ValueError for anything else."""
    if len(conditioning) != 1 or conditioning[0][0].shape[0] != 1:
        raise ValueError("SANA NAG takes one negative text: leave Conditioning (Combine) and batches out of it.")
    ((context, extra),) = conditioning
    if found := other_width(context, channels):
        raise ValueError(
            f"The negative of SANA NAG is {found} where this model's text states have {channels}: encode it with the "
            "model's own text encoder."
        )
    return counted_text(context, extra)
