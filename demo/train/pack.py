"""Makes the pack's own networks importable in a script: the host on sys.path, the pack as the package `sana_native`."""

import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "demo" / "checkpoint"
SPRINT_CHECKPOINT = ROOT / "demo" / "checkpoint_sprint"
CONTROLNET_CHECKPOINT = ROOT / "demo" / "checkpoint_controlnet"
SPRINT_CONTROLNET_CHECKPOINT = ROOT / "demo" / "checkpoint_controlnet_sprint"


def prepare_imports() -> None:
    """Call before importing `sana_native` or `comfy`; the host comes from $COMFYUI_PATH or .comfyui/ComfyUI.

    Raises: FileNotFoundError if there is no host.
    """
    if "sana_native" in sys.modules:
        return
    host = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI")
    if not (host / "comfy").is_dir():
        raise FileNotFoundError(f"{host} is not a ComfyUI; run `make prepare` or set COMFYUI_PATH.")
    # The repository root on sys.path would hide the host's `nodes` behind the pack's folder of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    sys.path.insert(0, str(host))
    package = types.ModuleType("sana_native")
    package.__path__ = [str(ROOT)]
    sys.modules["sana_native"] = package
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True  # the host's other choice on a CPU is slower and meant for inference
