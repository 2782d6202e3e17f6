"""Weights that bitsandbytes has quantized, without bitsandbytes: 8 bits as the host's int8, 4 bits widened to 16.

8 bits: `weight` int8 (N, K) and `SCB` (N,), the largest number of each row. 4 bits: `weight` with two numbers a byte,
the high one first; one scale for each block of numbers, which may be quantized itself; the rest as JSON in a tensor.
Source: state dicts of bitsandbytes 0.50 as diffusers and transformers save them.
"""

import json
import logging
import math
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
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NESTED = ("nested_blocksize", "nested_offset")  # of the JSON, where the scales are quantized themselves
BLOCKSIZES = tuple(2**power for power in range(5, 13))
CODES = 16  # numbers that 4 bits can be
INT8_MARK = {"format": "int8_tensorwise"}


@dataclass(frozen=True)
class FourBits:
    """What the JSON beside a 4-bit weight says."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocksize: int
    nested_blocksize: int  # 0 where the scales are not quantized
    nested_offset: float


def unify_bitsandbytes(name: str, state_dict: StateDict) -> tuple[StateDict, dict[str, Any]]:
    """The state dict with 8-bit layers as the host stores them and 4-bit ones wide; and what to mark the former with.

    Raises ValueError for layers that lack a part or are damaged.
    """
    ends = (f".{INT8_SCALES}", f".{INT8_ORDER}")
    eight = list(dict.fromkeys(key.rpartition(".")[0] for key in state_dict if key.endswith(ends)))
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
    scales, order = (state_dict.pop(f"{layer}.{part}", None) for part in (INT8_SCALES, INT8_ORDER))
    weight = state_dict.get(f"{layer}.weight")
    if scales is None:
        raise damaged(name, layer, f"{INT8_SCALES} is missing")
    if weight is None or weight.dtype != torch.int8 or weight.ndim != 2:
        raise damaged(name, layer, "the weight is no int8 matrix")
    if order is not None and order.any():  # 0: by rows, which every version since 0.37 saves
        raise damaged(name, layer, f"{INT8_ORDER} names another order than rows")
    if scales.shape != weight.shape[:1]:
        raise damaged(name, layer, f"{INT8_SCALES} has shape {tuple(scales.shape)}, expected {(len(weight),)}")
    if not scales.is_floating_point() or not torch.isfinite(scales).all() or (scales < 0).any():
        raise damaged(name, layer, f"{INT8_SCALES} holds other than finite, positive numbers")
    if weight[scales == 0].any():  # a row of zeros has the scale 0, and only such a row
        raise damaged(name, layer, f"{INT8_SCALES} is 0 for rows that are not")
    return {f"{layer}.weight_scale": (scales.float() / INT8_MAX)[:, None]}


def widened(name: str, layer: str, key: str, state_dict: StateDict) -> Tensor:
    """The weight of a 4-bit layer in its 16-bit format; bitsandbytes' own tensors are taken out of the state dict."""
    parts = {part: state_dict.pop(f"{layer}.weight.{part}", None) for part in FOUR_BIT_PARTS}
    told, packed = state_dict.pop(key, None), state_dict.get(f"{layer}.weight")
    needed = {"quant_state": told, "weight": packed, "absmax": parts["absmax"], "quant_map": parts["quant_map"]}
    missing = [part for part, tensor in needed.items() if tensor is None]
    if missing:
        raise damaged(name, layer, f"{missing[0]} is missing")
    try:
        state = read_quant_state(told, key.rpartition(QUANT_STATE)[2])
        check_parts(packed, state, parts)
        weight = dequantize_4bit(packed, state, parts)
    except KeyError as error:
        raise damaged(name, layer, f"{error.args[0]} is missing") from error
    except (ValueError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise damaged(name, layer, str(error).splitlines()[0] if str(error) else "") from error
    if not torch.isfinite(weight).all():
        raise damaged(name, layer, "it holds NaN or infinity")
    return weight.to(torch.bfloat16) if weight.dtype == torch.float32 else weight


def damaged(name: str, layer: str, what: str) -> ValueError:
    return ValueError(
        f"{name} is quantized by bitsandbytes, and what belongs to {layer}.weight is damaged or missing ({what}): "
        "download it again, or use the bf16 file of this model."
    )


def read_quant_state(tensor: Tensor, kind: str) -> FourBits:
    """What the JSON says. kind: of the tensor's name. Raises ValueError, KeyError or TypeError for JSON that is damaged
    or says what bitsandbytes never does."""
    if tensor.dtype != torch.uint8:
        raise ValueError("quant_state is no text")
    try:
        told: dict[str, Any] = json.loads(bytes(tensor.tolist()))
    except ValueError as error:
        raise ValueError("quant_state is no JSON") from error
    if not isinstance(told, dict):
        raise ValueError("quant_state is no JSON object")
    shape, dtype, blocksize = told["shape"], told["dtype"], told["blocksize"]
    if told["quant_type"] not in KINDS or told["quant_type"] != kind:
        raise ValueError(f"quant_type is {told['quant_type']}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}, expected {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError(f"shape is {shape}")
    nested, offset = 0, 0.0
    if any(part.startswith("nested_") for part in told):
        nested, offset = (told[part] for part in NESTED)
    for part, size in (("blocksize", blocksize), ("nested_blocksize", nested)):
        if type(size) is not int or size not in BLOCKSIZES and (part == "blocksize" or told.keys() & {part}):
            raise ValueError(f"{part} is {size}")
    if type(offset) not in (int, float) or not math.isfinite(offset):
        raise ValueError(f"nested_offset is {offset}")
    return FourBits(tuple(shape), DTYPES[dtype], blocksize, nested, float(offset))


def check_parts(packed: Tensor, state: FourBits, parts: dict[str, Tensor | None]) -> None:
    """Raises ValueError for tensors of another size than the JSON says, and KeyError for one that is missing."""
    count, absmax = math.prod(state.shape), parts["absmax"]
    blocks = -(-count // state.blocksize)
    sizes = {"weight": (packed.nbytes, -(-count // 2)), "absmax": (absmax.numel(), blocks),
             "quant_map": (parts["quant_map"].numel(), CODES)}  # fmt: skip
    if absmax.dtype == torch.uint8 and not state.nested_blocksize:
        raise KeyError("nested_blocksize")
    if state.nested_blocksize:
        for part in ("nested_absmax", "nested_quant_map"):
            if parts[part] is None:
                raise KeyError(part)
        if absmax.dtype != torch.uint8:
            raise ValueError("absmax has other numbers than its quant_state says")
        sizes |= {"nested_absmax": (parts["nested_absmax"].numel(), -(-blocks // state.nested_blocksize)),
                  "nested_quant_map": (parts["nested_quant_map"].numel(), 256)}  # fmt: skip
    for part, (size, expected) in sizes.items():
        if size != expected:
            unit = "bytes" if part == "weight" else "numbers"
            raise ValueError(f"{part} has {size} {unit}, expected {expected}")


def dequantize_4bit(packed: Tensor, state: FourBits, parts: dict[str, Tensor | None]) -> Tensor:
    """The weight, of the state's shape and format. packed: bytes, under whatever format they were stored."""
    scales = parts["absmax"]
    if state.nested_blocksize:
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
