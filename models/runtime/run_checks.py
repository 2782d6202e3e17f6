"""Checks of a run that every family makes: its noise levels, the latent to denoise, a conditioning's area."""

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
    levels, steps = sigmas.tolist(), len(sigmas) - 1
    if not all(math.isfinite(level) and level >= 0 for level in levels):
        raise ValueError(
            f"The noise levels hold {next(x for x in levels if not (math.isfinite(x) and x >= 0)):g}, which is none: "
            "choose another scheduler, or more steps."
        )
    if steps < 1:
        if levels and levels[0] >= 1:
            raise ValueError("This run has no step, only a first noise level of 1: give it at least one step.")
        return
    if sampler in SKIP_ZERO:
        levels = [level for i, level in enumerate(levels) if i == 0 or level or levels[i - 1]]
    if max(levels) > HIGHEST_FLOW:
        raise ValueError(
            f"The noise levels begin at {max(levels):.4g}, but {family}'s flow has levels from 1 to 0: use "
            f"{schedulers} instead of a scheduler made for Stable Diffusion."
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


def require_image_latent(shape: tuple[int, ...], family: str, nodes: str) -> None:
    """Raises ValueError for the latent of a video or a sound, and for one without an image.

    nodes: what makes a latent of the family.
    """
    if len(shape) == 4 and 0 in shape:
        raise ValueError(
            f"The latent to denoise holds nothing, its shape is {tuple(shape)}: check the node that made it, such as "
            "Latent From Batch with an index beyond the batch."
        )
    if len(shape) == 4:
        return
    raise ValueError(
        f"The latent to denoise has {len(shape)} dimensions, {tuple(shape)}, but {family} needs the 4 of an image: "
        f"take {nodes}, instead of a video's or a sound's latent."
    )
