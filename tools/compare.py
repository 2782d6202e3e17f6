"""An XY grid picture: what steps, solver, number format, quantization or guidance change, with times and scores.

    make compare [WORKFLOW=demo] [X=KSampler.steps=4,8,20] [Y=KSampler.cfg=1,4.5] [PROMPTS=12] [SEEDS=1] [BEST=20]
        [CLIP=clip-vit-large-patch14.safetensors] [MODELS=folder] [OUT=output/compare.png]

X and Y are axes: a node by its title or class, an input, and values. Inputs that change together are joined with +, as
in Y="KSampler.sampler_name+scheduler=sana_flow_dpm+sana_flow,euler+sana_flow_euler". SANA Model Loader.weight_dtype
compares number formats, SANA Model Loader.model_name files, such as one of `tools.quantize`. A real ComfyUI generates
every picture with the same prompts and seeds. Under each cell: seconds of sampling and decoding (median), how far its
pictures and latents are from those of the cell with the frame (BEST=), and a score: CLIP's, or for the demo model the
share of pictures that show all that was asked for.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import numpy as np
from PIL import Image

from .comfy_server import ComfyServer, NodeFailed, PromptRefused, ServerError
from .command_line import run_command, say
from .compare_plan import (
    LATENT_NODE,
    Axis,
    PlanError,
    Subject,
    best_place,
    demo_graph,
    plan_cells,
    put_subject,
    read_axis,
    read_graph,
    read_subjects,
    save_latent,
    subjects_text,
)
from .host import PRIVATE, prepare_base
from .workflow import WorkflowError

if TYPE_CHECKING:
    from torch import Tensor

STEPS_AXIS = "KSampler.steps=4,8,14,20"
SOLVER_AXIS = "KSampler.sampler_name+scheduler=sana_flow_dpm+sana_flow,euler+sana_flow_euler"
TIMED = ("Sampler", "Decode")  # in the class of a node whose seconds count: loading and text are shared by all cells
PATHS = ("workflow", "prompts", "clip", "models", "out", "base")  # among the arguments
EQUAL = 100.0  # dB that stand for equal pictures in a mean, whose own are infinite
SHOWN = 256  # px of a picture in the grid
ERROR_LINES = 4  # below a cell


@dataclass
class Drawn:
    """A cell's pictures, one a subject, the seconds of each, and what was found of them.

    latents: what was decoded into the pictures, (C, H, W) each; none for a graph without a decoding node. error: why
    the cell has no pictures.
    """

    x: str
    y: str
    pictures: list[Image.Image] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    numbers: dict = field(default_factory=dict)
    latents: list[Tensor] = field(default_factory=list)
    error: str = ""


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workflow", default="", help="a saved workflow, or demo")
    parser.add_argument("--x", default="", help=f"the columns, such as {STEPS_AXIS}")
    parser.add_argument("--y", default="", help="the rows; the demo's default compares solvers")
    parser.add_argument("--prompts", default="", help="a prompt file, or for the demo a number of held-out prompts")
    parser.add_argument("--seeds", default="", help="pictures of each prompt")
    parser.add_argument("--best", default="", help="the cell others are compared with, as 20|sana_flow_dpm")
    parser.add_argument("--clip", default="", help="a CLIP file for scores")
    parser.add_argument("--models", default="", help="ComfyUI's models folder, for a workflow of yours")
    parser.add_argument("--out", default="", help="where to write the picture; .json and .md come beside it")
    parser.add_argument("--base", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for name, value in {"workflow": "demo", "prompts": "12", "seeds": "1", "out": "output/compare.png"}.items():
        setattr(given, name, getattr(given, name) or value)
    for name in PATHS:  # make gives ~ as it was typed
        setattr(given, name, os.path.expanduser(getattr(given, name)))
    if not given.seeds.isdecimal() or not int(given.seeds):
        raise PlanError(f"SEEDS={given.seeds} is no number of pictures; give 1 or more.")
    if Path(given.out).suffix.lower() != ".png":
        raise PlanError(f"OUT={given.out} does not end in .png; give such a name.")
    if given.models and not Path(given.models).is_dir():
        raise PlanError(f"MODELS={given.models} is no folder; give ComfyUI's models folder.")
    return given


def draw(
    server: ComfyServer, prompts: list[list[dict]], x: Axis, y: Axis | None, subjects: list[Subject]
) -> list[list[Drawn]]:
    """Every cell's pictures, rows of Y and columns of X; a cell that fails has none. prompts: of `plan_cells`."""
    rows = []
    for j, row in enumerate(prompts):
        rows.append([])
        for i, prompt in enumerate(row):
            cell = Drawn(x.names[i], y.names[j] if y else "")
            try:
                if server.pid is None:
                    server.start()
                draw_cell(server, prompt, subjects, cell)
                told = f"{statistics.median(cell.seconds):.2f} s a picture"
            except (ServerError, aiohttp.ClientError, OSError) as error:
                cell = Drawn(cell.x, cell.y, error=reason_of(error))
                told = f"failed: {cell.error}"
                if not isinstance(error, NodeFailed | PromptRefused):
                    server.stop()  # it has ended, or is about to; the next cell starts it
            say(f"{cell.x} {cell.y}: {told}")
            rows[-1].append(cell)
    return rows


