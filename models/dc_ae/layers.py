"""The blocks of DC-AE: RMSNorm, residual blocks, multi-scale linear attention, and changes of resolution.

`forward` is the plain computation, for training and compilers. `forward_inplace` gives the same faster, without
autograd: it may overwrite its input, which has to be channels last, and works in bands of rows (`row_bands.py`).
Source: DC-AE, arXiv 2410.10733; EfficientViT, arXiv 2205.14756; for pixel shuffle dc-ai-projects/DC-Gen.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import apply_kv_state, kv_state, linear_attention, split_heads_fp32
from ..runtime.cpu import winograd
from ..runtime.layer_weights import cast_weights, is_plain_layer
from ..runtime.overwrite import can_overwrite
from ..runtime.row_bands import add_in_bands_, bands, empty_map, in_parts, in_strips, made_once, rows_of, strips

ATTENTION_EPS = 1e-15
# Below, preparing the weights takes longer than it saves. No tile in use is so small: it would round unlike the whole.
SUB_PIXEL_POSITIONS = 256


class RMSNorm2d(nn.Module):
    """RMSNorm over the channels of (B, C, H, W), with weight and bias."""

    def __init__(self, channels: int, eps: float = 1e-5, dtype=None, device=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(channels, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        # Summed in float32 without a float32 copy of x, which at full resolution is the largest tensor there is.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        x = (x * torch.rsqrt(norm.square() / x.shape[1] + self.eps)).to(x.dtype)
        weight, bias = (comfy.ops.cast_to_input(t, x)[:, None, None] for t in (self.weight, self.bias))
        return torch.addcmul(bias, x, weight)

    def normalised(self, x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The norm of x in float32, a strip of tokens at a time, with the same strips of x and channels-last others.

        A float32 x is overwritten on the way.
        """
        weight, bias = (comfy.model_management.cast_to(t, torch.float32, x.device) for t in (self.weight, self.bias))
        x, scratch = x.contiguous(memory_format=torch.channels_last), None  # a copy where convolutions lose the layout
        for tokens, *rest in strips(x, *others):
            values = tokens
            if x.dtype != torch.float32:
                scratch = torch.empty_like(tokens, dtype=torch.float32) if scratch is None else scratch[: len(tokens)]
                values = scratch.copy_(tokens)
            square = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_()
            values.mul_(square.div_(x.shape[1]).add_(self.eps).rsqrt_())
            yield torch.addcmul(bias, values, weight, out=values), tokens, *rest

    def add_(self, x: Tensor, branch: Tensor) -> Tensor:
        """x += norm(branch); branch is spent."""
        for values, _, tokens in self.normalised(branch, x):
            tokens.copy_(values.add_(tokens))
        return x


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a norm after the second, and a residual. (B, C, H, W) -> (B, C, H, W).

    winograds: the convolutions of `winograd.py` that it may use where they are faster, by format.
    """

    reach = 2

    def __init__(
        self, channels: int, winograds: Mapping[torch.dtype, type], dtype=None, device=None, operations: Any = None
    ):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.winograds = winograds
        self.conv1 = operations.Conv2d(channels, channels, 3, padding=1, **kw)
        self.conv2 = operations.Conv2d(channels, channels, 3, padding=1, bias=False, **kw)
        self.norm = RMSNorm2d(channels, **kw)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.conv1(x), inplace=can_overwrite()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.branch(x))

    def forward_inplace(self, x: Tensor) -> Tensor:
        lent = is_plain_layer(self.conv1) and is_plain_layer(self.conv2)
        if not (lent and x.dtype in self.winograds and winograd.pays(x)):
            return add_in_bands_(x, self.branch, self.norm.add_, self.reach, channels=x.shape[1])
        with cast_weights(self.conv1, x) as first, cast_weights(self.conv2, x) as second:
            weights, biases = zip(first, second)
            for picture in x.split(1):
                winograd.res_block_(picture, weights, biases, self.norm.add_, self.winograds[x.dtype])
        return x


class MultiscaleProjection(nn.Module):
    """Aggregates neighbouring q, k and v tokens: depthwise k x k, then a 1x1 convolution inside each head."""

    def __init__(
        self, channels: int, num_heads: int, kernel_size: int, dtype=None, device=None, operations: Any = None
    ):
        super().__init__()
        kw = {"dtype": dtype, "device": device, "bias": False}
        self.proj_in = operations.Conv2d(
            3 * channels, 3 * channels, kernel_size, padding=kernel_size // 2, groups=3 * channels, **kw
        )
        self.proj_out = operations.Conv2d(3 * channels, 3 * channels, 1, groups=3 * num_heads, **kw)

    def forward(self, qkv: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(qkv))


class MultiscaleLinearAttention(nn.Module):
    """EfficientViT's multi-scale ReLU attention with a residual. (B, C, H, W) -> (B, C, H, W).

    The names to_q, to_k, to_v are those of the checkpoint, not what they compute: their outputs are concatenated, and
    head j reads its q, k and v from channels 3dj..3d(j + 1) of the result.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        kernel_sizes: tuple[int, ...],
        dtype=None,
        device=None,
        operations: Any = None,
    ):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.head_dim = head_dim
        self.to_q = operations.Linear(channels, channels, bias=False, **kw)
        self.to_k = operations.Linear(channels, channels, bias=False, **kw)
        self.to_v = operations.Linear(channels, channels, bias=False, **kw)
        num_heads = channels // head_dim
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(channels, num_heads, size, operations=operations, **kw) for size in kernel_sizes
        )
        self.to_out = operations.Linear(channels * (1 + len(kernel_sizes)), channels, bias=False, **kw)
        self.norm_out = RMSNorm2d(channels, **kw)
        self.reach = max(kernel_sizes, default=1) // 2

    def project(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> three (BHW, C), which side by side are q, k and v of every head."""
        # Rows of a larger map are no matrix to torch until they are flat: it would copy the weights for each of them.
        tokens = x.permute(0, 2, 3, 1).flatten(0, 2)
        return [self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)]

    def project_to(self, x: Tensor, out: Tensor) -> None:
        """x (1, C, H, W) to out (H, W, 3C)."""
        torch.cat(self.project(x), dim=-1, out=out.flatten(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        qkv = torch.cat(self.project(x), dim=-1).unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)
        qkv = torch.cat([qkv] + [scale(qkv) for scale in self.to_qkv_multiscale], dim=1)
        q, k, v = qkv.reshape(x.shape[0], -1, 3 * self.head_dim, height * width).chunk(3, dim=2)  # (B, h, d, N)
        # With fewer tokens than channels the N x N form is the cheaper one, and the one the weights were trained with.
        attend = linear_attention if height * width > self.head_dim else quadratic_attention
        out = attend(q, k, v, eps=ATTENTION_EPS).to(x.dtype)
        out = self.to_out(out.reshape(x.shape[0], -1, height, width).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.norm_out(out)

    def forward_inplace(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] <= self.head_dim:
            return self(x)
        for picture in x.split(1):
            self.attend_(picture)
        return x

    def attend_(self, x: Tensor) -> None:
        """forward for one picture, in two passes over its bands: the sums over all keys first, then every query."""
        channels, width = x.shape[1], x.shape[3]
        scales = [nn.Identity(), *self.to_qkv_multiscale]
        widest = 3 * channels * len(scales)
        queries, sums = [], [0.0] * len(scales)
        for _, _, band, qkv in made_once(x, self.project_to, 3 * channels, self.reach, widest):
            queries.append([])
            for i, scale in enumerate(scales):
                tokens = scale(qkv)[:, :, band].permute(0, 2, 3, 1).flatten(0, 2)
                q, k, v = tokens.unflatten(1, (-1, 3, self.head_dim)).unbind(dim=2)  # (N, h, d)
                queries[-1].append(F.relu(q))
                sums[i] = sums[i] + kv_state(F.relu(split_heads_fp32(k)), split_heads_fp32(v))
        for start, stop in bands(x, widest):
            out = x.new_empty((stop - start) * width, len(scales), channels)
            for i, q in enumerate(queries.pop(0)):
                out[:, i] = apply_kv_state(split_heads_fp32(q), sums[i], ATTENTION_EPS).flatten(1)
            out = self.to_out(out.flatten(1)).unflatten(0, (1, -1, width))
            self.norm_out.add_(x[:, :, start:stop], out.permute(0, 3, 1, 2))


def quadratic_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """The same attention as `linear_attention` by way of the N x N scores. q, k, v: (B, h, d, N)."""
    scores = (F.relu(k).transpose(-1, -2) @ F.relu(q)).float()  # (B, h, N keys, N queries)
    scores = scores / (scores.sum(dim=2, keepdim=True) + eps)
    return v @ scores.to(v.dtype)


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of x (B, C, H, W): on a CPU a product with its tokens, which needs no copy of the weights."""
    if x.device.type != "cpu" or not can_overwrite() or not is_plain_layer(layer):
        return layer(x)
    with cast_weights(layer, x) as (weight, bias):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class GLUMBConv(nn.Module):
    """Inverted bottleneck with a 3x3 depthwise convolution and a SiLU gate. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, hidden_channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        inner = 2 * hidden_channels
        self.conv_inverted = operations.Conv2d(channels, inner, 1, **kw)
        self.conv_depth = operations.Conv2d(inner, inner, 3, padding=1, groups=inner, **kw)
        self.conv_point = operations.Conv2d(hidden_channels, channels, 1, bias=False, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(self.conv_point, self.gated(F.silu(pointwise(self.conv_inverted, x), inplace=can_overwrite())))

    def gated(self, inner: Tensor) -> Tensor:
        x, gate = self.conv_depth(inner).chunk(2, dim=1)
        return F.silu(gate, inplace=can_overwrite()) * x


class ConvOut(GLUMBConv):
    """GLUMBConv of DC-AE: expansion 4, a norm after it, and a residual."""

    def __init__(self, channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__(channels, 4 * channels, dtype, device, operations)
        self.norm = RMSNorm2d(channels, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(super().forward(x))

    def forward_inplace(self, x: Tensor) -> Tensor:
        inner = 8 * x.shape[1]
        for picture in x.split(1):
            for start, stop, band, rows in made_once(picture, self.expand_to, inner, reach=1, widest=inner):
                gated = self.gated(rows)[:, :, band]
                self.norm.add_(picture[:, :, start:stop], pointwise(self.conv_point, gated))
        return x

    def expand_to(self, x: Tensor, out: Tensor) -> None:
        """x (1, C, H, W) through the first layer, to out (H, W, 8C)."""
        if is_plain_layer(self.conv_inverted):
            with cast_weights(self.conv_inverted, x) as (weight, bias):
                tokens = x.permute(0, 2, 3, 1).flatten(0, 2)
                torch.addmm(bias, tokens, weight.flatten(1).mT, out=out.view(-1, out.shape[2]))
        else:
            out.copy_(self.conv_inverted(x)[0].permute(1, 2, 0))
        F.silu(out, inplace=True)


class EfficientViTBlock(nn.Module):
    """Multi-scale linear attention followed by GLUMBConv. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(
        self,
        channels: int,
        head_dim: int,
        kernel_sizes: tuple[int, ...],
        dtype=None,
        device=None,
        operations: Any = None,
    ):
        super().__init__()
        self.attn = MultiscaleLinearAttention(channels, head_dim, kernel_sizes, dtype, device, operations)
        self.conv_out = ConvOut(channels, dtype, device, operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))

    def forward_inplace(self, x: Tensor) -> Tensor:
        return self.conv_out.forward_inplace(self.attn.forward_inplace(x))


