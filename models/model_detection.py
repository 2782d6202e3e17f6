"""Tensor names and shapes -> configuration. Shapes decide; config.json and the file name only what tensors cannot tell.

Source: key lists of the released checkpoints in NVIDIA's, diffusers' and the DC-AE authors' layouts.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from .config import (
    CROSS_ATTENTION_HEADS,
    SANA_LATENT_SCALE,
    SELF_ATTENTION_HEAD_DIM,
    DCAEConfig,
    DCAEHalfConfig,
    SanaConfig,
)

StateDict = Mapping[str, Tensor]

# Without these tensors a file is not of the family.
SANA_KEYS = (
    "patch_embed.proj.weight",
    "caption_norm.weight",
    "transformer_blocks.0.ff.conv_inverted.weight",
    "transformer_blocks.0.attn1.to_q.weight",
)
DC_AE_KEYS = (
    "encoder.conv_in.weight",
    "encoder.conv_out.weight",
    "encoder.down_blocks.0.0.conv1.weight",
    "decoder.norm_out.bias",
)
GEMMA_KEYS = (
    "model.embed_tokens.weight",
    "model.layers.0.pre_feedforward_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
)

# What a user is likely to hand over by mistake: ends of keys that give the family away (all of those joined by +), and
# its name. A ControlNet shares most names with its base model, so it comes first; a checkpoint of several parts is
# named after its diffusion model, so text encoders and autoencoders come last.
HOST_LOADER = "use the host's own loader"
FAMILIES = {
    "input_block.weight+controlnet_blocks.0.weight": "a SANA ControlNet, which this version does not load",
    "controlnet.0.before_proj.weight": "a SANA ControlNet merged with its base, which this version does not load",
    "zero_convs.0.0.weight": f"a Stable Diffusion ControlNet ({HOST_LOADER})",
    "controlnet_cond_embedding.conv_in.weight": f"a Stable Diffusion ControlNet ({HOST_LOADER})",
    "controlnet_blocks.0.weight": f"another family's ControlNet ({HOST_LOADER})",
    "patch_embedding.weight+caption_norm.weight": "a SANA-Video transformer, which this version does not load",
    "blocks.0.mlp.t_conv.weight": "a SANA-Video transformer, which this version does not load",
    # Two marks each, so that a file which lacks one of them is still known for what it is.
    "transformer_blocks.0.ff.conv_inverted.weight": "a SANA transformer (use SANA Model Loader)",
    "patch_embed.proj.weight+caption_norm.weight": "a SANA transformer (use SANA Model Loader)",
    "blocks.0.mlp.inverted_conv.conv.weight": "a SANA transformer (use SANA Model Loader)",
    "attention_y_norm.weight": "a SANA transformer (use SANA Model Loader)",
    "blocks.0.mlp.fc1.weight+y_embedder.y_proj.fc1.weight": f"a PixArt model ({HOST_LOADER})",
    "pos_embed.proj.weight+adaln_single.linear.weight": f"a PixArt model ({HOST_LOADER})",
    "double_blocks.0.img_attn.qkv.weight": f"a Flux-like model ({HOST_LOADER})",
    "single_transformer_blocks.0.attn.to_q.weight": f"a Flux-like model ({HOST_LOADER})",
    "joint_blocks.0.x_block.attn.qkv.weight": f"a Stable Diffusion 3 model ({HOST_LOADER})",
    "pos_embed.proj.weight+transformer_blocks.0.attn.add_q_proj.weight": f"a Stable Diffusion 3 model ({HOST_LOADER})",
    "input_blocks.0.0.weight": f"a Stable Diffusion model ({HOST_LOADER})",
    "down_blocks.0.resnets.0.conv1.weight+time_embedding.linear_1.weight": f"a Stable Diffusion model ({HOST_LOADER})",
    "layers.0.pre_feedforward_layernorm.weight+self_attn.q_norm.weight": f"a Gemma-3 text encoder ({HOST_LOADER})",
    "layers.0.pre_feedforward_layernorm.weight": "a Gemma-2 text encoder (use SANA Gemma Loader)",
    "layers.0.post_feedforward_layernorm.weight": "a Gemma-2 text encoder (use SANA Gemma Loader)",
    "layers.0.self_attn.q_proj.weight+layers.0.mlp.gate_proj.weight": f"another language model ({HOST_LOADER})",
    "encoder.layers.0.mlp.fc1.weight+embeddings.token_embedding.weight": f"a CLIP text encoder ({HOST_LOADER})",
    "encoder.block.0.layer.0.SelfAttention.k.weight": f"a T5 text encoder ({HOST_LOADER})",
    "encoder.conv_in.conv.weight": "a DC-AE for other models (SANA's are dc-ae-f32c32-sana-1.0 and 1.1)",
    "encoder.project_in.conv.conv.weight": "a DC-AE for other models (SANA's are dc-ae-f32c32-sana-1.0 and 1.1)",
    "encoder.down_blocks.0.0.conv1.weight": "a DC-AE autoencoder (use SANA DC-AE Loader)",
    "decoder.up_blocks.5.0.attn.to_q.weight": "a DC-AE autoencoder (use SANA DC-AE Loader)",
    "decoder.project_in.main.conv.weight": "a DC-AE autoencoder (use SANA DC-AE Loader)",
    "encoder.project_out.main.op_list.0.conv.weight": "a DC-AE autoencoder (use SANA DC-AE Loader)",
    "decoder.mid.block_1.conv1.weight": f"another family's VAE ({HOST_LOADER})",
    "decoder.mid_block.resnets.0.conv1.weight": f"another family's VAE ({HOST_LOADER})",
}

GEMMA_HEAD_DIM = 256  # of every Gemma-2 2B; not readable off a shape
# The variant ending of a diffusers file (".bf16.safetensors") is how it is stored, not how it was trained.
FLOAT16_TRAINED = re.compile(r"sana_(600m|1600m)_(512|1024)px(?!.*_bf16)", re.IGNORECASE)


def describe(state_dict: StateDict) -> str:
    """What a state dict seems to be, for an error message."""
    if any("lora_" in key for key in state_dict):
        return "a LoRA (load it with a LoRA node)"
    for keys, family in FAMILIES.items():
        if all(any(f".{key}".endswith(f".{end}") for key in state_dict) for end in keys.split("+")):
            return family
    first = sorted(state_dict)[:2]
    return (
        f"something else ({len(state_dict)} tensors, such as {', '.join(first)})" if first else "a file without tensors"
    )


def depth_of(state_dict: StateDict, prefix: str) -> int:
    """1 + the highest index N among keys `<prefix>N.`; 0 when there is none."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, state_dict) if match), default=-1)


