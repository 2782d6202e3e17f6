"""Caches of the text encoder: the states of the last texts, and the keys and values that many prompts begin with.

In a causal network later positions need nothing of earlier ones but their keys and values, so SANA's instruction is
computed once. A negative prompt is the same from prompt to prompt, mostly empty, and costs a whole pass of the weights.
"""

from typing import Any, NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..runtime.weight_fingerprint import WeightFingerprint, has_untracked_edits, track_versions
from .model import KeysValues

PREFIXES, TEXTS = 1, 2  # a prompt and its negative


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


def clear_caches(patcher: ModelPatcher, unpatch_all: bool) -> None:
    """Called by the host when it takes a model off its device; without `unpatch_all` it is only to be loaded anew."""
    if unpatch_all:
        patcher.model.prefix_cache.clear()
        patcher.model.states_cache.clear()


def compact(tensor: Tensor) -> Tensor:
    """The tensor, copied if it is a part of a larger one that would live as long."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class Entry(NamedTuple):
    tokens: list[int]
    fingerprint: WeightFingerprint
    device: torch.device
    result: Any


class TextCache:
    """What was computed of the last texts, valid while the weights that made it are in use and unchanged.

    It stays on the device that computed it, as long as the model does: the trained instruction's keys and values are
    43 MB in float32 for Gemma-2-2b, a text's states 3 MB at most.
    """

    def __init__(self, size: int):
        self.size = size
        self.entries: list[Entry] = []  # the last used is last

    def __deepcopy__(self, memo: dict) -> "TextCache":
        return TextCache(self.size)  # a copy of the model has weights of its own

    def clear(self) -> None:
        self.entries = []

    def find(self, tokens: list[int], fingerprint: WeightFingerprint | None, device) -> Any:
        """None if it has not been computed with these weights on this device; what others have made is dropped."""
        if fingerprint is None:
            return None
        device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
        self.entries = [one for one in self.entries if one.device == device and one.fingerprint.matches(fingerprint)]
        for i, entry in enumerate(self.entries):
            if entry.tokens == tokens:
                self.entries.append(self.entries.pop(i))
                return entry.result
        return None

    def store(self, tokens: list[int], fingerprint: WeightFingerprint | None, device, result: Any) -> None:
        """Stores nothing without a fingerprint."""
        if fingerprint is None:
            return self.clear()
        entry = Entry(tokens, fingerprint, torch.empty(0, device=device).device, result)
        self.entries = [*self.entries, entry][-self.size :]
