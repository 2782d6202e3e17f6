"""Settings that are known to work, by a name.

Source: "LoRA small" diffusers `examples/dreambooth/train_dreambooth_lora_sana.py` with SANA's own noise levels, because
the script's scheduler has shift 1; "full, NVIDIA" NVlabs/Sana `train_scripts/train.py` and its configurations, with
AdamW in place of CAME; "LoRA style" common practice.
"""

from dataclasses import replace
from typing import Any

from .captions import CAPTION_MASK
from .family import FEED_FORWARD, QKV
from .loss import LOGIT_NORMAL
from .optimizer import CONSTANT, COSINE
from .settings import Settings

CUSTOM = "custom"
LORA_RECIPES: dict[str, dict[str, Any]] = {
    CUSTOM: {},
    "LoRA small": {
        "learning_rate": 1e-4, "schedule": CONSTANT, "warmup": 0, "rank": 4, "alpha": 4.0, "layers": QKV,
        "time_sampling": LOGIT_NORMAL, "clip_norm": 1.0, "weight_decay": 1e-4, "ema": 0.0,
    },
    "LoRA style": {
        "learning_rate": 1e-4, "schedule": COSINE, "warmup": 100, "rank": 32, "alpha": 32.0, "layers": FEED_FORWARD,
        "time_sampling": LOGIT_NORMAL, "clip_norm": 1.0, "weight_decay": 1e-4, "ema": 0.999,
    },
}  # fmt: skip
MODEL_RECIPES: dict[str, dict[str, Any]] = {
    CUSTOM: {},
    "full, NVIDIA": {
        "learning_rate": 1e-4, "schedule": CONSTANT, "warmup": 2000, "time_sampling": LOGIT_NORMAL,
        "caption_dropout": 0.1, "null_mask": CAPTION_MASK, "clip_norm": 0.1, "weight_decay": 0.0, "ema": 0.0,
    },
}  # fmt: skip


def with_recipe(settings: Settings, name: str) -> Settings:
    """The settings with those of a recipe in their place. Raises ValueError for an unknown name."""
    recipes = LORA_RECIPES | MODEL_RECIPES
    if name not in recipes:
        raise ValueError(f"The preset {name} is unknown: choose one of {', '.join(recipes)}.")
    return replace(settings, **recipes[name])
