"""Tensor names and shapes -> LuminaConfig; nothing else is needed, and nothing else is asked.

Source: key lists of the released checkpoints in Alpha-VLLM's and diffusers' layouts.
"""

from collections.abc import Mapping
from typing import Any

from ..files.config_values import check_shapes
from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of
from ..runtime.precision import count
from .config import PATCH_SIZE, LuminaConfig

LUMINA_KEYS = (
    "layers.0.attention.wk_y.weight",
    "cap_embedder.0.bias",
    "x_embedder.weight",
    "final_layer.linear.weight",
)
# Lumina 2 has none of these: its text is part of the image's own attention, and its norm of the text has no bias.
LUMINA_MARKS = (
    "layers.0.attention.wk_y.weight",
    "layers.0.attention_y_norm.weight",
    "time_caption_embed.caption_embedder.0.bias+layers.0.attn2.to_k.weight",
)
WHY = "known by the keys that each block has for the text"
MODULATIONS = 4  # of a block: scale and gate of its attention, scale and gate of its feed-forward part
MODULATIONS_OF_MAY_2024 = 6
RELEASES = "Alpha-VLLM's Lumina-Next-SFT or Lumina-Next-T2I"


def is_lumina(state_dict: StateDict) -> bool:
    """True for a transformer of Lumina-Next in the network's layout, that of May 2024 among them."""
    if any(key.startswith("noise_refiner.") or key.endswith(FOREIGN_ENGINES) for key in state_dict):
        return False
    return all(key in state_dict for key in LUMINA_KEYS)


def refuse_other_models(name: str, state_dict: StateDict) -> None:
    """Raises ValueError for models that share Lumina-Next's names but not its network."""
    modulation, hidden_size = state_dict["layers.0.adaLN_modulation.1.weight"], state_dict["x_embedder.weight"].shape[0]
    if modulation.shape[0] == MODULATIONS_OF_MAY_2024 * hidden_size:
        raise ValueError(
            f"{name} is a Lumina-Next as it was before June 2024, with another network (8.42 GB in float32): take the "
            f"present file of {RELEASES}."
        )
    own = next((key for key in state_dict if ".attn2." in key), None)
    if own is not None:
        raise ValueError(
            f"{name} has queries of its own for the text ({own} differs from attn1's), which Lumina-Next's network "
            f"does not have: take {RELEASES}, or a fine-tune in their layout."
        )


def detect_lumina(state_dict: StateDict, name: str = "", source: Mapping[str, Any] | None = None) -> LuminaConfig:
    """Configuration of a transformer in the network's layout.

    source: diffusers' config.json, which may not contradict the tensors. Raises ValueError for models of another
    network, KeyError with the name of a tensor that is missing.
    """
    refuse_other_models(name, state_dict)
    hidden_size, patch = state_dict["x_embedder.weight"].shape
    heads = state_dict["layers.0.attention.gate.weight"].shape[0]
    kv_size = state_dict["layers.0.attention.wk.weight"].shape[0]
    config = LuminaConfig(
        hidden_size=hidden_size,
        depth=depth_of(state_dict, "layers."),
        num_heads=heads,
        num_kv_heads=kv_size * heads // hidden_size,
        caption_channels=state_dict["cap_embedder.1.weight"].shape[1],
        mlp_hidden_size=state_dict["layers.0.feed_forward.w1.weight"].shape[0],
        conditioning_size=state_dict["cap_embedder.1.weight"].shape[0],
        in_channels=patch // PATCH_SIZE**2,
    )
    told = {
        "hidden_size": config.hidden_size,
        "num_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "cross_attention_dim": config.caption_channels,
        "in_channels": config.in_channels,
    }
    check_shapes(name, source or {}, told)
    return config


def describe_lumina(config: LuminaConfig, parameters: int, layout: str) -> str:
    size = f"{config.hidden_size} wide, {config.depth} deep"
    return f"Lumina-Next, {size} ({count(parameters)} parameters, {layout} layout), {WHY}"
