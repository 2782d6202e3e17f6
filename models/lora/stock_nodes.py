"""The patchers of our models: what the host's LoRA and merge nodes bring is checked, for SANA scaled as trained too."""

import logging
import math
from collections.abc import Mapping
from functools import cache

import comfy.model_patcher
import comfy.utils
import torch
from comfy.weight_adapter import BypassInjectionManager, WeightAdapterBase
from torch import Tensor

from ..files.layout import BRANCH
from ..runtime.device import disk_options, patcher_class
from .bypass import bypass_managers, computes, in_layer_shape, inference_hooks
from .convert import TARGET, adapter_alpha, base_model_of, layer_of, read_adapter_config
from .depthwise import add_depthwise_lora, find_depthwise_lora, set_latest_alpha
from .weight_adapter import (
    ALPHA,
    change_shape,
    fits,
    has_magnitude,
    in_network_shape,
    matrix_shape,
    prepare,
    rank_of,
    with_alpha,
)

logger = logging.getLogger(__name__)

OWN_NODE = "load it with SANA LoRA Loader"
OWN_READER = f"{OWN_NODE}, which reads the names of every trainer and says what the file is"
CURES = {"Lumina-Next": "take one that was trained on Lumina-Next, with the names of its authors' layers"}


def drop_misfits(
    adapters: dict[str, WeightAdapterBase], weights: dict[str, Tensor], kind: str = "SANA"
) -> dict[str, WeightAdapterBase]:
    """Those that can be added to their weights; the rest is a warning. Raises ValueError when none can."""
    misfits = [key for key, adapter in adapters.items() if not fits(adapter, weights[key])]
    if not misfits:
        return adapters
    key = misfits[0]
    change, own = change_shape(adapters[key]), matrix_shape(weights[key])
    layer = layer_of(key if isinstance(key, str) else key[0])
    told = f"it changes {layer} by {change[0]} x {change[1]} values where this model has {own[0]} x {own[1]}"
    if len(misfits) == len(adapters) and change == own:  # factors of two ranks
        raise ValueError(
            f"The factors of this LoRA do not fit each other in what it adds to {layer}: save it again from the "
            "trainer, or download it again."
        )
    if len(misfits) == len(adapters):
        raise ValueError(f"This LoRA is for another size of {kind}: {told}: use it with the size it was trained on.")
    logger.warning("SANA: %d of %d layers of a LoRA are left over: %s", len(misfits), len(adapters), told)
    return {key: adapter for key, adapter in adapters.items() if key not in misfits}


def require_strength(strength: float) -> None:
    if not math.isfinite(strength):
        raise ValueError(f"A LoRA has strength {strength}, which is no number: set it to 1.")


def require_finite_factors(adapters: dict[str, WeightAdapterBase]) -> None:
    """Raises ValueError naming the first layer that a LoRA would change by NaN or infinity."""
    for key, adapter in adapters.items():
        for part in adapter.weights:
            if isinstance(part, Tensor) and not torch.isfinite(part.float()).all():  # float8 too
                layer = layer_of(key if isinstance(key, str) else key[0])
                raise ValueError(
                    f"This LoRA holds NaN or infinity in what it adds to {layer}, so its training failed: take an "
                    "earlier save."
                )


class MergePatches(list):
    """What a merge node takes of a weight, with the kind of the model that it comes from."""

    def __init__(self, patches: list, kind: str):
        super().__init__(patches)
        self.kind = kind


