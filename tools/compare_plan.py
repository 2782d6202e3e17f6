"""What a comparison draws: prompts with seeds, and two axes of settings in a graph, as `KSampler.steps=4,8,20`."""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .workflow import (
    Spec,
    WorkflowError,
    choices,
    find_node,
    has_upload,
    input_specs,
    options,
    set_inputs,
    typed,
)

ROOT = Path(__file__).resolve().parent.parent
DEMO_GRAPH, DEMO_FILES, DEMO_SIDE = "sana_txt2img_ksampler.json", "sana-native-demo/", 256
PROMPT_TITLE, PROMPT_INPUTS, SEED_INPUTS = "Prompt", ("prompt", "text"), ("seed", "noise_seed")
DEMO_SEED = 1_000_003  # training draws from other numbers
LATENT_NODE = "compare-latent"  # id of the node that saves what was sampled
LOADERS = {
    "SanaNativeModelLoader": "model_name",
    "SanaNativeGemmaLoader": "text_encoder_name",
    "SanaNativeDCAELoader": "vae_name",
}


class PlanError(ValueError):
    """A setting of the comparison is wrong; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Axis:
    """A node by title or class, inputs of it that change together, and their values, one tuple for each place."""

    node: str
    inputs: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> list[str]:
        """Of the places, for the heads of columns and rows."""
        return [f"{self.inputs[0]} {value[0]}" for value in self.values]


@dataclass(frozen=True)
class Subject:
    """A prompt and the seed of its noise; caption: what the demo's judge knows of it, None without."""

    prompt: str
    seed: int
    caption: object = None


def read_axis(text: str) -> Axis:
    """`Node.input=v1,v2`, or `Node.a+b=v1+w1,v2+w2` for inputs that change together.  Raises: PlanError."""
    place, equals, given = text.partition("=")
    node, dot, inputs = place.rpartition(".")
    names = tuple(name.strip() for name in inputs.split("+"))
    values = tuple(tuple(part.strip() for part in value.split("+")) for value in given.split(",") if value.strip())
    if not (equals and dot and node and all(names) and values):
        raise PlanError(f'"{text}" is no axis; write a node, an input and values, such as KSampler.steps=4,8,20.')
    for value in values:
        if len(value) != len(names):
            raise PlanError(
                f'"{"+".join(value)}" has {len(value)} values for {len(names)} inputs in "{text}"; join as many with +.'
            )
    return Axis(node.strip(), names, values)


def put(prompt: dict, axis: Axis, value: tuple[str, ...]) -> dict:
    """The API prompt with an axis at one of its values, each in the type that the input has.  Raises: PlanError."""
    try:
        old = prompt[find_node(prompt, axis.node)]["inputs"]
        given = zip(axis.inputs, value, strict=True)
        return set_inputs(prompt, axis.node, **{name: value_of(text, old.get(name, text)) for name, text in given})
    except WorkflowError as error:
        raise PlanError(str(error)) from None


def plan_cells(prompt: dict, x: Axis, y: Axis | None, object_info: dict) -> list[list[dict]]:
    """The API prompt of every cell, rows of Y and columns of X.

    Raises: PlanError for a value that does not fit the graph or that the host would refuse, before any cell is drawn.
    """
    columns = [put(prompt, x, value) for value in x.values]
    rows = [[put(cell, y, value) for cell in columns] for value in y.values] if y else [columns]
    axes = [(axis, find_node(prompt, axis.node)) for axis in (x, y) if axis]
    if y and axes[0][1] == axes[1][1] and (both := [name for name in x.inputs if name in y.inputs]):
        raise PlanError(f"X and Y both set {both[0]} of {x.node}; give each an input of its own.")
    for axis, _ in axes:
        if seeds := [name for name in axis.inputs if name in SEED_INPUTS]:
            raise PlanError(
                f"{axis.node}.{seeds[0]} is the same in every cell: give SEEDS= for several images of each."
            )
    for cell in [cell for row in rows for cell in row]:
        for axis, key in axes:
            specs = dict(input_specs(object_info.get(cell[key]["class_type"], {"input": {}})))
            for name in axis.inputs:
                value = cell[key]["inputs"][name]
                if fault := fault_of(value, specs.get(name, ["*"])):
                    raise PlanError(f"{axis.node}.{name}={value} {fault}.")
    return rows


def fault_of(value: object, spec: Spec) -> str:
    """Why the host would refuse a value of an input, "" where it would not. spec: as /object_info describes it."""
    offered, limits = choices(spec), options(spec)
    if offered and value not in offered and not has_upload(spec):
        return f"is none of the choices, {', '.join(map(str, offered))}"
    if not isinstance(value, int | float):
        return ""
    if not math.isfinite(value) or (spec[0] == "INT" and value != int(value)):
        return "is no whole number" if spec[0] == "INT" else "is no finite number"
    lowest, highest = limits.get("min", -math.inf), limits.get("max", math.inf)
    return "" if lowest <= value <= highest else f"is out of range; give {lowest} to {highest}"


def value_of(text: str, old: object) -> object:
    """A value as the input holds it: number, on or off, or text.  Raises: PlanError for a link or no number."""
    if isinstance(old, list):
        raise PlanError(f'"{text}" is for an input that another node gives; name the input of that node.')
    try:
        return typed(text, old)
    except WorkflowError as error:
        raise PlanError(str(error)) from None


