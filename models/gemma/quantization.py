"""Which layers of Gemma-2 may be narrow: all linear layers, and the table of the vocabulary, a fifth of the weights."""

from ..files.layout import StateDict
from ..files.quantize import DECODER_RULES, Rules


def gemma_rules(state_dict: StateDict) -> Rules:  # noqa: ARG001 - as every family's
    return DECODER_RULES


def gemma_architecture(state_dict: StateDict) -> str:  # noqa: ARG001 - as every family's
    return "gemma-2"
