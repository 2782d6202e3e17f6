"""Whether what was read off a file, and what the configuration beside it says, can be a released model's.

Not here: how the numbers are read off tensors (`model_detection.py`).
"""

import re
from collections.abc import Mapping
from typing import Any

from .config import DEPTHS

GEMMA_SIZES = {2304: ("2B", 26), 3584: ("9B", 42), 4608: ("27B", 46)}  # width -> name and layers of a Gemma-2
INSTRUCT_GEMMA = re.compile(r"gemma[^a-z0-9]*2[^a-z0-9]*2b[^a-z0-9]*it(?![a-z])")
BASE_GEMMA = re.compile(r"gemma[^a-z0-9]*2[^a-z0-9]*2b|lumina")
# Numbers that config.json, scheduler_config.json or a saved configuration may give.
NUMBERS = ("num_attention_heads", "attention_head_dim", "num_layers", "num_cross_attention_heads", "sample_size",
           "interpolation_scale", "guidance_embeds_scale", "flow_shift", "scaling_factor",
           "num_hidden_layers")  # fmt: skip


def check_numbers(name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without numbers that are null. Raises ValueError for those that are no numbers above 0."""
    for key in NUMBERS:
        value = source.get(key)
        if value is not None and not (type(value) in (int, float) and 0 < value < 1e6):
            raise ValueError(
                f"The configuration of {name} says {key} = {str(value)[:40]!r} where a number above 0 is expected: "
                "download its json files again."
            )
    return {key: value for key, value in source.items() if value is not None or key not in NUMBERS}


def check_depth(name: str, width: int, depth: int) -> None:
    """Raises ValueError for a depth that no release of a released width has: blocks are lost, or somebody pruned it."""
    known = DEPTHS.get(width, (depth,))
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


def check_gemma2(name: str, found: Mapping[str, int], source: Mapping[str, Any]) -> None:
    """Raises ValueError for a Gemma-2 of another size than SANA's, or one that lacks whole layers.

    found: as `detect_gemma2` gives it. source: transformers' config.json.
    """
    size, layers = GEMMA_SIZES.get(found["hidden_size"], ("", None))
    if size in ("9B", "27B"):
        raise ValueError(f"{name} is Gemma-2 {size}, but SANA reads the states of Gemma-2 2B: use gemma-2-2b-it.")
    layers = check_numbers(name, source).get("num_hidden_layers", layers)
    if layers not in (None, found["num_hidden_layers"]):
        raise ValueError(
            f"{name} has {found['num_hidden_layers']} layers where {layers} are expected: download it again."
        )


def is_base_gemma(path: str, source: Mapping[str, Any]) -> bool:
    """True when the first name that tells anything names the base model; the tensors of both have the same shapes."""
    *folders, file = re.split(r"[\\/]+", path.lower())
    for name in (file, str(source.get("_name_or_path") or "").lower(), *reversed(folders[-3:])):
        if INSTRUCT_GEMMA.search(name):
            return False
        if BASE_GEMMA.search(name):
            return True
    return False
