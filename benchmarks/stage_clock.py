"""How long the networks work inside a program that makes whole pictures: the server, or diffusers' pipeline.

As a file in `custom_nodes` it brings no nodes: it watches the classes of the pack beside it, and the server answers
ADDRESS with what was counted since the last time. It changes no result.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

ADDRESS = "/sana_native_stage_clock"
# What a stage is in the pack: module, class and method.
WATCHED = {
    "text": ("models.gemma.text_encoder", "SanaTextEncoder", "encode_token_weights"),
    "steps": ("models.sana.model", "Sana", "forward"),
    "decode": ("models.dc_ae.inplace", "InplaceAutoencoderDC", "decode"),
}


class StageClock:
    """Seconds, calls and format of the input by stage. The watched methods must not call one another."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.formats: dict[str, str] = {}

    def watch(self, owner: object, method: str, stage: str) -> None:
        """Count the calls of a method of an object, or of a class."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args, **kwargs):
            started = now()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + now() - started
                self.calls[stage] = self.calls.get(stage, 0) + 1
                self.formats[stage] = format_of([*args, *kwargs.values()])

        setattr(owner, method, timed)

    def take(self) -> dict:
        """What was counted since the last time, with the process's most memory; both begin anew."""
        found = {"stages": self.seconds, "calls": self.calls, "formats": self.formats, "peak": peak()}
        self.seconds, self.calls, self.formats = {}, {}, {}
        start_peak()
        return found


def format_of(inputs: list) -> str:
    """Of the first tensor that holds no whole numbers; "" without one, as in text."""
    import torch

    found = (each.dtype for each in inputs if isinstance(each, torch.Tensor) and each.is_floating_point())
    return str(next(found, "")).removeprefix("torch.")


def now() -> float:
    """By a clock that waits for a GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> int:
    """Bytes this process held at most since `start_peak`: resident, mapped weights included, or allocated on a GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def start_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def watch_pack(clock: StageClock) -> None:
    """The pack's classes, wherever the server has loaded it from."""
    for stage, (module, owner, method) in WATCHED.items():
        found = [loaded for name, loaded in list(sys.modules.items()) if name.endswith(f".{module}")]
        owners = [getattr(one, owner) for one in found if hasattr(one, owner)]
        if len(owners) != 1:
            raise LookupError(f"{len(owners)} classes are called {module}.{owner}, expected the pack's alone.")
        clock.watch(owners[0], method, stage)


def comfy_entrypoint():
    """For the host, which loads this file as it loads a pack."""
    from aiohttp import web
    from comfy_api.latest import ComfyExtension
    from server import PromptServer

    clocks = []

    @PromptServer.instance.routes.get(ADDRESS)
    async def take(_request):
        if not clocks:  # all packs are loaded by now
            clocks.append(StageClock())
            watch_pack(clocks[0])
        return web.json_response(clocks[0].take())

    class Extension(ComfyExtension):
        async def get_node_list(self):
            return []

    return Extension()