def is_sana(state_dict: StateDict) -> bool:
    """True for a SANA image transformer in the internal layout."""
    if any(key.startswith("controlnet") for key in state_dict):
        return False
    return all(key in state_dict for key in SANA_KEYS) and state_dict[SANA_KEYS[0]].ndim == 4


def native_sample_size(name: str, source_config: Mapping[str, Any], positions: int | None) -> int:
    """Latent side the model was trained at, from config.json, a saved position table or the file name; else 32."""
    if "sample_size" in source_config:
        return int(source_config["sample_size"])
    if positions is not None:
        return isqrt(positions)
    for pattern, size in ((r"4kpx|4096", 128), (r"2kpx|2048", 64), (r"512px", 16)):
        if re.search(pattern, name, re.IGNORECASE):
            return size
    return 32


def float16_trained(name: str) -> bool:
    """True for the file name of a release trained in float16, which must saturate at its limit in any format."""
    return FLOAT16_TRAINED.search(name) is not None


def check_config(name: str, source: Mapping[str, Any], width: int, depth: int) -> None:
    """Raises ValueError when config.json is another model's: what only it can tell would be wrong then."""
    heads, head_dim = source.get("num_attention_heads"), source.get("attention_head_dim", SELF_ATTENTION_HEAD_DIM)
    told = (width if heads is None else heads * head_dim, source.get("num_layers", depth))
    if told != (width, depth):
        raise ValueError(
            f"The config.json beside {name} describes a transformer of width {told[0]} and depth {told[1]}, but its "
            f"tensors are {width} wide and {depth} deep: put this model's own config.json there."
        )


def detect_sana(
    state_dict: StateDict, name: str = "", source_config: Mapping[str, Any] | None = None, positions: int | None = None
) -> SanaConfig:
    """Configuration of a SANA transformer in the internal layout.

    name: file or folder name, used only for what tensors cannot tell. source_config: diffusers' config.json, with the
    optional extra key "flow_shift" of its scheduler. positions: length of NVIDIA's `pos_embed` buffer. Raises
    ValueError when the cross-attention heads cannot be known or config.json contradicts the tensors, KeyError with the
    name of a tensor that is missing.
    """
    source = source_config or {}
    size, in_channels = state_dict["patch_embed.proj.weight"].shape[:2]
    depth = depth_of(state_dict, "transformer_blocks.")
    check_config(name, source, size, depth)
    heads = source.get("num_cross_attention_heads", CROSS_ATTENTION_HEADS.get(size))
    if heads is None:
        raise ValueError(
            f"{name} is a SANA transformer of width {size}, whose number of cross-attention heads no tensor tells: "
            "put its config.json beside the weights."
        )
    sample_size = native_sample_size(name, source, positions)
    if "sample_size" in source:
        interpolation = source.get("interpolation_scale")
    else:
        interpolation = {64: 1.0, 128: 2.0}.get(sample_size)  # 512 and 1024 px models have no positional embedding
    if "flow_shift" in source:
        shift = source["flow_shift"]
    elif re.search(r"sana_600m_1024px", name, re.IGNORECASE):
        shift = 4.0
    else:
        shift = 6.0 if sample_size >= 128 else 3.0
    qk_norm = "transformer_blocks.0.attn1.norm_q.weight" in state_dict
    return SanaConfig(
        hidden_size=size,
        depth=depth,
        num_cross_attention_heads=int(heads),
        caption_channels=state_dict["caption_projection.linear_1.weight"].shape[1],
        mlp_hidden_size=state_dict["transformer_blocks.0.ff.conv_point.weight"].shape[1],
        in_channels=in_channels,
        out_channels=state_dict["proj_out.weight"].shape[0],
        qk_norm=qk_norm,
        guidance_embeds="time_embed.guidance_embedder.linear_1.weight" in state_dict,
        guidance_embeds_scale=float(source.get("guidance_embeds_scale", 0.1)),
        interpolation_scale=None if interpolation is None else float(interpolation),
        sample_size=sample_size,
        shift=float(shift),
        clamp_attention=source.get("clamp_attention", True if float16_trained(name) and not qk_norm else None),
    )


