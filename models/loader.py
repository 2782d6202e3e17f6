"""Paths -> MODEL, CLIP and VAE owned by the host's memory manager: read, detect, convert, check, load strictly.

Loading is logged in one line a file. `disable_dynamic` is how the host asks when it loads a model anew, by
`cached_patcher_init`, for its training, compile and multi-device nodes.
"""

import dataclasses
import logging
import os

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from . import convert, quantised, summary
from . import model_detection as detection
from .checkpoint import Checkpoint, read_beside, read_checkpoint
from .config import SANA_LATENT_SCALE, SanaConfig
from .config_checks import check_gemma2, is_base_gemma
from .dc_ae import AutoencoderDC
from .device import describe_device, requested
from .gemma import CLIP_NAME, Gemma2, GemmaClip, SanaTextEncoder, SanaTokenizer
from .model_patcher import sana_patcher
from .precision import Precision, dc_ae_precision, gemma_precision, sana_precision
from .sana import Sana
from .strict_checks import DC_AE, GEMMA, SANA, check_tensors, naming_faults, own_config, refuse
from .supported_models import CONFIG_KEY, SanaSupported, read_config_tensor
from .tokenizer_file import check_tokenizer, find_spiece, find_tokenizer, no_tokenizer
from .vae import SanaVAE
from .weights import make_ready

logger = logging.getLogger(__name__)

MODEL_PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
)
TEXT_PREFIXES = (
    "text_encoders.gemma2_2b.transformer.",
    "gemma2_2b.transformer.",
    "text_encoder.",
    "text_encoders.gemma2_2b.",
)
VAE_PREFIXES = ("first_stage_model.", "vae.", "module.", "_orig_mod.")


def read_sana(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str], dict, str]:
    """Tensors in the internal layout, quantised layers, what lies beside or in the file, and the layout it had.

    Raises ValueError when the file is not a SANA transformer.
    """
    with naming_faults(checkpoint, SANA):
        state_dict = quantised.strip_quantised(checkpoint.state_dict, MODEL_PREFIXES, checkpoint.metadata)
        source = dict(own_config(checkpoint, "SanaTransformer2DModel"))
        table, saved = state_dict.get("pos_embed"), state_dict.pop(CONFIG_KEY, None)
        layout = convert.layout_of(state_dict)
        if convert.is_nvidia_sana(state_dict):
            state_dict = convert.convert_nvidia_sana(state_dict)
        if not detection.is_sana(state_dict):
            raise refuse(checkpoint, SANA, detection.SANA_KEYS, state_dict)
        scheduler = read_beside(checkpoint.path, "scheduler", "scheduler_config.json")
        if "flow_shift" in scheduler:
            source["flow_shift"] = scheduler["flow_shift"]
        if table is not None:
            source["positions"] = table.shape[-2]
        if saved is not None:
            source |= read_config_tensor(saved)
        layers = quantised.quantised_layers(state_dict)
    quantised.check_quantised(checkpoint.name, state_dict, layers)
    return state_dict, layers, source, layout


def configure_sana(checkpoint: Checkpoint, view: dict[str, Tensor], source: dict, options: dict) -> SanaConfig:
    """The configuration detected from unquantised shapes, with the user's options over it."""
    source = source | detection.chosen_config(options.get("native_size"), options.get("trained_in_float16"))
    with naming_faults(checkpoint, SANA):
        config = detection.detect_sana(
            view, checkpoint.name, source, source.get("positions"), os.path.normpath(checkpoint.path)
        )
    chosen = {"shift": options.get("shift"), "clamp_attention": options.get("clamp")}
    return dataclasses.replace(config, **{name: value for name, value in chosen.items() if value is not None})


def log_loaded(checkpoint: Checkpoint, what: str, precision: Precision) -> None:
    if precision.warning:
        logger.warning("SANA: %s: %s.", checkpoint.name, precision.warning)
    logger.info("SANA: %s is %s, %s", checkpoint.name, what, summary.describe_precision(precision))


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
    view = quantised.plain_view(state_dict, layers)
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
        quantised.formats(layers),
    )
    if config.clamp_attention is None:
        config = dataclasses.replace(config, clamp_attention=precision.clamp)
    supported = SanaSupported(config, precision)
    supported.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")

    offload_device = comfy.model_management.unet_offload_device()
    model = supported.get_model(state_dict)
    patcher = sana_patcher(model, load_device, offload_device, disable_dynamic)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=make_ready(model.diffusion_model, state_dict, patcher))
    patcher.cached_patcher_init = (load_sana, (path, options))
    log_loaded(checkpoint, summary.describe_sana(config, parameters, layout), precision)
    return patcher