def reason_of(error: Exception) -> str:
    """An error in one line; where a log's end follows, with the last line of that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def cells_of(rows: list[list[Drawn]]) -> list[Drawn]:
    return [cell for row in rows for cell in row]


def draw_cell(server: ComfyServer, prompt: dict, subjects: list[Subject], cell: Drawn) -> None:
    """Fill in a cell's pictures and seconds, after one picture that does not count: it loads and warms up."""
    first = server.run(put_subject(prompt, Subject(subjects[0].prompt, subjects[0].seed + 1)))
    if not first.images():
        raise PlanError("The graph saved no picture; add a Save Image node.")
    shown = [number for number, output in first.outputs.items() if output.get("images")][-1]
    prompt = save_latent(prompt, shown)
    for subject in subjects:
        filled = put_subject(prompt, subject)
        result = server.run(filled)
        picture = server.fetch_image(result.outputs[shown]["images"][-1])
        cell.pictures.append(Image.open(io.BytesIO(picture)).convert("RGB"))
        if LATENT_NODE in result.outputs:
            cell.latents.append(fetch_latent(server, result.outputs[LATENT_NODE]["latents"][0]))
        timed = [node for node in result.seconds if any(word in filled[node]["class_type"] for word in TIMED)]
        cell.seconds.append(sum(result.seconds[node] for node in timed))


def fetch_latent(server: ComfyServer, file: dict) -> Tensor:
    """(C, H, W) of the last image of a batch, which is the one whose picture is taken."""
    from safetensors.torch import load

    return load(server.fetch_image(file))["latent_tensor"][-1]


def judge(rows: list[list[Drawn]], best: tuple[int, int], subjects: list[Subject], clip: str) -> None:
    """Fill in each cell's numbers: seconds, PSNR, SSIM and distance of latents to the best cell, and scores."""
    from sana_native.evaluation.intervals import mean_of
    from sana_native.evaluation.pictures import difference_of, latent_distance

    reference = rows[best[0]][best[1]]
    others = [as_tensor(picture) for picture in reference.pictures]
    scorers = [scorer for scorer in (demo_scorer(subjects), clip_scorer(clip, subjects)) if scorer]
    for cell in cells_of(rows):
        if cell.error:
            continue
        tensors = [as_tensor(picture) for picture in cell.pictures]
        cell.numbers["seconds"] = statistics.median(cell.seconds)
        if cell is not reference and others and tensors[0].shape == others[0].shape:
            found = [difference_of(a, b) for a, b in zip(tensors, others, strict=True)]
            cell.numbers["equal"] = all(one.largest == 0 for one in found)
            cell.numbers["psnr"] = asdict(mean_of([min(one.psnr, EQUAL) for one in found]))
            cell.numbers["ssim"] = asdict(mean_of([one.ssim for one in found]))
        if cell is not reference and are_comparable(cell.latents, reference.latents):
            found = [latent_distance(a, b) for a, b in zip(cell.latents, reference.latents, strict=True)]
            cell.numbers["latent"] = asdict(mean_of(found))
        for name, score in scorers:
            cell.numbers[name] = asdict(mean_of(score(tensors)))


