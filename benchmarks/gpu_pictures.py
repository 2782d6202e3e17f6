"""Whole images on a GPU through the pack's own nodes, in this process: the demo beside a CPU, and both families.

The demo's image is compared with the one that a CPU computes in float32 from the same seed, so that a wrong kernel
shows. SANA and SANA-Sprint have the released sizes and random weights, written as diffusers folders and loaded as
users load theirs; each image has a prompt that was not encoded just before.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from benchmarks.gpu_clock import release
from benchmarks.gpu_report import FLOAT32_ON_CPU, OURS, Report
from benchmarks.gpu_stages import in_inference_mode, relative_error
from benchmarks.measuring import ROOT
from benchmarks.picture import CFG, PNG_LEVEL, STEPS
from benchmarks.random_pipelines import PROMPTS, ROOM, folder_of, write_pipelines
from demo.train.pack import CHECKPOINT, SPRINT_CHECKPOINT, prepare_imports

DEMO = {"demo SANA": (CHECKPOINT, "sana"), "demo Sprint": (SPRINT_CHECKPOINT, "sprint")}
DEMO_PROMPT, DEMO_SIZE, DEMO_SEED = "a red apple and a rocket on a yellow background", 256, 5
TINY_STEPS = 4
SPRINT_CFG = 1.0
MOST_PSNR = 150.0  # dB, for equal images
MEMORY_FOLDER = Path("/dev/shm")
RELEASED_BYTES = 13e9  # of both families, 1.6B, with what they share
MODEL = "1.6B"
PEER_SECONDS = 60  # that diffusers' pipeline takes to load and to generate a few images


def load(folder: Path, others: Path, dtype: str | None = None) -> SimpleNamespace:
    """Model, text encoder and autoencoder as the loader nodes give them. dtype: of all three, None for the loaders'."""
    import torch
    from sana_native.models.registry import load_model

    chosen = {"dtype": dtype and getattr(torch, dtype)}
    return SimpleNamespace(
        model=load_model("transformer", str(folder), chosen),
        clip=load_model("text_encoder", str(others), chosen),
        vae=load_model("vae", str(others), chosen),
    )


def encode(models: SimpleNamespace, prompt: str) -> tuple:
    from sana_native.nodes.conditioning import SanaNativeGemmaEncode

    return SanaNativeGemmaEncode.execute(models.clip, prompt, "").result


def sample(models: SimpleNamespace, conds: tuple, seed: int, steps: int, cfg: float, size: int) -> dict:
    from sana_native.nodes.latent import CUSTOM, SanaNativeEmptyLatent
    from sana_native.nodes.sampling import SanaNativeSampler

    latent = SanaNativeEmptyLatent.execute(CUSTOM, width=size, height=size).result[0]
    return SanaNativeSampler.execute(models.model, *conds, latent, seed, steps, cfg).result[0]


def decode(models: SimpleNamespace, latent: dict):
    from sana_native.nodes.vae import SanaNativeDCAEDecode

    return SanaNativeDCAEDecode.execute(models.vae, latent).result[0]


def generate(models: SimpleNamespace, prompt: str, seed: int, steps: int, cfg: float, size: int):
    """An image (1, H, W, 3) in [0, 1], on the CPU as the host's nodes hand it on."""
    return decode(models, sample(models, encode(models, prompt), seed, steps, cfg, size)).cpu()


def psnr(image, other) -> float:
    """dB of two images in [0, 1]."""
    error = float((image.double() - other.double()).square().mean())
    return min(-10 * math.log10(error), MOST_PSNR) if error else MOST_PSNR


# The demo


def demo_settings(name: str, tiny: bool) -> dict:
    family = DEMO[name][1]
    steps = min(STEPS[family], TINY_STEPS) if tiny else STEPS[family]
    cfg = SPRINT_CFG if family == "sprint" else CFG
    return {"prompt": DEMO_PROMPT, "seed": DEMO_SEED, "steps": steps, "cfg": cfg, "size": DEMO_SIZE}


def write_references(path: Path, tiny: bool) -> None:
    """The demo's images in float32 by this process, which sees no GPU."""
    prepare_imports()
    import torch
    from safetensors.torch import save_file

    with torch.inference_mode():
        images = {
            name: generate(load(folder, CHECKPOINT, "float32"), **demo_settings(name, tiny)).contiguous()
            for name, (folder, _) in DEMO.items()
        }
    save_file(images, path)


