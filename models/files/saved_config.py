"""A configuration as a tensor among the weights, so that a saved model loads without what lay beside the original."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pack_config(fields: Mapping[str, Any]) -> Tensor:
    """JSON in a uint8 tensor (N,), as the host stores quantization marks."""
    return torch.frombuffer(bytearray(json.dumps(dict(fields)).encode()), dtype=torch.uint8)


def read_config_tensor(tensor: Tensor) -> dict[str, Any]:
    """The reverse, also of a tensor that was cast with the weights. Raises json.JSONDecodeError for anything else."""
    text = bytes(tensor.to(torch.uint8).flatten().tolist()).decode(errors="replace")
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise json.JSONDecodeError("not an object", text, 0)
    return fields
