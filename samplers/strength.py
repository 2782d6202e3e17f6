"""Noise levels that begin at a given sigma, so that a share of 1 - sigma of the image is preserved.

`denoise` cuts the last part of a grid instead, whose first level the flow shift raises: 0.5 begins at 0.75, shift 3.
Every grid here is, at sigma 1, the whole grid of `schedules`.
"""

import math

import torch
from torch import Tensor

from .schedules import PIXART_TIMESTEPS, SCM_MAX_TIME, U_STEP, flow_shift, get_sigmas_scm, pixart_sigma


def unshift(sigma: float, shift: float) -> float:
    """The flow time that `flow_shift` pushes to this sigma: sigma / (s - (s - 1) sigma)."""
    return sigma / (shift - (shift - 1) * sigma)


def flow_dpm_from(steps: int, shift: float, sigma: float) -> Tensor:
    """Sigmas of Flow-DPM (steps + 1,) from `sigma`, at most the grid's first, to 0: even before the shift."""
    first = min(unshift(_checked(sigma), shift), 1 - U_STEP)
    return flow_shift(first * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps), shift).float()


def flow_euler_from(steps: int, shift: float, sigma: float) -> Tensor:
    """Sigmas of Flow-Euler (steps + 1,) from `sigma` to the grid's last level, or a lower one; then 0."""
    first = unshift(_checked(sigma), shift)
    u = torch.linspace(first, min(flow_shift(U_STEP, shift), first / steps), steps, dtype=torch.float64)
    return torch.cat([flow_shift(u, shift), u.new_zeros(1)]).float()


def scm_from(steps: int, sigma: float) -> Tensor:
    """Sigmas of SANA-Sprint (steps + 1,) from `sigma` to 0 in even angles; at 1 the released ones."""
    if _checked(sigma) == 1:
        return get_sigmas_scm(steps)
    return get_sigmas_scm(steps, min(math.atan2(sigma, 1 - sigma), SCM_MAX_TIME), None)


def pixart_from(steps: int, sigma: float) -> Tensor:
    """Sigmas of PixArt's DPM-Solver++ (steps + 1,), in units of the image, from the noise that `sigma` has in a flow.

    Raises:
        ValueError: if the range has fewer timesteps than steps.
    """
    first = _last_below([pixart_sigma(timestep) for timestep in range(PIXART_TIMESTEPS)], sigma)
    if steps > first:
        raise ValueError(
            f"{steps} steps are more than the {first} timesteps that PixArt has below sigma {sigma}: lower steps, or "
            "raise denoise."
        )
    step = first / steps
    return torch.tensor([*(pixart_sigma(round(k * step)) for k in range(steps, 0, -1)), 0.0])


def simple_from(levels: Tensor, steps: int, sigma: float) -> Tensor:
    """The host's `simple` grid (steps + 1,) over the lower part of a model's levels, ascending, in units of the image.

    Raises:
        ValueError: if that part has fewer levels than steps.
    """
    used = _last_below(levels.tolist(), sigma) + 1
    if steps > used:
        raise ValueError(
            f"{steps} steps are more than the {used} levels below sigma {sigma}: lower steps, or raise denoise."
        )
    chosen = [levels[used - 1 - int(k * used / steps)] for k in range(steps)]
    return torch.tensor([*map(float, chosen), 0.0])


def _checked(sigma: float) -> float:
    if not 0 < sigma <= 1:
        raise ValueError(f"denoise is {sigma}, but as a sigma it is above 0 and up to 1; set it to 1 for a new image.")
    return sigma


def _last_below(levels: list[float], sigma: float) -> int:
    """Index of the last level with no more noise than `sigma` of a flow, whose image it scales by 1 - sigma."""
    if _checked(sigma) == 1:
        return len(levels) - 1
    return max((k for k, level in enumerate(levels) if level <= sigma / (1 - sigma)), default=0)
