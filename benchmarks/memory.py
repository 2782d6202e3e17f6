"""Peak memory of single passes against what the host is told to keep free for them.

    python -m benchmarks.memory [--stages step decode encode text] [--sizes 512 1024 2048]
    python -m benchmarks.memory --stages decode --sizes 1024 --dtype bfloat16 --tile-size 512 --threads 2

Networks have the released widths and random weights, the transformer and the text encoder only two blocks, because
their peak is that of one. Each figure comes from a process of its own and is resident memory above what it had before
the pass, which is the second one; the allocator is told to return freed memory at once. The estimate is asked of
the code that answers the host. --dtype and --tile-size (of exact tiles, in px) are for decode and encode.
"""

from __future__ import annotations

import argparse

from benchmarks.measuring import ALLOCATOR, give_back, heading, in_a_process, memory, row, start_peak, write
from benchmarks.networks import GEMMA, VOCABULARY, build, call, randomize
from demo.train.pack import prepare_imports

STAGES = ("step", "decode", "encode", "text")
TOKENS = 850  # of a text encode: the instruction and 300 positions


def transformer_pass(size: int):
    """One step of an image at the 1.6B's width, and the estimate for it."""
    import comfy.ops
    import torch
    from sana_native.models.sana.config import SanaConfig
    from sana_native.models.sana.loader import choose_network

    config = SanaConfig(2240, 2, 20, 2304, 5600, 32, 32, False, False, 0.1, None, 32, 3.0, True)
    network, memory_factor = choose_network(torch.device("cpu"))
    model = randomize(network(config, operations=comfy.ops.disable_weight_init)).eval()
    positions = size // 32  # a side
    inputs = {
        "x": torch.randn(1, 32, positions, positions),
        "timesteps": torch.full((1,), 547.0),
        "context": torch.randn(1, 300, 2304),
        "attention_mask": torch.ones(1, 300),
    }
    # The host's formula for its memory-efficient attention; that for the others is 15 / bytes times as much.
    return lambda: model(**inputs), positions**2 * 4 * 0.01 * memory_factor * 2**20


def autoencoder_pass(stage: str, size: int, dtype, tile_size: int | None):
    from sana_native.models.dc_ae.memory_estimate import Workload

    model = build(stage, "ours", dtype)
    told = Workload(size, size, dtype, "cpu").memory(tile_size)
    return call(stage, "ours", model, size, dtype, tile_size=tile_size), told


def text_pass():
    """Two layers of Gemma-2-2b in bfloat16 over a long prompt, and the fixed reserve that the host keeps for those."""
    import comfy.model_management
    import torch
    from sana_native.models.gemma.text_encoder import Gemma2
    from sana_native.models.runtime.cpu.linear_ops import TextOperations

    sizes = GEMMA | {"vocab_size": VOCABULARY, "num_hidden_layers": 2}
    model = randomize(Gemma2(sizes, torch.bfloat16, "cpu", TextOperations)).eval()
    tokens = torch.randint(0, VOCABULARY, (1, TOKENS))
    return lambda: model(tokens, dtype=torch.float32), comfy.model_management.minimum_inference_memory()


def measure(stage: str, size: int, given: argparse.Namespace) -> dict:
    prepare_imports()
    import torch

    torch.set_num_threads(given.threads)  # with more than one the matrix library copies weights
    with torch.inference_mode():
        if stage == "step":
            run, told = transformer_pass(size)
        elif stage == "text":
            run, told = text_pass()
        else:
            run, told = autoencoder_pass(stage, size, getattr(torch, given.dtype), given.tile_size)
        run()
        start_peak()
        before = memory("VmRSS")
        run()
    return {"peak": memory("VmHWM") - before, "told": told}


def peak_and_told(stage: str, size: int, given: argparse.Namespace) -> tuple[int, float]:
    """Bytes one pass needs at most, and what the host is told, from a process of its own."""
    options = [
        "--dtype",
        given.dtype,
        "--threads",
        given.threads,
        *(["--tile-size", given.tile_size] if given.tile_size else []),
    ]
    found = in_a_process("memory", "--measure", stage, size, *options, environment=ALLOCATOR)
    return found["peak"], found["told"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tile-size", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        give_back(measure(given.measure[0], int(given.measure[1]), given))
        return
    write(heading(("stage", "px", "peak MiB", "told MiB", "told / peak")))
    for stage in given.stages:
        for size in given.sizes if stage != "text" else given.sizes[:1]:
            peak, told = (found / 2**20 for found in peak_and_told(stage, size, given))
            write(row((stage, "-" if stage == "text" else size, f"{peak:.0f}", f"{told:.0f}", f"{told / peak:.2f}")))


if __name__ == "__main__":
    main()
