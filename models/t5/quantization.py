"""Which layers of T5's encoder may be narrow: all linear layers, and the table of the vocabulary.

The input of `wo` is a product of two activations with values far above its mean, for which transformers keeps it in
float32: one float8 scale for it costs too much.
"""

from ..files.layout import StateDict
from ..files.quantize import Rules


def t5_rules(state_dict: StateDict) -> Rules:  # noqa: ARG001 - as every family's
    return Rules(
        narrow=r"^encoder\.block\.\d+\.layer\.(0\.SelfAttention\.[qkvo]|1\.DenseReluDense\.(wi_[01]|wo))$",
        tables=r"^shared$",
        wide_products=r"\.DenseReluDense\.wo$",
        wide=((r"\.relative_attention_bias$", "it is added to the scores of every block"),),
    )


def t5_architecture(state_dict: StateDict) -> str:  # noqa: ARG001 - as every family's
    return "t5-v1.1-xxl"