def are_comparable(latents: list[Tensor], others: list[Tensor]) -> bool:
    """Whether two cells have latents of the same shapes, of finite values, and `others` not only zeros."""
    if not latents or [one.shape for one in latents] != [one.shape for one in others]:
        return False
    return all(one.isfinite().all() for one in (*latents, *others)) and all(one.any() for one in others)


def as_tensor(picture: Image.Image):
    """(H, W, 3) in [0, 1]."""
    import torch

    return torch.from_numpy(np.array(picture)).float() / 255


def demo_scorer(subjects: list[Subject]):
    """Name and function of the demo's judge: 1 for each picture that shows all that was asked for; None without it."""
    if not all(one.caption for one in subjects):
        return None
    from sana_native.demo.judge import Judge, marks

    seen = Judge()
    return "right", lambda pictures: [
        float(marks(one.caption, seen.look(picture.movedim(-1, 0)))["all"])
        for one, picture in zip(subjects, pictures, strict=True)
    ]


def clip_scorer(clip: str, subjects: list[Subject]):
    """Name and function of the CLIP score with a CLIP file; None without one."""
    if not clip:
        return None
    import torch
    from sana_native.evaluation.embed import embed_images, embed_texts
    from sana_native.evaluation.metrics import clip_scores

    from .evaluation_files import load_clip, load_clip_vision

    texts, vision = embed_texts(load_clip(clip), [one.prompt for one in subjects]), load_clip_vision(clip)
    return "clip", lambda pictures: clip_scores(
        np.concatenate([embed_images(vision, torch.unsqueeze(picture, 0)) for picture in pictures]), texts
    )


def lines_of(cell: Drawn) -> list[str]:
    """What stands under a cell; last what the best cell has not, so that equal lines are level."""
    if cell.error:
        return ["failed:", *error_lines(cell.error)]
    found = cell.numbers
    lines = [f"{found['seconds']:.2f} s"]
    if "right" in found:
        lines.append(f"right {found['right']['value']:.0%}{interval(found['right'], '.0%')}")
    if "clip" in found:
        lines.append(f"CLIP {found['clip']['value']:.2f}{interval(found['clip'], '.2f')}")
    if "psnr" in found:
        differs = f"{found['psnr']['value']:.1f} dB, SSIM {found['ssim']['value']:.3f}"
        lines.append("equal, bit for bit" if found["equal"] else differs)
    if "latent" in found:
        lines.append(f"latent {found['latent']['value']:.3f}{interval(found['latent'], '.3f')}")
    return lines


def error_lines(error: str) -> list[str]:
    """As much of an error as the cell has room for; the table has it whole."""
    from sana_native.evaluation.grid import SIZE_OF_TEXT, font_of, wrapped

    return wrapped(error, SHOWN, font_of(SIZE_OF_TEXT))[:ERROR_LINES]


def interval(found: dict, form: str) -> str:
    return "" if found["low"] is None else f" ({found['low']:{form}} to {found['high']:{form}})"


def picture_of(rows: list[list[Drawn]], best: tuple[int, int], title: str, notes: list[str]) -> Image.Image:
    from sana_native.evaluation.grid import Cell, draw_grid

    cells = [
        [
            Cell(None if cell.error else cell.pictures[0], tuple(lines_of(cell)), (j, i) == best)
            for i, cell in enumerate(row)
        ]
        for j, row in enumerate(rows)
    ]
    names = [row[0].y for row in rows] if rows[0][0].y else []
    return draw_grid(cells, [cell.x for cell in rows[0]], names, SHOWN, title, notes)


