"""How the cost per pixel grows with the image: 1.00 at every size would be exactly linear.

    python -m benchmarks.growth [--stages step decode encode] [--sizes 256 512 1024 2048 4096] [--dtype bfloat16]
        [--model 0.6B] [--blocks 2] [--pairs 3] [--thread]

Only ours, with random weights. All sizes take turns in one process, small ones several times to have about as many
pixels as 1024 px, and the ratio to 1024 px is the median over the rounds. A step is one after the first of a run, but
beyond 1024 px in the first round, where the difference is too small to measure. --thread counts the processor seconds
of one thread, which a busy machine hardly changes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from benchmarks.measuring import heading, in_turns, middle, ratio, row, seconds, write
from benchmarks.networks import TRANSFORMERS, WITH_PIXELS, build, call
from demo.train.pack import prepare_imports

SIZES = (256, 512, 1024, 2048, 4096)
REFERENCE = 1024  # px, and the size of a megapixel
COLUMNS = ("stage", "px", "dtype", "seconds", "per megapixel", f"cost per pixel / {REFERENCE} px")


def processor_seconds(run: Callable, _device: str) -> float:
    started = time.thread_time()
    run()
    return time.thread_time() - started


def measure(
    stage: str, sizes: list[int], pairs: int, model: str, dtype, clock: Callable, blocks: int | None
) -> list[dict]:
    """Rounds of "seconds" and "cost", seconds per megapixel, by size."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode():
        network = build(stage, "ours", dtype, device, model, blocks)
        runs = {size: call(stage, "ours", network, size, dtype, device) for size in sizes}
        for size in sizes:
            if size <= REFERENCE:
                runs[size]()

        def one(size: int) -> dict:
            passes = max(1, (REFERENCE // size) ** 2)
            took = clock(lambda: [runs[size]() for _ in range(passes)], device) / passes
            return {"seconds": took, "cost": took / (size / REFERENCE) ** 2}

        return in_turns(sizes, pairs, one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["step", "decode"], choices=WITH_PIXELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", default="0.6B", choices=TRANSFORMERS)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--blocks", type=int, help="of the transformer, fewer than it has")
    parser.add_argument("--thread", action="store_true")
    given = parser.parse_args()
    prepare_imports()
    import torch

    if given.thread:
        torch.set_num_threads(1)
    clock = processor_seconds if given.thread else seconds
    sizes = sorted({REFERENCE, *given.sizes})
    write(heading(COLUMNS))
    for stage in given.stages:
        rounds = measure(stage, sizes, given.pairs, given.model, getattr(torch, given.dtype), clock, given.blocks)
        for size in sizes:
            figures = middle(rounds, size, "seconds"), middle(rounds, size, "cost")
            cost = ratio(rounds, size, to=REFERENCE, field="cost")
            write(row((stage, size, given.dtype, *(f"{figure:.3g}" for figure in figures), f"{cost:.2f}")))


if __name__ == "__main__":
    main()
