"""Softmax attention to a text of few words on a CPU: the words are multiplied by the image's weights, not the image.

A score is (W x + b).k = x.(W^T k) + b.k, and a word adds W_o v to whatever attends to it. The sums are the same, and
with few words there are fewer products: for 30 words a third of SANA 1.6B's in its two layers. Scores are in float32:
rounded to bfloat16 they would take 4 to 6 dB from the result.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..overwrite import can_overwrite

# What it takes to multiply a word by the weights, in products of a position: so few rows wait for the memory.
WAIT = 3
FLOAT32 = 2  # what a product in float32 takes, in those of a format of 16 bits
SHARE = 2  # of all texts the words kept multiplied are at most so small a share of the layer that multiplied them


def allowed(x: Tensor, transformer_options: dict) -> bool:
    """False also where a compiler, or the author of a patch, wants to see the attention as it is."""
    return x.device.type == "cpu" and can_overwrite() and "optimized_attention_override" not in transformer_options


def seen(context: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of a text's states (L, C) those that matter under a bias (L,), and theirs, None where it is the same for all.

    Any other word has no weight beside them in float32.
    """
    if bias is None or not bias.any():  # no copies where all are seen
        return context, None
    matters = bias > bias.max() - 1000
    bias = bias[matters] - bias.max()
    return context[matters], bias if bias.any() else None


class Words:
    """Keys and values (L, C) of one text in one layer, and their biases (L,), None where all have the same."""

    def __init__(self, k: Tensor, v: Tensor, bias: Tensor | None, heads: int):
        self.k, self.v, self.bias, self.heads = k, v, bias, heads
        self.channels = k.shape[1]
        # Whether they serve other steps too, and whether there is room for them multiplied: said by who keeps them.
        self.lasting = self.roomy = False
        self.multiplied: Tensor | None = None  # (C, hL), by the layer behind the attention without its bias
        self.attended: Tensor | None = None  # (1, C), what that layer makes of a single word

    def __len__(self) -> int:
        return len(self.k)

    def move_to(self, k: Tensor, v: Tensor) -> None:
        """Puts keys and values there."""
        self.k, self.v = k.copy_(self.k), v.copy_(self.v)

    def of_heads(self, x: Tensor) -> Tensor:
        """(n, C) -> (h, n, d)."""
        return x.unflatten(1, (self.heads, -1)).transpose(0, 1)

    def scores(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of x (N, C), which `weight` (C, C) and bias (C,) would make queries: (N, h, L) in float32."""
        k = self.of_heads(self.k)
        keys = (k @ weight.unflatten(0, (self.heads, -1))).flatten(0, 1)  # (hL, C)
        out = (x.float() @ keys.float().mT).unflatten(1, k.shape[:2])
        if bias is not None:
            out += (k.float() @ bias.float().view(self.heads, -1, 1)).squeeze(2)
        return self.scaled(out)

    def scores_of_queries(self, q: Tensor) -> Tensor:
        """Of q (N, C): (N, h, L) in float32."""
        return self.scaled((self.of_heads(q).float() @ self.of_heads(self.k).float().mT).transpose(0, 1))

    def scaled(self, scores: Tensor) -> Tensor:
        """And with the biases added."""
        scores.div_(math.sqrt(self.channels // self.heads))
        return scores if self.bias is None else scores.add_(self.bias)

    def attend(self, scores: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """scores (N, h, L), and weight (C, C) and bias (C,) of the layer behind the attention -> (N, C)."""
        multiplied = self.multiplied
        if multiplied is None:
            by_head = weight.unflatten(1, (self.heads, -1)).transpose(0, 1) @ self.of_heads(self.v).mT  # (h, C, L)
            multiplied = by_head.transpose(0, 1).flatten(1)
            if self.stays_multiplied(len(scores)):
                self.multiplied = multiplied
        return F.linear(scores.softmax(dim=-1).to(self.v.dtype).flatten(1), multiplied, bias)

    def attend_to_one(self, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """What the layer behind the attention makes of a single word, (1, C): every position attends with weight 1."""
        attended = layer(self.v) if self.attended is None else self.attended
        if self.lasting and self.attended is None:
            self.attended = self.k.copy_(attended)  # where the keys were, which a single word does not need
        return attended

    def stays_multiplied(self, positions: int) -> bool:
        """Whether words multiplied for so many positions are kept: where multiplying takes longer than using them."""
        return self.lasting and self.roomy and self.heads * positions < WAIT * self.channels

    def pays(self, positions: int) -> bool:
        """Whether multiplying the words takes less than multiplying the positions, as the layer behind them does."""
        making = 0 if self.stays_multiplied(positions) else WAIT * self.channels
        return len(self) * (making + self.heads * positions) < positions * self.channels

    def pays_for_queries(self, positions: int) -> bool:
        """The same for the layer before the attention, where products with the words are in float32."""
        cost = 1 if self.k.dtype == torch.float32 else FLOAT32
        return len(self) * (WAIT * self.channels + cost * self.heads * positions) < positions * self.channels
