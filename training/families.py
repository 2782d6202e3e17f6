"""What differs between the families that a LoRA is trained for: the loss and its noise levels, and the layers.

Source: the training scripts of the families' authors: NVlabs/Sana `train_scripts/train.py`; PixArt-sigma
`train_scripts/train.py`, which predicts the noise at uniform timesteps; Lumina-T2X `lumina_next_t2i/train.py`, a
rectified flow at logit-normal times. Names of layers in files: diffusers', and for Lumina-Next, of which diffusers
reads no LoRA, ComfyUI's.
"""

import re
from typing import Any

from ..models.lumina.model_base import LuminaModel
from ..models.pixart.convert import DIFFUSERS_BLOCK_KEYS, DIFFUSERS_KEYS, FUSED_KEYS
from ..models.pixart.model_base import VAES, PixArtModel
from ..models.sana.model_base import SanaModel
from .family import FLOW, NOISE, Family, presets


def pixart_file_layers(layer: str) -> tuple[str, ...]:
    """A layer of PixArt's network -> diffusers' name, or names where q, k and v are layers of their own."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    if block is None:
        return ({ours: theirs for theirs, ours in DIFFUSERS_KEYS.items()}[layer],)
    names = FUSED_KEYS.get(block[2]) or ({ours: theirs for theirs, ours in DIFFUSERS_BLOCK_KEYS.items()}[block[2]],)
    return tuple(f"transformer_blocks.{block[1]}.{name}" for name in names)


MIX_FFN = r"ff\.conv_(?:inverted|point)"
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
