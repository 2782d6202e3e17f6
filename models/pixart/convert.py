"""Key layouts of PixArt's files: diffusers' -> the authors', which the network has. Dict in, dict out.

Source: key lists of the released checkpoints in both layouts.
"""

import re

import torch

from ..files.layout import StateDict, WHOLE_LAYER

DIFFUSERS_KEYS = {
    "pos_embed.proj": "x_embedder.proj",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.emb.resolution_embedder.linear_1": "csize_embedder.mlp.0",
    "adaln_single.emb.resolution_embedder.linear_2": "csize_embedder.mlp.2",
    "adaln_single.emb.aspect_ratio_embedder.linear_1": "ar_embedder.mlp.0",
    "adaln_single.emb.aspect_ratio_embedder.linear_2": "ar_embedder.mlp.2",
    "adaln_single.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "caption_projection.y_embedding": "y_embedder.y_embedding",
    "proj_out": "final_layer.linear",
    "scale_shift_table": "final_layer.scale_shift_table",
}
DIFFUSERS_BLOCK_KEYS = {
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
FUSED_KEYS = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}
FUSED_PARTS = {name: (fused, names) for fused, names in FUSED_KEYS.items() for name in names}
CONTROL_BRANCH, MERGED_BASE = "controlnet.", "base_model."
BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def is_diffusers_pixart(state_dict: StateDict) -> bool:
    return "adaln_single.linear.weight" in state_dict and "pos_embed.proj.weight" in state_dict


def convert_pixart(state_dict: StateDict) -> StateDict:
    """Any layout -> the authors', with q, k and v in one layer.

    What cannot be fused, because each part is quantized with a scale of its own, keeps diffusers' names. Unknown keys
    stay, for the strict load.
    """
    state_dict = without_control(state_dict)
    if not is_diffusers_pixart(state_dict):
        return state_dict
    out: StateDict = {}
    for key, tensor in state_dict.items():
        if BLOCK.fullmatch(key) is None:
            stem, _, suffix = key.rpartition(".")
            out[DIFFUSERS_KEYS[key] if key in DIFFUSERS_KEYS else f"{DIFFUSERS_KEYS.get(stem, stem)}.{suffix}"] = tensor
    return out | convert_blocks(state_dict)


def without_control(state_dict: StateDict) -> StateDict:
    """The base of the authors' file of a PixArt with its ControlNet, which `models/pixart_controlnet` reads."""
    if not any(key.startswith(CONTROL_BRANCH) for key in state_dict):
        return state_dict
    base = {key.removeprefix(MERGED_BASE): each for key, each in state_dict.items() if key.startswith(MERGED_BASE)}
    return base or state_dict


def convert_blocks(state_dict: StateDict) -> StateDict:
    """The blocks alone of diffusers' layout -> the authors'."""
    out: StateDict = {}
    for key, tensor in state_dict.items():
        block = BLOCK.fullmatch(key)
        if block is None:
            continue
        stem, _, suffix = block[2].rpartition(".")
        if stem in FUSED_PARTS:
            fused, names = FUSED_PARTS[stem]
            parts = [f"transformer_blocks.{block[1]}.{name}.{suffix}" for name in names]
            if key == parts[0] or parts[0] not in state_dict:
                out |= fuse(state_dict, parts, f"blocks.{block[1]}.{fused}.{suffix}")
        else:
            inner = f"{DIFFUSERS_BLOCK_KEYS.get(stem, stem)}.{suffix}" if stem else suffix
            out[f"blocks.{block[1]}.{inner}"] = tensor
    return out


def fuse(state_dict: StateDict, parts: list[str], fused: str) -> StateDict:
    """{fused: the parts' rows, one below another}; the parts as they are when one tensor cannot hold them."""
    apart = {part: state_dict[part] for part in parts if part in state_dict}
    first, *others = tensors = list(apart.values())
    if len(tensors) < len(parts):
        return apart
    if fused.rpartition(".")[2] in WHOLE_LAYER or first.numel() == 1:  # what quantization says of the whole layer
        return {fused: first} if all(torch.equal(first, other) for other in others) else apart
    if len({(tensor.dtype, tensor.shape[1:]) for tensor in tensors}) > 1:
        return apart
    return {fused: torch.cat(tensors)}
