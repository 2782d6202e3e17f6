"""What the host says about a device, and which formats its start flags ask for: the input of `precision.py`."""

import inspect
from collections.abc import Mapping

import comfy
import comfy.model_management
import comfy.model_patcher
import torch
from comfy.cli_args import args

from .cpu.features import cpu_multiplies_bfloat16
from .precision import Device, Request

FORMATS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp8_e8m0fnu": torch.float8_e8m0fnu,
}


def describe_device(device: torch.device, parameters: int = 0) -> Device:
    """The host's judgement of a device that shall hold a model of so many parameters."""
    management = comfy.model_management
    room = management.maximum_vram_for_weights(device)
    on_cpu = management.is_device_cpu(device)
    return Device(
        name="the CPU" if on_cpu else f"{device} with --force-fp32" if args.force_fp32 else str(device),
        float16=management.should_use_fp16(device, parameters),
        bfloat16=management.should_use_bf16(device, parameters),
        bfloat16_on_request=on_cpu and not args.force_fp32 and cpu_multiplies_bfloat16(),
        float8=(not on_cpu and management.supports_fp8_compute(device)) or parameters * 2 > room,
        tight=parameters * 4 > room,
    )


def disk_options(patcher_class: type, state_dict: Mapping[str, torch.Tensor]) -> dict[str, bool]:
    """How a newer host's patcher is told whether a model's file lies on a fast disk; {} for an older host.

    state_dict: tensors as they were read, whose storage the host has marked with the file; copies lose the mark.
    """
    storage = getattr(comfy, "storage", None)
    if storage is None or "fast_disk" not in inspect.signature(patcher_class.__init__).parameters:
        return {}
    return {"fast_disk": storage.state_dict_fast_disk(state_dict)}


def requested(dtype: torch.dtype | None, widget: str, component: str) -> Request:
    """The format a node asks for, else the one of the host's flag for the component ("unet", "vae" or "text_enc")."""
    if dtype is not None:
        return Request(dtype, widget)
    for name, asked in FORMATS.items():
        if getattr(args, f"{name}_{component}", False):
            forced = component == "unet" and asked == torch.float16 and args.force_fp16
            return Request(asked, "--force-fp16" if forced else f"--{name}-{component.replace('_', '-')}")
    return Request()


def patcher_class(load_device: torch.device, disable_dynamic: bool = False) -> type[comfy.model_patcher.ModelPatcher]:
    """The host's patcher of the moment. Asked for at call time: the host rebinds it on a GPU."""
    if disable_dynamic or comfy.model_management.is_device_cpu(load_device):
        return comfy.model_patcher.ModelPatcher
    return comfy.model_patcher.CoreModelPatcher
