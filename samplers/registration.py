"""Puts SANA's samplers and schedules in the host's own lists, so that KSampler and every such dropdown offer them.

Additive only: a name that is taken stays with its owner. The entry point of the pack calls `register`; importing this
file changes nothing.
"""

import logging
import math
from types import MappingProxyType

import comfy.samplers
from comfy.k_diffusion import sampling as k_diffusion
from comfy.model_sampling import ModelSamplingFlux
from torch import Tensor

from .dmd import sample_pixart_dmd
from .flow_dpm import sample_flow_dpm
from .midpoint import sample_midpoint
from .schedules import (
    get_sigmas_flow_dpm,
    get_sigmas_flow_euler,
    get_sigmas_lumina,
    get_sigmas_pixart,
    get_sigmas_scm,
    pixart_sigma,
)
from .scm import sample_scm

DEFAULT_SHIFT = 3.0  # for a flow whose model sampling names no shift
PIXART_TOLERANCE = 1e-3  # of the highest noise level, which the host computes in float32


def sana_flow(model_sampling: object, steps: int) -> Tensor:
    """Scheduler "sana_flow": the Flow-DPM grid with the model's own shift."""
    return get_sigmas_flow_dpm(steps, flow_shift_of(model_sampling))


def sana_flow_euler(model_sampling: object, steps: int) -> Tensor:
    """Scheduler "sana_flow_euler": the Flow-Euler grid with the model's own shift."""
    return get_sigmas_flow_euler(steps, flow_shift_of(model_sampling))


def sana_scm(model_sampling: object, steps: int) -> Tensor:
    """Scheduler "sana_scm": SANA-Sprint's angles at their defaults."""
    _check_flow(model_sampling)
    return get_sigmas_scm(steps)


def sana_lumina(model_sampling: object, steps: int) -> Tensor:
    """Scheduler "sana_lumina": the grid of Lumina-Next's authors with the model's own shift."""
    return get_sigmas_lumina(steps, flow_shift_of(model_sampling))


def sana_pixart(model_sampling: object, steps: int) -> Tensor:
    """Scheduler "sana_pixart": PixArt's whole timesteps."""
    check_pixart(model_sampling)
    return get_sigmas_pixart(steps)


SAMPLERS = MappingProxyType(
    {
        "sana_flow_dpm": sample_flow_dpm,
        "sana_scm": sample_scm,
        "sana_midpoint": sample_midpoint,
        "sana_pixart_dmd": sample_pixart_dmd,
    }
)
SCHEDULERS = MappingProxyType(
    {
        "sana_flow": sana_flow,
        "sana_flow_euler": sana_flow_euler,
        "sana_scm": sana_scm,
        "sana_lumina": sana_lumina,
        "sana_pixart": sana_pixart,
    }
)


def register() -> None:
    """Add `SAMPLERS` and `SCHEDULERS` to the host; a second call changes nothing, a taken name is left and logged."""
    for name, sampler in SAMPLERS.items():
        attribute = f"sample_{name}"  # where the host looks a sampler up
        owner = getattr(k_diffusion, attribute, None)
        if owner is None and name not in comfy.samplers.SAMPLER_NAMES:
            setattr(k_diffusion, attribute, sampler)
            comfy.samplers.SAMPLER_NAMES.append(name)
        elif owner is not sampler:
            _warn_taken("sampler", name)
    for name, scheduler in SCHEDULERS.items():
        owner = comfy.samplers.SCHEDULER_HANDLERS.get(name)
        if owner is None and name not in comfy.samplers.SCHEDULER_NAMES:
            comfy.samplers.SCHEDULER_HANDLERS[name] = comfy.samplers.SchedulerHandler(scheduler, use_ms=True)
            comfy.samplers.SCHEDULER_NAMES.append(name)
        elif owner is None or owner.handler is not scheduler:
            _warn_taken("scheduler", name)


def _warn_taken(kind: str, name: str) -> None:
    logging.warning(
        "SANA: the %s name %s is already taken by another pack, so its version is the one in the lists; "
        "use the SANA Native nodes instead, or remove the other pack or copy.",
        kind,
        name,
    )


def flow_shift_of(model_sampling: object) -> float:
    """Shift of the flow that the model samples as; Flux's class holds its logarithm.

    Raises:
        ValueError: if its noise levels go beyond 1, so that it is no flow.
    """
    _check_flow(model_sampling)
    shift = float(getattr(model_sampling, "shift", DEFAULT_SHIFT))
    return math.exp(shift) if isinstance(model_sampling, ModelSamplingFlux) else shift


def _check_flow(model_sampling: object) -> None:
    sigma_max = float(getattr(model_sampling, "sigma_max", 1.0))
    if sigma_max > 1.001:
        if abs(sigma_max - pixart_sigma(999)) <= PIXART_TOLERANCE * sigma_max:
            raise ValueError(
                "The schedulers sana_flow, sana_flow_euler, sana_scm and sana_lumina give flow noise levels from 1 to "
                f"0, but this model's begin at {sigma_max:.4g}, as PixArt's do: choose sana_pixart for a PixArt, or a "
                "stock scheduler such as normal for another model."
            )
        raise ValueError(
            f"SANA's schedulers give flow noise levels from 1 to 0, but this model's begin at "
            f"{sigma_max:.4g}; on a SANA model bypass the node that set it, such as ModelSamplingDiscrete, or choose a "
            "stock scheduler such as normal for another model."
        )


def check_pixart(model_sampling: object) -> None:
    """Raises ValueError for a model whose noise levels are not PixArt's."""
    highest, found = pixart_sigma(999), float(getattr(model_sampling, "sigma_max", math.inf))
    if abs(found - highest) > PIXART_TOLERANCE * highest:
        raise ValueError(
            f"The scheduler sana_pixart begins at PixArt's highest noise level {highest:.4g}, but this model's is "
            f"{found:.4g}: choose the model's own scheduler, or bypass the ModelSampling node that set it."
        )
