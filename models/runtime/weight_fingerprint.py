"""Fingerprint of a model's weights; a cache entry is valid while it matches.

It rests on torch's version counters, which count every change in place, and on the host's id of a set of patches. No
values are read. A write through `.data` or into the storage itself bumps no counter and goes unnoticed.
"""

import weakref
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

HOSTS_OWN = {"manual_cast_dtype"}  # an object that the host replaces in every text encoder


class Origin(NamedTuple):
    """Where a copy comes from that the host makes anew at every load: the weight it copies, and its own address."""

    weight: Tensor
    address: int


def has_untracked_edits(patcher: ModelPatcher) -> bool:
    """Whether something acts beside the weights, or has written into them, that no counter and no id of patches shows.

    Hooks of the host that write in place, injected adapters, replaced objects; and on a layer hooks of torch, a forward
    of its own, or a function that changes its weight at every use and is not the host's for its own patches.
    """
    replaced = (patcher.object_patches.keys() | patcher.object_patches_backup.keys()) - HOSTS_OWN
    return bool(patcher.hook_backup or patcher.injections or replaced) or any(map(is_changed, patcher.model.modules()))


def is_changed(layer: nn.Module) -> bool:
    functions = (*getattr(layer, "weight_function", ()), *getattr(layer, "bias_function", ()))
    own = getattr(layer.forward, "__func__", None) is type(layer).forward
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return bool(hooks) or not own or not all(isinstance(function, LowVramPatch) for function in functions)


def read_version(tensor: Tensor) -> int | None:
    """torch's count of changes in place; None for tensors that have none or do not advance it. Never raises."""
    if tensor.is_inference():
        return None
    try:
        return tensor._version
    except RuntimeError:  # made in inference mode and moved outside it
        return None


def with_version(tensor: Tensor) -> Tensor:
    """A tensor over the same memory that has a version counter."""
    with torch.inference_mode(False), torch.no_grad():
        tracked = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return tracked.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def track_versions(model: nn.Module, originals: Mapping[str, Tensor] = {}) -> None:  # noqa: B006 - read only
    """Gives every frozen parameter a version counter, over the same memory.

    originals: by the parameter's name, the weights of which the host has made copies for this load.
    """
    replaced = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.requires_grad or not is_plain(parameter):
                continue
            if read_version(parameter) is None:
                if id(parameter) not in replaced:
                    tracked = nn.Parameter(with_version(parameter), requires_grad=False)
                    tracked.__dict__.update(parameter.__dict__)
                    replaced[id(parameter)] = tracked
                parameter = module._parameters[name] = replaced[id(parameter)]
            original = originals.get(f"{prefix}.{name}")
            if original is not None and original is not parameter:
                parameter.origin = Origin(original, parameter.data_ptr())


def is_plain(tensor: Tensor) -> bool:
    """False for the host's quantized tensors, which are made of others."""
    return type(tensor.data) is Tensor


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the values."""
    return [tensor] if is_plain(tensor) else [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


class WeightFingerprint(NamedTuple):
    """Patches, and of every tensor its identity, version, format and place."""

    patches: object
    states: list[tuple]
    parameters: list[weakref.ref]  # or their parts
    storages: list[StorageWeakRef]  # while one is held, no other storage can get its id

    @classmethod
    def of(cls, parameters: Iterable[nn.Parameter], patches: object = None) -> "WeightFingerprint | None":
        """patches: the host's id of a set of patches. None where a change could go unnoticed, and in training."""
        states, references, storages = [], [], []
        for parameter in parameters:
            origin = getattr(parameter, "origin", None)
            if origin is None:
                # Of a quantized parameter its parts: torch cannot move what is itself weakly referenced.
                source, held = parameter, [parameter] if is_plain(parameter) else parts_of(parameter)
                identity = tuple(map(id, held))
                references += map(weakref.ref, held)
            else:  # the host wraps the original anew too: its memory and its counter stay
                source = origin.weight
                identity = (read_version(parameter), parameter.data_ptr() == origin.address)
            for tensor in parts_of(source):
                version, storage = read_version(tensor), StorageWeakRef(tensor.untyped_storage())
                if version is None or parameter.requires_grad:
                    return None
                states.append((identity, version, storage.cdata, tensor.storage_offset()))
                states.append((tensor.dtype, parameter.dtype, parameter.device))
                storages.append(storage)
        return cls(patches, states, references, storages)

    def matches(self, now: "WeightFingerprint") -> bool:
        alive = all(reference() is not None for reference in self.parameters)  # else an id may have been used again
        return alive and (self.patches, self.states) == (now.patches, now.states)
