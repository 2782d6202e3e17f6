"""Two checkouts of the pack against each other, pass by pass in turn: how much faster this one is than another.

    git worktree add ../before REVISION
    python -m benchmarks.revisions ../before --passes step:512 decode:1024 [--dtype bfloat16] [--rounds 3]

A pass is step, decode, encode or text, and an image size in px (unused by text). Each checkout has a process with one
thread. Processor seconds are counted, user and system, so that other work on the machine takes little part in them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 30  # of the prompt
# The process of one checkout: reads "stage size dtype" by line, writes the processor seconds of a pass after a warm-up.
WORKER = """
import sys, time, torch
from demo.train.pack import prepare_imports
prepare_imports()
from sana_native.benchmarks import networks
torch.set_num_threads(1)
built = {}
for line in sys.stdin:
    stage, size, dtype = line.split()
    if (stage, dtype) not in built:
        built.clear()
        built[stage, dtype] = networks.build(stage, "ours", getattr(torch, dtype))
    run = networks.call(stage, "ours", built[stage, dtype], int(size), getattr(torch, dtype), tokens=%d)
    with torch.inference_mode():
        run()
        started = time.process_time()
        run()
    sys.stdout.write(f"{time.process_time() - started}\\n")
    sys.stdout.flush()
"""


class Worker:
    """A checkout's process; the host is the one of this checkout for both."""

    def __init__(self, checkout: Path):
        host = os.environ.get("COMFYUI_PATH") or str(ROOT / ".comfyui" / "ComfyUI")
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER % TOKENS],
            cwd=checkout,
            env=os.environ | {"COMFYUI_PATH": host},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, stage: str, size: str, dtype: str) -> float:
        """Processor seconds of one pass. Raises RuntimeError when the process has ended."""
        self.process.stdin.write(f"{stage} {size} {dtype}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"{self.process.args[0]} in this checkout ended during {stage}: run it there to see why."
            )
        return float(answer)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(before: Path, passes: list[str], dtype: str, rounds: int) -> None:
    workers = Worker(before), Worker(ROOT)
    try:
        sys.stdout.write("| pass | before, s | now, s | before / now | rounds |\n|---|---|---|---|---|\n")
        for one in passes:
            stage, _, size = one.partition(":")
            pairs = [tuple(worker.seconds(stage, size or "0", dtype) for worker in workers) for _ in range(rounds)]
            old, new = (median(side) for side in zip(*pairs))
            ratios = sorted(a / b for a, b in pairs)
            each = " ".join(f"{ratio:.2f}" for ratio in ratios)
            sys.stdout.write(f"| {one} {dtype} | {old:.2f} | {new:.2f} | {median(ratios):.2f} | {each} |\n")
            sys.stdout.flush()
    finally:
        for worker in workers:
            worker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="another checkout of this repository")
    parser.add_argument("--passes", nargs="+", default=["step:512", "step:1024", "decode:512", "encode:512", "text"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    compare(args.before.resolve(), args.passes, args.dtype, args.rounds)


if __name__ == "__main__":
    main()
