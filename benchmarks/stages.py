"""Time, peak memory and operations of single stages at released sizes: ours beside diffusers and the host's own class.

    make bench [STAGES="text step decode encode"] [SIZES="512 1024"] [TOKENS="30 300"] [PAIRS=3] [DTYPE=bfloat16]
        [MODEL=0.6B] [COMPILE=1]

text    one prompt after the first: ours computes the prompt alone, transformers the reference's 506 positions
step    one denoising step of the transformer MODEL, with both passes of cfg, after the first of a run, in which ours
        computes the text's share of all steps
decode, encode    DC-AE f32c32; these two have ComfyUI's own class beside them
picture    whole pictures through the server, in a table of its own: see `picture.py`, which can be run alone
throughput    their latency, and pictures a second in the largest batch that fits, beside the paper's: `throughput.py`

SIZES are px, TOKENS the prompt's length (300 fills all positions), PAIRS the rounds, DTYPE torch's name of a format,
COMPILE=1 puts every implementation through torch.compile. `--blocks` builds fewer blocks than the model has.

Weights are random; every measurement is a process of its own, the implementations take turns, and the ratio is the
median over the rounds, so that a machine whose speed drifts does not decide. Peak is memory above what the loaded
weights take, resident on a CPU and allocated on a GPU; copies of weights that the warm-up left count. Operations are
counted by torch, two for a product and its sum; the limit they are compared with is a product of two matrices in the
same format, timed in the same process.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks import picture, throughput
from benchmarks.measuring import (
    give_back,
    heading,
    held,
    in_a_process,
    in_turns,
    middle,
    ratio,
    row,
    seconds,
    stop_politely,
    timed_with_peak,
    write,
)
from benchmarks.networks import (
    HALF,
    IMPLEMENTATIONS,
    POSITIONS,
    PROMPT_TOKENS,
    TRANSFORMERS,
    WITH_PIXELS,
    WITH_TEXT,
    build,
    call,
)
from demo.train.pack import prepare_imports

COLUMNS = (
    *("stage", "px", "tokens", "dtype", "implementation"),
    *("seconds", "peak GiB", "time / ours", "TFLOP", "of the limit"),
)
WARM_UP = 256  # px
MATRIX = {"cpu": 2048, "cuda": 8192}  # side, of the product that tells the limit
KERNELS = 15  # lines of the summary
WHOLE = ("picture", "throughput")  # in tables of their own
NOT_COMPILED = {
    "text": "every length of a prompt would be compiled anew, and the host compiles no text encoder",
    "picture": "it runs the shared workflows as they are",
    "throughput": "it runs the shared workflows as they are",
}


def limit(dtype, device: str) -> float:
    """Operations a second of a large product of matrices."""
    import torch

    side = MATRIX[device]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    torch.mm(a, b)
    return 2 * side**3 / statistics.median(seconds(lambda: torch.mm(a, b), device) for _ in range(5))


def operations(run) -> int:
    """Of one call, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def kernels(run) -> str:
    """A table of the GPU's kernels by the time they take."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
    return profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=KERNELS, max_name_column_width=60)


def measure(stage: str, implementation: str, size: int, tokens: int, given: argparse.Namespace) -> dict:
    """One pass after a warm-up: seconds, bytes above the weights, operations, and those a second that could be."""
    prepare_imports()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, given.dtype)

    def passing(device: str, network, size: int):
        return call(stage, implementation, network, size, dtype, device, tokens)

    with torch.inference_mode():
        found = {}
        if stage != "text":  # whose pass asks for values, so that it is counted below
            shapes = build(stage, implementation, dtype, "meta", given.model, given.blocks)
            found["operations"] = operations(passing("meta", shapes, size))
        network = build(stage, implementation, dtype, device, given.model, given.blocks)
        loaded = held(device)
        run = passing(device, network, size)
        compiled = given.compile and stage not in NOT_COMPILED
        if compiled:
            (getattr(network, HALF[stage]) if stage in HALF else network).compile()
        # Eager code on a CPU only has to be loaded; a compiler and the libraries of a GPU choose by the size, and the
        # first step of a run is not like the others.
        light = device == "cpu" and not compiled and stage in HALF
        (passing(device, network, min(size, WARM_UP)) if light else run)()
        if stage == "text":
            found["operations"] = operations(run)
        found["seconds"], peak = timed_with_peak(run, device)
        found["peak"] = peak - loaded
        found["limit"] = limit(dtype, device)
        if device == "cuda" and implementation == "ours":
            found["kernels"] = kernels(run)
    found["of_limit"] = found["operations"] / found["seconds"] / found["limit"]
    return found


def cases(given: argparse.Namespace):
    """Stage, px and tokens of every group of rows; 0 where a stage does not depend on them."""
    for stage in given.stages:
        for size in given.sizes if stage in WITH_PIXELS else [0]:
            for tokens in given.tokens if stage in WITH_TEXT else [0]:
                yield stage, size, tokens


def table_rows(label: tuple, rounds: list[dict[str, dict]]) -> list[str]:
    """A row for each implementation. label: what the row says before its name."""
    rows = []
    for name in rounds[0]:
        cells = (
            f"{middle(rounds, name, 'seconds'):.3g}",
            f"{middle(rounds, name, 'peak') / 2**30:.2f}",
            f"{ratio(rounds, name):.2f}",
            f"{rounds[0][name]['operations'] / 1e12:.3g}",
            f"{middle(rounds, name, 'of_limit'):.0%}",
        )
        rows.append(row((*label, name, *cells)))
    return rows


def compare(given: argparse.Namespace) -> None:
    """The table of single stages, and on a GPU what our kernels take."""
    options = ["--dtype", given.dtype, "--model", given.model, *(["--compile"] if given.compile else [])]
    options += ["--blocks", given.blocks] if given.blocks else []
    write(heading(COLUMNS))
    summaries = []
    for stage, size, tokens in cases(given):

        def one(name: str) -> dict:
            return in_a_process("stages", "--measure", stage, name, size, tokens, *options)

        rounds = in_turns(IMPLEMENTATIONS[stage], given.pairs, one)
        write("\n".join(table_rows((stage, size or "-", tokens or "-", given.dtype), rounds)))
        if summary := rounds[-1]["ours"].get("kernels"):
            summaries.append(f"\n{stage}, {size or '-'} px, {tokens or '-'} tokens, ours:\n{summary}")
    for summary in summaries:
        write(summary)


def token_count(text: str) -> int:
    if text.isdigit() and 1 <= int(text) <= POSITIONS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not from 1 to {POSITIONS}, the positions the transformer is given")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(IMPLEMENTATIONS), choices=[*IMPLEMENTATIONS, *WHOLE])
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--tokens", nargs="+", type=token_count, default=[PROMPT_TOKENS])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", default="0.6B", choices=TRANSFORMERS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    stop_politely()
    if given.measure:
        stage, implementation, size, tokens = given.measure
        give_back(measure(stage, implementation, int(size), int(tokens), given))
        return
    asked, given.stages = given.stages, [name for name in given.stages if name not in WHOLE]
    if given.stages:
        compare(given)
    if "picture" in asked:
        write("")
        picture.compare(picture.STEPS, given)
    if "throughput" in asked:
        write("")
        throughput.report(throughput.STEPS, given)
    for stage in asked:
        if given.compile and stage in NOT_COMPILED:
            write(f"\n{stage} is not compiled: {NOT_COMPILED[stage]}.")


if __name__ == "__main__":
    main()
