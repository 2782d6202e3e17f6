"""Checks of a run's settings: what cannot work is refused, and valid but probably unintended settings get a warning.

A warning begins with the cure and is short, because a node shows little of it. No setting is changed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from .config import SanaConfig
from .model_sampling import HIGHEST_SIGMA, require_flow
from .resolution import RATIO, RESOLUTION_BINS, nearest_bin

SPRINT_STEPS = 4
SPRINT_GUIDANCE = (4.0, 5.0)  # what SANA-Sprint was distilled with, arXiv 2503.09641
# The host's schedulers by what they do to a flow: the first follow SANA's grid or lie close to it, beta included.
EVEN = ("simple", "sgm_uniform", "normal", "beta")
UNEVEN = ("karras", "exponential", "kl_optimal", "linear_quadratic", "ddim_uniform")
SIGMA_TOLERANCE = 1e-4
NO_IMAGE_SIGMA = 0.999  # at and above it SANA's grids begin, and nothing is left of an image
CONSISTENCY_SAMPLERS = ("sana_scm", "lcm")  # predict the image and noise it anew: made for distilled models
SKIP_ZERO = (*CONSISTENCY_SAMPLERS, "sana_flow_dpm")
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
    levels = run.sigmas.tolist()
    if not all(math.isfinite(level) and level >= 0 for level in levels):
        raise ValueError(
            f"The noise levels hold {next(x for x in levels if not (math.isfinite(x) and x >= 0)):g}, which is none: "
            "choose another scheduler, or more steps."
        )
    if run.steps < 1:
        if levels and levels[0] >= 1:
            raise ValueError("This run has no step, only a first noise level of 1: give it at least one step.")
        return
    if run.sampler in SKIP_ZERO:
        levels = [level for i, level in enumerate(levels) if i == 0 or level or levels[i - 1]]
    if max(levels) > HIGHEST_SIGMA:
        raise ValueError(
            f"The noise levels begin at {max(levels):.4g}, but SANA's flow has levels from 1 to 0: use SANA Flow "
            "Scheduler, SANA SCM Scheduler or Basic Scheduler instead of a scheduler made for Stable Diffusion."
        )
    if 0 in levels[:-1] and any(levels):
        raise ValueError(
            f"Noise level {levels.index(0) + 1} of {len(levels)} is 0, but only the last may be: a step from 0 is "
            "undefined, so remove it, or begin an inversion with 0.0001 as Flip Sigmas does."
        )
    if levels[-1] >= 1:
        raise ValueError(
            f"The noise levels end at {levels[-1]:g}, but at 1 nothing is left of the image to go on with: end an "
            "inversion below 1, as with the flow_dpm grid of SANA Flow Scheduler."
        )


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
    # The host lengthens a schedule to int(steps / denoise) steps: above this value, not at all.
    denoise = math.floor(100 * run.steps / (run.steps + 1)) / 100
    return f"Set denoise to {denoise:g} or less: this run starts from pure noise and ignores the image."


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


def require_area(area: tuple[int, ...] | None, size: tuple[int, ...]) -> None:
    """Raises ValueError for a conditioning's area (height, width, top, left) that begins outside the latent."""
    if area is None or all(start < side for start, side in zip(area[len(area) // 2 :], size)):
        return
    rows, columns = area[-2:]
    if rows <= size[0] and columns <= size[1]:  # of 1 in percent, or of as many cells
        raise ValueError(
            f"The area of this conditioning begins at row {rows}, column {columns}, at the end of the latent of "
            f"{size[0]} x {size[1]} cells of {RATIO} px: set x and y below 1 in Conditioning (Set Area with "
            "Percentage)."
        )
    raise ValueError(
        f"The area of this conditioning begins at row {area[-2]}, column {area[-1]}, outside the latent of {size[0]} x "
        f"{size[1]} cells of {RATIO} px: use Conditioning (Set Area with Percentage), because Conditioning (Set Area) "
        "counts 8 px a cell."
    )


def require_image_latent(shape: tuple[int, ...]) -> None:
    """Raises ValueError for the latent of a video or a sound, and for one without an image."""
    if len(shape) == 4 and 0 in shape:
        raise ValueError(
            f"The latent to denoise holds nothing, its shape is {tuple(shape)}: check the node that made it, such as "
            "Latent From Batch with an index beyond the batch."
        )
    if len(shape) == 4:
        return
    raise ValueError(
        f"The latent to denoise has {len(shape)} dimensions, {tuple(shape)}, but SANA needs the 4 of an image: take "
        "SANA Empty Latent, or SANA DC-AE Encode for an image, instead of a video's or a sound's latent."
    )


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
