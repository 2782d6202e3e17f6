"""What the pack must know of a family of weight files, and the one sentence for a file that is of none.

The table of the families is in `models/registry.py`; a family's own entry stands in its `loader.py`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from . import foreign_files
from .layout import StateDict
from .quantize import Rules
from .reader import Checkpoint
from .validation import missing_tensor, other_shapes, reading_config


@dataclass(frozen=True)
class Saving:
    """How a family is written to a quantized file, in the layout of the host's own save nodes.

    of_file: a checkpoint in the network's layout, checked as the loader does -> the tensors to write, without prefix;
    they stay mapped from the file. rules, architecture: of those tensors. prefix: of every key. implementation: whose
    names the keys are.
    """

    rules: Callable[[StateDict], Rules]
    architecture: Callable[[StateDict], str]
    of_file: Callable[[Checkpoint], StateDict]
    prefix: str = ""
    implementation: str = "diffusers"


@dataclass(frozen=True)
class Family:
    """One kind of weight file and how it becomes a model.

    name: with its article, for messages. node: display name of the node that loads it. marks: ends of keys that give
    the family away, all of those joined by +, in any layout and in incomplete files. required: tensors that every
    member has. convert: any layout -> the network's. recognizes: tells a member in that layout.
    load: a checkpoint in that layout, options and `disable_dynamic` -> the host's model. saving: None for a family that
    is not written narrow.
    """

    name: str
    component: str
    node: str
    marks: tuple[str, ...]
    required: tuple[str, ...]
    convert: Callable[[StateDict], StateDict]
    recognizes: Callable[[StateDict], bool]
    load: Callable[[Checkpoint, dict[str, Any], bool], Any]
    saving: Saving | None = None


def detect(
    checkpoint: Checkpoint, candidates: Iterable[Family], families: Iterable[Family]
) -> tuple[Family, Checkpoint]:
    """The first of the candidates that a file is of, and the file in that family's layout.

    families: all that the error may name. Raises ValueError for a file of none of the candidates.
    """
    tried = []
    for family in candidates:
        with reading_config(checkpoint, family.name):
            state_dict = family.convert(checkpoint.state_dict)
        if family.recognizes(state_dict):
            return family, replace(checkpoint, state_dict=state_dict)
        tried.append((family, state_dict))
    raise refusal(checkpoint, tried, families)


def refusal(checkpoint: Checkpoint, tried: list[tuple[Family, StateDict]], families: Iterable[Family]) -> ValueError:
    """The error for a file of none of the families tried, or of one but for a tensor that every member has."""
    found = describe(checkpoint.state_dict, families)
    for family, state_dict in tried:
        if found.startswith(family.name):
            missing = [key for key in family.required if key not in state_dict]
            if missing:
                return missing_tensor(checkpoint, family.name, missing[0])
            return other_shapes(checkpoint, family.name)
    cure = "" if re.search(r"\((use|take|load) ", found) else ": pick another file"
    return ValueError(f"{checkpoint.name} is {found}, not {' or '.join(family.name for family, _ in tried)}{cure}.")


def describe(state_dict: StateDict, families: Iterable[Family]) -> str:
    """What a state dict seems to be, of the families given and of the foreign ones, for an error message."""
    transformers, controls, others = {}, {}, {}
    own = {"transformer": transformers, "controlnet": controls}
    for family in families:
        table = own.get(family.component, others)
        table |= dict.fromkeys(family.marks, f"{family.name} (use {family.node})")
    # Of two marks the more specific one first: Lumina-Next has below its layers what SANA has at the root.
    transformers = dict(sorted(transformers.items(), key=lambda row: -len(row[0])))
    # A ControlNet comes before the base that it is merged with, and before other families', which share its names.
    relatives = (foreign_files.QUANTIZERS, controls, foreign_files.RELATIVES)
    tables = (*relatives, transformers, foreign_files.DIFFUSION_MODELS, others, foreign_files.OTHER_PARTS)
    return foreign_files.describe(state_dict, tables)


def open_as(family: Family, path: str) -> Checkpoint:
    """A file of this very family in its layout, as the host asks for it anew. Raises as `Checkpoint.open`, `detect`."""
    return detect(Checkpoint.open(path, family.component), [family], [family])[1]
