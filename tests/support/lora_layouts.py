"""One LoRA in the layout of every trainer, made from diffusers' names by its own mapping, not by the pack's tables."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from sana_native.tests.support import layouts
from torch import Tensor

RANK, ALPHA = 4, 2.0
# Each kind of layer that trainers change; those of one attention together, because NVIDIA fuses them.
LAYERS = (
    *(f"transformer_blocks.0.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"transformer_blocks.1.attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"transformer_blocks.0.ff.{name}" for name in ("conv_inverted", "conv_depth", "conv_point")),
    "patch_embed.proj",
    "caption_projection.linear_1",
    "time_embed.linear",
    "time_embed.emb.timestep_embedder.linear_2",
    "proj_out",
)


@dataclass
class Low:
    """Two factors and an alpha: a change of alpha / rank * up @ down."""

    down: Tensor
    up: Tensor
    alpha: float = ALPHA

    @property
    def scale(self) -> float:
        return self.alpha / self.down.shape[0]

    def change(self, shape: torch.Size) -> Tensor:
        """In float64, in the shape of the weight."""
        return (self.up.flatten(1).double() @ self.down.flatten(1).double() * self.scale).reshape(shape)


Lora = dict[str, Low]


def make_lora(weights: Mapping[str, Tensor], layers=LAYERS, seed: int = 0, rank: int = RANK) -> Lora:
    """Random factors for the layers; convolutions get four-dimensional ones, as trainers write them."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for layer in layers:
        shape = weights[layer].shape
        down = torch.randn(rank, *shape[1:], generator=generator) * 0.1
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * 0.1
        out[layer] = Low(down, up)
    return out


def named(lora: Lora, name: Callable[[str], str], down: str, up: str, alpha: bool) -> dict[str, Tensor]:
    """Without an alpha of its own the scale is worked into the second factor."""
    out = {}
    for layer, low in lora.items():
        out[f"{name(layer)}.{down}.weight"] = low.down
        out[f"{name(layer)}.{up}.weight"] = low.up if alpha else low.up * low.scale
        if alpha:
            out[f"{name(layer)}.alpha"] = torch.tensor(low.alpha)
    return out


def flat(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer


def nvidia_name(layer: str) -> str:
    block = re.match(r"transformer_blocks\.(\d+)\.(.+)", layer)
    if block is None:
        return layouts.SANA_RENAMES[layer]
    fused = {parts: name for parts, name in layouts.SANA_FUSED.values()}
    name = next((name for parts, name in fused.items() if block[2] in parts), None)
    return f"blocks.{block[1]}.{name or layouts.SANA_BLOCK_RENAMES[block[2]]}"


def fuse(lora: Lora) -> Lora:
    """NVIDIA's layers: factors of a fused one side by side and block by block, with the same change."""
    groups: dict[str, list[Low]] = {}
    for layer, low in lora.items():
        groups.setdefault(nvidia_name(layer), []).append(low)
    return {
        name: lows[0]
        if len(lows) == 1
        else Low(torch.cat([low.down for low in lows]), torch.block_diag(*(low.up for low in lows)), ALPHA * len(lows))
        for name, lows in groups.items()
    }


def text_encoder_keys() -> dict[str, Tensor]:
    """What OneTrainer adds when it trains the text encoder and an embedding too."""
    name = "text_encoder.layers.0.self_attn.q_proj"
    return {
        f"{name}.lora_down.weight": torch.ones(RANK, 64),
        f"{name}.lora_up.weight": torch.ones(64, RANK),
        f"{name}.alpha": torch.tensor(ALPHA),
        "bundle_emb.sks.gemma": torch.ones(1, 64),
    }


LAYOUTS: dict[str, Callable[[Lora], dict[str, Tensor]]] = {
    "diffusers": lambda lora: named(lora, dotted("transformer."), "lora_A", "lora_B", alpha=False),
    "peft": lambda lora: named(lora, dotted("base_model.model."), "lora_A", "lora_B", alpha=False),
    "bare": lambda lora: named(lora, dotted(""), "lora_A", "lora_B", alpha=False),
    "peft_default": lambda lora: named(lora, dotted(""), "lora_A.default", "lora_B.default", alpha=False),
    "onetrainer": lambda lora: (
        named(lora, dotted("transformer."), "lora_down", "lora_up", alpha=True) | text_encoder_keys()
    ),
    "onetrainer_flat": lambda lora: named(lora, flat("lora_transformer_"), "lora_down", "lora_up", alpha=True),
    "simpletuner": lambda lora: named(lora, flat("lycoris_"), "lora_down", "lora_up", alpha=True),
    "kohya": lambda lora: named(lora, flat("lora_unet_"), "lora_down", "lora_up", alpha=True),
    "comfy": lambda lora: named(lora, dotted("diffusion_model."), "lora_down", "lora_up", alpha=True),
    "nvidia": lambda lora: named(fuse(lora), dotted(""), "lora_A", "lora_B", alpha=False),
    "nvidia_flat": lambda lora: named(fuse(lora), flat("lora_unet_"), "lora_down", "lora_up", alpha=True),
}
# Layouts with names that the host knows for our model, so that its own LoRA nodes read them.
STOCK_LAYOUTS = ["diffusers", "peft", "bare", "peft_default", "onetrainer", "simpletuner", "kohya", "comfy"]


def save_with_header(path: Path, lora: Lora, **config) -> None:
    """As diffusers saves an adapter whose alpha differs from its rank: the alpha is in the file's header alone."""
    tensors = {}
    for layer, low in lora.items():
        tensors |= {
            f"transformer.{layer}.lora_A.weight": low.down,
            f"transformer.{layer}.lora_B.weight": low.up,
        }
    packed = {f"transformer.{key}": value for key, value in {"r": RANK, "lora_alpha": ALPHA, **config}.items()}
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(packed)})
