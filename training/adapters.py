"""LoRA on the layers of a network: made, attached, and written in diffusers' layout.

Source: LoRA, arXiv 2106.09685; the initial values of diffusers' script (PEFT's "gaussian").
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .families import PRESETS, SANA, Family
from .seeds import generator_of

INITIAL = 2  # place of the initial values among the generators of a run
METADATA = "lora_adapter_metadata"  # as diffusers writes it


class Adapter(nn.Module):
    """x (..., in) -> what a LoRA adds to a linear layer's result, (..., out). down (r, in), up (out, r)."""

    def __init__(self, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, inputs, generator=generator) / rank)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)) * self.scale


class AdapterSet:
    """Adapters on the layers of a preset. names: of the layers, in the network's order."""

    def __init__(self, network: nn.Module, preset: str, rank: int, alpha: float, seed: int, family: Family = SANA):
        self.preset, self.rank, self.alpha, self.family = preset, rank, alpha, family
        self.layers = find_layers(network, preset, family)
        generator = generator_of(seed, INITIAL)
        self.adapters = {name: Adapter(layer, rank, alpha, generator) for name, layer in self.layers.items()}
        for name, adapter in self.adapters.items():
            adapter.to(self.layers[name].weight.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by its name, `<layer>.down` and `<layer>.up`."""
        return {
            f"{name}.{part}": value for name, one in self.adapters.items() for part, value in one.named_parameters()
        }

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The network with the adapters beside its layers, whose weights stay as they are."""
        handles = [
            layer.register_forward_hook(lambda _, args, out, own=self.adapters[name]: out + own(args[0]).to(out.dtype))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def publish(self) -> None:
        """Nothing is to be done after a step: the network computes with the adapters themselves."""

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Puts tensors named as in `parameters` into the adapters; raises ValueError where they are of another set."""
        own = self.parameters()
        if own.keys() != values.keys() or any(own[name].shape != value.shape for name, value in values.items()):
            raise ValueError(
                f"The run was begun with another rank, other layers or another model than rank {self.rank} on "
                f"{self.preset}, or trains a whole model: set them as they were, or choose resume new."
            )
        for name, value in values.items():
            own[name].copy_(value)

    def file_tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors named as in `parameters` -> the layout of files, alpha / rank multiplied into lora_B.

        So a reader that knows no alpha applies the LoRA at its trained strength too.
        """
        family, tensors = self.family, {}
        convolutions = re.compile(family.convolutions)
        for name, adapter in self.adapters.items():
            down, up = values[f"{name}.down"].float(), values[f"{name}.up"].float() * adapter.scale
            if convolutions.fullmatch(name):
                down, up = down[..., None, None], up[..., None, None]
            targets = family.file_layers(name)
            for target, rows in zip(targets, up.chunk(len(targets)), strict=True):
                key = f"{family.prefix}{target}"
                # Copies, because a file holds no tensor twice.
                tensors |= {f"{key}.lora_A.weight": down.clone(), f"{key}.lora_B.weight": rows.clone()}
        return tensors

    def file_metadata(self) -> dict[str, str]:
        """PEFT's configuration of the adapters as diffusers keeps it in a file's header."""
        targets = [target for layer in self.layers for target in self.family.file_layers(layer)]
        config = {"r": self.rank, "lora_alpha": self.rank, "target_modules": targets}
        return {METADATA: json.dumps({f"{self.family.prefix}{name}": value for name, value in config.items()})}


def find_layers(network: nn.Module, preset: str, family: Family = SANA) -> dict[str, nn.Module]:
    """Linear layers of a preset by their names. Raises ValueError for an unknown preset, and where there are none."""
    if preset not in PRESETS:
        raise ValueError(f"The layers {preset} are unknown: choose one of {', '.join(PRESETS)}.")
    pattern = re.compile(family.layers[preset])
    found = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and pattern.fullmatch(name)
    }
    if not found:
        raise ValueError(
            f"The model has no linear layers of the kind {preset}: connect the model of SANA Model Loader."
        )
    return found
