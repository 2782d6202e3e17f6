"""What a loaded file is, in words, for the one log line it gets."""

from typing import Any

from .config import DCAEConfig, SanaConfig
from .precision import Precision, name_of

RELEASED = {(1152, 28): "0.6B", (2240, 20): "1.6B", (2240, 60): "4.8B"}  # width and depth -> the name of the size


def count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


def describe_sana(config: SanaConfig, parameters: int, layout: str) -> str:
    family = "SANA-Sprint" if config.guidance_embeds else "SANA-1.5" if config.qk_norm else "SANA"
    size = RELEASED.get((config.hidden_size, config.depth), f"{config.hidden_size} wide, {config.depth} deep")
    trained = f"trained in {config.trained_in}" if config.trained_in else "training format unknown"
    native = 32 * config.sample_size
    return f"{family} {size} ({count(parameters)} parameters, {layout} layout), {trained}, native {native} px"


def describe_gemma(model_config: dict[str, Any], parameters: int, formats: str) -> str:
    kept = f", quantised as {formats}" if formats else ""
    return f"Gemma-2, width {model_config['hidden_size']} ({count(parameters)} parameters{kept})"


def describe_dc_ae(config: DCAEConfig, layout: str) -> str:
    ratio = 2 ** (len(config.encoder.widths) - 1)
    return f"DC-AE f{ratio}c{config.latent_channels} ({layout} layout)"


def describe_precision(precision: Precision) -> str:
    clamp = ", self-attention clamped" if precision.clamp else ""
    return f"weights {name_of(precision.weights)}, computed in {name_of(precision.compute)}{clamp} ({precision.reason})"
