"""Tensor names and shapes of a T5 v1.1 encoder -> the host's configuration.

Source: T5, arXiv 1910.10683; the key list of the released encoder and of the host's files of it.
"""

from typing import Any

from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of
from ..runtime.precision import count

FIRST = "encoder.block.0.layer."
BIAS = "SelfAttention.relative_attention_bias.weight"
T5_KEYS = (
    "shared.weight",
    f"{FIRST}0.{BIAS}",
    f"{FIRST}0.SelfAttention.q.weight",
    f"{FIRST}1.DenseReluDense.wi_0.weight",
    "encoder.final_layer_norm.weight",
)
T5_MARKS = (f"{FIRST}0.SelfAttention.k.weight",)
OTHER_SIZES = {512: "small", 768: "base", 1024: "large", 2048: "XL"}  # by width
XXL_WIDTH, XXL_LAYERS = 4096, 24
VOCABULARY = 32100  # pieces of T5's tokenizer, which the host brings; the models embed some more


def is_t5(state_dict: StateDict) -> bool:
    """True for an encoder of T5 v1.1; UMT5 has a position bias in every block, T5 1.0 no gate in its FFN."""
    if any(key.endswith(FOREIGN_ENGINES) for key in state_dict) or f"encoder.block.1.layer.0.{BIAS}" in state_dict:
        return False
    return all(key in state_dict for key in T5_KEYS) and state_dict["shared.weight"].ndim == 2


def detect_t5(state_dict: StateDict) -> dict[str, int]:
    """Fields of the host's T5 configuration. Raises KeyError with the name of a tensor that is missing."""
    vocab_size, d_model = state_dict["shared.weight"].shape
    num_heads = state_dict[f"{FIRST}0.{BIAS}"].shape[1]
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_ff": state_dict[f"{FIRST}1.DenseReluDense.wi_0.weight"].shape[0],
        "num_heads": num_heads,
        "d_kv": state_dict[f"{FIRST}0.SelfAttention.q.weight"].shape[0] // num_heads,
        "num_layers": depth_of(state_dict, "encoder.block."),
    }


def check_t5(name: str, found: dict[str, int]) -> None:
    """Raises ValueError for a T5 of another size than PixArt's, or one that lacks layers or tokens."""
    size = OTHER_SIZES.get(found["d_model"])
    if size:
        raise ValueError(f"{name} is T5 v1.1 {size}, but PixArt reads the states of T5 v1.1 XXL: use t5-v1_1-xxl.")
    if found["d_model"] == XXL_WIDTH and found["num_layers"] != XXL_LAYERS:
        raise ValueError(f"{name} has {found['num_layers']} layers where {XXL_LAYERS} are expected: download it again.")
    if found["vocab_size"] < VOCABULARY:
        raise ValueError(
            f"{name} embeds {found['vocab_size']} tokens where T5's tokenizer has {VOCABULARY}: use t5-v1_1-xxl."
        )


def describe_t5(found: dict[str, Any], parameters: int, formats: str) -> str:
    size = "XXL" if found["d_model"] == XXL_WIDTH else f"{found['d_model']} wide"
    quantized = f", quantized as {formats}" if formats else ""
    return f"T5 v1.1 {size} ({count(parameters)} parameters{quantized})"
