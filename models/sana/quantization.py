"""Which layers of a SANA transformer may be narrow, and how it is named in a file's metadata.

Source: loss by groups of layers, `benchmarks/sensitivity.py`, measured in `benchmarks/results/quantization.md`.
"""

import torch

from ..files.foreign_files import depth_of
from ..files.layout import StateDict
from ..files.quantize import Rules
from ..files.saved_config import read_config_tensor
from ..runtime.precision import FLOAT16
from .config import CONFIG_KEY

LOSES_MOST = "it loses most per byte"
CONVOLUTION = "the host keeps convolutions wide"


def sana_rules(state_dict: StateDict) -> Rules:
    """Rules for a transformer in the layout of files, with our configuration tensor or without.

    The input of `ff.conv_point` has values far above its mean, and `attn2.to_q` reads the residual stream, which is not
    normalized: one float8 scale for such inputs costs too much, and so do 4 bits for the first of them.
    """
    last = depth_of(state_dict, "transformer_blocks.") - 1
    config = read_config_tensor(state_dict[CONFIG_KEY]) if CONFIG_KEY in state_dict else {}
    return Rules(
        narrow=r"^transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.conv_(inverted|point))$",
        sensitive=rf"^transformer_blocks\.{last}\.|\.attn2\.(to_v|to_out\.0)$",
        sensitive_w4a4=r"\.ff\.conv_point$",
        wide_products=r"\.ff\.conv_point$|\.attn2\.to_q$",
        wide=(
            (r"^(caption_projection|time_embed|proj_out)(\.|$)", LOSES_MOST),
            (r"^patch_embed\.|\.conv_depth$", CONVOLUTION),
        ),
        half=torch.float16 if config.get("trained_in") == FLOAT16 else torch.bfloat16,
    )


def sana_architecture(state_dict: StateDict) -> str:
    """For `modelspec.architecture`: only SANA-Sprint embeds the guidance scale."""
    sprint = any(key.startswith("time_embed.guidance_embedder.") for key in state_dict)
    return "sana-sprint" if sprint else "sana"
