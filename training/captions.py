"""States of captions as a batch, and captions left out so that the model learns guidance.

Source: NVlabs/Sana `train_scripts/train.py`: a dropped caption has the states of the empty prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OWN_MASK, CAPTION_MASK = "bos", "caption"
NULL_MASKS = (OWN_MASK, CAPTION_MASK)


@dataclass(frozen=True)
class Caption:
    """A text's states (L, D) and its mask (L,), as the text encoder gives them."""

    states: Tensor
    mask: Tensor


def dropped(caption: Caption, null: Caption, null_mask: str) -> Caption:
    """What stands in the place of a caption that is left out: the empty prompt's rows.

    null_mask: "bos", the empty prompt's own mask, as ComfyUI and diffusers read it, or "caption", the caption's mask
    over the empty prompt's rows, as NVIDIA's code reads it. Raises ValueError for another.
    """
    if null_mask not in NULL_MASKS:
        raise ValueError(f"The null mask {null_mask} is unknown: choose one of {', '.join(NULL_MASKS)}.")
    return null if null_mask == OWN_MASK else Caption(null.states, fit(caption.mask, len(null.states)))


def fit(rows: Tensor, length: int) -> Tensor:
    """Rows cut, or filled up with zeros, to a length."""
    missing = length - len(rows)
    return rows[:length] if missing <= 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def drop_captions(
    captions: Sequence[Caption], null: Caption, rate: float, null_mask: str, generator: torch.Generator
) -> list[Caption]:
    """Each caption, or with the probability `rate` what stands in its place."""
    leave_out = (torch.rand(len(captions), generator=generator) < rate).tolist()
    return [dropped(one, null, null_mask) if out else one for one, out in zip(captions, leave_out, strict=True)]


def batch_captions(captions: Sequence[Caption]) -> tuple[Tensor, Tensor]:
    """States (B, L, D) and mask (B, L) of captions, up to the last position that any of them uses."""
    length = max(int(one.mask.nonzero().max()) + 1 for one in captions)
    return (
        torch.stack([fit(one.states, length) for one in captions]),
        torch.stack([fit(one.mask, length) for one in captions]),
    )
