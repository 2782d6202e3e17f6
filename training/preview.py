"""Pictures of a model in training: the user's own prompts from a fixed noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..samplers.schedules import get_sigmas_flow_dpm
from .buckets import Size
from .captions import Caption, batch_captions
from .seeds import generator_of
from .network import Velocity

NOISE = 3  # place of the noises among the generators of a run


@dataclass(frozen=True)
class Preview:
    """Prompts to generate while a model is trained. negative: None for no guidance. size: of the latent."""

    prompts: Sequence[Caption]
    negative: Caption | None
    size: Size
    steps: int = 20
    cfg: float = 4.5


@torch.no_grad()
def generate(predict: Velocity, preview: Preview, seed: int) -> Tensor:
    """Raw latents (B, C, H, W) of the prompts, by Euler steps on SANA's own noise levels."""
    count, channels = len(preview.prompts), predict.network.in_channels
    noise = torch.randn(count, channels, *preview.size, generator=generator_of(seed, NOISE))
    x = noise.to(predict.device)
    positive = [part.to(predict.device) for part in batch_captions(preview.prompts)]
    negative = preview.negative and [part.to(predict.device) for part in batch_captions([preview.negative] * count)]
    sigmas = get_sigmas_flow_dpm(preview.steps, predict.shift).tolist()
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((count,), sigma, device=predict.device)
        velocity = predict(x, level, *positive)
        if negative:
            other = predict(x, level, *negative)
            velocity = other + preview.cfg * (velocity - other)
        x = x + (following - sigma) * velocity
    return predict.model.process_latent_out(x)
