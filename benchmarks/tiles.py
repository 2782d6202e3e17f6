"""Decoding and encoding in exact tiles against the whole, and against tiles of the latent: time, peak memory and error.

    python -m benchmarks.tiles [--stages decode encode] [--sizes 2048] [--tile-size 1024] [--dtype bfloat16]

Random weights of the released size. "latent" cuts the latent into parts of 1024 px that overlap by 128 and are blended,
as diffusers and the host do; part of DC-AE attends to the whole image, so that gives another image. Each row
is a process of its own. The error is relative to the whole, in decibels below it. `--no-whole` is for sizes that do not
fit as a whole, and leaves out the errors too.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from benchmarks.measuring import give_back, heading, held, in_a_process, row, timed_with_peak, write
from benchmarks.networks import build, call
from demo.train.pack import prepare_imports

LATENT_TILE, LATENT_OVERLAP = 32, 4
COLUMNS = ("stage", "px", "dtype", "tiles", "seconds", "peak GiB", "error, dB")


def in_latent_tiles(network, stage: str, x):
    from comfy.utils import tiled_scale

    scale = 32 if stage == "decode" else 1 / 32
    tile, overlap = (LATENT_TILE, LATENT_OVERLAP) if stage == "decode" else (32 * LATENT_TILE, 32 * LATENT_OVERLAP)
    channels = 3 if stage == "decode" else 32
    return tiled_scale(
        x, getattr(network, stage), tile, tile, overlap, scale, out_channels=channels, output_device=x.device
    )


def measure(stage: str, method: str, size: int, given: argparse.Namespace) -> dict:
    prepare_imports()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, given.dtype)
    with torch.inference_mode():
        torch.manual_seed(0)  # every process has the same weights and input
        network = build(stage, "ours", dtype, device)
        loaded = held(device)
        call(stage, "ours", network, 256, dtype, device)()
        shape = (1, 32, size // 32, size // 32) if stage == "decode" else (1, 3, size, size)
        x, run = torch.randn(shape).to(device, dtype), getattr(network, stage)
        outs = []
        if method == "latent":
            seconds, peak = timed_with_peak(lambda: outs.append(in_latent_tiles(network, stage, x)), device)
        else:
            network.tile_size = given.tile_size if method == "exact" else None
            seconds, peak = timed_with_peak(lambda: outs.append(run(x)), device)
        torch.save(outs[0].cpu(), Path(given.folder) / f"{method}.pt")
    return {"seconds": seconds, "peak": peak - loaded}


def decibels(folder: Path, method: str) -> str:
    import torch

    whole, other = (torch.load(folder / f"{name}.pt") for name in ("whole", method))
    error = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(whole[0], other[0], strict=True))
    signal = sum(float(channel.float().square().sum()) for channel in whole[0])
    return f"{10 * math.log10(signal / error):.0f}" if error else "equal"


def compare(stage: str, size: int, given: argparse.Namespace) -> None:
    methods = ["exact", "latent"] if given.no_whole else ["whole", "exact", "latent"]
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            options = ["--tile-size", given.tile_size, "--dtype", given.dtype, "--folder", folder]
            found = in_a_process("tiles", "--measure", stage, method, size, *options)
            error = "" if given.no_whole or method == "whole" else decibels(Path(folder), method)
            name = f"exact, {given.tile_size} px" if method == "exact" else method
            cells = (stage, size, given.dtype, name, f"{found['seconds']:.3g}", f"{found['peak'] / 2**30:.2f}", error)
            write(row(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["decode", "encode"], choices=["decode", "encode"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[2048])
    parser.add_argument("--tile-size", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--no-whole", action="store_true")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        stage, method, size = given.measure
        give_back(measure(stage, method, int(size), given))
        return
    write(heading(COLUMNS))
    for stage in given.stages:
        for size in given.sizes:
            compare(stage, size, given)


if __name__ == "__main__":
    main()
