"""The host's prefetch: while a block computes, the weights of the next one are on their way to the device.

The host does it for models whose weights it brings in as they are needed ("dynamic VRAM"), from 0.30 on.
"""

from collections.abc import Iterable, Iterator
from types import ModuleType

import torch
from torch import nn


def host_prefetch() -> ModuleType | None:
    """The host's module for it; None for an older host."""
    try:
        import comfy.model_prefetch
    except ImportError:
        return None
    return comfy.model_prefetch


def prefetched(blocks: Iterable[nn.Module], device: torch.device, transformer_options: dict) -> Iterator[nn.Module]:
    """The blocks one by one, to be run before the next is asked for."""
    host = None if device.type == "cpu" or torch.compiler.is_compiling() else host_prefetch()
    queue = None if host is None else host.make_prefetch_queue(list(blocks), device, transformer_options)
    if queue is None:
        yield from blocks
        return
    for block in blocks:
        host.prefetch_queue_pop(queue, device, block)
        yield block
    host.prefetch_queue_pop(queue, device, None)
