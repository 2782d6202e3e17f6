"""The curve of a run: finite points only, round numbers on its axes, and a legend in the colors of its lines."""

import math

import numpy as np
import pytest
from PIL import ImageColor
from sana_native.training.plot import HELD_OUT_COLOR, STEP_COLOR, draw_losses, lines_of, round_step, ticks

ROW = [0.1, 0.2, 0.3, 0.4, 0.5]
NAMES = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_is_left_out(odd):
    levels = [(0, ROW), (2, [odd, *ROW[1:]])]
    lines = lines_of([1.0, odd, 2.0], levels, NAMES, levels)
    assert lines[0].points == [(1, 1.0), (3, 2.0)] and [step for step, _ in lines[1].points] == [1, 3]
    assert [len(line.points) for line in lines[2:]] == [1, 2, 2, 2, 2, 1, 1]
    assert all(math.isfinite(value) for line in lines for _, value in line.points)
    assert np.asarray(draw_losses([1.0, odd, 2.0], levels, NAMES, levels)).std() > 5
    draw_losses([odd], [], [])


@pytest.mark.parametrize(
    ("length", "found"),
    [
        (6, [0, 2, 4, 6]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (60, [0, 20, 40, 60]),
        (500, [0, 100, 200, 300, 400, 500]),
        (1.316, [0, 0.5, 1]),
        (0.26, [0, 0.1, 0.2]),
    ],
)
def test_ticks_are_round_and_equally_far_apart(length, found):
    assert ticks(round_step(length), length) == pytest.approx(found)


def test_ticks_of_steps_are_whole():
    assert ticks(max(1, round_step(3)), 3) == [0, 1, 2, 3]


def test_the_legend_shows_each_line_in_its_color():
    drawn = np.asarray(draw_losses([1.0, 0.5], [(0, ROW), (2, ROW)], NAMES, [(0, ROW)]))
    legend = drawn[:, 805:845].reshape(-1, 3)
    for color in (STEP_COLOR, HELD_OUT_COLOR):
        assert (legend == ImageColor.getrgb(color)).all(axis=1).sum() >= 18
