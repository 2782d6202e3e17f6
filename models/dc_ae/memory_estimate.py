"""How much memory a pass of DC-AE needs, whole or in exact tiles, and the largest tiles that fit the free memory.

Counted in elements for the released widths; `benchmarks/memory.py` compares the counts with measured peaks.
"""

from dataclasses import dataclass

import torch

from ..runtime.row_bands import BAND, BAND_ELSEWHERE

# Peak elements per pixel. WHOLE: of a whole image or a tile, its full-resolution map of 128 channels and the next one
# of 256 at every fourth pixel. IN_BANDS: of a row band beside them, until it is full. COARSE: of the coarser stages,
# 512 channels at every 64th pixel and twice that of queries. ENDS: of an image in tiles, its RGB values and the map
# that the tiles start or end with.
WHOLE, IN_BANDS, COARSE, ENDS = 210, 250, 30, 12
CHANNELS = 64  # per pixel, of the widest tensor that a row band is cut from: 4096 at 1/8
HALO = 80  # px that a tile reads of its neighbors on each side, rounded up
TILE_SIZES = (4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256)  # px, of the tiles that are tried


@dataclass(frozen=True)
class Workload:
    """One image through the encoder or the decoder: its size in px, and the format and device of the computation."""

    height: int
    width: int
    dtype: torch.dtype
    device: str  # its type, as in torch

    def memory(self, tile_size: int | None = None) -> float:
        """Peak bytes besides the weights, of the whole or in tiles of `tile_size` px."""
        pixels = tile = self.height * self.width
        if tile_size is not None:
            tile = min(tile_size + 2 * HALO, self.height) * min(tile_size + 2 * HALO, self.width)
        fine = tile * WHOLE + self.in_bands(tile)
        if tile_size is not None:
            fine = max(pixels * COARSE + self.in_bands(pixels), pixels * ENDS + fine)
        return fine * self.dtype.itemsize

    def in_bands(self, pixels: int) -> int:
        return min(pixels, BAND.get(self.device, BAND_ELSEWHERE) // CHANNELS) * IN_BANDS

    def choose_tile_size(self, free_memory: float) -> int | None:
        """The largest tile size that fits `free_memory` bytes, or the smallest there is; None for the whole."""
        sizes = [None, *(size for size in TILE_SIZES if size < max(self.height, self.width))]
        return next((size for size in sizes if self.memory(size) <= free_memory), sizes[-1])
