"""What the text encoder keeps of the text that many prompts begin with, SANA's instruction: computed once, then reused.

In a causal network later positions need nothing of earlier ones but their keys and values.
"""

import weakref
from typing import NamedTuple

import comfy.model_management
from torch import Tensor, nn

KeysValues = list[tuple[Tensor, Tensor]]  # one pair a layer, each (1, g, P, d)


class Prefix(NamedTuple):
    """Keys and values of the first P positions, and the final state (1, 1, C) of the very first."""

    keys_values: KeysValues
    first: Tensor

    def to(self, device) -> "Prefix":
        return Prefix(
            [(keys.to(device), values.to(device)) for keys, values in self.keys_values], self.first.to(device)
        )


class Weights(NamedTuple):
    """Which weights a loaded model computes with, for comparison with a later moment."""

    patches: object  # the host's mark of a set of patches
    states: list[tuple]
    references: list[weakref.ref]

    def are_still(self, now: "Weights") -> bool:
        alive = all(reference() is not None for reference in self.references)  # else an id may have been used again
        return alive and (self.patches, self.states) == (now.patches, now.states)


def weights_in_use(model: nn.Module) -> Weights | None:
    """The weights of a model that the host has loaded; None where they may change with no trace.

    Only matrices are looked at: where the host streams weights it makes the small ones anew each time.
    """
    loaded = [known.model for known in comfy.model_management.current_loaded_models if known.model is not None]
    patcher = next((patcher for patcher in loaded if patcher.model is model), None)
    # Hooks write into the weights as they lie, and injected adapters act beside them.
    if patcher is None or patcher.hook_backup or patcher.injections:
        return None
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    if any(matrix.requires_grad for matrix in matrices):
        return None
    states = [(id(matrix), version(matrix), matrix.dtype, matrix.device, address(matrix)) for matrix in matrices]
    return Weights(patcher.patches_uuid, states, [weakref.ref(matrix) for matrix in matrices])


def version(tensor: Tensor) -> int | None:
    """torch's count of the changes in place, which tensors made in inference mode do not have."""
    return None if tensor.is_inference() else tensor._version


def address(tensor: Tensor) -> int | None:
    """Where the values lie; None for the host's quantised tensors, which are made of others."""
    return tensor.data_ptr() if type(tensor.data) is Tensor else None


class KeptPrefix:
    """The last prefix, for as long as the weights that made it are in use.

    It lies where the host keeps a text encoder's results, in main memory unless started with --gpu-only: 43 MB of
    Gemma-2-2b's for the trained instruction.
    """

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        self.tokens: list[int] = []
        self.weights: Weights | None = None
        self.prefix: Prefix | None = None

    def find(self, tokens: list[int], weights: Weights | None) -> Prefix | None:
        kept = self.weights is not None and weights is not None and self.tokens == tokens
        return self.prefix if kept and self.weights.are_still(weights) else None

    def keep(self, tokens: list[int], weights: Weights | None, prefix: Prefix) -> None:
        self.forget()
        if weights is not None:
            device = comfy.model_management.intermediate_device()
            self.tokens, self.weights, self.prefix = tokens, weights, prefix.to(device)
