"""Prefix cache: keys and values of the text that many prompts begin with, SANA's instruction, computed once.

In a causal network later positions need nothing of earlier ones but their keys and values.
"""

from typing import NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..runtime.weight_fingerprint import WeightFingerprint, has_untracked_edits, track_versions

KeysValues = list[tuple[Tensor, Tensor]]  # one pair per layer, each (1, g, P, d)


class Prefix(NamedTuple):
    """Keys and values of the first P positions, and the final state (1, 1, C) of the very first."""

    keys_values: KeysValues
    first: Tensor


def fingerprint_in_use(model: nn.Module, network: nn.Module) -> WeightFingerprint | None:
    """Fingerprint of a network inside a host model that is loaded; None where its weights may change with no trace."""
    loaded = [known.model for known in comfy.model_management.current_loaded_models if known.model is not None]
    patcher = next((patcher for patcher in loaded if patcher.model is model), None)
    if patcher is None or has_untracked_edits(patcher):
        return None
    track_versions(network)
    return WeightFingerprint.of(network.parameters(), patcher.patches_uuid)


def track_loaded(patcher: ModelPatcher, *_) -> None:
    """Called by the host after a load: copies that it has made in inference mode get version counters.

    Where the host streams weights it copies the small ones anew at every load, from those in its backup.
    """
    backup = patcher.backup if patcher.is_dynamic() else {}
    track_versions(patcher.model, {key: saved.weight for key, saved in backup.items()})


def clear_prefix_cache(patcher: ModelPatcher, unpatch_all: bool) -> None:
    """Called by the host when it takes a model off its device; without `unpatch_all` it is only to be loaded anew."""
    if unpatch_all:
        patcher.model.prefix_cache.clear()


class PrefixCache:
    """The last prefix, valid while the weights that made it are in use and unchanged.

    It stays on the device that computed it, as long as the model does: 43 MB in float32 for Gemma-2-2b and the trained
    instruction.
    """

    def __init__(self):
        self.clear()

    def __deepcopy__(self, memo: dict) -> "PrefixCache":
        return PrefixCache()  # a copy of the model has weights of its own

    def clear(self) -> None:
        self.tokens: list[int] = []
        self.fingerprint: WeightFingerprint | None = None
        self.prefix: Prefix | None = None

    def find(self, tokens: list[int], fingerprint: WeightFingerprint | None, device) -> Prefix | None:
        if self.prefix is None or fingerprint is None or self.tokens != tokens:
            return None
        same_device = self.prefix.first.device == torch.empty(0, device=device).device  # "cuda" is "cuda:0"
        return self.prefix if same_device and self.fingerprint.matches(fingerprint) else None

    def store(self, tokens: list[int], fingerprint: WeightFingerprint | None, prefix: Prefix) -> None:
        """Stores nothing without a fingerprint."""
        self.clear()
        if fingerprint is not None:
            self.tokens, self.fingerprint, self.prefix = tokens, fingerprint, prefix
