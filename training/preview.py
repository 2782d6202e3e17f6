"""Pictures of a model in training: the user's own prompts from a fixed noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .buckets import Size
from .captions import Caption, batch_captions
from .prediction import Prediction
from .seeds import generator_of

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
def generate(predict: Prediction, preview: Preview, seed: int) -> Tensor:
    """Raw latents (B, C, H, W) of the prompts, by Euler steps on the family's own noise levels."""
    count, channels = len(preview.prompts), predict.network.in_channels
    noise = torch.randn(count, channels, *preview.size, generator=generator_of(seed, NOISE))
    sigmas = predict.family.grid(predict.sampling, preview.steps)
    x = noise.to(predict.device) * max(1.0, sigmas[0])
    positive = [part.to(predict.device) for part in batch_captions(preview.prompts)]
    negative = preview.negative and [part.to(predict.device) for part in batch_captions([preview.negative] * count)]
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((count,), sigma, device=predict.device)
        velocity = predict(x, level, *positive)
        if negative:
            other = predict(x, level, *negative)
            velocity = other + preview.cfg * (velocity - other)
        x = x + (following - sigma) * velocity
    return predict.model.process_latent_out(x)
