"""Several encoded prompts as one conditioning, a row for each: every image of a batch has a prompt of its own."""

import torch
from torch import Tensor

TOKEN_WEIGHTS = "token_weights"  # (B, L), in the conditionings of prompts with weights alone


def stack_conds(conds: list[list]) -> list:
    """The host's conditioning of B prompts with states (B, L, C), from B conditionings of one prompt each.

    Raises ValueError for prompts of unequal length, which have no mask, and for a conditioning with hooks.
    """
    if any(len(cond) != 1 for cond in conds):
        raise ValueError("A prompt with a schedule of hooks cannot be one of a batch: encode it alone.")
    states, extras = zip(*(cond[0] for cond in conds), strict=True)
    lengths = sorted({context.shape[1] for context in states})
    if len(lengths) > 1:
        raise ValueError(
            f"Prompts of {lengths[0]} and {lengths[-1]} tokens cannot be one batch with this text encoder, which pads "
            "none: run them one by one."
        )
    stacked = dict(extras[0])
    for key in {key for extra in extras for key, value in extra.items() if isinstance(value, Tensor)}:
        stacked[key] = torch.cat([_rows(extra, key, states[0].shape[:2]) for extra in extras])
    return [[torch.cat(states), stacked]]


def _rows(extra: dict, key: str, shape: tuple[int, int]) -> Tensor:
    """A tensor of a conditioning; the weights of a prompt that has none are ones."""
    if key in extra or key != TOKEN_WEIGHTS:
        return extra[key]
    return torch.ones(shape)
