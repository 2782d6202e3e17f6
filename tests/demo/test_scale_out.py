"""The demo's measurements of `scale`, on few rows through real servers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI")


def run(*arguments: str) -> dict:
    """The line of JSON that a measurement ends with."""
    done = subprocess.run(
        [sys.executable, "-m", "demo.scale_out", *arguments],
        cwd=ROOT, env=os.environ | {"COMFYUI_PATH": str(HOST)},
        capture_output=True, text=True, timeout=540, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.heavy
def test_a_hundred_rows_through_one_worker_are_all_accounted_for():
    found = run("soak", "--count", "100", "--steps", "1")
    assert (found["exit"], found["records"], found["pictures_as_recorded"]) == (0, 100, 100)
    assert found["samples"] >= 3 and found["server"]["mb"] > 100 and found["command"]["mb"] > 10


@pytest.mark.heavy
def test_two_workers_draw_held_out_prompts_and_the_judge_looks_at_every_picture():
    found = run("judge", "--count", "16")
    assert (found["exit"], found["records"], found["pictures"], found["workers"]) == (0, 16, 16, 2)
    assert found["all"] >= 0.75  # 96 % of 500
