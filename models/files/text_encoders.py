"""What the loaders of all text encoders do alike: a file checked against its network, and the host's CLIP of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sd
import comfy.supported_models_base
import comfy.utils
from torch import nn

from .layout import StateDict
from .reader import Checkpoint
from .validation import check_tensors, read_layers, reading_config

Sizes = dict[str, int]  # fields of the host's configuration


@dataclass(frozen=True)
class Encoder:
    """A text encoder in the host's terms. clip, tokenizer, model: its classes. name: its prefix in saved files."""

    name: str
    clip: type[comfy.sd.CLIP]
    tokenizer: type
    model: type[nn.Module]


def configure(
    checkpoint: Checkpoint,
    expected: str,
    detect: Callable[[StateDict], Sizes],
    check: Callable[[Sizes], None],
    network: Callable[[Sizes], nn.Module],
) -> tuple[Sizes, dict[str, str], int]:
    """The host's configuration, quantized layers with their formats, number of parameters.

    expected: name of the family, for messages. check: raises ValueError for sizes of another model. network: on the
    meta device. Raises ValueError for tensors that do not fit it, and what `check` raises.
    """
    layers, view = read_layers(checkpoint, expected)
    with reading_config(checkpoint, expected):
        sizes = detect(view)
    check(sizes)
    check_tensors(checkpoint, network(dict(sizes)).state_dict(), checkpoint.state_dict, layers)
    return sizes, layers, comfy.utils.calculate_parameters(view)


def build(
    encoder: Encoder,
    sizes: Sizes,
    state_dict: StateDict,
    parameters: int,
    disable_dynamic: bool,
    model_options: Mapping[str, Any],
    tokenizer_data: Mapping[str, Any] | None = None,
) -> comfy.sd.CLIP:
    """The host's CLIP of a configuration with these tensors in it. model_options: besides the configuration."""
    return encoder.clip(
        comfy.supported_models_base.ClipTarget(encoder.tokenizer, encoder.model),
        tokenizer_data=dict(tokenizer_data or {}),
        parameters=parameters,
        state_dict=[state_dict],
        model_options={f"{encoder.name}_model_config": sizes} | dict(model_options),
        disable_dynamic=disable_dynamic,
    )
