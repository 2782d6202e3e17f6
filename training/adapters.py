"""Adapters on the layers of a network: made, attached, and written with diffusers' names of the layers."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .algorithms import ALGORITHMS, KERNEL_PARTS, LORA, algorithm_of
from .families import SANA
from .family import PRESETS, Family
from .seeds import generator_of

INITIAL = 2  # place of the initial values among the generators of a run
METADATA = "lora_adapter_metadata"  # as diffusers writes it


class AdapterSet:
    """Adapters on the layers of a preset. names: of the layers, in the network's order."""

    def __init__(
        self,
        network: nn.Module,
        preset: str,
        rank: int,
        alpha: float,
        seed: int,
        family: Family = SANA,
        algorithm: str = LORA,
    ):
        if algorithm not in ALGORITHMS:
            raise ValueError(f"The algorithm {algorithm} is unknown: choose one of {', '.join(ALGORITHMS)}.")
        self.preset, self.rank, self.family, self.algorithm = preset, rank, family, algorithm
        self.layers = find_layers(network, preset, family)
        generator = generator_of(seed, INITIAL)
        self.adapters = {
            name: ALGORITHMS[algorithm](layer, len(self.targets(name)), rank, alpha, generator)
            for name, layer in self.layers.items()
        }
        for name, adapter in self.adapters.items():
            adapter.to(self.layers[name].weight.device)

    def targets(self, name: str) -> tuple[str, ...]:
        """A layer's names in files, as many as its rows are split into there."""
        return self.family.file_layers(name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by its name, `<layer>.<parameter>`."""
        return {
            f"{name}.{part}": value for name, one in self.adapters.items() for part, value in one.named_parameters()
        }

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The network with the adapters beside its layers, whose weights stay as they are."""
        handles = [
            layer.register_forward_hook(lambda layer, args, out, own=self.adapters[name]: own(layer, args[0], out))
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
        own, begun = self.parameters(), algorithm_of(values)
        if begun not in (self.algorithm, None):
            raise ValueError(
                f"The run was begun with the algorithm {begun} and not {self.algorithm}: set it as it was, or choose "
                "resume new."
            )
        if own.keys() != values.keys() or any(own[name].shape != value.shape for name, value in values.items()):
            raise ValueError(
                f"The run was begun with another rank, other layers or another model than rank {self.rank} on "
                f"{self.preset}, or trains a whole model: set them as they were, or choose resume new."
            )
        for name, value in values.items():
            own[name].copy_(value)

    def file_tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors named as in `parameters` -> the layout of files, which act at their trained strength."""
        convolutions, tensors = re.compile(self.family.convolutions), {}
        for name, adapter in self.adapters.items():
            own = {part: values[f"{name}.{part}"] for part, _ in adapter.named_parameters()}
            kernels = KERNEL_PARTS if convolutions.fullmatch(name) else ()
            for target, parts in zip(self.targets(name), adapter.file_parts(own), strict=True):
                for part, value in parts.items():
                    # Copies, because a file holds no tensor twice.
                    value = value[..., None, None].clone() if part in kernels else value.clone()
                    tensors[f"{self.family.prefix}{target}.{part}"] = value
        return tensors

    def file_metadata(self) -> dict[str, str]:
        """PEFT's configuration of the adapters as diffusers keeps it in a file's header, where PEFT has them."""
        more = ALGORITHMS[self.algorithm].peft
        if more is None:
            return {}
        targets = [target for layer in self.layers for target in self.targets(layer)]
        config = {"r": self.rank, "lora_alpha": self.rank, "target_modules": targets} | more
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
