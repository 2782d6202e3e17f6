"""A text's way to the network: without its padding, and in one batch with texts of other lengths.

The host's own conditionings are batched where their shapes are equal, so that an empty negative prompt would need all
300 positions that a long one may have.
"""

from collections.abc import Mapping
from typing import Any

import comfy.conds
import torch
from torch import Tensor

from .precision import require_finite
from .zero_padding import ZERO_PADDED, mask_of_rows

CONDITIONING_CURE = "encode the prompt again, without a LoRA on its clip"
# Key of a conditioning: how many times each position of its text counts, (B, L) in float32; those after L count once.
TOKEN_WEIGHTS = "token_weights"
LENGTH_STEP = 16  # a compiler meets few lengths then, and a GPU rows that its kernels can load whole


class TextCond(comfy.conds.CONDRegular):
    """(B, L, ...), one value a position; in a batch the shorter texts are filled up with zeros, as is their mask."""

    def can_concat(self, other: "TextCond") -> bool:
        same_device = self.cond.device == other.cond.device
        return same_device and without_length(self.cond) == without_length(other.cond)

    def concat(self, others: "list[TextCond]") -> Tensor:
        conds = [self.cond] + [other.cond for other in others]
        longest = max(cond.shape[1] for cond in conds)
        return torch.cat([lengthened(cond, longest) for cond in conds])


class MaskCond(TextCond):
    """The mask (B, L) of a text; the network gets None where every position of the batch counts once.

    padded: whether the mask has other values than 1, found out before it is on the device, where the answer would have
    to be waited for.
    """

    def __init__(self, cond: Tensor, padded: bool = True):
        super().__init__(cond)
        self.padded = padded

    def _copy_with(self, cond: Tensor) -> "MaskCond":
        return type(self)(cond, self.padded)

    def concat(self, others: "list[MaskCond]") -> Tensor | None:
        lengths = {mask.cond.shape[1] for mask in (self, *others)}
        if len(lengths) == 1 and not any(mask.padded for mask in (self, *others)):
            return None
        return super().concat(others)


def text_conds(
    context: Tensor, mask: Tensor | None, device: torch.device | None, weights: Tensor | None = None
) -> dict[str, TextCond]:
    """The host's conditionings of a text: states (B, L, C) and mask (B, L), on the device once and not at every step.

    device: where the network runs, as the host tells `extra_conds`; None leaves them where they are.
    weights: TOKEN_WEIGHTS of the conditioning. The mask then tells how many times a position counts.
    """
    context, mask = without_padding(context, mask)
    if weights is not None:
        mask = weighted_mask(mask, weights)
    padded = not bool((mask == 1).all())  # asked before the mask is on the device
    return {"c_crossattn": TextCond(context.to(device)), "attention_mask": MaskCond(mask.to(device), padded)}


def weighted_mask(mask: Tensor, weights: Tensor) -> Tensor:
    """Mask (B, L) times weights (B, M), as if those beyond M were 1; as it came where all of them are."""
    missing = max(0, mask.shape[1] - weights.shape[1])
    weights = torch.nn.functional.pad(weights, (0, missing), value=1.0)[:, : mask.shape[1]].to(mask.device)
    return mask if bool((weights == 1).all()) else mask * weights.float()


def counted_text(context: Tensor, extra: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """States (B, L, C) of a conditioning up to its last token, and how many times each position counts, (B, L).

    extra: the conditioning's other values. Raises ValueError as `require_text`.
    """
    mask, weights = extra.get("attention_mask"), extra.get(TOKEN_WEIGHTS)
    if extra.get(ZERO_PADDED):
        mask = mask_of_rows(context, mask)
    require_text(context, mask)
    context, mask = without_padding(context, mask)
    return context, mask if weights is None else weighted_mask(mask, weights)


def other_width(context: Tensor | None, channels: int) -> str | None:
    """What a conditioning is that has no states of so many channels, for an error message; None for one that has."""
    if context is None:
        return "without text states"
    return None if context.shape[-1] == channels else f"{context.shape[-1]} wide"


def require_text(context: Tensor, mask: Tensor | None) -> None:
    """Raises ValueError for a conditioning whose mask is another's, or that holds NaN or infinity."""
    if mask is not None and mask.shape[-1] != context.shape[1]:
        raise ValueError(
            f"This conditioning has {context.shape[1]} text positions but a mask for {mask.shape[-1]}, as "
            "Conditioning (Concat) leaves it: write both texts into one prompt, or use Conditioning (Combine)."
        )
    require_finite(context, "The conditioning", CONDITIONING_CURE)


def without_length(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.shape[0], *tensor.shape[2:])


def lengthened(tensor: Tensor, length: int) -> Tensor:
    missing = tensor.new_zeros(tensor.shape[0], length - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, missing], dim=1)


def without_padding(context: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Context (B, L, C) and mask (B, L) up to the last position that any text of the batch uses, or a little further.

    Exact: a masked position has no weight in the attention. Where a text uses none, all have the same, and stay.
    """
    if mask is None:
        return context, torch.ones(context.shape[:2], dtype=torch.long, device=context.device)
    used = mask != 0
    if not used.any(dim=1).all():
        return context, mask
    length = int(used.any(dim=0).nonzero().max()) + 1
    length = -(-length // LENGTH_STEP) * LENGTH_STEP
    return context[:, :length], mask[:, :length]
