"""What a run trains, by its settings: adapters on a network's layers, or all of its weights."""

from typing import Any

import comfy.model_management

from .adapters import AdapterSet
from .network import Prediction
from .optimizer import ADAMW_8BIT, STATE_BYTES
from .settings import MODEL, Settings
from .weights import WeightSet, require_memory

MEMORY_CURE = f"choose {ADAMW_8BIT} or ema 0 where that is enough, or train a LoRA with SANA Train LoRA"


def what_is_trained(patcher: Any, predict: Prediction, settings: Settings) -> AdapterSet | WeightSet:
    """Of a model's copy on its device, by the settings' target."""
    if settings.target == MODEL:
        # Its LoRAs are in the weights now, and must not be taken out of them again.
        patcher.patches.clear()
        patcher.backup.clear()
        return WeightSet(predict.network)
    trained = AdapterSet(predict.network, settings.layers, settings.rank, settings.alpha, settings.seed, predict.family)
    for adapter in trained.adapters.values():
        adapter.to(predict.device)
    return trained


def require_room(patcher: Any, settings: Settings) -> None:
    """Raises ValueError where all weights cannot be trained on the model's device."""
    weights = list(patcher.model.diffusion_model.parameters())
    require_memory(
        sum(one.numel() for one in weights),
        max(one.element_size() for one in weights),
        STATE_BYTES.get(settings.optimizer, 0),
        bool(settings.ema),
        comfy.model_management.get_total_memory(patcher.load_device),
        MEMORY_CURE,
    )
