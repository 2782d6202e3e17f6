"""Tensor names and shapes of a DC-AE -> DCAEConfig. Shapes decide; config.json only what tensors cannot tell.

Source: key lists of the released checkpoints in diffusers' and the DC-AE authors' layouts.
"""

from collections.abc import Mapping
from typing import Any

from ..files.config_values import check_numbers, check_shapes
from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of
from .config import ATTENTION_HEAD_DIM, SANA_LATENT_SCALE, DCAEConfig, DCAEHalfConfig

DC_AE_KEYS = (
    "encoder.conv_in.weight",
    "encoder.conv_out.weight",
    "encoder.down_blocks.0.0.conv1.weight",
    "decoder.norm_out.bias",
)
DC_AE_MARKS = (
    "encoder.down_blocks.0.0.conv1.weight",
    "decoder.up_blocks.5.0.attn.to_q.weight",
    "decoder.project_in.main.conv.weight",
    "encoder.project_out.main.op_list.0.conv.weight",
)

# What config.json can say of a DC-AE and no tensor tells, and the values that are implemented.
DC_AE_FIXED: dict[str, tuple] = {
    "encoder_out_shortcut": (True,),
    "decoder_in_shortcut": (True,),
    "decoder_act_fns": ("silu", ["silu"] * 6),
    "decoder_conv_act_fn": ("relu", "silu"),
}


def is_dc_ae(state_dict: StateDict) -> bool:
    """True for a DC-AE in the internal layout."""
    return all(key in state_dict for key in DC_AE_KEYS) and not any(key.endswith(FOREIGN_ENGINES) for key in state_dict)


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
        attention_head_dim=int(source.get("attention_head_dim", ATTENTION_HEAD_DIM)),
        scaling_factor=float(source.get("scaling_factor", SANA_LATENT_SCALE)),
        encoder=detect_dc_ae_half(state_dict, "encoder.down_blocks.", up=False),
        decoder=decoder,
        out_activation=out_activation,
    )
    check_shapes(
        name,
        {key: tuple(value) if isinstance(value, list) else value for key, value in source.items()},
        {
            "in_channels": config.image_channels,
            "latent_channels": config.latent_channels,
            "encoder_block_out_channels": config.encoder.widths,
            "decoder_block_out_channels": config.decoder.widths,
        },
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


def describe_dc_ae(config: DCAEConfig, layout: str) -> str:
    ratio = 2 ** (len(config.encoder.widths) - 1)
    return f"DC-AE f{ratio}c{config.latent_channels} ({layout} layout)"
