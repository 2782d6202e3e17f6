"""Path -> SANA's text encoder as a host CLIP: open and check, detect, precision, build."""

import logging

import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ..files import quantized
from ..files.reader import Checkpoint, read_checkpoint
from ..files.tokenizer import check_tokenizer, find_spiece, find_tokenizer, no_tokenizer
from ..files.validation import GEMMA, check_tensors, log_loaded, naming_faults, refuse
from ..runtime.device import requested
from ..runtime.precision import gemma_precision
from . import detection as gemma_detection
from .detection import check_gemma2, is_base_gemma
from .text_encoder import CLIP_NAME, Gemma2, GemmaClip, SanaTextEncoder, SanaTokenizer

logger = logging.getLogger(__name__)

TEXT_PREFIXES = (
    "text_encoders.gemma2_2b.transformer.",
    "gemma2_2b.transformer.",
    "text_encoder.",
    "text_encoders.gemma2_2b.",
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
    view = quantized.plain_view(state_dict, layers)
    with naming_faults(checkpoint, GEMMA):
        model_config = gemma_detection.detect_gemma2(view)
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
    log_loaded(
        checkpoint, gemma_detection.describe_gemma(model_config, parameters, quantized.formats(layers)), precision
    )
    return clip


def read_gemma(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under the host's names without the tokenizer's, and quantised layers. Raises ValueError for others."""
    ignored = ("spiece_model", "logit_scale", "lm_head.weight")
    with naming_faults(checkpoint, GEMMA):
        state_dict = quantized.strip_quantized(checkpoint.state_dict, TEXT_PREFIXES, checkpoint.metadata)
        state_dict = {key: tensor for key, tensor in state_dict.items() if not key.endswith(ignored)}
        if "embed_tokens.weight" in state_dict:
            state_dict = {f"model.{key}": tensor for key, tensor in state_dict.items()}
        if not gemma_detection.is_gemma2(state_dict):
            raise refuse(checkpoint, GEMMA, gemma_detection.GEMMA_KEYS, state_dict)
        layers = quantized.quantized_layers(state_dict)
    quantized.check_quantized(checkpoint.name, state_dict, layers)
    return state_dict, layers


def load_gemma_patcher(path: str, options: dict | None = None, disable_dynamic: bool = False):
    return load_gemma(path, options, disable_dynamic).patcher
