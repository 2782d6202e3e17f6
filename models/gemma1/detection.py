"""Tensor names and shapes of a Gemma-1 2B -> the host's configuration.

Source: google/gemma-2b and the text encoder of Lumina-Next-SFT-diffusers.
"""

from collections.abc import Mapping
from typing import Any

from ..files.config_values import check_numbers, check_shapes
from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of, has_gemma_vocabulary
from ..runtime.precision import count

FIRST = "model.layers.0."
GEMMA_1_KEYS = ("model.embed_tokens.weight", f"{FIRST}self_attn.q_proj.weight", f"{FIRST}mlp.gate_proj.weight")
# Of tensors that later Gemmas have besides.
LATER_GEMMAS = (f"{FIRST}pre_feedforward_layernorm.weight", f"{FIRST}self_attn.q_norm.weight")
HEAD_DIM = 256  # of every Gemma-1; not readable off a shape
DEPTHS = {2048: 18, 3072: 28}  # width -> layers of a Gemma-1
LARGE_WIDTH = 3072  # of Gemma-1 7B


def is_gemma_1(state_dict: StateDict) -> bool:
    """True for a Gemma-1 decoder with keys below `model.`; its vocabulary alone tells it from a Llama."""
    if any(key.endswith(FOREIGN_ENGINES) for key in state_dict) or any(key in state_dict for key in LATER_GEMMAS):
        return False
    return all(key in state_dict for key in GEMMA_1_KEYS) and has_gemma_vocabulary(state_dict)


def check_gemma_1(name: str, found: Mapping[str, int], source: Mapping[str, Any]) -> None:
    """Raises ValueError for a Gemma-1 of another size than Lumina-Next's, or one that lacks whole layers.

    found: as `detect_gemma_1` gives it. source: transformers' config.json.
    """
    width, layers = found["hidden_size"], found["num_hidden_layers"]
    if width == LARGE_WIDTH:
        raise ValueError(f"{name} is Gemma-1 7B, but Lumina-Next reads the states of Gemma-1 2B: use gemma-2b.")
    told_elsewhere = ("num_hidden_layers", "vocab_size")  # below, and of the tokenizer
    check_shapes(name, source, {key: value for key, value in found.items() if key not in told_elsewhere})
    expected = check_numbers(name, source).get("num_hidden_layers", DEPTHS.get(width))
    if expected not in (None, layers):
        raise ValueError(f"{name} has {layers} layers where {expected} are expected: download it again.")


def detect_gemma_1(state_dict: StateDict) -> dict[str, int]:
    """Fields of the host's configuration. Raises KeyError with the name of a tensor that is missing."""
    embedding = state_dict["model.embed_tokens.weight"]
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "intermediate_size": state_dict[f"{FIRST}mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": depth_of(state_dict, "model.layers."),
        "num_attention_heads": state_dict[f"{FIRST}self_attn.q_proj.weight"].shape[0] // HEAD_DIM,
        "num_key_value_heads": state_dict[f"{FIRST}self_attn.k_proj.weight"].shape[0] // HEAD_DIM,
    }


def describe_gemma_1(model_config: dict[str, Any], parameters: int, formats: str) -> str:
    quantized = f", quantized as {formats}" if formats else ""
    return f"Gemma-1, width {model_config['hidden_size']} ({count(parameters)} parameters{quantized}), for Lumina-Next"