class DownBlock(nn.Module):
    """Strided 3x3 convolution with a space-to-channel shortcut. (B, C, H, W) -> (B, D, H/2, W/2)."""

    reach = 1

    def __init__(self, in_channels: int, out_channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        self.out_channels = out_channels
        self.conv = operations.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pixel_unshuffle(x, 2).unflatten(1, (self.out_channels, -1)).mean(dim=2)
        return self.conv(x) + shortcut

    def forward_inplace(self, x: Tensor) -> Tensor:
        out = in_parts(self.conv, x, self.out_channels, taken=2)
        for picture, target in zip(x.split(1), out.split(1), strict=True):
            for start, stop in bands(target, 2 * self.out_channels):
                target[:, :, start:stop].add_(self.shortcut(picture[:, :, 2 * start : 2 * stop]))
        return out

    def shortcut(self, x: Tensor) -> Tensor:
        """The same as in forward, channels last throughout."""
        averaged = 4 * x.shape[1] // self.out_channels  # positions of a 2 x 2 square, columns before rows
        rows, columns = 1 if averaged >= 4 else 2, 1 if averaged >= 2 else 2  # that are left of it
        x = F.avg_pool2d(x, (2 // rows, 2 // columns)).permute(0, 2, 3, 1)
        x = x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).permute(0, 1, 3, 5, 2, 4)
        return x.flatten(3).unflatten(3, (self.out_channels, -1)).mean(dim=-1).permute(0, 3, 1, 2)


class Upsample(nn.Module):
    """3x3 convolution after nearest upsampling, or before a pixel shuffle. (B, C, H, W) -> (B, D, 2H, 2W)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        pixel_shuffle: bool = False,
        dtype=None,
        device=None,
        operations: Any = None,
    ):
        super().__init__()
        self.pixel_shuffle = pixel_shuffle
        self.reach = 2 if pixel_shuffle else 1  # of the doubled resolution
        width = 4 * out_channels if pixel_shuffle else out_channels
        self.conv = operations.Conv2d(in_channels, width, 3, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        if self.pixel_shuffle:
            return F.pixel_shuffle(self.conv(x), 2)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))

    def forward_inplace(self, x: Tensor) -> Tensor:
        if self.pixel_shuffle:
            return self.shuffle_in_bands(x)
        if x.shape[2] * x.shape[3] < SUB_PIXEL_POSITIONS or not is_plain_layer(self.conv):
            return Upsample.forward(self, x)
        with cast_weights(self.conv, x) as (weight, bias):
            convolve = partial(F.conv_transpose2d, weight=sub_pixel_weight(weight), bias=bias, stride=2, padding=1)
            return in_parts(convolve, x, len(weight), given=2)

    def shuffle_in_bands(self, x: Tensor) -> Tensor:
        out = empty_map(x, self.conv.out_channels // 4, 2 * x.shape[2], 2 * x.shape[3])
        for picture, target in zip(x.split(1), out.split(1), strict=True):
            for start, stop in bands(picture, self.conv.out_channels):
                rows = rows_of(self.conv, picture, start, stop, reach=1)
                squares(target[:, :, 2 * start : 2 * stop]).copy_(unshuffled(rows, 2, 2))
        return out


def squares(x: Tensor) -> Tensor:
    """(B, D, 2H, 2W) -> (B, H, 2, W, 2, D), a view."""
    return x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def unshuffled(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, D * rows * columns, H, W) -> (B, H, rows, W, columns, D), as pixel shuffle spreads channels over places."""
    x = x.permute(0, 2, 3, 1).unflatten(3, (-1, rows, columns))
    return x.permute(0, 1, 4, 2, 5, 3).contiguous()


class UpBlock(Upsample):
    """Upsampling with a channel-to-space shortcut. (B, C, H, W) -> (B, D, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, *args, **kwargs):
        super().__init__(in_channels, out_channels, *args, **kwargs)
        self.repeats = 4 * out_channels // in_channels

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.pixel_shuffle(x.repeat_interleave(self.repeats, dim=1), 2)

    def forward_inplace(self, x: Tensor) -> Tensor:
        out = super().forward_inplace(x)
        # What repeats a channel four times gives one value to all of a 2 x 2 square, what repeats it twice to a row.
        rows, columns = 2 if self.repeats <= 2 else 1, 2 if self.repeats == 1 else 1
        for picture, target in zip(x.split(1), out.split(1), strict=True):
            for start, stop in bands(picture, 2 * x.shape[1]):
                values = picture[:, :, start:stop]
                if self.repeats > 4:  # without need it would leave the layout
                    values = values.repeat_interleave(self.repeats // 4, dim=1)
                squares(target[:, :, 2 * start : 2 * stop]).add_(unshuffled(values, rows, columns))
        return out


def sub_pixel_weight(weight: Tensor) -> Tensor:
    """Of a 3x3 convolution after nearest upsampling, (D, C, 3, 3): that of a transposed one without it, (C, D, 4, 4).

    Positions with equal values meet the sum of their weights, so 16 products make what took 36.
    """
    spread = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.float32, device=weight.device)
    summed = weight.new_empty(*weight.shape[:2], 16)
    for some, target in in_strips(weight.flatten(2), summed):
        target.copy_(some.float() @ torch.kron(spread, spread))
    return summed.unflatten(2, (4, 4)).transpose(0, 1)
