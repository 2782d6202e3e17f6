"""Checks of a run's settings: what cannot work is refused, and valid but probably unintended settings get a warning.

A warning begins with the cure and is short, because a node shows little of it. No setting is changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from ..runtime.run_checks import CONSISTENCY_SAMPLERS, SKIP_ZERO, ignored_image, require_flow_levels
from .config import SanaConfig
from .model_sampling import require_flow
from .resolution import RATIO, RESOLUTION_BINS, nearest_bin

SPRINT_STEPS = 4
SPRINT_GUIDANCE = (4.0, 5.0)  # what SANA-Sprint was distilled with, arXiv 2503.09641
# The host's schedulers by what they do to a flow: the first follow SANA's grid or lie close to it, beta included.
EVEN = ("simple", "sgm_uniform", "normal", "beta")
UNEVEN = ("karras", "exponential", "kl_optimal", "linear_quadratic", "ddim_uniform")
SIGMA_TOLERANCE = 1e-4
NO_IMAGE_SIGMA = 0.999  # at and above it SANA's grids begin, and nothing is left of an image
SCHEDULERS = "SANA Flow Scheduler, SANA SCM Scheduler or Basic Scheduler"
SKIP_EMPTY_STEPS = (*SKIP_ZERO, "euler")
OUR_SAMPLERS = {
    "sample_flow_dpm": "sana_flow_dpm",
    "sample_scm": "sana_scm",
    "sample_midpoint": "sana_midpoint",
    "sample_pixart_dmd": "sana_pixart_dmd",
}


@dataclass(frozen=True)
class Run:
    """Settings of one run of a sampler.

    sampler: its name in the host's lists. sigmas: (steps + 1,), as given to it. size: (height, width) of the latent.
    guidance: of the prompts that have one. has_image: the latent is not empty, and no mask keeps a part of it.
    has_area: a prompt has an area in latent cells, not in percent.
    """

    config: SanaConfig
    model_sampling: Any
    sampler: str
    sigmas: Tensor
    size: tuple[int, int]
    guidance: tuple[float, ...] = ()
    has_image: bool = False
    has_area: bool = False

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def require_run(run: Run) -> None:
    """Raises ValueError for another model's kind of sampling, and for noise levels that a flow does not have."""
    require_flow(run.model_sampling)
    require_flow_levels(run.sampler, run.sigmas, "SANA", SCHEDULERS)


def check_run(run: Run) -> list[str]:
    """Warnings about one run, [] when there is nothing to say."""
    if run.steps < 1:
        return []
    found = [check_scheduler(run), check_sampler(run), check_image(run), check_repeats(run)]
    found += [check_area(run), check_size(run.config.sample_size * RATIO, run.size)]
    if run.config.guidance_embeds:
        found += [check_steps(run.steps), *map(check_guidance, sorted(set(run.guidance)))]
    return [sentence for sentence in found if sentence]


def check_scheduler(run: Run) -> str | None:
    if run.config.guidance_embeds:
        model, own, good, doubtful = "SANA-Sprint", "sana_scm", (), (*EVEN, *UNEVEN, "sana_flow", "sana_flow_euler")
    else:
        model, own, good, doubtful = "SANA", "sana_flow", EVEN, (*UNEVEN, "sana_scm")
    if schedulers_of(run.model_sampling, run.sigmas, (own, *good)):
        return None
    names = schedulers_of(run.model_sampling, run.sigmas, doubtful)
    name = names[0] if len(names) == 1 else "this one"  # few steps make several the same
    return f"Choose the scheduler {own}: {name} has other noise levels than {model} needs." if names else None


def schedulers_of(model_sampling: Any, sigmas: Tensor, names: Iterable[str]) -> list[str]:
    """Which of the host's schedulers give these noise levels, all of them; with few steps several are the same."""
    found = []
    for name in comfy.samplers.SCHEDULER_HANDLERS.keys() & set(names):
        known = comfy.samplers.calculate_sigmas(model_sampling, name, len(sigmas) - 1)
        if known.shape == sigmas.shape and torch.allclose(known.cpu(), sigmas.float().cpu(), atol=SIGMA_TOLERANCE):
            found.append(name)
    return sorted(found)


def check_sampler(run: Run) -> str | None:
    if run.steps == 1:  # ends at the first prediction, whatever the sampler
        return None
    distilled = run.sampler in CONSISTENCY_SAMPLERS
    if run.config.guidance_embeds and not distilled:
        return f"Choose the sampler sana_scm: SANA-Sprint was not distilled for {run.sampler}."
    if distilled and not run.config.guidance_embeds:
        return f"Choose the sampler sana_flow_dpm: {run.sampler} is for distilled models such as SANA-Sprint."
    return None


def sampler_name(function: Any) -> str:
    """The name that the host's lists have for a sampler's function, or the function's own."""
    for name in comfy.samplers.SAMPLER_NAMES:
        if getattr(k_diffusion, f"sample_{name}", None) is function:
            return name
    own = getattr(function, "__name__", type(function).__name__)
    return OUR_SAMPLERS.get(own, own.removeprefix("sample_"))


def check_image(run: Run) -> str | None:
    if not run.has_image or float(run.sigmas[0]) < NO_IMAGE_SIGMA:
        return None
    return ignored_image(run.steps)


def check_repeats(run: Run) -> str | None:
    levels = run.sigmas.tolist()
    repeated = next((level for level, before in zip(levels[1:], levels) if level == before), None)
    if repeated is None or run.sampler in SKIP_EMPTY_STEPS:
        return None
    return f"Remove the repeated noise level {repeated:.4g}, or choose the sampler sana_flow_dpm, which skips it."


def check_area(run: Run) -> str | None:
    if not run.has_area:
        return None
    return "Take Conditioning (Set Area with Percentage): the one in pixels counts 8 px a cell, SANA has 32."


def check_steps(steps: int) -> str | None:
    if steps <= SPRINT_STEPS:
        return None
    return f"Set steps to 2: SANA-Sprint is made for 1 to {SPRINT_STEPS}, not {steps}."


def check_guidance(guidance: float) -> str | None:
    low, high = SPRINT_GUIDANCE
    if low <= guidance <= high:
        return None
    return f"Set guidance to 4.5: SANA-Sprint was distilled with {low:g} to {high:g}, not {guidance:g}."


def check_size(native: int, size: tuple[int, int]) -> str | None:
    """native: side in pixels of the square the checkpoint was trained on; one without a table is not judged."""
    height, width = (side * RATIO for side in size)
    trained = set(RESOLUTION_BINS.get(native, {}).values())
    if not trained or {(height, width), (width, height)} & trained:
        return None
    near_height, near_width = nearest_bin(height, width, native)
    return f"Set {near_width} x {near_height} px: the checkpoint was not trained on {width} x {height} px."


def require_position(shape: tuple[int, ...], pixels: int | None) -> None:
    """Raises ValueError for an empty latent of another model that would become less than one position of SANA's.

    shape: (B, C, h, w), pixels: of one of its positions, None where nothing tells.
    """
    height, width = (side * (pixels or RATIO) for side in shape[-2:])
    if min(round(height / RATIO), round(width / RATIO)) < 1 <= min(height, width):
        raise ValueError(
            f"This latent is of {width} x {height} px, and SANA needs at least {RATIO} px a side: take SANA Empty "
            "Latent, with the size that the checkpoint was trained on."
        )
