"""Softmax attention to a short text on a CPU, with the image's projections absorbed into the text's keys and values.

A score is (W x + b).k = x.(W^T k) + b.k, and a token adds W_o v to whatever attends to it. The sums are the same, and
with few tokens there are fewer products: for 30 tokens a third of SANA 1.6B's in its two layers. Scores are in float32:
rounded to bfloat16 they would take 4 to 6 dB from the result.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Cost of projecting one token, in units of one pixel: few rows are memory-bound.
WEIGHT_PASS_COST = 3
FLOAT32_COST = 2  # of a product in float32, in those of a format of 16 bits
MASKED = 1000.0  # a bias so far below the largest has no weight in float32


def drop_masked_tokens(context: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of a text's states (L, C) those that have any weight under a bias (L,), and theirs; None where all are equal."""
    if bias is None or not bias.any():  # no copies where nothing is masked
        return context, None
    has_weight = bias > bias.max() - MASKED
    bias = bias[has_weight] - bias.max()
    return context[has_weight], bias if bias.any() else None


class TextKV:
    """Keys and values (L, C) of one text in one layer, and their biases (L,), None where all are equal."""

    def __init__(self, k: Tensor, v: Tensor, bias: Tensor | None, num_heads: int):
        self.k, self.v, self.bias, self.num_heads = k, v, bias, num_heads
        self.channels = k.shape[1]

    def __len__(self) -> int:
        return len(self.k)

    def split_heads(self, x: Tensor) -> Tensor:
        """(n, C) -> (h, n, d)."""
        return x.unflatten(1, (self.num_heads, -1)).transpose(0, 1)

    def scores(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of x (N, C), which `weight` (C, C) and bias (C,) would project to queries: (N, h, L) in float32."""
        k = self.split_heads(self.k)
        keys = (k @ weight.unflatten(0, (self.num_heads, -1))).flatten(0, 1)  # (hL, C)
        out = (x.float() @ keys.float().mT).unflatten(1, k.shape[:2])
        if bias is not None:
            out += (k.float() @ bias.float().view(self.num_heads, -1, 1)).squeeze(2)
        return self.scale(out)

    def scores_of_queries(self, q: Tensor) -> Tensor:
        """Of q (N, C): (N, h, L) in float32."""
        return self.scale((self.split_heads(q).float() @ self.split_heads(self.k).float().mT).transpose(0, 1))

    def scale(self, scores: Tensor) -> Tensor:
        scores.div_(math.sqrt(self.channels // self.num_heads))
        return scores if self.bias is None else scores.add_(self.bias)

    def attend(self, scores: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """scores (N, h, L), and weight (C, C) and bias (C,) of the output layer -> (N, C)."""
        by_head = weight.unflatten(1, (self.num_heads, -1)).transpose(0, 1) @ self.split_heads(self.v).mT  # (h, C, L)
        return F.linear(scores.softmax(dim=-1).to(self.v.dtype).flatten(1), by_head.transpose(0, 1).flatten(1), bias)

    def attend_to_one(self, output: Callable[[Tensor], Tensor]) -> Tensor:
        """What the output layer gives for a text of one token, (1, C): every pixel attends to it with weight 1."""
        return output(self.v)

    def is_cheaper(self, pixels: int) -> bool:
        """Whether projecting the tokens by the output layer costs less than projecting the pixels."""
        return len(self) * (WEIGHT_PASS_COST * self.channels + self.num_heads * pixels) < pixels * self.channels

    def is_cheaper_for_queries(self, pixels: int) -> bool:
        """The same for the layer that makes queries, where products with the tokens are in float32."""
        cost = 1 if self.k.dtype == torch.float32 else FLOAT32_COST
        return len(self) * (WEIGHT_PASS_COST * self.channels + cost * self.num_heads * pixels) < pixels * self.channels
