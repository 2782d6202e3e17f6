"""DC-AE f32c32, the deep compression autoencoder of SANA.

Source: DC-AE, arXiv 2410.10733, and for the decoder of DC-AE-Lite dc-ai-projects/DC-Gen; module names are those of
diffusers' AutoencoderDC, so its files load as they are.
Not here: the latent scale (`latent_formats.py`), tiling and memory (`vae.py`), NVIDIA's key names (`convert.py`).
"""

from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DCAEConfig, DCAEHalfConfig
from .layers import GLUMBConv, linear_attention

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

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = x.permute(0, 2, 3, 1)
        qkv = torch.cat([self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)], dim=-1).permute(0, 3, 1, 2)
        qkv = torch.cat([qkv] + [scale(qkv) for scale in self.to_qkv_multiscale], dim=1)
        q, k, v = qkv.reshape(x.shape[0], -1, 3 * self.head_dim, height * width).chunk(3, dim=2)  # (B, h, d, N)
        # With fewer tokens than channels the N x N form is the cheaper one, and the one the weights were trained with.
        attend = linear_attention if height * width > self.head_dim else quadratic_attention
        out = attend(q, k, v, eps=ATTENTION_EPS).to(x.dtype)
        out = self.to_out(out.reshape(x.shape[0], -1, height, width).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.norm_out(out)


def quadratic_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """The same attention as `linear_attention` by way of the N x N scores. q, k, v: (B, h, d, N)."""
    scores = (F.relu(k).transpose(-1, -2) @ F.relu(q)).float()  # (B, h, N keys, N queries)
    scores = scores / (scores.sum(dim=2, keepdim=True) + eps)
    return v @ scores.to(v.dtype)


class ConvOut(GLUMBConv):
    """GLUMBConv of DC-AE: expansion 4, a norm after it, and a residual."""

    def __init__(self, channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__(channels, 4 * channels, dtype, device, operations)
        self.norm = RMSNorm2d(channels, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(super().forward(x))


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

    def forward(self, x: Tensor) -> Tensor:
        if self.pixel_shuffle:
            return F.pixel_shuffle(self.conv(x), 2)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UpBlock(Upsample):
    """Upsampling with a channel-to-space shortcut. (B, C, H, W) -> (B, D, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, *args, **kwargs):
        super().__init__(in_channels, out_channels, *args, **kwargs)
        self.repeats = 4 * out_channels // in_channels

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.pixel_shuffle(x.repeat_interleave(self.repeats, dim=1), 2)


def stage_blocks(half: DCAEHalfConfig, stage: int, head_dim: int, dtype, device, operations: Any) -> list[nn.Module]:
    width, layers = half.widths[stage], half.layers[stage]
    if half.block_types[stage] == "ResBlock":
        return [ResBlock(width, dtype, device, operations) for _ in range(layers)]
    return [
        EfficientViTBlock(width, head_dim, half.kernel_sizes[stage], dtype, device, operations) for _ in range(layers)
    ]


class Encoder(nn.Module):
    """Image in [-1, 1], (B, 3, H, W) -> raw latent (B, 32, H/32, W/32); H and W are multiples of 32."""

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        half, kw = config.encoder, {"dtype": dtype, "device": device}
        self.latent_channels = config.latent_channels
        self.conv_in = operations.Conv2d(config.image_channels, half.widths[0], 3, padding=1, **kw)
        self.down_blocks = nn.ModuleList()
        for stage, width in enumerate(half.widths):
            blocks = stage_blocks(half, stage, config.attention_head_dim, dtype, device, operations)
            if stage + 1 < len(half.widths):
                blocks.append(DownBlock(width, half.widths[stage + 1], dtype, device, operations))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.conv_out = operations.Conv2d(half.widths[-1], config.latent_channels, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(x) + x.unflatten(1, (self.latent_channels, -1)).mean(dim=2)


class Decoder(nn.Module):
    """Raw latent (B, 32, H/32, W/32) -> image about [-1, 1], (B, 3, H, W), not clamped."""

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        half, kw = config.decoder, {"dtype": dtype, "device": device}
        self.repeats = half.widths[-1] // config.latent_channels
        self.conv_in = operations.Conv2d(config.latent_channels, half.widths[-1], 3, padding=1, **kw)
        self.up_blocks = nn.ModuleList()
        for stage, width in enumerate(half.widths):
            blocks = stage_blocks(half, stage, config.attention_head_dim, dtype, device, operations)
            if blocks and stage + 1 < len(half.widths):
                blocks.insert(
                    0, UpBlock(half.widths[stage + 1], width, half.pixel_shuffle, operations=operations, **kw)
                )
            self.up_blocks.append(nn.Sequential(*blocks))
        self.activation = {"relu": F.relu, "silu": F.silu}[config.out_activation]
        if half.layers[0]:
            self.norm_out = RMSNorm2d(half.widths[0], **kw)
            self.conv_out = operations.Conv2d(half.widths[0], config.image_channels, 3, padding=1, **kw)
        else:
            self.norm_out = RMSNorm2d(half.widths[1], **kw)
            self.conv_out = Upsample(
                half.widths[1], config.image_channels, half.pixel_shuffle, operations=operations, **kw
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x) + x.repeat_interleave(self.repeats, dim=1)
        for stage in reversed(self.up_blocks):  # numbered by width, run from the latent up
            x = stage(x)
        return self.conv_out(self.activation(self.norm_out(x)))


class AutoencoderDC(nn.Module):
    """DC-AE with raw latents: `encode` and `decode` apply no scaling factor.

    Both run channels last: norms and attention work along the channels, and no layer then has to change the layout.
    """

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, dtype, device, operations)
        self.decoder = Decoder(config, dtype, device, operations)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x.contiguous(memory_format=torch.channels_last))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.contiguous(memory_format=torch.channels_last))
