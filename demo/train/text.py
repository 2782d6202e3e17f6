"""Text states as the pack's inference makes them: BOS and what follows the instruction, whose own states are cached."""

import torch
from torch import Tensor, nn

from .text_encoder import encode_rows, read_rows


@torch.no_grad()
def encode_captions(
    model: nn.Module, captions: list[str], plain: list[bool], chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """Gemma states (P, L, C) in bfloat16 and mask (P, L) of captions: after the instruction, or without where `plain`.

    Position 0 is BOS in both cases.
    """
    parts = []
    for without in (False, True):
        chosen = [i for i, alone in enumerate(plain) if alone == without]
        for start in range(0, len(chosen), chunk):
            index = chosen[start : start + chunk]
            rows = encode_rows([captions[i] for i in index], not without)
            _, mask, states, begin = read_rows(model, rows, not without)
            if not without:
                states = torch.cat([begin.expand(len(index), 1, -1), states], dim=1)
                mask = torch.cat([mask.new_ones(len(index), 1), mask], dim=1)
            parts.append((index, states.bfloat16().cpu(), mask.cpu()))
    length, width = max(mask.shape[1] for _, _, mask in parts), parts[0][1].shape[-1]
    context = torch.zeros(len(captions), length, width, dtype=torch.bfloat16)
    mask = torch.zeros(len(captions), length, dtype=torch.long)
    for index, states, own in parts:
        context[index, : own.shape[1]], mask[index, : own.shape[1]] = states, own
    return context, mask
