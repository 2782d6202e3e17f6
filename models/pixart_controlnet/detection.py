"""Tensor names and shapes of a PixArt ControlNet -> the PixArtConfig of its copied blocks."""

from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of
from ..files.names import telling_names
from ..pixart.config import ALPHA, HEAD_DIM, PixArtConfig
from ..pixart.detection import find_sample_size
from ..runtime.precision import count
from .convert import AUTHORS_MARK, BRANCH, DIFFUSERS_MARK

# Without these tensors a file is not of the family.
PIXART_CONTROL_KEYS = (
    "controlnet.0.before_proj.weight",
    "controlnet.0.after_proj.weight",
    "controlnet.0.copied_block.attn.qkv.weight",
    AUTHORS_MARK,
)
PIXART_CONTROL_MARKS = (AUTHORS_MARK, DIFFUSERS_MARK)


def is_pixart_control(state_dict: StateDict) -> bool:
    """True for a PixArt ControlNet in the network's layout; SANA's has a convolutional FFN in its copied blocks."""
    if any(key.endswith(FOREIGN_ENGINES) for key in state_dict):
        return False
    return all(key in state_dict for key in PIXART_CONTROL_KEYS)


def detect_pixart_control(state_dict: StateDict, name: str, path: str = "") -> PixArtConfig:
    """Configuration of the copied blocks. path: for the native size, which only a name tells.

    Raises ValueError for a width of no PixArt.
    """
    size, depth = state_dict[PIXART_CONTROL_KEYS[0]].shape[0], depth_of(state_dict, BRANCH)
    if size % HEAD_DIM:
        raise ValueError(
            f"{name} is a PixArt ControlNet of width {size}, no multiple of the {HEAD_DIM} of PixArt's heads: download "
            "it again."
        )
    return PixArtConfig(
        family=ALPHA,  # of every release
        hidden_size=size,
        depth=depth,
        caption_channels=0,  # the embeddings are the base's
        in_channels=0,
        learns_variance=False,
        micro_conditions=False,
        qk_norm="controlnet.0.copied_block.attn.q_norm.weight" in state_dict,
        kv_ratios=(1,) * depth,
        sample_size=find_sample_size(telling_names(path or name), {}, None),
    )


def describe_pixart_control(config: PixArtConfig, parameters: int) -> str:
    return (
        f"a ControlNet for {config.family} ({count(parameters)} parameters, width {config.hidden_size}, {config.depth} "
        "copied blocks, the base's embeddings)"
    )
