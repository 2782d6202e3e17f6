"""What glibc does with freed memory: large tensors come and go in every block, and new memory for each takes time."""

import sys

import torch

LARGEST_REUSED = 2**25 - 2**13  # bytes; the largest block that glibc may reuse


def raise_mmap_threshold() -> None:
    """Raises glibc's dynamic mmap threshold so that large blocks are reused; elsewhere nothing happens.

    Freeing one block of a size does it, for the whole process and for good: once, when a model is built for the CPU.
    """
    if sys.platform == "linux":
        torch.empty(LARGEST_REUSED, dtype=torch.uint8, device="cpu")
