"""Zero rows as the padding of a text: what encoders mark and transformers read."""

from torch import Tensor

# Key of a conditioning whose padded rows are all zero. Host nodes that mix two texts hand on the mask of the first
# alone, but the rows of both.
ZERO_PADDED = "sana_zero_padded"


def mask_of_rows(context: Tensor, mask: Tensor | None) -> Tensor | None:
    """Mask (B, L), 1 for the rows of the context (B, L, C) that are not zero; texts of zeros alone keep their own."""
    used = (context != 0).any(dim=-1)
    if mask is None:
        return used.long() if used.any(dim=1).all() else None
    return used.to(mask).where(used.any(dim=1, keepdim=True), mask)
