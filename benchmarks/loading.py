"""Time and peak memory of loading a transformer: ours, diffusers, and the host's UNETLoader on a model of its own.

    python -m benchmarks.loading [--rounds 3] [--depth 20] [--folder /scratch]

Writes two bfloat16 files of random weights, SANA of the 1.6B's width (1.6 billion weights at depth 20) and a Wan of
about the same size, into a temporary folder that it deletes. Each figure comes from a process of its own in which
everything is imported already. A load ends when every page of every weight has been read once, because some loaders
only map the file. "cold" has the file dropped from the page cache before, "warm" has it there. Peak is resident memory
above what the process had, mapped pages included. The implementations take turns; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo.train.pack import prepare_imports

ROOT = Path(__file__).resolve().parent.parent
IMPLEMENTATIONS = ("ours", "diffusers", "host")
SANA_FILE, WAN_FILE = "sana/transformer/diffusion_pytorch_model.safetensors", "wan.safetensors"
PAGE = 4096


def sana_network(depth: int):
    from diffusers import SanaTransformer2DModel

    sizes = {"num_attention_heads": 70, "num_layers": depth, "num_cross_attention_heads": 20}
    return SanaTransformer2DModel(**sizes, cross_attention_head_dim=112, cross_attention_dim=2240)


def wan_network(depth: int):
    """The host's Wan, 1.3B wide, with blocks to the size of the SANA file."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    return WanModel(
        model_type="t2v",
        dim=1536,
        ffn_dim=8960,
        num_heads=12,
        num_layers=round(depth * 34 / 20),
        operations=comfy.ops.disable_weight_init,
    )


def write_bfloat16(path: Path, state_dict: dict, block: bytes) -> None:
    """A safetensors file of tensors of these shapes, filled from one block of bytes, never all in memory."""
    header, end = {}, 0
    for key, tensor in state_dict.items():
        start, end = end, end + 2 * tensor.numel()
        header[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while end > 0:
            file.write(block[:end])
            end -= len(block)
        file.flush()
        os.fsync(file.fileno())


def write_files(folder: Path, depth: int) -> None:
    """Both files, with random weights."""
    prepare_imports()
    import torch

    values = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    block = values.view(torch.uint8).numpy().tobytes()
    for name, network in ((SANA_FILE, sana_network), (WAN_FILE, wan_network)):
        with torch.device("meta"):
            model = network(depth)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bfloat16(folder / name, model.state_dict(), block)
        if name == SANA_FILE:
            model.save_config((folder / name).parent)


def loader(implementation: str, folder: Path):
    """A function of no arguments that loads and returns the network; everything it needs is imported."""
    import torch

    if implementation == "diffusers":
        from diffusers import SanaTransformer2DModel

        return lambda: SanaTransformer2DModel.from_pretrained(folder / "sana" / "transformer", dtype=torch.bfloat16)
    if implementation == "host":
        import comfy.sd

        options = {"dtype": torch.bfloat16}
        return lambda: comfy.sd.load_diffusion_model(str(folder / WAN_FILE), options).model.diffusion_model
    from sana_native.models.loader import load_sana

    return lambda: load_sana(str(folder / "sana"), {"dtype": torch.bfloat16}).model.diffusion_model


def memory(field: str) -> int:
    """Bytes of a field of this process's status: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(implementation: str, cache: str, folder: Path) -> dict:
    """Seconds and the bytes above those of the process before, of one load."""
    prepare_imports()
    import torch

    load = loader(implementation, folder)
    path = folder / (WAN_FILE if implementation == "host" else SANA_FILE)
    with open(path, "rb") as file:
        if cache == "cold":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):
                pass
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, started = memory("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        network = load()
        touched = sum(
            float(weight.flatten()[:: PAGE // weight.element_size()].sum()) for weight in network.parameters()
        )
    seconds = time.perf_counter() - started
    size = path.stat().st_size
    kept = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    if touched != touched or abs(kept / size - 1) > 0.01:
        raise RuntimeError(f"{implementation} keeps {kept} bytes of a file of {size}")
    return {"seconds": seconds, "peak": memory("VmHWM") - before, "size": size}


def in_a_process(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.loading", "--step", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def measured(implementation: str, cache: str, folder: Path) -> dict:
    return json.loads(in_a_process("measure", implementation, cache, str(folder)).splitlines()[-1])


def compare(cache: str, folder: Path, rounds: int) -> list[str]:
    """Table rows of one state of the cache."""
    results = []
    for turn in range(rounds):
        order = IMPLEMENTATIONS[turn % 3 :] + IMPLEMENTATIONS[: turn % 3]
        results.append({name: measured(name, cache, folder) for name in order})
    rows = []
    for name in IMPLEMENTATIONS:
        seconds = statistics.median(one[name]["seconds"] for one in results)
        ratio = statistics.median(one[name]["seconds"] / one["ours"]["seconds"] for one in results)
        peak = max(one[name]["peak"] for one in results)
        size = results[0][name]["size"]
        figures = (size / 1e9, seconds, ratio, peak / 1e9, peak / size)
        rows.append(f"| {cache} | {name} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step, *rest = given.step
        if step == "write":
            write_files(Path(rest[0]), int(rest[1]))
        else:
            sys.stdout.write(json.dumps(measure(rest[0], rest[1], Path(rest[2]))) + "\n")
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        in_a_process("write", folder, str(given.depth))
        sys.stdout.write(
            "| cache | implementation | file GB | seconds | time / ours | peak GB | peak / file |\n"
            "|---|---|---|---|---|---|---|\n"
        )
        for cache in ("cold", "warm"):
            sys.stdout.write("\n".join(compare(cache, Path(folder), given.rounds)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
