"""Quantized files as the host and bitsandbytes write them, by their own kernels, and loading as its executor does."""

import json
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from safetensors.torch import load_file, save_file
from sana_native.models.gemma import loader as gemma_loader
from sana_native.models.sana import loader as sana_loader
from sana_native.tests.support import workbench as bench
from torch import Tensor


def mark(kind: str) -> Tensor:
    return torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)


def is_linear(key: str, tensor: Tensor) -> bool:
    return key.endswith(".weight") and tensor.ndim == 2


def quantized(state_dict: dict[str, Tensor], kind: str, choose=is_linear) -> dict[str, Tensor]:
    """The state dict with its linear layers as the host writes them."""
    options = {} if kind in ("mxfp8", "int8_tensorwise") else {"scale": "recalculate"}
    out = {}
    for key, tensor in state_dict.items():
        if not choose(key, tensor):
            out[key] = tensor
            continue
        weight = QuantizedTensor.from_float(tensor, QUANT_ALGOS[kind]["comfy_tensor_layout"], **options)
        out |= weight.state_dict(key)
        out[f"{key.removesuffix('.weight')}.comfy_quant"] = mark(kind)
    return out


def in_four_bits(key: str, weight: Tensor, kind: str = "nf4", **options) -> dict[str, Tensor]:
    """As diffusers and transformers save such a layer."""
    packed, state = bnb.quantize_4bit(weight, quant_type=kind, **{"blocksize": 64} | options)
    parts = {f"{key}.{name}": part.contiguous() for name, part in state.as_dict(packed=True).items()}
    return {key: packed} | parts


def in_eight_bits(key: str, weight: Tensor) -> dict[str, Tensor]:
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    layer = key.removesuffix(".weight")
    return {key: codes, f"{layer}.SCB": scales, f"{layer}.weight_format": torch.zeros((), dtype=torch.uint8)}


def states_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key].view(torch.uint8), b[key].view(torch.uint8))
        if a[key].ndim
        else bool(a[key] == b[key])
        for key in a
    )


def weights(family: str) -> dict[str, Tensor]:
    return load_file(bench.folder() / family / "transformer" / "diffusion_pytorch_model.safetensors")


def write_model(folder: Path, state_dict: dict[str, Tensor], name: str = "model", metadata=None) -> str:
    """Writes a transformer file with the config.json that its odd width needs; returns its path."""
    config = bench.folder() / "sana" / "transformer" / "config.json"
    (folder / "config.json").write_text(config.read_text())
    tensors = {key: tensor.contiguous() for key, tensor in state_dict.items()}
    save_file(tensors, folder / f"{name}.safetensors", metadata=metadata)
    return str(folder / f"{name}.safetensors")


@torch.inference_mode()
def load_sana(*inputs):
    """As the host's executor runs a loader node; its quantized tensors cannot pass between the two modes."""
    return sana_loader.load_sana(*inputs)


@torch.inference_mode()
def load_gemma(*inputs):
    return gemma_loader.load_gemma(*inputs)
