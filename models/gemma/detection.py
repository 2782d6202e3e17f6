"""Tensor names and shapes of a Gemma-2 -> the host's configuration, and which Gemma it is."""

import re
from collections.abc import Mapping
from typing import Any

from ..files.config_values import check_numbers, check_shapes
from ..files.foreign_files import FOREIGN_ENGINES, StateDict, depth_of
from ..runtime.precision import count

GEMMA_SIZES = {2304: ("2B", 26), 3584: ("9B", 42), 4608: ("27B", 46)}  # width -> name and layers of a Gemma-2
INSTRUCT_GEMMA = re.compile(r"gemma[^a-z0-9]*2[^a-z0-9]*2b[^a-z0-9]*it(?![a-z])")
BASE_GEMMA = re.compile(r"gemma[^a-z0-9]*2[^a-z0-9]*2b|lumina")


def check_gemma2(name: str, found: Mapping[str, int], source: Mapping[str, Any]) -> None:
    """Raises ValueError for a Gemma-2 of another size than SANA's, or one that lacks whole layers.

    found: as `detect_gemma2` gives it. source: transformers' config.json.
    """
    size, layers = GEMMA_SIZES.get(found["hidden_size"], ("", None))
    if size in ("9B", "27B"):
        raise ValueError(f"{name} is Gemma-2 {size}, but SANA reads the states of Gemma-2 2B: use gemma-2-2b-it.")
    told_elsewhere = ("num_hidden_layers", "vocab_size")  # below, and of the tokenizer
    check_shapes(name, source, {key: value for key, value in found.items() if key not in told_elsewhere})
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


GEMMA_KEYS = (
    "model.embed_tokens.weight",
    "model.layers.0.pre_feedforward_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
)
GEMMA_MARKS = ("layers.0.pre_feedforward_layernorm.weight", "layers.0.post_feedforward_layernorm.weight")
GEMMA_HEAD_DIM = 256  # of every Gemma-2 2B; not readable off a shape


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


def describe_gemma(model_config: dict[str, Any], parameters: int, formats: str) -> str:
    kept = f", quantized as {formats}" if formats else ""
    return f"Gemma-2, width {model_config['hidden_size']} ({count(parameters)} parameters{kept})"
