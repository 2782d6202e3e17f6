"""Settings that are allowed but hardly meant: one sentence each, with the cure. Nothing is changed or stopped."""

from collections.abc import Iterable

import comfy.samplers
import torch
from torch import Tensor

from .resolution import RESOLUTION_BINS, nearest_bin

SPRINT_STEPS = 4
SPRINT_GUIDANCE = (4.0, 5.0)  # what SANA-Sprint was distilled with, arXiv 2503.09641
PIXELS = 32  # a side of a latent position
# The host's schedulers by what they do to a flow: the first follow SANA's grid or lie close to it, beta included.
EVEN = ("simple", "sgm_uniform", "normal", "beta")
UNEVEN = ("karras", "exponential", "kl_optimal", "linear_quadratic", "ddim_uniform")
SIGMA_TOLERANCE = 1e-4


def advise(
    config, model_sampling: object, sigmas: Tensor, guidance: Iterable[float], size: tuple[int, int]
) -> list[str]:
    """Sentences about one run, [] when there is nothing to say.

    config: SanaConfig of the model. sigmas: (steps + 1,) as given to the sampler. guidance: of the prompts that have
    one. size: (height, width) of the latent.
    """
    if len(sigmas) < 2:
        return []
    found = [schedule_advice(config, model_sampling, sigmas), size_advice(config.sample_size * PIXELS, size)]
    if config.guidance_embeds:
        found += [steps_advice(len(sigmas) - 1), *map(guidance_advice, sorted(set(guidance)))]
    return [sentence for sentence in found if sentence]


def schedule_advice(config, model_sampling: object, sigmas: Tensor) -> str | None:
    if config.guidance_embeds:
        model, own, good, doubtful = "SANA-Sprint", "sana_scm", (), EVEN + UNEVEN
    else:
        model, own, good, doubtful = "SANA", "sana_flow", EVEN, (*UNEVEN, "sana_scm")
    if schedulers_of(model_sampling, sigmas, (own, *good)):
        return None
    names = " or ".join(schedulers_of(model_sampling, sigmas, doubtful))
    return names and f"The scheduler {names} takes other noise levels than {model} is drawn with: choose {own}."


def schedulers_of(model_sampling: object, sigmas: Tensor, names: Iterable[str]) -> list[str]:
    """Which of the host's schedulers give these noise levels, all of them; with few steps several are the same."""
    found = []
    for name in comfy.samplers.SCHEDULER_HANDLERS.keys() & set(names):
        known = comfy.samplers.calculate_sigmas(model_sampling, name, len(sigmas) - 1)
        if known.shape == sigmas.shape and torch.allclose(known.cpu(), sigmas.float().cpu(), atol=SIGMA_TOLERANCE):
            found.append(name)
    return sorted(found)


def steps_advice(steps: int) -> str | None:
    if steps <= SPRINT_STEPS:
        return None
    return f"SANA-Sprint is made for 1 to {SPRINT_STEPS} steps, not {steps}: set steps to 2."


def guidance_advice(guidance: float) -> str | None:
    low, high = SPRINT_GUIDANCE
    if low <= guidance <= high:
        return None
    return f"SANA-Sprint was distilled with a guidance of {low:g} to {high:g}, not {guidance:g}: set 4.5."


def size_advice(native: int, size: tuple[int, int]) -> str | None:
    """native: side in pixels of the square the checkpoint was trained on; one without a table is not judged."""
    height, width = (side * PIXELS for side in size)
    trained = set(RESOLUTION_BINS.get(native, {}).values())
    if not trained or {(height, width), (width, height)} & trained:
        return None
    near_height, near_width = nearest_bin(height, width, native)
    return (
        f"{width} x {height} px is no size that this checkpoint was trained on: the nearest in shape is "
        f"{near_width} x {near_height}, see SANA Empty Latent."
    )
