"""Which layers of a PixArt transformer may be narrow, and how it is named in a file's metadata.

No released weights were measured. What is said of single layers is carried over from SANA, whose cross-attention is
the same (`benchmarks/results/quantization.md`).
"""

import torch

from ..files.foreign_files import depth_of
from ..files.layout import StateDict
from ..files.quantize import Rules
from ..files.saved_config import read_config_tensor
from .config import CONFIG_KEY


def pixart_rules(state_dict: StateDict) -> Rules:
    """Rules for a transformer in the authors' layout.

    `cross_attn.q_linear` reads the residual stream, which is not normalized, and the input of `mlp.fc2` follows a GELU:
    one float8 scale for either costs too much.
    """
    last = depth_of(state_dict, "blocks.") - 1
    return Rules(
        narrow=r"^blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj)|mlp\.fc[12])$",
        sensitive=rf"^blocks\.{last}\.|\.cross_attn\.(kv_linear|proj)$",
        sensitive_w4a4=r"\.mlp\.fc2$",
        why_sensitive="SANA's like it loses too much in 4 bits",
        wide_products=r"\.mlp\.fc2$|\.cross_attn\.q_linear$",
        wide=(
            (r"^(y_embedder|t_embedder|t_block|csize_embedder|ar_embedder|final_layer)\.", "every block depends on it"),
            (r"^x_embedder\.|\.attn\.sr$", "the host keeps convolutions wide"),
        ),
        half=torch.float16,
    )


def pixart_architecture(state_dict: StateDict) -> str:
    """For `modelspec.architecture`: "pixart-alpha" or "pixart-sigma"."""
    return read_config_tensor(state_dict[CONFIG_KEY])["family"].lower()
