"""DC-AE f32c32, the deep compression autoencoder of SANA.

Source: DC-AE, arXiv 2410.10733, and for the decoder of DC-AE-Lite dc-ai-projects/DC-Gen; module names are those of
diffusers' AutoencoderDC, so its files load as they are.
Not here: the blocks (`layers.py`), the network as nodes run it, in place and in tiles (`inplace.py`), the latent scale
(`latent_formats.py`), NVIDIA's key names (`convert.py`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DCAEConfig, DCAEHalfConfig
from .layers import DownBlock, EfficientViTBlock, ResBlock, RMSNorm2d, UpBlock, Upsample


class Half(nn.Module):
    """What encoder and decoder share: the classes of their layers, and how a stage is made of them."""

    res_block: type[nn.Module] = ResBlock
    vit_block: type[nn.Module] = EfficientViTBlock
    down_block: type[nn.Module] = DownBlock
    up_block: type[nn.Module] = UpBlock
    upsample: type[nn.Module] = Upsample

    def blocks(self, half: DCAEHalfConfig, stage: int, head_dim: int, **kw) -> list[nn.Module]:
        width, layers = half.widths[stage], half.layers[stage]
        if half.block_types[stage] == "ResBlock":
            return [self.res_block(width, **kw) for _ in range(layers)]
        return [self.vit_block(width, head_dim, half.kernel_sizes[stage], **kw) for _ in range(layers)]


class Encoder(Half):
    """Image in [-1, 1], (B, 3, H, W) -> raw latent (B, 32, H/32, W/32); H and W are multiples of 32."""

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        half, kw = config.encoder, {"dtype": dtype, "device": device}
        self.latent_channels = config.latent_channels
        self.conv_in = operations.Conv2d(config.image_channels, half.widths[0], 3, padding=1, **kw)
        self.down_blocks = nn.ModuleList()
        for stage, width in enumerate(half.widths):
            blocks = self.blocks(half, stage, config.attention_head_dim, operations=operations, **kw)
            if stage + 1 < len(half.widths):
                blocks.append(self.down_block(width, half.widths[stage + 1], operations=operations, **kw))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.conv_out = operations.Conv2d(half.widths[-1], config.latent_channels, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for blocks in self.down_blocks:
            x = blocks(x)
        return self.to_latent(x)

    def to_latent(self, x: Tensor) -> Tensor:
        return self.conv_out(x) + x.unflatten(1, (self.latent_channels, -1)).mean(dim=2)


class Decoder(Half):
    """Raw latent (B, 32, H/32, W/32) -> image about [-1, 1], (B, 3, H, W), not clamped."""

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        half, kw = config.decoder, {"dtype": dtype, "device": device}
        self.repeats = half.widths[-1] // config.latent_channels
        self.conv_in = operations.Conv2d(config.latent_channels, half.widths[-1], 3, padding=1, **kw)
        self.up_blocks = nn.ModuleList()  # numbered from full resolution, run from the latent up
        for stage, width in enumerate(half.widths):
            blocks = self.blocks(half, stage, config.attention_head_dim, operations=operations, **kw)
            if blocks and stage + 1 < len(half.widths):
                up = self.up_block(half.widths[stage + 1], width, half.pixel_shuffle, operations=operations, **kw)
                blocks.insert(0, up)
            self.up_blocks.append(nn.Sequential(*blocks))
        self.activation = {"relu": F.relu, "silu": F.silu}[config.out_activation]
        last = half.widths[0] if half.layers[0] else half.widths[1]
        self.norm_out = RMSNorm2d(last, **kw)
        if half.layers[0]:
            self.conv_out = operations.Conv2d(last, config.image_channels, 3, padding=1, **kw)
        else:
            shuffle = half.pixel_shuffle
            self.conv_out = self.upsample(last, config.image_channels, shuffle, operations=operations, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x = self.from_latent(x)
        for blocks in reversed(self.up_blocks):
            x = blocks(x)
        return self.conv_out(self.activation(self.norm_out(x)))

    def from_latent(self, x: Tensor) -> Tensor:
        return self.conv_in(x) + x.repeat_interleave(self.repeats, dim=1)


class AutoencoderDC(nn.Module):
    """DC-AE with raw latents: `encode` and `decode` apply no scaling factor.

    Both run channels last: norms and attention work along the channels, and no layer then has to change the layout.
    """

    encoder_class: type[Encoder] = Encoder
    decoder_class: type[Decoder] = Decoder

    def __init__(self, config: DCAEConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        self.config = config
        self.encoder = self.encoder_class(config, dtype, device, operations)
        self.decoder = self.decoder_class(config, dtype, device, operations)

    def encode(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> latent (B, 32, H/32, W/32)."""
        return self.encoder(x.contiguous(memory_format=torch.channels_last))

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, 32, h, w) -> image (B, 3, 32h, 32w)."""
        return self.decoder(z.contiguous(memory_format=torch.channels_last))
