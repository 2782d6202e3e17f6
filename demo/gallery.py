"""Draws the pictures of the README: `make gallery`, or `python -m demo.gallery [--out docs]`.

gallery.jpg: 64 held-out prompts, numbered; gallery.md lists them. solvers.jpg: the same prompts by solver and steps.
"""

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from .generate import Painter
from .measure import BEST_CFG, PROMPT_SEED, Case, draw_cases
from .train.captions import LANGUAGES
from .train.pack import CHECKPOINT, ROOT, SPRINT_CHECKPOINT

SEED = 7  # of the prompts, other ones than those of the measurements
TILE, GAP, COLUMNS = 160, 4, 8
LABEL = 110  # px of the names at the left of the comparison
ROWS = (
    *((f"Euler {steps}", "Euler", steps) for steps in (8, 14, 28)),
    *((f"Flow-DPM {steps}", "Flow-DPM", steps) for steps in (8, 14, 20)),
    *((f"Sprint {steps}", "scm", steps) for steps in (1, 2, 4)),
)
COMPARED = 6  # prompts of the comparison


def gallery_cases() -> list[Case]:
    """64 held-out cases: one and two things, in the three languages, mixed."""
    cases = [
        case
        for things in (1, 2)
        for number, language in enumerate(LANGUAGES)
        for case in draw_cases(11 if number else 10, things, language, seed=SEED + number)
    ]
    random.Random(SEED).shuffle(cases)
    return [Case(case.caption, PROMPT_SEED + 1000 + i) for i, case in enumerate(cases)]


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [0, 1] as a tile."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.LANCZOS)


def draw_sheet(pictures: Tensor) -> Image.Image:
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE + GAP) - GAP, rows * (TILE + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        corner = (i % COLUMNS * (TILE + GAP), i // COLUMNS * (TILE + GAP))
        sheet.paste(to_image(picture), corner)
        draw.text((corner[0] + 4, corner[1] + 2), str(i + 1), fill="black", stroke_fill="white", stroke_width=2)
    return sheet


def draw_comparison(rows: list[tuple[str, Tensor]]) -> Image.Image:
    width = LABEL + COMPARED * (TILE + GAP)
    sheet = Image.new("RGB", (width, len(rows) * (TILE + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(rows):
        top = row * (TILE + GAP)
        draw.text((4, top + TILE // 2 - 8), name, fill="black", font_size=15)
        for column, picture in enumerate(pictures):
            sheet.paste(to_image(picture), (LABEL + column * (TILE + GAP), top))
    return sheet


def list_prompts(cases: list[Case]) -> str:
    lines = ["# The prompts of gallery.jpg", "", "Written by `make gallery`, like the picture.", ""]
    return "\n".join(lines + [f"{i}. {case.caption.text}" for i, case in enumerate(cases, 1)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    cases, painter = gallery_cases(), Painter(CHECKPOINT)
    prompts, seeds = [case.caption.text for case in cases], [case.seed for case in cases]
    draw_sheet(painter.paint(prompts, seeds, cfg=BEST_CFG)).save(args.out / "gallery.jpg", quality=88)
    (args.out / "gallery.md").write_text(list_prompts(cases), encoding="utf-8")

    rows, sprint = [], None
    for name, solver, steps in ROWS:
        options = {"steps": steps, "cfg": BEST_CFG}
        if solver == "scm":
            sprint = sprint or Painter(SPRINT_CHECKPOINT)
        else:
            options["solver"] = solver
        rows.append((name, (sprint or painter).paint(prompts[:COMPARED], seeds[:COMPARED], **options)))
    draw_comparison(rows).save(args.out / "solvers.jpg", quality=88)


if __name__ == "__main__":
    main()
