"""Weights the host has quantized: its marks and scales, brought to one form, checked, and taken out of the picture.

A quantized layer is a narrow `weight`, scales, and `comfy_quant`, the format as JSON in a uint8 tensor. Older files
mark the whole file by `scaled_fp8`, others name the layers in their metadata; the host turns both into this form.
"""

import json
from collections.abc import Callable
from typing import Any

import comfy.utils
import torch
from comfy.ops import get_layout_class
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn

StateDict = dict[str, Tensor]
MARK = "comfy_quant"
METADATA = "_quantization_metadata"
# Besides the weight and the mark: what a layer must have (where a format is not listed, a weight_scale) and may have.
REQUIRED = {"nvfp4": ("weight_scale", "weight_scale_2")}
OPTIONAL = ("input_scale", "pre_quant_scale")
# What the layout of weights and scales is known of here. Newer hosts read more, with other side tensors.
FORMATS = ("convrot_w4a4", "float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "mxfp8", "nvfp4")
SCALES = ("weight_scale", "weight_scale_2", *OPTIONAL)
SIDE_TENSORS = (*SCALES, MARK)
# Formats with a scale for each block of a row: numbers in a block, and the scale's own format.
BLOCKS = {"nvfp4": (16, torch.float8_e4m3fn), "mxfp8": (32, torch.float8_e8m0fnu)}
GROUP = 256  # of ConvRot, where a mark does not say it
TILE = (128, 4)  # rows and columns to which a table of block scales is padded


def layers_in_metadata(name: str, metadata: dict[str, str] | None) -> dict[str, Any]:
    """Layer -> what a file's header says of its quantization. Raises ValueError for a header that is damaged."""
    try:
        return dict(json.loads((metadata or {})[METADATA])["layers"]) if METADATA in (metadata or {}) else {}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"The configuration saved in {name} is damaged: save it again.") from error


def unify_marks(name: str, state_dict: StateDict, layers: dict[str, Any]) -> StateDict:
    """The state dict with the host's present marks, whatever marks it has.

    layers: those of the file's header, under the names of the state dict. Raises ValueError for marks that are damaged.
    """
    marks = {METADATA: json.dumps({"layers": layers})} if layers else {}
    try:
        return comfy.utils.convert_old_quants(state_dict, "", metadata=marks)[0]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"The configuration saved in {name} is damaged: save it again.") from error


def quantized_layers(state_dict: StateDict) -> dict[str, str]:
    """Layer -> format. Raises json.JSONDecodeError for a mark that is damaged."""
    layers = {}
    for key, tensor in state_dict.items():
        layer, _, name = key.rpartition(".")
        if name == MARK:
            told = json.loads(bytes(tensor.tolist()))
            layers[layer] = str(told.get("format") if isinstance(told, dict) else told)
    return layers


def check_quantized(name: str, state_dict: StateDict, layers: dict[str, str]) -> None:
    """Raises ValueError for a format that cannot be read, and for a layer that lacks a part or has one of another form.

    state_dict: in the network's layout.
    """
    for layer, kind in layers.items():
        if kind in QUANT_ALGOS and kind not in FORMATS:
            raise ValueError(
                f"{name} is quantized as {kind} ({layer}), which is not supported: use a file of the model in one of "
                f"{', '.join(FORMATS)}, or one that is not quantized."
            )
        if kind not in QUANT_ALGOS:
            raise ValueError(
                f"{name} is quantized as {kind} ({layer}), and this ComfyUI reads {', '.join(sorted(QUANT_ALGOS))}: "
                "update ComfyUI, or use another file of the model."
            )
        for part in ("weight", *REQUIRED.get(kind, ("weight_scale",))):
            if f"{layer}.{part}" not in state_dict:
                raise ValueError(f"{name} is quantized as {kind} but {layer}.{part} is missing: download it again.")
        if state_dict[f"{layer}.weight"].ndim != 2:
            raise ValueError(f"{name} has {layer} quantized, which is no linear layer: use another file of the model.")
        wrong = wrong_part(state_dict, layer, kind)
        if wrong:
            raise ValueError(f"{name} is quantized as {kind} but {layer}.{wrong}: download it again.")


def wrong_part(state_dict: StateDict, layer: str, kind: str) -> str:
    """What of a layer does not fit its format, after the layer's name; "" where all does."""
    weight, scale = state_dict[f"{layer}.weight"], state_dict[f"{layer}.weight_scale"]
    codes = QUANT_ALGOS[kind]["storage_t"]
    if weight.dtype != codes:
        return f"weight has {spelled(weight.dtype)} numbers, expected {spelled(codes)}"
    rows, columns = weight.shape
    columns *= width_of_code(kind)
    if kind in BLOCKS and scale.itemsize != 1:
        return f"weight_scale has {spelled(scale.dtype)} numbers, expected {spelled(BLOCKS[kind][1])}"
    allowed = scale_shapes(kind, rows, columns)
    if tuple(scale.shape) not in allowed:
        return f"weight_scale has shape {tuple(scale.shape)}, expected {' or '.join(map(str, allowed))}"
    if kind == "nvfp4" and state_dict[f"{layer}.weight_scale_2"].numel() != 1:
        return f"weight_scale_2 has shape {tuple(state_dict[f'{layer}.weight_scale_2'].shape)}, expected one number"
    mark = json.loads(bytes(state_dict[f"{layer}.{MARK}"].tolist()))
    if not isinstance(mark, dict):
        return f"{MARK} is a JSON {type(mark).__name__}, expected an object"
    group = rotation_group(mark, kind)
    if group is not None and not (is_power_of_4(group) and columns % group == 0):
        return f"{MARK} rotates groups of {group} of {columns} inputs, expected a power of 4 that divides them"
    return ""


def spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def width_of_code(kind: str) -> int:
    """Numbers that a stored one holds."""
    return 2 if kind in ("nvfp4", "convrot_w4a4") else 1


def scale_shapes(kind: str, rows: int, columns: int) -> list[tuple[int, ...]]:
    """Shapes that the host takes for the weight_scale of a weight (rows, columns)."""
    if kind in BLOCKS:
        return [scale_table(rows, columns, BLOCKS[kind][0])]
    if kind == "convrot_w4a4":
        return [(rows,), (rows, 1)]
    one = [(), (1,), (1, 1)]
    return [(rows, 1), *one] if kind == "int8_tensorwise" else one


def scale_table(rows: int, columns: int, block: int) -> tuple[int, int]:
    """Shape of a table of scales, one per block of a row, padded to the tiles in which a GPU reads them."""
    blocks = -(-columns // block)
    return round_up(rows, TILE[0]), round_up(blocks, TILE[1])


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def rotation_group(mark: dict[str, Any], kind: str) -> Any:
    """ConvRot's group as the host reads it from a mark; None for a layer that is not rotated."""
    inner = mark.get("params")
    told = (inner if isinstance(inner, dict) else {}) | mark
    rotated = kind == "convrot_w4a4" or kind == "int8_tensorwise" and told.get("convrot", False)
    return told.get("convrot_groupsize", GROUP) if rotated else None


def is_power_of_4(number: Any) -> bool:
    return type(number) is int and number > 0 and number.bit_count() == 1 and number.bit_length() % 2 == 1


def scale_view(state_dict: StateDict, layers: dict[str, str]) -> StateDict:
    """The state dict with scales of blocks as floating-point numbers, which older files store as bytes."""
    view = dict(state_dict)
    for layer, kind in layers.items():
        key = f"{layer}.weight_scale"
        if kind in BLOCKS and view[key].itemsize == 1:
            view[key] = view[key].view(BLOCKS[kind][1])
    return view


def plain_view(state_dict: StateDict, layers: dict[str, str]) -> StateDict:
    """The state dict as if unquantized: no scales, no marks, packed weights as meta tensors of their full width."""
    side = {f"{layer}.{part}" for layer in layers for part in SIDE_TENSORS}
    view = {key: tensor for key, tensor in state_dict.items() if key not in side}
    for layer, kind in layers.items():
        weight = view[f"{layer}.weight"]
        rows, columns = weight.shape
        if width_of_code(kind) != 1:
            view[f"{layer}.weight"] = torch.empty(rows, columns * width_of_code(kind), device="meta")
    return view


def stored_shape(kind: str, shape: torch.Size) -> tuple[int, ...]:
    """Shape in the file of a quantized weight of a layer's shape; block formats pad it, 4-bit ones pack two a byte."""
    layout = get_layout_class(QUANT_ALGOS[kind]["comfy_tensor_layout"])
    if hasattr(layout, "get_storage_shape"):
        return tuple(layout.get_storage_shape(tuple(shape)))
    return (shape[0], shape[1] // 2) if kind == "convrot_w4a4" else tuple(shape)


def stored_shapes(expected: dict[str, Tensor], layers: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Shape in the file of every tensor of an unquantized model."""
    shapes = {key: tuple(tensor.shape) for key, tensor in expected.items()}
    for layer, kind in layers.items():
        if f"{layer}.weight" in shapes:
            shapes[f"{layer}.weight"] = stored_shape(kind, expected[f"{layer}.weight"].shape)
    return shapes


def formats(layers: dict[str, str]) -> str:
    """The formats that occur, "" for none."""
    return ", ".join(sorted(set(layers.values())))


def make_movable(network: nn.Module) -> None:
    """Lets the host move quantized layers in inference mode, where it runs its nodes, if they were loaded outside.

    torch can make no parameter of such a tensor in inference mode otherwise.
    """
    kinds: dict[type, type] = {}
    for module in network.modules():
        if isinstance(getattr(module, "weight", None), QuantizedTensor):
            kind = type(module)
            module.__class__ = kinds.setdefault(kind, moved_outside_inference(kind))


def moved_outside_inference(kind: type[nn.Module]) -> type[nn.Module]:
    def apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        with torch.inference_mode(False), torch.no_grad():
            return kind._apply(module, fn, recurse)

    return type(kind.__name__, (kind,), {"_apply": apply})
