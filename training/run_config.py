"""A run as a JSON file: what the node trains, so that a command goes on with it outside of the graph.

It reads and writes the file, and loads no model.
"""

import json
import os
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch

from .algorithms import ALGORITHMS
from .captions import NULL_MASKS
from .dataset import SetOptions
from .encode import EncodedSample, EncodedSet
from .family import PRESETS
from .loss import TIME_SAMPLINGS
from .optimizer import OPTIMIZERS, SCHEDULES
from .settings import LORA, MODEL, RunFiles, Settings
from .state import whole_file

VERSION = 1
DTYPE = "dtype"  # among a loader's options
CHANGED = "changed"  # whether nodes had changed the model after it was loaded
CURE = "let the training node write it again, or mend that"
CHOICES = {
    "schedule": SCHEDULES, "layers": tuple(PRESETS), "time_sampling": TIME_SAMPLINGS, "null_mask": NULL_MASKS,
    "optimizer": OPTIMIZERS, "target": (LORA, MODEL), "algorithm": tuple(ALGORITHMS),
}  # fmt: skip
FILE_KEYS = {"state": "state", "lora": "result"}  # of `RunFiles`; a model stands under "lora" too
LOADER_OPTIONS = {
    DTYPE: str, "shift": float, "clamp": bool, "native_size": int, "trained_in_float16": bool, "family": str,
    "cuda_graphs": bool,
}  # fmt: skip
AT_LEAST_1 = ("steps", "batch_size", "accumulation", "rank")
MOST = 1_000_000
AT_MOST = dict.fromkeys(("caption_dropout", "ema", "learning_rate", "weight_decay"), 1) | {
    "rank": 1024, "seed": 2**64 - 1,
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """model: file or folder, options: those of its loader. changed: nodes had changed it, so no file holds it."""

    model: str
    options: dict[str, Any]
    base: str
    changed: bool
    files: RunFiles
    data: EncodedSet
    settings: Settings


def config_of(patcher: Any, data: EncodedSet, settings: Settings, files: RunFiles, base: str) -> RunConfig:
    """The configuration of a run on the host's model."""
    init = patcher.cached_patcher_init
    model, options = (str(init[1][0]), dict(init[1][1] or {})) if init else ("", {})
    changed = bool(patcher.patches or patcher.object_patches or any(patcher.injections.values()))
    return RunConfig(model, options, base, changed, files, data, settings)


def write_config(config: RunConfig) -> None:
    """Writes the file beside the run's state, complete or not at all."""
    options = {name: str(value) if name == DTYPE and value else value for name, value in config.options.items()}
    content = {
        "version": VERSION,
        "model": os.path.abspath(config.model) if config.model else "",
        "options": {name: value for name, value in options.items() if value is not None},
        "base": config.base,
        CHANGED: config.changed,
        "files": {key: os.path.abspath(getattr(config.files, name)) for key, name in FILE_KEYS.items()},
        "encoded": asdict(config.data),
        "settings": asdict(config.settings),
    }
    with whole_file(config.files.config) as partial, open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)


