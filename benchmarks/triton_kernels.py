"""Fused kernels in Triton, measured beside plain torch by `benchmarks/gpu.py`; the pack does not use them.

    python -m benchmarks.triton_kernels        # relative errors as JSON; with TRITON_INTERPRET=1 on a CPU

A kernel moves into the pack, behind a check for Triton and never needed, when "saves" in a table of the kit says that
it takes more than 10 % off a denoising step or a decode on a card that users have; it then replaces these lines:
    depthwise_gate      SiLU, depthwise 3x3 with bias, and gate of the Mix-FFN (models/sana/model.py, GLUMBConv.forward)
    linear_attention    linear_attention_of_tokens (models/layers.py), whose first half is kv_state
    norm_add            RMSNorm2d and the residual of DC-AE's blocks (models/dc_ae/layers.py, ResBlock.forward)
    bias_silu           bias and SiLU after the first convolution of such a block

Sums are in float32 whatever the format. Letters: B images, N tokens, C and D channels, H and W rows and columns,
h heads of d channels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.measuring import write

ELEMENTS = 4096  # of a block of a kernel that works on rows
NORM_EPS, ATTENTION_EPS = 1e-5, 1e-15
TOKENS = 64  # of a block of the attention's kernels
SPLIT_TOKENS = 1024  # that one program sums: more of them run side by side
# The interpreter's product of bfloat16 matrices is wrong, so that there they are widened first.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def as_rows(x: Tensor) -> Tensor:
    """(B, C, H, W), channels last -> (B * H * W, C), without a copy. Raises ValueError for any other layout."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"A map of {tuple(x.shape)} is not channels last: make it contiguous in that format.")
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)


# Depthwise convolution and gate