class StockPatches:
    """The checks of every family, mixed into the host's class. The kind of a model is in its `model_config`."""

    @property
    def kind(self) -> str:
        return self.model.model_config.kind

    def add_patches(self, patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """Raises ValueError for a LoRA of which nothing fits this model, and for another model's weights."""
        self.check_patches(patches, strength_patch)
        adapters = {key: patch for key, patch in patches.items() if isinstance(patch, WeightAdapterBase)}
        require_finite_factors(adapters)
        # Keys of slices are tuples, whose layer holds several of a file's.
        weights = {key: weight for key in adapters if (weight := self.find_weight(key)) is not None}
        prepared = {key: prepare(adapters[key]) for key in weights}
        left = drop_misfits(prepared, weights, self.kind)
        fitting = {key: patch for key, patch in (patches | left).items() if key not in weights or key in left}
        return super().add_patches(fitting, strength_patch, strength_model)

    def add_hook_patches(self, hook, patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0) -> None:
        """A LoRA of the host's hook nodes, with the checks of `add_patches` but for its strength."""
        adapters = {key: patch for key, patch in patches.items() if isinstance(patch, WeightAdapterBase)}
        require_finite_factors(adapters)
        weights = {key: weight for key in adapters if (weight := self.find_weight(key)) is not None}
        left = drop_misfits({key: prepare(adapters[key]) for key in weights}, weights, self.kind)
        fitting = {key: patch for key, patch in (patches | left).items() if key not in weights or key in left}
        super().add_hook_patches(hook, fitting, strength_patch, strength_model)

    def set_injections(self, key: str, injections: list) -> None:
        """A LoRA of the host's bypass node. Raises ValueError for one that its layers cannot compute."""
        for manager in bypass_managers(injections):
            self.check_bypass(manager)
        super().set_injections(key, injections)

    def check_bypass(self, manager: BypassInjectionManager) -> None:
        """Raises ValueError for a DoRA, of which half would be applied without a word."""
        for hook in inference_hooks(manager, self.model).values():
            if has_magnitude(hook.adapter):
                raise ValueError(f"This LoRA is a DoRA, whose magnitudes bypass mode leaves out: {OWN_NODE}.")

    def set_attachments(self, key: str, attachment) -> None:
        """Raises ValueError for a LoRA whose header names another model, with layers of the same names and width."""
        named = base_model_of(attachment) if key == "lora_metadata" else None
        if named is not None and not self.kind.startswith(named):
            raise ValueError(
                f"This LoRA is for {named}, not for {self.kind}, as its header says: use it with the model it was "
                "trained on."
            )
        super().set_attachments(key, attachment)

    def check_patches(self, patches: dict, strength: float) -> None:
        """Raises ValueError for no strength, no patch that applies, or weights of another model."""
        require_strength(strength)
        if not patches:
            raise ValueError(
                f"No key of this LoRA names a layer of this {self.kind} model (the console lists them): "
                f"{CURES.get(self.kind, OWN_READER)}."
            )
        self.require_same_size(patches)

    def get_key_patches(self, filter_prefix: str | None = None) -> dict:
        patches = super().get_key_patches(filter_prefix)
        return {key: MergePatches(patch, self.kind) for key, patch in patches.items()}

    def require_same_size(self, patches: dict) -> None:
        """Raises ValueError for a merge with a model of another kind or size."""
        for key, patch in patches.items():
            if not (isinstance(patch, list) and isinstance(key, str) and key.startswith(TARGET)):
                continue  # merges hand over lists: the other model's weight, then its patches
            kind = getattr(patch, "kind", self.kind)
            if kind != self.kind:
                raise ValueError(
                    f"These models cannot be merged: the other one is {kind}, this one is {self.kind}: merge models of "
                    "the same kind and size."
                )
            other, own = patch[0][0], self.find_weight(key)
            if own is None or own.shape != other.shape:
                found = "which this model does not have" if own is None else f"{tuple(own.shape)} here"
                raise ValueError(
                    f"These models cannot be merged: the other one has {key.removeprefix(TARGET)} of shape "
                    f"{tuple(other.shape)}, {found}: merge models of the same kind and size."
                )

    def find_weight(self, key) -> Tensor | None:
        """The weight, or the slice of one, that a key names; None for a text encoder's."""
        name, rows = (key, None) if isinstance(key, str) else (key[0], key[1])
        try:
            weight = comfy.utils.get_attr(self.model, name)
        except AttributeError:
            return None
        return weight if rows is None else weight.narrow(*rows)


class StockLora(StockPatches):
    """What the host's LoRA nodes call on a patcher, with the checks that they lack; mixed into the host's class.

    Other patches, such as those of the merge nodes, pass unchanged.
    """

    latest_lora: dict[str, WeightAdapterBase] = {}  # key -> adapter of the last one, until its metadata comes

    def add_patches(self, patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """Raises ValueError for a LoRA of which nothing fits this model."""
        self.check_patches(patches, strength_patch)
        patches = {key: in_network_shape(patch, self.find_weight(key)) for key, patch in patches.items()}
        adapters = {key: prepare(patch) for key, patch in patches.items() if isinstance(patch, WeightAdapterBase)}
        require_finite_factors(adapters)
        weights = {key: weight for key in adapters if (weight := self.find_weight(key)) is not None}
        depthwise = {
            key: lora
            for key, weight in weights.items()
            if (lora := find_depthwise_lora(adapters[key], weight, strength_patch)) is not None
        }
        own = drop_misfits({key: adapters[key] for key in weights if key not in depthwise}, weights)
        others = {key: patch for key, patch in (patches | adapters).items() if key not in weights} | own
        added = super(StockPatches, self).add_patches(others, strength_patch, strength_model)
        for key, lora in depthwise.items():
            add_depthwise_lora(self, key, lora)
        self.latest_lora = own | {key: adapters[key] for key in depthwise}
        if self.latest_lora:
            read = sum(part is not None for key in self.latest_lora for part in patches[key].weights)
            logger.info("SANA: %d keys of a LoRA applied, to %d layers", read, len(self.latest_lora))
        return [*added, *depthwise]

    def add_hook_patches(self, hook, patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0) -> None:
        """A LoRA of the host's hook nodes, with the checks of `add_patches`; its alpha must be in its tensors."""
        adapters = {key: prepare(patch) for key, patch in patches.items() if isinstance(patch, WeightAdapterBase)}
        require_finite_factors(adapters)
        weights = {key: weight for key in adapters if (weight := self.find_weight(key)) is not None}
        beside = [key for key, weight in weights.items() if find_depthwise_lora(adapters[key], weight, 1.0) is not None]
        if beside:
            logger.warning(
                "SANA: a hook LoRA changes %s in a way that no weight can hold, which hooks leave out: %s.",
                *(layer_of(beside[0]), OWN_NODE),
            )
        own = drop_misfits({key: adapters[key] for key in weights if key not in beside}, weights)
        others = {key: patch for key, patch in (patches | adapters).items() if key not in weights} | own
        super(StockPatches, self).add_hook_patches(hook, others, strength_patch, strength_model)

    def check_bypass(self, manager: BypassInjectionManager) -> None:
        """Takes hooks with adapters of another width out; raises as `set_injections` says."""
        super().check_bypass(manager)
        hooks = inference_hooks(manager, self.model)
        for hook in hooks.values():
            hook.adapter = in_layer_shape(hook.adapter, hook.module)
        adapters = {key: hook.adapter for key, hook in hooks.items()}
        require_finite_factors(adapters)
        weights = {key: hooks[key].module.weight for key in adapters}
        for key, adapter in adapters.items():
            dense = find_depthwise_lora(adapter, weights[key], 1.0) is not None
            if dense or (fits(adapter, weights[key]) and not computes(hooks[key])):
                raise ValueError(f"Bypass mode cannot compute this LoRA on {layer_of(key)}: {OWN_NODE}.")
        left = drop_misfits(adapters, weights) if adapters else {}
        manager.hooks[:] = [
            hook for hook in manager.hooks if hook not in hooks.values() or hook.adapter in left.values()
        ]

    def get_key_patches(self, filter_prefix: str | None = None) -> dict:
        self.warn_of_branches("merges")
        return super().get_key_patches(filter_prefix)

    def state_dict_for_saving(self, *args, **kwargs) -> dict:
        self.warn_of_branches("saved models")
        return super().state_dict_for_saving(*args, **kwargs)

    def warn_of_branches(self, where: str) -> None:
        """What a LoRA adds beside a depthwise convolution has no weight that could be merged or saved."""
        found = [key for key in self.object_patches if key.endswith(f".{BRANCH}")]
        if found:
            logger.warning("SANA: a LoRA on %d depthwise convolutions is no part of %s.", len(found), where)

    def set_attachments(self, key: str, attachment) -> None:
        super().set_attachments(key, attachment)
        if key == "lora_metadata":  # the stock nodes hand it over right after the patches
            self.scale_latest(attachment)
            self.latest_lora = {}

    def scale_latest(self, metadata: dict) -> None:
        """Gives the alpha that diffusers writes in a file's header to the adapters that have none."""
        try:
            config = read_adapter_config(metadata)
        except ValueError as error:
            raise ValueError("The lora_adapter_metadata of this LoRA is damaged: save it again.") from error
        for key, adapter in self.latest_lora.items():
            rank, layer = rank_of(adapter), layer_of(key)
            alpha = None if rank is None else adapter_alpha(config, layer, rank)
            if config.get("use_dora") and not has_magnitude(adapter):
                raise ValueError(f"This LoRA is a DoRA, whose magnitudes the stock nodes do not read: {OWN_NODE}.")
            if alpha is None or adapter.weights[ALPHA] is not None:
                continue
            if find_depthwise_lora(adapter, self.find_weight(key), 1.0) is not None:
                set_latest_alpha(self, key, alpha)
            else:
                *before, (strength, _, *rest) = self.patches[key]
                self.patches[key] = [*before, (strength, with_alpha(adapter, alpha), *rest)]


@cache
def with_stock_lora(base: type) -> type:
    return type("SanaModelPatcher", (StockLora, base), {})


@cache
def with_stock_patches(base: type) -> type:
    return type("CheckedModelPatcher", (StockPatches, base), {})


def sana_patcher(
    model: torch.nn.Module,
    load_device: torch.device,
    offload_device: torch.device,
    disable_dynamic: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """The host's patcher with our checks. state_dict: the tensors of the file as they were read."""
    base = patcher_class(load_device, disable_dynamic)
    options = disk_options(base, state_dict or {})
    return with_stock_lora(base)(model, load_device=load_device, offload_device=offload_device, **options)
