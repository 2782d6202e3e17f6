"""Checks of a run on Lumina-Next: what cannot work is refused, and what is probably unintended gets a warning."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..runtime.other_nodes import has_self_attention_guidance
from ..runtime.run_checks import ignored_image, require_flow_levels
from .guidance import check_guidance

SCHEDULERS = "SANA Flow Scheduler or Basic Scheduler"
PURE_NOISE = 0.999  # at and above this noise level nothing is left of an image


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


def check_run(model_options: Mapping[str, Any], sigmas: Tensor, has_image: bool) -> list[str]:
    """Warnings about one run, [] when there is nothing to say."""
    found = check_guidance(model_options)
    if has_image and len(sigmas) > 1 and float(sigmas[0]) >= PURE_NOISE:
        found.append(ignored_image(len(sigmas) - 1))
    return found
