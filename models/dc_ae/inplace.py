"""DC-AE as nodes run it: in place, in exact tiles, in row bands, on a CPU with Winograd's convolutions; and on a CUDA
device with whole maps in the place of both.

Chosen once, by the loader; same keys and values as `model.py`. Wherever a gradient is wanted, a compiler plans the
memory, or a layer is hooked or not the host's plain one, the plain forward takes its place.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import comfy.model_management
import torch
from torch import Tensor, nn

from ..runtime.cpu import winograd
from ..runtime.cpu.malloc import raise_mmap_threshold
from ..runtime.cuda_graph import GraphCache
from ..runtime.layer_weights import cast_weights
from ..runtime.overwrite import can_overwrite
from ..runtime.row_bands import empty_map
from .config import DCAEConfig, DCAEHalfConfig
from .cuda_layers import (
    WholeAttention,
    WholeDownBlock,
    WholeGLUMBConv,
    WholeResBlock,
    WholeUpBlock,
    WholeUpsample,
    is_whole,
    normalized,
)
from .exact_tiling import Stage, run_in_tiles
from .inplace_layers import (
    InplaceAttention,
    InplaceDownBlock,
    InplaceEfficientViTBlock,
    InplaceGLUMBConv,
    InplaceResBlock,
    InplaceUpBlock,
    InplaceUpsample,
    activate_normalized_,
    add_normalized_,
    is_unmodified,
    run,
)
from .memory_estimate import DEVICE, TILE_SIZES
from .model import AutoencoderDC, Decoder, Encoder, Half

logger = logging.getLogger(__name__)

TILED_STAGES = 3  # at most: the coarser ones are small
SQUARES_CHANNELS = 256  # with fewer, squares are no faster than rows in bfloat16
UNIT = winograd.RESULTS  # positions that Winograd's convolutions compute together
# Halo of a decode's tile at each stage beyond what it depends on: Winograd's convolutions round edges differently.
ROUNDING_HALO = 2


def encoder_winograds() -> dict[torch.dtype, type]:
    """In bfloat16 none: they round differently near a tile's edge, and attention spreads that over the whole latent."""
    return {torch.float32: winograd.Squares}


def decoder_winograds(half: DCAEHalfConfig, stage: int) -> dict[torch.dtype, type]:
    """In bfloat16 squares after attention, which has rounded more; in a decoder without it they would cost 10 dB."""
    rounded = any(kind != "ResBlock" for kind in half.block_types[stage:])
    squares = rounded and half.widths[stage] >= SQUARES_CHANNELS
    return encoder_winograds() | {torch.bfloat16: winograd.Squares if squares else winograd.Rows}


def tiled_stages(half: DCAEHalfConfig) -> int:
    """How many stages can run in tiles: those from full resolution to the first attention, and no more than three."""
    return next((stage for stage in range(TILED_STAGES) if half.block_types[stage] != "ResBlock"), TILED_STAGES)


def halos_of(stages: Iterable[Iterable[nn.Module]]) -> list[int]:
    """Of each stage, counted in the finer of its two resolutions."""
    return [sum(block.halo for block in blocks) for blocks in stages]


class WinogradResBlock(InplaceResBlock):
    """Residual block with Winograd's convolutions where they are faster. winograds: which of them, by format."""

    winograds: Mapping[torch.dtype, type] = {}

    def forward_inplace(self, x: Tensor) -> Tensor:
        if x.dtype not in self.winograds or not winograd.is_faster(x):
            return super().forward_inplace(x)
        add_ = partial(add_normalized_, self.norm)
        with cast_weights(self.conv1, x) as first, cast_weights(self.conv2, x) as second:
            weights, biases = zip(first, second)
            for image in x.split(1):
                winograd.res_block_(image, weights, biases, add_, self.winograds[x.dtype])
        return x


class InplaceHalf(Half):
    """The classes of an encoder's or decoder's layers that work in place."""

    res_block, vit_block = WinogradResBlock, InplaceEfficientViTBlock
    down_block, up_block, upsample = InplaceDownBlock, InplaceUpBlock, InplaceUpsample

    def set_winograds(self, blocks: nn.Module, winograds: Mapping[torch.dtype, type]) -> None:
        for block in blocks:
            if isinstance(block, WinogradResBlock):
                block.winograds = winograds


