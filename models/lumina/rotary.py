"""Rotary positions of image tokens, scaled with the image's size and by the time of the run.

Source: Lumina-Next, arXiv 2406.18583 section 2.3 (time-aware scaled RoPE), as its authors' code and diffusers have it.
"""

import torch
from torch import Tensor

BASE = 10000.0


def axis_angles(length: int, pairs: int, stretch: float, base_factor: float) -> Tensor:
    """Angles (length, pairs) of the positions along one axis, in float64.

    stretch: divides the positions (interpolation). base_factor: multiplies the base of the frequencies (NTK).
    """
    # In float64, so on the CPU: not every device has it, and one row of each axis is small.
    exponents = torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs
    frequencies = (BASE * base_factor) ** -exponents / stretch
    return torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * frequencies


def rotations(grid: tuple[int, int], head_dim: int, stretch: float, base_factor: float) -> Tensor:
    """Rotation matrices (H * W, head_dim / 2, 2, 2) in float32; pairs of channels alternate between row and column."""
    height, width = grid
    rows = axis_angles(height, head_dim // 4, stretch, base_factor)[:, None].expand(-1, width, -1)
    columns = axis_angles(width, head_dim // 4, stretch, base_factor)[None].expand(height, -1, -1)
    angles = torch.stack([rows, columns], dim=-1).flatten(2).flatten(0, 1)  # (H * W, head_dim / 2)
    sin, cos = angles.sin(), angles.cos()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)).float()


def rotary_table(times: Tensor, grid: tuple[int, int], head_dim: int, scale: float, watershed: float) -> Tensor:
    """Rotations (B, 1, H * W, head_dim / 2, 2, 2) for the host's `apply_rope1`.

    times: (B,) from 0, noise, to 1, the image. Before the watershed positions are divided by the scale; from it on the
    base of the frequencies is multiplied by it. Each row of a batch may be on its own side. grid: tokens (H, W).
    """
    both = torch.stack([rotations(grid, head_dim, 1.0, scale), rotations(grid, head_dim, scale, 1.0)])
    # Chosen by tensors: a branch on the time would break a compiled graph and could not tell rows apart.
    return both.to(times.device)[(times < watershed).long()].unsqueeze(1)
