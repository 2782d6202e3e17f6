"""Latency and throughput of whole pictures through a real ComfyUI server, beside what NVIDIA's papers state.

    make bench STAGES=throughput [SIZES="512 1024"] [DTYPE=bfloat16] [MODEL=0.6B]
    python -m benchmarks.throughput [--families sana sprint] [--sizes 512 1024] [--runs 10] [--batch 32] [--tiny]

Latency: seconds from queueing the graph to the picture in the history, batch 1, another seed each time, after a
warm-up; the median and the 90th percentile of RUNS. Throughput: pictures a second in the largest batch that fits, from
1 upwards by doubling; it ends at --batch, where the memory does not hold twice as many, or where the host runs out of
it.
Files have the released sizes and random weights, as in `picture.py`. Both have the PNG in them, which the papers leave
out. The papers' figures are of an A100 in 16 bits, throughput at batch 10: they stand beside ours and are not ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from benchmarks.measuring import give_back, heading, in_a_process, row, stop_politely, write
from benchmarks.networks import TRANSFORMERS
from benchmarks.picture import STEPS as DEFAULT_STEPS
from benchmarks.picture import serving, written
from benchmarks.random_pipelines import PROMPTS
from tools.comfy_server import ServerError

STEPS = {"sana": (20,), "sprint": (1, 2, 4)}
COLUMNS = (
    *("model", "px", "steps", "device", "latency, median s", "90 % within s", "pictures / s", "at batch", "peak GiB"),
    *("the paper's latency, A100", "the paper's pictures / s, A100"),
)
# Family, model, px, steps -> seconds and pictures a second.
# Source: SANA, arXiv 2410.10629, and SANA-1.5's table; SANA-Sprint, arXiv 2503.09641. The last has no figure for one.
PAPER = {
    ("sana", "0.6B", 512, 20): (0.8, 6.7),
    ("sana", "1.6B", 512, 20): (0.6, 3.8),
    ("sana", "0.6B", 1024, 20): (0.9, 1.7),
    ("sana", "1.6B", 1024, 20): (1.2, 1.0),
    ("sana", "4.8B", 1024, 20): (4.2, 0.26),
    ("sprint", "0.6B", 1024, 4): (0.32, 5.34),
    ("sprint", "0.6B", 1024, 2): (0.25, 6.46),
    ("sprint", "0.6B", 1024, 1): (0.21, 7.22),
    ("sprint", "1.6B", 1024, 4): (0.31, 5.20),
    ("sprint", "1.6B", 1024, 2): (0.24, 5.68),
}
RUNS, BATCH = 10, 32
SPARE = 0.9  # of the memory that is free, which a larger batch may fill
OUT_OF_MEMORY = ("out of memory", "not enough memory", "allocate memory", "allocation")


def latency(paint: Callable[[int], None], runs: int) -> tuple[float, float]:
    """Median and 90th percentile of the seconds of `runs` pictures. paint(seed) makes one."""
    took = []
    for seed in range(runs):
        started = time.perf_counter()
        paint(seed)
        took.append(time.perf_counter() - started)
    return float(np.median(took)), float(np.quantile(took, 0.9))


def throughput(paint: Callable[[int], None], take_peak: Callable[[], int], limit: int, room: Callable[[], int]) -> dict:
    """Pictures a second of the largest batch that fits, with the peak of its memory in bytes.

    paint(batch) makes a batch; the first of each size does not count. take_peak: most bytes held since it was asked
    last. room: bytes that are free now. A batch is tried if the peak, growing as it did last, would fit.
    """
    found, peaks, batch = {}, [], 1
    while batch <= limit:
        if len(peaks) > 1 and 2 * (peaks[-1] - peaks[-2]) > SPARE * room():
            break
        try:
            paint(batch)
            take_peak()
            started = time.perf_counter()
            paint(batch)
            took = time.perf_counter() - started
        except ServerError as error:
            if not any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
                raise
            break
        peaks.append(take_peak())
        found = {"batch": batch, "pictures a second": batch / took, "peak": peaks[-1]}
        batch *= 2
    if not found:
        raise RuntimeError("Not even one picture fits into the memory; take a smaller size.")
    return found


def free_memory() -> int:
    """Bytes that are free on the device."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def measure(family: str, size: int, steps: int, given: argparse.Namespace) -> dict:
    """Both of one model at one size."""
    folder, seeds = Path(given.folder), iter(range(10**6))
    prompt = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))[0]
    with serving(folder, family, given) as (paint, take):
        paint(prompt, next(seeds), steps, size)
        median, slow = latency(lambda _: paint(prompt, next(seeds), steps, size), given.runs)
        found = throughput(
            lambda batch: paint(prompt, next(seeds), steps, size, batch),
            lambda: take()["peak"],
            given.batch,
            free_memory,
        )
    return {"median": median, "slow": slow, "device": device_name(), **found}


def table_row(family: str, model: str, size: int, steps: int, found: dict) -> str:
    """model: as the table names it; one that the paper has no figures of has dashes there."""
    paper = PAPER.get((family, model, size, steps), ("-", "-"))
    ours = (
        found["device"],
        f"{found['median']:.3g}",
        f"{found['slow']:.3g}",
        f"{found['pictures a second']:.3g}",
        found["batch"],
        f"{found['peak'] / 2**30:.2f}",
    )
    return row((f"{family} {model}", size, steps, *ours, *paper))


def report(families: Iterable[str], given: argparse.Namespace, tiny: bool = False) -> None:
    """The table.  Raises: SystemExit with one sentence when the disk has no room for the files."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", given.model, "--dtype", given.dtype, "--folder", folder]
        options += ["--runs", getattr(given, "runs", RUNS), "--batch", getattr(given, "batch", BATCH)]
        answer = in_a_process("throughput", "--write", *families, *(["--tiny"] if tiny else []), *options)
        if "refused" in answer:
            sys.exit(answer["refused"])
        write(heading(COLUMNS))
        for family in families:
            for size in given.sizes:
                for steps in STEPS[family]:
                    found = in_a_process("throughput", "--measure", family, size, steps, *options)
                    write(table_row(family, "tiny" if tiny else given.model, size, steps, found))
        write("\nThe paper's figures, not ours: an A100 in 16 bits, without the PNG; throughput at batch 10.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(DEFAULT_STEPS), choices=STEPS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", default="0.6B", choices=TRANSFORMERS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--write", nargs="+", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    stop_politely()
    if given.write:
        give_back(written(Path(given.folder), given.write, given.model, given.tiny))
    elif given.measure:
        family, size, steps = given.measure
        give_back(measure(family, int(size), int(steps), given))
    else:
        report(given.families, given, given.tiny)


if __name__ == "__main__":
    main()
