"""T5-XXL, PixArt's text encoder: a checkpoint -> CLIP of the host, in the order detect, precision, build."""

from functools import partial
from typing import Any

import comfy.sd
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.t5
import comfy.utils
import torch

from ..files import quantized, text_encoders
from ..files.family import Family, Saving, open_as
from ..files.layout import StateDict
from ..files.reader import Checkpoint
from ..files.validation import log_loaded
from ..runtime.device import requested
from ..runtime.precision import Precision, Request
from .detection import T5_KEYS, T5_MARKS, check_t5, describe_t5, detect_t5, is_t5
from .quantization import t5_architecture, t5_rules
from .text_encoder import CLIP_NAME, T5Clip, T5TextEncoder, T5Tokenizer

ENCODER = text_encoders.Encoder(CLIP_NAME, T5Clip, T5Tokenizer, T5TextEncoder)
EMBEDDING, TIED_EMBEDDING = "shared.weight", "encoder.embed_tokens.weight"
# Of what detection does not read; the same in every T5 v1.1.
FIXED = {"model_type": "t5", "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}
IGNORED = ("decoder.", "lm_head.", "logit_scale", "spiece_model")  # of the whole T5, and of the host's files


def convert_t5(state_dict: StateDict) -> StateDict:
    """Any layout -> the host's names, the encoder alone."""
    out = {key: tensor for key, tensor in state_dict.items() if not key.startswith(IGNORED)}
    tied = out.pop(TIED_EMBEDDING, None)
    return out if tied is None or EMBEDDING in out else out | {EMBEDDING: tied}


def configure(checkpoint: Checkpoint) -> tuple[dict[str, int], dict[str, str], int]:
    """The host's configuration, quantized layers with their formats, number of parameters.

    Raises ValueError for another T5 than PixArt's, and for tensors that do not fit it.
    """

    def network(sizes: dict[str, int]) -> torch.nn.Module:
        return comfy.text_encoders.t5.T5(sizes | FIXED, torch.bfloat16, "meta", torch.nn)

    return text_encoders.configure(checkpoint, T5.name, detect_t5, partial(check_t5, checkpoint.name), network)


def format_of_rest(state_dict: StateDict) -> torch.dtype:
    """Format of what is wide in a quantized file: of the table, or of the norms where it is narrow too.

    transformers keeps norms and `wo`, a fifth of the weights, in float32 whatever the rest has.
    """
    table = state_dict[EMBEDDING].dtype
    return table if table in (torch.float16, torch.bfloat16) else state_dict[T5_KEYS[-1]].dtype


def t5_precision(stored: torch.dtype, request: Request) -> Precision:
    """Formats of the text encoder, which the host always computes in float32; only its weights can be narrow."""
    if request.dtype is None:
        return Precision(stored, torch.float32, False, "as the file stores them")
    return Precision(request.dtype, torch.float32, False, f"asked for by {request.by}")


def load(checkpoint: Checkpoint, options: dict[str, Any], disable_dynamic: bool) -> comfy.sd.CLIP:
    """The host's CLIP of a checkpoint with the host's names; options as `load_t5` takes them."""
    found, layers, parameters = configure(checkpoint)
    state_dict = checkpoint.state_dict
    stored = format_of_rest(state_dict) if layers else comfy.utils.weight_dtype(state_dict)
    precision = t5_precision(stored, requested(options.get("dtype"), "dtype", "text_enc"))
    host = comfy.text_encoders.sd3_clip.t5_xxl_detect(state_dict)
    model_options = {
        "dtype": precision.weights,
        f"{CLIP_NAME}_quantization_metadata": host.get("t5_quantization_metadata"),
    }
    clip = text_encoders.build(ENCODER, found, state_dict, parameters, disable_dynamic, model_options)
    clip.patcher.cached_patcher_init = (load_t5_patcher, (checkpoint.source, options))
    log_loaded(checkpoint, describe_t5(found, parameters, quantized.formats(layers)), precision)
    return clip


def load_t5(path: str, options: dict[str, Any] | None = None, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """PixArt's text encoder from a file, any shard of a set, or a folder.

    options: "dtype" torch.dtype of the weights or None for the file's own. Raises ValueError or FileNotFoundError with
    one sentence.
    """
    return load(open_as(T5, path), options or {}, disable_dynamic)


def load_t5_patcher(path: str, options: dict | None = None, disable_dynamic: bool = False):
    return load_t5(path, options, disable_dynamic).patcher


def tensors_of_file(checkpoint: Checkpoint) -> StateDict:
    """What the host's CLIPSave would write of a checkpoint with the host's names; raises as `configure` does."""
    configure(checkpoint)
    return checkpoint.state_dict


T5 = Family(
    name="a T5 text encoder",
    component="text_encoder",
    node="SANA Gemma Loader",
    marks=T5_MARKS,
    required=T5_KEYS,
    convert=convert_t5,
    recognizes=is_t5,
    load=load,
    saving=Saving(t5_rules, t5_architecture, tensors_of_file),
)