def put_subject(prompt: dict, subject: Subject) -> dict:
    """The API prompt with a prompt and a seed at the nodes that hold them.  Raises: PlanError if there is none."""
    encoders = [node for node in prompt.values() if node.get("_meta", {}).get("title") == PROMPT_TITLE]
    encoders = encoders or [node for node in prompt.values() if node["class_type"] == "SanaNativeGemmaEncode"]
    name = next((name for name in PROMPT_INPUTS if encoders and name in encoders[0]["inputs"]), None)
    holders = [
        (key, seed)
        for key, node in prompt.items()
        for seed in SEED_INPUTS
        if isinstance(node["inputs"].get(seed), int) and not isinstance(node["inputs"].get(seed), bool)
    ]
    if len(encoders) != 1 or name is None or not holders:
        raise PlanError(f'The graph needs one node titled "{PROMPT_TITLE}" with the prompt, and a seed.')
    changed = {key: {**node, "inputs": dict(node["inputs"])} for key, node in prompt.items()}
    key = next(key for key, node in prompt.items() if node is encoders[0])
    changed[key]["inputs"][name] = subject.prompt
    for key, seed in holders:
        changed[key]["inputs"][seed] = subject.seed
    return changed


def save_latent(prompt: dict, shown: str) -> dict:
    """The API prompt with a node that saves the latent of what the node `shown` saves as an image.

    That is what the nearest decoding node before it decodes; without one the prompt stays as it is.
    """
    waiting, seen = deque([shown]), set()
    while waiting:
        number = waiting.popleft()
        node = prompt.get(number)
        if node is None or number in seen:
            continue
        seen.add(number)
        links = {name: value for name, value in node["inputs"].items() if is_link(value)}
        if "Decode" in node["class_type"] and "samples" in links:
            inputs = {"samples": links["samples"], "filename_prefix": "compare/latent"}
            return prompt | {LATENT_NODE: {"class_type": "SaveLatent", "inputs": inputs}}
        waiting.extend(source for source, _ in links.values())
    return prompt


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def demo_graph(prompt: dict) -> dict:
    """The graph of stock nodes with the demo's files and size."""
    for loader, name in LOADERS.items():
        prompt = set_inputs(prompt, loader, **{name: DEMO_FILES})
    return set_inputs(prompt, "EmptyLatentImage", width=DEMO_SIDE, height=DEMO_SIDE)


def read_graph(workflow: str) -> dict:
    """The workflow's JSON, as saved or as exported for the API; `demo` is the graph of stock nodes.

    Raises: PlanError with the cure.
    """
    path = ROOT / "workflows" / DEMO_GRAPH if workflow == "demo" else Path(workflow).expanduser()
    from sana_native.scale.graph import is_api

    try:
        workflow = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PlanError(
            f"{path} cannot be read ({error.strerror}); give WORKFLOW= a saved workflow, or demo."
        ) from None
    except ValueError:
        raise PlanError(f"{path} is no JSON; give WORKFLOW= a workflow that ComfyUI has saved, or demo.") from None
    if isinstance(workflow, dict) and (isinstance(workflow.get("nodes"), list) or is_api(workflow)):
        return workflow
    raise PlanError(f"{path} holds no workflow; save one in ComfyUI, or export it for the API.")


def read_subjects(prompts: str, seeds: int, demo: bool) -> list[Subject]:
    """Prompts, each with its seeds: a prompt file, or for the demo a number of held-out ones, which its judge knows.

    Raises: PlanError.
    """
    if prompts.isdecimal():
        if not demo:
            raise PlanError(f"PROMPTS={prompts} is for the demo model; give a prompt file for a workflow of yours.")
        if not int(prompts):
            raise PlanError("PROMPTS=0 is no number of prompts; give 1 or more.")
        return [subject for subject in demo_subjects(int(prompts)) for subject in with_seeds(subject, seeds)]
    from sana_native.scale.rows import BadRow, read_rows

    try:
        rows = list(read_rows(prompts))
    except OSError as error:
        raise PlanError(f"PROMPTS={prompts} cannot be read ({error.strerror}); give a prompt file.") from None
    except ValueError as error:
        raise PlanError(f"PROMPTS={prompts}: {error}") from None
    bad = [row for row in rows if isinstance(row, BadRow)]
    if bad or not rows:
        raise PlanError(f"PROMPTS={prompts}: {bad[0] if bad else 'the file has no prompt'}; correct it.")
    return [one for row in rows for one in with_seeds(Subject(row.prompt, row.seed_from(0)), seeds)]


def with_seeds(subject: Subject, seeds: int) -> list[Subject]:
    return [Subject(subject.prompt, subject.seed + 1000 * i, subject.caption) for i in range(seeds)]


def demo_subjects(count: int) -> list[Subject]:
    """Held-out captions in English, of one thing and of two in turns."""
    from sana_native.demo.train.captions import draw_caption
    from sana_native.demo.train.data import draw_scene

    rng, found = random.Random(DEMO_SEED), []
    for i in range(count):
        caption = draw_caption(draw_scene(rng, True, 1 + i % 2), rng, "english", True)
        found.append(Subject(caption.text, DEMO_SEED + i, caption))
    return found


def best_place(text: str, x: Axis, y: Axis | None) -> tuple[int, int]:
    """Row and column of the cell that others are compared with: `4` or `4|euler`; by default the last of the first row.

    Raises: PlanError.
    """
    if not text:
        return 0, len(x.values) - 1
    column, _, row = text.partition("|")
    found = []
    for what, value, axis in (("X", column, x), ("Y", row, y)):
        firsts = [first for first, *_ in axis.values] if axis else [""]
        if value.strip() not in firsts and (value or what == "X"):
            raise PlanError(f'BEST={text}: "{value}" is none of {what}\'s values, {", ".join(firsts)}.')
        found.append(firsts.index(value.strip()) if value else 0)
    return found[1], found[0]


def subjects_text(subjects: Sequence[Subject]) -> str:
    prompts = len({one.prompt for one in subjects})
    return f"{prompts} prompt{'s' if prompts > 1 else ''}, {len(subjects)} pictures a cell"
