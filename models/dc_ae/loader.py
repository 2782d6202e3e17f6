"""Path -> DC-AE as a host VAE: open and check, detect, precision, build."""

import comfy.model_management
import torch

from ..files.layout import is_original_dc_ae, layout_of, strip_prefix
from ..files.reader import read_checkpoint
from ..files.validation import DC_AE, check_tensors, log_loaded, naming_faults, own_config, refuse
from ..runtime.device import describe_device, requested
from ..runtime.precision import dc_ae_precision
from . import config as dc_ae_config
from . import convert as dc_ae_convert
from . import detection as dc_ae_detection
from .config import SANA_LATENT_SCALE
from .model import AutoencoderDC
from .vae import SanaVAE

VAE_PREFIXES = ("first_stage_model.", "vae.", "module.", "_orig_mod.")


def load_dc_ae(path: str, options: dict | None = None, device=None) -> SanaVAE:
    """DC-AE from a file or folder.

    options: "dtype" torch.bfloat16, torch.float32 or None for the device's best. Raises ValueError or FileNotFoundError
    with one sentence.
    """
    options = options or {}
    checkpoint = read_checkpoint(path, "vae")
    state_dict = strip_prefix(checkpoint.state_dict, VAE_PREFIXES)
    layout = layout_of(state_dict)
    if is_original_dc_ae(state_dict):
        with naming_faults(checkpoint, DC_AE):
            state_dict = dc_ae_convert.convert_original_dc_ae(state_dict)
    if not dc_ae_detection.is_dc_ae(state_dict):
        raise refuse(checkpoint, DC_AE, dc_ae_detection.DC_AE_KEYS, state_dict)
    with naming_faults(checkpoint, DC_AE):
        config = dc_ae_detection.detect_dc_ae(state_dict, own_config(checkpoint, "AutoencoderDC"), checkpoint.name)
    if abs(config.scaling_factor - SANA_LATENT_SCALE) > 1e-6 or config.latent_channels != 32:
        raise ValueError(
            f"{checkpoint.name} is a DC-AE with {config.latent_channels} latent channels and scaling factor "
            f"{config.scaling_factor}; SANA's has 32 and {SANA_LATENT_SCALE}: use dc-ae-f32c32-sana-1.0 or 1.1."
        )
    check_tensors(checkpoint, AutoencoderDC(config, device="meta", operations=torch.nn).state_dict(), state_dict, {})
    device = comfy.model_management.vae_device() if device is None else device
    precision = dc_ae_precision(requested(options.get("dtype"), "dtype", "vae"), describe_device(device))
    vae = SanaVAE(config, state_dict, precision.weights, device)
    vae.patcher.cached_patcher_init = (load_dc_ae_patcher, (path, options))
    log_loaded(checkpoint, dc_ae_config.describe_dc_ae(config, layout), precision)
    return vae


def load_dc_ae_patcher(path: str, options: dict | None = None, device=None, disable_dynamic: bool = False):  # noqa: ARG001 - the host's call
    return load_dc_ae(path, options, device).patcher
