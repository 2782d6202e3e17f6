"""The optimizer's schedule, the average of the weights, and both as tensors of a file."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

CONSTANT, COSINE = "constant", "cosine"
SCHEDULES = (CONSTANT, COSINE)
ADAM, EMA = "adam.", "ema."


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
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """step: how many there were, this one included."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in parameters.items():
            self.values[name].lerp_(value.detach(), 1 - decay)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, Tensor]:
    """An optimizer's state with a name for every tensor. names: of its parameters, in its order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{ADAM}{part}.{name}": value
        for index, name in enumerate(names)
        for part, value in state.get(index, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
    """Puts what `optimizer_tensors` gave into an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(names):
        for key, value in tensors.items():
            part, _, own = key.removeprefix(ADAM).partition(".")
            if key.startswith(ADAM) and own == name:
                state.setdefault(index, {})[part] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
