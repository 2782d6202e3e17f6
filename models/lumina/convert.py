"""Key layouts of Lumina-Next's files: diffusers' -> the authors', and the authors' <-> the network's.

Dict in, dict out; tensors are shared, never changed. Source: key lists of Alpha-VLLM's checkpoints and of diffusers'
LuminaNextDiT2DModel.
"""

import re

from torch import Tensor

from ..files.layout import StateDict

DIFFUSERS_KEYS = {
    "patch_embedder.proj": "x_embedder",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_caption_embed.caption_embedder.0": "cap_embedder.0",
    "time_caption_embed.caption_embedder.1": "cap_embedder.1",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
}
DIFFUSERS_BLOCK_KEYS = {
    "attn1.to_q": "attention.wq",
    "attn1.to_k": "attention.wk",
    "attn1.to_v": "attention.wv",
    "attn1.norm_q": "attention.q_norm",
    "attn1.norm_k": "attention.k_norm",
    "attn2.to_k": "attention.wk_y",
    "attn2.to_v": "attention.wv_y",
    "attn2.norm_k": "attention.ky_norm",
    "attn2.to_out.0": "attention.wo",
    "norm1.norm": "attention_norm1",
    "norm1.linear": "adaLN_modulation.1",
    "norm1_context": "attention_y_norm",
    "norm2": "attention_norm2",
    "feed_forward.linear_1": "feed_forward.w1",
    "feed_forward.linear_2": "feed_forward.w2",
    "feed_forward.linear_3": "feed_forward.w3",
}
# The text's queries, which diffusers keeps a second time; the network has those of the image alone.
COPIES = re.compile(r"(layers\.\d+)\.attn2\.(to_q|norm_q)\.(.+)")
BLOCK = re.compile(r"(layers\.\d+\.)(.+)")
GATE = ".attention.gate"  # a parameter of its attention in files, a module of its own in the network


def is_diffusers(state_dict: StateDict) -> bool:
    return "layers.0.attn2.to_k.weight" in state_dict


def to_network_layout(state_dict: StateDict) -> StateDict:
    """Either layout -> the network's. Queries of the text that differ from the image's stay, under their own name."""
    if is_diffusers(state_dict):
        state_dict = convert_diffusers(state_dict)
    return {f"{key}.weight" if key.endswith(GATE) else key: tensor for key, tensor in state_dict.items()}


def to_file_layout(state_dict: StateDict) -> StateDict:
    """The network's layout -> the authors', for saving."""
    gate = f"{GATE}.weight"
    return {key.removesuffix(".weight") if key.endswith(gate) else key: tensor for key, tensor in state_dict.items()}


def convert_diffusers(state_dict: StateDict) -> StateDict:
    """diffusers' keys -> the authors'. Unknown keys stay, for the strict load."""
    out: StateDict = {}
    for key, tensor in state_dict.items():
        copy = COPIES.fullmatch(key)
        if copy and same(tensor, state_dict.get(f"{copy[1]}.attn1.{copy[2]}.{copy[3]}")):
            continue
        block = BLOCK.fullmatch(key)
        if block is None:
            stem, _, suffix = key.rpartition(".")
            out[f"{DIFFUSERS_KEYS[stem]}.{suffix}" if stem in DIFFUSERS_KEYS else key] = tensor
            continue
        prefix, inner = block.groups()
        stem, _, suffix = inner.rpartition(".")
        if inner == "gate":
            out[f"{prefix}attention.gate"] = tensor
        else:
            out[f"{prefix}{DIFFUSERS_BLOCK_KEYS[stem]}.{suffix}" if stem in DIFFUSERS_BLOCK_KEYS else key] = tensor
    return out


def same(a: Tensor, b: Tensor | None) -> bool:
    """Whether two tensors hold the same values; of tensors without values, whether they have the same shape."""
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.is_meta or b.is_meta or bool((a.float() == b.float()).all())  # float8 has no comparison of its own
