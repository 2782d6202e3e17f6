"""What happened in a run so far, and what is told after a step."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Record:
    """What happened so far. losses: one a step; fixed: (step, loss at each of FIXED_LEVELS)."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    fixed: list[tuple[int, list[float]]] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What is told after a step, and at 0 where there is a preview, with the loss at fixed noises and no time left yet.

    sample: raw latents of the preview's prompts, where they were generated.
    """

    step: int
    steps: int
    loss: float
    rate: float
    seconds_left: float
    sample: Tensor | None = None
