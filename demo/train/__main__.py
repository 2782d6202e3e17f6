"""The whole demo, from nothing to `demo/checkpoint`: `python -m demo.train`. Stopped, it goes on where it was.

Each stage is a process of its own; a finished one is not run again. Delete `demo/train/runs` to begin anew.
"""

import argparse
import logging
import os
import subprocess
import sys

from .data import RUNS
from .pack import ROOT

# Stages, and minutes on two CPU cores.
STAGES = (
    ("tokenizer", None),
    ("text_encoder", 44),
    ("autoencoder", 85),
    ("transformer", 80),
    ("sprint", 25),
    ("export", None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the minutes of every stage")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    environment = {"OMP_NUM_THREADS": "1"} | os.environ  # each stage has its own threads
    RUNS.mkdir(parents=True, exist_ok=True)
    for stage, minutes in STAGES:
        done = RUNS / f"{stage}.done"
        if done.exists():
            continue
        if minutes:
            logging.info("%s, %.0f minutes; log: %s", stage, minutes * args.scale, RUNS / stage / "log.txt")
        length = ["--minutes", str(minutes * args.scale)] if minutes else []
        subprocess.run([sys.executable, "-m", f"demo.train.{stage}", *length], cwd=ROOT, env=environment, check=True)
        if stage != "export":
            done.touch()


if __name__ == "__main__":
    main()
