"""Fresh noise for the steps of a sampler: the same numbers on every device, for every batch size.

The host's default step noise is sampled on the latent's device, so a seed gives other images on CPU and GPU.
"""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

MASK64 = (1 << 64) - 1


def step_noise_sampler(
    x: Tensor, seed: int | None, batch_index: Sequence[int] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise sampler of the k-diffusion contract that depends on the seed, the step's number and the item's number only.

    Args:
        x: Latent (B, ...), gives shape, device and dtype.
        seed: Any integer; None counts as 0, so that the global random state is never read nor moved.
        batch_index: Number of every item, as the host's latents carry it; None numbers them 0 to B - 1.

    Returns:
        `noise_sampler(sigma, sigma_next)`, N(0, 1) of x's shape; every call is one step further.

    Raises:
        ValueError: if batch_index does not have one number per item.
    """
    items = range(x.shape[0]) if batch_index is None else [int(item) for item in batch_index]
    if len(items) != x.shape[0]:
        raise ValueError(
            f"The latent holds {x.shape[0]} images but numbers in batch_index for {len(items)}: use Latent From Batch "
            "or Rebatch Latents on it, which keep both in step."
        )
    step, generator = count(), torch.Generator()

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:  # noqa: ARG001 - the contract's arguments
        i = next(step)
        # Item by item: one call for the whole batch would make item 0 depend on the batch size for odd-sized latents,
        # because torch fills normal numbers in blocks of 16.
        noise = [
            torch.randn(x.shape[1:], generator=generator.manual_seed(mix_seed(seed or 0, i, item))) for item in items
        ]
        return torch.stack(noise).to(device=x.device, dtype=x.dtype)

    return noise_sampler


def mix_seed(*numbers: int) -> int:
    """64-bit hash of integers: splitmix64's finaliser, chained. Neighbouring seeds and steps give unrelated streams."""
    z = 0
    for number in numbers:
        z = ((z ^ number) + 0x9E3779B97F4A7C15) & MASK64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK64
        z ^= z >> 31
    return z
