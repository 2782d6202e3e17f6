"""How much memory a pass of DC-AE needs, whole or in exact tiles, and the largest tiles that fit the free memory.

Counted in elements for the released widths.
"""

from dataclasses import dataclass

import torch

from ..runtime.row_bands import BAND, BAND_ELSEWHERE

DEVICE = "cuda"  # torch's type of the devices that compute on whole maps; AMD's bear the same name
CUDNN_INT32_LIMIT = 2**31  # elements of a map, from which on convolutions are slow or missing there


@dataclass(frozen=True)
class Elements:
    """Peak elements of one way to compute, most of them per pixel.

    map: of a whole image or a tile, its full-resolution maps of 128 channels and what is computed from them. band: of a
    row band beside them, until it is full. coarse, coarse_band: the same of the coarser stages beside tiles, 512
    channels at every 64th pixel and twice that of queries. fixed: of weights in another layout, at any size.
    """

    map: int
    band: int
    coarse: int
    coarse_band: int
    fixed: int = 0


# On a CPU as measured (`benchmarks/memory.py`), on a CUDA device as counted (`benchmarks/fake_cuda.py`) and rounded up.
IN_ROW_BANDS = Elements(map=210, band=250, coarse=30, coarse_band=250)
ON_WHOLE_MAPS = Elements(map=410, band=0, coarse=28, coarse_band=180, fixed=2**24)
ENDS = 12  # elements per pixel, of an image in tiles: its RGB values and the map that the tiles start or end with
WIDEST = 128  # channels at full resolution
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

    @property
    def elements(self) -> Elements:
        return ON_WHOLE_MAPS if self.device == DEVICE else IN_ROW_BANDS

    def memory(self, tile_size: int | None = None) -> float:
        """Peak bytes besides the weights, of the whole or in tiles of `tile_size` px."""
        pixels = tile = self.height * self.width
        if tile_size is not None:
            tile = min(tile_size + 2 * HALO, self.height) * min(tile_size + 2 * HALO, self.width)
        count = self.elements
        peak = tile * count.map + self.in_bands(tile) * count.band
        if tile_size is not None:
            peak = max(pixels * count.coarse + self.in_bands(pixels) * count.coarse_band, pixels * ENDS + peak)
        return (peak + count.fixed) * self.dtype.itemsize

    def in_bands(self, pixels: int) -> int:
        """Pixels of the largest row band."""
        return min(pixels, BAND.get(self.device, BAND_ELSEWHERE) // CHANNELS)

    def choose_tile_size(self, free_memory: float) -> int | None:
        """The largest tile size that fits `free_memory` bytes, or the smallest there is; None for the whole."""
        sizes = [size for size in TILE_SIZES if size < max(self.height, self.width)]
        if self.is_one_map():
            sizes.insert(0, None)
        return next((size for size in sizes if self.memory(size) <= free_memory), sizes[-1])

    def is_one_map(self) -> bool:
        """Whether a device that computes on whole maps can do so; if not, tiles are faster than row bands."""
        return self.device != DEVICE or self.height * self.width * WIDEST < CUDNN_INT32_LIMIT
