"""The blocks of DC-AE for a CUDA device: whole maps, channels last, in few kernels that move few bytes.

There a launch and a pass over a map are what costs, so nothing is cut into row bands and a batch stays one.
`inplace.py` puts each class before its namesake of `inplace_layers.py`, whose `forward_inplace` takes what
`forward_whole` does not: maps with more elements than cuDNN indexes, and input on another device. It too works without
autograd, on channels-last input that it may overwrite, with unmodified layers. `benchmarks/fake_cuda.py` counts what a
pass costs.
"""

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.layer_weights import cast_weights
from ..runtime.row_bands import empty_map
from .layers import (
    ATTENTION_EPS,
    DownBlock,
    GLUMBConv,
    MultiscaleLinearAttention,
    ResBlock,
    RMSNorm2d,
    UpBlock,
    Upsample,
)
from .memory_estimate import CUDNN_INT32_LIMIT, DEVICE
from .shortcuts import space_to_channel, square_of, squares, unshuffled

SUB_PIXEL_POSITIONS = 256  # below, preparing the weights takes longer than it saves
NORM_IS_FUSED = hasattr(torch.ops.aten, "_fused_rms_norm")  # older torch makes it of many kernels, on float32 copies


def is_whole(x: Tensor, channels: int) -> bool:
    """Whether a layer with a map of so many channels at x's resolution (B, C, H, W) works on all of it at once."""
    return x.device.type == DEVICE and x.shape[0] * channels * x.shape[2] * x.shape[3] < CUDNN_INT32_LIMIT


def normalized(norm: RMSNorm2d, x: Tensor) -> Tensor:
    """The norm of x (B, C, H, W), which may be overwritten."""
    weight, bias = (comfy.ops.cast_to_input(one, x, copy=False) for one in (norm.weight, norm.bias))
    tokens = x.permute(0, 2, 3, 1).contiguous()
    if NORM_IS_FUSED:
        tokens = F.rms_norm(tokens, weight.shape, weight, norm.eps).add_(bias)
    else:
        square = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=torch.float32).square_()
        tokens.mul_(square.div_(len(weight)).add_(norm.eps).rsqrt_())
        torch.addcmul(bias, tokens, weight, out=tokens)
    return tokens.permute(0, 3, 1, 2)


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of x (B, C, H, W) as a linear layer, which adds the bias on the way."""
    with cast_weights(layer, x) as (weight, bias):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def sub_pixel_weight(weight: Tensor) -> Tensor:
    """Weight (C, D, 4, 4) of a transposed convolution that equals the 3x3 one (D, C, 3, 3) after nearest upsampling.

    As `inplace_layers.sub_pixel_weight`, but summed by a pooling kernel, which needs nothing from the host.
    """
    return F.avg_pool2d(weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1).transpose(0, 1)


class WholeResBlock(ResBlock):
    """Residual block on the whole map."""

    def forward_whole(self, x: Tensor) -> Tensor:
        if not is_whole(x, x.shape[1]):
            return self.forward_inplace(x)
        return x.add_(normalized(self.norm, self.conv2(F.silu(self.conv1(x), inplace=True))))


class WholeAttention(MultiscaleLinearAttention):
    """Attention of all heads of all scales at once."""

    def forward_whole(self, x: Tensor) -> Tensor:
        positions = x.shape[2] * x.shape[3]
        if positions <= self.head_dim or not is_whole(x, 3 * x.shape[1]):
            return self.forward_inplace(x)
        q, k, v = self.heads(x)
        state, keys = k.mT @ v, k.sum(dim=-2).unsqueeze(-1)
        total = (q @ keys).add_(ATTENTION_EPS)
        out = x.new_empty(x.shape[0], positions, q.shape[1], self.head_dim)
        torch.div((q @ state).transpose(1, 2), total.transpose(1, 2), out=out)  # into x's format and order, too
        out = self.to_out(out.flatten(2)).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return x.add_(normalized(self.norm_out, out))

    def heads(self, x: Tensor) -> Tensor:
        """Rectified queries and keys, and values, of all scales in float32: (3, B, h, N, d)."""
        qkv = self.project_at_once(x)
        scales = [qkv, *(scale(qkv) for scale in self.to_qkv_multiscale)]
        count, positions = x.shape[1] // self.head_dim, x.shape[2] * x.shape[3]
        out = x.new_empty(3, x.shape[0], len(scales) * count, positions, self.head_dim, dtype=torch.float32)
        for one, part in zip(scales, out.split(count, dim=2), strict=True):
            tokens = one.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (count, 3, self.head_dim))
            part.copy_(tokens.permute(3, 0, 2, 1, 4))
        F.relu(out[:2], inplace=True)
        return out

    def project_at_once(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3C, H, W), with one product."""
        with cast_weights(self.to_q, x) as q, cast_weights(self.to_k, x) as k, cast_weights(self.to_v, x) as v:
            weight = torch.cat([q[0], k[0], v[0]])
        return F.linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)


class WholeGLUMBConv(GLUMBConv):
    """GLUMBConv on the whole map."""

    def forward_whole(self, x: Tensor) -> Tensor:
        if not is_whole(x, 8 * x.shape[1]):
            return self.forward_inplace(x)
        inner = self.conv_depth(F.silu(pointwise(self.conv_inverted, x), inplace=True))
        value, gate = inner.chunk(2, dim=1)
        out = pointwise(self.conv_point, F.silu(gate, inplace=True).mul_(value))
        return x.add_(normalized(self.norm, out))


class WholeDownBlock(DownBlock):
    """Downsampling on the whole map."""

    def forward_whole(self, x: Tensor) -> Tensor:
        if not is_whole(x, x.shape[1]):
            return self.forward_inplace(x)
        return self.conv(x).add_(space_to_channel(x, self.out_channels))


class WholeUpsample(Upsample):
    """Upsampling on the whole map."""

    def is_whole(self, x: Tensor) -> bool:
        return is_whole(x, max(x.shape[1], 4 * self.conv.out_channels))

    def forward_whole(self, x: Tensor) -> Tensor:
        if not self.is_whole(x):
            return self.forward_inplace(x)
        with cast_weights(self.conv, x) as (weight, bias):
            return self.convolved(x, weight, bias)

    def convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.pixel_shuffle:
            out = empty_map(x, len(weight) // 4, 2 * x.shape[2], 2 * x.shape[3])
            squares(out).copy_(unshuffled(F.conv2d(x, weight, bias, padding=1), 2, 2))
            return out
        if x.shape[2] * x.shape[3] < SUB_PIXEL_POSITIONS:
            return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
        return F.conv_transpose2d(x, sub_pixel_weight(weight), bias, stride=2, padding=1)


class WholeUpBlock(WholeUpsample, UpBlock):
    """Upsampling on the whole map, with its shortcut. It leaves x as it is, which tiles share."""

    def forward_whole(self, x: Tensor) -> Tensor:
        if not self.is_whole(x):
            return self.forward_inplace(x)
        rows, columns = square_of(self.repeats)
        with cast_weights(self.conv, x) as (weight, bias):
            out = self.convolved(x, weight, bias if self.pixel_shuffle else None)
            if not self.pixel_shuffle:  # the bias reaches every position with the shortcut, which is smaller
                x = x + bias.repeat_interleave(rows * columns)[:, None, None]
        values = x.repeat_interleave(self.repeats // 4, dim=1) if self.repeats > 4 else x
        squares(out).add_(unshuffled(values, rows, columns))
        return out
