"""AutoencoderKL with 4 channels, the autoencoder of PixArt: a checkpoint -> the host's own VAE.

Source: Latent Diffusion, arXiv 2112.10752; the key lists of sd-vae-ft-ema and of SDXL's autoencoder in both layouts.
"""

from typing import Any

import comfy.diffusers_convert
import comfy.model_management
import comfy.sd
from torch import Tensor

from ..files.family import Family, open_as
from ..files.layout import StateDict
from ..files.reader import Checkpoint
from ..files.validation import check_keys, check_values, log_loaded, other_shapes
from ..runtime.device import describe_device, requested
from ..runtime.precision import Precision, Request, dc_ae_precision

KL_KEYS = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
KL_MARKS = ("decoder.mid.block_1.conv1.weight", "decoder.mid_block.resnets.0.conv1.weight")
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
CHANNELS, RATIO = 4, 8
EMPTY_CURE = "check the node that made it, such as one that takes images from a batch"
SCALES = {0.18215: "Stable Diffusion 1's, for PixArt-alpha", 0.13025: "SDXL's, for PixArt-Sigma"}


class KLVAE(comfy.sd.VAE):
    """The host's VAE, which refuses another model's latent, and what is empty or too small, before its layers do."""

    def decode(self, samples_in: Tensor, *args, **kwargs) -> Tensor:
        check_latent(samples_in)
        return super().decode(samples_in, *args, **kwargs)

    def decode_tiled(self, samples: Tensor, *args, **kwargs) -> Tensor:
        check_latent(samples)
        return super().decode_tiled(samples, *args, **kwargs)

    def encode(self, pixel_samples: Tensor, *args, **kwargs) -> Tensor:
        check_image(pixel_samples)
        return super().encode(pixel_samples, *args, **kwargs)

    def encode_tiled(self, pixel_samples: Tensor, *args, **kwargs) -> Tensor:
        check_image(pixel_samples)
        return super().encode_tiled(pixel_samples, *args, **kwargs)


def check_latent(samples: Tensor) -> None:
    """Raises ValueError for a latent that is not of this autoencoder, or holds nothing."""
    if samples.ndim >= 2 and samples.shape[1] != CHANNELS:
        raise ValueError(
            f"This latent has {samples.shape[1]} channels where AutoencoderKL decodes {CHANNELS}: it comes from "
            "another model, so use that model's VAE, for SANA a DC-AE."
        )
    if 0 in samples.shape:
        raise ValueError(f"This latent holds nothing, its shape is {tuple(samples.shape)}: {EMPTY_CURE}.")


def check_image(pixels: Tensor) -> None:
    """Raises ValueError for a batch (B, H, W, C) without an image, or one of images smaller than a latent cell."""
    if pixels.ndim != 4:  # the host's own case
        return
    if not len(pixels):
        raise ValueError(f"This batch holds no image, its shape is {tuple(pixels.shape)}: {EMPTY_CURE}.")
    height, width = pixels.shape[1:3]
    if min(height, width) < RATIO:
        raise ValueError(
            f"This image is {width} x {height} px; AutoencoderKL needs at least {RATIO} px a side: scale it up."
        )


def convert_kl(state_dict: StateDict) -> StateDict:
    """Without what training leaves in a file; both layouts stay, as the host reads either."""
    return {key: tensor for key, tensor in state_dict.items() if key.startswith(PARTS)}


def is_kl(state_dict: StateDict) -> bool:
    """True for an image autoencoder of latent diffusion, of any number of channels."""
    if not any(mark in state_dict for mark in KL_MARKS):
        return False
    return all(key in state_dict and state_dict[key].ndim == 4 for key in KL_KEYS)


def check_kind(checkpoint: Checkpoint) -> None:
    """Raises ValueError for an autoencoder of another number of channels, or another ratio than 8."""
    channels = checkpoint.state_dict["decoder.conv_in.weight"].shape[1]
    stages = [key for key in checkpoint.state_dict if key.startswith(("encoder.down.3.", "encoder.down_blocks.3."))]
    if channels != CHANNELS or not stages:
        found = f"{channels} latent channels" if channels != CHANNELS else "another ratio than 8"
        raise ValueError(
            f"{checkpoint.name} is an autoencoder with {found}, but PixArt's has {CHANNELS} at 1/8 of the size: use "
            "the host's own loader for it."
        )


def kl_precision(request: Request) -> Precision:
    """As DC-AE's: SDXL's autoencoder overflows in float16 too."""
    return dc_ae_precision(request, describe_device(comfy.model_management.vae_device()))


def build(checkpoint: Checkpoint, precision: Precision) -> comfy.sd.VAE:
    """The host's VAE. Raises ValueError for a file that does not fit it to the last tensor."""
    state_dict = checkpoint.state_dict
    if KL_MARKS[1] in state_dict:
        state_dict = comfy.diffusers_convert.convert_vae_state_dict(state_dict)
    try:
        vae = KLVAE(sd=dict(state_dict), dtype=precision.weights)
    except (RuntimeError, ValueError) as error:
        raise other_shapes(checkpoint, KL.name) from error
    check_keys(checkpoint.name, vae.first_stage_model.state_dict(), state_dict)
    check_values(checkpoint.name, state_dict, state_dict)
    return vae


def describe_kl(checkpoint: Checkpoint) -> str:
    scale = checkpoint.config.get("scaling_factor")
    known = next((name for value, name in SCALES.items() if isinstance(scale, float) and abs(scale - value) < 1e-6), "")
    return f"AutoencoderKL with {CHANNELS} channels{f', {known}' if known else ''}"


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool) -> comfy.sd.VAE:  # noqa: ARG001 - every family's
    """The host's VAE of a checkpoint; options as `load_kl` takes them."""
    check_kind(checkpoint)
    precision = kl_precision(requested(options.get("dtype"), "dtype", "vae"))
    vae = build(checkpoint, precision)
    vae.patcher.cached_patcher_init = (load_kl_patcher, (checkpoint.source, options))
    log_loaded(checkpoint, describe_kl(checkpoint), precision)
    return vae


def load_kl(path: str, options: dict[str, Any] | None = None) -> comfy.sd.VAE:
    """AutoencoderKL from a file or folder.

    options: "dtype" torch.bfloat16, torch.float32 or None for the device's best. Raises ValueError or FileNotFoundError
    with one sentence.
    """
    return load(open_as(KL, path), options or {}, False)


def load_kl_patcher(path: str, options: dict | None = None, disable_dynamic: bool = False):  # noqa: ARG001 - the host's call
    return load_kl(path, options).patcher


KL = Family(
    name="an AutoencoderKL",
    component="vae",
    node="SANA DC-AE Loader",
    marks=KL_MARKS,
    required=KL_KEYS,
    convert=convert_kl,
    recognizes=is_kl,
    load=load,
)
