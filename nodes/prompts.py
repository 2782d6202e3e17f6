"""Prompts in number: from a file, line by line, and as one batch of different prompts or seeds."""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import comfy.sample
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..models.files.file_errors import printable
from ..models.gemma.text_encoder import encode_prompts, prompt_notices
from ..models.runtime.prompt_batch import stack_conds
from ..models.sana.resolution import bin_sides
from ..scale.rows import SEEDS, SUFFIXES, Row, read_rows
from .files import DEMO_FOLDER
from .prompt_queue import LIST, QUEUE, choose_rows
from .save_named import only, saved_in
from .warnings import show

CATEGORY = "model/conditioning/sana"
NO_STYLE = "none"
# Example files that come with the pack: name in the list -> file.
BUNDLED = {
    "sana-native-demo.txt": os.path.join(DEMO_FOLDER, "prompts.txt"),
    "sana-native-example.jsonl": os.path.join(DEMO_FOLDER, "prompts.jsonl"),
}
NAME_SLOT = 7  # of the output `name`
MAX_SEED = SEEDS[1]


def part_input(name: str, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=0, min=0, max=1_000_000_000, optional=True, tooltip=tooltip)


def default_inputs() -> list[io.Input]:
    """What a line counts with where it gives nothing of its own."""
    return [
        io.Int.Input(
            "seed_base",
            default=0,
            min=0,
            max=MAX_SEED,
            optional=True,
            tooltip="Seed of the file's first prompt; each further one has the next, unless its line gives one.",
        ),
        io.Combo.Input(
            "size",
            options=["512", "1024", "2048", "4096", "256"],
            default="1024",
            optional=True,
            tooltip="Side of the square the checkpoint was trained on. Lines without --size or --hw have this "
            "many pixels, at their --ar.",
        ),
        io.Combo.Input(
            "style",
            options=[NO_STYLE, *styles()],
            default=NO_STYLE,
            optional=True,
            tooltip="A style put around every prompt, and after every negative prompt.",
        ),
        io.String.Input(
            "negative_prompt",
            default="",
            optional=True,
            tooltip="For lines without one of their own.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, optional=True, tooltip="For lines without --steps."),
        io.Float.Input(
            "cfg",
            default=4.5,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            tooltip="For lines without --cfg.",
        ),
        io.Boolean.Input(
            "nvlabs_tags",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Reads --ar as height:width, as NVIDIA's scripts do. off: width:height.",
        ),
    ]


def row_outputs() -> list[io.Output]:
    """A list of each; `NAME_SLOT` is the place of the name."""
    return [
        io.String.Output(display_name="prompt", is_output_list=True, tooltip="The prompt, without its tags."),
        io.String.Output(display_name="negative", is_output_list=True, tooltip="What to avoid."),
        io.Int.Output(display_name="width", is_output_list=True, tooltip="Width in pixels."),
        io.Int.Output(display_name="height", is_output_list=True, tooltip="Height in pixels."),
        io.Int.Output(display_name="seed", is_output_list=True, tooltip="The line's own, or base + number."),
        io.Int.Output(display_name="steps", is_output_list=True, tooltip="Number of steps."),
        io.Float.Output(display_name="cfg", is_output_list=True, tooltip="Classifier-free guidance."),
        io.String.Output(display_name="name", is_output_list=True, tooltip="A safe name for the image's file."),
        io.Int.Output(display_name="count", tooltip="Number of prompts of this part of the file."),
    ]


class SanaNativePromptsFromFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativePromptsFromFile",
            display_name="SANA Prompts From File",
            category=CATEGORY,
            description="Prompts of a txt, json, jsonl or csv file, each with its own seed, size and name: a run for "
            "each in ComfyUI's queue, or all at once.",
            search_aliases=["load prompts", "prompt list", "batch prompts", "csv", "text file"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list_files(),
                    tooltip="A txt, json, jsonl, csv or tsv file of ComfyUI's input folder, in UTF-8. Tags at the end "
                    "of a prompt: --ar 16:9, --size 1024x768, --seed 5, --neg blurry, --steps 20, --cfg 4.5.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[QUEUE, LIST],
                    default=QUEUE,
                    optional=True,
                    tooltip="queue: one run a prompt, whose image is saved before the next begins. list: all prompts "
                    "in one run, whose images are saved when all are done.",
                ),
                part_input("start", "First prompt to run, counted from 0."),
                part_input("count", "Number of prompts from start on. 0: all."),
                *default_inputs(),
            ],
            outputs=row_outputs(),
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return float("nan")  # which images exist changes without any input: a run always looks anew

    @classmethod
    async def execute(
        cls,
        file: str,
        mode: str = QUEUE,
        start: int = 0,
        count: int = 0,
        seed_base: int = 0,
        size: str = "1024",
        style: str = NO_STYLE,
        negative_prompt: str = "",
        steps: int = 20,
        cfg: float = 4.5,
        nvlabs_tags: bool = False,
    ) -> io.NodeOutput:
        rows = read_rows(prompt_file(file), nvlabs_tags)
        graph, node_id = (cls.hidden.prompt, cls.hidden.unique_id) if cls.hidden else ({}, None)
        is_saved = saved_in(graph, node_id, NAME_SLOT)
        chosen, total = await choose_rows(rows, graph, node_id, mode, (start, count), is_saved)
        values = [values_of(row, seed_base, int(size), style, negative_prompt, steps, cfg) for row in chosen]
        # Without a row nothing that follows runs.
        columns = zip(*values, strict=True) if values else [[ExecutionBlocker(None)]] * (NAME_SLOT + 1)
        return io.NodeOutput(*map(list, columns), total)


