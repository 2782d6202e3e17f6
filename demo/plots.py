"""The plots of demo/README.md, from the tables that `measure.py` prints."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

from matplotlib import pyplot  # noqa: E402 - after the choice of what draws

SIZE, DPI = (8.0, 3.2), 110  # inches, and pixels of each


def _plain(axis, x: Sequence[float]) -> None:
    axis.set_xticks(x, [f"{value:g}" for value in x])
    axis.xaxis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_solvers(rows: list[dict], figure) -> None:
    right, distance = figure.subplots(1, 2)
    for solver, mark in (("Flow-DPM", "o"), ("Euler", "s")):
        own = [row for row in rows if row["solver"] == solver]
        steps = [row["steps"] for row in own]
        right.plot(steps, [100 * row["all"] for row in own], marker=mark, label=solver)
        distance.plot(steps, [row["distance"] for row in own], marker=mark, label=solver)
    right.set(xscale="log", xlabel="steps", ylabel="everything right, %")
    distance.set(xscale="log", yscale="log", xlabel="steps", ylabel="distance to 200 steps, relative")
    for axis in (right, distance):
        _plain(axis, sorted({row["steps"] for row in rows}))
        axis.legend(frameon=False)


def _draw_cfg(rows: list[dict], figure) -> None:
    axis, scales = figure.subplots(), [row["cfg"] for row in rows]
    for name, mark in (("thing", "o"), ("place", "s"), ("background", "^"), ("all", "d")):
        axis.plot(scales, [100 * row[name] for row in rows], marker=mark, label=name)
    axis.set(xlabel="cfg (1 is no guidance)", ylabel="right, %")
    _plain(axis, scales)
    axis.legend(frameon=False)


def draw_plot(what: str, rows: list[dict], path: Path) -> None:
    """Draws the rows of `measure.py solvers` or `measure.py cfg` into a file."""
    figure = pyplot.figure(figsize=SIZE, dpi=DPI, layout="constrained")
    {"solvers": _draw_solvers, "cfg": _draw_cfg}[what](rows, figure)
    figure.savefig(path)
    pyplot.close(figure)
