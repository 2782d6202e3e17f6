"""Which layout the keys of a state dict have, and its weights without what wraps them."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]

# Where trainers keep the weights among optimizer states and counters, in the order of choice: NVIDIA's own inference
# takes the weights that were trained, not their average.
NESTS = ("state_dict", "state_dict_ema", "model", "model_state_dict", "module", "ema", "model_ema", "ema_model")
# What stands before the keys of one component, in the order of choice: checkpoints of several parts, wrappers of
# trainers, and averages last, because of two sets of weights the trained one is taken.
WRAPPERS = ("module.", "ema_model.", "ema.")
PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "model.", "net.", *WRAPPERS),
    "vae": ("first_stage_model.", "vae.", *WRAPPERS),
    "text_encoder": (
        "text_encoders.gemma2_2b.transformer.",
        "gemma2_2b.transformer.",
        "text_encoder.",
        "text_encoders.gemma2_2b.",
        "text_encoders.t5xxl.transformer.",
        "t5xxl.transformer.",
        "text_encoders.t5xxl.",
        "text_encoders.gemma_2b.transformer.",
        "gemma_2b.transformer.",
        "text_encoders.gemma_2b.",
        *WRAPPERS,
    ),
    "controlnet": ("model.diffusion_model.", "model.", "net.", *WRAPPERS),
}
# Names that torch.compile, FSDP and activation checkpointing put into the middle of keys.
WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
NOT_OF_GEMMA = ("spiece_model", "logit_scale", "lm_head.weight")  # ends of keys: the tokenizer, and unused parts
BRANCH = "depthwise_lora"  # attribute of a layer: what a LoRA adds beside it that no weight can hold
WHOLE_LAYER = ("comfy_quant", "input_scale", "pre_quant_scale", "weight_scale_2")


NVIDIA = "NVIDIA"
LUMINA_AUTHORS = "Alpha-VLLM"


def is_nvidia_sana(state_dict: StateDict) -> bool:
    """True for NVIDIA's own SANA layout; PixArt shares most names, but not the caption norm and convolutional FFN."""
    return "attention_y_norm.weight" in state_dict or "blocks.0.mlp.inverted_conv.conv.weight" in state_dict


def is_original_dc_ae(state_dict: StateDict) -> bool:
    """True for DC-AE in the layout of its authors, where what has a shortcut lies below `main`."""
    return (
        "decoder.project_in.main.conv.weight" in state_dict
        or "encoder.project_out.main.op_list.0.conv.weight" in state_dict
    )


def split_rows(names: tuple[str, ...], suffix: str, tensor: Tensor) -> StateDict:
    """The parts of a fused layer's tensor; what quantization says of the whole layer goes to every part."""
    if suffix in WHOLE_LAYER or tensor.shape[:1] in ((), (1,)):
        return {f"{name}.{suffix}": tensor for name in names}
    return {f"{name}.{suffix}": part for name, part in zip(names, tensor.tensor_split(len(names)), strict=True)}


def to_host_gemma(state_dict: StateDict) -> StateDict:
    """A Gemma in any layout -> the host's names, below `model.`, without what the encoder does not read."""
    state_dict = {key: tensor for key, tensor in state_dict.items() if not key.endswith(NOT_OF_GEMMA)}
    if "embed_tokens.weight" in state_dict:
        return {f"model.{key}": tensor for key, tensor in state_dict.items()}
    return state_dict


def unwrap(key: str) -> str:
    """A key without the names of wrappers inside it: `blocks.0._orig_mod.attn.x` is `blocks.0.attn.x`."""
    return WRAPPED.sub("", key)


def strip_prefix(state_dict: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The part of a state dict below the first prefix that occurs, without it and without wrappers; all when none does.

    Repeated, because wrappers of training libraries nest: `module._orig_mod.x` is `x`.
    """
    state_dict = {unwrap(key): tensor for key, tensor in state_dict.items()}
    for prefix in prefixes:
        below = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        if below:
            return strip_prefix(below, prefixes)
    return state_dict


def nested_tensors(loaded: Mapping[str, Any]) -> StateDict:
    """The tensors of what torch.save wrote: those of the first of `NESTS` that holds any, else its own."""
    for name in NESTS:
        if isinstance(loaded.get(name), Mapping):
            below = nested_tensors(loaded[name])
            if below:
                return below
    return {key: value for key, value in loaded.items() if isinstance(value, Tensor)}


def layout_of(state_dict: StateDict) -> str:
    """Whose key names these are, for the log: "NVIDIA", "Alpha-VLLM", "DC-AE authors" or "diffusers"; no prefixes."""
    if is_nvidia_sana(state_dict):
        return NVIDIA
    if "layers.0.attention.wk_y.weight" in state_dict:
        return LUMINA_AUTHORS
    return "DC-AE authors" if is_original_dc_ae(state_dict) else "diffusers"
