"""Muon: momentum whose update of every weight matrix is made orthogonal, with AdamW for what is no matrix.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. For the small decoder
here it takes fewer steps than AdamW to the same loss.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

# The quintic of the source: it takes singular values from (0, 1] to about 1 in five rounds.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
THREADS = 2


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix of orthonormal rows or columns, roughly, in bfloat16. (R, C) -> (R, C)."""
    x = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ROUNDS):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices with more than 8 rows and columns, AdamW without decay for the rest; one rate serves both."""

    def __init__(self, model: nn.Module, rate: float, momentum: float = 0.95):
        large = [p for p in model.parameters() if p.shape[0] > 8 and p[0].numel() > 8]
        small = [p for p in model.parameters() if not (p.shape[0] > 8 and p[0].numel() > 8)]
        super().__init__([{"params": large, "large": True}, {"params": small, "large": False}], {"lr": rate})
        self.momentum = momentum

    @torch.no_grad()
    def step(self) -> None:
        def update(parameter: Tensor, large: bool, rate: float) -> None:
            with torch.no_grad():  # which is a thread's own
                (self.step_matrix if large else self.step_other)(parameter, self.state[parameter], rate)

        jobs = [(p, group["large"], group["lr"]) for group in self.param_groups for p in group["params"]]
        jobs.sort(key=lambda job: -job[0].numel())
        for parameter, _, _ in jobs:
            self.state[parameter]  # made here: a defaultdict must not grow in two threads
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda job: update(*job), jobs))

    def step_matrix(self, parameter: Tensor, state: dict, rate: float) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
        matrix = parameter.grad.lerp(momentum, self.momentum).flatten(1)  # Nesterov's look ahead
        # The factor gives the update the root mean square that AdamW's usually have.
        update = orthogonalise(matrix) * (0.2 * max(matrix.shape) ** 0.5)
        parameter.sub_(rate * update.view(parameter.shape).to(parameter.dtype))

    def step_other(self, parameter: Tensor, state: dict, rate: float, betas: tuple[float, float] = (0.9, 0.98)) -> None:
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        mean = state["mean"].lerp_(parameter.grad, 1 - betas[0]) / (1 - betas[0] ** state["step"])
        square = state["square"].lerp_(parameter.grad.square(), 1 - betas[1]) / (1 - betas[1] ** state["step"])
        parameter.sub_(rate * mean / (square.sqrt() + 1e-8))
