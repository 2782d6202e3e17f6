"""Paths -> MODEL, CLIP and VAE owned by the host's memory manager: read, detect, convert, check, load strictly.

Loading is logged in one line a file. `disable_dynamic` is how the host asks when it loads a model anew, by
`cached_patcher_init`, for its training, compile and multi-device nodes.
"""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable
from contextlib import contextmanager

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import sentencepiece
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
from .supported_models import CONFIG_KEY, SanaSupported, read_config_tensor
from .vae import SanaVAE
from .weights import make_ready
from .weight_values import check_values

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
GEMMA_SPECIAL_IDS = (0, 2)  # padding, start
# What each loader expects, in the words of `model_detection.FAMILIES`.
SANA, GEMMA, DC_AE = "a SANA transformer", "a Gemma-2 text encoder", "a DC-AE autoencoder"


def check_keys(name: str, expected: Iterable[str], found: Iterable[str]) -> None:
    """Raises ValueError that counts and names missing and unexpected tensors."""
    expected, found = set(expected), set(found)
    problems = [
        f"{len(keys)} {kind}, such as {min(keys)}"
        for kind, keys in (("missing", expected - found), ("unexpected", found - expected))
        if keys
    ]
    if problems:
        raise ValueError(
            f"{name} does not fit its architecture ({'; '.join(problems)} of {len(expected)} tensors): download "
            "it again."
        )


def check_tensors(
    checkpoint: Checkpoint, expected: dict[str, Tensor], found: dict[str, Tensor], layers: dict[str, str]
) -> None:
    """Raises ValueError that names missing and unexpected tensors, or the first one of another shape.

    expected: state dict of the network with torch's own layers, as those of the host have no weights before they are
    loaded when it streams. layers: the file's quantised layers with their formats.
    """
    name = checkpoint.name
    check_keys(name, expected, quantised.plain_view(found, layers))
    for key, shape in quantised.stored_shapes(expected, layers).items():
        if shape != tuple(found[key].shape):
            raise ValueError(
                f"{name} does not fit its architecture: {key} has shape {tuple(found[key].shape)}, expected {shape}: "
                "download it again."
            )
    check_values(name, [key for key in expected if key.removesuffix(".weight") not in layers], found)


def refuse(checkpoint: Checkpoint, expected: str, required: Iterable[str], state_dict: dict[str, Tensor]) -> ValueError:
    """The error for a file that is not of the expected family, or of it but for a tensor every member has."""
    found = detection.describe(checkpoint.state_dict)
    missing = [key for key in required if key not in state_dict]
    if found.startswith(expected):
        return missing_tensor(checkpoint, expected, missing[0]) if missing else other_shapes(checkpoint, expected)
    cure = "" if re.search(r"\((use|take|load) ", found) else ": pick another file"
    return ValueError(f"{checkpoint.name} is {found}, not {expected}{cure}.")


def missing_tensor(checkpoint: Checkpoint, expected: str, key: str) -> ValueError:
    return ValueError(f"{checkpoint.name} looks like {expected} but {key} is missing: download it again.")


def other_shapes(checkpoint: Checkpoint, expected: str) -> ValueError:
    return ValueError(f"{checkpoint.name} looks like {expected} but has tensors of other shapes: download it again.")


@contextmanager
def naming_faults(checkpoint: Checkpoint, expected: str):
    """Turns a tensor that is missed or damaged, while the configuration is read, into one sentence."""
    try:
        yield
    except KeyError as error:
        raise missing_tensor(checkpoint, expected, error.args[0]) from error
    except IndexError as error:
        raise other_shapes(checkpoint, expected) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"The configuration saved in {checkpoint.name} is damaged: save it again.") from error


def own_config(checkpoint: Checkpoint, class_name: str) -> dict:
    """config.json, unless it says that it is another class's: a folder of single files may hold a stray one."""
    return checkpoint.config if checkpoint.config.get("_class_name", class_name) == class_name else {}


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


def beside(path: str, name: str) -> tuple[str, str]:
    """Where a tokenizer file may lie: beside the weights, or in a diffusers model's tokenizer folder."""
    folder = os.path.dirname(path)
    return os.path.join(folder, name), os.path.join(os.path.dirname(folder), "tokenizer", name)


def no_tokenizer(checkpoint: Checkpoint) -> FileNotFoundError:
    other = " (a tokenizer.json is, but the host does not read it)"
    found = other if any(map(os.path.isfile, beside(checkpoint.path, "tokenizer.json"))) else ""
    return FileNotFoundError(
        f"{checkpoint.name} has no tokenizer inside, and there is no tokenizer.model beside it{found}: put Gemma's "
        "tokenizer.model in its folder."
    )


def find_tokenizer(path: str) -> Tensor | None:
    """Bytes of the tokenizer.model that belongs to the weights, as a uint8 tensor."""
    for candidate in beside(path, "tokenizer.model"):
        if os.path.isfile(candidate) and os.path.getsize(candidate):
            with open(candidate, "rb") as file:
                return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    return None


def check_tokenizer(name: str, spiece: Tensor, vocab_size: int) -> None:
    """Raises ValueError for a tokenizer that is unreadable, not Gemma's, or has more pieces than the model embeds."""
    cure = "put the tokenizer.model of this very model beside it, or in a tokenizer folder beside its own."
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=spiece.numpy().tobytes())
    except RuntimeError as error:
        raise ValueError(f"The tokenizer of {name} is no SentencePiece model: {cure}") from error
    if (tokenizer.pad_id(), tokenizer.bos_id()) != GEMMA_SPECIAL_IDS:
        found = f"padding {tokenizer.pad_id()} and start {tokenizer.bos_id()}"
        raise ValueError(
            f"The tokenizer of {name} is not Gemma's (its special tokens are {found}, not 0 and 2): {cure}"
        )
    if tokenizer.get_piece_size() > vocab_size:
        raise ValueError(
            f"The tokenizer of {name} has {tokenizer.get_piece_size()} pieces but the model embeds {vocab_size}: {cure}"
        )


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


def find_spiece(state_dict: dict[str, Tensor]) -> Tensor | None:
    found = next((tensor for key, tensor in state_dict.items() if key.endswith("spiece_model")), None)
    return None if found is None else found.to(torch.uint8)  # bytes survive a cast to 16 bits with the weights


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
