"""PixArt's transformer: a checkpoint -> MODEL of the host's memory manager, in the order detect, precision, build.

Loading is logged in one line per file, with what told the family.
"""

import dataclasses
import logging
import os
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from ..files import quantized
from ..files.family import Family, Saving, open_as
from ..files.layout import StateDict
from ..files.prepare import prepare_state_dict
from ..files.reader import Checkpoint, read_beside, read_json
from ..files.saved_config import read_config_tensor
from ..files.validation import check_tensors, log_loaded, read_layers, reading_config
from ..lora.stock_nodes import with_stock_patches
from ..runtime.device import describe_device, patcher_class, requested
from ..runtime.precision import FLOAT16, Precision, sana_precision
from . import detection as pixart_detection
from .config import CONFIG_KEY, PixArtConfig
from .convert import convert_pixart, is_diffusers_pixart
from .model import PixArt
from .quantization import pixart_architecture, pixart_rules
from .supported_models import PixArtSupported, file_state_dict

logger = logging.getLogger(__name__)

CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")  # the second in alpha's first release
AUTHORS = "https://github.com/PixArt-alpha/PixArt-sigma"
CHOSEN = "as chosen in the loader"


def read_source(checkpoint: Checkpoint, family: str | None) -> dict[str, Any]:
    """What lies beside the tensors or among them and tells what no shape does; taken out of the state dict."""
    state_dict, config = checkpoint.state_dict, checkpoint.config
    source = dict(config) if config.get("_class_name", CLASSES[0]) in CLASSES else {}
    folder = os.path.dirname(os.path.dirname(checkpoint.path))
    source["scheduler"] = read_beside(checkpoint.path, "scheduler", "scheduler_config.json").get("_class_name")
    source["scaling_factor"] = read_beside(checkpoint.path, "vae", "config.json").get("scaling_factor")
    source["pipeline"] = read_json(os.path.join(folder, "model_index.json")).get("_class_name")
    for key in (pixart_detection.POSITIONS, pixart_detection.NULL_TEXT):
        if key in state_dict:
            source[key] = state_dict.pop(key).shape[-2]
    if CONFIG_KEY in state_dict:
        source |= read_config_tensor(state_dict.pop(CONFIG_KEY))
    return source | ({"family": family, "family_reason": CHOSEN} if family else {})


def require_fused(checkpoint: Checkpoint) -> None:
    """Raises ValueError for quantized q, k and v of diffusers' layout that one layer with one scale cannot hold."""
    apart = [key for key in checkpoint.state_dict if key.startswith("transformer_blocks.")]
    if apart and any(key.endswith("_scale") for key in apart):
        raise ValueError(
            f"{checkpoint.name} quantizes q, k and v apart ({apart[0]}), but PixArt holds them in one layer: use a "
            "quantized file in the authors' layout, or the one that is not quantized."
        )


def configure(checkpoint: Checkpoint, options: dict[str, Any]) -> tuple[PixArtConfig, str, dict[str, str], int]:
    """Configuration, what told the family, quantized layers with their formats, number of parameters.

    Raises ValueError for a file that does not fit its configuration to the last tensor.
    """
    require_fused(checkpoint)
    with reading_config(checkpoint, PIXART.name):
        source = read_source(checkpoint, options.get("family"))
    layers, view = read_layers(checkpoint, PIXART.name)
    rows, positions = source.get(pixart_detection.NULL_TEXT), source.get(pixart_detection.POSITIONS)
    with reading_config(checkpoint, PIXART.name):
        config, reason = pixart_detection.detect_pixart(
            view, checkpoint.name, source, rows, positions, os.path.normpath(checkpoint.path)
        )
    network = PixArt(config, device="meta", operations=torch.nn)
    check_tensors(checkpoint, network.state_dict(), checkpoint.state_dict, layers)
    return config, reason, layers, comfy.utils.calculate_parameters(view)


def choose_precision(state_dict: StateDict, options: dict[str, Any], parameters: int, formats: str) -> Precision:
    """As of a SANA trained in float16, the format of PixArt's training too; its softmax attention needs no clamp."""
    request = requested(options.get("dtype"), "weight_dtype", "unet")
    device = describe_device(comfy.model_management.get_torch_device(), parameters)
    precision = sana_precision(FLOAT16, comfy.utils.weight_dtype(state_dict), request, device, formats)
    return dataclasses.replace(precision, clamp=False)


def build(
    config: PixArtConfig, precision: Precision, state_dict: StateDict, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """The host's model of a configuration with these tensors in it."""
    device, offload_device = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    supported = PixArtSupported(config, precision)
    supported.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    model = supported.get_model(state_dict)
    checked = with_stock_patches(patcher_class(device, disable_dynamic))
    patcher = checked(model, load_device=device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=prepare_state_dict(model.diffusion_model, state_dict, patcher))
    return patcher


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool) -> comfy.model_patcher.ModelPatcher:
    """The host's model of a checkpoint in the network's layout; options as `load_pixart` takes them."""
    layout = "diffusers" if is_diffusers_pixart(checkpoint.whole) else "authors'"
    config, reason, layers, parameters = configure(checkpoint, options)
    precision = choose_precision(checkpoint.state_dict, options, parameters, quantized.formats(layers))
    patcher = build(config, precision, checkpoint.state_dict, disable_dynamic)
    patcher.cached_patcher_init = (load_pixart, (checkpoint.source, options))
    if not reason:
        logger.warning(
            "SANA: nothing tells whether %s is PixArt-alpha or PixArt-Sigma, so it is taken for %s: if colors are "
            "wrong, set family in SANA Model Loader.",
            *(checkpoint.name, config.family),
        )
    log_loaded(checkpoint, pixart_detection.describe_pixart(config, parameters, layout, reason), precision)
    return patcher


def load_pixart(
    path: str, options: dict[str, Any] | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """PixArt transformer from a file or folder.

    options, each None for the checkpoint's own: "dtype" torch.dtype of the weights, "family" "PixArt-alpha" or
    "PixArt-Sigma". Raises ValueError or FileNotFoundError with one sentence for what cannot be loaded.
    """
    return load(open_as(PIXART, path), options or {}, disable_dynamic)


def tensors_of_file(checkpoint: Checkpoint) -> StateDict:
    """What the host's Model Save would write of a checkpoint in the network's layout; raises as `configure` does."""
    config, *_ = configure(checkpoint, {})
    return file_state_dict(config, checkpoint.state_dict)


PIXART = Family(
    name="a PixArt transformer",
    component="transformer",
    node="SANA Model Loader",
    marks=pixart_detection.PIXART_MARKS,
    required=pixart_detection.PIXART_KEYS,
    convert=convert_pixart,
    recognizes=pixart_detection.is_pixart,
    load=load,
    saving=Saving(pixart_rules, pixart_architecture, tensors_of_file, "model.diffusion_model.", AUTHORS),
)
