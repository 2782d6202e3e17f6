"""What differs between the families that a LoRA is trained for: the loss and its noise levels, and the layers.

Source: the training scripts of the families' authors: NVlabs/Sana `train_scripts/train.py`; PixArt-sigma
`train_scripts/train.py`, which predicts the noise at uniform timesteps; Lumina-T2X `lumina_next_t2i/train.py`, a
rectified flow at logit-normal times. Names of layers in files: diffusers', and for Lumina-Next, of which diffusers
reads no LoRA, ComfyUI's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.lumina.model_base import LuminaModel
from ..models.pixart.convert import DIFFUSERS_BLOCK_KEYS, DIFFUSERS_KEYS, FUSED_KEYS
from ..models.pixart.model_base import VAES, PixArtModel
from ..models.sana.model_base import SanaModel
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
    """One row of the table.

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


def pixart_file_layers(layer: str) -> tuple[str, ...]:
    """A layer of PixArt's network -> diffusers' name, or names where q, k and v are layers of their own."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    if block is None:
        return ({ours: theirs for theirs, ours in DIFFUSERS_KEYS.items()}[layer],)
    names = FUSED_KEYS.get(block[2]) or ({ours: theirs for theirs, ours in DIFFUSERS_BLOCK_KEYS.items()}[block[2]],)
    return tuple(f"transformer_blocks.{block[1]}.{name}" for name in names)


MIX_FFN = r"ff\.conv_(?:inverted|point)"
FLOW = {"loss": flow_loss, "levels": flow_levels, "level": flow_level, "grid": flow_grid}
NOISE = {"loss": noise_loss, "levels": noise_levels, "level": noise_level, "grid": noise_grid}
SANA = Family(
    "SANA", SanaModel, "Sana/lora", **FLOW, blocks="transformer_blocks",
    vae=lambda _: "the DC-AE of SANA DC-AE Loader",
    layers=presets("transformer_blocks", r"attn[12]\.to_[qkv]", r"attn[12]\.to_out\.0", MIX_FFN),
    convolutions=rf"transformer_blocks\.\d+\.{MIX_FFN}",
)  # fmt: skip
PIXART = Family(
    "PixArt", PixArtModel, "PixArt/lora", **NOISE, blocks="blocks",
    vae=lambda model: f"the VAE of {VAES[model.config.family]} from Load VAE",
    layers=presets("blocks", r"attn\.qkv|cross_attn\.(?:q|kv)_linear", r"(?:cross_)?attn\.proj", r"mlp\.fc[12]"),
    file_layers=pixart_file_layers, uniform=True,
)  # fmt: skip
LUMINA = Family(
    "Lumina-Next", LuminaModel, "Lumina-Next/lora", **FLOW, blocks="layers", prefix="diffusion_model.",
    vae=lambda _: "the VAE of SDXL from Load VAE",
    layers=presets("layers", r"attention\.w[qkv](?:_y)?", r"attention\.wo", r"feed_forward\.w[123]"),
)  # fmt: skip
FAMILIES = (SANA, PIXART, LUMINA)


def family_of(model: Any) -> Family | None:
    """The row of a host's model; None where no LoRA can be trained on it."""
    return next((family for family in FAMILIES if isinstance(model, family.model)), None)
