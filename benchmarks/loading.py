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
import os
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import (
    give_back,
    heading,
    in_a_process,
    in_turns,
    memory,
    middle,
    ratio,
    row,
    start_peak,
    write,
)
from benchmarks.random_files import write_bfloat16
from demo.train.pack import prepare_imports

IMPLEMENTATIONS = ("ours", "diffusers", "host")
SANA_FILE, WAN_FILE = "sana/transformer/diffusion_pytorch_model.safetensors", "wan.safetensors"
PAGE = 4096
COLUMNS = ("cache", "implementation", "file GB", "seconds", "time / ours", "peak GB", "peak / file")


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


def write_files(folder: Path, depth: int) -> None:
    """Both files, with random weights."""
    prepare_imports()
    import torch

    for name, network in ((SANA_FILE, sana_network), (WAN_FILE, wan_network)):
        with torch.device("meta"):
            model = network(depth)
        write_bfloat16(folder / name, model.state_dict())
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
    from sana_native.models.sana.loader import load_sana

    return lambda: load_sana(str(folder / "sana"), {"dtype": torch.bfloat16}).model.diffusion_model


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
    start_peak()
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


def compare(cache: str, folder: Path, rounds: int) -> list[str]:
    """Table rows of one state of the cache."""
    results = in_turns(
        IMPLEMENTATIONS, rounds, lambda name: in_a_process("loading", "--step", "measure", name, cache, folder)
    )
    rows = []
    for name in IMPLEMENTATIONS:
        peak = max(one[name]["peak"] for one in results)
        size = results[0][name]["size"]
        figures = (size / 1e9, middle(results, name, "seconds"), ratio(results, name), peak / 1e9, peak / size)
        rows.append(row((cache, name, *(f"{figure:.2f}" for figure in figures))))
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
            give_back(measure(rest[0], rest[1], Path(rest[2])))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        in_a_process("loading", "--step", "write", folder, given.depth)
        write(heading(COLUMNS))
        for cache in ("cold", "warm"):
            write("\n".join(compare(cache, Path(folder), given.rounds)))


if __name__ == "__main__":
    main()
