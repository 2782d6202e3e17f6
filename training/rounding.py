"""Steps of an optimizer on bfloat16 weights without a float32 copy of them all: the result is rounded by chance.

Rounded to the nearest number, a step of less than 0.2 to 0.4 % of a weight would be lost each time; by chance it counts
in the mean. Source: stochastic rounding, arXiv 1502.02551; of bfloat16 weights, arXiv 2010.06192.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

DROPPED_BITS = 16  # of float32's, which bfloat16 does not have


def round_by_chance(x: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> one of the two bfloat16 next to it, each with the chance that makes the mean right."""
    noise = torch.randint(2**DROPPED_BITS, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    bits = x.contiguous().view(torch.int32) + noise
    return (bits & -(2**DROPPED_BITS)).view(torch.float32).bfloat16()


class RoundedOptimizer:
    """An optimizer whose weights are widened to float32 one at a time, for their step.

    values: of bfloat16, rounded by chance, or of float32, which take their step as usual. make: gives the optimizer of
    float32 tensors. generator: gives that of a step's random numbers, on the weights' device.
    """

    def __init__(
        self,
        values: Iterable[Tensor],
        make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        generator: Callable[[], torch.Generator],
    ):
        self.values, self.generator = list(values), generator
        self.wide = [nn.Parameter(torch.empty(0, device=value.device)) for value in self.values]
        self.inner = make(self.wide)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 - as torch's
        for value in self.values:
            value.grad = None

    @torch.no_grad()
    def step(self) -> None:
        generator = self.generator()
        for value, wide in zip(self.values, self.wide, strict=True):
            if value.grad is None:
                continue
            wide.data, wide.grad = value.detach().float(), value.grad.float()
            self.inner.step()  # of this one: no other has a gradient
            value.copy_(round_by_chance(wide, generator) if value.dtype == torch.bfloat16 else wide)
            value.grad = wide.grad = None
            wide.data = wide.new_empty(0)
