"""Checks of a run on PixArt: valid but probably unintended settings get a warning, which begins with the cure."""

import logging
import math
from dataclasses import dataclass

from torch import Tensor

from ..runtime.run_checks import CONSISTENCY_SAMPLERS, ignored_image, require_levels, require_zero_at_end
from .config import DMD, LCM, RATIO, PixArtConfig
from .model_sampling import HIGHEST_SIGMA, TOLERANCE

logger = logging.getLogger(__name__)

SAMPLERS = {LCM: ("lcm", "sana_scm"), DMD: ("sana_pixart_dmd",)}
LCM_STEPS = 8
LOW = 0.25  # of the highest noise level: the grids of PixArt's timesteps begin above it, other models' below
FAR = 1.5  # times larger or smaller, by the side of a square of the same area, than what the checkpoint was trained on


@dataclass(frozen=True)
class Run:
    """Settings of one run of a sampler: its name in the host's lists, noise levels (steps + 1,), and the latent's size.

    has_image: the latent is not empty, and no mask keeps a part of it. is_empty: the latent is, and the run adds noise.
    is_consistency: the model samples at the distilled timesteps alone, as of itself or by a node for an LCM LoRA.
    """

    config: PixArtConfig
    sampler: str
    sigmas: Tensor
    cfg: float
    size: tuple[int, int]
    is_consistency: bool = False
    has_image: bool = False
    is_empty: bool = False

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def distilled(self) -> str | None:
        return LCM if self.is_consistency else self.config.distilled


def usable_sigmas(sampler: str, sigmas: Tensor) -> Tensor:
    """The noise levels without steps of no length, by which solvers of several steps divide.

    Samplers that noise the image anew make something of such a step. Raises ValueError for numbers that are no noise
    levels, for a 0 before the end, and for pure noise without a step.
    """
    if sampler not in CONSISTENCY_SAMPLERS and len(sigmas) > 1:
        changes = [True, *(sigmas[1:] != sigmas[:-1]).tolist()]
        if not all(changes):
            logger.info("SANA: %d of %d steps have no length and are left out", changes.count(False), len(sigmas) - 1)
            sigmas = sigmas[changes]
    levels = sigmas.tolist()
    require_levels(levels, (1 - TOLERANCE) * HIGHEST_SIGMA)
    if sampler not in CONSISTENCY_SAMPLERS:
        require_zero_at_end(levels)
    return sigmas


def check_run(run: Run) -> list[str]:
    """Warnings about one run, [] when there is nothing to say."""
    if run.steps < 1:
        return []
    found = [check_sampler(run), check_guidance(run), check_start(run), check_size(run)]
    if run.distilled == LCM and run.steps > LCM_STEPS:
        found.append(f"Set steps to 4: PixArt's LCM is made for 1 to {LCM_STEPS}, not {run.steps}.")
    return [sentence for sentence in found if sentence]


def check_sampler(run: Run) -> str | None:
    own = SAMPLERS.get(run.distilled)
    if own and run.sampler not in own:
        return f"Choose the sampler {own[0]}: PixArt's {run.distilled} was not distilled for {run.sampler}."
    if not own and any(run.sampler in names for names in SAMPLERS.values()):
        return f"Choose the sampler dpmpp_2m: {run.sampler} is for distilled models."
    return None


def check_guidance(run: Run) -> str | None:
    if run.distilled is None or math.isclose(run.cfg, 1.0):
        return None
    return f"Set cfg to 1: PixArt's {run.distilled} was distilled without guidance, so {run.cfg:g} spoils the image."


def check_start(run: Run) -> str | None:
    """What is lost of an image at pure noise, and of a new image where noise of another strength is taken for it."""
    if run.distilled == DMD:  # whose sampler refuses both
        return None
    first = float(run.sigmas[0])
    if run.has_image and first >= (1 - TOLERANCE) * HIGHEST_SIGMA:
        return ignored_image(run.steps)
    if run.is_empty and not LOW <= first / HIGHEST_SIGMA <= 1 + TOLERANCE:
        own = "simple" if run.distilled == LCM else "sana_pixart"
        return (
            f"Choose the scheduler {own}, denoise 1: a new image begins at noise level {HIGHEST_SIGMA:.4g}, not "
            f"{first:.4g}."
        )
    return None


def check_size(run: Run) -> str | None:
    if run.config.sample_size is None:
        return None
    side, native = RATIO * math.sqrt(math.prod(run.size)), RATIO * run.config.sample_size
    if 1 / FAR <= side / native <= FAR:
        return None
    width, height = RATIO * run.size[1], RATIO * run.size[0]
    return f"Choose size {native} in SANA Empty Latent: the checkpoint was not trained on {width} x {height} px."
