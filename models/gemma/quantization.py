"""Which layers of Gemma-2 may be narrow: all linear layers, and the table of the vocabulary, a fifth of the weights."""

from ..files.layout import StateDict
from ..files.quantize import Rules


def gemma_rules(state_dict: StateDict) -> Rules:  # noqa: ARG001 - as every family's
    return Rules(
        narrow=r"^model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$",
        tables=r"^model\.embed_tokens$",
    )


def gemma_architecture(state_dict: StateDict) -> str:  # noqa: ARG001 - as every family's
    return "gemma-2"
