"""What SANA's blocks are given beside the image: time, guidance, caption and position embeddings, and the modulation.

Source: SANA, arXiv 2410.10629 section 3.2; adaLN-single, PixArt-alpha, arXiv 2310.00426 section 2.3.
"""

from typing import Any

import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.ops import CastWeightBiasOp, cast_bias_weight, cast_to_input, uncast_bias_weight
from torch import Tensor, nn

from .config import SanaConfig

FREQUENCY_CHANNELS = 256  # sinusoid width of the time and guidance embeddings
LAYER_NORM_EPS = 1e-6


def position_encoding(size: int, channels: int, step: float, device, dtype: torch.dtype) -> Tensor:
    """Sines, then cosines, of the positions 0, step, 2 * step, ...: (size, channels) in float32, computed in dtype."""
    kw, half = {"device": device, "dtype": dtype}, channels // 2
    omega = 10000.0 ** -(torch.arange(half, **kw) / half)
    angle = (torch.arange(size, **kw) * step)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def add_position_embedding(x: Tensor, grid: tuple[int, int], base_size: int, scale: float) -> Tensor:
    """Adds a 2-D sine-cosine table to x (B, H * W, C), in place: to the first half of C the column, then the row.

    Coordinates are stretched so that any grid spans [0, base_size / scale), which keeps 2K and 4K models valid off
    their native shape. Computed anew for every grid: a cache keyed on the token count would confuse H x W with W x H.
    """
    # On another device in float32, within 1e-5: not every device has float64, and a table from the CPU would have to be
    # waited for.
    dtype = torch.float64 if x.device.type == "cpu" else torch.float32
    height, width = grid
    rows, columns = (
        position_encoding(size, x.shape[-1] // 2, base_size / (size * scale), x.device, dtype) for size in grid
    )
    by_position, half = x.view(-1, height, width, x.shape[-1]), x.shape[-1] // 2
    by_position[..., :half].add_(columns)  # slices, since autograd forbids writing into the views of chunk
    by_position[..., half:].add_(rows[:, None])
    return x


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Affine-free LayerNorm over C, then scale and shift. x: (B, N, C); shift, scale: (B, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS), 1 + scale)


class MLPEmbedder(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, in_channels: int, hidden_size: int, activation, dtype=None, device=None, operations: Any = None):
        super().__init__()
        self.linear_1 = operations.Linear(in_channels, hidden_size, dtype=dtype, device=device)
        self.linear_2 = operations.Linear(hidden_size, hidden_size, dtype=dtype, device=device)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class TimeEmbed(nn.Module):
    """adaLN-single: one projection of the time (and in SANA-Sprint of the guidance scale) shared by all blocks.

    forward: timesteps (B,), guidance (B,) or None -> modulation (B, 6, C), embedding (B, C).
    """

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device, "operations": operations}
        self.guidance_scale = config.guidance_embeds_scale
        if config.guidance_embeds:
            self.timestep_embedder = MLPEmbedder(FREQUENCY_CHANNELS, size, F.silu, **kw)
            self.guidance_embedder = MLPEmbedder(FREQUENCY_CHANNELS, size, F.silu, **kw)
        else:
            self.emb = nn.Module()  # a level more, as in the checkpoints without guidance
            self.emb.timestep_embedder = MLPEmbedder(FREQUENCY_CHANNELS, size, F.silu, **kw)
        self.linear = operations.Linear(size, 6 * size, dtype=dtype, device=device)

    def forward(self, timesteps: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        embedder = self.timestep_embedder if hasattr(self, "guidance_embedder") else self.emb.timestep_embedder
        embedding = embedder(timestep_embedding(timesteps, FREQUENCY_CHANNELS).to(dtype))
        if hasattr(self, "guidance_embedder"):
            scaled = guidance * self.guidance_scale
            embedding = embedding + self.guidance_embedder(timestep_embedding(scaled, FREQUENCY_CHANNELS).to(dtype))
        return self.linear(F.silu(embedding)).unflatten(1, (6, -1)), embedding


class ScaleShiftTable(nn.Module, CastWeightBiasOp):
    """A block's own offset to the modulation that all blocks share.

    A layer of its own with the host's way of casting, because the host merges, patches and moves the parameters of
    such layers only.
    forward: modulation (B, n, C), or one row (B, 1, C) for all -> n tensors (B, 1, C).
    """

    def __init__(self, rows: int, hidden_size: int, dtype=None, device=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, hidden_size, dtype=dtype, device=device))
        self.register_parameter("bias", None)
        self.weight_function, self.bias_function = [], []

    def forward(self, modulation: Tensor) -> tuple[Tensor, ...]:
        if not (self.comfy_cast_weights or self.weight_function):
            return (cast_to_input(self.weight, modulation) + modulation).chunk(len(self.weight), dim=1)
        weight, bias, stream = cast_bias_weight(self, modulation, offloadable=True)
        out = weight + modulation
        uncast_bias_weight(self, weight, bias, stream)
        return out.chunk(len(self.weight), dim=1)
