"""What nodes made for UNets look up and replace, where a transformer has no such thing."""

from collections.abc import Mapping
from typing import Any

NODE_TITLES = {
    "NAGuidance": "Normalized Attention Guidance",
    "PerpNeg": "Perp-Neg",
    "PerturbedAttention": "SANA PAG",
    "SelfAttentionGuidance": "Self-Attention Guidance",
    "ZeroStarGuidance": "SANA CFG-Zero Star",
}


class UNetConfig(dict):
    """The host's `unet_config`, in which nodes for UNets look up what a transformer does not have."""

    def __missing__(self, key: str) -> Any:
        """Raises ValueError for FreeU, KeyError for others."""
        if key == "model_channels":
            raise ValueError(
                "FreeU scales the skip connections of a UNet, but this model is a transformer without any: bypass that "
                "node."
            )
        raise KeyError(key)

    def copy(self) -> "UNetConfig":
        return UNetConfig(self)


def owner_of(function: Any) -> str:
    """The node that made a patch, as far as its name tells: nodes define them in their `execute` or `patch`."""
    name = getattr(function, "__qualname__", type(function).__qualname__).split(".")[0]
    return NODE_TITLES.get(name, name)


def setting_of(function: Any, name: str) -> Any:
    """A setting that a node's function has from where it was defined; None where it has none of this name."""
    inner = getattr(function, "__closure__", None) or ()
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return dict(zip(names, (cell.cell_contents for cell in inner))).get(name)


def has_self_attention_guidance(transformer_options: Mapping[str, Any]) -> bool:
    replaced = transformer_options.get("patches_replace", {}).get("attn1", {})
    return "Self-Attention Guidance" in map(owner_of, replaced.values())
