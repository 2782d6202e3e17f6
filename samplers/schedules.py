"""Noise levels for SANA and Lumina-Next (rectified flow), SANA-Sprint (TrigFlow angles) and PixArt (sigmas in units of
the image): descending, the last is 0.

Source: SANA arXiv 2410.10629 (Flow-DPM-Solver), SANA-Sprint arXiv 2503.09641, sCM arXiv 2410.11081; the grids are those
of diffusers' DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler and SCMScheduler.
Everything is computed in float64 and rounded to float32 once, so the values agree with the reference to the last bit.
"""

import math

import torch
from torch import Tensor

# SANA was trained on u = k / 1000, k = 1..1000: the DPM grid starts one training step below pure noise, and the Euler
# grid stops one training step above the clean image.
U_STEP = 0.001

# pi / 2 as SANA-Sprint writes it: five digits, 3.7e-6 beyond the right angle.
SCM_MAX_TIME = 1.5708
SCM_INTERMEDIATE_TIME = 1.3
PIXART_TIMESTEPS = 1000


def flow_shift(u: float | Tensor, shift: float) -> float | Tensor:
    """Push flow times `u` in [0, 1] towards noise: s u / (1 + (s - 1) u)."""
    return shift * u / (1 + (shift - 1) * u)


def get_sigmas_flow_dpm(steps: int, shift: float, denoise: float = 1.0) -> Tensor:
    """Sigmas of SANA's Flow-DPM-Solver: u uniform from 0.999 to 0, shifted once.

    Returns float32 of shape (steps + 1,), from just below 1 to 0; with `denoise` < 1 the last steps + 1 values of the
    grid with steps / denoise steps, as the host's samplers cut it.

    Raises:
        ValueError: on less than one step, or a shift or denoise out of range.
    """
    total = _total_steps(steps, shift, denoise)
    u = (1 - U_STEP) * (1 - torch.arange(total + 1, dtype=torch.float64) / total)
    return flow_shift(u, shift)[-(steps + 1) :].float()


def get_sigmas_flow_euler(steps: int, shift: float, denoise: float = 1.0) -> Tensor:
    """Sigmas of SANA's Flow-Euler: from 1 to the shifted last training time, shifted again, then 0.

    The second shift is what the reference does (its end points are already shifted when it shifts the grid between
    them), so the last non-zero sigma is 0.0089 at shift 3, whatever the number of steps. Shape and `denoise` as in
    `get_sigmas_flow_dpm`.

    Raises:
        ValueError: on less than one step, or a shift or denoise out of range.
    """
    total = _total_steps(steps, shift, denoise)
    u = torch.linspace(1, flow_shift(U_STEP, shift), total, dtype=torch.float64)
    return torch.cat([flow_shift(u, shift), u.new_zeros(1)])[-(steps + 1) :].float()


def get_sigmas_lumina(steps: int, shift: float, denoise: float = 1.0) -> Tensor:
    """Sigmas of Lumina-Next's authors: u uniform from 1 to 0, shifted once; what they call steps + 1 points.

    Shape and `denoise` as in `get_sigmas_flow_dpm`.

    Raises:
        ValueError: on less than one step, or a shift or denoise out of range.
    """
    total = _total_steps(steps, shift, denoise)
    return flow_shift(torch.linspace(1, 0, total + 1, dtype=torch.float64), shift)[-(steps + 1) :].float()


