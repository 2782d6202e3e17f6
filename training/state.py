"""Files of a run, written so that a process killed at any moment leaves only whole ones under their final names."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

ENDING = ".partial"
RECORD = "sana_training"  # key of the run's JSON in the header


@contextmanager
def whole_file(path: str) -> Iterator[str]:
    """A name beside the final one, for a file that gets its final name once it is complete and on the disk."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}{ENDING}"
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}): free some space, or choose a folder that may be "
            "written to."
        ) from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def save_whole(tensors: Mapping[str, Tensor], path: str, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file that is complete or not there."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as partial:
        save_file(contiguous, partial, {"format": "pt", **(metadata or {})})


def save_state(tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: str) -> None:
    """Tensors and the JSON record of a run in one file, so that they cannot be of two different steps."""
    save_whole(tensors, path, {RECORD: json.dumps(record)})


def load_state(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` wrote. Raises ValueError with one sentence for a file that it did not write."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            return {name: file.get_tensor(name) for name in file.keys()}, record
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no state of a training: choose resume new, or put the run's own file back."
        ) from error
