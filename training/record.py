"""What happened in a run so far, and what is told after a step."""

from dataclasses import dataclass, field

from torch import Tensor

FIXED_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class Record:
    """What happened so far. losses: one a step; fixed: (step, loss at each of FIXED_LEVELS); held_out: the same of the
    pictures that are not trained."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    fixed: list[tuple[int, list[float]]] = field(default_factory=list)
    held_out: list[tuple[int, list[float]]] = field(default_factory=list)


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
