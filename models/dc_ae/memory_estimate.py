"""How much memory a pass of DC-AE needs, whole or in exact tiles, and the largest tiles that there is room for.

Counted in elements for the released widths; `benchmarks/memory.py` holds the counts against measured peaks.
"""

from dataclasses import dataclass

import torch

from ..runtime.row_bands import BAND, BAND_ELSEWHERE

# Elements a pixel. Of a whole or a tile: full resolution and what it is made of or into, 128 channels of every pixel
# and 256 of every fourth; and what a band has beside them, until it is full. Of the coarser stages: 512 channels of
# every 64th pixel, and twice that of queries. Of a picture in tiles: its colours, and what the tiles start or end with.
WHOLE, IN_BANDS, COARSE, ENDS = 210, 250, 30, 12
CHANNELS = 64  # a pixel, of the widest tensor that a band is cut from: 4096 at 1/8
HALO = 80  # px that a tile reads of its neighbours on each side, rounded up
SIDES = (4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256)  # px, of the tiles that are tried


@dataclass(frozen=True)
class Pass:
    """One picture through the encoder or the decoder: its size in px, and the format and device of the computation."""

    height: int
    width: int
    dtype: torch.dtype
    device: str  # its type, as in torch

    def memory(self, side: int | None = None) -> float:
        """Peak bytes besides the weights, of the whole or in tiles of `side` px."""
        pixels = tile = self.height * self.width
        if side is not None:
            tile = min(side + 2 * HALO, self.height) * min(side + 2 * HALO, self.width)
        fine = tile * WHOLE + self.in_bands(tile)
        if side is not None:
            fine = max(pixels * COARSE + self.in_bands(pixels), pixels * ENDS + fine)
        return fine * self.dtype.itemsize

    def in_bands(self, pixels: int) -> int:
        return min(pixels, BAND.get(self.device, BAND_ELSEWHERE) // CHANNELS) * IN_BANDS

    def choose(self, room: float) -> int | None:
        """The side of the largest tiles that do with `room` bytes, or of the smallest; None for the whole."""
        sides = [None, *(side for side in SIDES if side < max(self.height, self.width))]
        return next((side for side in sides if self.memory(side) <= room), sides[-1])
