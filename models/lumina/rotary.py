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


def both_rotations(grid: tuple[int, int], head_dim: int, scale: float, device: torch.device) -> Tensor:
    """`rotations` (2, H * W, head_dim / 2, 2, 2) on the device: from the watershed on, and before it.

    Before it positions are divided by the scale; from it on the base of the frequencies is multiplied by it.
    """
    return torch.stack([rotations(grid, head_dim, 1.0, scale), rotations(grid, head_dim, scale, 1.0)]).to(device)


def rotary_table(times: Tensor, both: Tensor, watershed: float) -> Tensor:
    """Rotations (B, 1, H * W, head_dim / 2, 2, 2) for the host's `apply_rope1`, of what `both_rotations` gives.

    times: (B,) from 0, noise, to 1, the image. Each row of a batch may be on its own side of the watershed.
    """
    # Chosen by tensors: a branch on the time would break a compiled graph and could not tell rows apart.
    return both[(times < watershed).long()].unsqueeze(1)