def list_files() -> list[str]:
    """Prompt files of the host's input folder, as its own nodes list images, and those of the pack."""
    names = os.listdir(folder_paths.get_input_directory())
    found = [name for name in names if name.lower().endswith(SUFFIXES)]
    return sorted(found) + [name for name in BUNDLED if name not in found]


def prompt_file(name: str) -> str:
    """Path of a name from `list_files`. Raises FileNotFoundError when the file is gone, and
    ValueError for a name that messages cannot hold."""
    if printable(name) != name:
        raise ValueError(f"{printable(name)} has a name that is not valid UTF-8: rename it.")
    path = os.path.join(folder_paths.get_input_directory(), name)
    if name in BUNDLED and not os.path.isfile(path):
        return BUNDLED[name]
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name} is not in ComfyUI's input folder any more: refresh the list and pick again.")
    return path


@cache
def styles() -> dict[str, dict[str, str]]:
    """Style -> its prompt, in which {prompt} stands for the user's, and its negative prompt."""
    return json.loads(Path(__file__).with_name("styles.json").read_text(encoding="utf-8"))


def in_style(style: str, prompt: str, negative: str) -> tuple[str, str]:
    """Prompt and negative prompt in a style; the two negatives are joined by a comma."""
    if style == NO_STYLE:
        return prompt, negative
    template = styles()[style]
    return template["prompt"].replace("{prompt}", prompt), ", ".join(filter(None, (negative, template["negative"])))


def values_of(
    row: Row, seed_base: int, size: int, style: str, negative_prompt: str, steps: int, cfg: float
) -> tuple[str, str, int, int, int, int, float, str]:
    """The outputs for a row; what it leaves open is taken from the node."""
    prompt, negative = in_style(style, row.prompt, row.negative or negative_prompt)
    width, height = (row.width, row.height) if row.width else bin_sides(size, *(row.aspect or (1, 1)))
    steps, cfg = row.steps or steps, cfg if row.cfg is None else row.cfg
    return prompt, negative, width, height, row.seed_from(seed_base), steps, cfg, row.name


class SanaNativePromptBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativePromptBatch",
            display_name="SANA Prompt Batch",
            category=CATEGORY,
            description="Encodes several prompts for one batch: every image has a prompt of its own, and is the same "
            "as alone.",
            search_aliases=["prompt list", "batch prompts", "multiple prompts"],
            is_input_list=True,
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of SANA Gemma Loader."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="One prompt a line, or a list of prompts. Set the batch size of the latent to their "
                    "number.",
                ),
                io.String.Input(
                    "negative_prompts",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="One for all, or one a line for each prompt.",
                ),
                io.Combo.Input(
                    "instruction",
                    options=["on", "off", "custom"],
                    default="on",
                    optional=True,
                    tooltip="As in SANA Gemma Encode: the instruction SANA was trained with, put before every prompt.",
                ),
                io.String.Input(
                    "custom_instruction",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip="Text put before every prompt when instruction is custom.",
                ),
                io.Boolean.Input(
                    "lower_case",
                    default=False,
                    advanced=True,
                    optional=True,
                    tooltip="Lowers the case of all prompts, as diffusers does.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompts, one for each image of a batch."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompts, one for each image."),
                io.Int.Output(display_name="count", tooltip="Number of prompts, for the batch size of the latent."),
            ],
        )

    @classmethod
    def execute(
        cls, clip, prompts, negative_prompts="", instruction="on", custom_instruction="", lower_case=False
    ) -> io.NodeOutput:
        own_text = {"on": None, "off": "", "custom": only(custom_instruction)}[only(instruction)]
        pairs = pair_prompts(prompts_of(prompts), prompts_of(negative_prompts))
        options = own_text, only(lower_case)
        notices = [line for pair in pairs for line in prompt_notices(only(clip), *pair, *options)]
        show(list(dict.fromkeys(notices)), new=[])  # the tokenizer logs them
        conds = zip(*(encode_prompts(only(clip), *pair, *options) for pair in pairs), strict=True)
        return io.NodeOutput(*map(stack_conds, conds), len(pairs))


def prompts_of(given: Sequence[str] | str) -> list[str]:
    """The prompts of an input: lines of one text, or the elements of a list."""
    texts = [given] if isinstance(given, str) else given
    if len(texts) > 1:
        return list(texts)
    return [line.strip() for line in texts[0].splitlines() if line.strip()]


def pair_prompts(prompts: list[str], negatives: list[str]) -> list[tuple[str, str]]:
    """Each prompt with its negative one. Raises ValueError where there are none, or not as many negatives."""
    if not prompts:
        raise ValueError("There is no prompt: write one a line.")
    negatives = negatives or [""]
    if len(negatives) not in (1, len(prompts)):
        raise ValueError(
            f"There are {len(negatives)} negative prompts for {len(prompts)} prompts: write one for all, or one for "
            "each."
        )
    return list(zip(prompts, negatives * len(prompts) if len(negatives) == 1 else negatives, strict=True))


class SanaNativeSeeds(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeSeeds",
            display_name="SANA Seeds",
            category="model/sampling/noise",
            description="Noise of a batch in which every image has a seed of its own, and is the same as alone.",
            search_aliases=["seed list", "random noise", "batch seeds"],
            is_input_list=True,
            inputs=[
                io.String.Input(
                    "seeds",
                    tooltip="A seed for each image of the batch, separated by commas, spaces or lines, or a list of "
                    "them.",
                ),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seeds) -> io.NodeOutput:
        return io.NodeOutput(SeedsNoise(read_seeds([seeds] if isinstance(seeds, str) else seeds)))


def read_seeds(given: Sequence[str | int]) -> list[int]:
    """Seeds of texts and numbers. Raises ValueError for none, and for one that is no seed."""
    texts = [text for value in given for text in str(value).replace(",", " ").split()]
    for text in texts:
        if not (text.isascii() and text.isdigit() and int(text) <= MAX_SEED):
            raise ValueError(f'"{printable(text)}" is no seed: write integers of 0 to {MAX_SEED}, separated by commas.')
    if not texts:
        raise ValueError("There is no seed: write one for each image of the batch.")
    return list(map(int, texts))


class SeedsNoise:
    """The host's NOISE: image i has the noise that it would have alone with seed i."""

    def __init__(self, seeds: list[int]):
        self.seeds = seeds
        self.seed = seeds[0]  # of what a sampler adds later

    def generate_noise(self, input_latent: dict) -> Tensor:
        samples = input_latent["samples"]
        if len(samples) != len(self.seeds):
            raise ValueError(
                f"There are {len(self.seeds)} seeds for a batch of {len(samples)}: set the latent's batch_size to "
                f"{len(self.seeds)}."
            )
        alone = (comfy.sample.prepare_noise(samples[i : i + 1], seed) for i, seed in enumerate(self.seeds))
        return torch.cat(list(alone))
