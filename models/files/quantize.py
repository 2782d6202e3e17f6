"""Wide weights into the host's own narrow formats: which format each layer gets, and its tensors in the file.

Pure: tensors in, tensors out, one layer at a time. Which layers of a family may be narrow is in its `quantization.py`;
writing the file is in `quantized_file.py`, reading it in `quantized.py`.
Source: the formats and their kernels are those of the host (`comfy.quant_ops`, comfy-kitchen).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor

from .layout import StateDict
from .quantized import BLOCKS, MARK, scale_table, stored_shape

PRESETS = {"int8": "int8_tensorwise", "fp8": "float8_e4m3fn", "nvfp4": "nvfp4", "w4a4": "convrot_w4a4"}
INT8, FP8, NVFP4, W4A4 = PRESETS.values()
FOUR_BITS = (NVFP4, W4A4)
GROUPS = (256, 64, 16)  # of ConvRot's rotation, in the order of choice; powers of 4, as its Hadamard matrices need
W4A4_MULTIPLE = 64  # columns that share an activation scale in the host's 4-bit kernel
CHUNK = 1 << 24  # numbers of a weight that are quantized at once where its rows do not depend on each other
FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True)
class Rules:
    """Which layers of a family may be narrow, each pattern searched for in a layer's name.

    narrow: linear layers, 1x1 convolutions included. tables: embeddings, which the host reads narrow in 8 bits only.
    sensitive: layers that 4-bit presets store in int8. sensitive_w4a4: those that only w4a4 does.
    wide_products: layers whose inputs stay wide in float8, because one scale for all of them costs too much.
    wide: pattern -> why such layers stay wide. half: the 16-bit format of what stays wide. why_sensitive: of the
    sensitive layers, for the report.
    """

    narrow: str
    tables: str = "$^"
    sensitive: str = "$^"
    sensitive_w4a4: str = "$^"
    wide_products: str = "$^"
    wide: tuple[tuple[str, str], ...] = ()
    half: torch.dtype = torch.bfloat16
    why_sensitive: str = "it loses too much in 4 bits"


# Of the Gemmas, which share the names of Llama's layers.
DECODER_RULES = Rules(
    narrow=r"^model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$",
    tables=r"^model\.embed_tokens$",
)


@dataclass(frozen=True)
class Narrow:
    """How one layer is stored. group: of ConvRot, 0 without. why: for another format than the preset's."""

    kind: str
    group: int = 0
    wide_product: bool = False
    why: str = ""

    def mark(self) -> Tensor:
        """What the host writes beside the weight: JSON as uint8."""
        told = {"format": self.kind}
        if self.wide_product:
            told["full_precision_matrix_mult"] = True
        if self.kind == INT8 and self.group:
            told["convrot"] = True
        if self.group:
            told["convrot_groupsize"] = self.group
        return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


@dataclass(frozen=True)
class Plan:
    """Format of every layer that becomes narrow, and why the others stay wide, by their names."""

    narrow: Mapping[str, Narrow]
    wide: Mapping[str, str]
    half: torch.dtype


def largest_group(columns: int) -> int:
    """ConvRot's group for a layer of so many inputs; 0 where none divides them."""
    return next((group for group in GROUPS if columns % group == 0), 0)


def matrix_shape(tensor: Tensor) -> tuple[int, int] | None:
    """(N, K) of a weight that multiplies tokens: a linear layer's, or a 1x1 convolution's (N, K, 1, 1)."""
    if tensor.ndim == 2 or tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor.shape[0], tensor.shape[1]
    return None


def choose(layer: str, columns: int, preset: str, rules: Rules) -> Narrow:
    """The format of a layer that may be narrow."""
    kind, why = PRESETS[preset], ""
    if kind in FOUR_BITS:
        if re.search(rules.tables, layer):
            kind, why = INT8, "the host reads no 4-bit table"
        elif re.search(rules.sensitive, layer) or kind == W4A4 and re.search(rules.sensitive_w4a4, layer):
            kind, why = INT8, rules.why_sensitive
        elif kind == W4A4 and columns % W4A4_MULTIPLE:
            kind, why = INT8, f"{W4A4_MULTIPLE} does not divide its inputs"
    group = largest_group(columns) if kind in (INT8, W4A4) else 0
    return Narrow(kind, group, kind == FP8 and bool(re.search(rules.wide_products, layer)), why)


def plan(state_dict: Mapping[str, Tensor], preset: str, rules: Rules) -> Plan:
    """What becomes of every layer of an unquantized state dict, in the layout of files without prefix."""
    narrow, wide = {}, {}
    for key, tensor in state_dict.items():
        layer, _, name = key.rpartition(".")
        if name != "weight" or tensor.ndim < 2:
            continue
        shape = matrix_shape(tensor)
        reason = next((why for pattern, why in rules.wide if re.search(pattern, layer)), None)
        if reason is None and shape is not None and re.search(f"{rules.narrow}|{rules.tables}", layer):
            narrow[layer] = choose(layer, shape[1], preset, rules)
        else:
            wide[layer] = reason or "no rule of its family names it"
    return Plan(narrow, wide, rules.half)


