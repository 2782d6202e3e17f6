"""Files and folders -> state dicts: single files, shards with an index, and the parts of a diffusers folder.

Reading is the host's (memory-mapped safetensors, pickles with weights only); here is what to read and what to say when
it fails.
"""

import json
import os
import pickle
import re
from dataclasses import dataclass, field
from typing import Any

import comfy.utils
from safetensors import SafetensorError
from torch import Tensor

SHARD_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})(.*)")
# Order of choice in a folder that holds several variants of the same weights.
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
VARIANTS = ("", ".bf16", ".fp16", ".fp32")


@dataclass
class Checkpoint:
    """Tensors of one component with what lies beside them."""

    path: str
    state_dict: dict[str, Tensor]
    metadata: dict[str, str] | None = None
    config: dict[str, Any] = field(default_factory=dict)  # config.json beside the weights

    @property
    def name(self) -> str:
        """Path for messages and name patterns; files of diffusers folders have the same names, so the folders count."""
        return "/".join(os.path.normpath(self.path).split(os.sep)[-3:])


def read_json(path: str) -> dict[str, Any]:
    """A JSON object, {} when the file is absent. Raises ValueError naming a file that holds anything else."""
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a JSON {type(content).__name__} where an object is expected: download it again."
        )
    return content


def find_weights(folder: str) -> str:
    """The weight file or shard index to read in a component's folder. Raises FileNotFoundError when there is none."""
    for variant in VARIANTS:
        for stem in WEIGHT_NAMES:
            for name in (f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"):
                if os.path.isfile(os.path.join(folder, name)):
                    return os.path.join(folder, name)
    raise FileNotFoundError(
        f"The folder {folder} holds no {' or '.join(WEIGHT_NAMES)}.safetensors (or its .index.json): "
        "download the weights into it, or pick a single file."
    )


def load_file(path: str) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Tensors and metadata of one file. Raises ValueError with one sentence when it cannot be read."""
    try:
        loaded, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
        state_dict = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    except pickle.UnpicklingError as error:
        if not is_pickle(path):
            raise ValueError(f"{path} is not a weight file, whatever its name says: download it again.") from error
        raise ValueError(
            f"{path} holds Python objects besides tensors, which are not loaded because they could run code: "
            "use the safetensors file of this model, or a .pth with weights only."
        ) from error
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, incomplete or no weight file ({reason}): download it again.") from error
    return state_dict, metadata


def is_pickle(path: str) -> bool:
    """True for what torch.save writes: a zip archive, or in old versions a bare pickle."""
    with open(path, "rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def shards_of(path: str) -> list[str]:
    """Paths of all files of the set that a shard or a shard index belongs to; the path itself for a file of its own.

    Raises FileNotFoundError naming the first file that is missing.
    """
    folder, name = os.path.split(path)
    shard = SHARD_NAME.fullmatch(name)
    if path.endswith(".json"):
        names = sorted(set(read_json(path).get("weight_map", {}).values()))
    elif shard:
        start, count, end = shard.groups()
        names = [f"{start}-{number:05d}-of-{count}{end}" for number in range(1, int(count) + 1)]
    else:
        return [path]
    for other in names:
        if not os.path.isfile(os.path.join(folder, other)):
            raise FileNotFoundError(
                f"{path} belongs to a set of {len(names)} files, and {other} is not beside it: download "
                "the missing file."
            )
    return [os.path.join(folder, other) for other in names]


def read_checkpoint(path: str, component: str) -> Checkpoint:
    """One component from a weight file, any shard of a set, a shard index, its folder, or the diffusers folder around
    it.

    component: "transformer", "vae" or "text_encoder", the subfolder of a diffusers model.
    Raises FileNotFoundError and ValueError with one sentence that names the file and the cure.
    """
    if os.path.isdir(path):
        inner = os.path.join(path, component)
        path = find_weights(inner if os.path.isdir(inner) else path)
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: pick the file again after refreshing the list.")
    config = read_json(os.path.join(os.path.dirname(path), "config.json"))
    metadata = None
    state_dict: dict[str, Tensor] = {}
    for shard in shards_of(path):
        tensors, metadata = load_file(shard)
        state_dict |= tensors
    return Checkpoint(path, state_dict, metadata, config)


def read_beside(path: str, component: str, name: str) -> dict[str, Any]:
    """JSON of a sibling component in a diffusers folder, such as scheduler/scheduler_config.json; {} without one."""
    return read_json(os.path.join(os.path.dirname(os.path.dirname(path)), component, name))
