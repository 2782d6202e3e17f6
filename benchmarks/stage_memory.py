"""What a device with little memory holds at each stage of an image, with a CPU in its place.

As a file in `custom_nodes` it brings no nodes. The server answers ADDRESS with what was counted since the last time;
asked with `?bytes=N` it first makes the host take the CPU for a device of that size beside the memory proper, empty, so
that it unloads models for others as it does on a GPU, which it never does on a CPU otherwise. It changes no result.
"""

from __future__ import annotations

import functools
import json
import sys
import urllib.request
from pathlib import Path

ADDRESS = "/sana_native_stage_memory"
# What a stage is: end of the module's name, class and method.
WATCHED = {
    "encode": ("models.t5.text_encoder", "T5TextEncoder", "encode_token_weights"),
    "denoise": ("models.pixart.model", "PixArt", "_forward"),
    "decode": ("comfy.sd", "VAE", "decode"),
}


def status(field: str) -> int:
    """Bytes of a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


class StageMemory:
    """By stage: calls, the most bytes that the process took above what it had, and bytes of each model held then."""

    def __init__(self):
        self.found: dict[str, dict] = {}

    def watch(self, owner: type, method: str, stage: str) -> None:
        original = getattr(owner, method)

        @functools.wraps(original)
        def counted(*args, **kwargs):
            told = self.found.setdefault(stage, {"calls": 0, "above": 0, "held": {}})
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            try:
                return original(*args, **kwargs)
            finally:
                told["calls"] += 1
                told["above"] = max(told["above"], status("VmHWM") - before)
                told["held"] = held()

        setattr(owner, method, counted)

    def take(self) -> dict:
        found, self.found = self.found, {}
        return found


def held() -> dict[str, int]:
    """Class of each model that the host has loaded -> bytes of its weights there."""
    import comfy.model_management

    loaded = comfy.model_management.current_loaded_models
    return {type(one.model.model).__name__: one.model_loaded_memory() for one in loaded if one.model_loaded_memory()}


def stand_in(size: list[int]) -> None:
    """The host's devices become a CPU beside the CPU, with as many bytes as the list says."""
    import comfy.model_management as host
    import torch

    device, free = torch.device("cpu", 0), host.get_free_memory

    def get_free_memory(dev=None, torch_free_too=False):
        if dev != device:
            return free(dev, torch_free_too)
        left = size[0] - sum(held().values())
        return (left, 0) if torch_free_too else left

    host.get_free_memory = get_free_memory
    for name in ("get_torch_device", "text_encoder_device", "vae_device"):
        setattr(host, name, lambda: device)


def ask(server_url: str, size: int | None = None) -> dict:
    """From outside: what was counted since the last time; size: bytes of the device from here on, emptied."""
    query = "" if size is None else f"?bytes={size}"
    with urllib.request.urlopen(f"{server_url}{ADDRESS}{query}", timeout=60) as answer:
        return json.load(answer)


def watch_classes(memory: StageMemory) -> None:
    for stage, (module, owner, method) in WATCHED.items():
        (found,) = [loaded for name, loaded in list(sys.modules.items()) if f".{name}".endswith(f".{module}")]
        memory.watch(getattr(found, owner), method, stage)


def comfy_entrypoint():
    """For the host, which loads this file as it loads a pack."""
    import comfy.model_management
    from aiohttp import web
    from comfy_api.latest import ComfyExtension
    from server import PromptServer

    memory, size = StageMemory(), []

    @PromptServer.instance.routes.get(ADDRESS)
    async def take(request):
        if "bytes" in request.query:
            if not size:  # all packs are loaded by now
                watch_classes(memory)
                stand_in(size)
            size[:] = [int(request.query["bytes"])]
            comfy.model_management.unload_all_models()
        return web.json_response(memory.take())

    class Extension(ComfyExtension):
        async def get_node_list(self):
            return []

    return Extension()