def is_dc_ae(state_dict: StateDict) -> bool:
    """True for a DC-AE in the internal layout."""
    return all(key in state_dict for key in DC_AE_KEYS)


def detect_dc_ae_half(state_dict: StateDict, prefix: str, up: bool) -> DCAEHalfConfig:
    stages = depth_of(state_dict, prefix)
    types, widths, layers, kernels = [], [], [], []
    for stage in range(stages):
        below = f"{prefix}{stage}."
        resample = stage + 1 < stages  # every stage but the innermost holds one up- or downsampler among its blocks
        first = 1 if up and resample else 0
        layers.append(depth_of(state_dict, below) - resample)
        is_res = f"{below}{first}.conv1.weight" in state_dict
        types.append("ResBlock" if is_res else "EfficientViTBlock")
        widths.append(
            state_dict[f"{below}{first}.conv1.weight" if is_res else f"{below}{first}.attn.to_q.weight"].shape[0]
        )
        scales = depth_of(state_dict, f"{below}{first}.attn.to_qkv_multiscale.")
        kernels.append(
            tuple(
                state_dict[f"{below}{first}.attn.to_qkv_multiscale.{i}.proj_in.weight"].shape[-1] for i in range(scales)
            )
        )
    return DCAEHalfConfig(tuple(types), tuple(widths), tuple(layers), tuple(kernels))


def detect_dc_ae(state_dict: StateDict, source_config: Mapping[str, Any] | None = None) -> DCAEConfig:
    """Configuration of a DC-AE in the internal layout; widths and depths of both halves from shapes.

    Raises KeyError with the name of a tensor that is missing, ValueError for widths that no heads divide.
    """
    source = source_config or {}
    config = DCAEConfig(
        image_channels=state_dict["encoder.conv_in.weight"].shape[1],
        latent_channels=state_dict["encoder.conv_out.weight"].shape[0],
        attention_head_dim=int(source.get("attention_head_dim", SELF_ATTENTION_HEAD_DIM)),
        scaling_factor=float(source.get("scaling_factor", SANA_LATENT_SCALE)),
        encoder=detect_dc_ae_half(state_dict, "encoder.down_blocks.", up=False),
        decoder=detect_dc_ae_half(state_dict, "decoder.up_blocks.", up=True),
    )
    for half in (config.encoder, config.decoder):
        for block_type, width in zip(half.block_types, half.widths, strict=True):
            if block_type != "ResBlock" and width % config.attention_head_dim:
                raise ValueError(
                    f"This DC-AE has attention over {width} channels, which heads of {config.attention_head_dim} do "
                    "not divide: download it again."
                )
    return config


def is_gemma2(state_dict: StateDict) -> bool:
    """True for a Gemma-2 decoder with keys below `model.`; Gemma 1 has no norm before the FFN, Gemma 3 has q_norm."""
    return all(key in state_dict for key in GEMMA_KEYS) and "model.layers.0.self_attn.q_norm.weight" not in state_dict


def detect_gemma2(state_dict: StateDict) -> dict[str, int]:
    """Fields of the host's Gemma-2 configuration. Raises KeyError with the name of a tensor that is missing."""
    embedding = state_dict["model.embed_tokens.weight"]
    first = "model.layers.0."
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "intermediate_size": state_dict[f"{first}mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": depth_of(state_dict, "model.layers."),
        "num_attention_heads": state_dict[f"{first}self_attn.q_proj.weight"].shape[0] // GEMMA_HEAD_DIM,
        "num_key_value_heads": state_dict[f"{first}self_attn.k_proj.weight"].shape[0] // GEMMA_HEAD_DIM,
    }
