"""The loss of a run as a picture: every step, a smoothed line, and fixed noises at several levels."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 960, 540, 70, 40, 160, 50
STEP_COLOR, SMOOTH_COLOR, AXIS, GRID, PAPER = "#9db6d9", "#1f4e8c", "#333333", "#e6e6e6", "white"
LEVEL_COLORS = ("#2a9d55", "#8a6d3b", "#c2571a", "#b02a4a", "#6b3fa0")
TRAINED_COLOR, HELD_OUT_COLOR = "#7f7f7f", "#111111"
TICKS = 5


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean over about a twentieth of the values, without the bias of its start."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        out.append(mean / weight)
    return out


Measured = Sequence[tuple[int, Sequence[float]]]
"""(step, loss at each noise level) as often as they were measured."""


def draw_losses(
    losses: Sequence[float], levels: Measured, names: Sequence[str], held_out: Measured = ()
) -> Image.Image:
    """losses: one a step. levels: of pictures that are trained. names: of the levels. held_out: of other pictures.

    What is not finite, as in a run that diverges, is left out.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    lines = lines_of(losses, levels, names, held_out)
    height = max([value for line in lines for _, value in line.points] + [1e-12])
    rise = round_step(height)
    highest, last = rise * math.ceil(height / rise), max([len(losses), *(step for step, _ in levels), 1])

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / highest

    for value in ticks(rise, highest):
        _, y = place(0, value)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], GRID)
        draw.text((LEFT - 8, y), f"{value:g}", AXIS, font, anchor="rm")
    for step in ticks(max(1, round_step(last)), last):
        x, _ = place(step, 0)
        draw.line([(x, HEIGHT - BOTTOM), (x, HEIGHT - BOTTOM + 5)], AXIS)
        draw.text((x, HEIGHT - BOTTOM + 8), f"{step:.0f}", AXIS, font, anchor="mt")
    draw.rectangle([LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM], outline=AXIS)
    draw.text((LEFT, TOP - 10), "loss", AXIS, font, anchor="lb")
    draw.text((WIDTH - RIGHT, HEIGHT - 12), "step", AXIS, font, anchor="rm")
    for row, line in enumerate(lines):
        draw_line(draw, [place(*point) for point in line.points], line)
        x, y = WIDTH - RIGHT + 12, TOP + 8 + 22 * row
        draw.line([(x, y), (x + 18, y)], line.color, max(2, line.width))
        draw.text((x + 24, y), line.name, AXIS, font, anchor="lm")
    return image


@dataclass(frozen=True)
class Line:
    """points: (step, loss), finite. width: in pixels."""

    name: str
    color: str
    width: int
    points: list[tuple[int, float]]


def lines_of(losses: Sequence[float], levels: Measured, names: Sequence[str], held_out: Measured) -> list[Line]:
    each = finite(enumerate(losses, 1))
    smooth = zip([step for step, _ in each], smoothed([loss for _, loss in each]), strict=True)
    lines = [Line("each step", STEP_COLOR, 1, each), Line("smoothed", SMOOTH_COLOR, 4, list(smooth))]
    for index, name in enumerate(names):
        points = finite((step, row[index]) for step, row in levels)
        lines.append(Line(name, LEVEL_COLORS[index % len(LEVEL_COLORS)], 2, points))
    if held_out:  # beside the mean of those that are trained: a gap between the two is what was learned by heart
        lines.append(Line("trained, mean", TRAINED_COLOR, 2, finite(means(levels))))
        lines.append(Line("held out, mean", HELD_OUT_COLOR, 2, finite(means(held_out))))
    return lines


def finite(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def round_step(length: float) -> float:
    """1, 2 or 5 times a power of ten that divides a length into at most TICKS whole parts."""
    power = 10.0 ** math.floor(math.log10(length / TICKS))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= length / TICKS * (1 - 1e-9))


def ticks(step: float, last: float) -> list[float]:
    """Multiples of a step from 0 up to the last."""
    return [step * index for index in range(int(last / step + 1e-9) + 1)]


def means(measured: Measured) -> list[tuple[int, float]]:
    return [(step, sum(row) / len(row)) for step, row in measured]


def draw_line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], line: Line) -> None:
    if len(points) == 1:
        (x, y) = points[0]
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=line.color)
    elif points:
        draw.line(points, line.color, line.width)


def as_tensor(image: Image.Image) -> Tensor:
    """(1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)[None]


def as_image(pixels: Tensor) -> Image.Image:
    """Pictures (B, H, W, 3) in [0, 1], side by side."""
    row = torch.cat(list(pixels.clamp(0, 1)), dim=1)
    return Image.fromarray((row * 255).round().byte().cpu().numpy())
