"""Checks of a run on Lumina-Next: what cannot work is refused, and what is probably unintended gets a warning."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..runtime.other_nodes import has_self_attention_guidance
from ..runtime.run_checks import CONSISTENCY_SAMPLERS, ignored_image, require_flow_levels
from .guidance import check_guidance

SCHEDULERS = "SANA Flow Scheduler or Basic Scheduler"
PURE_NOISE = 0.999  # at and above this noise level nothing is left of an image
LOWEST_START = 0.95  # of a new image: below it the network takes the empty latent for a part of an image


def require_run(model_options: Mapping[str, Any], sampler: str, sigmas: Tensor) -> None:
    """Raises ValueError for noise levels (steps + 1,) that a flow does not have, no step, and Self-Attention Guidance.

    sampler: its name in the host's lists.
    """
    if has_self_attention_guidance(model_options.get("transformer_options", {})):
        raise ValueError(
            "Self-Attention Guidance reads the map of a self-attention, but Lumina-Next's cannot be replaced: bypass "
            "that node."
        )
    require_flow_levels(sampler, sigmas, "Lumina-Next", SCHEDULERS)


def check_run(
    model_options: Mapping[str, Any], sampler: str, sigmas: Tensor, has_image: bool, is_empty: bool = False
) -> list[str]:
    """Warnings about one run, [] when there is nothing to say.

    sampler: its name in the host's lists. has_image: the latent is not empty, and no mask keeps a part of it. is_empty:
    the latent is, and the run adds noise.
    """
    found, steps = check_guidance(model_options), len(sigmas) - 1
    if steps < 1:
        return found
    first = float(sigmas[0])
    if sampler in CONSISTENCY_SAMPLERS and steps > 1:  # one step ends at the prediction, whatever the sampler
        found.append(f"Choose the sampler euler: {sampler} is for distilled models, which Lumina-Next is not.")
    if has_image and first >= PURE_NOISE:
        found.append(ignored_image(steps))
    if is_empty and first < LOWEST_START:
        found.append(
            f"Choose the scheduler sana_flow_euler, denoise 1: a new image begins at noise level 1, not {first:.4g}."
        )
    return found
