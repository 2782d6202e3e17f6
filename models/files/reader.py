"""Files and folders -> state dicts: single files, shards with an index, and the parts of a diffusers folder.

Reading is the host's (memory-mapped safetensors, pickles with weights only); here is what to read and what to say when
it fails. What a file's first bytes tell is in `file_errors.py`.
"""

import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pickle import UnpicklingError  # what torch raises; nothing here unpickles
from typing import Any

import comfy.utils
import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..runtime.progress import tracked
from .bitsandbytes import unify_bitsandbytes
from .file_errors import (
    DOWNLOAD_AGAIN,
    OTHER_FORMAT,
    check_content,
    check_place,
    fault,
    first_line,
    holds_code,
    naming_disk_faults,
    shown,
    unfinished_in,
)
from .layout import PREFIXES, layout_of, nested_tensors, strip_prefix
from .quantized import layers_in_metadata, unify_marks

SHARD_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})(.*)")
# Files of a component's folder as diffusers and transformers name them, and the order of choice among variants.
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
WEIGHT_FILE = re.compile(
    rf"({'|'.join(WEIGHT_NAMES)})(?:(\.\w+)?(-\d{{5}}-of-\d{{5}})?\.(safetensors|bin)"
    r"|\.(safetensors|bin)\.index(\.\w+)?\.json)"
)
KEY_LENGTH = 500  # characters of a tensor's name; real ones have a third of them
VARIANTS = ("", ".bf16", ".fp16", ".fp32")
ENDINGS = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt")
# NVIDIA's training saves numpy's random state beside the weights: arrays of numbers, which torch reads only when told.
RECONSTRUCT = np.ndarray(0).__reduce__()[0]
NUMPY_ARRAYS = [
    *((RECONSTRUCT, f"numpy.{package}.multiarray._reconstruct") for package in ("core", "_core")),
    *(np.ndarray, np.dtype, type(np.dtype(np.uint32))),
]
# What reading damaged files raises, in safetensors, in torch's own unpickler, and in the host.
READ_ERRORS = (SafetensorError, ValueError, RuntimeError, EOFError, TypeError, AttributeError, LookupError,
               struct.error, ArithmeticError)  # fmt: skip


# What torch's unpickler says when it is not an object that it refuses.
DAMAGED_PICKLE = ("Unsupported operand", "String is too long", "persistent id")


def read_json(path: str) -> dict[str, Any]:
    """A JSON object, {} when the file is absent. Raises ValueError naming a file that holds anything else."""
    if not os.path.isfile(path):
        return {}
    try:
        with naming_disk_faults(path), open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is not valid JSON ({first_line(error)}): download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{shown(path)} holds a JSON {type(content).__name__} where an object is expected: download it again."
        )
    return content


def preference(name: str) -> tuple:
    """Sort key of a name that `WEIGHT_FILE` matches: safetensors, known variants, and whole files or an index first."""
    stem, variant, shard, ending, index_ending, index_variant = WEIGHT_FILE.fullmatch(name).groups()
    variant = variant or index_variant or ""
    return (
        (ending or index_ending) != "safetensors",
        VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS),
        variant,
        WEIGHT_NAMES.index(stem),
        shard or "",
        name,
    )


def find_weights(folder: str) -> str:
    """The weight file, shard index or first shard to read in a component's folder.

    Raises FileNotFoundError when there is none, ValueError when it is not clear which one is meant.
    """
    with naming_disk_faults(folder):
        names = os.listdir(folder)
    candidates = sorted(filter(WEIGHT_FILE.fullmatch, names), key=preference)
    others = sorted(name for name in names if name.lower().endswith(ENDINGS))
    if candidates:
        return os.path.join(folder, candidates[0])
    if len(others) > 1:
        raise fault(
            folder,
            f"holds {len(others)} weight files, such as {shown(others[0])} and {shown(others[1])}",
            "keep the one that is meant, or pick a single file",
        )
    if others:
        return os.path.join(folder, others[0])
    pending = unfinished_in(folder, names)
    if pending is not None:
        raise pending
    raise FileNotFoundError(
        f"The folder {shown(folder)} holds no {' or '.join(WEIGHT_NAMES[:2])}.safetensors (or its .index.json): "
        "download the weights into it, or pick a single file."
    )


