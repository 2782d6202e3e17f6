"""The loss of samples of an encoded set, with a step's random numbers or at fixed noises."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .captions import Caption, batch_captions, drop_captions
from .encode import EncodedSample
from .loss import UNIFORM
from .prediction import Prediction
from .record import FIXED_LEVELS
from .seeds import generator_of
from .settings import Settings

FIXED = 5  # place of the fixed noises among the random numbers of a run


class SetLoss:
    """predict: the model. null: the empty prompt's states, for captions that are left out.

    first: a sample that is kept in memory, to tell whether the loss is finite when no file can be read any more.
    """

    def __init__(self, predict: Prediction, null: Caption, settings: Settings, first: EncodedSample):
        self.predict, self.null, self.settings = predict, null, settings
        self.family = predict.family
        self.kept = first.latent(), first.caption()

    @property
    def time_sampling(self) -> str:
        """What noise levels are drawn by: a family that was trained on uniform ones keeps to them."""
        return UNIFORM if self.family.uniform else self.settings.time_sampling

    def of_batch(
        self, samples: Sequence[EncodedSample], generator: torch.Generator, places: Sequence[int] | None = None
    ) -> Tensor:
        """Losses (B,) of samples of one size, with noise levels, noise and left-out captions of a generator.

        places: those of the batch that are computed, with the numbers they have in the whole; None for all.
        """
        settings, own = self.settings, list(range(len(samples)) if places is None else places)
        captions = drop_captions(
            [sample.caption() for sample in samples], self.null, settings.caption_dropout, settings.null_mask, generator
        )
        sigma = self.family.levels(self.predict.sampling, generator, len(samples), self.time_sampling)
        noise = torch.randn(len(samples), *samples[0].latent().shape, generator=generator)
        latents = [samples[i].latent() for i in own]
        return self.of(latents, [captions[i] for i in own], sigma[own], noise[own])

    def of(self, latents: Sequence[Tensor], captions: Sequence[Caption], sigma: Tensor, noise: Tensor) -> Tensor:
        """Losses (B,). latents: raw, (C, H, W) each. sigma (B,), noise (B, C, H, W)."""
        x0 = self.predict.scaled(torch.stack(list(latents)))
        inputs = (x0, *batch_captions(captions), sigma, noise)
        return self.predict.loss(*(part.to(self.predict.device) for part in inputs))

    @torch.no_grad()
    def at_fixed_noises(self, samples: Sequence[EncodedSample]) -> list[float]:
        """Mean loss of samples at each of FIXED_LEVELS, with the same noises each time."""
        row = []
        for place, level in enumerate(FIXED_LEVELS):
            losses = [
                self.at_level(one.latent(), one.caption(), level, generator_of(0, FIXED, place, i))
                for i, one in enumerate(samples)
            ]
            row.append(float(torch.cat(losses).mean()))
        return row

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether the loss with the weights of now is: a step that was not has left them as they were."""
        level = FIXED_LEVELS[len(FIXED_LEVELS) // 2]
        return math.isfinite(float(self.at_level(*self.kept, level, generator_of(0, FIXED))))

    def at_level(self, latent: Tensor, caption: Caption, level: float, generator: torch.Generator) -> Tensor:
        sigma = torch.tensor([self.family.level(self.predict.sampling, level)])
        noise = torch.randn(1, *latent.shape, generator=generator)
        return self.of([latent], [caption], sigma, noise)
