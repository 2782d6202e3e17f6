"""Layers that the linear DiT and DC-AE share: ReLU linear attention and the gated depthwise convolution.

Source: SANA, arXiv 2410.10629 section 3.2; EfficientViT, arXiv 2205.14756 section 3.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .runtime.layer_weights import cast_weights, is_plain_layer
from .runtime.overwrite import can_overwrite

STRIP_TOKENS = 128  # 1 to 2 MB of float32 at SANA's widths, which stay in a core's cache
# Elements of a slice of a Mix-FFN, 8 MB in a format of 16 bits, and of a map that is not worth slicing.
SLICE, UNSLICED = 2**22, 2**20
SLICE_UNIT = 64  # channels, which products are fastest in multiples of


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-15) -> Tensor:
    """ReLU linear attention: o_n = sum_m (k_m.q_n) v_m / (sum_m k_m.q_n + eps) over non-negative q and k.

    q, k, v: (B, h, d, N), computed in float32 because the sums over N overflow 16-bit formats. Returns (B, h, d, N) in
    float32.
    """
    q, k, v = F.relu(q).float(), F.relu(k).float(), v.float()
    v = F.pad(v, (0, 0, 0, 1), value=1.0)  # a row of ones carries the normaliser: (B, h, d + 1, N)
    out = (v @ k.transpose(-1, -2)) @ q
    return out[:, :, :-1] / (out[:, :, -1:] + eps)


def split_heads_fp32(x: Tensor) -> Tensor:
    """(B, N, h, d) -> (B, h, N, d), contiguous and in float32."""
    return x.transpose(-2, -3).to(torch.float32, memory_format=torch.contiguous_format)


def kv_state(k: Tensor, v: Tensor) -> Tensor:
    """Sums over N of k v^T and, as a last column, of k: k >= 0 and v (B, h, N, d) -> (B, h, d, d + 1)."""
    return torch.cat([k.mT @ v, k.sum(dim=-2).unsqueeze(-1)], dim=-1)


def apply_kv_state(q: Tensor, sums: Tensor, eps: float) -> Tensor:
    """The attention of `linear_attention` for non-negative q (B, h, N, d) and `kv_state`, to (B, N, h, d)."""
    out = q @ sums
    return (out[..., :-1] / (out[..., -1:] + eps)).transpose(-2, -3)


def linear_attention_of_tokens(q: Tensor, k: Tensor, v: Tensor, head_dim: int, eps: float = 1e-15) -> Tensor:
    """The same attention for (B, N, C) as linear layers give it, to (B, N, C) in the same format.

    On a CPU in strips of tokens, so that nothing in float32 is as long as the picture.
    """
    whole = q.device.type != "cpu" or torch.compiler.is_compiling()
    strip = q.shape[1] if whole else STRIP_TOKENS
    q, k, v = (x.unflatten(-1, (-1, head_dim)).split(strip, dim=1) for x in (q, k, v))
    sums = reduce(
        add, (kv_state(split_heads_fp32(F.relu(keys)), split_heads_fp32(values)) for keys, values in zip(k, v))
    )
    out = [apply_kv_state(split_heads_fp32(F.relu(queries)), sums, eps).to(queries.dtype).flatten(2) for queries in q]
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)


class DenseChange(NamedTuple):
    """A LoRA on a depthwise convolution that mixes its channels, which no depthwise weight can hold.

    down (r, C, k, k), then up (1, r, 1, 1), the same for every channel, as OneTrainer trains it, or (C, r / C, 1, 1), a
    share of the rank for each, as PEFT does.
    """

    strength: float
    down: Tensor
    up: Tensor
    alpha: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        rank = self.down.shape[0]
        hidden = F.conv2d(x, self.down.to(x), padding=self.down.shape[-1] // 2)
        scale = self.strength * (1.0 if self.alpha is None else self.alpha / rank)
        return F.conv2d(hidden, self.up.to(x) * scale, groups=rank // self.up.shape[1])


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of x (B, C, H, W): on a CPU a product with its tokens, which needs no copy of the weights."""
    if x.device.type != "cpu" or not can_overwrite() or not is_plain_layer(layer):
        return layer(x)
    with cast_weights(layer, x) as (weight, bias):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class GLUMBConv(nn.Module):
    """Inverted bottleneck with a 3x3 depthwise convolution and a SiLU gate (the Mix-FFN of SANA).

    forward: (B, C, H, W) -> (B, C, H, W), without norm or residual.
    """

    def __init__(self, channels: int, hidden_channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        inner = 2 * hidden_channels
        self.conv_inverted = operations.Conv2d(channels, inner, 1, **kw)
        self.conv_depth = operations.Conv2d(inner, inner, 3, padding=1, groups=inner, **kw)
        self.conv_point = operations.Conv2d(hidden_channels, channels, 1, bias=False, **kw)

    def forward(self, x: Tensor, changes: Sequence[DenseChange] = ()) -> Tensor:
        if not changes and self.takes_slices(x):
            return pointwise(self.conv_point, self.gated_in_slices(x))
        inner = self.gated(F.silu(pointwise(self.conv_inverted, x), inplace=can_overwrite()), changes)
        return pointwise(self.conv_point, inner)

    def gated(self, inner: Tensor, changes: Sequence[DenseChange] = ()) -> Tensor:
        """What lies between the 1x1 convolutions: (B, 2 * hidden, H, W) -> (B, hidden, H, W)."""
        out = self.conv_depth(inner)
        for change in changes:
            out = out + change(inner)
        del inner
        x, gate = out.chunk(2, dim=1)
        return F.silu(gate, inplace=can_overwrite()) * x

    def takes_slices(self, x: Tensor) -> bool:
        """Whether to take the hidden channels in turns: on a CPU, where the whole map would leave its cache."""
        worth = x[:, 0].numel() * self.conv_inverted.out_channels > UNSLICED
        return (
            worth
            and x.device.type == "cpu"
            and can_overwrite()
            and is_plain_layer(self.conv_inverted)
            and is_plain_layer(self.conv_depth)
        )

    def gated_in_slices(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, hidden, H, W): the first layer, SiLU and `gated`; only the result is there as a whole."""
        tokens = x.permute(0, 2, 3, 1)
        hidden = self.conv_point.in_channels
        out = tokens.new_empty(*tokens.shape[:-1], hidden)
        with cast_weights(self.conv_inverted, x) as inverted, cast_weights(self.conv_depth, x) as depth:
            for start, stop in slices(hidden, tokens[..., 0].numel()):
                value, gate = (
                    expanded(tokens, *(one[first + start : first + stop] for one in (*inverted, *depth)))
                    for first in (0, hidden)
                )
                torch.mul(F.silu(gate, inplace=True), value, out=out[..., start:stop])
        return out.permute(0, 3, 1, 2)


def slices(channels: int, positions: int) -> Iterator[tuple[int, int]]:
    """First channel and the one after the last of each slice, nearly equal in width. positions: B * H * W."""
    count = -(-channels * positions // SLICE)
    width = -(-channels // (count * SLICE_UNIT)) * SLICE_UNIT
    for start in range(0, channels, width):
        yield start, min(start + width, channels)


def expanded(tokens: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    """A 1x1 convolution (D, C, 1, 1), SiLU and a depthwise one (D, 1, k, k): tokens (B, H, W, C) -> (B, H, W, D)."""
    inner = F.silu(F.linear(tokens, weight.flatten(1), bias), inplace=True).permute(0, 3, 1, 2)
    out = F.conv2d(inner, kernels, biases, padding=kernels.shape[-1] // 2, groups=len(kernels))
    return out.permute(0, 2, 3, 1)
