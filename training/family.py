"""What a family of models is to a training: its loss, the noise levels of that, and its layers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..samplers.schedules import get_sigmas_flow_dpm
from .loss import TIMESTEPS, Loss, flow_loss, noise_loss, sample_sigma, sample_timesteps

QKV, ATTENTION, FEED_FORWARD, ALL = "attention qkv", "attention", "attention + mix-ffn", "all linear"
PRESETS = (QKV, ATTENTION, FEED_FORWARD, ALL)


def flow_levels(sampling: Any, generator: torch.Generator, count: int, mode: str) -> Tensor:
    return sample_sigma(generator, count, mode, sampling.shift)


def flow_level(sampling: Any, part: float) -> float:  # noqa: ARG001 - as of the other families
    return part


def flow_grid(sampling: Any, steps: int) -> list[float]:
    return get_sigmas_flow_dpm(steps, float(sampling.shift)).tolist()


def noise_levels(sampling: Any, generator: torch.Generator, count: int, mode: str) -> Tensor:
    return sampling.sigmas.cpu()[sample_timesteps(generator, count, mode)].float()


def noise_level(sampling: Any, part: float) -> float:
    return float(sampling.sigmas[round(part * TIMESTEPS)])


def noise_grid(sampling: Any, steps: int) -> list[float]:
    places = torch.linspace(TIMESTEPS - 1, 0, steps).round().long()
    return [*sampling.sigmas.cpu()[places].tolist(), 0.0]


@dataclass(frozen=True)
class Family:
    """One row of the table in `families.py`.

    loss: of the family's prediction, see `loss.py`. levels, level, grid: noise levels drawn for a step, that of a
    part of the way to pure noise, and those of a preview from noise to 0, each of the host's model sampling. vae:
    of a model, for messages. blocks: the network's attribute. layers: pattern of a preset's layers. file_layers: a
    layer's names in files, as many as its rows are split into there. convolutions: linear layers that files hold as
    1x1 convolutions.
    """

    name: str
    model: type
    architecture: str
    loss: Loss
    levels: Callable[[Any, torch.Generator, int, str], Tensor]
    level: Callable[[Any, float], float]
    grid: Callable[[Any, int], list[float]]
    vae: Callable[[Any], str]
    blocks: str
    layers: dict[str, str]
    prefix: str = "transformer."
    file_layers: Callable[[str], tuple[str, ...]] = lambda layer: (layer,)
    convolutions: str = "(?!)"  # none
    uniform: bool = False  # noise levels are drawn so, whatever was chosen


def presets(block: str, qkv: str, out: str, feed_forward: str) -> dict[str, str]:
    """Patterns of `PRESETS` from those of a block's layers."""
    parts = [rf"{block}\.\d+\.(?:{part})" for part in (qkv, out, feed_forward)]
    return {QKV: parts[0], ATTENTION: "|".join(parts[:2]), FEED_FORWARD: "|".join(parts), ALL: ".+"}


FLOW = {"loss": flow_loss, "levels": flow_levels, "level": flow_level, "grid": flow_grid}
NOISE = {"loss": noise_loss, "levels": noise_levels, "level": noise_level, "grid": noise_grid}
