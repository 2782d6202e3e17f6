"""Prompt to image in one command: what `make demo PROMPT="..."` runs in the host's environment.

It starts a real ComfyUI, runs the workflow that users open by hand with the prompt put in, and saves the image. A wrong
setting is refused before anything starts.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .comfy_server import ComfyServer, Result, ServerError, node_name
from .command_line import run_command, say
from .host import PRIVATE, link_folder, prepare_base
from .workflow import WorkflowError, set_inputs, to_api

ROOT = Path(__file__).resolve().parent.parent
# Models that come with the pack: MODEL -> their folder, and their graph, which names them already.
BUNDLED = {
    "demo": (ROOT / "demo" / "checkpoint", "demo_txt2img.json"),
    "sprint": (ROOT / "demo" / "checkpoint_sprint", "demo_sprint.json"),
}
LOADERS = {
    "SanaNativeModelLoader": "model_name",
    "SanaNativeGemmaLoader": "text_encoder_name",
    "SanaNativeDCAELoader": "vae_name",
}
STAGES = {
    "text": {"SanaNativeGemmaLoader", "SanaNativeGemmaEncode", "CLIPTextEncode"},
    "denoise": {"SanaNativeModelLoader", "SanaNativeSampler", "KSampler", "SamplerCustom", "SamplerCustomAdvanced"},
    "decode": {"SanaNativeDCAELoader", "SanaNativeDCAEDecode", "VAEDecode", "VAEDecodeTiled"},
}


# What the graph's nodes accept: SANA Sampler, SANA Empty Latent.
SEEDS, STEPS, CFGS, SIDES = (0, 2**64 - 1), (1, 10000), (0, 100), (32, 16384)
SIDE_UNIT = 32  # pixels; the latent rounds down to it
# Folders of a model in diffusers layout that the graph loads from.
PARTS = ("transformer", "text_encoder", "vae")
DEMO_SIDE = 256  # pixels; the demo models are trained on squares of it
DEFAULT_OUT = Path("output/demo.png")


class DemoError(ValueError):
    """A setting is wrong; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for; None leaves the workflow's own value."""

    prompt: str | None
    model: str
    steps: int | None
    seed: int
    cfg: float | None
    size: tuple[int, int] | None
    out: Path


