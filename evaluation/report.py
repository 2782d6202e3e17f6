"""Numbers with their intervals as a Markdown table and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .intervals import Estimate

COLUMNS = ("metric", "value", "95 % interval", "N", "reference N", "note")


@dataclass(frozen=True)
class Score:
    """An estimate under its name. digits: behind the point. note: what to bear in mind, or ""."""

    name: str
    estimate: Estimate
    digits: int = 2
    note: str = ""


def table(scores: Sequence[Score]) -> str:
    """A row for each score; a dash where there is nothing to tell."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for one in scores:
        found = one.estimate
        reach = f"{shown(found.low, one.digits)} to {shown(found.high, one.digits)}" if found.low is not None else "-"
        reference = f"{found.reference:,}" if found.reference else "-"
        cells = [one.name, shown(found.value, one.digits), reach, f"{found.count:,}", reference, one.note or "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(value: float, digits: int) -> str:
    return "infinite" if math.isinf(value) else f"{value:.{digits}f}"


def as_json(scores: Sequence[Score], **about: object) -> str:
    """What the scores are about, and every figure in full."""
    rows = {one.name: asdict(one.estimate) | {"note": one.note} for one in scores}
    return json.dumps({**about, "scores": rows}, indent=1, ensure_ascii=False) + "\n"
