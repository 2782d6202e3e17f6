"""The whole demo, from nothing to `demo/checkpoint`: `python -m demo.train`. Stopped, it goes on where it was.

Each stage is a process of its own; a finished one is not run again. Delete `demo/train/runs` to begin anew.

With --warm the autoencoder of `demo/checkpoint` stays, and the other stages begin with its weights: so the shipped
weights were trained from those before them. The exported ones are copied to the runs folder first.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .data import RUNS
from .pack import CHECKPOINT, ROOT, SPRINT_CHECKPOINT

# Stages, and minutes on two CPU cores.
STAGES = (
    ("tokenizer", None),
    ("text_encoder", 44),
    ("autoencoder", 85),
    ("transformer", 80),
    ("sprint", 25),
    ("export", None),
)
# With exported weights to begin with: the same, and how many of the two folders a stage reads.
WARM_STAGES = (
    ("tokenizer", None, 0),
    ("warm", None, 0),
    ("text_encoder", 24, 1),
    ("transformer", 55, 1),
    ("sprint", 18, 2),
    ("export", None, 0),
)


def keep_exported() -> list[Path]:
    """Copies of the exported folders, which the last stage overwrites."""
    copies = []
    for folder in (CHECKPOINT, SPRINT_CHECKPOINT):
        copies.append(RUNS / "start" / folder.name)
        if not copies[-1].exists():
            shutil.copytree(folder, copies[-1])
    return copies


def plan(warm: bool, scale: float) -> list[tuple[str, float | None, list[str]]]:
    """Stages, their minutes, and their arguments."""
    starts = [str(folder) for folder in keep_exported()] if warm else []
    stages = []
    for stage, minutes, read in WARM_STAGES if warm else [(*stage, 0) for stage in STAGES]:
        length = ["--minutes", str(minutes * scale)] if minutes else []
        start = ["--start", *starts[:read]] if read else []
        stages.append((stage, minutes and minutes * scale, length + start))
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the minutes of every stage")
    parser.add_argument("--warm", action="store_true", help="begin with the exported weights; keep their autoencoder")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    environment = {"OMP_NUM_THREADS": "1"} | os.environ  # each stage has its own threads
    RUNS.mkdir(parents=True, exist_ok=True)
    for stage, minutes, arguments in plan(args.warm, args.scale):
        done = RUNS / f"{stage}.done"
        if done.exists():
            continue
        if minutes:
            logging.info("%s, %.0f minutes; log: %s", stage, minutes, RUNS / stage / "log.txt")
        subprocess.run([sys.executable, "-m", f"demo.train.{stage}", *arguments], cwd=ROOT, env=environment, check=True)
        if stage != "export":
            done.touch()


if __name__ == "__main__":
    main()
