"""Lumina-Next's transformer: a checkpoint -> MODEL of the host, in the order detect, precision, build.

`disable_dynamic` is how the host asks when it loads a model anew, by `cached_patcher_init`.
"""

import dataclasses
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from ..files import quantized
from ..files.family import Family, Saving, open_as
from ..files.prepare import prepare_state_dict
from ..files.reader import Checkpoint
from ..files.validation import check_tensors, log_loaded, own_config, read_layers, reading_config
from ..lora.stock_nodes import with_stock_patches
from ..runtime.device import describe_device, patcher_class, requested
from ..runtime.precision import Precision, lumina_precision
from . import convert as lumina_convert
from . import detection as lumina_detection
from .config import LuminaConfig
from .guidance import guide_channels
from .model import Lumina
from .quantization import lumina_architecture, lumina_rules
from .supported_models import LuminaSupported

AUTHORS = "https://github.com/Alpha-VLLM/Lumina-T2X"


def configure(checkpoint: Checkpoint, options: dict[str, Any]) -> tuple[LuminaConfig, dict[str, str], int]:
    """Configuration with the user's shift, quantized layers with their formats, number of parameters.

    Raises ValueError for another model, and for a file that does not fit its configuration to the last tensor.
    """
    layers, view = read_layers(checkpoint, LUMINA.name)
    with reading_config(checkpoint, LUMINA.name):
        source = own_config(checkpoint, "LuminaNextDiT2DModel")
        config = lumina_detection.detect_lumina(view, checkpoint.name, source)
    check_tensors(
        checkpoint, Lumina(config, device="meta", operations=torch.nn).state_dict(), checkpoint.state_dict, layers
    )
    if options.get("shift") is not None:
        config = dataclasses.replace(config, shift=options["shift"])
    return config, layers, comfy.utils.calculate_parameters(view)


def build(
    config: LuminaConfig,
    precision: Precision,
    state_dict: lumina_convert.StateDict,
    device: torch.device,
    disable_dynamic: bool,
) -> comfy.model_patcher.ModelPatcher:
    """The host's model of a configuration with these tensors in it."""
    supported = LuminaSupported(config, precision)
    supported.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    offload_device = comfy.model_management.unet_offload_device()
    model = supported.get_model(state_dict)
    checked = with_stock_patches(patcher_class(device, disable_dynamic))
    patcher = checked(model, load_device=device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=prepare_state_dict(model.diffusion_model, state_dict, patcher))
    patcher.set_model_sampler_cfg_function(guide_channels)
    return patcher


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool) -> comfy.model_patcher.ModelPatcher:
    """The host's model of a checkpoint in the network's layout; options as `load_lumina` takes them."""
    config, layers, parameters = configure(checkpoint, options)
    device = comfy.model_management.get_torch_device()
    precision = lumina_precision(
        checkpoint.name,
        comfy.utils.weight_dtype(checkpoint.state_dict),
        requested(options.get("dtype"), "weight_dtype", "unet"),
        describe_device(device, parameters),
        quantized.formats(layers),
    )
    patcher = build(config, precision, checkpoint.state_dict, device, disable_dynamic)
    patcher.cached_patcher_init = (load_lumina, (checkpoint.source, options))
    log_loaded(checkpoint, lumina_detection.describe_lumina(config, parameters, checkpoint.layout), precision)
    return patcher


def load_lumina(
    path: str, options: dict[str, Any] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """Lumina-Next's transformer from a file or folder.

    options: "dtype" torch.dtype of the weights, "shift" flow shift; None for bfloat16 where it is fast, and for 1.
    Raises ValueError or FileNotFoundError with one sentence for what cannot be loaded.
    """
    return load(open_as(LUMINA, path), options or {}, disable_dynamic)


def tensors_of_file(checkpoint: Checkpoint) -> lumina_convert.StateDict:
    """What the host's Model Save would write of a checkpoint in the network's layout; raises as `configure` does."""
    configure(checkpoint, {})
    return lumina_convert.to_file_layout(checkpoint.state_dict)


LUMINA = Family(
    name="a Lumina-Next transformer",
    component="transformer",
    node="SANA Model Loader",
    marks=lumina_detection.LUMINA_MARKS,
    required=lumina_detection.LUMINA_KEYS,
    convert=lumina_convert.to_network_layout,
    recognizes=lumina_detection.is_lumina,
    load=load,
    saving=Saving(lumina_rules, lumina_architecture, tensors_of_file, "model.diffusion_model.", AUTHORS),
)
