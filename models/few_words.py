"""Softmax attention to a text of few words on a CPU: the words are multiplied by the image's weights, not the image.

A score is (W x + b).k = x.(W^T k) + b.k, and a word adds W_o v to whatever attends to it. The sums are the same, and
with few words there are fewer products: for 30 words a third of SANA 1.6B's in its two layers. Scores are in float32:
rounded to bfloat16 they would take 4 to 6 dB from the result.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import in_place

# What it takes to multiply a word by the weights, in products of a position: so few rows wait for the memory.
WAIT = 3
FLOAT32 = 2  # what a product in float32 takes, in those of a format of 16 bits


def allowed(x: Tensor, transformer_options: dict) -> bool:
    """False also where a compiler, or the author of a patch, wants to see the attention as it is."""
    return x.device.type == "cpu" and in_place() and "optimized_attention_override" not in transformer_options


def pays(words: int, heads: int, x: Tensor, cost: int = 1) -> bool:
    """Whether multiplying the words takes less than multiplying x (N, C), as the layer behind the attention does.

    cost: of a product with a multiplied word.
    """
    positions, channels = x.shape
    return words * (WAIT * channels + cost * heads * positions) < positions * channels


def pays_for_queries(words: int, heads: int, x: Tensor) -> bool:
    """The same for the layer before it, where products with the words are in float32."""
    return pays(words, heads, x, cost=1 if x.dtype == torch.float32 else FLOAT32)


def seen(k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of k and v (L, C) the words that matter under a bias (L,), and theirs, None where it is the same for all.

    Any other word has no weight beside them in float32.
    """
    if bias is None or not bias.any():  # no copies where all are seen
        return k, v, None
    matters = bias > bias.max() - 1000
    bias = bias[matters] - bias.max()
    return k[matters], v[matters], bias if bias.any() else None


def of_heads(x: Tensor, heads: int) -> Tensor:
    """(n, C) -> (h, n, d)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def scores(x: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of x (N, C), which `weight` (C, C) and bias (C,) would make queries, and k (h, L, d): (N, h, L) in float32."""
    heads, words, width = k.shape
    multiplied = (k @ weight.unflatten(0, (heads, -1))).flatten(0, 1)  # (hL, C)
    out = (x.float() @ multiplied.float().mT).unflatten(1, (heads, words))
    if bias is not None:
        out += (k.float() @ bias.float().view(heads, -1, 1)).squeeze(2)
    return out.div_(math.sqrt(width))


def scores_of_queries(q: Tensor, k: Tensor) -> Tensor:
    """Of q (h, N, d) and k (h, L, d): (N, h, L) in float32."""
    return (q.float() @ k.float().mT).transpose(0, 1).div_(math.sqrt(q.shape[2]))


def attend(scores: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """scores (N, h, L), v (h, L, d), and weight (C, C) and bias (C,) of the layer behind the attention -> (N, C)."""
    multiplied = weight.unflatten(1, (len(v), -1)).transpose(0, 1) @ v.mT  # (h, C, L)
    shares = scores.softmax(dim=-1).to(v.dtype).flatten(1)
    return F.linear(shares, multiplied.transpose(0, 1).flatten(1), bias)
