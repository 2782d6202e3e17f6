"""Files and folders -> state dicts: single files, shards with an index, and the parts of a diffusers folder.

Reading is the host's (memory-mapped safetensors, pickles with weights only); here is what to read and what to say when it fails.
"""

import json
import os
import pickle
from dataclasses import dataclass, field
from typing import Any

import comfy.utils
from safetensors import SafetensorError
from torch import Tensor

INDEX_SUFFIX = ".safetensors.index.json"
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
        """Path for messages and name patterns: a file in a diffusers folder has the same name everywhere, so its folders count."""
        return "/".join(os.path.normpath(self.path).split(os.sep)[-3:])


def read_json(path: str) -> dict[str, Any]:
    """A JSON object, {} when the file is absent. Raises ValueError naming a file that is not JSON."""
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download it again.") from error


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


def index_of(path: str) -> str | None:
    """The shard index that lists a weight file, or None for a file of its own."""
    folder, name = os.path.split(path)
    for candidate in sorted(os.listdir(folder)) if "-of-" in name else []:
        if ".safetensors.index" in candidate and candidate.endswith(".json"):
            if name in read_json(os.path.join(folder, candidate)).get("weight_map", {}).values():
                return os.path.join(folder, candidate)
    return None


def load_file(path: str) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Tensors and metadata of one file. Raises ValueError with one sentence when it cannot be read."""
    try:
        state_dict, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except (SafetensorError, ValueError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, incomplete or not a weight file ({reason}): download it again.") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects besides tensors, which are not loaded because they could run code: "
            "use the safetensors file of this model, or a .pth with weights only."
        ) from error
    tensors = {key: value for key, value in state_dict.items() if isinstance(value, Tensor)}
    return tensors, metadata


def load_shards(index_path: str) -> dict[str, Tensor]:
    """All tensors named by a shard index. Raises FileNotFoundError for a shard that is missing."""
    folder = os.path.dirname(index_path)
    state_dict: dict[str, Tensor] = {}
    for shard in sorted(set(read_json(index_path).get("weight_map", {}).values())):
        path = os.path.join(folder, shard)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{index_path} names the shard {shard}, which is not beside it: download the missing file.")
        state_dict |= load_file(path)[0]
    return state_dict


def read_checkpoint(path: str, component: str) -> Checkpoint:
    """One component from a weight file, any shard of a set, a shard index, its folder, or the diffusers folder around it.

    component: "transformer", "vae" or "text_encoder", the subfolder of a diffusers model.
    Raises FileNotFoundError and ValueError with one sentence that names the file and the cure.
    """
    if os.path.isdir(path):
        inner = os.path.join(path, component)
        path = find_weights(inner if os.path.isdir(inner) else path)
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: pick the file again after refreshing the list.")
    config = read_json(os.path.join(os.path.dirname(path), "config.json"))
    index = path if path.endswith(".json") else index_of(path)
    if index is not None:
        return Checkpoint(path, load_shards(index), None, config)
    return Checkpoint(path, *load_file(path), config)


def read_beside(path: str, component: str, name: str) -> dict[str, Any]:
    """JSON of a sibling component of a diffusers folder, such as scheduler/scheduler_config.json; {} when there is none."""
    return read_json(os.path.join(os.path.dirname(os.path.dirname(path)), component, name))
