"""What a run is compared with before it goes on: the settings, the base and the set it was begun with.

It reads the weights and decides, and changes nothing.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from .encode import EncodedSet
from .settings import LORA, Settings

SETTINGS, BASE, SET = "settings", "weights", "set"  # in a state's record
EXPECTED = ("steps", "save_every", "sample_every", "checkpointing")  # change nothing of what is learned
VALUES = 64  # of a weight that are compared


def origin_of(settings: Settings, network: nn.Module, data: EncodedSet) -> dict[str, Any]:
    """What a state tells of its run. A model's own weights are in its state, so any base of the shape will do."""
    base = base_digest(network) if settings.target == LORA else ""
    return {SETTINGS: asdict(settings), BASE: base, SET: set_digest(data)}


def base_digest(network: nn.Module) -> str:
    """Of some values of every weight, rounded to bfloat16, so that a model may be loaded in another format."""
    flat = [value.detach().flatten() for _, value in sorted(network.named_parameters())]
    chosen = torch.cat([one[:: max(1, one.numel() // VALUES)].bfloat16() for one in flat])
    return hashlib.sha256(chosen.view(torch.int16).cpu().numpy().tobytes()).hexdigest()


def set_digest(data: EncodedSet) -> str:
    """Of the pictures' and captions' entries in the cache, wherever that lies."""
    paths = [path for one in data.samples for path in (one.latent_path, one.caption_path)]
    return hashlib.sha256("\0".join(map(os.path.basename, [data.null_path, *paths])).encode()).hexdigest()


def compare(before: Mapping[str, Any], now: Mapping[str, Any], patched: bool = False) -> list[str]:
    """Of two origins: sentences on what a run goes on with otherwise than before.

    patched: whether LoRAs are merged into the base now, whose rounding is another on each device and in each format.
    Raises ValueError where what was learned would act otherwise. What an older state does not tell is not compared.
    """
    old, new = before.get(SETTINGS), now[SETTINGS]
    old = old if isinstance(old, Mapping) else {}
    changed = [name for name in new if name in old and old[name] != new[name] and name not in EXPECTED]
    if "alpha" in changed:
        raise ValueError(
            f"The run was begun with alpha {old['alpha']:g}, and {new['alpha']:g} would change the strength of what it "
            "has learned: set it as it was, or choose resume new."
        )
    rebased = bool(before.get(BASE)) and before[BASE] != now[BASE]
    if rebased and not patched:
        raise ValueError(
            "The run was begun on a model with other weights, on which what it has learned does not fit: connect that "
            "model, or choose resume new."
        )
    told = [f"{name} {new[name]}, which was {old[name]}" for name in changed]
    if rebased:
        told.append("other weights of the model, or the same after a merge of its LoRAs on another device or format")
    if before.get(SET) and before[SET] != now[SET]:
        told.append("another training set")
    return [f"The run goes on with {'; '.join(told)}."] if told else []
