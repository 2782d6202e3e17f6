"""Which weights a model computes with, so that what was computed with others is not used again."""

import weakref
from collections.abc import Iterable
from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .layer_weights import changes_weights, is_plain_layer

SAMPLES = 64  # values of a matrix


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
    """Weights that layers lend, with a sample of their values: those that a node loads have no `version`."""

    weights: Weights
    samples: list[bytes]

    def are_still(self, now: "LentWeights") -> bool:
        return self.weights.are_still(now.weights) and self.samples == now.samples


def lent_weights(*layers: nn.Module) -> LentWeights | None:
    """Those of all these layers; None where one does not lend them, or has the host change them at every use."""
    if not all(is_plain_layer(layer) and not changes_weights(layer) for layer in layers):
        return None
    weights = [one for layer in layers for one in (layer.weight, layer.bias) if one is not None]
    return LentWeights(Weights.of(weights), [bytes_of(sample(one)) for one in weights if one.ndim > 1])


def sample(weight: Tensor) -> Tensor:
    """Some of its values, at released widths no two of a square matrix in the same column."""
    return weight.detach().flatten()[:: weight.numel() // SAMPLES | 1]


def bytes_of(values: Tensor) -> bytes:
    """A copy outside the heap, which has small tensors lie where the activations of a step were (`kept_words.py`)."""
    return values.contiguous().view(torch.uint8).numpy(force=True).tobytes()