def read_settings(arguments: list[str] | None) -> Settings:
    """Read the command line; an empty value counts as not given, as `make` passes what was left out."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description="Prompt to image.")
    for name, words in (
        ("prompt", "what to generate"),
        ("model", "demo, sprint, or a folder in diffusers layout"),
        ("steps", "denoising steps"),
        ("seed", "random when left out"),
        ("cfg", "guidance scale"),
        ("size", "WIDTHxHEIGHT in pixels"),
        ("out", "where to write the image, a .png"),
    ):
        parser.add_argument(f"--{name}", default="", help=words)
    given = parser.parse_args(arguments)
    out = Path(given.out).expanduser() if given.out else DEFAULT_OUT
    if out.suffix.lower() != ".png":
        raise DemoError(f"OUT={out} does not end in .png; the host saves PNG files, so give such a name.")
    seed = _number("SEED", given.seed, int, SEEDS)
    return Settings(
        given.prompt or None,
        given.model or "demo",
        _number("STEPS", given.steps, int, STEPS),
        random.randrange(2**32) if seed is None else seed,
        _number("CFG", given.cfg, float, CFGS),
        _size(given.size),
        out,
    )


def choose_model(model: str) -> tuple[Path, Path]:
    """Return the checkpoint folder and the workflow for MODEL: a bundled one, or a SANA folder in diffusers layout."""
    if model in BUNDLED:
        folder, graph = BUNDLED[model]
        return folder, ROOT / "workflows" / graph
    folder = Path(model).expanduser().resolve()
    if not folder.is_dir():
        raise DemoError(
            f"MODEL={model} is no folder; give the folder of a SANA model in diffusers layout, demo or sprint"
            f"{_nearest(folder)}."
        )
    index = folder / "model_index.json"
    if not index.is_file():
        raise DemoError(
            f"{folder} holds no model_index.json; give MODEL= a folder in diffusers layout, demo or sprint."
        )
    pipeline = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "")
    if not pipeline.startswith("Sana"):
        raise DemoError(
            f"{folder} is a {pipeline or 'model without a class name'}, not a SANA pipeline; give MODEL= "
            "a SANA or SANA-Sprint folder."
        )
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise DemoError(
            f"{folder} holds no {' and no '.join(missing)}; download the whole folder of the model, or load its parts "
            "from several files in ComfyUI."
        )
    sprint = pipeline.startswith("SanaSprint")
    return folder, ROOT / "workflows" / ("sana_sprint_txt2img.json" if sprint else "sana_txt2img.json")


def _nearest(folder: Path) -> str:
    """The end of a sentence that names what was probably meant, a bundled model or a folder beside, or nothing."""
    beside = {path.name: str(path) for path in folder.parent.glob("*/") if (path / "model_index.json").is_file()}
    names = {name: name for name in BUNDLED} | beside
    found = difflib.get_close_matches(folder.name.lower(), {name.lower(): 0 for name in names}, 1)
    return "".join(f" (did you mean {path}?)" for name, path in names.items() if [name.lower()] == found)


def require_writable(out: Path) -> None:
    """Raises DemoError for a file that cannot be written, before the time to generate the image is spent.

    Only the folder of the default file is created: elsewhere a missing one is more likely a slip of the pen.
    """
    try:
        if out == DEFAULT_OUT:
            out.parent.mkdir(exist_ok=True)
        there = out.exists()
        out.open("ab").close()
        if not there:
            out.unlink()
    except FileNotFoundError:
        raise DemoError(
            f"OUT={out} cannot be written (there is no folder {out.parent}); create it with mkdir -p, or give a file "
            "in a folder that is there."
        ) from None
    except OSError as error:
        reason = "its folder is a file" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise DemoError(
            f"OUT={out} cannot be written ({reason}); give a file in a folder that you may write to."
        ) from None


def warn_of_size(settings: Settings) -> None:
    """Says when a demo model is asked for larger images than it can generate."""
    if settings.model in BUNDLED and max(settings.size or (0,)) > DEMO_SIDE:
        width, height = settings.size
        say(
            f"SIZE={width}x{height}: the demo models are trained at {DEMO_SIDE}x{DEMO_SIDE} px, and larger images come "
            "out coarse and misshapen."
        )


def fill_in(prompt: dict, folder_name: str | None, settings: Settings) -> dict:
    """Put settings into the API prompt of a workflow, and the model's folder where the workflow does not name it."""
    for loader, name in LOADERS.items() if folder_name else ():
        if any(node["class_type"] == loader for node in prompt.values()):
            prompt = set_inputs(prompt, loader, **{name: f"{folder_name}/"})
    if settings.prompt is not None:
        prompt = set_inputs(prompt, "SanaNativeGemmaEncode", prompt=settings.prompt)
    prompt = _set_everywhere(prompt, "SEED", ("seed", "noise_seed"), settings.seed)
    prompt = _set_everywhere(prompt, "STEPS", ("steps",), settings.steps)
    # A distilled model carries its guidance inside, and its sampler's cfg must stay 1.
    prompt = _set_everywhere(prompt, "CFG", ("guidance", "cfg"), settings.cfg)
    if settings.size is not None:
        width, height = settings.size
        sized = [node["class_type"] for node in prompt.values() if {"width", "height"} <= node["inputs"].keys()]
        if len(sized) != 1:
            raise DemoError("This model's graph has no single size to set; leave SIZE= away.")
        custom = {"size": "custom"} if sized[0] == "SanaNativeEmptyLatent" else {}
        prompt = set_inputs(prompt, sized[0], width=width, height=height, **custom)
    return prompt


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    try:
        settings = read_settings(arguments)
        choose_model(settings.model)
        require_writable(settings.out)
        warn_of_size(settings)
        generate(settings)
    except (DemoError, ServerError, WorkflowError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def generate(settings: Settings) -> None:
    """Make the image and say where it is, its seed and where the time went."""
    start = time.monotonic()
    checkpoint, graph = choose_model(settings.model)
    for needed in (checkpoint, graph):
        if not needed.exists():
            raise DemoError(f"{needed} is missing; restore it from the repository.")
    base = prepare_base(PRIVATE / "base")
    name = None if settings.model in BUNDLED else checkpoint.name
    if name:
        link_folder(checkpoint, base / "models" / "diffusers" / name)
    with ComfyServer(base) as server:
        say(f"ComfyUI started in {time.monotonic() - start:.1f} s")
        prompt = to_api(json.loads(graph.read_text(encoding="utf-8")), server.object_info())
        prompt = fill_in(prompt, name, settings)
        running = time.monotonic()
        result = server.run(prompt, Progress(prompt))
        image = server.fetch_image(result.images()[-1])
    settings.out.write_bytes(image)
    say(f"{settings.out}  seed {settings.seed}")
    say(
        ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stage_seconds(prompt, result).items())
        + f", image in {time.monotonic() - running:.1f} s, all in {time.monotonic() - start:.1f} s"
    )


