"""Tensor names and shapes -> SanaConfig. Shapes decide; config.json and the file name only what tensors cannot tell.

Source: key lists of the released checkpoints in NVIDIA's and diffusers' layouts.
"""

from collections.abc import Mapping
from typing import Any

from ..files.config_values import check_numbers, check_shapes
from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of
from ..files.names import telling_names
from ..runtime.precision import count
from .config import RELEASES, SELF_ATTENTION_HEAD_DIM, SanaConfig, releases_of_width
from .filename_hints import native_sample_size, release_shift, training_format


def check_depth(name: str, width: int, depth: int) -> None:
    """Raises ValueError for a depth that no release of a released width has: blocks are lost, or somebody pruned it."""
    known = tuple(release.depth for release in releases_of_width(width)) or (depth,)
    if depth not in known:
        raise ValueError(
            f"{name} has {depth} blocks, but SANA models of width {width} have {' or '.join(map(str, known))}: "
            "download it again, or put its config.json beside it if it was pruned."
        )


def check_heads(name: str, width: int, heads: int | float) -> None:
    """Raises ValueError for a number of cross-attention heads that no transformer of the width has."""
    if width % heads:
        raise ValueError(
            f"The configuration of {name} says num_cross_attention_heads = {heads}, which do not divide its width of "
            f"{width}: put this model's own config.json there."
        )


# Without these tensors a file is not of the family.
SANA_KEYS = (
    "patch_embed.proj.weight",
    "caption_norm.weight",
    "transformer_blocks.0.ff.conv_inverted.weight",
    "transformer_blocks.0.attn1.to_q.weight",
)
# Two marks each, so that a file which lacks one of them is still known for what it is. Lumina-Next has the name of
# NVIDIA's norm of the text as well, below its layers.
SANA_MARKS = (
    "transformer_blocks.0.ff.conv_inverted.weight",
    "patch_embed.proj.weight+caption_norm.weight",
    "blocks.0.mlp.inverted_conv.conv.weight",
    "attention_y_norm.weight",
)
INTERPOLATION_SCALES = {64: 1.0, 128: 2.0}  # by sample size; 512 and 1024 px models have no positional embedding


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


def shapes_of(state_dict: StateDict) -> dict[str, Any]:
    """What shapes tell, under diffusers' names in config.json."""
    width, in_channels, patch_size = state_dict["patch_embed.proj.weight"].shape[:3]
    return {
        "in_channels": in_channels,
        "out_channels": state_dict["proj_out.weight"].shape[0] // patch_size**2,
        "patch_size": patch_size,
        "caption_channels": state_dict["caption_projection.linear_1.weight"].shape[1],
        "cross_attention_dim": width,
    }


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
    check_shapes(name, source, shapes_of(state_dict))
    if "num_layers" not in source:
        check_depth(name, size, depth)
    known = releases_of_width(size)  # all of a width have as many
    heads = source.get("num_cross_attention_heads", known[0].num_cross_attention_heads if known else None)
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
    small = size == RELEASES[0].hidden_size and not qk_norm
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


def describe_sana(config: SanaConfig, parameters: int, layout: str) -> str:
    family = "SANA-Sprint" if config.guidance_embeds else "SANA-1.5" if config.qk_norm else "SANA"
    names = [release.name for release in releases_of_width(config.hidden_size) if release.depth == config.depth]
    size = names[0] if names else f"{config.hidden_size} wide, {config.depth} deep"
    trained = f"trained in {config.trained_in}" if config.trained_in else "training format unknown"
    native = 32 * config.sample_size
    return f"{family} {size} ({count(parameters)} parameters, {layout} layout), {trained}, native {native} px"
