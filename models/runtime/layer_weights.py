"""Weights of the host's layers for arithmetic of our own: as the layer itself would use them, patches included."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.ops
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

# The host's layers whose forward is the plain operation on `weight` and `bias`. A subclass may compute anything.
PLAIN_LAYERS = tuple(
    getattr(operations, name)
    for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
    for name in ("Linear", "Conv2d")
)


def is_plain_layer(layer: nn.Module) -> bool:
    """Whether the layer is its weights and nothing else.

    False for a subclass, a hook, a forward of its own (a LoRA put around it), and a quantized format.
    """
    own = getattr(layer.forward, "__func__", None) is type(layer).forward
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in PLAIN_LAYERS and own and not hooks and not isinstance(layer.weight, QuantizedTensor)


def changes_weights(layer: nn.Module) -> bool:
    """Whether the host changes them at every use, as it does with a LoRA for layers that it keeps off the device."""
    return bool(layer.weight_function or layer.bias_function)


def needs_no_cast(layer: nn.Module, x: Tensor) -> bool:
    """Whether its weights are in x's format, on x's device, and used as they are."""
    if layer.comfy_cast_weights or changes_weights(layer):
        return False
    weights = (one for one in (layer.weight, layer.bias) if one is not None)
    return all((one.dtype, one.device) == (x.dtype, x.device) for one in weights)


@contextmanager
def cast_weights(layer: nn.Module, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias in x's format, on x's device."""
    if needs_no_cast(layer, x):
        yield layer.weight, layer.bias
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