def stage_seconds(prompt: dict, result: Result) -> dict[str, float]:
    """Sum the node times by stage: text, denoise, decode."""
    return {
        stage: sum(seconds for node, seconds in result.seconds.items() if prompt[node]["class_type"] in classes)
        for stage, classes in STAGES.items()
    }


class Progress:
    """Writes one line per step, rewritten in place on a terminal."""

    def __init__(self, prompt: dict):
        self.prompt = prompt
        self.in_place = sys.stdout.isatty()

    def __call__(self, node: str, value: int, total: int) -> None:
        line = f"{node_name(self.prompt, node)}: {value}/{total}"
        say(f"\r\033[K{line}" if self.in_place else line, end="\n" if value >= total or not self.in_place else "")


def _set_everywhere(prompt: dict, setting: str, names: tuple[str, ...], value: float | None) -> dict:
    """Set the first of `names` that nodes hold as a plain value, on each of these nodes."""
    if value is None:
        return prompt
    for name in names:
        holders = [node for node, entry in prompt.items() if isinstance(entry["inputs"].get(name), (int, float))]
        if holders:
            return {
                node: {**entry, "inputs": {**entry["inputs"], name: value}} if node in holders else entry
                for node, entry in prompt.items()
            }
    raise DemoError(f"This model's graph has no {names[0]}; leave {setting}= away.")


def _number(setting: str, text: str, kind: type, limits: tuple[int, int]) -> int | float | None:
    if not text:
        return None
    words = "a whole number" if kind is int else "a number"
    try:
        value = kind(text)
    except ValueError:
        raise DemoError(f"{setting}={text} is not {words}; give one, or leave it away.") from None
    low, high = limits
    if not math.isfinite(value) or not low <= value <= high:
        raise DemoError(f"{setting}={text} is out of range; give {words} from {low} to {high}, or leave it away.")
    return value


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    if not width.isdecimal() or not (height or width).isdecimal():
        raise DemoError(f"SIZE={text} is not a size; give WIDTHxHEIGHT in pixels, such as 256x256.")
    size = int(width), int(height or width)
    low, high = SIDES
    if not all(low <= side <= high for side in size):
        raise DemoError(f"SIZE={text} is out of range; give sides from {low} to {high} px, such as 256x256.")
    used = tuple(side // SIDE_UNIT * SIDE_UNIT for side in size)
    if used != size:
        say(f"SIZE={text} becomes {used[0]}x{used[1]}: sides are multiples of {SIDE_UNIT} px.")
    return used


if __name__ == "__main__":
    run_command(main)
