"""Gemma-1 2B, Lumina-Next's text encoder: a checkpoint -> CLIP of the host, in the order detect, precision, build."""

from typing import Any

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
from ..runtime.device import requested
from ..runtime.precision import Device, gemma_precision
from .detection import GEMMA_1_KEYS, check_gemma_1, describe_gemma_1, detect_gemma_1, is_gemma_1
from .quantization import gemma_1_architecture, gemma_1_rules
from .text_encoder import CLIP_NAME, Gemma1, Gemma1Clip, Gemma1Tokenizer, LuminaTextEncoder

ENCODER = text_encoders.Encoder(CLIP_NAME, Gemma1Clip, Gemma1Tokenizer, LuminaTextEncoder)
FLOAT32_ONLY = Device("any device")  # the host computes its Llama in float32 wherever it runs


def configure(checkpoint: Checkpoint, spiece: Tensor) -> tuple[dict[str, int], dict[str, str], int]:
    """The host's configuration, quantized layers with their formats, number of parameters.

    Raises ValueError for another Gemma-1 than Lumina-Next's, and for a tokenizer or tensors that do not fit it.
    """
    source = checkpoint.config if checkpoint.config.get("model_type") == "gemma" else {}

    def check(sizes: dict[str, int]) -> None:
        check_gemma_1(checkpoint.name, sizes, source)
        check_tokenizer(checkpoint.name, spiece, sizes["vocab_size"])

    def network(sizes: dict[str, int]) -> Gemma1:
        return Gemma1(sizes, torch.bfloat16, "meta", torch.nn)

    return text_encoders.configure(checkpoint, GEMMA_1.name, detect_gemma_1, check, network)


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool) -> comfy.sd.CLIP:
    """The host's CLIP of a checkpoint with the host's names; options as `load_gemma_1` takes them."""
    state_dict, spiece = checkpoint.state_dict, read_spiece(checkpoint)
    model_config, layers, parameters = configure(checkpoint, spiece)
    # A quantized file's other weights are few, and narrow layers keep their format in any case.
    stored = torch.bfloat16 if layers else comfy.utils.weight_dtype(state_dict)
    precision = gemma_precision(stored, requested(options.get("dtype"), "dtype", "text_enc"), FLOAT32_ONLY)
    model_options = {
        "dtype": precision.weights,
        "quantization_metadata": comfy.sd.llama_detect([state_dict]).get("llama_quantization_metadata"),
    }
    tokenizer = {"spiece_model": spiece}
    clip = text_encoders.build(ENCODER, model_config, state_dict, parameters, disable_dynamic, model_options, tokenizer)
    clip.patcher.cached_patcher_init = (load_gemma_1_patcher, (checkpoint.source, options))
    log_loaded(checkpoint, describe_gemma_1(model_config, parameters, quantized.formats(layers)), precision)
    return clip


def load_gemma_1(path: str, options: dict[str, Any] | None = None, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Lumina-Next's text encoder from a file or folder.

    options: "dtype" torch.dtype of the weights or None for the file's own. Raises ValueError or FileNotFoundError with
    one sentence.
    """
    return load(open_as(GEMMA_1, path), options or {}, disable_dynamic)


def load_gemma_1_patcher(path: str, options: dict | None = None, disable_dynamic: bool = False):
    return load_gemma_1(path, options, disable_dynamic).patcher


def tensors_of_file(checkpoint: Checkpoint) -> StateDict:
    """What the host's CLIPSave would write of a checkpoint with the host's names; raises as `configure` does."""
    spiece = read_spiece(checkpoint)
    configure(checkpoint, spiece)
    return checkpoint.state_dict | {SPIECE_KEY: spiece}


GEMMA_1 = Family(
    name="a Gemma-1 text encoder",
    component="text_encoder",
    node="SANA Gemma Loader",
    marks=(),  # Llama's names: the vocabulary tells it (`files/foreign_files.py`)
    required=GEMMA_1_KEYS,
    convert=to_host_gemma,
    recognizes=is_gemma_1,
    load=load,
    saving=Saving(gemma_1_rules, gemma_1_architecture, tensors_of_file),
)
