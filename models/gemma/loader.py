"""Gemma-2, SANA's text encoder: a checkpoint -> CLIP of the host, in the order detect, precision, build."""

import logging
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..files import quantized, text_encoders
from ..files.family import Family, Saving, open_as
from ..files.layout import StateDict, to_host_gemma
from ..files.reader import Checkpoint
from ..files.tokenizer import SPIECE_KEY, check_tokenizer, read_spiece
from ..files.validation import log_loaded
from ..runtime.device import describe_device, requested
from ..runtime.precision import gemma_precision
from . import detection as gemma_detection
from .model import Gemma2
from .quantization import gemma_architecture, gemma_rules
from .text_encoder import CLIP_NAME, COMPUTE, GemmaClip, SanaTextEncoder, SanaTokenizer

logger = logging.getLogger(__name__)

ENCODER = text_encoders.Encoder(CLIP_NAME, GemmaClip, SanaTokenizer, SanaTextEncoder)


def configure(checkpoint: Checkpoint, spiece: Tensor) -> tuple[dict[str, int], dict[str, str], int]:
    """The host's configuration, quantized layers with their formats, number of parameters.

    Raises ValueError for another Gemma than SANA's, and for a tokenizer or tensors that do not fit it.
    """

    def check(sizes: dict[str, int]) -> None:
        gemma_detection.check_gemma2(checkpoint.name, sizes, gemma_config(checkpoint))
        check_tokenizer(checkpoint.name, spiece, sizes["vocab_size"])

    def network(sizes: dict[str, int]) -> Gemma2:
        return Gemma2(sizes, torch.bfloat16, "meta", torch.nn)

    return text_encoders.configure(checkpoint, GEMMA.name, gemma_detection.detect_gemma2, check, network)


def gemma_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """transformers' config.json, unless it is another model's."""
    return checkpoint.config if checkpoint.config.get("model_type") == "gemma2" else {}


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool) -> comfy.sd.CLIP:
    """The host's CLIP of a checkpoint with the host's names; options as `load_gemma` takes them."""
    state_dict, spiece = checkpoint.state_dict, read_spiece(checkpoint)
    model_config, layers, parameters = configure(checkpoint, spiece)
    if layers:
        stored = comfy.sd.llama_detect([state_dict]).get("dtype_llama", torch.bfloat16)
    else:
        stored = comfy.utils.weight_dtype(state_dict)
    device = describe_device(comfy.model_management.text_encoder_device(), parameters)
    precision = gemma_precision(stored, requested(options.get("dtype"), "dtype", "text_enc"), device)
    model_options = {
        "dtype": precision.weights,
        COMPUTE: precision.compute,
        "quantization_metadata": comfy.sd.llama_detect([state_dict]).get("llama_quantization_metadata"),
    }
    tokenizer = {"spiece_model": spiece}
    clip = text_encoders.build(ENCODER, model_config, state_dict, parameters, disable_dynamic, model_options, tokenizer)
    clip.patcher.cached_patcher_init = (load_gemma_patcher, (checkpoint.source, options))
    if gemma_detection.is_base_gemma(checkpoint.path, gemma_config(checkpoint)):
        logger.warning(
            "SANA: %s is the base Gemma-2 2B by its name, but SANA was trained with the instruction-tuned one: use "
            "gemma-2-2b-it for images that follow the prompt.",
            checkpoint.name,
        )
    log_loaded(
        checkpoint, gemma_detection.describe_gemma(model_config, parameters, quantized.formats(layers)), precision
    )
    return clip


def load_gemma(path: str, options: dict[str, Any] | None = None, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """SANA's text encoder from a file or folder.

    options: "dtype" torch.dtype of the weights or None for the file's own. Raises ValueError or FileNotFoundError with
    one sentence.
    """
    return load(open_as(GEMMA, path), options or {}, disable_dynamic)


def load_gemma_patcher(path: str, options: dict | None = None, disable_dynamic: bool = False):
    return load_gemma(path, options, disable_dynamic).patcher


def tensors_of_file(checkpoint: Checkpoint) -> StateDict:
    """What the host's CLIPSave would write of a checkpoint with the host's names; raises as `configure` does."""
    spiece = read_spiece(checkpoint)
    configure(checkpoint, spiece)
    return checkpoint.state_dict | {SPIECE_KEY: spiece}


GEMMA = Family(
    name="a Gemma-2 text encoder",
    component="text_encoder",
    node="SANA Gemma Loader",
    marks=gemma_detection.GEMMA_MARKS,
    required=gemma_detection.GEMMA_KEYS,
    convert=to_host_gemma,
    recognizes=gemma_detection.is_gemma2,
    load=load,
    saving=Saving(gemma_rules, gemma_architecture, tensors_of_file),
)
