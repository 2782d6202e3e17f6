"""What the pack costs a user who has not drawn anything yet: archive size, seconds and memory at the host's start.

    python -m benchmarks.startup [--rounds 5]

The archive is built as the registry builds it and unpacked into a temporary folder. Each start is a process of its own
that imports the host with its own extra nodes and then loads the pack by the host's own loader; seconds and resident
memory are those of the loading alone. The first start also compiles the pack's files, the later ones find that done.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tools.build_archive import build

ROOT = Path(__file__).resolve().parent.parent
# Runs in the fresh process; the host is on its sys.path, the repository is not.
START = """
import asyncio, json, sys, time
pack, report = sys.argv[1:]
sys.argv = ["main.py"]
from comfy.cli_args import args
args.cpu = True
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))

modules, memory, started = set(sys.modules), resident(), time.perf_counter()
loaded = asyncio.run(nodes.load_custom_node(pack))
result = {"loaded": loaded, "seconds": time.perf_counter() - started, "mib": resident() - memory,
          "foreign": sorted(name for name in set(sys.modules) - modules if pack not in name)}
open(report, "w").write(json.dumps(result))
"""


def start(pack: Path, report: Path, host: Path) -> dict:
    """Load `pack` in a fresh process and return what it measured.  Raises: RuntimeError when the host refuses it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(host)
    command = [sys.executable, "-c", START, str(pack), str(report)]
    done = subprocess.run(command, cwd=report.parent, env=environment, capture_output=True, text=True, check=False)
    result = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {"loaded": False}
    if done.returncode or not result["loaded"]:
        raise RuntimeError(f"The host did not load the pack:\n{done.stderr[-2000:]}")
    return result


def measure(rounds: int, folder: Path, host: Path) -> list[str]:
    """Return the lines of the report."""
    archive, pack = folder / "archive.zip", folder / "sana-native"
    names = build(archive)
    with zipfile.ZipFile(archive) as content:
        content.extractall(pack)
        sizes = {name: content.getinfo(name).file_size for name in names}
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    first = start(pack, folder / "first.json", host)
    later = [start(pack, folder / f"later-{i}.json", host) for i in range(rounds)]

    def middle(key: str) -> float:
        return statistics.median(result[key] for result in later)

    return [
        "| figure | value |",
        "|---|---|",
        f"| archive, packed | {archive.stat().st_size / 1e6:.1f} MB, {len(names)} files |",
        f"| archive, unpacked | {sum(sizes.values()) / 1e6:.1f} MB, of it {weights / 1e6:.1f} MB demo weights |",
        f"| loading the pack, first start | {first['seconds']:.2f} s |",
        f"| loading the pack, later starts, median of {rounds} | {middle('seconds'):.2f} s |",
        f"| memory of the loaded pack | {middle('mib'):.1f} MiB |",
        f"| modules that it loads besides its own | {len(later[0]['foreign'])} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description="Cost of the pack at the start.")
    parser.add_argument("--rounds", type=int, default=5, help="starts after the first one")
    rounds = parser.parse_args().rounds
    host = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI").resolve()
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write("\n".join(measure(rounds, Path(folder), host)) + "\n")


if __name__ == "__main__":
    main()