def load_gemma(path: str, options: dict | None = None, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """SANA's text encoder from a file or folder.

    options: "dtype" torch.dtype of the weights or None for the file's own. Raises ValueError or FileNotFoundError with
    one sentence.
    """
    options = options or {}
    checkpoint = read_checkpoint(path, "text_encoder")
    spiece = find_spiece(checkpoint.state_dict)
    state_dict, layers = read_gemma(checkpoint)
    spiece = find_tokenizer(checkpoint.path) if spiece is None else spiece
    if spiece is None:
        raise no_tokenizer(checkpoint)
    view = quantised.plain_view(state_dict, layers)
    with naming_faults(checkpoint, GEMMA):
        model_config = detection.detect_gemma2(view)
    own = checkpoint.config if checkpoint.config.get("model_type") == "gemma2" else {}
    check_gemma2(checkpoint.name, model_config, own)
    check_tokenizer(checkpoint.name, spiece, model_config["vocab_size"])
    check_tensors(
        checkpoint,
        Gemma2(dict(model_config), torch.bfloat16, "meta", torch.nn).state_dict(),
        state_dict,
        layers,
    )

    found = comfy.sd.llama_detect([state_dict])
    stored = found.get("dtype_llama", torch.bfloat16) if layers else comfy.utils.weight_dtype(state_dict)
    precision = gemma_precision(stored, requested(options.get("dtype"), "dtype", "text_enc"))
    model_options = {
        "dtype": precision.weights,
        f"{CLIP_NAME}_model_config": model_config,
        "quantization_metadata": found.get("llama_quantization_metadata"),
    }
    target = comfy.supported_models_base.ClipTarget(SanaTokenizer, SanaTextEncoder)
    parameters = comfy.utils.calculate_parameters(view)
    clip = GemmaClip(
        target,
        tokenizer_data={"spiece_model": spiece},
        parameters=parameters,
        state_dict=[state_dict],
        model_options=model_options,
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (load_gemma_patcher, (path, options))
    if is_base_gemma(checkpoint.path, own):
        logger.warning(
            "SANA: %s is the base Gemma-2 2B by its name, but SANA was trained with the instruction-tuned one: use "
            "gemma-2-2b-it for pictures that follow the prompt.",
            checkpoint.name,
        )
    log_loaded(checkpoint, summary.describe_gemma(model_config, parameters, quantised.formats(layers)), precision)
    return clip


def read_gemma(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under the host's names without the tokenizer's, and quantised layers. Raises ValueError for others."""
    ignored = ("spiece_model", "logit_scale", "lm_head.weight")
    with naming_faults(checkpoint, GEMMA):
        state_dict = quantised.strip_quantised(checkpoint.state_dict, TEXT_PREFIXES, checkpoint.metadata)
        state_dict = {key: tensor for key, tensor in state_dict.items() if not key.endswith(ignored)}
        if "embed_tokens.weight" in state_dict:
            state_dict = {f"model.{key}": tensor for key, tensor in state_dict.items()}
        if not detection.is_gemma2(state_dict):
            raise refuse(checkpoint, GEMMA, detection.GEMMA_KEYS, state_dict)
        layers = quantised.quantised_layers(state_dict)
    quantised.check_quantised(checkpoint.name, state_dict, layers)
    return state_dict, layers


def load_gemma_patcher(path: str, options: dict | None = None, disable_dynamic: bool = False):
    return load_gemma(path, options, disable_dynamic).patcher


def load_dc_ae(path: str, options: dict | None = None, device=None) -> SanaVAE:
    """DC-AE from a file or folder.

    options: "dtype" torch.bfloat16, torch.float32 or None for the device's best. Raises ValueError or FileNotFoundError
    with one sentence.
    """
    options = options or {}
    checkpoint = read_checkpoint(path, "vae")
    state_dict = convert.strip_prefix(checkpoint.state_dict, VAE_PREFIXES)
    layout = convert.layout_of(state_dict)
    if convert.is_original_dc_ae(state_dict):
        with naming_faults(checkpoint, DC_AE):
            state_dict = convert.convert_original_dc_ae(state_dict)
    if not detection.is_dc_ae(state_dict):
        raise refuse(checkpoint, DC_AE, detection.DC_AE_KEYS, state_dict)
    with naming_faults(checkpoint, DC_AE):
        config = detection.detect_dc_ae(state_dict, own_config(checkpoint, "AutoencoderDC"), checkpoint.name)
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
    log_loaded(checkpoint, summary.describe_dc_ae(config, layout), precision)
    return vae


def load_dc_ae_patcher(path: str, options: dict | None = None, device=None, disable_dynamic: bool = False):  # noqa: ARG001 - the host's call
    return load_dc_ae(path, options, device).patcher
