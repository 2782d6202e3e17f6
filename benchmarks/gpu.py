"""Every stage on a CUDA card in eight minutes, ours beside diffusers, the host's class and compiled forms.

    make bench-gpu [BUDGET=440] [ONLY="decode step"]
    python -m benchmarks.gpu [--budget 440] [--only decode step] [--out FOLDER] [--tiny]

One process measures everything, the most valuable first, and writes JSON and a Markdown table after each row, both with
the card's name, to benchmarks/results; what the budget of seconds does not reach is listed as skipped. --only runs the
stages whose names hold one of its values, and writes to files of their own. --tiny takes small networks, on a CPU too,
and writes to output: it shows that all of it runs, not how fast. For a machine without ComfyUI and diffusers see
`tools/gpu_kit.py`.

Columns: median and best of events on the device, ms until the host is free (equal to the median where launches are the
limit), MiB above the weights, kernels launched, lines that wait for the device (JSON names both), relative error, share
of the time that the card's measured product and copy would allow, and time relative to ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gpu_parts, gpu_pictures, gpu_report, gpu_stages
from benchmarks.gpu_clock import release
from benchmarks.measuring import ROOT, heading, stop_politely, write
from benchmarks.networks import TINY
from demo.train.pack import prepare_imports

RESULTS, TRIALS = ROOT / "benchmarks" / "results", ROOT / "output"  # trials are nothing to commit
BUDGET = 440  # s
NO_CARD = (
    "No CUDA device was found: run this on a machine with an NVIDIA card whose driver serves {built} "
    "(torch {version}), or give --tiny to try it on a CPU."
)
NO_STAGE = "No stage's name holds {only}: the first column of a report lists the names, such as decode, step, text."
COMPILED = ("ours, compiled", "diffusers, compiled")


@dataclass(frozen=True)
class Job:
    """Rows that belong together. seconds: left of the budget, below which it is not begun."""

    name: str
    run: Callable
    seconds: float = 0


def jobs(tiny: bool) -> list[Job]:
    """In the order of their value; compiling takes minutes and comes last."""
    large, small = (TINY, TINY) if tiny else ("1.6B", "0.6B")
    full, half, twice = (64, 32, 96) if tiny else (1024, 512, 2048)

    def decode(size: int, *variants: str) -> Callable:
        return lambda report: gpu_stages.decode(report, size, variants, large)

    def step(model: str, batch: int, size: int, *variants: str, sprint: bool = False) -> Callable:
        return lambda report: gpu_stages.step(report, model, batch, size, variants, sprint)

    ours = ("ours", "ours, graph", "ours, cuda_graphs")
    forms, decoders = (*ours, "diffusers"), (*ours, "host", "diffusers", "plain")
    return [
        Job("ceilings", gpu_stages.ceilings),
        Job("decode", decode(full, *decoders), 30),
        Job("step with cfg", step(large, 2, full, *forms), 30),
        Job("step of Sprint", step(large, 1, full, *forms, sprint=True), 25),
        Job("text", lambda report: gpu_stages.text(report, large), 25),
        Job("image of the demo", gpu_pictures.demo, 45),
        Job("images of SANA-Sprint and SANA", lambda report: gpu_pictures.families(report, full, True), 90),
        Job("decode, half size", decode(half, *decoders), 15),
        Job("step, small model", step(small, 1, full, *forms), 20),
        Job("step, half size", step(large, 2, half, *forms), 20),
        Job("step of Sprint, half size", step(large, 1, half, *forms, sprint=True), 20),
        Job("step, small model, half size", step(small, 1, half, *forms), 20),
        Job("decode, twice the size", decode(twice, *decoders), 30),
        Job("parts", gpu_parts.parts, 30),  # late: a faulty kernel would spoil the process for what follows
        Job("decode, compiled", decode(full, *COMPILED), 90),
        Job("step, compiled", step(large, 2, full, *COMPILED), 90),
    ]


def run(report, chosen: list[Job]) -> None:
    """A failed job is written into a row, one without time is skipped; the others go on."""
    for job in chosen:
        if report.left() < job.seconds:
            report.skip(job.name, "-", f"it takes {job.seconds} s and {max(report.left(), 0):.0f} s were left")
            continue
        try:
            job.run(report)
        except Exception as failure:  # noqa: BLE001 - the other stages are worth having
            report.fail(job.name, failure)
        release(report.device)


def quiet() -> None:
    """No progress bars and advice between the rows."""
    import comfy.utils
    import diffusers
    import transformers

    comfy.utils.set_progress_bar_enabled(False)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all")
    parser.add_argument("--only", nargs="*", help="stages that contain one of these")
    parser.add_argument("--out", type=Path, help="folder of the JSON and the table")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    stop_politely()
    try:
        prepare_imports()
    except FileNotFoundError as error:
        sys.exit(str(error))
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.tiny:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a torch built for CUDA, which this one is not"
        sys.exit(NO_CARD.format(built=built, version=torch.__version__))
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    quiet()
    card = gpu_report.describe_machine(device)["card"]
    folder = given.out or (TRIALS if given.tiny else RESULTS)
    path = folder / f"{gpu_report.file_name(card, given.tiny, given.only)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"The folder {folder} cannot be made ({error.strerror}): give another one with --out.")
    report = gpu_report.Report(path, device, given.budget, given.tiny, given.only)
    torch.manual_seed(0)
    write(heading(gpu_report.COLUMNS))
    run(report, jobs(given.tiny))
    if not report.rows and not report.skipped:
        sys.exit(NO_STAGE.format(only=" or ".join(given.only)))
    failed = sum(bool(one["failed"]) for one in report.rows)
    counts = f"{len(report.rows)} rows, {failed} failed, {len(report.skipped)} skipped"
    write(f"\n{report.table()}\n{counts}: {path.with_suffix('.md')}")


if __name__ == "__main__":
    main()
