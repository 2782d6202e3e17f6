"""A loaded model, or a file of any layout -> a quantized file that the host reads.

Not here: formats (`quantize.py`), the file itself (`quantized_file.py`), which layers of a family may be narrow (its
`quantization.py`). The families are those of `models/registry.py`, handed down by who asks.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management

from .family import Family, describe, refusal
from .layout import BRANCH, StateDict, strip_prefix
from .quantized_file import Report, check_preset, check_wide, write_quantized
from .reader import Checkpoint
from .validation import reading_config

COMPONENTS = ("transformer", "text_encoder")
SOCKETS = {"transformer": "MODEL", "text_encoder": "CLIP"}
CLIP_WRAPPERS = re.compile(r"^\w+\.(transformer\.)?")  # what the host's CLIPSave takes off the keys of a text encoder


def families_of(component: str, families: Sequence[Family]) -> list[Family]:
    return [family for family in families if family.component == component and family.saving]


def quantize_file(
    families: Sequence[Family], source: str, target: str, preset: str, component: str | None = None
) -> Report:
    """Writes the transformer or text encoder in a file or folder to a new file, one layer in memory at a time.

    component: "transformer" or "text_encoder"; None for the first that is found. Raises ValueError, FileNotFoundError,
    FileExistsError or OSError with one sentence for what cannot be read, is of no known family, is narrow already, or
    cannot be written.
    """
    check_preset(preset)
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already: delete it, or choose another name.")
    if not target.endswith(".safetensors"):
        raise ValueError(f"{target} does not end in .safetensors: choose such a name, which the loaders look for.")
    family, checkpoint = open_source(families, source, (component,) if component else COMPONENTS)
    check_wide(checkpoint.name, checkpoint.state_dict)
    state_dict = family.saving.of_file(checkpoint)
    metadata = metadata_of(family, state_dict, target, preset)
    return write(target, checkpoint.name, family, state_dict, preset, metadata)


def open_source(families: Sequence[Family], source: str, components: Sequence[str]) -> tuple[Family, Checkpoint]:
    """The first component of a file or folder that is of a family which is written narrow, in the network's layout."""
    tried, missing, checkpoint = [], None, None
    for component in components:
        try:
            checkpoint = Checkpoint.open(source, component)
        except FileNotFoundError as error:
            missing = missing or error
            continue
        for family in families_of(component, families):
            with reading_config(checkpoint, family.name):
                state_dict = family.convert(checkpoint.state_dict)
            if family.recognizes(state_dict):
                return family, replace(checkpoint, state_dict=state_dict)
            tried.append((family, state_dict))
    if checkpoint is None:
        raise missing
    raise refusal(checkpoint, tried, families)


def quantize_model(
    families: Sequence[Family],
    component: str,
    model: Any,
    target: str,
    preset: str,
    metadata: dict[str, str] | None = None,
) -> Report:
    """Writes the host's MODEL or CLIP to a new file, LoRAs merged into it.

    metadata: what the file's header says besides `modelspec`. Raises as `quantize_file`, and ValueError for what
    `check_model` refuses.
    """
    check_preset(preset)
    family = check_model(families, component, model)
    state_dict = tensors_of_model(component, model)
    own = metadata_of(family, state_dict, target, preset)
    return write(target, name_of(component), family, state_dict, preset, own | (metadata or {}))


def name_of(component: str) -> str:
    return f"The {SOCKETS[component]}"


def check_model(families: Sequence[Family], component: str, model: Any) -> Family:
    """The family of the host's MODEL or CLIP.

    Raises ValueError for a model of none that is written narrow, one with narrow weights, and one that carries a LoRA
    which no weight can hold.
    """
    name, candidates = name_of(component), families_of(component, families)
    state_dict = tensors_of_model(component, model)
    family = next((one for one in candidates if one.recognizes(one.convert(dict(state_dict)))), None)
    if family is None:
        wanted = " or ".join(one.name for one in candidates)
        nodes = " or ".join(dict.fromkeys(one.node for one in candidates))
        raise ValueError(f"{name} is {describe(state_dict, families)}, not {wanted}: connect that of {nodes}.")
    check_wide(name, state_dict)
    check_merged(component, model)
    return family


def check_merged(component: str, model: Any) -> None:
    """Raises ValueError for what computes beside the weights, so that a file of weights would lack it."""
    name, patcher = name_of(component), model if component == "transformer" else model.patcher
    if any(patcher.injections.values()):
        cure = "load it with SANA LoRA Loader instead"
        if component == "text_encoder":
            cure = "load it with Load LoRA instead (SANA LoRA Loader changes the MODEL alone)"
        raise ValueError(f"{name} has a LoRA in bypass mode, which is in no weight and so in no file: {cure}.")
    if any(key.endswith(f".{BRANCH}") for key in patcher.object_patches):
        raise ValueError(
            f"{name} has a LoRA that mixes the channels of depthwise convolutions, which no weight of the file can "
            "hold: quantize without it, and load it on the new file's model with SANA LoRA Loader."
        )


def tensors_of_model(component: str, model: Any) -> StateDict:
    """What the host's Model Save or CLIPSave would write, without prefix; LoRAs are merged when a tensor is copied."""
    if component == "transformer":
        comfy.model_management.load_models_gpu([model])
        return strip_prefix(model.state_dict_for_saving(), ("model.diffusion_model.",))
    model.load_model()
    return {CLIP_WRAPPERS.sub("", key): tensor for key, tensor in model.state_dict_for_saving().items()}


def write(
    target: str, name: str, family: Family, state_dict: StateDict, preset: str, metadata: dict[str, str]
) -> Report:
    saving = family.saving
    return write_quantized(target, name, state_dict, preset, saving.rules(state_dict), metadata, saving.prefix)


def metadata_of(family: Family, state_dict: StateDict, target: str, preset: str) -> dict[str, str]:
    """The header's description of a file. Source: Stability AI's ModelSpec 1.0.0."""
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.saving.architecture(state_dict),
        "modelspec.implementation": family.saving.implementation,
        "modelspec.title": os.path.splitext(os.path.basename(target))[0],
        "modelspec.description": f"{family.name.partition(' ')[2]}, quantized with the preset {preset}",
    }
