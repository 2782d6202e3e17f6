"""Exact tiles: the stages of DC-AE between 1/8 and full resolution on a part of the picture at a time.

Those stages are convolutions and norms of single positions. A tile that also reads what its convolutions reach of its
neighbours gives the values that the whole picture would, so there is nothing to blend; in bfloat16 Winograd's
convolutions round those near a tile's edge otherwise, the less the further it reads. Attention sees the whole picture
and is left to the coarser stages, which run whole: at 4096 px they have 512 x 512 positions at most.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.cpu.winograd_transforms import RESULTS
from ..runtime.progress import tracked


class Span(NamedTuple):
    """Rows, or columns, from `start` up to and without `stop`."""

    start: int
    stop: int

    def grown(self, reach: int, size: int) -> "Span":
        return Span(max(self.start - reach, 0), min(self.stop + reach, size))

    def doubled(self) -> "Span":
        return Span(2 * self.start, 2 * self.stop)

    def halved(self) -> "Span":
        """Whatever has a part in these, at half the resolution."""
        return Span(self.start // 2, -(-self.stop // 2))

    def in_fours(self, size: int) -> "Span":
        """Whatever has a part in these, in whole fours unless the picture ends.

        Winograd's convolutions make four results at once, and round them otherwise when they are grouped otherwise.
        """
        return Span(self.start // RESULTS * RESULTS, min(-(-self.stop // RESULTS) * RESULTS, size))


class Stage(NamedTuple):
    """A part of the network that doubles or halves the resolution.

    reach: positions around one of its result that take part in it, counted in the finer of its two resolutions.
    """

    run: Callable[[Tensor], Tensor]
    reach: int


def read_upwards(result: Span, size: int, stages: list[Stage]) -> list[Span]:
    """What each of the stages that double has to read, in their order; `size` is that of the last one's result."""
    spans = []
    for stage in reversed(stages):
        result = result.grown(stage.reach, size).in_fours(size).halved()
        size //= 2
        spans.insert(0, result)
    return spans


def read_downwards(result: Span, size: int, stages: list[Stage]) -> list[Span]:
    """What each of the stages that halve has to read, in their order; `size` is that of the last one's result."""
    spans = []
    for stage in reversed(stages):
        size *= 2
        result = result.doubled().grown(stage.reach, size).in_fours(size)  # nor half of a 2 x 2 square
        spans.insert(0, result)
    return spans


def cut(x: Tensor, have: tuple[Span, Span], want: tuple[Span, Span]) -> Tensor:
    """The part `want` of a picture of which x (B, C, H, W) is the part `have`."""
    for dim, (old, new) in enumerate(zip(have, want, strict=True), start=2):
        x = x.narrow(dim, new.start - old.start, new.stop - new.start)
    return x.contiguous(memory_format=torch.channels_last)


def split(size: int, side: int) -> list[Span]:
    """Spans of nearly equal length, at most `side`."""
    count = -(-size // side)
    return [Span(number * size // count, (number + 1) * size // count) for number in range(count)]


def run_in_tiles(x: Tensor, out: Tensor, stages: list[Stage], side: int, upwards: bool) -> Tensor:
    """Fills out (B, D, h, w) with what the stages make of x, in squares of at most `side` positions; returns it.

    upwards: they double the resolution, else they halve it. Raises the host's interrupt between tiles.
    """
    read, after = (read_upwards, Span.doubled) if upwards else (read_downwards, Span.halved)
    for tile in tracked(list(product(*(split(size, side) for size in out.shape[2:])))):
        part, have = x, tuple(Span(0, size) for size in x.shape[2:])
        steps = zip(*(read(span, size, stages) for span, size in zip(tile, out.shape[2:], strict=True)), strict=True)
        for stage, want in zip(stages, steps, strict=True):
            part = stage.run(cut(part, have, want))
            have = tuple(after(span) for span in want)
        out[:, :, slice(*tile[0]), slice(*tile[1])] = cut(part, have, tile)
    return out
