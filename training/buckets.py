"""Which size a picture is trained at, and which pictures of one size make a batch."""

from collections.abc import Sequence
from functools import cache

import torch

from ..models.sana.resolution import RATIO, RESOLUTION_BINS, nearest_bin
from .pictures import Size
from .seeds import generator_of

ORDER = 1  # place of the epochs' orders among the generators of a run
SCALED_FROM = 1024  # the table that a size without one of its own is scaled from


def target_size(height: int, width: int, size: int, bins: bool) -> Size:
    """The trained (height, width) for a picture: the nearest in aspect ratio, or the square."""
    if not bins:
        return size, size
    if size in RESOLUTION_BINS:
        return nearest_bin(height, width, size)
    sides = nearest_bin(height, width, SCALED_FROM)
    return tuple(max(RATIO, round(side * size / SCALED_FROM / RATIO) * RATIO) for side in sides)


def epoch_batches(sizes: Sequence[Size], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every picture of an epoch once, in batches of one size; the last of a size may be smaller, so that none is left
    out. sizes: of each picture. Returns indices."""
    generator = generator_of(seed, ORDER, epoch)
    groups: dict[Size, list[int]] = {}
    for index in torch.randperm(len(sizes), generator=generator).tolist():
        groups.setdefault(sizes[index], []).append(index)
    batches = [
        indices[start : start + batch_size]
        for _, indices in sorted(groups.items())
        for start in range(0, len(indices), batch_size)
    ]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


class BatchPlan:
    """The endless row of a run's batches: which pictures the n-th has, whatever was asked for before."""

    def __init__(self, sizes: Sequence[Size], batch_size: int, seed: int):
        self.per_epoch = len(epoch_batches(sizes, batch_size, seed, 0))
        self.of_epoch = cache(lambda epoch: epoch_batches(sizes, batch_size, seed, epoch))

    def __getitem__(self, index: int) -> list[int]:
        return self.of_epoch(index // self.per_epoch)[index % self.per_epoch]
