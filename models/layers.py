"""Plain functions that the networks of several families share: ReLU linear attention, and the bias of a text's mask.

Source: SANA, arXiv 2410.10629 section 3.2; EfficientViT, arXiv 2205.14756 section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MASK_BIAS = -10000.0  # the reference's bias for padding; finite, so that it is exact in float16 too


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-15) -> Tensor:
    """ReLU linear attention: o_n = sum_m (k_m.q_n) v_m / (sum_m k_m.q_n + eps) over non-negative q and k.

    q, k, v: (B, h, d, N), computed in float32 because the sums over N overflow 16-bit formats. Returns (B, h, d, N) in
    float32.
    """
    q, k, v = F.relu(q).float(), F.relu(k).float(), v.float()
    v = F.pad(v, (0, 0, 0, 1), value=1.0)  # a row of ones carries the normalizer: (B, h, d + 1, N)
    out = (v @ k.transpose(-1, -2)) @ q
    return out[:, :, :-1] / (out[:, :, -1:] + eps)


def split_heads_fp32(x: Tensor) -> Tensor:
    """(B, N, h, d) -> (B, h, N, d), contiguous and in float32."""
    return x.transpose(-2, -3).to(torch.float32, memory_format=torch.contiguous_format)


def kv_state(k: Tensor, v: Tensor) -> Tensor:
    """State of linear attention: k >= 0 and v (B, h, N, d) -> (B, h, d, d + 1), sums over N of k v^T and of k."""
    return torch.cat([k.mT @ v, k.sum(dim=-2).unsqueeze(-1)], dim=-1)


def apply_kv_state(q: Tensor, state: Tensor, eps: float) -> Tensor:
    """The attention of `linear_attention` for non-negative q (B, h, N, d) and a `kv_state`, to (B, N, h, d)."""
    out = q @ state
    return (out[..., :-1] / (out[..., -1:] + eps)).transpose(-2, -3)


def linear_attention_of_tokens(q: Tensor, k: Tensor, v: Tensor, head_dim: int, eps: float = 1e-15) -> Tensor:
    """`linear_attention` for (B, N, C) as linear layers give it, to (B, N, C) in the same format."""
    queries, keys, values = (split_heads_fp32(x.unflatten(-1, (-1, head_dim))) for x in (F.relu(q), F.relu(k), v))
    return apply_kv_state(queries, kv_state(keys, values), eps).to(q.dtype).flatten(2)


def mask_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of a text's positions, (B, 1, L): the logarithm of how many times each one counts.

    mask: (B, L), 1 for a token and 0 for padding; another number is a token's weight. With log(2) a token has the share
    that it would have twice in the text.
    """
    return None if mask is None else mask.to(dtype).log().clamp(min=MASK_BIAS)[:, None]
