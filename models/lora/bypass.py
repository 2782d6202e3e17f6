"""The host's bypass mode, which computes a LoRA beside its layers instead of adding it to weights: what it cannot do.

A layer that computes raises torch's words in the middle of a run, so adapters are tried here on tensors without values.
"""

import inspect
from collections.abc import Iterator, Sequence

import torch
from comfy.patcher_extension import PatcherInjection
from comfy.weight_adapter import BypassInjectionManager, WeightAdapterBase
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn

from .weight_adapter import rebuild


def bypass_managers(injections: Sequence[PatcherInjection]) -> Iterator[BypassInjectionManager]:
    """The host's lists of hooks behind injections; none behind those of other kinds."""
    for one in injections:
        if inspect.isfunction(one.inject):
            manager = inspect.getclosurevars(one.inject).nonlocals.get("self")
            if isinstance(manager, BypassInjectionManager):
                yield manager


def inference_hooks(manager: BypassInjectionManager, model: nn.Module) -> dict[str, BypassForwardHook]:
    """Key of a layer's weight -> its hook; without those of a training, whose adapters are made for their layers."""
    names = {module: name for name, module in model.named_modules()}
    found = (hook for hook in manager.hooks if isinstance(hook.adapter, WeightAdapterBase))
    return {f"{names[hook.module]}.weight": hook for hook in found if hook.module in names}


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer; the host's of quantized weights has torch's attributes without its class."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def in_layer_shape(adapter: WeightAdapterBase, module: nn.Module) -> WeightAdapterBase:
    """Factors (N, K, 1, 1) of a 1x1 convolution as (N, K), where the layer is a linear one; else the adapter itself."""
    if not is_linear(module):
        return adapter
    parts = (
        part.flatten(1) if isinstance(part, Tensor) and part.shape[2:] == (1, 1) else part for part in adapter.weights
    )
    return rebuild(adapter, tuple(parts))


def computes(hook: BypassForwardHook) -> bool:
    """Whether the adapter gives what its layer gives, for an input of the layer's width."""
    module = hook.module
    if is_linear(module):
        shape, out = (1, module.in_features), (1, module.out_features)
    elif isinstance(module, nn.Conv2d):
        shape, out = (1, module.in_channels, 4, 4), (1, module.out_channels, 1, 1)
    else:
        return True
    # Shapes suffice, but torch checks those of a grouped convolution, whose factors are small, on real tensors alone.
    device = "cpu" if getattr(module, "groups", 1) > 1 else "meta"
    parts = (part.to(device, torch.float32) if isinstance(part, Tensor) else part for part in hook.adapter.weights)
    adapter = rebuild(hook.adapter, tuple(parts))
    try:
        result = adapter.bypass_forward(lambda _: torch.zeros(out, device=device), torch.zeros(shape, device=device))
    except RuntimeError:
        return False
    return result.shape[:2] == out[:2]
