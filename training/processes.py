"""Several processes that train one run: each takes its share of a step, and their sums are those of one process.

Source: data parallelism as torch.distributed describes it; what is started by accelerate has such a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Which pictures of one batch of a step a process takes. part: the batch's place; places: in the batch."""

    part: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Processes:
    """This process among those of a run. One alone calls nothing of torch.distributed."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this one writes the run's files."""
        return self.rank == 0

    def require_pictures(self, batch_size: int, accumulation: int) -> None:
        """Raises ValueError where a step has fewer pictures than there are processes."""
        if batch_size < self.count and accumulation % self.count:
            raise ValueError(
                f"A step of batch_size {batch_size} and accumulation {accumulation} cannot be shared among "
                f"{self.count} processes: set one of them to a multiple of {self.count}, or start fewer."
            )

    def shares(self, sizes: Sequence[int]) -> list[Share]:
        """Of a step's batches: whole ones where they divide among the processes, or else a part of each."""
        if len(sizes) % self.count == 0:
            return [Share(part, tuple(range(size))) for part, size in enumerate(sizes) if self.takes(part)]
        return [
            Share(part, tuple(place for place in range(size) if self.takes(place))) for part, size in enumerate(sizes)
        ]

    def takes(self, index: int) -> bool:
        return index % self.count == self.rank

    def add_up(self, values: Sequence[Tensor]) -> None:
        """Puts the sum over all processes into each tensor."""
        if self.count == 1 or not values:
            return
        flat = torch.cat([value.flatten().float() for value in values])
        dist.all_reduce(flat)
        for value, total in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(total.view_as(value))

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it holds in any process, which all are told alike."""
        if self.count == 1:
            return here
        found = torch.tensor(float(here), device=device)
        dist.all_reduce(found)
        return bool(found)


ALONE = Processes()


def this_process() -> Processes:
    """This process in the group that was begun, or alone."""
    if not dist.is_available() or not dist.is_initialized():
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())