def get_times_scm(
    steps: int,
    max_time: float = SCM_MAX_TIME,
    intermediate_time: float | None = SCM_INTERMEDIATE_TIME,
    denoise: float = 1.0,
) -> Tensor:
    """TrigFlow angles of SANA-Sprint in radians, float32 of shape (steps + 1,), from max_time * denoise to 0.

    They are evenly spaced, except that two full steps go through `intermediate_time` (None: evenly spaced as well).

    Raises:
        ValueError: on less than one step, or an angle or denoise out of range.
    """
    _check_steps(steps, denoise)
    if not 0 < max_time <= SCM_MAX_TIME:
        raise ValueError(
            f"max_time is {max_time}, but an angle above 0 and up to {SCM_MAX_TIME} (pure noise) is "
            f"needed; set it to {SCM_MAX_TIME} unless the checkpoint says otherwise."
        )
    if steps != 2 or denoise < 1 or intermediate_time is None:
        return torch.linspace(max_time * denoise, 0, steps + 1, dtype=torch.float64).float()
    if not 0 < intermediate_time < max_time:
        cure = f"set it to {SCM_INTERMEDIATE_TIME}"
        if max_time <= SCM_INTERMEDIATE_TIME:
            cure += f" and max_time to {SCM_MAX_TIME}, or only lower it below max_time"
        raise ValueError(
            f"intermediate_time is {intermediate_time}, but an angle between 0 and max_time {max_time} is "
            f"needed; {cure}."
        )
    return torch.tensor([max_time, intermediate_time, 0.0])


def scm_time_to_sigma(t: float | Tensor) -> float | Tensor:
    """Flow noise level of a TrigFlow angle `t` in radians: sin t / (sin t + cos t), the time SANA-Sprint embeds."""
    sin, cos = (torch.sin(t), torch.cos(t)) if isinstance(t, Tensor) else (math.sin(t), math.cos(t))
    return sin / (sin + cos)


def get_sigmas_scm(
    steps: int,
    max_time: float = SCM_MAX_TIME,
    intermediate_time: float | None = SCM_INTERMEDIATE_TIME,
    denoise: float = 1.0,
) -> Tensor:
    """`get_times_scm` as flow sigmas, float32 of shape (steps + 1,).

    The first value is at most 1: SANA's rounded pi / 2 gives 1.0000037, and the host would take that as lying before
    the start of every ControlNet and conditioning range, which all begin at sigma 1.

    Raises:
        ValueError: as `get_times_scm`.
    """
    times = get_times_scm(steps, max_time, intermediate_time, denoise)
    return scm_time_to_sigma(times.double()).clamp(max=1).float()


def get_sigmas_pixart(steps: int, denoise: float = 1.0) -> Tensor:
    """Sigmas of PixArt's DPM-Solver++: whole timesteps from 999 downwards in even steps, then 0.

    Shape and `denoise` as in `get_sigmas_flow_dpm`.

    Raises:
        ValueError: on less than one step or more than 999, or a denoise out of range.
    """
    _check_steps(steps, denoise)
    total = int(steps / denoise)
    if total > PIXART_TIMESTEPS - 1:
        raise ValueError(
            f"{total} steps are more than the {PIXART_TIMESTEPS - 1} timesteps PixArt was trained on: "
            f"{'lower steps' if denoise == 1 else 'raise denoise, or lower steps'}."
        )
    # Halves are rounded to the even neighbor, and the step is divided first: both as the reference's numpy does.
    step = (PIXART_TIMESTEPS - 1) / total
    timesteps = [round(k * step) for k in range(total, 0, -1)]
    return torch.tensor([*map(pixart_sigma, timesteps), 0.0], dtype=torch.float64)[-(steps + 1) :].float()


def pixart_sigma(timestep: int) -> float:
    """Noise of PixArt's timestep 0 to 999 in units of the image: betas rise evenly from 0.0001 to 0.02."""
    betas = torch.linspace(1e-4, 0.02, PIXART_TIMESTEPS, dtype=torch.float64)[: timestep + 1]
    alpha = float(torch.prod(1 - betas))
    return math.sqrt((1 - alpha) / alpha)


def _total_steps(steps: int, shift: float, denoise: float) -> int:
    _check_steps(steps, denoise)
    if not shift > 0:
        raise ValueError(f"shift is {shift}, but a number above 0 is needed; SANA uses 3 (6 at 4096 px).")
    return int(steps / denoise)


def _check_steps(steps: int, denoise: float) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}, but at least 1 is needed; raise steps.")
    if not 0 < denoise <= 1:
        raise ValueError(
            f"denoise is {denoise}, but a number above 0 and up to 1 is needed; set it to 1 for a new image."
        )
