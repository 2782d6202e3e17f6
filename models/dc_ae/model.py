"""DC-AE f32c32, the deep compression autoencoder of SANA.

Source: DC-AE, arXiv 2410.10733, and for the decoder of DC-AE-Lite dc-ai-projects/DC-Gen; module names are those of
diffusers' AutoencoderDC, so its files load as they are.
Not here: the blocks (`layers.py`), the latent scale (`latent_formats.py`), whether there is memory for the whole
(`vae.py`), NVIDIA's key names (`convert.py`).
"""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.cpu import winograd
from ..runtime.cpu.malloc import raise_mmap_threshold
from ..runtime.overwrite import can_overwrite
from ..runtime.row_bands import empty_map, in_parts
from .config import DCAEConfig, DCAEHalfConfig
from .exact_tiling import Stage, run_in_tiles
from .layers import DownBlock, EfficientViTBlock, ResBlock, RMSNorm2d, UpBlock, Upsample

FINE_STAGES = 3  # run in tiles at most: the coarser ones are small
SQUARES_CHANNELS = 256  # with fewer, squares are no faster than rows in bfloat16
# Positions beyond its reach that a decode's tile reads at each stage: Winograd's convolutions round edges otherwise.
ROUNDED = 2


def encoder_winograds() -> dict[torch.dtype, type]:
    """In bfloat16 none: they round otherwise near a tile's edge, and attention spreads that over the whole latent."""
    return {torch.float32: winograd.Squares}


def decoder_winograds(half: DCAEHalfConfig, stage: int) -> dict[torch.dtype, type]:
    """In bfloat16 squares behind attention, which has rounded more; where there is none they would cost 10 dB."""
    rounded = any(kind != "ResBlock" for kind in half.block_types[stage:])
    squares = rounded and half.widths[stage] >= SQUARES_CHANNELS
    return encoder_winograds() | {torch.bfloat16: winograd.Squares if squares else winograd.Rows}


def stage_blocks(
    half: DCAEHalfConfig,
    stage: int,
    head_dim: int,
    winograds: Mapping[torch.dtype, type],
    dtype,
    device,
    operations: Any,
) -> list[nn.Module]:
    width, layers = half.widths[stage], half.layers[stage]
    if half.block_types[stage] == "ResBlock":
        return [ResBlock(width, winograds, dtype, device, operations) for _ in range(layers)]
    return [
        EfficientViTBlock(width, head_dim, half.kernel_sizes[stage], dtype, device, operations) for _ in range(layers)
    ]


def fine_stages(half: DCAEHalfConfig) -> int:
    """How many stages can run in tiles: those from full resolution to the first attention, and no more than three."""
    return next((stage for stage in range(FINE_STAGES) if half.block_types[stage] != "ResBlock"), FINE_STAGES)


def reach_of(blocks: Iterable[nn.Module]) -> int:
    return sum(block.reach for block in blocks)


