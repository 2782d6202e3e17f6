"""Checks of a run that every family makes: its noise levels, a conditioning's area."""

import math

from torch import Tensor

HIGHEST_FLOW = 1.001  # noise level of a flow, which ends at 1, with room for rounding
CONSISTENCY_SAMPLERS = ("sana_scm", "lcm")  # predict the image and noise it anew: made for distilled models
SKIP_ZERO = (*CONSISTENCY_SAMPLERS, "sana_flow_dpm")
HOST_CELL = 8  # pixels of a latent cell, as the host's nodes count them


def require_flow_levels(sampler: str, sigmas: Tensor, family: str, schedulers: str) -> None:
    """Raises ValueError for noise levels (steps + 1,) that a flow does not have or no sampler can step along.

    sampler: its name in the host's lists. schedulers: what to use instead of one made for Stable Diffusion.
    """
    levels = sigmas.tolist()
    require_levels(levels, 1.0)
    if len(levels) < 2:
        return
    if sampler in SKIP_ZERO:
        levels = [level for i, level in enumerate(levels) if i == 0 or level or levels[i - 1]]
    if max(levels) > HIGHEST_FLOW:
        raise ValueError(
            f"The noise levels begin at {max(levels):.4g}, but {family}'s flow has levels from 1 to 0: use "
            f"{schedulers} instead of a scheduler made for Stable Diffusion."
        )
    require_zero_at_end(levels)
    if levels[-1] >= 1:
        raise ValueError(
            f"The noise levels end at {levels[-1]:g}, but at 1 nothing is left of the image to go on with: end an "
            "inversion below 1, as with the flow_dpm grid of SANA Flow Scheduler."
        )


def require_levels(levels: list[float], pure_noise: float) -> None:
    """Raises ValueError for numbers that are no noise levels, and for pure noise without a step."""
    wrong = next((level for level in levels if not (math.isfinite(level) and level >= 0)), None)
    if wrong is not None:
        raise ValueError(f"The noise levels hold {wrong:g}, which is none: choose another scheduler, or more steps.")
    if len(levels) == 1 and levels[0] >= pure_noise:
        raise ValueError(
            f"This run has no step, only a first noise level of {levels[0]:.4g}: give it at least one step."
        )


def require_zero_at_end(levels: list[float]) -> None:
    """Raises ValueError for a noise level of 0 that is not the last, unless all are."""
    if 0 in levels[:-1] and any(levels):
        raise ValueError(
            f"Noise level {levels.index(0) + 1} of {len(levels)} is 0, but only the last may be: a step from 0 is "
            "undefined, so remove it, or begin an inversion with 0.0001 as Flip Sigmas does."
        )


def ignored_image(steps: int) -> str:
    """The warning about an image that a run of so many steps ignores, because it begins at pure noise."""
    # The host lengthens a schedule to int(steps / denoise) steps: above this value, not at all.
    denoise = math.floor(100 * steps / (steps + 1)) / 100
    return f"Set denoise to {denoise:g} or less: this run starts from pure noise and ignores the image."


def require_area(area: tuple[int, ...] | None, size: tuple[int, ...], pixels: int) -> None:
    """Raises ValueError for a conditioning's area (height, width, top, left) that begins outside the latent.

    size: (height, width) of the latent in cells, each of as many pixels a side.
    """
    if area is None or all(start < side for start, side in zip(area[len(area) // 2 :], size)):
        return
    rows, columns = area[-2:]
    if rows <= size[0] and columns <= size[1]:  # of 1 in percent, or of as many cells
        raise ValueError(
            f"The area of this conditioning begins at row {rows}, column {columns}, at the end of the latent of "
            f"{size[0]} x {size[1]} cells of {pixels} px: set x and y below 1 in Conditioning (Set Area with "
            "Percentage)."
        )
    cure = "use Conditioning (Set Area with Percentage), because Conditioning (Set Area) counts 8 px a cell."
    if pixels == HOST_CELL:
        cure = "set x and y of Conditioning (Set Area) to a place inside the image."
    raise ValueError(
        f"The area of this conditioning begins at row {rows}, column {columns}, outside the latent of {size[0]} x "
        f"{size[1]} cells of {pixels} px: {cure}"
    )
