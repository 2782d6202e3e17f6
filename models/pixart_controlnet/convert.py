"""Key layouts of a PixArt ControlNet -> the network's, which is the authors' branch. Dict in, dict out.

Source: the authors' class, whose file holds the base too (`base_model.*`, `controlnet.*`), and diffusers' adapter model
of its research project for PixArt.
"""

import re

from ..files.layout import StateDict
from ..pixart.convert import convert_blocks

BRANCH = "controlnet."
AUTHORS_MARK = "controlnet.0.copied_block.mlp.fc1.weight"
DIFFUSERS_MARK = "controlnet_blocks.0.transformer_block.attn1.to_q.weight"
ADAPTER = re.compile(r"controlnet_blocks\.(\d+)\.(transformer_block\.)?(.+)")
BLOCK = re.compile(r"^blocks\.(\d+)\.")


def convert_pixart_control(state_dict: StateDict) -> StateDict:
    """Any layout -> the network's. Of the authors' merged file the control branch alone is taken."""
    if AUTHORS_MARK in state_dict:
        return {key: tensor for key, tensor in state_dict.items() if key.startswith(BRANCH)}
    if DIFFUSERS_MARK not in state_dict:
        return state_dict
    out: StateDict = {}
    blocks: StateDict = {}
    for key, tensor in state_dict.items():
        match = ADAPTER.fullmatch(key)
        if match is None:
            out[key] = tensor  # unknown: the check of the tensors names it
        elif match[2]:
            blocks[f"transformer_blocks.{match[1]}.{match[3]}"] = tensor
        else:
            out[f"{BRANCH}{match[1]}.{match[3]}"] = tensor
    copied = convert_blocks(blocks).items()
    return out | {BLOCK.sub(rf"{BRANCH}\1.copied_block.", key): tensor for key, tensor in copied}
