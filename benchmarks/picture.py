"""Whole pictures through a real ComfyUI server beside diffusers' pipeline: same files, steps and guidance.

    make bench STAGES=picture [SIZES="512 1024"] [PAIRS=3] [DTYPE=bfloat16] [MODEL=0.6B]
    python -m benchmarks.picture [--families sana sprint] [--sizes 512 1024] [--pairs 3] [--dtype bfloat16]
        [--model 0.6B] [--tiny]

SANA takes 20 steps of Flow-DPM with cfg 4.5, Sprint 2 steps, from a prompt of 30 tokens and an empty negative one. The
files have the released sizes and random weights; they lie in a temporary folder (TMPDIR says where) that is deleted at
the end. --tiny takes small networks instead: it shows that everything runs, and what the host adds.

Each side is a process of its own, and the two take turns. It loads its models, makes a picture of two steps to warm
up, and then the two that count: another prompt, and another seed for the prompt before. The server keeps the text of
the latter; the pipeline encodes it again. Seconds are the client's: from queueing the graph of `workflows/` to the
picture in the history, and from the pipeline's call to the picture on the disk, a PNG on both sides. In them the
networks' own calls are timed, text, steps and decode; "around" is all the rest: graph, validation, messages, memory
management, the solver's arithmetic, the PNG. Peak is what the process holds in all, weights included. DTYPE is asked of
both sides; the table says what the steps and the decode were computed in, because the server decides by the device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import stage_clock
from benchmarks.measuring import give_back, heading, in_a_process, in_turns, middle, ratio, row, stop_politely, write
from benchmarks.networks import TRANSFORMERS
from benchmarks.random_pipelines import PROMPTS, DiskError, folder_of, write_pipelines
from tools.comfy_server import ComfyServer
from tools.demo import Settings, choose_model, fill_in
from tools.host import link_folder, prepare_base
from tools.workflow import set_inputs, to_api

IMPLEMENTATIONS = ("ours", "diffusers")
STEPS = {"sana": 20, "sprint": 2}
WARM_UP_STEPS = 2
CFG = 4.5
STAGES = ("text", "steps", "decode")
PICTURES = ("another prompt", "another seed")
COLUMNS = (
    *("model", "px", "picture", "implementation", "steps / decode in"),
    *("seconds", *STAGES, "around", "peak GiB", "time / ours"),
)
PNG_LEVEL = 4  # the host's


def timed(paint: Callable, take: Callable, prompt: str, seed: int, steps: int) -> dict:
    """One picture. paint(prompt, seed, steps) makes it; take() gives what was counted since the last time."""
    take()
    started = time.perf_counter()
    paint(prompt, seed, steps)
    took = time.perf_counter() - started
    counted = take()
    stages = {stage: counted["stages"].get(stage, 0.0) for stage in STAGES}
    around = took - sum(stages.values())
    counted["computed in"] = " / ".join(counted["formats"].get(stage, "") for stage in ("steps", "decode"))
    return {"seconds": took, **stages, "around": around, **counted}


def timed_pictures(paint: Callable, take: Callable, family: str, prompts: list[str]) -> dict[str, dict]:
    """By what is new in the picture."""
    timed(paint, take, prompts[0], 0, WARM_UP_STEPS)
    return {
        "another prompt": timed(paint, take, prompts[1], 1, STEPS[family]),
        "another seed": timed(paint, take, prompts[1], 2, STEPS[family]),
    }


@contextmanager
def serving(folder: Path, family: str, given: argparse.Namespace) -> Iterator[tuple[Callable, Callable]]:
    """A server with a folder's files: paint(prompt, seed, steps, size, batch) makes pictures; and the clock's take."""
    source, graph = choose_model(str(folder / folder_of(family, given.model)))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        base = prepare_base(Path(place))
        link_folder(source, base / "models" / "diffusers" / source.name)
        clock = base / "custom_nodes" / Path(stage_clock.__file__).name
        clock.write_text(Path(stage_clock.__file__).read_text(encoding="utf-8"), encoding="utf-8")
        with ComfyServer(base) as server:
            workflow = to_api(json.loads(graph.read_text(encoding="utf-8")), server.object_info())
            workflow = set_inputs(workflow, "SanaNativeModelLoader", weight_dtype=given.dtype)
            workflow = set_inputs(workflow, "SanaNativeDCAELoader", dtype=given.dtype)
            workflow = set_inputs(workflow, "SanaNativeGemmaEncode", negative_prompt="")

            def paint(prompt: str, seed: int, steps: int, size: int, batch: int = 1) -> None:
                settings = Settings(prompt, family, steps, seed, CFG, (size, size), base)
                filled = fill_in(workflow, source.name, settings)
                result = server.run(set_inputs(filled, "SanaNativeEmptyLatent", batch_size=batch))
                if len(result.images()) != batch:
                    raise RuntimeError(f"The server saved {len(result.images())} pictures, expected {batch}.")

            def take() -> dict:
                with urllib.request.urlopen(server.url + stage_clock.ADDRESS, timeout=60) as answer:
                    return json.load(answer)

            yield paint, take


def by_server(folder: Path, family: str, size: int, given: argparse.Namespace, prompts: list[str]) -> dict[str, dict]:
    with serving(folder, family, given) as (paint, take):
        return timed_pictures(lambda prompt, seed, steps: paint(prompt, seed, steps, size), take, family, prompts)


def by_pipeline(folder: Path, family: str, size: int, given: argparse.Namespace, prompts: list[str]) -> dict[str, dict]:
    import diffusers
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = folder / folder_of(family, given.model)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place, dtype=getattr(torch, given.dtype)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    clock = stage_clock.StageClock()
    clock.watch(pipeline.text_encoder, "forward", "text")
    clock.watch(pipeline.transformer, "forward", "steps")
    clock.watch(pipeline.vae, "decode", "decode")

    def paint(prompt: str, seed: int, steps: int) -> None:
        options = {"num_inference_steps": steps, "guidance_scale": CFG, "height": size, "width": size}
        generator = torch.Generator().manual_seed(seed)
        image = pipeline(prompt, generator=generator, use_resolution_binning=False, **options).images[0]
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".png") as file:
            image.save(file, compress_level=PNG_LEVEL)

    return timed_pictures(paint, clock.take, family, prompts)


def measure(family: str, implementation: str, size: int, given: argparse.Namespace) -> dict[str, dict]:
    """The pictures of one side."""
    folder = Path(given.folder)
    prompts = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))
    side = by_server if implementation == "ours" else by_pipeline
    return side(folder, family, size, given, prompts)


def written(folder: Path, families: list[str], model: str, tiny: bool) -> dict:
    """Nothing, or why the files were not written."""
    try:
        write_pipelines(folder, families, model, tiny)
    except DiskError as error:
        return {"refused": str(error)}
    return {}


def table_rows(label: tuple, rounds: list[dict[str, dict[str, dict]]]) -> list[str]:
    """A row for each picture and implementation. label: what the row says before that."""
    rows = []
    for picture in PICTURES:
        pictures = [{name: sides[name][picture] for name in sides} for sides in rounds]
        for name in IMPLEMENTATIONS:
            times = (f"{middle(pictures, name, field):.3g}" for field in ("seconds", *STAGES, "around"))
            peak = f"{middle(pictures, name, 'peak') / 2**30:.2f}"
            formats = pictures[0][name]["computed in"]
            rows.append(row((*label, picture, name, formats, *times, peak, f"{ratio(pictures, name):.2f}")))
    return rows


def compare(families: Iterable[str], given: argparse.Namespace, tiny: bool = False) -> None:
    """The table.  Raises: SystemExit with one sentence when the disk has no room for the files."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", given.model, "--dtype", given.dtype, "--folder", folder]
        answer = in_a_process("picture", "--write", *families, *(["--tiny"] if tiny else []), *options)
        if "refused" in answer:
            sys.exit(answer["refused"])
        write(heading(COLUMNS))
        for family, size in itertools.product(families, given.sizes):

            def side(name: str) -> dict:
                return in_a_process("picture", "--measure", family, name, size, *options)

            rounds = in_turns(IMPLEMENTATIONS, given.pairs, side)
            label = f"{family} {'tiny' if tiny else given.model}, {STEPS[family]} steps"
            write("\n".join(table_rows((label, size), rounds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", default="0.6B", choices=TRANSFORMERS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--write", nargs="+", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    stop_politely()
    if given.write:
        give_back(written(Path(given.folder), given.write, given.model, given.tiny))
    elif given.measure:
        family, implementation, size = given.measure
        give_back(measure(family, implementation, int(size), given))
    else:
        compare(given.families, given, given.tiny)


if __name__ == "__main__":
    main()
