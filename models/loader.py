"""Paths -> MODEL, CLIP and VAE owned by the host's memory manager: read, detect, convert, check, load strictly.

Loading is logged in one line a file. `disable_dynamic` is how the host asks when it loads a model anew, by
`cached_patcher_init`, for its training, compile and multi-device nodes.
"""

import dataclasses
import json
import logging
import os
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

from . import convert
from . import model_detection as detection
from .checkpoint import Checkpoint, read_beside, read_checkpoint
from .config import SANA_LATENT_SCALE, SanaConfig
from .gemma import CLIP_NAME, SanaTextEncoder, SanaTokenizer
from .supported_models import CONFIG_KEY, SanaSupported, read_config_tensor
from .vae import SanaVAE

logger = logging.getLogger(__name__)

MODEL_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.")
TEXT_PREFIXES = (
    "text_encoders.gemma2_2b.transformer.",
    "gemma2_2b.transformer.",
    "text_encoder.",
    "text_encoders.gemma2_2b.",
)
VAE_PREFIXES = ("first_stage_model.", "vae.")
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


def check_shapes(name: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raises ValueError for the first tensor whose shape differs."""
    for key, tensor in expected.items():
        if tensor.shape != found[key].shape:
            raise ValueError(
                f"{name} does not fit its architecture: {key} has shape {tuple(found[key].shape)}, expected "
                f"{tuple(tensor.shape)}: download it again."
            )


def refuse(checkpoint: Checkpoint, expected: str, required: Iterable[str], state_dict: dict[str, Tensor]) -> ValueError:
    """The error for a file that is not of the expected family, or of it but for a tensor every member has."""
    found = detection.describe(checkpoint.state_dict)
    missing = [key for key in required if key not in state_dict]
    if found.startswith(expected):
        return missing_tensor(checkpoint, expected, missing[0]) if missing else other_shapes(checkpoint, expected)
    return ValueError(f"{checkpoint.name} is {found}, not {expected}.")


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


def prepare_sana(checkpoint: Checkpoint) -> tuple[SanaConfig, dict[str, Tensor]]:
    """Configuration and tensors in the internal layout. Raises ValueError when the file is not a SANA transformer."""
    state_dict = convert.strip_prefix(checkpoint.state_dict, MODEL_PREFIXES)
    table = state_dict.get("pos_embed")
    saved = state_dict.pop(CONFIG_KEY, None)
    if convert.is_nvidia_sana(state_dict):
        state_dict = convert.convert_nvidia_sana(state_dict)
    if not detection.is_sana(state_dict):
        raise refuse(checkpoint, SANA, detection.SANA_KEYS, state_dict)
    source = dict(own_config(checkpoint, "SanaTransformer2DModel"))
    scheduler = read_beside(checkpoint.path, "scheduler", "scheduler_config.json")
    if "flow_shift" in scheduler:
        source["flow_shift"] = scheduler["flow_shift"]
    with naming_faults(checkpoint, SANA):
        if saved is not None:
            source |= read_config_tensor(saved)
        positions = None if table is None else table.shape[-2]
        return detection.detect_sana(state_dict, checkpoint.name, source, positions), state_dict


def inference_dtypes(config: SanaConfig) -> list[torch.dtype]:
    """Formats to compute in, best first: float16 for what was trained in it, else bfloat16; float32 if that is slow."""
    return [torch.float16 if config.clamp_attention else torch.bfloat16, torch.float32]


def set_dtypes(
    supported: SanaSupported, state_dict: dict[str, Tensor], requested: torch.dtype | None, load_device: torch.device
) -> torch.dtype:
    """Sets the formats to keep the weights and to compute in, as the host chooses them; returns the first."""
    quantised = supported.quant_config is not None
    dtype = requested
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state_dict),
            supported_dtypes=list(supported.supported_inference_dtypes),
            weight_dtype=None if quantised else comfy.utils.weight_dtype(state_dict),
        )
    manual_cast = comfy.model_management.unet_manual_cast(
        None if quantised else dtype, load_device, supported.supported_inference_dtypes
    )
    supported.set_inference_dtype(dtype, manual_cast, device=load_device)
    return dtype


def load_sana(
    path: str, options: dict | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """SANA transformer from a file or folder.

    options: "dtype" torch.dtype of the weights or None, "shift" flow shift or None, "clamp" bool or None; None is the
    checkpoint's own.
    Raises ValueError or FileNotFoundError with one sentence for what cannot be loaded.
    """
    options = options or {}
    checkpoint = read_checkpoint(path, "transformer")
    config, state_dict = prepare_sana(checkpoint)
    dtypes = inference_dtypes(config)  # of the checkpoint as it was trained, whatever the options say
    overrides = {"shift": options.get("shift"), "clamp_attention": options.get("clamp")}
    config = dataclasses.replace(config, **{name: value for name, value in overrides.items() if value is not None})

    state_dict, _ = comfy.utils.convert_old_quants(state_dict, "", metadata=checkpoint.metadata or {})
    supported = SanaSupported(config, dtypes)
    supported.quant_config = comfy.utils.detect_layer_quantization(state_dict, "")
    load_device = comfy.model_management.get_torch_device()
    dtype = set_dtypes(supported, state_dict, options.get("dtype"), load_device)

    offload_device = comfy.model_management.unet_offload_device()
    model = supported.get_model(state_dict)
    expected = model.diffusion_model.state_dict()
    if supported.quant_config is None:
        check_keys(checkpoint.name, expected, state_dict)
        check_shapes(checkpoint.name, expected, state_dict)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_sana, (path, options))
    family = "SANA-Sprint" if config.guidance_embeds else "SANA-1.5" if config.qk_norm else "SANA"
    logger.info(
        "SANA: %s is %s, width %d, depth %d, native %d px, weights %s, computed in %s",
        checkpoint.name,
        family,
        config.hidden_size,
        config.depth,
        32 * config.sample_size,
        dtype,
        model.get_dtype_inference(),
    )
    return patcher


def find_tokenizer(path: str) -> Tensor | None:
    """Bytes of the tokenizer.model beside the weights or in a diffusers model's tokenizer folder, as a uint8 tensor."""
    folder = os.path.dirname(path)
    for candidate in (
        os.path.join(folder, "tokenizer.model"),
        os.path.join(os.path.dirname(folder), "tokenizer", "tokenizer.model"),
    ):
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
    state_dict = convert.strip_prefix(checkpoint.state_dict, TEXT_PREFIXES)
    ignored = ("spiece_model", "logit_scale", "lm_head.weight")
    state_dict = {key: tensor for key, tensor in state_dict.items() if not key.endswith(ignored)}
    if "embed_tokens.weight" in state_dict:
        state_dict = {f"model.{key}": tensor for key, tensor in state_dict.items()}
    if not detection.is_gemma2(state_dict):
        raise refuse(checkpoint, GEMMA, detection.GEMMA_KEYS, state_dict)
    spiece = find_tokenizer(checkpoint.path) if spiece is None else spiece
    if spiece is None:
        raise FileNotFoundError(
            f"{checkpoint.name} has no tokenizer inside, and there is no tokenizer.model beside it: put Gemma's "
            "tokenizer.model in its folder."
        )

    state_dict, _ = comfy.utils.convert_old_quants(state_dict, "", metadata=checkpoint.metadata or {})
    with naming_faults(checkpoint, GEMMA):
        model_config = detection.detect_gemma2(state_dict)
    check_tokenizer(checkpoint.name, spiece, model_config["vocab_size"])
    found = comfy.sd.llama_detect([state_dict])
    model_options = {
        "dtype": options.get("dtype") or found.get("dtype_llama", torch.bfloat16),
        f"{CLIP_NAME}_model_config": model_config,
        "quantization_metadata": found.get("llama_quantization_metadata"),
    }
    target = comfy.supported_models_base.ClipTarget(SanaTokenizer, SanaTextEncoder)
    clip = comfy.sd.CLIP(
        target,
        tokenizer_data={"spiece_model": spiece},
        parameters=comfy.utils.calculate_parameters(state_dict),
        model_options=model_options,
        disable_dynamic=disable_dynamic,
    )
    if model_options["quantization_metadata"] is None:
        expected = clip.cond_stage_model.gemma2_2b.transformer.state_dict()
        check_keys(checkpoint.name, expected, state_dict)
        check_shapes(checkpoint.name, expected, state_dict)
    clip.load_sd(state_dict)
    clip.patcher.cached_patcher_init = (load_gemma_patcher, (path, options))
    logger.info(
        "SANA: %s is Gemma-2, width %d, weights %s",
        checkpoint.name,
        model_config["hidden_size"],
        model_options["dtype"],
    )
    return clip


def find_spiece(state_dict: dict[str, Tensor]) -> Tensor | None:
    return next((tensor for key, tensor in state_dict.items() if key.endswith("spiece_model")), None)


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
    if convert.is_original_dc_ae(state_dict):
        with naming_faults(checkpoint, DC_AE):
            state_dict = convert.convert_original_dc_ae(state_dict)
    if not detection.is_dc_ae(state_dict):
        raise refuse(checkpoint, DC_AE, detection.DC_AE_KEYS, state_dict)
    with naming_faults(checkpoint, DC_AE):
        config = detection.detect_dc_ae(state_dict, own_config(checkpoint, "AutoencoderDC"))
    if abs(config.scaling_factor - SANA_LATENT_SCALE) > 1e-6 or config.latent_channels != 32:
        raise ValueError(
            f"{checkpoint.name} is a DC-AE with {config.latent_channels} latent channels and scaling factor "
            f"{config.scaling_factor}; SANA's has 32 and {SANA_LATENT_SCALE}: use dc-ae-f32c32-sana-1.0 or 1.1."
        )
    with torch.device("meta"):
        expected = SanaVAE.network(config).state_dict()
    check_keys(checkpoint.name, expected, state_dict)
    check_shapes(checkpoint.name, expected, state_dict)
    vae = SanaVAE(config, state_dict, options.get("dtype"), device)
    vae.patcher.cached_patcher_init = (load_dc_ae_patcher, (path, options))
    logger.info("SANA: %s is DC-AE f32c32, computed in %s", checkpoint.name, vae.vae_dtype)
    return vae


def load_dc_ae_patcher(path: str, options: dict | None = None, device=None, disable_dynamic: bool = False):  # noqa: ARG001 - the host's call
    return load_dc_ae(path, options, device).patcher
