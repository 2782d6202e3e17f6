"""SANA's transformer: a checkpoint -> MODEL owned by the host's memory manager, in the order detect, precision, build.

Loading is logged in one line per file. `disable_dynamic` is how the host asks when it loads a model anew, by
`cached_patcher_init`, for its training, compile and multi-device nodes.
"""

import dataclasses
import os
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from ..files import quantized
from ..files.family import Family, Saving, open_as
from ..files.layout import NVIDIA, StateDict, is_nvidia_sana
from ..files.prepare import prepare_state_dict
from ..files.reader import Checkpoint, read_beside
from ..files.saved_config import read_config_tensor
from ..files.validation import check_tensors, log_loaded, own_config, read_layers, reading_config
from ..lora.stock_nodes import sana_patcher
from ..runtime.cuda_graph import use_graphs
from ..runtime.device import describe_device, requested
from ..runtime.precision import Precision, sana_precision
from . import convert as sana_convert
from . import cuda
from . import detection as sana_detection
from .config import CONFIG_KEY, SanaConfig
from .cpu import cpu_network
from .model import Sana
from .quantization import sana_architecture, sana_rules
from .supported_models import MEMORY_FACTOR_AT_2240, SanaSupported, file_state_dict

# Of which the host is told the memory: graphs hold that of one, and one that runs as usual needs it beside them.
PASSES_WITH_GRAPHS = 2
POSITIONS = "pos_embed"  # NVIDIA's table of positions; (1, N, C)


def convert_sana(state_dict: StateDict) -> StateDict:
    """Any layout -> the network's, without the ControlNet that NVIDIA merges with a base.

    NVIDIA's position table stays: its length tells the native size.
    """
    state_dict = {key: each for key, each in state_dict.items() if not key.startswith(sana_convert.CONTROL_BRANCH)}
    if not is_nvidia_sana(state_dict):
        return sana_convert.to_network_layout(state_dict)
    positions = {POSITIONS: state_dict[POSITIONS]} if POSITIONS in state_dict else {}
    return sana_convert.to_network_layout(sana_convert.convert_nvidia_sana(state_dict)) | positions


def read_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """What lies beside the tensors or among them and tells what no shape does; taken out of the state dict."""
    state_dict = checkpoint.state_dict
    source = dict(own_config(checkpoint, "SanaTransformer2DModel"))
    scheduler = read_beside(checkpoint.path, "scheduler", "scheduler_config.json")
    if "flow_shift" in scheduler:
        source["flow_shift"] = scheduler["flow_shift"]
    if checkpoint.layout == NVIDIA and POSITIONS in state_dict:
        source["positions"] = state_dict.pop(POSITIONS).shape[-2]
    if CONFIG_KEY in state_dict:
        source |= read_config_tensor(state_dict.pop(CONFIG_KEY))
    return source


def configure(checkpoint: Checkpoint, options: dict[str, Any]) -> tuple[SanaConfig, dict[str, str], int]:
    """Configuration with the user's options over it, quantized layers with their formats, number of parameters.

    Raises ValueError for a file that does not fit its configuration to the last tensor.
    """
    with reading_config(checkpoint, SANA.name):
        source = read_source(checkpoint)
    layers, view = read_layers(checkpoint, SANA.name)
    source |= sana_detection.chosen_config(options.get("native_size"), options.get("trained_in_float16"))
    with reading_config(checkpoint, SANA.name):
        config = sana_detection.detect_sana(
            view, checkpoint.name, source, source.get("positions"), os.path.normpath(checkpoint.path)
        )
    network = Sana(config, device="meta", operations=torch.nn)
    check_tensors(checkpoint, network.state_dict(), checkpoint.state_dict, layers)
    chosen = {"shift": options.get("shift"), "clamp_attention": options.get("clamp")}
    config = dataclasses.replace(config, **{name: value for name, value in chosen.items() if value is not None})
    return config, layers, comfy.utils.calculate_parameters(view)


def choose_network(device: torch.device) -> tuple[type[Sana], float]:
    """The network for a model that is to run on the device, and its memory factor for the host."""
    if device.type == "cpu":
        return cpu_network(), MEMORY_FACTOR_AT_2240
    if device.type == "cuda":
        return cuda.CudaSana, cuda.MEMORY_FACTOR_AT_2240
    return Sana, MEMORY_FACTOR_AT_2240


def build(
    config: SanaConfig, precision: Precision, state_dict: StateDict, device: torch.device, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """The host's model of a configuration with these tensors in it."""
    supported = SanaSupported(config, precision, *choose_network(device))
    supported.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    offload_device = comfy.model_management.unet_offload_device()
    model = supported.get_model(state_dict)
    patcher = sana_patcher(model, device, offload_device, disable_dynamic, state_dict)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=prepare_state_dict(model.diffusion_model, state_dict, patcher))
    return patcher


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool) -> comfy.model_patcher.ModelPatcher:
    """The host's model of a checkpoint in the network's layout; options as `load_sana` takes them."""
    config, layers, parameters = configure(checkpoint, options)
    device = comfy.model_management.get_torch_device()
    precision = sana_precision(
        config.trained_in,
        comfy.utils.weight_dtype(checkpoint.state_dict),
        requested(options.get("dtype"), "weight_dtype", "unet"),
        describe_device(device, parameters),
        quantized.formats(layers),
    )
    if config.clamp_attention is None:
        config = dataclasses.replace(config, clamp_attention=precision.clamp)
    graphs = bool(options.get("cuda_graphs"))  # which need weights that stay where they are
    patcher = build(config, precision, checkpoint.state_dict, device, disable_dynamic or graphs)
    if graphs and use_graphs(patcher):
        patcher.model.memory_usage_factor *= PASSES_WITH_GRAPHS
    patcher.cached_patcher_init = (load_sana, (checkpoint.source, options))
    log_loaded(checkpoint, sana_detection.describe_sana(config, parameters, checkpoint.layout), precision)
    return patcher


def load_sana(
    path: str, options: dict[str, Any] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """SANA transformer from a file or folder.

    options, each None for the checkpoint's own: "dtype" torch.dtype of the weights, "shift" flow shift, "clamp" bool,
    "native_size" pixels per side, "trained_in_float16" bool. "cuda_graphs": whether whole passes are replayed.
    Raises ValueError or FileNotFoundError with one sentence for what cannot be loaded.
    """
    return load(open_as(SANA, path), options or {}, disable_dynamic)


def tensors_of_file(checkpoint: Checkpoint) -> StateDict:
    """What the host's Model Save would write of a checkpoint in the network's layout; raises as `configure` does."""
    config, _, _ = configure(checkpoint, {})
    return file_state_dict(config, checkpoint.state_dict)


SANA = Family(
    name="a SANA transformer",
    component="transformer",
    node="SANA Model Loader",
    marks=sana_detection.SANA_MARKS,
    required=sana_detection.SANA_KEYS,
    convert=convert_sana,
    recognizes=sana_detection.is_sana,
    load=load,
    saving=Saving(sana_rules, sana_architecture, tensors_of_file, "model.diffusion_model."),
)
