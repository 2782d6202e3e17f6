"""Weights that bitsandbytes has quantized, without bitsandbytes: 8 bits as the host's int8, 4 bits widened to 16.

8 bits: `weight` int8 (N, K) and `SCB` (N,), the largest number of each row. 4 bits: `weight` with two numbers a byte,
the high one first; one scale for each block of numbers, which may be quantized itself; the rest as JSON in a tensor.
Source: state dicts of bitsandbytes 0.50 as diffusers and transformers save them.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]
INT8_MAX = 127
INT8_SCALES, INT8_ORDER = "SCB", "weight_format"
QUANT_STATE = "weight.quant_state.bitsandbytes__"
FOUR_BIT_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
KINDS = ("nf4", "fp4")
INT8_MARK = {"format": "int8_tensorwise"}


@dataclass(frozen=True)
class FourBits:
    """What the JSON beside a 4-bit weight says."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocksize: int
    nested_blocksize: int
    nested_offset: float


def unify_bitsandbytes(name: str, state_dict: StateDict) -> tuple[StateDict, dict[str, Any]]:
    """The state dict with 8-bit layers as the host stores them and 4-bit ones wide; and what to mark the former with.

    Raises ValueError for layers that lack a part or are damaged.
    """
    eight = [key.removesuffix(f".{INT8_SCALES}") for key in state_dict if key.endswith(f".{INT8_SCALES}")]
    four = {layer_of(key): key for key in state_dict if QUANT_STATE in key}
    four |= {layer: "" for layer in map(bare_layer, state_dict) if layer is not None and layer not in four}
    if not eight and not four:
        return state_dict, {}
    out = dict(state_dict)
    for layer in eight:
        out |= as_int8(name, layer, out)
    for layer, key in four.items():
        out[f"{layer}.weight"] = widened(name, layer, key, out)
    if eight:
        logger.info("SANA: %s has %d layers in 8 bits by bitsandbytes, used as the host's int8", name, len(eight))
    if four:
        logger.info(
            "SANA: %s has %d layers in 4 bits by bitsandbytes, widened to 16: they save disk, not memory",
            name,
            len(four),
        )
    return out, dict.fromkeys(eight, INT8_MARK)


def layer_of(key: str) -> str:
    return key.partition(f".{QUANT_STATE}")[0]


def bare_layer(key: str) -> str | None:
    """The layer of a 4-bit weight's scales."""
    return key.removesuffix(".weight.absmax") if key.endswith(".weight.absmax") else None


def as_int8(name: str, layer: str, state_dict: StateDict) -> StateDict:
    """The host's scales for an 8-bit layer, whose weight stays; bitsandbytes' own are taken out of the state dict."""
    scales, order = state_dict.pop(f"{layer}.{INT8_SCALES}"), state_dict.pop(f"{layer}.{INT8_ORDER}", None)
    weight = state_dict.get(f"{layer}.weight")
    fits = weight is not None and weight.dtype == torch.int8 and weight.ndim == 2 and scales.shape == weight.shape[:1]
    if not fits or order is not None and order.any():  # 0: by rows, which every version since 0.37 saves
        raise damaged(name, layer)
    return {f"{layer}.weight_scale": (scales.float() / INT8_MAX)[:, None]}


def widened(name: str, layer: str, key: str, state_dict: StateDict) -> Tensor:
    """The weight of a 4-bit layer in its 16-bit format; bitsandbytes' own tensors are taken out of the state dict."""
    parts = {part: state_dict.pop(f"{layer}.weight.{part}", None) for part in FOUR_BIT_PARTS}
    told, packed = state_dict.pop(key, None), state_dict.get(f"{layer}.weight")
    if told is None or packed is None or parts["absmax"] is None or parts["quant_map"] is None:
        raise damaged(name, layer)
    try:
        state = read_quant_state(told)
        weight = dequantize_4bit(packed, state, parts)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise damaged(name, layer) from error
    return weight.to(torch.bfloat16) if weight.dtype == torch.float32 else weight


def damaged(name: str, layer: str) -> ValueError:
    return ValueError(
        f"{name} is quantized by bitsandbytes, and what belongs to {layer}.weight is damaged or missing: download it "
        "again, or use the bf16 file of this model."
    )


def read_quant_state(tensor: Tensor) -> FourBits:
    """Raises ValueError, KeyError, TypeError or AttributeError for JSON that is damaged."""
    told: dict[str, Any] = json.loads(bytes(tensor.to(torch.uint8).tolist()))
    if told["quant_type"] not in KINDS:
        raise ValueError(told["quant_type"])
    return FourBits(
        tuple(told["shape"]),
        getattr(torch, told["dtype"]),
        int(told["blocksize"]),
        int(told.get("nested_blocksize") or 0),
        float(told.get("nested_offset") or 0.0),
    )


def dequantize_4bit(packed: Tensor, state: FourBits, parts: dict[str, Tensor | None]) -> Tensor:
    """The weight, of the state's shape and format. packed: bytes, under whatever format they were stored."""
    scales = parts["absmax"]
    if parts["nested_absmax"] is not None:
        codes = parts["nested_quant_map"].float()[scales.long()]
        scales = scale_blocks(codes, parts["nested_absmax"].float(), state.nested_blocksize) + state.nested_offset
    packed = packed.contiguous().reshape(-1).view(torch.uint8)
    both = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)
    numbers = parts["quant_map"].float()[both.int()][: torch.Size(state.shape).numel()]
    return scale_blocks(numbers, scales.float(), state.blocksize).to(state.dtype).reshape(state.shape)


def scale_blocks(numbers: Tensor, scales: Tensor, blocksize: int) -> Tensor:
    """Numbers (N,) times the scale of their block (ceil(N / blocksize),); the last block may be shorter."""
    padded = torch.nn.functional.pad(numbers, (0, len(scales) * blocksize - len(numbers)))
    return (padded.reshape(len(scales), blocksize) * scales[:, None]).reshape(-1)[: len(numbers)]
