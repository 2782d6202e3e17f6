"""One denoising step and one prompt at released widths, ours and the reference in turns, and what a step costs a pixel.

    python -m benchmarks.step [--stages step text growth] [--models 0.6B 1.6B] [--sizes 512 1024] [--tokens 30 300]
        [--dtype bfloat16] [--pairs 3] [--depth 4] [--cpu]

A step holds both passes of cfg, the negative prompt being empty. Weights are random. --depth builds fewer blocks: all
are alike. --cpu counts the seconds of one thread instead of the clock's, which a busy machine does not change much.
Peaks are resident memory above the weights, from processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.loading import memory
from benchmarks.networks import IMPLEMENTATIONS, TRANSFORMERS, build, call
from demo.train.pack import prepare_imports

ROOT = Path(__file__).resolve().parent.parent
GROWTH_SIZES = (256, 512, 1024, 2048, 4096)
# Gemma-2-2b, all but the vocabulary, which costs nothing to look up.
TEXT = {"vocab_size": 4096, "hidden_size": 2304, "intermediate_size": 9216}
TEXT |= {"num_attention_heads": 8, "num_key_value_heads": 4}
TEXT_DEPTH, INSTRUCTION_POSITIONS, ALL_POSITIONS = 26, 207, 506
# Freed memory goes back to the system at once, so that the second pass shows all that it needs.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def randomised(network):
    import torch

    for parameter in network.parameters():
        bound = 0.5 if parameter.ndim == 1 else (3 / parameter[0].numel()) ** 0.5
        torch.nn.init.uniform_(parameter.data, -bound, bound)
    return network


def text_calls(dtype, depth: int | None, tokens: int) -> dict[str, Callable]:
    """A prompt after the first one with our encoder, and all positions with transformers."""
    import comfy.model_management
    import comfy.model_patcher
    import torch
    import transformers
    from sana_native.models.gemma import CLIP_NAME, SanaTextEncoder

    sizes = TEXT | {"num_hidden_layers": depth or TEXT_DEPTH}
    encoder = SanaTextEncoder("cpu", dtype, {f"{CLIP_NAME}_model_config": sizes})
    randomised(encoder.gemma2_2b.transformer)
    device = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(encoder, device, device)
    reference = transformers.Gemma2Model(transformers.Gemma2Config(**sizes, head_dim=256, attn_implementation="eager"))
    reference = randomised(reference).to(dtype).eval()
    instruction = list(range(2, INSTRUCTION_POSITIONS + 2))

    def ours():
        comfy.model_management.load_models_gpu([patcher])  # as the host does for every prompt
        prompt = torch.randint(300, 4000, (tokens,)).tolist()
        row = instruction + prompt + [0] * (ALL_POSITIONS - len(instruction) - tokens)
        return encoder.encode_token_weights({CLIP_NAME: [[(token, 1.0) for token in row]]})

    row = torch.randint(1, 4000, (1, ALL_POSITIONS))
    mask = (torch.arange(ALL_POSITIONS) < INSTRUCTION_POSITIONS + tokens).long()[None]
    return {"ours": ours, "transformers": lambda: reference(row, attention_mask=mask)}


def in_turns(calls: dict[str, Callable], pairs: int, clock: Callable) -> dict[str, list[float]]:
    """Seconds of each call, after one to warm up."""
    seconds = {name: [] for name in calls}
    for turn in range(pairs + 1):
        for name, run in calls.items():
            started = clock()
            run()
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def row(label: str, seconds: dict[str, list[float]], peaks: dict[str, float]) -> str:
    ours, reference = seconds.values()
    ratio = statistics.median(b / a for a, b in zip(ours, reference))
    times = " | ".join(f"{statistics.median(values):.3f}" for values in (ours, reference))
    return f"| {label} | {times} | {ratio:.2f} | " + " | ".join(f"{peak:.0f}" for peak in peaks.values()) + " |\n"


def peaks(given, model: str, size: int, tokens: int) -> dict[str, float]:
    """MiB of a step above the weights."""
    asked = ["--depth", "1", "--dtype", given.dtype, "--models", model, "--sizes", str(size), "--tokens", str(tokens)]
    found = {}
    for name in IMPLEMENTATIONS["step"]:
        command = [sys.executable, "-m", "benchmarks.step", "--measure", name, *asked]
        out = subprocess.run(command, cwd=ROOT, env=os.environ | ALLOCATOR, check=True, stdout=subprocess.PIPE).stdout
        found[name] = json.loads(out.splitlines()[-1]) / 2**20
    return found


def measure_peak(given) -> int:
    import torch

    torch.set_num_threads(1)  # with more the matrix library copies weights, which is no part of the pass
    dtype = getattr(torch, given.dtype)
    with torch.inference_mode():
        network = build("step", given.measure, dtype, "cpu", given.models[0], given.depth)
        run = call("step", given.measure, network, given.sizes[0], dtype, "cpu", given.tokens[0])
        run()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = memory("VmRSS")
        run()
    return memory("VmHWM") - before


def step_rows(given, clock: Callable, dtype):
    yield "| model | px | tokens | ours s | diffusers s | diffusers / ours | ours MiB | diffusers MiB |\n"
    yield "|---|---|---|---|---|---|---|---|\n"
    for model in given.models:
        networks = {name: build("step", name, dtype, "cpu", model, given.depth) for name in IMPLEMENTATIONS["step"]}
        for size in given.sizes:
            for tokens in given.tokens:
                calls = {
                    name: call("step", name, network, size, dtype, "cpu", tokens) for name, network in networks.items()
                }
                seconds = in_turns(calls, given.pairs, clock)
                yield row(f"{model} | {size} | {tokens}", seconds, peaks(given, model, size, tokens))


def text_rows(given, clock: Callable, dtype):
    yield "| tokens | ours s | transformers s | transformers / ours |\n|---|---|---|---|\n"
    for tokens in given.tokens:
        seconds = in_turns(text_calls(dtype, given.depth, min(tokens, 299)), given.pairs, clock)
        yield row(str(tokens), seconds, {}).replace("|  |", "|")


def growth_rows(given, clock: Callable, dtype):
    """What grows with the picture: the blocks. The text's and the time's share is the same at every size."""
    yield "| model | px | seconds | a megapixel | against 1024 px |\n|---|---|---|---|---|\n"
    for model in given.models:
        network = build("step", "ours", dtype, "cpu", model, given.depth or 1)
        costs = {}
        for size in GROWTH_SIZES:
            run = call("step", "ours", network, size, dtype)
            seconds = min(in_turns({"ours": run}, given.pairs, clock)["ours"])
            costs[size] = seconds / (size / 1024) ** 2
        for size, cost in costs.items():
            seconds, share = cost * (size / 1024) ** 2, cost / costs[1024]
            yield f"| {model} | {size} | {seconds:.3f} | {cost:.3f} | {share:.2f} |\n"


ROWS = {"step": step_rows, "text": text_rows, "growth": growth_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["step", "text"], choices=ROWS)
    parser.add_argument("--models", nargs="+", default=["0.6B"], choices=TRANSFORMERS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--tokens", nargs="+", type=int, default=[30, 300])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    prepare_imports()
    import torch

    if given.measure:
        sys.stdout.write(json.dumps(measure_peak(given)) + "\n")
        return
    if given.cpu:
        torch.set_num_threads(1)
    with torch.inference_mode():
        for stage in given.stages:
            for line in ROWS[stage](
                given, time.thread_time if given.cpu else time.perf_counter, getattr(torch, given.dtype)
            ):
                sys.stdout.write(line)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
