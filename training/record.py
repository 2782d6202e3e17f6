"""What happened in a run so far, and what is told after a step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

FIXED_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class Record:
    """What happened so far. losses: one a step; fixed: (step, loss at each of FIXED_LEVELS); held_out: the same of the
    pictures that are not trained; notices: what it went on with otherwise than before."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    fixed: list[tuple[int, list[float]]] = field(default_factory=list)
    held_out: list[tuple[int, list[float]]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Record":
        """From a state's JSON. Raises ValueError for one that is no record."""
        try:
            losses = [float(loss) for loss in stored["losses"]]
            fixed, held_out = (
                [(int(step), levels_of(row)) for step, row in stored.get(kind, [])] for kind in ("fixed", "held_out")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no record of a run: {error}") from error
        if stored.get("step") != len(losses):
            raise ValueError(f"no record of a run: {stored.get('step')} steps with {len(losses)} losses")
        return cls(len(losses), losses, fixed, held_out)


def levels_of(row: Any) -> list[float]:
    """A row of losses. Raises ValueError where it is not one for each of FIXED_LEVELS."""
    if len(row) != len(FIXED_LEVELS):
        raise ValueError(f"{len(row)} losses for {len(FIXED_LEVELS)} noise levels")
    return [float(loss) for loss in row]


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
