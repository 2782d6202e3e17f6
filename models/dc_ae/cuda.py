"""DC-AE on a CUDA device: whole maps, channels last, with torch's fused norm, so in few kernels that move few bytes.

There a launch and a pass over a map are what costs, so nothing is cut into row bands and a batch stays one. Maps with
more elements than cuDNN indexes, and input on another device, take the path of `inplace.py`, whose keys, values, tiles
and conditions are these, too. `benchmarks/fake_cuda.py` counts what a pass costs.
"""

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.layer_weights import cast_weights
from ..runtime.row_bands import empty_map
from . import inplace_layers
from .inplace import InplaceAutoencoderDC, InplaceDecoder, InplaceEncoder, InplaceHalf, WinogradResBlock
from .inplace_layers import (
    InplaceAttention,
    InplaceDownBlock,
    InplaceEfficientViTBlock,
    InplaceGLUMBConv,
    InplaceUpBlock,
    InplaceUpsample,
    squares,
    unshuffled,
)
from .layers import ATTENTION_EPS, RMSNorm2d

DEVICE = "cuda"  # torch's type of the devices for which this path is the better one; AMD's bear the same name
CUDNN_INT32_LIMIT = 2**31  # elements of a map, from which on convolutions are slow or missing
NORM_IS_FUSED = hasattr(torch.ops.aten, "_fused_rms_norm")  # one kernel; older torch makes it of six in float32


def is_whole(x: Tensor, channels: int) -> bool:
    """Whether a layer with a map of so many channels at x's resolution (B, C, H, W) works on all of it at once."""
    return x.device.type == DEVICE and x.shape[0] * channels * x.shape[2] * x.shape[3] < CUDNN_INT32_LIMIT


