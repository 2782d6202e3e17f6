"""Tensors of a file into a network: where they lie when nothing has to move, else copied as the host does."""

import re

import comfy.memory_management
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..runtime.progress import tracked
from .quantized import MARK

ALIGNMENT = 64  # bytes; of the widest vector registers
# Layers that multiply a single row. The CPU's float32 kernel for that rounds by the address, so that one model would
# give other bits from another file.
SINGLE_ROW = re.compile(
    r"(time_embed|t_embedder|t_block|csize_embedder|ar_embedder|cap_embedder)\.|(.+\.)?adaLN_modulation\."
)


def used_in_place(patcher: ModelPatcher) -> bool:
    """Whether weights can stay where the file is mapped: the host streams them from there, or nothing moves at all.

    Elsewhere they are copied: mapped pages cannot be pinned for the transfer, and those that the host maps itself, for
    its streaming, cannot be written to.
    """
    if comfy.memory_management.aimdo_enabled:
        return patcher.is_dynamic()
    return comfy.model_management.is_device_cpu(patcher.load_device)


def prepare_state_dict(network: nn.Module, state_dict: dict[str, Tensor], patcher: ModelPatcher) -> bool:
    """Prepares tensors for `load_state_dict(state_dict, assign=...)` and returns what to assign.

    The host's streaming casts on the way. On the CPU tensors are brought to the formats of the parameters they become,
    one by one, so that no two copies of a model exist; quantized ones keep theirs.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    if patcher.is_dynamic() or not used_in_place(patcher):
        return used_in_place(patcher)
    for key, parameter in tracked(list(network.named_parameters())):
        if key not in state_dict or f"{key.rpartition('.')[0]}.{MARK}" in state_dict:
            continue
        tensor = state_dict[key].to(parameter.dtype)
        if SINGLE_ROW.match(key) and tensor.dtype == torch.float32 and tensor.data_ptr() % ALIGNMENT:
            tensor = tensor.clone()
        state_dict[key] = tensor
    return True
