"""A small ComfyUI for runs of `scale`: its one custom node does what a prompt says, dying included."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODE = '''
import os, time
from comfy.model_management import throw_exception_if_processing_interrupted

class ScaleTestNode:
    """Hands an image on, and does what a text says."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "text": ("STRING", {"default": ""})}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "test"

    def run(self, image, text):
        word, _, value = text.partition(" ")
        if word == "die":
            os._exit(7)
        if word == "die-once" and not os.path.exists(value):
            open(value, "w").close()
            os._exit(7)
        if word == "kill-parent":
            os.kill(os.getppid(), 9)
            time.sleep(60)
        if word == "raise":
            raise ValueError("as the text says")
        if word == "memory" and not os.path.exists(value):
            open(value, "w").close()
            raise RuntimeError("CUDA out of memory")
        if word == "sleep":
            end = time.monotonic() + float(value.split()[0])
            while time.monotonic() < end:
                throw_exception_if_processing_interrupted()
                time.sleep(0.05)
        return (image,)

NODE_CLASS_MAPPINGS = {"ScaleTestNode": ScaleTestNode}
'''
GRAPH = {
    "1": ("EmptyImage", "Empty", {"width": 64, "height": 64, "batch_size": 1, "color": 0}),
    "2": ("ScaleTestNode", "Text", {"image": ["1", 0], "text": ""}),
    "3": ("SaveImage", "Save", {"images": ["2", 0], "filename_prefix": "x"}),
}


class Bench:
    """Runs of the command on rows of a file, each a process of its own."""

    def __init__(self, folder: Path, host: Path):
        self.folder, self.host = folder, host
        for name in ("models", "input", "custom_nodes/scale_test"):
            (folder / "base" / name).mkdir(parents=True)
        (folder / "base" / "custom_nodes" / "scale_test" / "__init__.py").write_text(NODE)
        graph = {key: {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}
                 for key, (kind, title, inputs) in GRAPH.items()}  # fmt: skip
        (folder / "w.json").write_text(json.dumps(graph))

    def write(self, name: str, rows: list[dict]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    def command(self, prompts: Path, out: Path | str, *more: str, python: str = sys.executable) -> list[str]:
        return [
            python, str(ROOT / "scale"), "run", "--workflow", str(self.folder / "w.json"), "--prompts", str(prompts),
            "--out", str(out), "--set", "Text.text={prompt}", "--set", "Empty.color={seed}", "--cpu",
            "--comfyui", str(self.host), "--python", sys.executable, "--base", str(self.folder / "base"),
            "--work", str(self.folder / "work"), *more,
        ]  # fmt: skip

    def start(self, *arguments, **options) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
        return subprocess.Popen(self.command(*arguments, **options), **pipes)

    def run(self, *arguments, **options) -> tuple[int, str]:
        """Exit code and what was said."""
        process = self.start(*arguments, **options)
        text, _ = process.communicate(timeout=600)
        return process.returncode, text

    def server_of(self, worker: str) -> int:
        """Of the latest job: each has a folder of its own."""
        files = (self.folder / "work").glob(f"*/{worker}/server.pid")
        return int(max(files, key=lambda file: file.stat().st_mtime_ns).read_text())


def pictures(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.glob("images/*/*")}


def statuses(out: Path) -> dict[int, str]:
    """Index -> status, of records that are there once each."""
    records = [json.loads(line) for part in sorted(out.glob("manifest/*.jsonl")) for line in part.open("rb")]
    found = {}
    for record in records:
        if found.get(record["index"]) != "done":
            found[record["index"]] = record["status"]
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait_until(condition, seconds: float, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.1)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
