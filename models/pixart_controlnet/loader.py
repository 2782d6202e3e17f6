"""A PixArt ControlNet: a checkpoint -> CONTROL_NET of the host, in the order detect, precision, build."""

import dataclasses
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.utils
import torch

from ..files.family import Family
from ..files.prepare import prepare_state_dict
from ..files.reader import Checkpoint
from ..files.validation import check_tensors, log_loaded, reading_config
from ..pixart.config import PixArtConfig
from ..runtime.device import describe_device, requested
from ..runtime.precision import FLOAT16, sana_precision
from .control import PixArtControlNet
from .convert import convert_pixart_control
from .detection import (
    PIXART_CONTROL_KEYS,
    PIXART_CONTROL_MARKS,
    describe_pixart_control,
    detect_pixart_control,
    is_pixart_control,
)
from .model import PixArtControl


def configure(checkpoint: Checkpoint) -> PixArtConfig:
    """Configuration of a checkpoint in the network's layout.

    Raises ValueError for a file that does not fit its configuration to the last tensor.
    """
    with reading_config(checkpoint, PIXART_CONTROLNET.name):
        config = detect_pixart_control(checkpoint.state_dict, checkpoint.name, checkpoint.path)
    network = PixArtControl(config, device="meta", operations=torch.nn)
    check_tensors(checkpoint, network.state_dict(), checkpoint.state_dict, {})
    return config


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool = False) -> PixArtControlNet:  # noqa: ARG001 - PixArt has one wiring
    """The host's ControlNet of a checkpoint in the network's layout."""
    config, state_dict = configure(checkpoint), checkpoint.state_dict
    parameters = comfy.utils.calculate_parameters(state_dict)
    device = comfy.model_management.get_torch_device()
    request, stored = requested(None, "", "unet"), comfy.utils.weight_dtype(state_dict)
    precision = sana_precision(FLOAT16, stored, request, describe_device(device, parameters))
    precision = dataclasses.replace(precision, clamp=False)  # as PixArt's own
    # Cast where they are used: the format of a run is its base's.
    network = PixArtControl(
        config,
        dtype=precision.weights,
        device=comfy.model_management.unet_offload_device(),
        operations=comfy.ops.manual_cast,
    ).eval()
    control = PixArtControlNet(network, device)
    assign = prepare_state_dict(network, state_dict, control.control_model_wrapped)
    network.load_state_dict(state_dict, strict=False, assign=assign)
    log_loaded(checkpoint, describe_pixart_control(config, parameters), precision)
    return control


PIXART_CONTROLNET = Family(
    name="a PixArt ControlNet",
    component="controlnet",
    node="SANA ControlNet Loader",
    marks=PIXART_CONTROL_MARKS,
    required=PIXART_CONTROL_KEYS,
    convert=convert_pixart_control,
    recognizes=is_pixart_control,
    load=load,
)
