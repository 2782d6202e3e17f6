"""Two prompts blended inside the attention: every position of both is there, and counts by its share.

A mixture of states, as the host's average of two conditionings makes, has no such meaning: their rows do not stand for
the same word, and the mask is that of the first text alone.
"""

import torch

from .text_conds import TOKEN_WEIGHTS, counted_text
from .zero_padding import ZERO_PADDED

LOST = (TOKEN_WEIGHTS, ZERO_PADDED, "attention_mask")  # of the first text, which the blend has its own of


def blend(first: list, second: list, share: float) -> list:
    """The host's conditioning of a text that is `first` at a share of 0, `second` at 1, and both between.

    Of several texts, as of areas or schedules, each of the first is blended with the one second. What else is set on
    the first stays. Raises ValueError for two texts that no model takes together.
    """
    if share <= 0:
        return first
    if share >= 1:
        return second
    if len(second) != 1:
        raise ValueError(
            f"The second prompt of SANA Blend Prompts holds {len(second)} texts: leave Conditioning (Combine) out of "
            "it, or link it to the first."
        )
    return [_blend_pair(each, second[0], share) for each in first]


def _blend_pair(first: list, second: list, share: float) -> list:
    texts = [counted_text(*first[:2]), counted_text(*second[:2])]
    widths = [states.shape[-1] for states, _ in texts]
    if widths[0] != widths[1]:
        raise ValueError(
            f"The two prompts of SANA Blend Prompts are {widths[0]} and {widths[1]} wide: encode both with the text "
            "encoder of the model."
        )
    rows = max(states.shape[0] for states, _ in texts)
    if any(states.shape[0] not in (1, rows) for states, _ in texts):
        raise ValueError(
            f"The two prompts of SANA Blend Prompts are batches of {texts[0][0].shape[0]} and {texts[1][0].shape[0]}: "
            "give both as many texts, or one of them one."
        )
    states = torch.cat([states.expand(rows, -1, -1) for states, _ in texts], dim=1)
    counts = [count.float().expand(rows, -1) * part for (_, count), part in zip(texts, (1 - share, share))]
    counts = torch.cat(counts, dim=1)
    extra = {key: value for key, value in first[1].items() if key not in LOST}
    return [states, extra | {"attention_mask": (counts != 0).long(), TOKEN_WEIGHTS: counts}]
