"""Exact tiles: the stages of DC-AE between 1/8 and full resolution, on a part of the image at a time.

Those stages are convolutions and norms of single positions. A tile that also reads the halo of its convolutions gives
the values that the whole image would, so there is nothing to blend; in bfloat16 Winograd's convolutions round those
near a tile's edge differently, the less the larger the halo. Attention needs the whole image and belongs to the coarser
stages, which run whole: at 4096 px they have 512 x 512 positions at most.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.progress import tracked


class Span(NamedTuple):
    """Rows, or columns, from `start` up to and without `stop`."""

    start: int
    stop: int

    def grown(self, halo: int, size: int) -> "Span":
        return Span(max(self.start - halo, 0), min(self.stop + halo, size))

    def doubled(self) -> "Span":
        return Span(2 * self.start, 2 * self.stop)

    def halved(self) -> "Span":
        """All positions at half the resolution that overlap these."""
        return Span(self.start // 2, -(-self.stop // 2))

    def aligned(self, unit: int, size: int) -> "Span":
        """The whole units that overlap these, up to the image's end."""
        return Span(self.start // unit * unit, min(-(-self.stop // unit) * unit, size))


class Stage(NamedTuple):
    """A part of the network that doubles or halves the resolution.

    halo: positions around a result that it depends on, counted in the finer of its two resolutions. unit: positions of
    that resolution that are computed together, and may round differently when they are grouped differently.
    """

    run: Callable[[Tensor], Tensor]
    halo: int
    unit: int = 2


def read_upwards(result: Span, size: int, stages: list[Stage]) -> list[Span]:
    """What each of the stages that double has to read, in their order; `size` is that of the last one's result."""
    spans = []
    for stage in reversed(stages):
        result = result.grown(stage.halo, size).aligned(stage.unit, size).halved()
        size //= 2
        spans.insert(0, result)
    return spans


def read_downwards(result: Span, size: int, stages: list[Stage]) -> list[Span]:
    """What each of the stages that halve has to read, in their order; `size` is that of the last one's result."""
    spans = []
    for stage in reversed(stages):
        size *= 2
        result = result.doubled().grown(stage.halo, size).aligned(stage.unit, size)  # no half of a 2 x 2 square either
        spans.insert(0, result)
    return spans


def crop(x: Tensor, have: tuple[Span, Span], want: tuple[Span, Span]) -> Tensor:
    """The part `want` of an image of which x (B, C, H, W) is the part `have`."""
    for dim, (old, new) in enumerate(zip(have, want, strict=True), start=2):
        x = x.narrow(dim, new.start - old.start, new.stop - new.start)
    return x.contiguous(memory_format=torch.channels_last)


def split(size: int, tile_size: int) -> list[Span]:
    """Spans of nearly equal length, at most `tile_size`."""
    count = -(-size // tile_size)
    return [Span(number * size // count, (number + 1) * size // count) for number in range(count)]


def run_in_tiles(x: Tensor, out: Tensor, stages: list[Stage], tile_size: int, upwards: bool) -> Tensor:
    """Fills out (B, D, h, w) with the stages' result for x, in tiles of at most `tile_size` positions a side.

    upwards: the stages double the resolution, else they halve it. Returns out. Raises the host's interrupt between
    tiles.
    """
    read, after = (read_upwards, Span.doubled) if upwards else (read_downwards, Span.halved)
    for tile in tracked(list(product(*(split(size, tile_size) for size in out.shape[2:])))):
        part, have = x, tuple(Span(0, size) for size in x.shape[2:])
        steps = zip(*(read(span, size, stages) for span, size in zip(tile, out.shape[2:], strict=True)), strict=True)
        for stage, want in zip(stages, steps, strict=True):
            part = crop(part, have, want)  # in a line of its own, so that the whole of it need not stay
            part = stage.run(part)
            have = tuple(after(span) for span in want)
        out[:, :, slice(*tile[0]), slice(*tile[1])] = crop(part, have, tile)
    return out
