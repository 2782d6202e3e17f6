"""Zero rows as the padding of a text: what encoders mark and transformers read."""

import torch.nn.functional as F
from torch import Tensor

# Key of a conditioning whose padded rows are all zero. Host nodes that mix two texts hand on the mask of the first
# alone, but the rows of both.
ZERO_PADDED = "sana_zero_padded"


def mask_of_rows(context: Tensor, mask: Tensor | None) -> Tensor | None:
    """Mask (B, L), 1 for the rows of the context (B, L, C) that are not zero; texts of zeros alone keep their own.

    mask: of the first text alone where a host node has joined two.
    """
    used = (context != 0).any(dim=-1)
    if mask is None:
        return used.long() if used.any(dim=1).all() else None
    if mask.shape[1] > used.shape[1]:
        return mask  # of another text, and refused as such
    mask = F.pad(mask, (0, used.shape[1] - mask.shape[1]))
    return used.to(mask).where(used.any(dim=1, keepdim=True), mask)
