"""DC-AE: a checkpoint -> VAE of the host, in the order detect, precision, build."""

from typing import Any

import comfy.model_management
import torch

from ..files.family import Family, open_as
from ..files.layout import StateDict, is_original_dc_ae
from ..files.reader import Checkpoint
from ..files.validation import check_tensors, log_loaded, own_config, reading_config
from ..runtime.device import describe_device, requested
from ..runtime.precision import Precision, dc_ae_precision
from . import detection as dc_ae_detection
from .config import LATENT_CHANNELS, SANA_LATENT_SCALE, DCAEConfig
from .convert import convert_original_dc_ae
from .inplace import choose_network
from .model import AutoencoderDC
from .vae import SanaVAE


def convert_dc_ae(state_dict: StateDict) -> StateDict:
    """Any layout -> the network's."""
    return convert_original_dc_ae(state_dict) if is_original_dc_ae(state_dict) else state_dict


def configure(checkpoint: Checkpoint) -> DCAEConfig:
    """Configuration of a DC-AE of SANA. Raises ValueError for another one, and for tensors that do not fit it."""
    with reading_config(checkpoint, DC_AE.name):
        config = dc_ae_detection.detect_dc_ae(
            checkpoint.state_dict, own_config(checkpoint, "AutoencoderDC"), checkpoint.name
        )
    if abs(config.scaling_factor - SANA_LATENT_SCALE) > 1e-6 or config.latent_channels != LATENT_CHANNELS:
        raise ValueError(
            f"{checkpoint.name} is a DC-AE with {config.latent_channels} latent channels and scaling factor "
            f"{config.scaling_factor}; SANA's has {LATENT_CHANNELS} and {SANA_LATENT_SCALE}: use "
            "dc-ae-f32c32-sana-1.0 or 1.1."
        )
    network = AutoencoderDC(config, device="meta", operations=torch.nn)
    check_tensors(checkpoint, network.state_dict(), checkpoint.state_dict, {})
    return config


def build(
    config: DCAEConfig, precision: Precision, state_dict: StateDict, device: torch.device, cuda_graphs: bool
) -> SanaVAE:
    """The host's VAE of a configuration with these tensors in it."""
    return SanaVAE(choose_network(device), config, state_dict, precision.weights, device, cuda_graphs)


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool, device=None) -> SanaVAE:  # noqa: ARG001 - every family's
    """The host's VAE of a checkpoint in the network's layout; options as `load_dc_ae` takes them."""
    config = configure(checkpoint)
    device = comfy.model_management.vae_device() if device is None else device
    precision = dc_ae_precision(requested(options.get("dtype"), "dtype", "vae"), describe_device(device))
    vae = build(config, precision, checkpoint.state_dict, device, bool(options.get("cuda_graphs")))
    vae.patcher.cached_patcher_init = (load_dc_ae_patcher, (checkpoint.source, options))
    log_loaded(checkpoint, dc_ae_detection.describe_dc_ae(config, checkpoint.layout), precision)
    return vae


def load_dc_ae(path: str, options: dict[str, Any] | None = None, device=None) -> SanaVAE:
    """DC-AE from a file or folder.

    options: "dtype" torch.bfloat16, torch.float32 or None for the device's best; "cuda_graphs" whether decodes are
    replayed. Raises ValueError or FileNotFoundError with one sentence.
    """
    return load(open_as(DC_AE, path), options or {}, False, device)


def load_dc_ae_patcher(path: str, options: dict | None = None, device=None, disable_dynamic: bool = False):  # noqa: ARG001 - the host's call
    return load_dc_ae(path, options, device).patcher


DC_AE = Family(
    name="a DC-AE autoencoder",
    component="vae",
    node="SANA DC-AE Loader",
    marks=dc_ae_detection.DC_AE_MARKS,
    required=dc_ae_detection.DC_AE_KEYS,
    convert=convert_dc_ae,
    recognizes=dc_ae_detection.is_dc_ae,
    load=load,
)
