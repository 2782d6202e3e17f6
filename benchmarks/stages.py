"""Time, peak memory and operations of single stages at released sizes: ours, diffusers and the host's class if any.

    make bench [STAGES="step decode encode"] [SIZES="512 1024"] [PAIRS=3] [DTYPE=bfloat16] [MODEL=0.6B] [COMPILE=1]

Weights are random; every measurement is a process of its own, the implementations take turns, and the ratio is the
median over the rounds, so that a machine whose speed drifts does not decide. Peak is memory above what the loaded
weights take, resident on a CPU and allocated on a GPU; copies of weights that the warm-up left count. Operations are
counted by torch, two for a product and its sum; the limit they are compared with is a product of two matrices in the
same format, timed in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.loading import memory
from benchmarks.networks import HALF, IMPLEMENTATIONS, TRANSFORMERS, build, call
from demo.train.pack import prepare_imports

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("stage", "px", "dtype", "implementation", "seconds", "peak GiB", "time / ours", "TFLOP", "of the limit")
WARM_UP = 256  # px
MATRIX = {"cpu": 2048, "cuda": 8192}  # side, of the product that tells the limit
KERNELS = 15  # lines of the summary


def seconds(run, device: str) -> float:
    """Of one call, by the device's own clock if it has one."""
    import torch

    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def limit(dtype, device: str) -> float:
    """Operations a second of a large product of matrices."""
    import torch

    side = MATRIX[device]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    torch.mm(a, b)
    return 2 * side**3 / statistics.median(seconds(lambda: torch.mm(a, b), device) for _ in range(5))


def operations(stage: str, implementation: str, size: int, dtype, model: str) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    network = build(stage, implementation, dtype, "meta", model)
    run = call(stage, implementation, network, size, dtype, "meta")
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def held(device: str) -> int:
    """Bytes that this process holds now: resident, or allocated on a GPU."""
    import torch

    return memory("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()


def timed_with_peak(run, device: str) -> tuple[float, int]:
    """Seconds of one call, and the most bytes that the process held in it."""
    import torch

    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        took = seconds(run, device)
        return took, memory("VmHWM")
    torch.cuda.reset_peak_memory_stats()
    took = seconds(run, device)
    return took, torch.cuda.max_memory_allocated()


def kernels(run) -> str:
    """A table of the GPU's kernels by the time they take."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
    return profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=KERNELS, max_name_column_width=60)


def measure(stage: str, implementation: str, size: int, dtype_name: str, model: str, compiled: bool) -> dict:
    """One pass after a warm-up: seconds, bytes above the weights, operations, and those a second that could be."""
    prepare_imports()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, dtype_name)
    with torch.inference_mode():
        found = {"operations": operations(stage, implementation, size, dtype, model)}
        network = build(stage, implementation, dtype, device, model)
        loaded = held(device)
        run = call(stage, implementation, network, size, dtype, device)
        if compiled:
            (getattr(network, HALF[stage]) if stage in HALF else network).compile()
        # Eager code on a CPU only has to be loaded; a compiler and the libraries of a GPU choose by the size.
        light = device == "cpu" and not compiled
        (call(stage, implementation, network, min(size, WARM_UP), dtype) if light else run)()
        found["seconds"], peak = timed_with_peak(run, device)
        found["peak"] = peak - loaded
        found["limit"] = limit(dtype, device)
        if device == "cuda" and implementation == "ours":
            found["kernels"] = kernels(run)
    return found


def in_a_process(stage: str, implementation: str, size: int, given: argparse.Namespace) -> dict:
    options = ["--dtype", given.dtype, "--model", given.model, *(["--compile"] if given.compile else [])]
    command = [sys.executable, "-m", "benchmarks.stages", "--measure", stage, implementation, str(size), *options]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def row(cells) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def compare(stage: str, size: int, given: argparse.Namespace) -> tuple[list[str], str]:
    """Table rows of one stage and size, and the summary of kernels on a GPU."""
    names = IMPLEMENTATIONS[stage]
    rounds = [{name: in_a_process(stage, name, size, given) for name in names} for _ in range(given.pairs)]
    rows = []
    for name in names:
        runs = [one[name] for one in rounds]
        share = statistics.median(one["operations"] / one["seconds"] / one["limit"] for one in runs)
        cells = (
            f"{statistics.median(one['seconds'] for one in runs):.3g}",
            f"{statistics.median(one['peak'] for one in runs) / 2**30:.2f}",
            f"{statistics.median(one[name]['seconds'] / one['ours']['seconds'] for one in rounds):.2f}",
            f"{runs[0]['operations'] / 1e12:.3g}",
            f"{share:.0%}",
        )
        rows.append(row((stage, size, given.dtype, name, *cells)))
    return rows, rounds[-1]["ours"].get("kernels", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(IMPLEMENTATIONS), choices=IMPLEMENTATIONS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", default="0.6B", choices=TRANSFORMERS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        stage, implementation, size = given.measure
        found = measure(stage, implementation, int(size), given.dtype, given.model, given.compile)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    sys.stdout.write(f"{row(COLUMNS)}\n{row('---' for _ in COLUMNS)}\n")
    summaries = []
    for stage in given.stages:
        for size in given.sizes:
            rows, summary = compare(stage, size, given)
            sys.stdout.write("\n".join(rows) + "\n")
            sys.stdout.flush()
            summaries += [f"\n{stage}, {size} px, ours:\n{summary}\n"] if summary else []
    sys.stdout.write("".join(summaries))


if __name__ == "__main__":
    main()
