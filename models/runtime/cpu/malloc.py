"""What glibc does with freed memory: large tensors come and go in every block, and new memory for each takes time."""

import torch

LARGEST_KEPT = 2**25 - 2**13  # bytes; of the blocks that glibc may keep


def raise_mmap_threshold() -> None:
    """glibc gives blocks back to the system, to get them again as zeros, if it has seen none as large freed before."""
    torch.empty(LARGEST_KEPT, dtype=torch.uint8)
