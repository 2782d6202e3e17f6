"""Weights of the host's layers for arithmetic of our own: as the layer itself would use them, patches included."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

SAMPLES = 64  # values of a matrix


def lends(layer: nn.Module) -> bool:
    """Whether the layer is its weights and nothing else: no hook, no LoRA put around it, no quantised format."""
    own = getattr(layer.forward, "__func__", None) is type(layer).forward
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    plain = isinstance(layer, comfy.ops.CastWeightBiasOp) and not isinstance(layer.weight, QuantizedTensor)
    return plain and own and not hooks


def changes_weights(layer: nn.Module) -> bool:
    """Whether the host changes them at every use, as where a LoRA does not fit beside the model."""
    return bool(layer.weight_function or layer.bias_function)


@contextmanager
def borrowed(layer: nn.Module, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias in x's format, where x is."""
    if not (layer.comfy_cast_weights or changes_weights(layer)):
        weight, bias = layer.weight, layer.bias
        if all((one.dtype, one.device) == (x.dtype, x.device) for one in (weight, bias) if one is not None):
            yield weight, bias
            return
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def written_into(patcher: ModelPatcher) -> bool:
    """Whether hooks write into a model's weights as they lie, or injected adapters act beside them, with no trace."""
    return bool(patcher.hook_backup or patcher.injections)


class Weights(NamedTuple):
    """Which weights are computed with, for comparison with a later moment."""

    patches: object  # the host's mark of a set of patches
    states: list[tuple]
    references: list[weakref.ref]

    @classmethod
    def of(cls, parameters: Iterable[nn.Parameter], patches: object = None) -> "Weights":
        parameters = list(parameters)
        states = [(id(one), version(one), one.dtype, one.device, address(one)) for one in parameters]
        return cls(patches, states, [weakref.ref(one) for one in parameters])

    def are_still(self, now: "Weights") -> bool:
        alive = all(reference() is not None for reference in self.references)  # else an id may have been used again
        return alive and (self.patches, self.states) == (now.patches, now.states)


def version(tensor: Tensor) -> int | None:
    """torch's count of the changes in place, which tensors made in inference mode do not have."""
    return None if tensor.is_inference() else tensor._version


def address(tensor: Tensor) -> int | None:
    """Where the values lie; None for the host's quantised tensors, which are made of others."""
    return tensor.data_ptr() if type(tensor.data) is Tensor else None


class LentWeights(NamedTuple):
    """Those of some layers with a sample of their values, since the host's have no count of changes in place."""

    weights: Weights
    samples: list[Tensor]

    def are_still(self, now: "LentWeights") -> bool:
        return self.weights.are_still(now.weights) and all(map(torch.equal, self.samples, now.samples))


def lent_weights(*layers: nn.Module) -> LentWeights | None:
    """None where a layer does not lend them, or has the host change them at every use."""
    if not all(lends(layer) and not changes_weights(layer) for layer in layers):
        return None
    weights = [one for layer in layers for one in (layer.weight, layer.bias) if one is not None]
    return LentWeights(Weights.of(weights), [sample(one) for one in weights if one.ndim > 1])


def sample(weight: Tensor) -> Tensor:
    """A copy of some of its values, no two of a square matrix in the same column."""
    return weight.detach().flatten()[:: weight.numel() // SAMPLES | 1].clone()
