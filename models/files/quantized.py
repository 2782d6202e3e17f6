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
SIDE_TENSORS = ("weight_scale", "weight_scale_2", MARK, *OPTIONAL)


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
    """Raises ValueError for a format that cannot be read, and for a layer without its weight or a scale."""
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


def plain_view(state_dict: StateDict, layers: dict[str, str]) -> StateDict:
    """The state dict as if unquantized: no scales, no marks, packed weights as meta tensors of their full width."""
    side = {f"{layer}.{part}" for layer in layers for part in SIDE_TENSORS}
    view = {key: tensor for key, tensor in state_dict.items() if key not in side}
    for layer, kind in layers.items():
        weight = view[f"{layer}.weight"]
        rows, columns = weight.shape
        packed = columns * 2 if QUANT_ALGOS[kind]["storage_t"] == torch.uint8 or kind == "convrot_w4a4" else columns
        if packed != columns:
            view[f"{layer}.weight"] = torch.empty(rows, packed, device="meta")
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