def quantize_weight(weight: Tensor, narrow: Narrow) -> StateDict:
    """A weight (N, K) or (N, K, 1, 1) in a format -> the ends of its keys -> tensors, the mark among them."""
    weight = weight.flatten(1) if weight.ndim == 4 else weight
    if narrow.kind == INT8:
        rows = max(1, CHUNK // weight.shape[1])
        options = {"per_channel": True, "convrot": bool(narrow.group)}
        options |= {"convrot_groupsize": narrow.group} if narrow.group else {}
        parts = [from_float(part, INT8, **options) for part in weight.split(rows)]
    elif narrow.kind == FP8:
        rows = max(1, CHUNK // weight.shape[1])
        largest = max(float(part.abs().amax()) for part in weight.split(rows))
        scale = torch.tensor(largest, dtype=torch.float32) / FLOAT8_MAX if largest else torch.ones(())
        parts = [from_float(part, FP8, scale=scale) for part in weight.split(rows)]
    elif narrow.kind == NVFP4:
        parts = [from_float(weight, NVFP4, scale="recalculate" if weight.any() else 1.0)]
    else:
        parts = [from_float(weight, W4A4, convrot_groupsize=narrow.group)]
    return joined(parts) | {MARK: narrow.mark()}


def from_float(weight: Tensor, kind: str, **options) -> StateDict:
    tensor = QuantizedTensor.from_float(weight.float(), QUANT_ALGOS[kind]["comfy_tensor_layout"], **options)
    return tensor.state_dict("weight")


def joined(parts: list[StateDict]) -> StateDict:
    """Parts of a weight by rows as one; a scale of the whole weight is the same in all of them."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return {key: torch.cat([part[key] for part in parts]) if first[key].ndim else first[key] for key in first}


def stored(shape: tuple[int, int], narrow: Narrow) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Format and shape of every tensor that `quantize_weight` makes of a weight (N, K), without making it."""
    (rows, columns), kind = shape, narrow.kind
    scale = {
        INT8: {"weight_scale": (torch.float32, (rows, 1))},
        FP8: {"weight_scale": (torch.float32, ())},
        NVFP4: {
            "weight_scale": (torch.float8_e4m3fn, scale_table(rows, columns, BLOCKS[NVFP4][0])),
            "weight_scale_2": (torch.float32, ()),
        },
        W4A4: {"weight_scale": (torch.float32, (rows,))},
    }[kind]
    weight = {"weight": (QUANT_ALGOS[kind]["storage_t"], stored_shape(kind, torch.Size(shape)))}
    return weight | scale | {MARK: (torch.uint8, tuple(narrow.mark().shape))}


def wide_dtype(dtype: torch.dtype, half: torch.dtype) -> torch.dtype:
    """Format of a tensor that stays wide: no more than 16 bits of floating point, anything else as it is."""
    return half if dtype in (torch.float32, torch.float64) else dtype


def layout_of_file(state_dict: Mapping[str, Tensor], planned: Plan) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Format and shape of every tensor of the quantized file, from shapes alone."""
    found = {}
    for key, tensor in state_dict.items():
        layer, _, name = key.rpartition(".")
        if name == "weight" and layer in planned.narrow:
            parts = stored(matrix_shape(tensor), planned.narrow[layer])
            found |= {f"{layer}.{end}": part for end, part in parts.items()}
        else:
            found[key] = wide_dtype(tensor.dtype, planned.half), tuple(tensor.shape)
    return found


def quantized_tensors(name: str, tensors: Iterable[tuple[str, Tensor]], planned: Plan) -> Iterator[StateDict]:
    """The tensors of the quantized file, those that one wide tensor becomes at a time.

    name: of what is quantized, for messages. tensors: the items of a state dict, of which none is held longer.
    Raises ValueError naming the first layer with NaN or infinity, or whose scales or 16 bits cannot hold its numbers.
    """
    for key, tensor in tensors:
        layer, _, end = key.rpartition(".")
        tensor = tensor.to("cpu")  # here the host merges LoRAs into a weight that it has not merged them into yet
        if not finite(tensor):
            raise ValueError(
                f"{name} holds NaN or infinity in {key}: lower the strength of its LoRAs, or load it without them, and "
                "if it stays download the weights again."
            )
        if end == "weight" and layer in planned.narrow:
            parts = {f"{layer}.{part}": made for part, made in quantize_weight(tensor, planned.narrow[layer]).items()}
        else:
            parts = {key: tensor.to(wide_dtype(tensor.dtype, planned.half))}
        if not all(map(finite, parts.values())):
            raise ValueError(
                f"{name} has numbers of up to {float(tensor.abs().max()):.3g} in {key}, more than the file's format "
                "holds: lower the strength of its LoRAs, or download the weights again."
            )
        yield parts


def finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinity; without a copy of the tensor, but for formats of 8 bits."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(end) for end in (tensor.float() if tensor.itemsize == 1 else tensor).aminmax())


def quantize_state_dict(state_dict: Mapping[str, Tensor], preset: str, rules: Rules) -> StateDict:
    """The state dict of the quantized file, whole; for what fits into memory twice."""
    parts = quantized_tensors("The state dict", state_dict.items(), plan(state_dict, preset, rules))
    return {key: tensor for part in parts for key, tensor in part.items()}
