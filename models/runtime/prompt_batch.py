"""Several encoded prompts as one conditioning, a row for each: every image of a batch has a prompt of its own."""

import torch
from torch import Tensor

from .text_conds import lengthened

MASK = "attention_mask"
TOKEN_WEIGHTS = "token_weights"  # (B, L), in the conditionings of prompts with weights alone


def stack_conds(conds: list[list]) -> list:
    """The host's conditioning of B prompts with states (B, L, C), from B conditionings of one prompt each.

    Shorter prompts, of encoders that pad none, are filled up with zeros, which the mask leaves out. Raises ValueError
    for a conditioning with hooks.
    """
    if any(len(cond) != 1 for cond in conds):
        raise ValueError("A prompt with a schedule of hooks cannot be one of a batch: encode it alone.")
    states, extras = zip(*(cond[0] for cond in conds), strict=True)
    length = max(context.shape[1] for context in states)
    stacked, keys = dict(extras[0]), {key for extra in extras for key, value in extra.items() if is_of_tokens(value)}
    if any(context.shape[1] < length for context in states):
        keys.add(MASK)
    for key in keys:
        rows = [row_of(extra, key, context) for extra, context in zip(extras, states, strict=True)]
        stacked[key] = torch.cat([lengthened(row, length) for row in rows])
    return [[torch.cat([lengthened(context, length) for context in states]), stacked]]


def is_of_tokens(value) -> bool:
    """Whether a value of a conditioning has one number a token."""
    return isinstance(value, Tensor) and value.ndim == 2


def row_of(extra: dict, key: str, states: Tensor) -> Tensor:
    """(1, L) of a prompt: what it has, or 1 for every token where it has no mask or no weights."""
    if key in extra or key not in (MASK, TOKEN_WEIGHTS):
        return extra[key]
    return torch.ones(states.shape[:2], dtype=torch.long if key == MASK else torch.float32, device=states.device)
