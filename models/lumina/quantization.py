"""Which layers of a Lumina-Next transformer may be narrow: the linear layers of attention and feed-forward part.

No released weights were measured, so that no layer is treated as sensitive.
"""

from ..files.layout import StateDict
from ..files.quantize import Rules


def lumina_rules(state_dict: StateDict) -> Rules:  # noqa: ARG001 - as every family's
    """Rules for a transformer in the authors' layout. The input of `feed_forward.w2` is a product of two activations:
    one float8 scale for it costs too much."""
    return Rules(
        narrow=r"^layers\.\d+\.(attention\.(w[qkvo]|w[kv]_y)|feed_forward\.w[123])$",
        wide_products=r"\.feed_forward\.w2$",
        wide=(
            (r"\.adaLN_modulation\.1$", "it scales all tokens of a block"),
            (r"^(x_embedder|t_embedder|cap_embedder|final_layer)(\.|$)", "every block depends on it"),
        ),
    )


def lumina_architecture(state_dict: StateDict) -> str:  # noqa: ARG001 - as every family's
    return "lumina-next"
