"""What a GPU did in one call: time by events, waits of the host, peak memory, kernels, and synchronizing lines.

On a CPU only the time is measured; the rest is None, so that a dry run gives the same fields.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

WARM_UPS = 3  # on a GPU, of which long ones are not repeated
FEWEST, LEAST, MOST = 2, 5, 30  # runs that are timed
SECONDS = 1.5  # after which no further run is timed, once there are LEAST
TOP_KERNELS, NAME_LENGTH = 12, 90
SYNC_SITES = 20  # at most, the most frequent first
# Of torch's warning for each wait; that `set_sync_debug_mode` is a prototype it says once, in other words.
SYNC_WARNING = "called a synchronizing"


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Memory of objects that are gone and of models that ComfyUI still holds on the device."""
    import comfy.model_management
    import torch

    comfy.model_management.unload_all_models()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def time_runs(run: Callable, device: str, seconds: float = SECONDS) -> dict:
    """ms of a call: median and best by the device's clock, and the median until the host is free again.

    A call whose `host_ms` equals its `ms` is bound by launches, not by the device. The device is idle before each.
    """
    on_device = device == "cuda"
    begun = time.perf_counter()
    for _ in range(WARM_UPS if on_device else 1):
        run()
        synchronize(device)
        if time.perf_counter() - begun > seconds:
            break
    times, waits, begun = [], [], time.perf_counter()
    while wants_more(len(times), time.perf_counter() - begun, seconds) if on_device else not times:
        took, wait = time_once(run, device)
        times.append(took)
        waits.append(wait)
    return {
        "ms": statistics.median(times),
        "best_ms": min(times),
        "host_ms": statistics.median(waits),
        "runs": len(times),
    }


def wants_more(runs: int, passed: float, seconds: float) -> bool:
    """Whether another run is timed: LEAST of them, two if each takes long, and more while there is time."""
    if runs < LEAST:
        return runs < FEWEST or passed < LEAST * seconds
    return runs < MOST and passed < seconds


def time_once(run: Callable, device: str) -> tuple[float, float]:
    """ms by the device's clock, and ms until the host is free."""
    import torch

    started = time.perf_counter()
    if device != "cuda":
        run()
        took = (time.perf_counter() - started) * 1e3
        return took, took
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    waited = (time.perf_counter() - started) * 1e3
    torch.cuda.synchronize()
    return begin.elapsed_time(end), waited


def peak_mib(run: Callable, device: str) -> float | None:
    """MiB that one call allocates above what is allocated before it; cuDNN's workspaces count."""
    if device != "cuda":
        return None
    import torch

    torch.cuda.empty_cache()
    run()  # what is allocated once and stays, such as workspaces of cuBLAS
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def trace_kernels(run: Callable, device: str) -> dict:
    """Launches of one call, ms that the device was busy, and the kernels that took most of them."""
    if device != "cuda":
        return {"launches": None, "busy_ms": None, "top_kernels": []}
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum_kernels((e.name, e.time_range.elapsed_us()) for e in profiler.events() if e.device_type == on_device)


def sum_kernels(events: Iterable[tuple[str, float]]) -> dict:
    """events: name and microseconds of each kernel, copy and fill."""
    totals: dict[str, tuple[int, float]] = {}
    for name, microseconds in events:
        count, total = totals.get(name, (0, 0.0))
        totals[name] = count + 1, total + microseconds
    top = sorted(totals.items(), key=lambda item: -item[1][1])[:TOP_KERNELS]
    return {
        "launches": sum(count for count, _ in totals.values()),
        "busy_ms": sum(total for _, total in totals.values()) / 1e3,
        "top_kernels": [
            {"name": name[:NAME_LENGTH], "count": count, "ms": total / 1e3} for name, (count, total) in top
        ],
    }


def sync_sites(run: Callable, device: str) -> dict[str, int] | None:
    """Lines, as file:number, at which one call makes the host wait for the device, and how often."""
    if device != "cuda":
        return None
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = Counter(short_site(one.filename, one.lineno) for one in caught if SYNC_WARNING in str(one.message))
    return dict(found.most_common(SYNC_SITES))


def short_site(file: str, line: int) -> str:
    return f"{'/'.join(Path(file).parts[-2:])}:{line}"