def run(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The blocks one after another, in place where nobody asks for what is between them."""
    for block in blocks:
        x = x.contiguous(memory_format=torch.channels_last)  # 1 x 1 positions have no layout that a layer would keep
        if not can_overwrite():
            x = block(x)
        else:  # those without a way in place are 3x3 convolutions
            x = (
                block.forward_inplace(x)
                if hasattr(block, "forward_inplace")
                else in_parts(block, x, block.out_channels)
            )
    return x


class Encoder(nn.Module):
    """Image in [-1, 1], (B, 3, H, W) -> raw latent (B, 32, H/32, W/32); H and W are multiples of 32."""

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        half, kw = config.encoder, {"dtype": dtype, "device": device}
        self.latent_channels = config.latent_channels
        self.conv_in = operations.Conv2d(config.image_channels, half.widths[0], 3, padding=1, **kw)
        self.down_blocks = nn.ModuleList()
        for stage, width in enumerate(half.widths):
            blocks = stage_blocks(
                half, stage, config.attention_head_dim, encoder_winograds(), dtype, device, operations
            )
            if stage + 1 < len(half.widths):
                blocks.append(DownBlock(width, half.widths[stage + 1], dtype, device, operations))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.conv_out = operations.Conv2d(half.widths[-1], config.latent_channels, 3, padding=1, **kw)
        self.fine = fine_stages(half)

    def forward(self, x: Tensor, side: int | None = None) -> Tensor:
        """side: of the exact tiles in px; None for the whole."""
        if side is None or not self.fine:
            x = run(chain([self.conv_in], *self.down_blocks), x)
        else:
            x = run(chain(*self.down_blocks[self.fine :]), self.fine_in_tiles(x, side))
        return self.conv_out(x) + x.unflatten(1, (self.latent_channels, -1)).mean(dim=2)

    def fine_in_tiles(self, x: Tensor, side: int) -> Tensor:
        stages = [Stage(partial(run, blocks), reach_of(blocks)) for blocks in self.down_blocks[: self.fine]]
        stages[0] = Stage(lambda x: run(chain([self.conv_in], self.down_blocks[0]), x), stages[0].reach + 1)
        channels, scale = self.down_blocks[self.fine - 1][-1].out_channels, 2**self.fine
        out = empty_map(x, channels, x.shape[2] // scale, x.shape[3] // scale)
        return run_in_tiles(x, out, stages, max(side // scale, 1), upwards=False)


class Decoder(nn.Module):
    """Raw latent (B, 32, H/32, W/32) -> image about [-1, 1], (B, 3, H, W), not clamped."""

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        half, kw = config.decoder, {"dtype": dtype, "device": device}
        self.repeats = half.widths[-1] // config.latent_channels
        self.image_channels = config.image_channels
        self.fine = fine_stages(half)
        self.conv_in = operations.Conv2d(config.latent_channels, half.widths[-1], 3, padding=1, **kw)
        self.up_blocks = nn.ModuleList()
        for stage, width in enumerate(half.widths):
            winograds = decoder_winograds(half, stage)
            blocks = stage_blocks(half, stage, config.attention_head_dim, winograds, dtype, device, operations)
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

    def forward(self, x: Tensor, side: int | None = None) -> Tensor:
        """side: of the exact tiles in px; None for the whole."""
        x = self.conv_in(x) + x.repeat_interleave(self.repeats, dim=1)
        # Stages are numbered from full resolution and run from the latent up.
        if side is None or not self.fine:
            return self.finish(run(chain(*reversed(self.up_blocks)), x))
        return self.fine_in_tiles(run(chain(*reversed(self.up_blocks[self.fine :])), x), side)

    def fine_in_tiles(self, x: Tensor, side: int) -> Tensor:
        fine = reversed(self.up_blocks[: self.fine])
        stages = [Stage(partial(run, blocks), reach_of(blocks) + ROUNDED) for blocks in fine]
        last = stages[-1].reach + getattr(self.conv_out, "reach", 1)
        stages[-1] = Stage(lambda x: self.finish(run(self.up_blocks[0], x)), last)
        scale = 2**self.fine
        out = empty_map(x, self.image_channels, x.shape[2] * scale, x.shape[3] * scale)
        return run_in_tiles(x, out, stages, side, upwards=True)

    def finish(self, x: Tensor) -> Tensor:
        if not can_overwrite():
            return self.conv_out(self.activation(self.norm_out(x)))
        x = x.contiguous(memory_format=torch.channels_last)
        for values, tokens in self.norm_out.normalised(x):
            tokens.copy_(self.activation(values))
        return run([self.conv_out], x)


class AutoencoderDC(nn.Module):
    """DC-AE with raw latents: `encode` and `decode` apply no scaling factor.

    Both run channels last: norms and attention work along the channels, and no layer then has to change the layout.
    """

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, dtype, device, operations)
        self.decoder = Decoder(config, dtype, device, operations)

    def encode(self, x: Tensor, side: int | None = None) -> Tensor:
        raise_mmap_threshold()
        return self.encoder(x.contiguous(memory_format=torch.channels_last), side)

    def decode(self, z: Tensor, side: int | None = None) -> Tensor:
        raise_mmap_threshold()
        return self.decoder(z.contiguous(memory_format=torch.channels_last), side)
