"""Files of a run, written so that a process killed at any moment leaves only whole ones under their final names."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

ENDING = ".partial"
RECORD = "sana_training"  # key of the run's JSON in the header
CURES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "move that folder away, or choose another name",
}


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Within it a fault is an OSError with one sentence that names the file and the cure."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason, cure = getattr(error, "strerror", None) or str(error), CURES.get(getattr(error, "errno", None))
        if cure is None and os.strerror(errno.ENOSPC) in reason:  # as safetensors tells it
            cure = CURES[errno.ENOSPC]
        cure = cure or "free some space, or choose a folder that may be written to"
        raise OSError(f"{path} cannot be written ({reason}): {cure}.") from error


def require_writable(path: str) -> None:
    """Raises OSError with one sentence where `whole_file` could not write, before there is something to be lost."""
    with writing(path):
        os.remove(make_partial(path))


def make_partial(path: str) -> str:
    """An empty file beside the final one, with the access that the user's other new files have."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    partial = f"{path}{ENDING}"
    with open(partial, "wb"):
        return partial


@contextmanager
def whole_file(path: str) -> Iterator[str]:
    """A name beside the final one, for a file that gets its final name once it is complete and on the disk."""
    with writing(path):
        partial = make_partial(path)
        try:
            access = os.stat(partial).st_mode
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            with suppress(OSError):  # of a mount without access rights
                os.chmod(partial, access)  # safetensors gives its files to their owner alone
            os.replace(partial, path)
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
    """What `save_state` wrote. Raises ValueError with one sentence for a file that it did not write, or that has been
    changed since."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise no_state(path) from error
    if not isinstance(record, dict) or not all(value.isfinite().all() for value in tensors.values()):
        raise no_state(path)
    return tensors, record


def no_state(path: str) -> ValueError:
    return ValueError(f"{path} is no state of a training: choose resume new, or put the run's own file back.")