def load_file(path: str) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Tensors and metadata of one file.

    Raises ValueError, FileNotFoundError or PermissionError with one sentence when it cannot be read.
    """
    check_place(path)
    with naming_disk_faults(path):
        check_content(path)
        loaded, metadata = read_file(path)
    if not isinstance(loaded, Mapping):
        raise fault(path, "holds no tensors by name", OTHER_FORMAT)
    state_dict = nested_tensors(loaded)
    for key, tensor in state_dict.items():
        check_tensor(path, key, tensor)
    return state_dict, metadata


def read_file(path: str) -> tuple[Any, dict[str, str] | None]:
    """What the host reads. Raises ValueError for what it stumbles over, and leaves OSError to the caller."""
    try:
        with torch.serialization.safe_globals(NUMPY_ARRAYS):
            return comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except UnpicklingError as error:
        if any(sign in str(error) for sign in DAMAGED_PICKLE) and not holds_code(path):
            raise fault(path, "is damaged, its pickle makes no sense", DOWNLOAD_AGAIN) from error
        raise ValueError(
            f"{shown(path)} holds Python objects besides tensors, which are not loaded because they could run code: "
            "use the safetensors file of this model, or a .pth with weights only."
        ) from error
    except READ_ERRORS as error:
        if "allocate memory" in str(error):
            raise
        if isinstance(error, TypeError | AttributeError) or "__contains__" in str(error):
            raise fault(path, "holds no tensors by name", OTHER_FORMAT) from error
        raise fault(path, f"is damaged ({first_line(error)})", DOWNLOAD_AGAIN) from error


def check_tensor(path: str, key: Any, tensor: Tensor) -> None:
    """Raises ValueError for what a pickle can hold and no network takes."""
    if not isinstance(key, str):
        raise fault(path, f"names its tensors by {type(key).__name__}, not by text", OTHER_FORMAT)
    if len(key) > KEY_LENGTH or not key.isprintable():
        raise fault(path, "is damaged, it holds tensors with impossible names", DOWNLOAD_AGAIN)
    if tensor.is_meta:
        raise fault(path, f"holds tensors without values, such as {key}", "save it anew from a loaded model")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise fault(path, f"holds sparse or packed tensors, such as {key}", OTHER_FORMAT)
    if tensor.untyped_storage().nbytes() < tensor.nbytes:
        raise fault(path, f"holds fewer numbers than the shape of {key} says", DOWNLOAD_AGAIN)


def shard_names(path: str) -> dict[str, str]:
    """Tensor -> file of a shard index. Raises ValueError for an index that names no files, or files elsewhere."""
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise fault(path, "lists no files of weights", DOWNLOAD_AGAIN)
    for name in names.values():
        if os.path.basename(name) != name or "\\" in name:
            raise fault(path, f"lists {shown(name)}, which is not a file beside it", DOWNLOAD_AGAIN)
    return names


def shards_of(path: str) -> list[str]:
    """Paths of all files of the set that a shard or a shard index belongs to; the path itself for a file of its own.

    Raises FileNotFoundError naming the first file that is missing.
    """
    folder, name = os.path.split(path)
    shard = SHARD_NAME.fullmatch(name)
    if path.endswith(".json"):
        names = sorted(set(shard_names(path).values()))
    elif shard:
        start, count, end = shard.groups()
        names = [f"{start}-{number:05d}-of-{count}{end}" for number in range(1, int(count) + 1)]
    else:
        return [path]
    for other in names:
        if not os.path.lexists(os.path.join(folder, other)):
            raise FileNotFoundError(
                f"{shown(path)} belongs to a set of {len(names)} files, and {shown(other)} is not beside it: download "
                "the missing file."
            )
    return [os.path.join(folder, other) for other in names]


def read_shards(path: str) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Tensors of a file or of all files of its set, and the last one's metadata. Raises as `load_file` does."""
    metadata = None
    state_dict: dict[str, Tensor] = {}
    for shard in tracked(shards_of(path)):
        tensors, metadata = load_file(shard)
        twice = tensors.keys() & state_dict.keys()
        if twice:
            raise fault(
                shard, f"holds {min(twice)} a second time", "download all files of the set anew, from one version"
            )
        state_dict |= tensors
    missing = shard_names(path).keys() - state_dict.keys() if path.endswith(".json") else ()
    if missing:
        raise fault(
            path,
            f"lists {len(missing)} tensors that its files do not hold, such as {min(missing)}",
            "download the index and all files anew, from one version",
        )
    return state_dict, metadata


