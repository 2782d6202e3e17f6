"""Whether a file is of the family a loader expects, and fits its network to the last tensor; else one sentence."""

import json
import logging
from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import Tensor

from ..runtime.precision import Precision, describe_precision
from . import quantized
from .reader import Checkpoint

logger = logging.getLogger(__name__)


def log_loaded(checkpoint: Checkpoint, what: str, precision: Precision) -> None:
    if precision.warning:
        logger.warning("SANA: %s: %s.", checkpoint.name, precision.warning)
    logger.info("SANA: %s is %s, %s", checkpoint.name, what, describe_precision(precision))


def check_keys(name: str, expected: Iterable[str], found: Iterable[str]) -> None:
    """Raises ValueError that counts and names missing and unexpected tensors."""
    expected, found = set(expected), set(found)
    problems = [
        f"{len(keys)} {kind}, such as {min(keys)}"
        for kind, keys in (("missing", expected - found), ("unexpected", found - expected))
        if keys
    ]
    if problems:
        raise ValueError(
            f"{name} does not fit its architecture ({'; '.join(problems)} of {len(expected)} tensors): download "
            "it again."
        )


def read_layers(checkpoint: Checkpoint, expected: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Quantized layers with their formats, and the state dict as if it had none.

    expected: name of the family, for messages. Raises ValueError for marks and scales that are damaged.
    """
    with reading_config(checkpoint, expected):
        layers = quantized.quantized_layers(checkpoint.state_dict)
    quantized.check_quantized(checkpoint.name, checkpoint.state_dict, layers)
    return layers, quantized.plain_view(checkpoint.state_dict, layers)


def check_tensors(
    checkpoint: Checkpoint, expected: dict[str, Tensor], found: dict[str, Tensor], layers: dict[str, str]
) -> None:
    """Raises ValueError that names missing and unexpected tensors, or the first one of another shape.

    expected: state dict of the network with torch's own layers, as those of the host have no weights before they are
    loaded when it streams. layers: the file's quantized layers with their formats.
    """
    name = checkpoint.name
    check_keys(name, expected, quantized.plain_view(found, layers))
    for key, shape in quantized.stored_shapes(expected, layers).items():
        if shape != tuple(found[key].shape):
            raise ValueError(
                f"{name} does not fit its architecture: {key} has shape {tuple(found[key].shape)}, expected {shape}: "
                "download it again."
            )
    check_values(name, [key for key in expected if key.removesuffix(".weight") not in layers], found)
    scales = (f"{layer}.{part}" for layer in layers for part in quantized.SCALES)
    check_values(name, [key for key in scales if key in found], quantized.scale_view(found, layers))


def missing_tensor(checkpoint: Checkpoint, expected: str, key: str) -> ValueError:
    return ValueError(f"{checkpoint.name} looks like {expected} but {key} is missing: download it again.")


def other_shapes(checkpoint: Checkpoint, expected: str) -> ValueError:
    return ValueError(f"{checkpoint.name} looks like {expected} but has tensors of other shapes: download it again.")


@contextmanager
def reading_config(checkpoint: Checkpoint, expected: str):
    """Turns a tensor that is missed or damaged, while the configuration is read, into one sentence."""
    try:
        yield
    except KeyError as error:
        raise missing_tensor(checkpoint, expected, error.args[0]) from error
    except IndexError as error:
        raise other_shapes(checkpoint, expected) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"The configuration saved in {checkpoint.name} is damaged: save it again.") from error


def own_config(checkpoint: Checkpoint, class_name: str) -> dict:
    """config.json, unless it says that it is another class's: a folder of single files may hold a stray one."""
    return checkpoint.config if checkpoint.config.get("_class_name", class_name) == class_name else {}


WHOLE, EDGE = 16384, 4096  # numbers: up to how many a tensor is looked at whole, and how many at each end of others


def check_values(name: str, keys: Iterable[str], state_dict: dict[str, Tensor]) -> None:
    """Raises ValueError naming the first of the keys whose tensor is not of finite floating-point numbers."""
    for key in keys:
        tensor = state_dict[key]
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} has {str(tensor.dtype).removeprefix('torch.')} numbers in {key} where floating-point ones "
                "belong: use the bf16, fp16 or fp32 file of this model."
            )
        if not torch.isfinite(ends(tensor).float()).all():
            raise ValueError(
                f"{name} holds NaN or infinity in {key}: download it again, or take an earlier save if you trained it."
            )


def ends(tensor: Tensor) -> Tensor:
    if tensor.numel() <= WHOLE:
        return tensor
    flat = tensor.flatten()  # a view, but for the rare tensor that is not contiguous
    return torch.cat([flat[:EDGE], flat[-EDGE:]])
