"""The optimizer's schedule, the average of the weights, and both as tensors of a file."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .rounding import RoundedOptimizer

CONSTANT, COSINE = "constant", "cosine"
SCHEDULES = (CONSTANT, COSINE)
ADAM, EMA = "adam.", "ema."
ADAMW, ADAMW_8BIT, ROUNDED = "AdamW", "AdamW 8-bit", "AdamW 8-bit, no float32 copy"
LORA_OPTIMIZERS = (ADAMW, ADAMW_8BIT)
OPTIMIZERS = (*LORA_OPTIMIZERS, ROUNDED)
STATE_BYTES = {ADAMW: 8, ADAMW_8BIT: 2, ROUNDED: 2}  # of one weight
TORCHS_STATE = "exp_avg"  # which no state of bitsandbytes has, old or new
TORCHS_STATES = (TORCHS_STATE, "exp_avg_sq")
MOMENTS = (*TORCHS_STATES, "state1", "state2")  # torch's and bitsandbytes', in the weight's shape
NESTED = "/"


def learning_rate(step: int, rate: float, schedule: str, warmup: int, steps: int) -> float:
    """The rate of the step that follows `step` finished ones: a linear warm-up, then constant or down to 0 by a cosine.

    Raises ValueError for another schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"The schedule {schedule} is unknown: choose one of {', '.join(SCHEDULES)}.")
    if step < warmup:
        return rate * (step + 1) / warmup
    if schedule == CONSTANT:
        return rate
    done = (step - warmup) / max(1, steps - warmup)
    return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Average:
    """Exponential moving average of named parameters; follows quickly at first, so that no start lingers."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float):
        self.decay = decay
        self.values = {name: value.detach().to(torch.float32, copy=True) for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """step: how many there were, this one included."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in parameters.items():
            self.values[name].lerp_(value.detach().float(), 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Puts values of the parameters' names in the place of its own. Raises ValueError for those of others."""
        require_fit(values, self.values)
        for name, own in self.values.items():
            own.copy_(values[name])


def require_fit(values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a state's tensors are not one for each parameter, in its shape."""
    wrong = [
        name
        for name in values.keys() | parameters.keys()
        if name not in values or name not in parameters or values[name].shape != parameters[name].shape
    ]
    if wrong:
        raise ValueError(
            f"The run's state does not fit what is trained ({min(wrong)}): choose resume new, or put the run's own "
            "file back."
        )


def make_optimizer(
    kind: str, values: Iterable[Tensor], rate: float, decay: float, generator: Callable[[], torch.Generator]
) -> torch.optim.Optimizer | RoundedOptimizer:
    """AdamW, with its state in 32 bits or in 8.

    generator: of a step's random numbers, see `RoundedOptimizer`. Raises ValueError for another kind, and without
    bitsandbytes.
    """
    values = list(values)
    if kind == ADAMW:
        # Torch's own choice on a GPU would hold another float32 number for each weight while it steps.
        fused = True if all(value.is_cuda for value in values) else None
        return torch.optim.AdamW(values, lr=rate, weight_decay=decay, fused=fused)
    if kind not in OPTIMIZERS:
        raise ValueError(f"The optimizer {kind} is unknown: choose one of {', '.join(OPTIMIZERS)}.")
    try:
        import bitsandbytes  # a package that few have
    except ImportError:
        raise ValueError(
            f"{kind} needs the package bitsandbytes, which is not installed: install it into ComfyUI's Python, "
            f"or choose {ADAMW}."
        ) from None
    make = partial(bitsandbytes.optim.AdamW8bit, lr=rate, weight_decay=decay)
    return RoundedOptimizer(values, make, generator) if kind == ROUNDED else make(values)


def optimizer_tensors(optimizer: torch.optim.Optimizer | RoundedOptimizer, names: Iterable[str]) -> dict[str, Tensor]:
    """An optimizer's state with a name for every tensor. names: of its parameters, in its order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{ADAM}{part}.{name}": value
        for index, name in enumerate(names)
        for part, value in flattened(state.get(index, {})).items()
    }


def flattened(state: Mapping[str, Any], path: str = "") -> dict[str, Tensor]:
    """A parameter's state as tensors: bitsandbytes counts steps in whole numbers, and nests what it keeps in 8 bits."""
    flat = {}
    for part, value in state.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{path}{part}{NESTED}")
        else:
            # Copies, because bitsandbytes has one table for all, and a file holds no tensor twice.
            flat[path + part] = value.clone() if isinstance(value, Tensor) else torch.tensor(value)
    return flat


def nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `flattened` made flat."""
    state: dict[str, Any] = {}
    for path, value in flat.items():
        *outer, part = path.split(NESTED)
        place = state
        for name in outer:
            place = place.setdefault(name, {})
        place[part] = int(value) if value.dtype == torch.int64 and value.ndim == 0 else value.clone()
    return state


def load_optimizer(
    optimizer: torch.optim.Optimizer | RoundedOptimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Puts what `optimizer_tensors` gave into an optimizer of the same parameters.

    Raises ValueError for the state of another optimizer, or of other parameters.
    """
    places = {name: index for index, name in enumerate(parameters)}
    flat: dict[int, dict[str, Tensor]] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(ADAM):
            part, _, own = key.removeprefix(ADAM).partition(".")
            flat.setdefault(places.get(own, -1), {})[part] = value
            if part in MOMENTS:
                moments.setdefault(part, {})[own] = value
    state = {index: nested(parts) for index, parts in flat.items()}
    is_torchs = TORCHS_STATE in moments
    for part in TORCHS_STATES if is_torchs else moments:
        require_fit(moments.get(part, {}), parameters)
    if state and is_torchs != isinstance(optimizer, torch.optim.AdamW):
        raise ValueError("The run was begun with another optimizer: set it as it was, or choose resume new.")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
