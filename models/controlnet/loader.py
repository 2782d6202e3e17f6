"""A SANA ControlNet: a checkpoint -> CONTROL_NET of the host, in the order detect, precision, build."""

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
from ..runtime.device import describe_device, requested
from ..runtime.precision import Precision, sana_precision
from ..sana.cpu import cpu_network
from ..sana.cuda import CudaSanaBlock, has_fused_adaln
from ..sana.model import SanaBlock
from .config import ControlNetConfig
from .control import SanaControlNet
from .convert import convert_controlnet, has_nvidia_keys
from .detection import (
    CONTROLNET_KEYS,
    CONTROLNET_MARKS,
    describe_controlnet,
    detect_controlnet,
    is_controlnet,
    read_metadata,
)
from .model import SanaControl

# A config.json beside NVIDIA's merged file may be that of its base.
CLASSES = ("SanaControlNetModel", "SanaTransformer2DModel", None)


def configure(checkpoint: Checkpoint, wiring: str | None = None) -> ControlNetConfig:
    """Configuration of a checkpoint in the network's layout, with the user's wiring over the file's.

    Raises ValueError for a file that does not fit its configuration to the last tensor.
    """
    beside = checkpoint.config if checkpoint.config.get("_class_name") in CLASSES else {}
    source = {**beside, **read_metadata(checkpoint.name, checkpoint.metadata)}
    with reading_config(checkpoint, SANA_CONTROLNET.name):
        config = detect_controlnet(
            checkpoint.state_dict, checkpoint.name, source, checkpoint.path, has_nvidia_keys(checkpoint.whole)
        )
    network = SanaControl(config, device="meta", operations=torch.nn)
    check_tensors(checkpoint, network.state_dict(), checkpoint.state_dict, {})
    return config if wiring is None else dataclasses.replace(config, wiring=wiring)


def choose_block(device: torch.device) -> type[SanaBlock]:
    """The block for a ControlNet that is to run on the device."""
    if device.type == "cpu":
        return cpu_network().block
    return CudaSanaBlock if device.type == "cuda" else SanaBlock


def build(
    config: ControlNetConfig, precision: Precision, state_dict: dict[str, torch.Tensor], device: torch.device
) -> SanaControlNet:
    """The host's ControlNet of a configuration with these tensors in it."""
    # Cast where they are used: the format of a run is its base's.
    network = SanaControl(
        config,
        choose_block(device),
        dtype=precision.weights,
        device=comfy.model_management.unet_offload_device(),
        operations=comfy.ops.manual_cast,
    ).eval()
    if device.type == "cuda":
        fused = has_fused_adaln()
        for block in network.transformer_blocks:
            block.fused_adaln = fused
    control = SanaControlNet(network, device)
    assign = prepare_state_dict(network, state_dict, control.control_model_wrapped)
    network.load_state_dict(state_dict, strict=False, assign=assign)
    return control


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool = False) -> SanaControlNet:  # noqa: ARG001
    """The host's ControlNet of a checkpoint in the network's layout. options: "wiring", one of WIRINGS or None."""
    config = configure(checkpoint, options.get("wiring"))
    parameters = comfy.utils.calculate_parameters(checkpoint.state_dict)
    device = comfy.model_management.get_torch_device()
    precision = sana_precision(
        config.blocks.trained_in,
        comfy.utils.weight_dtype(checkpoint.state_dict),
        requested(None, "", "unet"),
        describe_device(device, parameters),
    )
    if config.blocks.clamp_attention is None:
        blocks = dataclasses.replace(config.blocks, clamp_attention=precision.clamp)
        config = dataclasses.replace(config, blocks=blocks)
    control = build(config, precision, checkpoint.state_dict, device)
    log_loaded(checkpoint, describe_controlnet(config, parameters), precision)
    return control


SANA_CONTROLNET = Family(
    name="a SANA ControlNet",
    component="controlnet",
    node="SANA ControlNet Loader",
    marks=CONTROLNET_MARKS,
    required=CONTROLNET_KEYS,
    convert=convert_controlnet,
    recognizes=is_controlnet,
    load=load,
)