def normalized(norm: RMSNorm2d, x: Tensor) -> Tensor:
    """The norm of x (B, C, H, W), which may be overwritten: one kernel, and one for the bias."""
    if not NORM_IS_FUSED:
        return inplace_layers.activate_normalized_(norm, nn.Identity(), x)
    weight, bias = (comfy.ops.cast_to_input(one, x, copy=False) for one in (norm.weight, norm.bias))
    tokens = x.permute(0, 2, 3, 1).contiguous()
    return F.rms_norm(tokens, weight.shape, weight, norm.eps).add_(bias).permute(0, 3, 1, 2)


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of x (B, C, H, W) as a linear layer, which adds the bias on the way."""
    with cast_weights(layer, x) as (weight, bias):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class CudaResBlock(WinogradResBlock):
    """Residual block on the whole map."""

    def forward_inplace(self, x: Tensor) -> Tensor:
        if not is_whole(x, x.shape[1]):
            return super().forward_inplace(x)
        return x.add_(normalized(self.norm, self.branch(x)))


class CudaAttention(InplaceAttention):
    """Attention of all heads of all scales at once."""

    def forward_inplace(self, x: Tensor) -> Tensor:
        positions = x.shape[2] * x.shape[3]
        if positions <= self.head_dim or not is_whole(x, 3 * x.shape[1]):
            return super().forward_inplace(x)
        q, k, v = self.heads(x)
        state, total = k.mT @ v, k.sum(dim=-2).unsqueeze(-1)
        weights = (q @ total).add_(ATTENTION_EPS).transpose(1, 2)  # (B, N, h, 1)
        out = x.new_empty(len(x), positions, q.shape[1], self.head_dim)
        torch.div((q @ state).transpose(1, 2), weights, out=out)  # divided, cast and put together
        out = self.to_out(out.flatten(2)).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        return x.add_(normalized(self.norm_out, out))

    def heads(self, x: Tensor) -> Tensor:
        """Rectified queries and keys, and values, of all scales in float32: (3, B, h, N, d)."""
        with (
            cast_weights(self.to_q, x) as (q, _),
            cast_weights(self.to_k, x) as (k, _),
            cast_weights(self.to_v, x) as (v, _),
        ):
            weight = torch.cat([q, k, v])
        qkv = F.linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)
        scales = [qkv, *(scale(qkv) for scale in self.to_qkv_multiscale)]
        count = x.shape[1] // self.head_dim
        out = x.new_empty(3, len(x), len(scales) * count, x.shape[2] * x.shape[3], self.head_dim, dtype=torch.float32)
        for tokens, part in zip(scales, out.split(count, dim=2), strict=True):
            tokens = tokens.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (count, 3, self.head_dim))
            part.copy_(tokens.permute(3, 0, 2, 1, 4))
        F.relu(out[:2], inplace=True)
        return out


class CudaGLUMBConv(InplaceGLUMBConv):
    """GLUMBConv on the whole map."""

    def forward_inplace(self, x: Tensor) -> Tensor:
        if not is_whole(x, 8 * x.shape[1]):
            return super().forward_inplace(x)
        inner = self.conv_depth(F.silu(pointwise(self.conv_inverted, x), inplace=True))
        value, gate = inner.chunk(2, dim=1)
        out = pointwise(self.conv_point, F.silu(gate, inplace=True).mul_(value))
        return x.add_(normalized(self.norm, out))


class CudaEfficientViTBlock(InplaceEfficientViTBlock):
    """Attention and GLUMBConv on the whole map."""

    attention, feed_forward = CudaAttention, CudaGLUMBConv


class CudaDownBlock(InplaceDownBlock):
    """Downsampling on the whole map."""

    def forward_inplace(self, x: Tensor) -> Tensor:
        if not is_whole(x, x.shape[1]):
            return super().forward_inplace(x)
        return self.conv(x).add_(self.shortcut(x))


class CudaUpsample(InplaceUpsample):
    """Upsampling on the whole map."""

    def forward_inplace(self, x: Tensor) -> Tensor:
        if not is_whole(x, max(x.shape[1], 4 * self.conv.out_channels)):
            return super().forward_inplace(x)
        with cast_weights(self.conv, x) as (weight, bias):
            return self.convolved(x, weight, bias)

    def convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.pixel_shuffle:
            out = empty_map(x, len(weight) // 4, 2 * x.shape[2], 2 * x.shape[3])
            squares(out).copy_(unshuffled(F.conv2d(x, weight, bias, padding=1), 2, 2))
            return out
        if x.shape[2] * x.shape[3] < inplace_layers.SUB_PIXEL_POSITIONS:
            return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
        return F.conv_transpose2d(x, sub_pixel_weight(weight), bias, stride=2, padding=1)


class CudaUpBlock(CudaUpsample, InplaceUpBlock):
    """Upsampling on the whole map, with its shortcut."""

    def forward_inplace(self, x: Tensor) -> Tensor:
        if not is_whole(x, max(x.shape[1], 4 * self.conv.out_channels)):
            return InplaceUpBlock.forward_inplace(self, x)
        rows, columns = self.square
        with cast_weights(self.conv, x) as (weight, bias):
            out = self.convolved(x, weight, bias if self.pixel_shuffle else None)
            if not self.pixel_shuffle:  # the bias reaches every position with the shortcut, which is smaller
                x = x + bias.repeat_interleave(rows * columns)[:, None, None]
        values = x.repeat_interleave(self.repeats // 4, dim=1) if self.repeats > 4 else x
        squares(out).add_(unshuffled(values, rows, columns))
        return out


class CudaHalf(InplaceHalf):
    """The classes of an encoder's or decoder's layers on a CUDA device."""

    res_block, vit_block = CudaResBlock, CudaEfficientViTBlock
    down_block, up_block, upsample = CudaDownBlock, CudaUpBlock, CudaUpsample


class CudaEncoder(CudaHalf, InplaceEncoder):
    """Encoder on a CUDA device."""


class CudaDecoder(CudaHalf, InplaceDecoder):
    """Decoder on a CUDA device."""

    def activate_normalized(self, x: Tensor) -> Tensor:
        if not is_whole(x, x.shape[1]):
            return super().activate_normalized(x)
        return self.activation(normalized(self.norm_out, x), inplace=True)


class CudaAutoencoderDC(InplaceAutoencoderDC):
    """DC-AE on a CUDA device, in exact tiles where it is told to, and in smaller ones when memory runs out."""

    encoder_class, decoder_class = CudaEncoder, CudaDecoder


def sub_pixel_weight(weight: Tensor) -> Tensor:
    """The weight of `inplace_layers.sub_pixel_weight`, summed by a pooling kernel, in float32 inside."""
    summed = F.avg_pool2d(weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
    return summed.transpose(0, 1)
