"""Text states as the pack's inference makes them: BOS and what follows the instruction, whose own states are cached."""

import copy

import torch
from torch import Tensor, nn

from .text_encoder import encode_text, pad
from .tokenizer import INSTRUCTION


@torch.no_grad()
def encode_captions(model: nn.Module, captions: list[str], plain: list[bool], chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Gemma states (P, L, C) and mask (P, L) of captions: after the instruction, or without it where `plain`.

    The model is causal, so the instruction's keys and values are computed once. Position 0 is BOS in both cases.
    """
    prefix = encode_text(INSTRUCTION)[:-1]  # its last space merges with the first word
    first = model(input_ids=torch.tensor([prefix]), use_cache=True)
    rows = [
        encode_text(caption) if alone else encode_text(INSTRUCTION + caption)[len(prefix) :]
        for caption, alone in zip(captions, plain, strict=True)
    ]
    length = max(len(row) + (not p) for row, p in zip(rows, plain, strict=True))
    context = torch.zeros(len(rows), length, first.last_hidden_state.shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for start in range(0, len(rows), chunk):
        for is_plain in (False, True):
            index = [i for i in range(start, min(start + chunk, len(rows))) if plain[i] == is_plain]
            if not index:
                continue
            ids, ids_mask = pad([rows[i] for i in index])
            if is_plain:
                states = model(input_ids=ids, attention_mask=ids_mask).last_hidden_state
            else:
                cache = copy.deepcopy(first.past_key_values)
                cache.batch_repeat_interleave(len(index))
                whole = torch.cat([torch.ones(len(index), len(prefix), dtype=torch.long), ids_mask], dim=1)
                states = model(input_ids=ids, attention_mask=whole, past_key_values=cache).last_hidden_state
                states = torch.cat([first.last_hidden_state[:, :1].expand(len(index), -1, -1), states], dim=1)
                ids_mask = torch.cat([torch.ones(len(index), 1, dtype=torch.long), ids_mask], dim=1)
            context[index, : states.shape[1]] = states
            mask[index, : states.shape[1]] = ids_mask
    return context, mask
