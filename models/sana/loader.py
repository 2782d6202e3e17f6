"""Paths -> MODEL, CLIP and VAE owned by the host's memory manager: read, detect, convert, check, load strictly.

Loading is logged in one line a file. `disable_dynamic` is how the host asks when it loads a model anew, by
`cached_patcher_init`, for its training, compile and multi-device nodes.
"""

import dataclasses
import os

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ..files import quantized
from ..files.layout import is_nvidia_sana, layout_of
from ..files.prepare import prepare_state_dict
from ..files.reader import Checkpoint, read_beside, read_checkpoint
from ..files.validation import SANA, check_tensors, log_loaded, naming_faults, own_config, refuse
from ..lora.stock_nodes import sana_patcher
from ..runtime.device import describe_device, requested
from ..runtime.precision import sana_precision
from . import config as sana_config
from . import convert as sana_convert
from . import detection as sana_detection
from .config import SanaConfig
from .cpu import choose_network
from .model import Sana
from .supported_models import CONFIG_KEY, SanaSupported, read_config_tensor

MODEL_PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
)


def read_sana(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str], dict, str]:
    """Tensors in the internal layout, quantised layers, what lies beside or in the file, and the layout it had.

    Raises ValueError when the file is not a SANA transformer.
    """
    with naming_faults(checkpoint, SANA):
        state_dict = quantized.strip_quantized(checkpoint.state_dict, MODEL_PREFIXES, checkpoint.metadata)
        source = dict(own_config(checkpoint, "SanaTransformer2DModel"))
        table, saved = state_dict.get("pos_embed"), state_dict.pop(CONFIG_KEY, None)
        layout = layout_of(state_dict)
        if is_nvidia_sana(state_dict):
            state_dict = sana_convert.convert_nvidia_sana(state_dict)
        if not sana_detection.is_sana(state_dict):
            raise refuse(checkpoint, SANA, sana_detection.SANA_KEYS, state_dict)
        state_dict = sana_convert.to_network_layout(state_dict)
        scheduler = read_beside(checkpoint.path, "scheduler", "scheduler_config.json")
        if "flow_shift" in scheduler:
            source["flow_shift"] = scheduler["flow_shift"]
        if table is not None:
            source["positions"] = table.shape[-2]
        if saved is not None:
            source |= read_config_tensor(saved)
        layers = quantized.quantized_layers(state_dict)
    quantized.check_quantized(checkpoint.name, state_dict, layers)
    return state_dict, layers, source, layout


def configure_sana(checkpoint: Checkpoint, view: dict[str, Tensor], source: dict, options: dict) -> SanaConfig:
    """The configuration detected from unquantised shapes, with the user's options over it."""
    source = source | sana_detection.chosen_config(options.get("native_size"), options.get("trained_in_float16"))
    with naming_faults(checkpoint, SANA):
        config = sana_detection.detect_sana(
            view, checkpoint.name, source, source.get("positions"), os.path.normpath(checkpoint.path)
        )
    chosen = {"shift": options.get("shift"), "clamp_attention": options.get("clamp")}
    return dataclasses.replace(config, **{name: value for name, value in chosen.items() if value is not None})


def load_sana(
    path: str, options: dict | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """SANA transformer from a file or folder.

    options, each None for the checkpoint's own: "dtype" torch.dtype of the weights, "shift" flow shift, "clamp" bool,
    "native_size" pixels a side, "trained_in_float16" bool.
    Raises ValueError or FileNotFoundError with one sentence for what cannot be loaded.
    """
    options = options or {}
    checkpoint = read_checkpoint(path, "transformer")
    state_dict, layers, source, layout = read_sana(checkpoint)
    view = quantized.plain_view(state_dict, layers)
    config = configure_sana(checkpoint, view, source, options)
    check_tensors(
        checkpoint,
        Sana(config, device="meta", operations=torch.nn).state_dict(),
        state_dict,
        layers,
    )

    load_device = comfy.model_management.get_torch_device()
    parameters = comfy.utils.calculate_parameters(view)
    precision = sana_precision(
        config.trained_in,
        comfy.utils.weight_dtype(state_dict),
        requested(options.get("dtype"), "weight_dtype", "unet"),
        describe_device(load_device, parameters),
        quantized.formats(layers),
    )
    if config.clamp_attention is None:
        config = dataclasses.replace(config, clamp_attention=precision.clamp)
    supported = SanaSupported(config, precision, choose_network(load_device))
    supported.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")

    offload_device = comfy.model_management.unet_offload_device()
    model = supported.get_model(state_dict)
    patcher = sana_patcher(model, load_device, offload_device, disable_dynamic)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=prepare_state_dict(model.diffusion_model, state_dict, patcher))
    patcher.cached_patcher_init = (load_sana, (path, options))
    log_loaded(checkpoint, sana_config.describe_sana(config, parameters, layout), precision)
    return patcher
