"""The blocks of DC-AE: RMSNorm, residual blocks, multi-scale linear attention, and changes of resolution.

Plain torch, for training, for compilers and on any device. `inplace_layers.py` computes the same in less memory.
Source: DC-AE, arXiv 2410.10733; EfficientViT, arXiv 2205.14756; for pixel shuffle dc-ai-projects/DC-Gen.
Letters: B images, C and D channels, H and W rows and columns, N = H W tokens, h heads of d channels.
"""

from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import linear_attention

ATTENTION_EPS = 1e-15


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


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a norm after the second, and a residual. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.conv1 = operations.Conv2d(channels, channels, 3, padding=1, **kw)
        self.conv2 = operations.Conv2d(channels, channels, 3, padding=1, bias=False, **kw)
        self.norm = RMSNorm2d(channels, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv2(F.silu(self.conv1(x))))


class MultiscaleProjection(nn.Module):
    """Aggregates neighboring q, k and v tokens: depthwise k x k, then a 1x1 convolution inside each head."""

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

    def project(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (BHW, 3C)."""
        # Flat, because torch copies the weights for each row of a product with more dimensions.
        tokens = x.permute(0, 2, 3, 1).flatten(0, 2)
        return torch.cat([self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        qkv = self.project(x).unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)
        qkv = torch.cat([qkv] + [scale(qkv) for scale in self.to_qkv_multiscale], dim=1)
        q, k, v = qkv.reshape(x.shape[0], -1, 3 * self.head_dim, height * width).chunk(3, dim=2)  # (B, h, d, N)
        # With fewer tokens than channels the N x N form is the cheaper one, and the one the weights were trained with.
        attend = linear_attention if height * width > self.head_dim else quadratic_attention
        out = attend(q, k, v, eps=ATTENTION_EPS).to(x.dtype)
        out = self.to_out(out.reshape(x.shape[0], -1, height, width).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.norm_out(out)


def quadratic_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """The same attention as `linear_attention`, through its N x N scores. q, k, v: (B, h, d, N)."""
    scores = (F.relu(k).transpose(-1, -2) @ F.relu(q)).float()  # (B, h, N keys, N queries)
    scores = scores / (scores.sum(dim=2, keepdim=True) + eps)
    return v @ scores.to(v.dtype)


class GLUMBConv(nn.Module):
    """Inverted bottleneck with a 3x3 depthwise convolution and a SiLU gate; expansion 4, a norm and a residual.

    (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        hidden = 4 * channels
        self.conv_inverted = operations.Conv2d(channels, 2 * hidden, 1, **kw)
        self.conv_depth = operations.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, **kw)
        self.conv_point = operations.Conv2d(hidden, channels, 1, bias=False, **kw)
        self.norm = RMSNorm2d(channels, **kw)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.conv_point(F.silu(gate) * value))


class EfficientViTBlock(nn.Module):
    """Multi-scale linear attention followed by GLUMBConv. (B, C, H, W) -> (B, C, H, W)."""

    attention: type[nn.Module] = MultiscaleLinearAttention
    feed_forward: type[nn.Module] = GLUMBConv

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
        self.attn = self.attention(channels, head_dim, kernel_sizes, dtype, device, operations)
        self.conv_out = self.feed_forward(channels, dtype, device, operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))


class DownBlock(nn.Module):
    """Strided 3x3 convolution with a space-to-channel shortcut. (B, C, H, W) -> (B, D, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        self.out_channels = out_channels
        self.conv = operations.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pixel_unshuffle(x, 2).unflatten(1, (self.out_channels, -1)).mean(dim=2)
        return self.conv(x) + shortcut


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
        width = 4 * out_channels if pixel_shuffle else out_channels
        self.conv = operations.Conv2d(in_channels, width, 3, padding=1, dtype=dtype, device=device)

    def upsample(self, x: Tensor) -> Tensor:
        if self.pixel_shuffle:
            return F.pixel_shuffle(self.conv(x), 2)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x)


class UpBlock(Upsample):
    """Upsampling with a channel-to-space shortcut. (B, C, H, W) -> (B, D, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, *args, **kwargs):
        super().__init__(in_channels, out_channels, *args, **kwargs)
        self.repeats = 4 * out_channels // in_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x) + F.pixel_shuffle(x.repeat_interleave(self.repeats, dim=1), 2)
