"""Checks of a run on PixArt: valid but probably unintended settings get a warning, which begins with the cure."""

import math
from dataclasses import dataclass

from .config import DMD, LCM, RATIO, PixArtConfig

SAMPLERS = {LCM: ("lcm", "sana_scm"), DMD: ("sana_pixart_dmd",)}
LCM_STEPS = 8
FAR = 1.5  # times larger or smaller, by the side of a square of the same area, than what the checkpoint was trained on


@dataclass(frozen=True)
class Run:
    """Settings of one run of a sampler: its name in the host's lists, number of steps, and the latent's size.

    is_consistency: the model samples at the distilled timesteps alone, as of itself or by a node for an LCM LoRA.
    """

    config: PixArtConfig
    sampler: str
    steps: int
    cfg: float
    size: tuple[int, int]
    is_consistency: bool = False

    @property
    def distilled(self) -> str | None:
        return LCM if self.is_consistency else self.config.distilled


def check_run(run: Run) -> list[str]:
    """Warnings about one run, [] when there is nothing to say."""
    found = [check_sampler(run), check_guidance(run), check_size(run)]
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


def check_size(run: Run) -> str | None:
    if run.config.sample_size is None:
        return None
    side, native = RATIO * math.sqrt(math.prod(run.size)), RATIO * run.config.sample_size
    if 1 / FAR <= side / native <= FAR:
        return None
    width, height = RATIO * run.size[1], RATIO * run.size[0]
    return f"Choose size {native} in SANA Empty Latent: the checkpoint was not trained on {width} x {height} px."
