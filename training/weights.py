"""All weights of a network, trained in float32 and written as a model's file.

Source: mixed precision as in arXiv 1710.03740: a float32 copy of the weights takes the steps, the network computes with
its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.sana.supported_models import file_state_dict

GIGA = 1e9


class WeightSet:
    """Every weight of SANA's network. Where they are float32 they are trained themselves, else copies in float32.

    copied: False where bfloat16 weights are trained themselves too, see `RoundedOptimizer`.
    """

    def __init__(self, network: nn.Module, copied: bool = True):
        self.network = network
        for weight in network.parameters():
            weight.data = weight.data.clone()  # what was read from a file may share its memory with the file
            weight.requires_grad_(True)
        self.own = dict(network.named_parameters())
        self.dtypes = {name: weight.dtype for name, weight in self.own.items()}
        alone = (torch.float32,) if copied else (torch.float32, torch.bfloat16)
        self.masters = {
            name: weight if weight.dtype in alone else nn.Parameter(weight.detach().float())
            for name, weight in self.own.items()
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by its name in the network."""
        return self.masters

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it gradients of the network's weights are collected in float32."""
        handles = [
            weight.register_post_accumulate_grad_hook(self.collector(self.masters[name]))
            for name, weight in self.own.items()
            if self.masters[name] is not weight
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def collector(master: nn.Parameter):
        def collect(weight: nn.Parameter) -> None:
            master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
            weight.grad = None

        return collect

    @torch.no_grad()
    def publish(self) -> None:
        """The network computes with what was learned."""
        for name, weight in self.own.items():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name])

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Puts tensors named as in `parameters` into the network; raises ValueError where they are another model's."""
        own = self.masters
        if own.keys() != values.keys() or any(own[name].shape != value.shape for name, value in values.items()):
            raise ValueError(
                "The run was begun with another model, or trains a LoRA: connect the model it was begun with, or "
                "choose resume new."
            )
        for name, value in values.items():
            own[name].copy_(value)
        self.publish()

    def file_tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors named as in `parameters` -> the layout of files in the formats the model was loaded in."""
        typed = {name: value.detach().to("cpu", self.dtypes[name]) for name, value in values.items()}
        buffers = {name: value.cpu() for name, value in self.network.state_dict().items() if name not in typed}
        return file_state_dict(self.network.config, buffers | typed)

    def file_metadata(self) -> dict[str, str]:
        return {}


def require_memory(
    weights: int, weight_bytes: int, copied: bool, state_bytes: int, averaged: bool, total: float, cure: str
) -> None:
    """Raises ValueError with the number where the weights and what they are trained with cannot fit on a device.

    weights: how many. weight_bytes, state_bytes: of one, and of the optimizer's state for it. copied: whether weights
    of 16 bits have a copy in float32. total: bytes of the device. Activations come on top.
    """
    copy = 4 if copied and weight_bytes < 4 else 0
    parts = {"weights": weight_bytes, "their float32 copy": copy, "gradients": copy or weight_bytes}
    parts |= {"the optimizer's state": state_bytes, "the average": 4 if averaged else 0}
    needed = weights * sum(parts.values())
    if needed > total:
        listed = ", ".join(f"{name} {weights * size / GIGA:.1f}" for name, size in parts.items() if size)
        raise ValueError(
            f"To train all {weights / GIGA:.2f} billion weights takes {needed / GIGA:.1f} GB without activations "
            f"({listed}), and the device has {total / GIGA:.1f}: {cure}."
        )
