"""Tiny SANA ControlNets with random weights, as diffusers and NVIDIA write them, and NVIDIA's wiring as a reference."""

import re
from collections.abc import Mapping
from pathlib import Path

import diffusers
from sana_native.tests.support import layouts, tiny
from torch import Tensor

BLOCKS = 2  # copied


def reference(seed: int = 5, **overrides) -> diffusers.SanaControlNetModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": BLOCKS,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 64,
        "caption_channels": tiny.CAPTION_CHANNELS,
        "sample_size": 32,
    }
    return tiny.randomize(diffusers.SanaControlNetModel(**config | overrides), seed)


def nvidia_branch(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """NVIDIA's `controlnet.*` of diffusers' tensors, without the embeddings, which are the base's there."""
    out = {
        "controlnet.0.before_proj.weight": state_dict["input_block.weight"],
        "controlnet.0.before_proj.bias": state_dict["input_block.bias"],
    }
    others = {
        key: each for key, each in state_dict.items() if not key.startswith(("controlnet_blocks.", "input_block."))
    }
    for key, tensor in layouts.nvidia_sana(others).items():
        if match := re.match(r"blocks\.(\d+)\.(.+)", key):
            out[f"controlnet.{match[1]}.copied_block.{match[2]}"] = tensor
    for key, tensor in state_dict.items():
        if match := re.match(r"controlnet_blocks\.(\d+)\.(.+)", key):
            out[f"controlnet.{match[1]}.after_proj.{match[2]}"] = tensor
    return out


def merged(base: Mapping[str, Tensor], control: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """NVIDIA's single file: the base with its ControlNet."""
    return layouts.nvidia_sana(base) | nvidia_branch(control)


def save_merged(folder: Path, base: diffusers.SanaTransformer2DModel, control: diffusers.SanaControlNetModel) -> str:
    """The merged .pth, with the base's config.json, which tells the heads of a width that was not released."""
    content = merged(base.state_dict(), control.state_dict())
    return layouts.save(folder / "Sana_ControlNet_HED.pth", content, config=dict(base.config))


def save_layouts(folder: Path, base: diffusers.SanaTransformer2DModel) -> tuple[str, str]:
    """The reference as a diffusers pipeline's folder and in NVIDIA's single file with the base; returns both paths."""
    control = reference()
    control.save_pretrained(folder / "pipeline" / "controlnet")
    return str(folder / "pipeline"), save_merged(folder / "nvidia", base, control)


def nvlabs_forward(
    base: diffusers.SanaTransformer2DModel,
    control: diffusers.SanaControlNetModel,
    x: Tensor,
    hint: Tensor,
    timestep: Tensor,
    states: Tensor,
    mask: Tensor,
    strength: float = 1.0,
) -> Tensor:
    """NVIDIA's wiring with diffusers' layers: the branch reads the base's first block and enters the second."""
    bias = ((1 - mask.to(x.dtype)) * -10000.0)[:, None]
    height, width = x.shape[-2:]
    modulation, embedded = base.time_embed(timestep, batch_size=len(x), hidden_dtype=x.dtype)
    states = base.caption_norm(base.caption_projection(states).view(len(x), -1, 64))

    def run(block, tokens):
        return block(tokens, None, states, bias, modulation, height, width)

    tokens = run(base.transformer_blocks[0], base.patch_embed(x))
    h = tokens + control.input_block(base.patch_embed(hint))
    for i, block in enumerate(base.transformer_blocks[1:]):
        if i < len(control.transformer_blocks):
            h = run(control.transformer_blocks[i], h)
            tokens = tokens + strength * control.controlnet_blocks[i](h)
        tokens = run(block, tokens)
    tokens = base.proj_out(base.norm_out(tokens, embedded, base.scale_shift_table))
    return tokens.transpose(1, 2).unflatten(2, (height, width))
