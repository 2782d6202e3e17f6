"""What the text encoder keeps of the text that many prompts begin with, SANA's instruction: computed once, then reused.

In a causal network later positions need nothing of earlier ones but their keys and values.
"""

from typing import NamedTuple

import comfy.model_management
from torch import Tensor, nn

from ..runtime.weight_fingerprint import Weights, written_into

KeysValues = list[tuple[Tensor, Tensor]]  # one pair a layer, each (1, g, P, d)


class Prefix(NamedTuple):
    """Keys and values of the first P positions, and the final state (1, 1, C) of the very first."""

    keys_values: KeysValues
    first: Tensor

    def to(self, device) -> "Prefix":
        return Prefix(
            [(keys.to(device), values.to(device)) for keys, values in self.keys_values], self.first.to(device)
        )


def weights_in_use(model: nn.Module) -> Weights | None:
    """The weights of a model that the host has loaded; None where they may change with no trace.

    Only matrices are looked at: where the host streams weights it makes the small ones anew each time.
    """
    loaded = [known.model for known in comfy.model_management.current_loaded_models if known.model is not None]
    patcher = next((patcher for patcher in loaded if patcher.model is model), None)
    if patcher is None or written_into(patcher):
        return None
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    if any(matrix.requires_grad for matrix in matrices):
        return None
    return Weights.of(matrices, patcher.patches_uuid)


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
