"""Other key layouts -> the internal one, which is diffusers'. Dict in, dict out; tensors are shared or sliced, never
changed.

Source: key lists of NVlabs/Sana and mit-han-lab/efficientvit checkpoints.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]

# Where trainers keep the weights among optimizer states and counters, in the order of choice: NVIDIA's own inference
# takes the weights that were trained, not their average.
NESTS = ("state_dict", "state_dict_ema", "model", "model_state_dict", "module", "ema", "model_ema", "ema_model")

NVIDIA_SANA_KEYS = {
    "x_embedder.proj": "patch_embed.proj",
    "t_block.1": "time_embed.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "attention_y_norm": "caption_norm",
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": "scale_shift_table",
    "cfg_embedder.mlp.0": "time_embed.guidance_embedder.linear_1",
    "cfg_embedder.mlp.2": "time_embed.guidance_embedder.linear_2",
}
NVIDIA_BLOCK_KEYS = {
    "scale_shift_table": "scale_shift_table",
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
    "cross_attn.proj": "attn2.to_out.0",
    "mlp.inverted_conv.conv": "ff.conv_inverted",
    "mlp.depth_conv.conv": "ff.conv_depth",
    "mlp.point_conv.conv": "ff.conv_point",
}
NVIDIA_FUSED_KEYS = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}
WHOLE_LAYER = ("comfy_quant", "input_scale", "pre_quant_scale", "weight_scale_2")
# Training leftovers that inference does not read.
NVIDIA_UNUSED_KEYS = ("pos_embed", "y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias")

# Substring replacements from the original DC-AE names, in this order. The first is of decoders whose last convolution
# upsamples (DC-AE-Lite); below `.conv.conv.` it would be taken for the plain one.
DC_AE_REPLACEMENTS = (
    ("decoder.project_out.op_list.2.conv.conv.", "decoder.conv_out.conv."),
    ("main.", ""),
    ("op_list.", ""),
    ("context_module", "attn"),
    ("local_module", "conv_out"),
    ("aggreg.0.0", "to_qkv_multiscale.0.proj_in"),
    ("aggreg.0.1", "to_qkv_multiscale.0.proj_out"),
    ("depth_conv.conv", "conv_depth"),
    ("inverted_conv.conv", "conv_inverted"),
    ("point_conv.conv", "conv_point"),
    ("point_conv.norm", "norm"),
    ("conv.conv.", "conv."),
    ("conv1.conv", "conv1"),
    ("conv2.conv", "conv2"),
    ("conv2.norm", "norm"),
    ("proj.norm", "norm_out"),
    ("encoder.project_in.conv", "encoder.conv_in"),
    ("encoder.project_out.0.conv", "encoder.conv_out"),
    ("encoder.stages", "encoder.down_blocks"),
    ("decoder.project_in.conv", "decoder.conv_in"),
    ("decoder.project_out.0", "decoder.norm_out"),
    ("decoder.project_out.2.conv", "decoder.conv_out"),
    ("decoder.stages", "decoder.up_blocks"),
)


def is_nvidia_sana(state_dict: StateDict) -> bool:
    """True for NVIDIA's own SANA layout; PixArt shares most names, but not the caption norm and convolutional FFN."""
    return "attention_y_norm.weight" in state_dict or "blocks.0.mlp.inverted_conv.conv.weight" in state_dict


def is_original_dc_ae(state_dict: StateDict) -> bool:
    """True for DC-AE in the layout of its authors, where what has a shortcut lies below `main`."""
    return (
        "decoder.project_in.main.conv.weight" in state_dict
        or "encoder.project_out.main.op_list.0.conv.weight" in state_dict
    )


def split_rows(names: tuple[str, ...], suffix: str, tensor: Tensor) -> StateDict:
    """The parts of a fused layer's tensor; what quantisation says of the whole layer goes to every part."""
    if suffix in WHOLE_LAYER or tensor.shape[:1] in ((), (1,)):
        return {f"{name}.{suffix}": tensor for name in names}
    return {f"{name}.{suffix}": part for name, part in zip(names, tensor.tensor_split(len(names)), strict=True)}


def convert_nvidia_sana(state_dict: StateDict) -> StateDict:
    """NVIDIA's SANA keys -> diffusers'; fused q, k, v rows are split. Unknown keys stay, for the strict load."""
    time_embed = "time_embed" if "cfg_embedder.mlp.0.weight" in state_dict else "time_embed.emb"
    keys = NVIDIA_SANA_KEYS | {
        "t_embedder.mlp.0": f"{time_embed}.timestep_embedder.linear_1",
        "t_embedder.mlp.2": f"{time_embed}.timestep_embedder.linear_2",
    }
    out: StateDict = {}
    for key, tensor in state_dict.items():
        if key in NVIDIA_UNUSED_KEYS:
            continue
        stem, _, suffix = key.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
        if block is None:
            out[keys[key] if key in keys else f"{keys.get(stem, stem)}.{suffix}".lstrip(".")] = tensor
            continue
        prefix, inner = f"transformer_blocks.{block[1]}.", block[2]
        stem, _, suffix = inner.rpartition(".")
        if stem in NVIDIA_FUSED_KEYS:
            out |= split_rows(tuple(prefix + name for name in NVIDIA_FUSED_KEYS[stem]), suffix, tensor)
        elif inner in NVIDIA_BLOCK_KEYS:
            out[prefix + NVIDIA_BLOCK_KEYS[inner]] = tensor
        else:
            out[f"{prefix}{NVIDIA_BLOCK_KEYS.get(stem, stem)}.{suffix}"] = tensor
    return out


def convert_original_dc_ae(state_dict: StateDict) -> StateDict:
    """The DC-AE authors' keys -> diffusers'; the fused qkv convolution becomes three linear layers."""
    out: StateDict = {}
    for key, tensor in state_dict.items():
        for old, new in DC_AE_REPLACEMENTS:
            key = key.replace(old, new)
        if key.endswith(".qkv.conv.weight"):
            stem = key.removesuffix(".qkv.conv.weight")
            out |= split_rows(
                tuple(f"{stem}.{name}" for name in ("to_q", "to_k", "to_v")), "weight", tensor[:, :, 0, 0]
            )
        elif key.endswith(".attn.proj.conv.weight"):
            out[key.replace(".proj.conv.weight", ".to_out.weight")] = tensor[:, :, 0, 0]
        else:
            out[key] = tensor
    return out


def strip_prefix(state_dict: StateDict, prefixes: tuple[str, ...]) -> StateDict:
    """The part of a state dict below the first prefix that occurs, without it; all of it when none does.

    Repeated, because wrappers of training libraries nest: `module._orig_mod.x` is `x`.
    """
    for prefix in prefixes:
        below = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        if below:
            return strip_prefix(below, prefixes)
    return state_dict


def weights_of(loaded: Mapping[str, Any]) -> StateDict:
    """The tensors of what torch.save wrote: those of the first of `NESTS` that holds any, else its own."""
    for name in NESTS:
        if isinstance(loaded.get(name), Mapping):
            below = weights_of(loaded[name])
            if below:
                return below
    return {key: value for key, value in loaded.items() if isinstance(value, Tensor)}


def layout_of(state_dict: StateDict) -> str:
    """Whose key names these are, for the log: "NVIDIA", "DC-AE authors" or "diffusers"; prefixes already stripped."""
    if is_nvidia_sana(state_dict):
        return "NVIDIA"
    return "DC-AE authors" if is_original_dc_ae(state_dict) else "diffusers"
