"""Weight files of any size with random bfloat16 values, written without ever holding them in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.networks import bound

BLOCK = 1 << 24  # random values, used again and again


def write_bfloat16(path: Path, shapes: Mapping) -> None:
    """A safetensors file of tensors of these names and shapes, whose values keep a network's states in range.

    shapes: a state dict, best on "meta".
    """
    import torch

    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, tensor in shapes.items():
        start, end = end, end + 2 * tensor.numel()
        header[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = torch.rand(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).bfloat16()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in shapes.values():
            scaled = values[: tensor.numel()] * bound(tensor.shape)
            left = tensor.numel()
            while left > 0:
                file.write(scaled[:left].view(torch.uint8).numpy().data)
                left -= BLOCK
        file.flush()
        os.fsync(file.fileno())


def size_of(shapes: Mapping) -> int:
    """Bytes of such a file, but for its header."""
    return sum(2 * tensor.numel() for tensor in shapes.values())