@triton.jit
def depthwise_gate_kernel(
    x, weight, bias, out, H: tl.constexpr, W: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    h, w = row % H, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    real = c < D
    value = tl.zeros((COLUMNS, WIDTH), tl.float32) + tl.load(bias + c, mask=real, other=0.0).to(tl.float32)[None, :]
    gate = tl.zeros((COLUMNS, WIDTH), tl.float32) + tl.load(bias + D + c, mask=real, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        inside = (h + dy >= 0) & (h + dy < H) & (w + dx >= 0) & (w + dx < W)
        mask = inside[:, None] & real[None, :]
        place = ((row + dy) * W + w + dx)[:, None] * (2 * D) + c[None, :]
        one = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        other = tl.load(x + place + D, mask=mask, other=0.0).to(tl.float32)
        value += silu(one) * tl.load(weight + c * 9 + tap, mask=real, other=0.0).to(tl.float32)[None, :]
        gate += silu(other) * tl.load(weight + (D + c) * 9 + tap, mask=real, other=0.0).to(tl.float32)[None, :]
    place = (row * W + w)[:, None] * D + c[None, :]
    result = (value * silu(gate)).to(out.dtype.element_ty)
    tl.store(out + place, result, mask=(w < W)[:, None] & real[None, :])


def depthwise_gate(x: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """SiLU, depthwise 3x3 and bias, then value * SiLU(gate). x (B, N, 2D) of a grid (H, W) -> (B, N, D).

    weight: (2D, 1, 3, 3); bias: (2D,); the first D channels are the values, the others their gates.
    """
    (height, width), channels = grid, x.shape[-1] // 2
    x, weight = x.contiguous(), weight.contiguous()
    out = x.new_empty(*x.shape[:-1], channels)
    columns, block = 16, 64
    programs = x.shape[0] * height, triton.cdiv(width, columns), triton.cdiv(channels, block)
    depthwise_gate_kernel[programs](x, weight, bias, out, height, width, channels, columns, block)
    return out


def depthwise_gate_reference(x: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    x = F.silu(x).transpose(1, 2).unflatten(2, grid)
    x = F.conv2d(x, weight, bias, padding=1, groups=len(weight)).flatten(2).transpose(1, 2)
    value, gate = x.chunk(2, dim=-1)
    return F.silu(gate) * value


# Linear attention


@triton.jit
def kv_state_kernel(
    k, v, out, N: tl.constexpr, C: tl.constexpr, d: tl.constexpr, SPLIT: tl.constexpr, TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    head, image, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    channel = tl.arange(0, d)
    products, sums = tl.zeros((d, d), tl.float32), tl.zeros((d,), tl.float32)
    for i in range(0, SPLIT // TOKENS):
        n = split * SPLIT + i * TOKENS + tl.arange(0, TOKENS)
        place = (image * N + n)[:, None] * C + head * d + channel[None, :]
        keys = tl.load(k + place, mask=(n < N)[:, None], other=0.0)
        values = tl.load(v + place, mask=(n < N)[:, None], other=0.0)
        if WIDE:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        keys = tl.where(keys > 0, keys, 0.0).to(values.dtype)
        products += tl.dot(tl.trans(keys), values, input_precision="ieee")
        sums += tl.sum(keys.to(tl.float32), 0)
    base = ((split * tl.num_programs(1) + image) * (C // d) + head) * d
    tl.store(out + (base + channel)[:, None] * (d + 1) + channel[None, :], products)
    tl.store(out + (base + channel) * (d + 1) + d, sums)


def kv_state(k: Tensor, v: Tensor, head_dim: int, split_tokens: int = SPLIT_TOKENS) -> Tensor:
    """Sums over N of relu(k) v^T and, in the last column, of relu(k). k, v (B, N, C) -> (B, h, d, d + 1) in float32.

    split_tokens: that one program sums, a multiple of TOKENS.
    """
    (images, tokens, channels), k, v = k.shape, k.contiguous(), v.contiguous()
    splits, heads = triton.cdiv(tokens, split_tokens), channels // head_dim
    out = torch.empty(splits, images, heads, head_dim, head_dim + 1, device=k.device)
    kv_state_kernel[heads, images, splits](
        k, v, out, tokens, channels, head_dim, split_tokens, TOKENS, INTERPRETED and k.dtype != torch.float32
    )
    return out[0] if splits == 1 else out.sum(dim=0)


def kv_state_reference(k: Tensor, v: Tensor, head_dim: int, _split_tokens: int = 0) -> Tensor:
    keys, values = (x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (F.relu(k), v))
    return torch.cat([keys.mT @ values, keys.sum(dim=-2).unsqueeze(-1)], dim=-1)


@triton.jit
def apply_state_kernel(
    q, state, out, N: tl.constexpr, C: tl.constexpr, d: tl.constexpr, EPS: tl.constexpr, TOKENS: tl.constexpr
):
    head, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel, n = tl.arange(0, d), tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    place = (image * N + n)[:, None] * C + head * d + channel[None, :]
    queries = tl.load(q + place, mask=(n < N)[:, None], other=0.0).to(tl.float32)
    queries = tl.where(queries > 0, queries, 0.0)
    base = (image * (C // d) + head) * d
    products = tl.load(state + (base + channel)[:, None] * (d + 1) + channel[None, :])
    sums = tl.load(state + (base + channel) * (d + 1) + d)
    weighted = tl.dot(queries, products, input_precision="ieee")
    total = tl.sum(queries * sums[None, :], 1)
    tl.store(out + place, (weighted / (total + EPS)[:, None]).to(out.dtype.element_ty), mask=(n < N)[:, None])


def linear_attention(q: Tensor, k: Tensor, v: Tensor, head_dim: int, split_tokens: int = SPLIT_TOKENS) -> Tensor:
    """ReLU linear attention. q, k, v (B, N, C) -> (B, N, C) in the same format; split_tokens as of `kv_state`."""
    (images, tokens, channels), q = q.shape, q.contiguous()
    out, state = torch.empty_like(q), kv_state(k, v, head_dim, split_tokens)
    programs = channels // head_dim, images, triton.cdiv(tokens, TOKENS)
    apply_state_kernel[programs](q, state, out, tokens, channels, head_dim, ATTENTION_EPS, TOKENS)
    return out


def linear_attention_reference(q: Tensor, k: Tensor, v: Tensor, head_dim: int, _split_tokens: int = 0) -> Tensor:
    queries = F.relu(q).unflatten(-1, (-1, head_dim)).transpose(1, 2)
    out = queries @ kv_state_reference(k, v, head_dim)
    return (out[..., :-1] / (out[..., -1:] + ATTENTION_EPS)).transpose(1, 2).flatten(2)


# Norm, bias and residual; bias and activation


@triton.jit
def norm_add_kernel(
    x, y, weight, bias, rows, C: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (c < C)[None, :]
    place = row[:, None] * C + c[None, :]
    update = tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(update * update, 1) / C + EPS)
    gain = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    old = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    new = old + update * scale[:, None] * gain[None, :] + shift[None, :]
    tl.store(x + place, new.to(x.dtype.element_ty), mask=mask)


def norm_add(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x + RMSNorm over the channels of y, with weight and bias (C,), in place of x (B, C, H, W), channels last."""
    target, update = as_rows(x), as_rows(y)
    width = triton.next_power_of_2(target.shape[1])
    rows = max(ELEMENTS // width, 1)
    programs = (triton.cdiv(len(target), rows),)
    norm_add_kernel[programs](target, update, weight, bias, len(target), target.shape[1], NORM_EPS, rows, width)
    return x


def norm_add_reference(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    scale = torch.rsqrt(y.square().mean(dim=1, keepdim=True) + NORM_EPS)
    return x + y * scale * weight[:, None, None] + bias[:, None, None]


@triton.jit
def bias_silu_kernel(x, bias, rows, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (c < C)[None, :]
    place = row[:, None] * C + c[None, :]
    shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + shift[None, :]
    tl.store(x + place, silu(value).to(x.dtype.element_ty), mask=mask)


def bias_silu(x: Tensor, bias: Tensor) -> Tensor:
    """SiLU(x + bias) in place of x (B, C, H, W), channels last, the result of a convolution without its bias (C,)."""
    rows_of_x = as_rows(x)
    width = triton.next_power_of_2(rows_of_x.shape[1])
    rows = max(ELEMENTS // width, 1)
    bias_silu_kernel[(triton.cdiv(len(rows_of_x), rows),)](
        rows_of_x, bias, len(rows_of_x), rows_of_x.shape[1], rows, width
    )
    return x


def bias_silu_reference(x: Tensor, bias: Tensor) -> Tensor:
    return F.silu(x + bias[:, None, None])


# Proof


@dataclass(frozen=True)
class Case:
    """A kernel, the same in plain torch of any format, and shapes of small inputs that no block divides."""

    kernel: Callable
    reference: Callable
    shapes: tuple[tuple[int, ...], ...]
    others: tuple = ()

    def inputs(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in self.shapes]
        return [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in made]

    def error(self, dtype: torch.dtype, device: str) -> float:
        """Relative error to the plain form in float64 of the same inputs."""
        inputs = self.inputs(dtype, device)
        wanted = self.reference(*(x.double() for x in inputs), *self.others)
        found = self.kernel(*inputs, *self.others).double()
        return float((found - wanted).norm() / wanted.norm())


MAP, VECTOR = (2, 24, 5, 7), (24,)
WIDE_MAP, GRID = (2, 3 * 17, 2 * 72), (3, 17)  # two blocks of columns and of channels
STATES, SPLIT = (2, 150, 64), 128  # two heads; two splits, the second of them not full
CASES = {
    "depthwise_gate": Case(depthwise_gate, depthwise_gate_reference, (WIDE_MAP, (144, 1, 3, 3), (144,)), (GRID,)),
    "kv_state": Case(kv_state, kv_state_reference, (STATES,) * 2, (32, SPLIT)),
    "linear_attention": Case(linear_attention, linear_attention_reference, (STATES,) * 3, (32, SPLIT)),
    "norm_add": Case(norm_add, norm_add_reference, (MAP, MAP, VECTOR, VECTOR)),
    "bias_silu": Case(bias_silu, bias_silu_reference, (MAP, VECTOR)),
}


def main() -> None:
    device = "cpu" if INTERPRETED else "cuda"
    formats = (torch.float32, torch.bfloat16)
    errors = {name: {str(dtype)[6:]: case.error(dtype, device) for dtype in formats} for name, case in CASES.items()}
    write(json.dumps(errors))


if __name__ == "__main__":
    main()
