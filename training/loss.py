"""What a training minimizes: the flow loss of SANA and Lumina-Next, or PixArt's error of the noise.

Source: SANA, arXiv 2410.10629 section 3.3; NVlabs/Sana `train_scripts/train.py`; diffusers
`examples/dreambooth/train_dreambooth_lora_sana.py`, whose expression the loss equals; PixArt-alpha, arXiv 2310.00426,
which predicts the noise as DDPM, arXiv 2006.11239, does.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..samplers.schedules import flow_shift

TIMESTEPS = 1000
LOGIT_NORMAL, UNIFORM = "logit-normal", "uniform"
TIME_SAMPLINGS = (LOGIT_NORMAL, UNIFORM)

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Noisy latents (B, C, H, W), sigmas (B,), states (B, L, D) and mask (B, L) -> velocity, or noise, (B, C, H, W)."""

Loss = Callable[[Predict, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A prediction, x0, states, mask, sigma and noise, as `flow_loss` takes them -> losses (B,)."""


def flow_loss(predict: Predict, x0: Tensor, states: Tensor, mask: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the velocity noise - x0, per sample.

    x0, noise: (B, C, H, W), x0 scaled to the model's variance. states (B, L, D), mask (B, L), sigma (B,) in [0, 1].
    Returns float32 of shape (B,).
    """
    level = sigma.view(-1, 1, 1, 1)
    noisy = (1.0 - level) * x0 + level * noise
    velocity = predict(noisy, sigma, states, mask)
    return (velocity.float() - (noise - x0).float()).square().flatten(1).mean(dim=1)


def noise_loss(predict: Predict, x0: Tensor, states: Tensor, mask: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the noise, per sample. Shapes as for `flow_loss`; sigma in units of the image, from 0 on."""
    predicted = predict(x0 + sigma.view(-1, 1, 1, 1) * noise, sigma, states, mask)
    return (predicted.float() - noise.float()).square().flatten(1).mean(dim=1)


def sample_sigma(
    generator: torch.Generator, count: int, mode: str, shift: float, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Noise levels (count,) at whole timesteps, pushed towards noise by the model's shift.

    mode: "logit-normal", the sigmoid of a normal number, as SANA was trained, or "uniform". Raises ValueError for
    another.
    """
    u = sample_times(generator, count, mode, mean, std)
    index = (u * TIMESTEPS).trunc().clamp(1, TIMESTEPS - 1)  # at 0 there is no noise, and nothing to learn
    return flow_shift(index / TIMESTEPS, shift).float()


def sample_timesteps(generator: torch.Generator, count: int, mode: str) -> Tensor:
    """Timesteps (count,) from 0 to 999 of a model that predicts the noise. Raises as `sample_sigma` does."""
    return (sample_times(generator, count, mode) * TIMESTEPS).trunc().clamp(max=TIMESTEPS - 1).long()


def sample_times(generator: torch.Generator, count: int, mode: str, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times (count,) in float64 in (0, 1), uniform or logit-normal."""
    if mode not in TIME_SAMPLINGS:
        raise ValueError(f"The time sampling {mode} is unknown: choose one of {', '.join(TIME_SAMPLINGS)}.")
    if mode == UNIFORM:
        return torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator, dtype=torch.float64))
