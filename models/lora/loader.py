"""A LoRA file of any trainer -> a clone of a SANA model with it applied, and one sentence for what cannot be."""

import logging
import os
import re
from collections.abc import Callable

import comfy.lora
import comfy.model_patcher
import torch
from torch import Tensor

from ..files import foreign_files
from ..files.reader import Checkpoint, read_json
from ..sana.config import releases_of_width
from .convert import (
    SANA_LAYERS,
    TARGET,
    ConvertedLora,
    LoraKeys,
    StateDict,
    base_model_of,
    convert_lora,
    describe_layout,
    find_foreign,
    layer_of,
    read_adapter_config,
    sort_keys,
)
from .pixart import apply_pixart_lora, is_pixart_model
from .depthwise import add_depthwise_lora, find_depthwise_lora
from .stock_nodes import StockLora, StockPatches, require_strength
from .weight_adapter import change_shape, fits, in_network_shape, matrix_shape, prepare

logger = logging.getLogger(__name__)

PEFT_FILE, PEFT_CONFIG = "adapter_model", "adapter_config.json"  # as PEFT names them in an adapter's folder
PARTS = ("weight", "bias")


def load_lora(
    patcher: comfy.model_patcher.ModelPatcher,
    path: str,
    strength: float,
    describe: Callable[[StateDict], str] = foreign_files.describe,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model with the LoRA at this strength, which may be negative; the model itself at strength 0.

    describe: says of a state dict what it seems to be, for the message about a file that is no LoRA.
    Raises ValueError or FileNotFoundError with one sentence for a file of which nothing can be applied; what is left
    over of another is logged as a warning.
    """
    require_strength(strength)
    if strength == 0:
        return patcher
    if is_pixart_model(patcher):
        return load_on_pixart(patcher, path, strength, describe)
    network = sana_network(patcher)
    checkpoint = Checkpoint.read(path, "transformer")
    keys = sort_keys(checkpoint.state_dict)
    require_adapter(checkpoint, keys, describe, "SANA")
    require_sana_lora(checkpoint, keys)
    require_finite_values(checkpoint)
    weights = weights_of(network)
    layers = [layer_of(key) for key in weights if key.endswith(".weight")]
    converted = convert_lora(checkpoint.state_dict, keys, layers, adapter_config(checkpoint))
    key_map = {TARGET + name: f"{TARGET}{name}.weight" for name in converted.sources}
    patches = comfy.lora.load_lora(converted.tensors, key_map, log_missing=False)
    patches = {key: in_network_shape(prepare(patch), weights[key]) for key, patch in patches.items() if key in weights}
    depthwise = {
        key: found for key, patch in patches.items() if (found := find_depthwise_lora(patch, weights[key], strength))
    }
    misfits = find_misfits({key: patch for key, patch in patches.items() if key not in depthwise}, weights)
    fitting = {key: patch for key, patch in patches.items() if layer_of(key) not in misfits}
    report(checkpoint, keys, converted, fitting, misfits, network)
    clone = patcher.clone()
    plain = {key: patch for key, patch in fitting.items() if key not in depthwise}
    # The host's own method: ours (`stock_nodes.py`) checks what stock nodes bring, which is done here already.
    comfy.model_patcher.ModelPatcher.add_patches(clone, plain, strength)
    for key, lora in depthwise.items():
        add_depthwise_lora(clone, key, lora)
    return clone


def load_on_pixart(
    patcher: comfy.model_patcher.ModelPatcher, path: str, strength: float, describe: Callable[[StateDict], str]
) -> comfy.model_patcher.ModelPatcher:
    """A clone of a PixArt model with the LoRA; raises as `load_lora` does."""
    checkpoint = Checkpoint.read(path, "transformer")
    keys = sort_keys(checkpoint.state_dict)
    require_adapter(checkpoint, keys, describe, "PixArt")
    require_pixart_lora(checkpoint, keys)
    require_finite_values(checkpoint)
    return apply_pixart_lora(patcher, checkpoint, keys, adapter_config(checkpoint), strength)


def sana_network(patcher: comfy.model_patcher.ModelPatcher) -> torch.nn.Module:
    if isinstance(patcher, StockPatches) and not isinstance(patcher, StockLora):
        raise ValueError(
            f"SANA LoRA Loader reads no LoRA for {patcher.kind} in this version: use the stock Load LoRA node, which "
            "reads the names of its authors' layers."
        )
    if not isinstance(patcher, StockLora):
        raise ValueError(
            f"SANA LoRA Loader got a {type(patcher.model).__name__} model: connect the model of SANA Model Loader, or "
            "use the stock Load LoRA node for other models."
        )
    return patcher.model.diffusion_model


def weights_of(network: torch.nn.Module) -> dict[str, Tensor]:
    """Weights and biases by the host's key; of modules, whose quantized weights tell their true shape."""
    parts = ((name, part, getattr(module, part, None)) for name, module in network.named_modules() for part in PARTS)
    return {f"{TARGET}{name}.{part}": value for name, part, value in parts if isinstance(value, Tensor)}


def require_adapter(checkpoint: Checkpoint, keys: LoraKeys, describe: Callable[[StateDict], str], family: str) -> None:
    """Raises ValueError for a file that is no LoRA of a transformer."""
    name = checkpoint.name
    if not keys.stems and keys.ignored:
        raise ValueError(
            f"{name} trains the text encoder alone ({len(keys.ignored)} keys, such as {keys.ignored[0]}), which "
            f"{family} keeps as released: train the transformer too."
        )
    if not keys.stems:
        layout = describe_layout(checkpoint.state_dict)
        found = f"of a kind that is not supported ({layout})" if is_adapter(keys) else "no LoRA but "
        found += "" if is_adapter(keys) else describe(checkpoint.state_dict)
        raise ValueError(f"{name} is {found}: pick a LoRA, LoHa, LoKr or DoRA trained on {family}.")


def require_sana_lora(checkpoint: Checkpoint, keys: LoraKeys) -> None:
    """Raises ValueError for a LoRA of another model."""
    name, foreign = checkpoint.name, find_foreign(keys)
    require_base_model(checkpoint, "SANA")
    if foreign is not None:
        first = next(iter(next(iter(keys.stems.values())).values()))
        raise ValueError(
            f"{name} is a LoRA for {foreign}, not for SANA (it has {first}): use it with the model it was trained on."
        )


def require_base_model(checkpoint: Checkpoint, family: str) -> None:
    """Raises ValueError where the header names the other family, whose layers may have the same names and width."""
    named = base_model_of(checkpoint.metadata)
    if named is not None and named != family:
        raise ValueError(
            f"{checkpoint.name} is a LoRA for {named}, not for {family}, as its header says: use it with the model it "
            "was trained on."
        )


def require_pixart_lora(checkpoint: Checkpoint, keys: LoraKeys) -> None:
    """Raises ValueError for a LoRA of SANA, by a layer that PixArt lacks or by the header."""
    require_base_model(checkpoint, "PixArt")
    key = next((key for key in checkpoint.state_dict if re.search(SANA_LAYERS, key.replace(".", "_"))), None)
    if key is not None and keys.stems:
        raise ValueError(
            f"{checkpoint.name} is a LoRA for SANA, not for PixArt (it has {key}): use it with the model it was "
            "trained on."
        )


def require_finite_values(checkpoint: Checkpoint) -> None:
    """Raises ValueError for a LoRA with damaged values."""
    name, values = checkpoint.name, checkpoint.state_dict.items()
    broken = next((key for key, tensor in values if not torch.isfinite(tensor.float()).all()), None)  # float8 too
    if broken is not None:
        raise ValueError(f"{name} holds NaN or infinity in {broken}, so its training failed: take an earlier save.")


def is_adapter(keys: LoraKeys) -> bool:
    return any(re.search(r"lora_|oft_|hada_|lokr_", key) for key in keys.unknown)


def adapter_config(checkpoint: Checkpoint) -> dict:
    """PEFT's configuration from the file's header or, for PEFT's own folder, from the file beside it."""
    try:
        config = read_adapter_config(checkpoint.metadata)
    except ValueError as error:
        raise ValueError(f"The lora_adapter_metadata of {checkpoint.name} is damaged: save the LoRA again.") from error
    folder, file = os.path.split(checkpoint.path)
    # Only beside PEFT's own file name: elsewhere a configuration may be another LoRA's.
    return config or (read_json(os.path.join(folder, PEFT_CONFIG)) if file.startswith(PEFT_FILE) else {})


def find_misfits(patches: dict, weights: dict[str, Tensor]) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Layer -> shape of the change and of the weight, flattened, where the one cannot be added to the other."""
    return {
        layer_of(key): (change_shape(patch), matrix_shape(weights[key]))
        for key, patch in patches.items()
        if not fits(patch, weights[key])
    }


def report(
    checkpoint: Checkpoint,
    keys: LoraKeys,
    converted: ConvertedLora,
    fitting: dict,
    misfits: dict,
    network: torch.nn.Module,
) -> None:
    """Logs how many keys apply, and which is the first left over. Raises ValueError when none does."""
    name, layout = checkpoint.name, describe_layout(checkpoint.state_dict)
    layers = {layer_of(key) for key in fitting}
    applied = {key for layer, sources in converted.sources.items() if layer in layers for key in sources}
    applied -= {key for layer in misfits for key in converted.sources[layer]}
    wanted = [key for key in checkpoint.state_dict if key not in set(keys.ignored)]
    left = [key for key in wanted if key not in applied]
    if not applied and misfits:
        layer, (change, own) = next(iter(misfits.items()))
        raise ValueError(
            f"{name} ({layout}) is for another size of SANA{size_hint(change)}: it changes {layer} by {change[0]} x "
            f"{change[1]} values where this model has {own[0]} x {own[1]}: use it with the size it was trained on."
        )
    if not applied and converted.incomplete:
        raise ValueError(
            f"{name} ({layout}) has {converted.incomplete[0]} without its counterpart, as {len(converted.incomplete)} "
            "of its keys have none: save it again from the trainer, or download it again."
        )
    if not applied:
        raise ValueError(
            f"None of the {len(wanted)} keys of {name} ({layout}, such as {wanted[0]}) names a layer of this SANA "
            "model: check that it was trained on SANA, and save it in the diffusers layout."
        )
    message = "SANA: %s: %d of %d keys applied (%s)%s"
    ignored = f", {len(keys.ignored)} of the text encoder ignored" if keys.ignored else ""
    if not left:
        logger.info(message, name, len(applied), len(wanted), layout, ignored)
        return
    logger.warning(
        message + "; left over: %s%s",
        *(name, len(applied), len(wanted), layout, ignored, left[0]),
        " (without its counterpart)" if left[0] in converted.incomplete else depth_hint(left, network.config.depth),
    )


def size_hint(change: tuple[int, int]) -> str:
    names = [release.name for width in change for release in releases_of_width(width)]
    return f" ({' or '.join(dict.fromkeys(names))}, by its width)" if names else ""


def depth_hint(left: list[str], depth: int) -> str:
    blocks = [int(match[1]) + 1 for key in left if (match := re.search(r"blocks[._](\d+)[._]", key))]
    if max(blocks, default=0) <= depth:
        return ""
    return f" (trained on {max(blocks)} blocks or more, this model has {depth})"
