"""Whether what was read off a file, and what the configuration beside it says, can be a released model's.

Not here: how the numbers are read off tensors (each family's `detection.py`).
"""

from collections.abc import Mapping
from typing import Any

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


def check_shapes(name: str, source: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises ValueError for the first entry of the configuration that says another value than the tensors."""
    for key, value in found.items():
        told = source.get(key, value)
        if told is not None and told != value:
            raise ValueError(
                f"The config.json beside {name} says {key} = {str(told)[:40]}, but its tensors have {value}: put this "
                "model's own config.json there."
            )
