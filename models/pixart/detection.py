"""Tensor names and shapes of a PixArt -> PixArtConfig, and which of the two families it is, with the reason.

Source: key lists of the released checkpoints in the authors' and diffusers' layouts; diffusers' configurations.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from ..files.config_values import check_numbers
from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of
from ..files.names import own_names, telling_names
from ..runtime.precision import count
from .config import ALPHA, DMD, HEAD_DIM, LCM, PATCH_SIZE, RATIO, SIGMA, PixArtConfig

# Without these tensors a file is not of the family.
FUSED = "blocks.0.attn.qkv.weight"
APART = "transformer_blocks.0.attn1.to_q.weight"  # in its place where q, k and v have formats of their own
PIXART_KEYS = (
    "x_embedder.proj.weight",
    "t_block.1.weight",
    "y_embedder.y_proj.fc1.weight",
    FUSED,
    "blocks.0.mlp.fc1.weight",
    "final_layer.linear.weight",
)
PIXART_MARKS = (
    "blocks.0.mlp.fc1.weight+y_embedder.y_proj.fc1.weight",
    "pos_embed.proj.weight+adaln_single.linear.weight",
)
POSITIONS, NULL_TEXT = "pos_embed", "y_embedder.y_embedding"  # the authors' buffers, which the network does not have
SIZES = {32: r"(?<!\d)256(?!\d)", 64: r"(?<!\d)512(?!\d)", 128: r"(?<!\d)1024(?!\d)", 256: r"(?<!\d)2k|2048(?!\d)"}
ALPHA_NAME = re.compile(r"(?<![a-z])(?:alpha|dmd|lcm)(?![a-z])|pixart[-_. ]?xl")
FAMILY_NAMES = ((SIGMA, re.compile(r"sigma")), (ALPHA, ALPHA_NAME))
DISTILLED_NAMES = {LCM: re.compile(r"(?<![a-z])lcm(?![a-z])"), DMD: re.compile(r"(?<![a-z])dmd(?![a-z])")}
SCALING_FACTORS = {0.18215: ALPHA, 0.13025: SIGMA}
PIPELINES = {"PixArtAlphaPipeline": ALPHA, "PixArtSigmaPipeline": SIGMA, "PixArtSigmaPAGPipeline": SIGMA}


DEPTHS = (28, 42)  # of the releases, and of the community's model of 900 M parameters


def check_depth(name: str, source: Mapping[str, Any], depth: int) -> None:
    """Raises ValueError for a depth that no release has, unless the configuration beside the file says it."""
    told = source.get("num_layers")
    if told == depth or (told is None and depth in DEPTHS):
        return
    known = told or " or ".join(map(str, DEPTHS))
    raise ValueError(
        f"{name} has {depth} blocks where {known} are expected: download it again, or put its own config.json beside "
        "it if it was pruned."
    )


def is_pixart(state_dict: StateDict) -> bool:
    """True for a PixArt transformer in the authors' layout; SANA's has a convolutional FFN and a norm of the text."""
    if any(key.startswith(("controlnet", "base_model.")) or key.endswith(FOREIGN_ENGINES) for key in state_dict):
        return False
    found = state_dict.keys() | ({FUSED} if APART in state_dict else set())
    return found >= set(PIXART_KEYS) and state_dict[PIXART_KEYS[0]].ndim == 4


def find_family(
    state_dict: StateDict, names: list[str], source: Mapping[str, Any], rows: int | None, positions: int | None
) -> tuple[str, str]:
    """ALPHA or SIGMA, and what tells it; the reason is "" where nothing does.

    source: what lies beside the file, with the optional keys "family" (saved or chosen), "scaling_factor" of the
    autoencoder and "pipeline". rows: of the authors' buffer of the empty text. positions: of their position table.
    """
    if source.get("family") in (ALPHA, SIGMA):
        return source["family"], source.get("family_reason", "as its saved configuration says")
    if "ar_embedder.mlp.0.weight" in state_dict:
        return ALPHA, "it embeds the image's size"
    named = next((family for name in names for family, pattern in FAMILY_NAMES if pattern.search(name)), None)
    if rows == 300:
        return SIGMA, "its empty text has 300 tokens"
    # The host writes 120 random rows into every file without them, so they need a second sign.
    if rows == 120 and (positions is not None or named == ALPHA):
        return ALPHA, "its empty text has 120 tokens"
    factor = source.get("scaling_factor")
    for known, family in SCALING_FACTORS.items():
        if isinstance(factor, int | float) and abs(factor - known) < 1e-6:
            return family, f"the autoencoder beside it scales by {known}"
    if source.get("pipeline") in PIPELINES:
        return PIPELINES[source["pipeline"]], f"its folder is a {source['pipeline']}"
    return (named, "as its name says") if named else (SIGMA, "")


def find_sample_size(names: list[str], source: Mapping[str, Any], positions: int | None) -> int | None:
    """Latent side the model was trained at, from a saved configuration, the position table or the names."""
    if source.get("sample_size") is not None:
        return int(source["sample_size"])
    if positions is not None:
        return PATCH_SIZE * isqrt(positions)
    return next((size for name in names for size, pattern in SIZES.items() if re.search(pattern, name)), None)


def find_distilled(names: list[str], source: Mapping[str, Any]) -> str | None:
    """LCM by the scheduler beside it or by name, DMD by name; None for a model that is not distilled.

    names: its own, of the file or its diffusers folder, and not of folders that people sort models into.
    """
    if "distilled" in source:
        return source["distilled"]
    if source.get("scheduler") == "LCMScheduler":
        return LCM
    return next((kind for name in names for kind, pattern in DISTILLED_NAMES.items() if pattern.search(name)), None)


def detect_pixart(
    state_dict: StateDict,
    name: str = "",
    source_config: Mapping[str, Any] | None = None,
    rows: int | None = None,
    positions: int | None = None,
    path: str = "",
) -> tuple[PixArtConfig, str]:
    """Configuration of a PixArt transformer in the authors' layout, and what tells its family ("" for a guess).

    name: for messages. path: of the file, used only for what tensors cannot tell; the name where it is not given. The
    other arguments as `find_family` takes them. Raises ValueError for what is of no release, KeyError with the name of
    a tensor that is missing.
    """
    source = check_numbers(name, source_config or {})
    places = telling_names(path or name), telling_names(str(source.get("_name_or_path") or ""))
    names = [found for place in places for found in place]
    family, reason = find_family(state_dict, names, source, rows, positions)
    hidden_size, in_channels = state_dict["x_embedder.proj.weight"].shape[:2]
    depth = depth_of(state_dict, "blocks.")
    check_depth(name, source, depth)
    if hidden_size % HEAD_DIM or in_channels != 4:
        raise ValueError(
            f"{name} is a PixArt transformer {hidden_size} wide for latents of {in_channels} channels, but heads of "
            f"{HEAD_DIM} and 4 channels are expected: use a released PixArt-alpha or PixArt-Sigma, or a fine-tune."
        )
    outputs = state_dict["final_layer.linear.weight"].shape[0] // PATCH_SIZE**2
    config = PixArtConfig(
        family=family,
        hidden_size=hidden_size,
        depth=depth,
        caption_channels=state_dict["y_embedder.y_proj.fc1.weight"].shape[1],
        in_channels=in_channels,
        learns_variance=outputs == 2 * in_channels,
        micro_conditions="ar_embedder.mlp.0.weight" in state_dict,
        qk_norm="blocks.0.attn.q_norm.weight" in state_dict,
        kv_ratios=tuple(kv_ratio(state_dict, index) for index in range(depth)),
        sample_size=find_sample_size(names, source, positions),
        distilled=find_distilled([name for place in places for name in own_names(place)], source),
    )
    return config, reason


def kv_ratio(state_dict: StateDict, block: int) -> int:
    weight = state_dict.get(f"blocks.{block}.attn.sr.weight")
    return 1 if weight is None else weight.shape[-1]


def describe_pixart(config: PixArtConfig, parameters: int, layout: str, reason: str) -> str:
    kind = f", {config.distilled}" if config.distilled else ""
    native = f", native {RATIO * config.sample_size} px" if config.sample_size else ""
    size = "" if config.depth == 28 else f", {config.depth} blocks"
    why = f" ({reason})" if reason else ""
    return f"{config.family}{kind}{why}{size}, {count(parameters)} parameters, {layout} layout{native}"
