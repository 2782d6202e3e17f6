"""The loss of a run as a picture: every step, a smoothed line, and fixed noises at several levels."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 960, 540, 70, 40, 150, 50
STEP_COLOR, SMOOTH_COLOR, AXIS, GRID, PAPER = "#c9d4e4", "#1f4e8c", "#333333", "#e6e6e6", "white"
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
    """losses: one a step. levels: of pictures that are trained. names: of the levels. held_out: of other pictures."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    measured = [value for _, row in [*levels, *held_out] for value in row]
    highest = max([*losses, *measured, 1e-12]) * 1.05
    last = max([len(losses), *(step for step, _ in levels), 1])

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / highest

    for tick in range(TICKS + 1):
        x, y = place(last * tick / TICKS, highest * tick / TICKS)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], GRID)
        draw.text((LEFT - 8, y), f"{highest * tick / TICKS:.3g}", AXIS, font, anchor="rm")
        draw.text((x, HEIGHT - BOTTOM + 8), f"{last * tick / TICKS:.0f}", AXIS, font, anchor="mt")
    draw.rectangle([LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM], outline=AXIS)
    draw.text((LEFT, TOP - 10), "loss", AXIS, font, anchor="lb")
    draw.text((WIDTH - RIGHT, HEIGHT - 12), "step", AXIS, font, anchor="rm")
    lines = [("each step", STEP_COLOR, list(enumerate(losses, 1)))]
    lines.append(("smoothed", SMOOTH_COLOR, list(enumerate(smoothed(losses), 1))))
    for index, name in enumerate(names):
        points = [(step, row[index]) for step, row in levels]
        lines.append((name, LEVEL_COLORS[index % len(LEVEL_COLORS)], points))
    if held_out:  # beside the mean of those that are trained: a gap between the two is what was learned by heart
        lines += [(name, color, means(rows)) for name, color, rows in (
            ("trained, mean", TRAINED_COLOR, levels), ("held out, mean", HELD_OUT_COLOR, held_out))]  # fmt: skip
    for row, (name, color, points) in enumerate(lines):
        draw_line(draw, [place(*point) for point in points], color)
        draw.text((WIDTH - RIGHT + 12, TOP + 22 * row), name, color if row else AXIS, font)
    return image


def means(measured: Measured) -> list[tuple[int, float]]:
    return [(step, sum(row) / len(row)) for step, row in measured]


def draw_line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], color: str) -> None:
    if len(points) == 1:
        (x, y) = points[0]
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=color)
    elif points:
        draw.line(points, color, 2)


def as_tensor(image: Image.Image) -> Tensor:
    """(1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)[None]


def as_image(pixels: Tensor) -> Image.Image:
    """Pictures (B, H, W, 3) in [0, 1], side by side."""
    row = torch.cat(list(pixels.clamp(0, 1)), dim=1)
    return Image.fromarray((row * 255).round().byte().cpu().numpy())