def read_config(path: str) -> RunConfig:
    """What `write_config` wrote, or a person after it; names of files may be relative to its folder.

    Raises ValueError or FileNotFoundError with one sentence for the first fault.
    """
    content = read_json(path)
    reader = Reader(path)
    if content.get("version") != VERSION:
        raise ValueError(f"{path} is of version {content.get('version')} where this one reads {VERSION}: {CURE}.")
    if reader.value(content, CHANGED, bool):
        raise ValueError(
            f"{path} is of a run on a model that nodes had changed (a LoRA, or another sampling), which no file holds: "
            "go on with it in the graph, or begin a new run on the model as it is loaded."
        )
    options = reader.value(content, "options", dict)
    reader.require_types(options, LOADER_OPTIONS, "option of the loader")
    if DTYPE in options:
        dtype = getattr(torch, str(options[DTYPE]).removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{path} has the dtype {options[DTYPE]}, which PyTorch does not know: {CURE}.")
        options = options | {DTYPE: dtype}
    files = reader.value(content, "files", dict)
    return RunConfig(
        reader.existing(reader.value(content, "model", str), "the model"),
        options,
        reader.value(content, "base", str),
        False,
        RunFiles(*(reader.place(reader.value(files, name, str)) for name in FILE_KEYS)),
        read_encoded(reader, reader.value(content, "encoded", dict)),
        read_settings(path, reader.value(content, "settings", dict)),
    )


def read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:  # also for bytes of no text, and numbers of thousands of digits
        raise ValueError(f"{path} is no JSON ({error}): {CURE}.") from error
    except OSError as error:
        raise FileNotFoundError(
            f"{path} cannot be read ({error.strerror}): give the run.json in a folder of output/sana_training."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object: {CURE}.")
    return content


@dataclass(frozen=True)
class Reader:
    """Values of a file, which its messages name."""

    path: str

    def value(self, content: dict[str, Any], name: str, kind: type) -> Any:
        found = content.get(name)
        if not isinstance(found, kind):
            wanted = {str: "a text", dict: "an object", bool: "true or false", list: "a list"}[kind]
            raise ValueError(f"{self.path} has {name} {json.dumps(found)[:60]} where {wanted} must stand: {CURE}.")
        return found

    def require_types(self, content: dict[str, Any], kinds: dict[str, type], what: str) -> None:
        """Raises ValueError for a value of a name or a kind that are not known."""
        for name, value in content.items():
            if name not in kinds:
                raise ValueError(f"{self.path} has the unknown {what} {name}: {CURE}.")
            wanted = wrong_kind(value, kinds[name])
            if wanted:
                raise ValueError(
                    f"{self.path} has the {what} {name} {json.dumps(value)[:60]} where {wanted} must stand: {CURE}."
                )

    def place(self, name: str) -> str:
        return os.path.join(os.path.dirname(os.path.abspath(self.path)), name)

    def existing(self, name: str, what: str) -> str:
        """A full path. Raises FileNotFoundError where there is nothing."""
        if not name or not os.path.exists(place := self.place(name)):
            raise FileNotFoundError(
                f"{self.path} names {name or 'no file'} as {what}, which is not there: put it back, or mend the name."
            )
        return place


def read_encoded(reader: Reader, content: dict[str, Any]) -> EncodedSet:
    samples = []
    for one in reader.value(content, "samples", list):
        one = one if isinstance(one, dict) else {}
        paths = [
            reader.existing(reader.value(one, name, str), "an entry of the cache")
            for name in ("latent_path", "caption_path")
        ]
        size = reader.value(one, "size", list)
        if len(size) != 2 or any(wrong_kind(side, int) or side < 1 for side in size):
            raise ValueError(
                f"{reader.path} has the size {json.dumps(size)[:60]} where height and width must stand: {CURE}."
            )
        samples.append(EncodedSample(*paths, tuple(size), str(one.get("picture", ""))))
    null = reader.existing(reader.value(content, "null_path", str), "the empty prompt")
    options = reader.value(content, "options", dict)
    reader.require_types(
        options, {field.name: type(field.default) for field in fields(SetOptions)}, "option of the set"
    )
    return EncodedSet(tuple(samples), null, reader.value(content, "instruction", bool), SetOptions(**options))


def read_settings(path: str, content: dict[str, Any]) -> Settings:
    """Settings of a run; those that are left out have the node's defaults. Raises ValueError for the first fault."""
    kinds = {field.name: type(field.default) for field in fields(Settings) if field.default is not MISSING}
    for name, value in content.items():
        if name not in kinds:
            raise ValueError(f"{path} has the unknown setting {name}: use the names of the training node's inputs.")
        wanted = wrong_value(name, value, kinds[name])
        if wanted:
            raise ValueError(
                f"{path} has the setting {name} {json.dumps(value)[:60]} where {wanted} must stand: mend that."
            )
    return Settings(**{name: kinds[name](value) for name, value in content.items()})


def wrong_value(name: str, value: Any, kind: type) -> str:
    """What must stand in the place of a setting's value; "" for a right one."""
    if name in CHOICES:
        return "" if value in CHOICES[name] else f"one of {', '.join(CHOICES[name])}"
    wanted = wrong_kind(value, kind)
    if kind in (bool, str):
        return wanted
    least, most = (1 if name in AT_LEAST_1 else 0), AT_MOST.get(name, MOST)
    if not wanted and least <= value <= most:
        return ""
    return f"{KINDS[kind]} from {least} up to {most}"


KINDS = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}


def wrong_kind(value: Any, kind: type) -> str:
    """What must stand in the place of a value; "" for one of the kind."""
    if kind in (int, float):
        fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    else:
        fits = isinstance(value, kind)
    return "" if fits else KINDS[kind]