def table_of(rows: list[list[Drawn]], best: tuple[int, int]) -> str:
    """The cells as a Markdown table, each number with its 95 % interval; - for what cells of other sizes have not."""
    reference = rows[best[0]][best[1]]
    cells = cells_of(rows)
    forms = {"psnr": ".1f", "ssim": ".4f", "latent": ".3f", "right": ".0%", "clip": ".2f"}
    heads = {"psnr": "PSNR, dB", "ssim": "SSIM", "latent": "latent distance", "right": "right", "clip": "CLIP score"}
    columns = [name for name in heads if any(name in cell.numbers for cell in cells)]
    lines = ["| " + " | ".join(["X", "Y", "s a picture", *(heads[name] for name in columns), "N"]) + " |"]
    lines.append("|" + "---|" * (len(columns) + 4))
    for cell in cells:
        failed = "failed: " + cell.error.replace("|", r"\|")
        told = [cell.x, cell.y or "-", failed if cell.error else f"{cell.numbers['seconds']:.2f}"]
        for name in columns:
            found, none = cell.numbers.get(name), "the reference" if cell is reference and not cell.error else "-"
            told.append(f"{found['value']:{forms[name]}}{interval(found, forms[name])}" if found else none)
        lines.append("| " + " | ".join([*told, str(len(cell.pictures))]) + " |")
    return "\n".join(lines) + "\n"


def compare(given: argparse.Namespace) -> int:
    """Writes the comparison and returns how many cells failed. Raises: ServerError where all did."""
    from sana_native.scale.graph import api_of

    demo = given.workflow == "demo"
    given.x, given.y = given.x or STEPS_AXIS, given.y or (SOLVER_AXIS if demo and not given.x else "")
    x, y = read_axis(given.x), read_axis(given.y) if given.y else None
    best = best_place(given.best, x, y)
    workflow, subjects = read_graph(given.workflow), read_subjects(given.prompts, int(given.seeds), demo)
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if given.clip:
        from .evaluation_files import require_clip

        require_clip(given.clip)
    extra = ["--models-directory", str(Path(given.models).resolve())] if given.models else []
    with ComfyServer(prepare_base(Path(given.base or PRIVATE / "base")), extra) as server:
        info = server.object_info()
        graph = api_of(workflow, info)
        prompts = plan_cells(demo_graph(graph) if demo else graph, x, y, info)
        rows = draw(server, prompts, x, y, subjects)
    failed = [cell for cell in cells_of(rows) if cell.error]
    if len(failed) == len(cells_of(rows)):
        raise ServerError(failed[0].error)
    judge(rows, best, subjects, given.clip)
    reference = rows[best[0]][best[1]]
    title = f"{'SANA demo model' if demo else Path(given.workflow).stem}: {subjects_text(subjects)}"
    notes = [
        f'Shown: "{subjects[0].prompt}", seed {subjects[0].seed}. Seconds: sampling and decoding, median.',
        f"Framed: {reference.x} {reference.y}, the reference of dB, SSIM and latent distance"
        + (", which failed: no cell has these." if reference.error else ".")
        + (" In brackets: 95 % intervals." if len(subjects) >= 10 else " Too few pictures for intervals."),
    ]
    picture_of(rows, best, title, notes).save(out)
    cells = [
        {"x": cell.x, "y": cell.y}
        | cell.numbers
        | {"count": len(cell.pictures)}
        | ({"error": cell.error} if cell.error else {})
        for cell in cells_of(rows)
    ]
    told = {"x": given.x, "y": given.y, "best": [reference.x, reference.y], "cells": cells}
    out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(table_of(rows, best), encoding="utf-8")
    say(f"{table_of(rows, best)}\n{out}, with the numbers in {out.stem}.json and {out.stem}.md")
    return len(failed)


def main(arguments: list[str] | None = None) -> int:
    from demo.train.pack import prepare_imports

    try:
        given = read_arguments(arguments)
        prepare_imports()
        failed = compare(given)
    except (PlanError, ServerError, WorkflowError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if failed:
        sys.stderr.write(f"{failed} cell{'s' if failed > 1 else ''} failed; the table says why.\n")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
