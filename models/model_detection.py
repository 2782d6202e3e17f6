"""Tensor names and shapes -> configuration. Shapes decide; config.json and the file name only what tensors cannot tell.

Source: key lists of the released checkpoints in NVIDIA's, diffusers' and the DC-AE authors' layouts.
"""

import re
from collections.abc import Mapping
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
from .config_checks import check_depth, check_heads, check_numbers
from .release_names import native_sample_size, release_shift, telling_names, training_format

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
OTHER_LANGUAGE_MODEL = f"another language model ({HOST_LOADER})"
GEMMA_1 = "a Gemma-1 text encoder (use gemma-2-2b-it)"
FAMILIES = {
    "weight.absmax": "a model quantised by bitsandbytes, which this version does not load (take the bf16 file)",
    "SCB": "a model quantised by bitsandbytes, which this version does not load (take the bf16 file)",
    "qweight": "a 4-bit model for Nunchaku or another engine, which this version does not load (take the bf16 file)",
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
    "layers.0.self_attn.q_proj.weight+layers.0.mlp.gate_proj.weight": OTHER_LANGUAGE_MODEL,
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

# What config.json can say of a DC-AE and no tensor tells, and the values that are implemented.
DC_AE_FIXED: dict[str, tuple] = {
    "encoder_out_shortcut": (True,),
    "decoder_in_shortcut": (True,),
    "decoder_act_fns": ("silu", ["silu"] * 6),
    "decoder_conv_act_fn": ("relu", "silu"),
}
INTERPOLATION_SCALES = {64: 1.0, 128: 2.0}  # by sample size; 512 and 1024 px models have no positional embedding
SMALL_WIDTH = 1152  # of the 0.6B
FOREIGN_ENGINES = (".qweight", ".weight.absmax", ".SCB")  # ends of keys of 4 and 8-bit formats that the host lacks
GEMMA_HEAD_DIM = 256  # of every Gemma-2 2B; not readable off a shape


def describe(state_dict: StateDict) -> str:
    """What a state dict seems to be, for an error message."""
    # SVDQuant's files hold low-rank parts too, under the same names.
    if any("lora_" in key for key in state_dict) and not any(key.endswith(FOREIGN_ENGINES) for key in state_dict):
        return "a LoRA (load it with a LoRA node)"
    for keys, family in FAMILIES.items():
        if all(any(f".{key}".endswith(f".{end}") for key in state_dict) for end in keys.split("+")):
            return GEMMA_1 if family == OTHER_LANGUAGE_MODEL and has_gemma_vocabulary(state_dict) else family
    first = sorted(state_dict)[:2]
    return (
        f"something else ({len(state_dict)} tensors, such as {', '.join(first)})" if first else "a file without tensors"
    )


def has_gemma_vocabulary(state_dict: StateDict) -> bool:
    """Gemma 1 has the names of Llama's tensors; only the size of its vocabulary tells it."""
    return any(
        key.endswith("embed_tokens.weight") and tensor.shape[:1] == (256000,) for key, tensor in state_dict.items()
    )


def depth_of(state_dict: StateDict, prefix: str, first: int = 0) -> int:
    """Count of the indices N among keys `<prefix>N.`, from `first`. Raises KeyError with the first one that lacks."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,6})\.")
    found = {int(match[1]) for match in map(pattern.match, state_dict) if match}
    for index in range(first, first + len(found)):
        if index not in found:
            raise KeyError(f"{prefix}{index}")
    return len(found)


def is_sana(state_dict: StateDict) -> bool:
    """True for a SANA image transformer in the internal layout."""
    if any(key.startswith("controlnet") or key.endswith(FOREIGN_ENGINES) for key in state_dict):
        return False
    return all(key in state_dict for key in SANA_KEYS) and state_dict[SANA_KEYS[0]].ndim == 4


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
    state_dict: StateDict,
    name: str = "",
    source_config: Mapping[str, Any] | None = None,
    positions: int | None = None,
    path: str = "",
) -> SanaConfig:
    """Configuration of a SANA transformer in the internal layout.

    name: for messages. path: of the file, used only for what tensors cannot tell; the name where it is not given.
    source_config: diffusers' config.json, with the optional extra keys "flow_shift" of its scheduler, "clamp_attention"
    and "trained_in". positions: length of NVIDIA's `pos_embed` buffer. Raises ValueError when the cross-attention heads
    cannot be known or config.json contradicts the tensors, KeyError with the name of a tensor that is missing.
    """
    source = check_numbers(name, source_config or {})
    names = telling_names(path or name) + telling_names(str(source.get("_name_or_path") or ""))
    size, in_channels = state_dict["patch_embed.proj.weight"].shape[:2]
    depth = depth_of(state_dict, "transformer_blocks.")
    check_config(name, source, size, depth)
    if "num_layers" not in source:
        check_depth(name, size, depth)
    heads = source.get("num_cross_attention_heads", CROSS_ATTENTION_HEADS.get(size))
    if heads is None:
        raise ValueError(
            f"{name} is a SANA transformer of width {size}, whose number of cross-attention heads no tensor tells: "
            "put its config.json beside the weights."
        )
    check_heads(name, size, heads)
    sample_size = native_sample_size(names, source, positions)
    if "sample_size" in source:
        interpolation = source.get("interpolation_scale")
    else:
        interpolation = INTERPOLATION_SCALES.get(sample_size)
    qk_norm = "transformer_blocks.0.attn1.norm_q.weight" in state_dict
    small = size == SMALL_WIDTH and not qk_norm
    trained_in = source.get("trained_in") or training_format(names, qk_norm, sample_size)
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
        shift=release_shift(names, source, positions, small, sample_size),
        clamp_attention=source.get("clamp_attention", True if trained_in == "float16" else None),
        trained_in=trained_in,
    )


def chosen_config(native_size: int | None, trained_in_float16: bool | None) -> dict[str, Any]:
    """The user's own word on what no tensor tells, as keys of `source_config`; {} for what is left to detection.

    native_size: pixels a side, 512, 1024, 2048 or 4096.
    """
    chosen: dict[str, Any] = {}
    if native_size is not None:
        sample_size = native_size // 32
        chosen |= {"sample_size": sample_size, "interpolation_scale": INTERPOLATION_SCALES.get(sample_size)}
    if trained_in_float16 is not None:
        chosen["clamp_attention"] = True if trained_in_float16 else None
        chosen["trained_in"] = "float16" if trained_in_float16 else "bfloat16"
    return chosen


def is_dc_ae(state_dict: StateDict) -> bool:
    """True for a DC-AE in the internal layout."""
    return all(key in state_dict for key in DC_AE_KEYS)


def detect_dc_ae_half(state_dict: StateDict, prefix: str, up: bool) -> DCAEHalfConfig:
    # A decoder without layers in the first stage has no tensors there: its last convolution upsamples in their place.
    empty = int(up and "decoder.conv_out.conv.weight" in state_dict)
    stages = empty + depth_of(state_dict, prefix, empty)
    types, widths, layers, kernels = [], [], [], []
    for stage in range(stages):
        below = f"{prefix}{stage}."
        if stage < empty:
            types.append("ResBlock")
            widths.append(state_dict["decoder.norm_out.weight"].shape[0])
            layers.append(0)
            kernels.append(())
            continue
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
    pixel_shuffle = up and stages > 1 and state_dict[f"{prefix}{stages - 2}.0.conv.weight"].shape[0] == 4 * widths[-2]
    return DCAEHalfConfig(tuple(types), tuple(widths), tuple(layers), tuple(kernels), pixel_shuffle)


def detect_dc_ae(
    state_dict: StateDict, source_config: Mapping[str, Any] | None = None, name: str = "this DC-AE"
) -> DCAEConfig:
    """Configuration of a DC-AE in the internal layout; widths and depths of both halves from shapes.

    source_config: diffusers' config.json. name: for messages. Raises KeyError with the name of a tensor that is
    missing, ValueError for widths that no heads divide and for what config.json asks for and no SANA autoencoder has.
    """
    source = check_numbers(name, source_config or {})
    decoder = detect_dc_ae_half(state_dict, "decoder.up_blocks.", up=True)
    # No tensor tells the last activation; of the releases, only the Lite decoder has no attention, and it ends in SiLU.
    out_activation = source.get("decoder_conv_act_fn") or (
        "relu" if "EfficientViTBlock" in decoder.block_types else "silu"
    )
    config = DCAEConfig(
        image_channels=state_dict["encoder.conv_in.weight"].shape[1],
        latent_channels=state_dict["encoder.conv_out.weight"].shape[0],
        attention_head_dim=int(source.get("attention_head_dim", SELF_ATTENTION_HEAD_DIM)),
        scaling_factor=float(source.get("scaling_factor", SANA_LATENT_SCALE)),
        encoder=detect_dc_ae_half(state_dict, "encoder.down_blocks.", up=False),
        decoder=decoder,
        out_activation=out_activation,
    )
    foreign = [f"{key} {source[key]}" for key, ours in DC_AE_FIXED.items() if source.get(key, ours[0]) not in ours]
    if foreign:
        raise ValueError(
            f"The config.json of {name} asks for {', '.join(foreign)}, which no SANA autoencoder has: use "
            "dc-ae-f32c32-sana-1.0 or 1.1, or the Lite one."
        )
    for half in (config.encoder, config.decoder):
        for block_type, width in zip(half.block_types, half.widths, strict=True):
            if block_type != "ResBlock" and width % config.attention_head_dim:
                raise ValueError(
                    f"{name} has attention over {width} channels, which heads of {config.attention_head_dim} do "
                    "not divide: download it again."
                )
    return config


def is_gemma2(state_dict: StateDict) -> bool:
    """True for a Gemma-2 decoder with keys below `model.`; Gemma 1 has no norm before the FFN, Gemma 3 has q_norm."""
    if any(key.endswith(FOREIGN_ENGINES) for key in state_dict):
        return False
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
