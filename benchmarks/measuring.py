"""What every benchmark shares: clocks, peak memory, processes of their own, and the lines of a table."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Freed memory goes back to the system at once, so that a second pass shows all that it needs.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STOP_SECONDS = 20


def memory(field: str, process: int | str = "self") -> int:
    """Bytes of a field of a process's status: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def start_peak() -> None:
    """VmHWM of this process counts from here."""
    Path("/proc/self/clear_refs").write_text("5")


def held(device: str) -> int:
    """Bytes that this process holds now: resident, or allocated on a GPU."""
    import torch

    return memory("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()


def seconds(run: Callable, device: str) -> float:
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


def timed_with_peak(run: Callable, device: str) -> tuple[float, int]:
    """Seconds of one call, and the most bytes that the process held in it."""
    import torch

    if device == "cpu":
        start_peak()
        took = seconds(run, device)
        return took, memory("VmHWM")
    torch.cuda.reset_peak_memory_stats()
    took = seconds(run, device)
    return took, torch.cuda.max_memory_allocated()


def in_a_process(module: str, *arguments: object, environment: dict[str, str] | None = None) -> dict | None:
    """What a benchmark run as a program gives back: the JSON of its last line, None when it writes nothing.

    Raises: RuntimeError with all that it complained of.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    variables, pipe = os.environ | (environment or {}), subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            out, complaint = process.communicate()
        except BaseException:
            stop(process)
            raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{complaint}")
    return json.loads(out.splitlines()[-1]) if out.strip() else None


def stop(process: subprocess.Popen) -> None:
    """Politely: it may have a server to stop and files to delete."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def stop_politely() -> None:
    """Lets a polite kill of this process run what stops and deletes, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def give_back(found: dict) -> None:
    """The other end of `in_a_process`."""
    write(json.dumps(found))


def in_turns(names: Iterable[str], rounds: int, measure: Callable[[str], dict]) -> list[dict[str, dict]]:
    """One measurement of each name per round, another one first each time: a machine's speed drifts."""
    names = list(names)
    found = []
    for turn in range(rounds):
        first = turn % len(names)
        measured = {name: measure(name) for name in names[first:] + names[:first]}
        found.append({name: measured[name] for name in names})
    return found


def middle(rounds: list[dict[str, dict]], name: str, field: str) -> float:
    return statistics.median(one[name][field] for one in rounds)


def ratio(rounds: list[dict[str, dict]], name: str, to: str = "ours", field: str = "seconds") -> float:
    """Median over the rounds of one name's figure divided by the other's in the same round."""
    return statistics.median(one[name][field] / one[to][field] for one in rounds)


def row(cells: Iterable) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def heading(columns: Iterable[str]) -> str:
    columns = list(columns)
    return f"{row(columns)}\n{row('---' for _ in columns)}"


def write(line: str) -> None:
    """To standard output at once: the next row may take minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
