"""Tensor names and shapes -> ControlNetConfig. What no tensor tells stands in config.json or in the file's metadata."""

from collections.abc import Mapping
from typing import Any

from ..files.config_values import check_numbers
from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of
from ..files.names import telling_names
from ..runtime.precision import BFLOAT16, count
from ..sana.config import SanaConfig, releases_of_width
from ..sana.filename_hints import native_sample_size, training_format
from .config import DIFFUSERS, KINDS, NVLABS, SANA, WIRINGS, ControlNetConfig

# Without these tensors a file is not of the family.
CONTROLNET_KEYS = (
    "input_block.weight",
    "controlnet_blocks.0.weight",
    "transformer_blocks.0.ff.conv_inverted.weight",
)
CONTROLNET_MARKS = (
    "input_block.weight+controlnet_blocks.0.weight",
    "controlnet.0.copied_block.mlp.inverted_conv.conv.weight",
    "controlnet.0.before_proj.weight+controlnet.0.after_proj.weight",
)
# Keys of a file's metadata, beside which config.json may have them too.
TRAINED_FOR, WIRING, HEADS, TRAINED_IN = "trained_for", "wiring", "num_cross_attention_heads", "trained_in"


def is_controlnet(state_dict: StateDict) -> bool:
    """True for a SANA ControlNet in the network's layout."""
    if any(key.endswith(FOREIGN_ENGINES) for key in state_dict):
        return False
    return all(key in state_dict for key in CONTROLNET_KEYS)


def read_metadata(name: str, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What a file's metadata tell of a ControlNet; {} for other files. Raises ValueError for a wrong value."""
    found: dict[str, Any] = {key: value for key, value in (metadata or {}).items() if key in (TRAINED_IN, WIRING)}
    if HEADS in (metadata or {}):
        if not metadata[HEADS].isdecimal():
            raise ValueError(f'The metadata of {name} say {HEADS} = "{metadata[HEADS]}": a whole number is expected.')
        found[HEADS] = int(metadata[HEADS])
    if TRAINED_FOR in (metadata or {}):
        found[TRAINED_FOR] = metadata[TRAINED_FOR]
    return found


def trained_for(name: str, told: str | None) -> tuple[str, ...]:
    """Families of base models, of a list with commas. Raises ValueError for one that is not of KINDS."""
    kinds = tuple(kind.strip() for kind in (told or SANA).split(","))
    wrong = next((kind for kind in kinds if kind not in KINDS), None)
    if wrong is not None:
        raise ValueError(f'{name} says trained_for = "{wrong}": one of {", ".join(KINDS)} is expected.')
    return kinds


def detect_controlnet(
    state_dict: StateDict, name: str, source: Mapping[str, Any], path: str, has_nvidia_layout: bool
) -> ControlNetConfig:
    """Configuration of a ControlNet in the network's layout.

    source: config.json and the file's metadata. path: for what only a name tells. Raises ValueError when the heads of
    the cross-attention cannot be known or a value of source is wrong, KeyError with the name of a missing tensor.
    """
    source = check_numbers(name, source)
    size = state_dict["input_block.weight"].shape[0]
    own = "patch_embed.proj.weight" in state_dict
    known = releases_of_width(size)
    heads = source.get(HEADS, known[0].num_cross_attention_heads if known else None)
    if heads is None or size % int(heads):
        raise ValueError(
            f"{name} is a SANA ControlNet of width {size}, whose number of cross-attention heads no tensor tells: put "
            "its config.json beside the weights."
        )
    names = telling_names(path or name)
    qk_norm = "transformer_blocks.0.attn1.norm_q.weight" in state_dict
    sample_size = native_sample_size(names, source, None)
    trained_in = source.get(TRAINED_IN) or training_format(names, qk_norm, sample_size)
    blocks = SanaConfig(
        hidden_size=size,
        depth=depth_of(state_dict, "transformer_blocks."),
        num_cross_attention_heads=int(heads),
        caption_channels=state_dict["caption_projection.linear_1.weight"].shape[1] if own else 0,
        mlp_hidden_size=state_dict["transformer_blocks.0.ff.conv_point.weight"].shape[1],
        in_channels=state_dict["patch_embed.proj.weight"].shape[1] if own else 0,
        out_channels=0,
        qk_norm=qk_norm,
        guidance_embeds=False,
        guidance_embeds_scale=0.0,
        interpolation_scale=source.get("interpolation_scale") if own else None,
        sample_size=sample_size,
        shift=0.0,
        clamp_attention=True if trained_in == "float16" else None,
        trained_in=trained_in,
    )
    wiring = source.get(WIRING) or (NVLABS if has_nvidia_layout else DIFFUSERS)
    if wiring not in WIRINGS:
        raise ValueError(f'{name} says wiring = "{wiring}": {" or ".join(WIRINGS)} is expected.')
    return ControlNetConfig(
        blocks,
        wiring,
        own_embeddings=own,
        trained_for=trained_for(name, source.get(TRAINED_FOR)),
        # NVIDIA's released class rounds; it has no qk-norm, which later training code brings.
        rounds_time=has_nvidia_layout and trained_in == BFLOAT16 and not qk_norm,
    )


def describe_controlnet(config: ControlNetConfig, parameters: int) -> str:
    names = " and ".join(KINDS[kind] for kind in config.trained_for)
    embeddings = "own embeddings" if config.own_embeddings else "the base's embeddings"
    return (
        f"a ControlNet for {names} ({count(parameters)} parameters, width {config.blocks.hidden_size}, "
        f"{config.blocks.depth} copied blocks, {config.wiring} wiring, {embeddings})"
    )
