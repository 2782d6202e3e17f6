"""Text states as the pack's inference makes them: BOS and what follows the instruction, whose own states are cached."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from .text_encoder import THREADS, encode_rows, read_rows


def encode_captions(
    model: nn.Module, captions: list[str], plain: list[bool], chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """Gemma states (P, L, C) in bfloat16 and mask (P, L) of captions: after the instruction, or without where `plain`.

    Position 0 is BOS in both cases.
    """

    def encode(job: tuple[list[int], bool]) -> tuple[list[int], Tensor, Tensor]:
        index, without = job
        with torch.no_grad():  # which is a thread's own
            rows = encode_rows([captions[i] for i in index], not without)
            _, mask, states, begin = read_rows(model, rows, not without)
        if not without:
            states = torch.cat([begin.expand(len(index), 1, -1), states], dim=1)
            mask = torch.cat([mask.new_ones(len(index), 1), mask], dim=1)
        return index, states.bfloat16().cpu(), mask.cpu()

    jobs = []
    for without in (False, True):
        chosen = sorted((i for i, alone in enumerate(plain) if alone == without), key=lambda i: len(captions[i]))
        jobs += [(chosen[start : start + chunk], without) for start in range(0, len(chosen), chunk)]
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(encode, jobs))
    length, width = max(mask.shape[1] for _, _, mask in parts), parts[0][1].shape[-1]
    context = torch.zeros(len(captions), length, width, dtype=torch.bfloat16)
    mask = torch.zeros(len(captions), length, dtype=torch.long)
    for index, states, own in parts:
        context[index, : own.shape[1]], mask[index, : own.shape[1]] = states, own
    return context, mask
