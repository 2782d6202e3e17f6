"""Key layouts of a SANA ControlNet: NVIDIA's, merged with its base or alone, and diffusers' <-> the network's.

Source: NVlabs/Sana, `sana_multi_scale_controlnet.py`; diffusers' SanaControlNetModel. Dict in, dict out; tensors are
shared or reshaped, those of fused layers joined for saving.
"""

import re

import torch

from ..files.layout import StateDict
from ..sana.convert import (
    NVIDIA_BLOCK_KEYS,
    NVIDIA_FUSED_KEYS,
    convert_nvidia_sana,
    to_file_layout,
    to_network_layout,
)

MERGED = "controlnet."  # before every key of NVIDIA's control branch
NVIDIA_KEY = re.compile(r"controlnet\.(\d+)\.(copied_block|after_proj|before_proj)\.(.+)")
NVIDIA_BRANCH = re.compile(r"(^|\.)controlnet\.\d+\.")
BLOCK_KEY = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def has_nvidia_keys(state_dict: StateDict) -> bool:
    """True for NVIDIA's names, also below the prefix of a wrapper."""
    return any(NVIDIA_BRANCH.search(key) for key in state_dict)


def convert_controlnet(state_dict: StateDict) -> StateDict:
    """Any layout -> the network's. Of NVIDIA's merged file the control branch alone is taken."""
    if not has_nvidia_keys(state_dict):
        return to_network_layout(state_dict)
    out: StateDict = {}
    for key, tensor in state_dict.items():
        match = NVIDIA_KEY.fullmatch(key)
        if match is None:
            if key.startswith(MERGED):
                out[key] = tensor  # unknown: the check of the tensors names it
            continue
        index, part, rest = match.groups()
        name = {"copied_block": f"blocks.{index}", "after_proj": f"controlnet_blocks.{index}"}.get(part, "input_block")
        out[f"{name}.{rest}"] = tensor
    return to_network_layout(convert_nvidia_sana(out))


def to_nvidia_layout(state_dict: StateDict) -> StateDict:
    """The network's layout -> `controlnet.*` with NVIDIA's names, for a ControlNet without embeddings of its own."""
    names = {own: name for name, own in NVIDIA_BLOCK_KEYS.items()}
    firsts = {parts[0]: (name, parts) for name, parts in NVIDIA_FUSED_KEYS.items()}
    others = {part for parts in NVIDIA_FUSED_KEYS.values() for part in parts[1:]}
    out: StateDict = {}
    for key, tensor in (state_dict := to_file_layout(state_dict)).items():
        match = BLOCK_KEY.fullmatch(key)
        if match is None:
            name = key.replace("input_block.", "0.before_proj.")
            out[MERGED + re.sub(r"controlnet_blocks\.(\d+)\.", r"\1.after_proj.", name)] = tensor
            continue
        index, inner = match.groups()
        stem, _, suffix = inner.rpartition(".")
        place = f"{MERGED}{index}.copied_block."
        if stem in firsts:
            name, parts = firsts[stem]
            rows = [state_dict[f"transformer_blocks.{index}.{part}.{suffix}"] for part in parts]
            out[f"{place}{name}.{suffix}"] = torch.cat(rows)
        elif stem not in others:
            out[place + (names[inner] if inner in names else f"{names[stem]}.{suffix}")] = tensor
    return out
