"""Fresh noise for the steps of a sampler: the same numbers on every device, for every batch size.

The host's default step noise is drawn on the latent's device, so a seed gives other images on CPU and GPU.
"""

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

MASK64 = (1 << 64) - 1


def step_noise_sampler(x: Tensor, seed: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise sampler of the k-diffusion contract that depends on the seed, the step's number and the item's number only.

    Args:
        x: Latent (B, ...), gives shape, device and dtype.
        seed: Any integer; None counts as 0, so that the global random state is never read nor moved.

    Returns:
        `noise_sampler(sigma, sigma_next)`, N(0, 1) of x's shape; every call is one step further.
    """
    step, generator = count(), torch.Generator()

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:  # noqa: ARG001 - the contract's arguments
        i = next(step)
        # Item by item: one draw for the whole batch would make item 0 depend on the batch size for odd-sized latents,
        # because torch fills normal numbers in blocks of 16.
        items = [
            torch.randn(x.shape[1:], generator=generator.manual_seed(mix_seed(seed or 0, i, item)))
            for item in range(x.shape[0])
        ]
        return torch.stack(items).to(device=x.device, dtype=x.dtype)

    return noise_sampler


def mix_seed(*words: int) -> int:
    """64-bit hash of integers: splitmix64's finaliser, chained. Neighbouring seeds and steps give unrelated streams."""
    z = 0
    for word in words:
        z = ((z ^ word) + 0x9E3779B97F4A7C15) & MASK64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
        z ^= z >> 31
    return z
