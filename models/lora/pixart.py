"""A LoRA file of any trainer -> a clone of a PixArt model with it applied.

Trainers know diffusers' layers; in the network q, k and v are slices of one layer each, as the host's own table says.
"""

import logging
import re
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.utils
from torch import Tensor, tensor

from ..files.reader import Checkpoint
from .convert import ALPHA, PREFIXES, TARGET, LoraKeys, StateDict, adapter_alpha, describe_layout, is_complete, rank_in
from .weight_adapter import fits, matrix_shape, prepare

logger = logging.getLogger(__name__)

Target = str | tuple[str, tuple[int, int, int]]  # the host's: a weight, or (axis, start, length) of one
WEIGHT = ".weight"
ANY_PREFIX = re.compile(f"(?:{'|'.join(PREFIXES)})+")


def is_pixart_model(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    return isinstance(patcher.model, comfy.model_base.PixArt)


def underscored(name: str) -> str:
    """A layer's name as trainers without dots write it, without what stands before it."""
    name = name.replace(".", "_")
    match = ANY_PREFIX.match(name)
    return name[match.end() :] if match else name


def targets_of(patcher: comfy.model_patcher.ModelPatcher) -> dict[str, tuple[str, Target]]:
    """Underscored layer -> its name in diffusers' or the authors' layout, and what the host shall change."""
    weights = [key for key in patcher.model.state_dict() if key.startswith(TARGET) and key.endswith(WEIGHT)]
    found: dict[str, tuple[str, Target]] = {}
    table = comfy.utils.pixart_to_diffusers(patcher.model.model_config.unet_config, output_prefix=TARGET)
    for name, target in [*((key.removeprefix(TARGET), key) for key in weights), *table.items()]:
        if name.endswith(WEIGHT):
            layer = name.removesuffix(WEIGHT)
            found[underscored(layer)] = (layer, target)
    return found


def with_parts(state_dict: StateDict, parts: dict[str, str], layer: str, config: dict[str, Any]) -> StateDict:
    """Part -> tensor of one layer, with the alpha that PEFT's configuration gives it."""
    tensors = {part: state_dict[key] for part, key in parts.items()}
    rank = rank_in(tensors)
    alpha = None if rank is None or ALPHA in tensors else adapter_alpha(config, layer, rank)
    return tensors if alpha is None else tensors | {ALPHA: tensor(alpha)}


def slice_of(patcher: comfy.model_patcher.ModelPatcher, target: Target) -> Tensor:
    key, rows = (target, None) if isinstance(target, str) else target
    weight = comfy.utils.get_attr(patcher.model, key)
    return weight if rows is None else weight.narrow(*rows)


def apply_pixart_lora(
    patcher: comfy.model_patcher.ModelPatcher,
    checkpoint: Checkpoint,
    keys: LoraKeys,
    config: dict[str, Any],
    strength: float,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model with the LoRA at this strength.

    config: PEFT's. Raises ValueError with one sentence for a file of which nothing can be applied; what is left over of
    another is logged as a warning.
    """
    known, name = targets_of(patcher), checkpoint.name
    tensors: StateDict = {}
    key_map: dict[str, Target] = {}
    for stem, parts in keys.stems.items():
        layer, target = known.get(underscored(stem), ("", ""))
        if layer and is_complete(parts):
            key_map[stem] = target
            own = with_parts(checkpoint.state_dict, parts, layer, config)
            tensors |= {f"{stem}.{part}": value for part, value in own.items()}
    patches = {key: prepare(patch) for key, patch in comfy.lora.load_lora(tensors, key_map, log_missing=False).items()}
    misfits = {target: patch for target, patch in patches.items() if not fits(patch, slice_of(patcher, target))}
    fitting = {target: patch for target, patch in patches.items() if target not in misfits}
    wanted = [key for parts in keys.stems.values() for key in parts.values()] + keys.unknown
    layout = describe_layout(checkpoint.state_dict)
    if misfits and not fitting:
        own = matrix_shape(slice_of(patcher, next(iter(misfits))))
        raise ValueError(
            f"{name} ({layout}) is for another size of PixArt, as this model's layers have {own[0]} x {own[1]} values: "
            "use it with the model it was trained on."
        )
    named = {stem: parts for stem, parts in keys.stems.items() if underscored(stem) in known}
    halves = [next(iter(parts.values())) for parts in named.values() if not is_complete(parts)]
    if not fitting and halves:
        raise ValueError(
            f"{name} ({layout}) has {halves[0]} without its counterpart: save it again from the trainer, or download "
            "it again."
        )
    if not fitting:
        raise ValueError(
            f"None of the {len(wanted)} keys of {name} ({layout}, such as {wanted[0]}) names a layer of this PixArt "
            "model: check that it was trained on PixArt."
        )
    applied = [key for stem, target in key_map.items() if target in fitting for key in keys.stems[stem].values()]
    left = [key for key in wanted if key not in set(applied)]
    rest = f"; left over: {left[0]}" if left else ""
    log = logger.warning if left else logger.info
    log("SANA: %s: %d of %d keys applied (%s)%s", name, len(applied), len(wanted), layout, rest)
    clone = patcher.clone()
    clone.add_patches(fitting, strength)
    return clone