def component_folder(folder: str, component: str) -> str:
    """The folder itself, or its subfolder of the component. Raises FileNotFoundError for a model without it."""
    inner = os.path.join(folder, component)
    if os.path.isdir(inner):
        return inner
    pipeline = read_json(os.path.join(folder, "model_index.json")).get("_class_name")
    if pipeline is None:
        return folder
    raise FileNotFoundError(
        f"The folder {shown(folder)} is a {pipeline} without a {component} folder: download that part of it, or pick "
        "a SANA model."
    )


@dataclass
class Checkpoint:
    """Tensors of one component with what lies beside them.

    state_dict: keys without prefixes and wrappers; quantized layers in the host's present form. whole: all tensors
    as the file names them. layout: whose names those are, for the log. source: the path asked for, file or folder.
    """

    path: str
    state_dict: dict[str, Tensor]
    metadata: dict[str, str] | None = None
    config: dict[str, Any] = field(default_factory=dict)  # config.json beside the weights
    whole: dict[str, Tensor] = field(default_factory=dict)
    layout: str = ""
    source: str = ""

    @classmethod
    def open(cls, path: str, component: str) -> "Checkpoint":
        """One component, with plain keys, from whatever `read` takes. Raises as it does."""
        checkpoint = cls.read(path, component)
        name, prefixes = checkpoint.name, PREFIXES[component]
        layers = strip_prefix(layers_in_metadata(name, checkpoint.metadata), prefixes)
        state_dict = strip_prefix(checkpoint.state_dict, prefixes)
        if component != "vae":
            state_dict, own = unify_bitsandbytes(name, state_dict)
            layers = layers | own
        state_dict = unify_marks(name, state_dict, layers)
        return replace(checkpoint, state_dict=state_dict, layout=layout_of(state_dict))

    @classmethod
    def read(cls, path: str, component: str) -> "Checkpoint":
        """A weight file, any shard of a set, a shard index, its folder, or the diffusers folder around it, as it lies.

        component: "transformer", "vae" or "text_encoder", the subfolder of a diffusers model.
        Raises FileNotFoundError, PermissionError and ValueError with one sentence that names the file and the cure.
        """
        check_place(path)
        source = path
        if os.path.isdir(path):
            path = find_weights(component_folder(path, component))
        config = read_json(os.path.join(os.path.dirname(path), "config.json"))
        state_dict, metadata = read_shards(path)
        return cls(path, state_dict, metadata, config, state_dict, source=source)

    @property
    def name(self) -> str:
        """Path for messages; files of diffusers folders have the same names, so the folders count."""
        return shown(self.path)


def read_beside(path: str, component: str, name: str) -> dict[str, Any]:
    """JSON of a sibling component in a diffusers folder, such as scheduler/scheduler_config.json; {} without one."""
    return read_json(os.path.join(os.path.dirname(os.path.dirname(path)), component, name))