def demo_references(tiny: bool) -> dict:
    """The demo's images as a CPU computes them. Raises: RuntimeError with what the process says when it fails."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.safetensors"
        command = [sys.executable, "-m", "benchmarks.gpu_pictures", str(path), *(["--tiny"] if tiny else [])]
        variables = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"The demo's images on the CPU could not be computed: {done.stderr[-300:]}")
        return load_file(path)


def demo(report: Report) -> None:
    """Rows of the demo's images, in the loaders' own formats and in float32, beside what a CPU computes."""
    if not report.wants("image demo"):
        return
    wanted = demo_references(report.tiny)
    for name, (folder, _) in DEMO.items():
        settings, stage = demo_settings(name, report.tiny), f"image {name} {DEMO_SIZE}"
        for variant, dtype in ((OURS, None), ("ours in float32", "float32")):
            try:
                run = functools.partial(generate, load(folder, CHECKPOINT, dtype), **settings)
                image = in_inference_mode(run)
            except Exception as failure:  # noqa: BLE001 - the other formats are worth having
                report.fail(stage, failure, variant)
                continue
            error = functools.partial(relative_error, image, wanted[name])
            note = f"PSNR {psnr(image, wanted[name]):.1f} dB to {FLOAT32_ON_CPU}"
            report.measure(stage, variant, run, error=error, note=note)
            del run


# Both families


@contextlib.contextmanager
def released(families: list[str], tiny: bool) -> Iterator[Path]:
    """A folder with diffusers folders of random weights, in memory where there is room; deleted at the end."""
    parent = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    if tiny or parent is None or shutil.disk_usage(parent).free < ROOM * RELEASED_BYTES:
        parent = None
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        write_pipelines(Path(folder), families, MODEL, tiny)
        yield Path(folder)


def families(report: Report, size: int, peers: bool) -> None:
    """Rows of whole images of SANA-Sprint and SANA, of their parts, and of the file that is saved."""
    names = [name for name in ("sprint", "sana") if report.wants(stage_of(name, report, size))]
    if not names:
        return
    with released(names, report.tiny) as folder:
        prompts = new_prompts(json.loads((folder / PROMPTS).read_text(encoding="utf-8"))[0])
        for name in names:
            place = folder / folder_of(name, MODEL)
            image_rows(report, name, place, prompts, size)
            if peers and report.left() > PEER_SECONDS:
                peer_row(report, name, place, prompts, size)


def new_prompts(text: str) -> Iterator[str]:
    """A text's words in ever new orders, so that no state of an earlier prompt serves a later one."""
    rng, words = random.Random(0), text.split()
    while True:
        yield " ".join(rng.sample(words, len(words)))


def stage_of(family: str, report: Report, size: int) -> str:
    return f"image {family} {'tiny' if report.tiny else MODEL} {size}, {STEPS[family]} steps"


def image_rows(report: Report, family: str, folder: Path, prompts: Iterator[str], size: int) -> None:
    import torch

    stage, models = stage_of(family, report, size), load(folder, folder)
    steps, cfg = STEPS[family], SPRINT_CFG if family == "sprint" else CFG
    report.measure(stage, OURS, lambda: generate(models, next(prompts), 1, steps, cfg, size), note="another prompt")
    with torch.inference_mode():
        conds = encode(models, next(prompts))
        latent = sample(models, conds, 1, steps, cfg, size)
        image = decode(models, latent).cpu()
    parts = {
        "text": lambda: encode(models, next(prompts)),
        "steps": lambda: sample(models, conds, 1, steps, cfg, size),
        "decode": lambda: decode(models, latent).cpu(),
        "PNG": lambda: save_png(image),
    }
    for name, run in parts.items():
        report.measure(f"{stage}: {name}", OURS, run, detail=name != "PNG")


def save_png(image) -> None:
    """As the host's node saves an image."""
    from PIL import Image

    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        pixels = (image[0] * 255).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(file, compress_level=PNG_LEVEL)


def peer_row(report: Report, family: str, folder: Path, prompts: Iterator[str], size: int) -> None:
    """A row for diffusers' pipeline, from the same files."""
    import diffusers
    import torch

    stage = stage_of(family, report, size)
    release(report.device)  # our models
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16).to(report.device)
    except Exception as failure:  # noqa: BLE001 - the peer's failure is worth a row, not the run
        return report.fail(stage, failure)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": STEPS[family], "guidance_scale": CFG, "height": size, "width": size}
    options |= {"use_resolution_binning": False, "output_type": "pt"}

    def run():
        generator = torch.Generator().manual_seed(1)
        return pipeline(next(prompts), generator=generator, **options).images.cpu()

    report.measure(stage, "diffusers", run, note="another prompt")


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo's images by a CPU, for benchmarks/gpu.py.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    write_references(given.path, given.tiny)


if __name__ == "__main__":
    main()