class InplaceEncoder(InplaceHalf, Encoder):
    """Encoder that works in place, and in exact tiles where it is told to."""

    def __init__(self, config: DCAEConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.tiled = tiled_stages(config.encoder)
        self.halos, self.widths = halos_of(self.down_blocks[: self.tiled]), config.encoder.widths
        for blocks in self.down_blocks:
            self.set_winograds(blocks, encoder_winograds())

    def forward(self, x: Tensor, tile_size: int | None = None) -> Tensor:
        """tile_size: of the exact tiles in px; None for the whole."""
        if tile_size is None and not can_overwrite():
            return super().forward(x)
        if tile_size is None or not self.tiled:
            return self.to_latent(run([self.conv_in, *self.down_blocks], x))
        x = self.fine_in_tiles(x, tile_size)
        return self.to_latent(run(self.down_blocks[self.tiled :], x, attention_in_bands=True))

    def fine_in_tiles(self, x: Tensor, tile_size: int) -> Tensor:
        groups = [[blocks] for blocks in self.down_blocks[: self.tiled]]
        groups[0].insert(0, self.conv_in)
        halos = [self.halos[0] + 1, *self.halos[1:]]
        stages = [Stage(partial(run, group), halo, UNIT) for group, halo in zip(groups, halos, strict=True)]
        scale = 2**self.tiled
        out = empty_map(x, self.widths[self.tiled], x.shape[2] // scale, x.shape[3] // scale)
        return run_in_tiles(x, out, stages, max(tile_size // scale, 1), upwards=False)


class InplaceDecoder(InplaceHalf, Decoder):
    """Decoder that works in place, and in exact tiles where it is told to."""

    def __init__(self, config: DCAEConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.tiled, self.image_channels = tiled_stages(config.decoder), config.image_channels
        self.halos = halos_of(self.up_blocks[: self.tiled])
        self.last_halo = getattr(self.conv_out, "halo", 1)
        for stage, blocks in enumerate(self.up_blocks):
            self.set_winograds(blocks, decoder_winograds(config.decoder, stage))

    def forward(self, x: Tensor, tile_size: int | None = None) -> Tensor:
        """tile_size: of the exact tiles in px; None for the whole."""
        if tile_size is None and not can_overwrite():
            return super().forward(x)
        x = self.from_latent(x)
        if tile_size is None or not self.tiled:
            return self.to_image(run(reversed(self.up_blocks), x))
        x = run(reversed(self.up_blocks[self.tiled :]), x, attention_in_bands=True)
        return self.fine_in_tiles(x, tile_size)

    def fine_in_tiles(self, x: Tensor, tile_size: int) -> Tensor:
        fine = zip(self.up_blocks[: self.tiled], self.halos, strict=True)
        stages = [Stage(partial(run, [blocks]), halo + ROUNDING_HALO, UNIT) for blocks, halo in reversed(list(fine))]
        last = stages[-1]
        stages[-1] = Stage(lambda x: self.to_image(last.run(x)), last.halo + self.last_halo, UNIT)
        scale = 2**self.tiled
        out = empty_map(x, self.image_channels, x.shape[2] * scale, x.shape[3] * scale)
        return run_in_tiles(x, out, stages, tile_size, upwards=True)

    def to_image(self, x: Tensor) -> Tensor:
        """The last norm, activation and convolution."""
        if can_overwrite() and is_unmodified(self.norm_out):
            x = self.activate_normalized(x)
        else:
            x = self.activation(self.norm_out(x))
        return run([self.conv_out], x)

    def activate_normalized(self, x: Tensor) -> Tensor:
        """The last norm and activation of x, which may be overwritten."""
        return activate_normalized_(self.norm_out, self.activation, x)


class InplaceAutoencoderDC(AutoencoderDC):
    """DC-AE that works in place, in exact tiles where it is told to, and in smaller ones when memory runs out.

    tile_size: of the exact tiles in px; None for the whole. sums: None, or a list that gets every decoded image's sum.
    """

    encoder_class, decoder_class = InplaceEncoder, InplaceDecoder
    tile_size: int | None = None
    sums: list[Tensor] | None = None

    def encode(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> latent (B, 32, H/32, W/32)."""
        return self.retry_smaller_tiles(self.encoder, x, max(x.shape[2:]))

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, 32, h, w) -> image (B, 3, 32h, 32w)."""
        ratio = 2 ** (len(self.config.decoder.widths) - 1)
        image = self.retry_smaller_tiles(self.decoder, z, max(z.shape[2:]) * ratio)
        if self.sums is not None:
            self.sums.append(image.sum(dtype=torch.float32))
        return image

    def retry_smaller_tiles(self, half: Callable, x: Tensor, size: int) -> Tensor:
        """half(x, tile size), smaller tiles when memory runs out. Raises what the smallest tiles raise."""
        x = x.contiguous(memory_format=torch.channels_last)
        if torch.compiler.is_compiling():
            return half(x, self.tile_size)
        smaller = [other for other in TILE_SIZES if other < (self.tile_size or size)]
        for tile_size in (self.tile_size, *smaller):
            try:
                return half(x, tile_size)
            except Exception as error:
                comfy.model_management.raise_non_oom(error)
                if not smaller or tile_size == smaller[-1]:
                    raise
            # Out of the except block, where the error no longer holds the tensors of its frames.
            comfy.model_management.soft_empty_cache()
            tried = "for the whole image" if tile_size is None else f"at {tile_size} px"
            logger.info("SANA: out of memory %s, so smaller tiles are tried", tried)


class CudaResBlock(WholeResBlock, WinogradResBlock):
    """Residual block on the whole map on a CUDA device."""


class CudaAttention(WholeAttention, InplaceAttention):
    """Attention on the whole map on a CUDA device."""


class CudaGLUMBConv(WholeGLUMBConv, InplaceGLUMBConv):
    """GLUMBConv on the whole map on a CUDA device."""


class CudaEfficientViTBlock(InplaceEfficientViTBlock):
    """Attention and GLUMBConv on the whole map on a CUDA device."""

    attention, feed_forward = CudaAttention, CudaGLUMBConv

    def forward_whole(self, x: Tensor) -> Tensor:
        return self.conv_out.forward_whole(self.attn.forward_whole(x))


class CudaDownBlock(WholeDownBlock, InplaceDownBlock):
    """Downsampling on the whole map on a CUDA device."""


class CudaUpsample(WholeUpsample, InplaceUpsample):
    """Upsampling on the whole map on a CUDA device."""


class CudaUpBlock(WholeUpBlock, InplaceUpBlock):
    """Upsampling with its shortcut on the whole map on a CUDA device."""


class CudaHalf(InplaceHalf):
    """The classes of an encoder's or decoder's layers that work on whole maps on a CUDA device."""

    res_block, vit_block = CudaResBlock, CudaEfficientViTBlock
    down_block, up_block, upsample = CudaDownBlock, CudaUpBlock, CudaUpsample


class CudaEncoder(CudaHalf, InplaceEncoder):
    """Encoder whose layers work on whole maps on a CUDA device."""


class CudaDecoder(CudaHalf, InplaceDecoder):
    """Decoder whose layers work on whole maps on a CUDA device. graphs: where a whole decode is replayed from."""

    graphs: GraphCache | None = None

    def forward(self, x: Tensor, tile_size: int | None = None) -> Tensor:
        if self.graphs is None or tile_size is not None or torch.compiler.is_compiling():
            return super().forward(x, tile_size)
        return self.graphs.run(self, super().forward, {"x": x})

    def activate_normalized(self, x: Tensor) -> Tensor:
        if not is_whole(x, x.shape[1]):
            return super().activate_normalized(x)
        return self.activation(normalized(self.norm_out, x), inplace=True)


class CudaAutoencoderDC(InplaceAutoencoderDC):
    """DC-AE that works on whole maps, or tiles, on a CUDA device, and as its base class on others."""

    encoder_class, decoder_class = CudaEncoder, CudaDecoder


def choose_network(device: torch.device) -> type[InplaceAutoencoderDC]:
    """The network for a DC-AE that is to run on the device; called once for each that is loaded.

    Beside a CUDA device it is the one for that, because the host's Select VAE Device can move an autoencoder there.
    """
    if device.type == "cpu":
        raise_mmap_threshold()
    devices = (device.type, comfy.model_management.get_torch_device().type)
    return CudaAutoencoderDC if DEVICE in devices else InplaceAutoencoderDC
