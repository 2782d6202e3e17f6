"""A quantized file, written layer by layer, whole or not at all; and what is said of it.

The header of a safetensors file comes first and names every tensor's place, so sizes are known from shapes before any
layer is quantized (`quantize.py`). The file has its name only once it is whole.
"""

import errno
import json
import os
import re
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..runtime.precision import FLOAT8
from ..runtime.progress import tracked
from .file_errors import shown
from .quantize import PRESETS, Plan, Rules, layout_of_file, plan, quantized_tensors
from .quantized import MARK

PART = ".part"  # of a file that is being written; the reader knows it as unfinished
HEADER_ALIGNMENT = 8
# The names of number formats in a header.
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8",
          torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.int64: "I64", torch.int32: "I32",
          torch.bool: "BOOL"}  # fmt: skip
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Report:
    """What was written. bytes_before: of the weights as they came. lines: what to say of single layers."""

    path: str
    size: int
    bytes_before: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{shown(self.path)} is written: {self.size / 1e9:.3g} GB from {self.bytes_before / 1e9:.3g} GB. "
            + " ".join(self.lines)
        )


def check_wide(name: str, state_dict: Mapping[str, Tensor]) -> None:
    """Raises ValueError for weights that are narrow already."""
    cure = "quantize the bf16, fp16 or fp32 weights of this model"
    if any(key.endswith(f".{MARK}") for key in state_dict):
        raise ValueError(f"{name} is already quantized, and a second rounding would only add errors: {cure}.")
    if any(tensor.dtype in FLOAT8 for tensor in state_dict.values()):
        raise ValueError(
            f"{name} has float8 weights already, and a second rounding would only add errors: {cure}, loaded with "
            "weight_dtype auto."
        )


def check_preset(preset: str) -> None:
    if preset not in PRESETS:
        raise ValueError(f"There is no preset {preset}: use {', '.join(PRESETS)}.")


def write_quantized(
    path: str,
    name: str,
    state_dict: Mapping[str, Tensor],
    preset: str,
    rules: Rules,
    metadata: Mapping[str, str],
    prefix: str = "",
) -> Report:
    """Writes the state dict with the preset's formats to a new file.

    state_dict: in the layout of files, without prefix; its tensors may be mapped from a file, or the host's that merge
    LoRAs when they are copied. name: of what is quantized, for messages. prefix: of every key in the file.
    Raises ValueError for an unknown preset, narrow weights or nothing to quantize, OSError with one sentence for a
    place that cannot be written to, and the host's interrupt; no file is left then.
    """
    check_preset(preset)
    check_wide(name, state_dict)
    planned = plan(state_dict, preset, rules)
    layout = {prefix + key: entry for key, entry in layout_of_file(state_dict, planned).items()}
    parts = quantized_tensors(name, tracked(list(state_dict.items())), planned)
    named = ({prefix + key: tensor for key, tensor in part.items()} for part in parts)
    size = write_safetensors(path, layout, named, metadata)
    return Report(path, size, sum(tensor.nbytes for tensor in state_dict.values()), tuple(describe(planned)))


def place(layout: Layout) -> tuple[dict[str, tuple[int, int]], int]:
    """Start and end of each tensor in the data, and its length. Wide formats come first, so that all are aligned."""
    places, end = {}, 0
    for key, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        start, end = end, end + prod(shape) * dtype.itemsize
        places[key] = (start, end)
    return places, end


def header_of(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, tuple[int, int]], int]:
    """The first bytes of a safetensors file, the places of its tensors behind them, and the length of the data."""
    places, end = place(layout)
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, offsets in places.items():
        dtype, shape = layout[key]
        entries[key] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": list(offsets)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, places, end


def file_size(layout: Layout, metadata: Mapping[str, str] | None = None) -> int:
    """Bytes of the file of a layout."""
    header, _, length = header_of(layout, metadata or {})
    return len(header) + length


def write_safetensors(
    path: str, layout: Layout, parts: Iterable[Mapping[str, Tensor]], metadata: Mapping[str, str]
) -> int:
    """Writes tensors as they come, each to its place, and returns the size of the file. Raises as `write_quantized`."""
    header, places, length = header_of(layout, metadata)
    # A name of its own: another program may have a file of the plain one, or write the same target right now.
    part, size = f"{path}.{secrets.token_hex(4)}{PART}", len(header) + length
    with naming_write_faults(path, size):
        if shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file = open(part, "xb")
        try:
            with file:
                file.write(header)
                missing = dict(layout)
                for key, tensor in (item for one in parts for item in one.items()):
                    if missing.pop(key, None) != (tensor.dtype, tuple(tensor.shape)):
                        raise RuntimeError(f"{key} became {tensor.dtype} {tuple(tensor.shape)}, not {layout.get(key)}")
                    file.seek(len(header) + places[key][0])
                    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                if missing:
                    raise RuntimeError(f"{min(missing)} was planned but never came")
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    return size


@contextmanager
def naming_write_faults(path: str, size: int):
    """Turns what the operating system says while a file is written into one sentence."""
    try:
        yield
    except OSError as error:
        folder = shown(os.path.dirname(os.path.abspath(path)))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"{shown(path)} needs {size / 1e9:.3g} GB, and the disk of {folder} is full: free some space, or write "
                "to another disk."
            ) from error
        reason = error.strerror or type(error).__name__
        raise OSError(
            f"{shown(path)} cannot be written ({reason}): choose a folder that exists and may be written to."
        ) from error


def describe(planned: Plan) -> list[str]:
    """Sentences: how many layers each format has, which have another than the preset's or stay wide, and why."""
    counts = Counter(narrow.kind for narrow in planned.narrow.values())
    lines = [f"Narrow: {', '.join(f'{count} layers {kind}' for kind, count in counts.most_common())}."]
    others: dict[str, list[str]] = defaultdict(list)
    for layer, narrow in planned.narrow.items():
        if narrow.why:
            others[f"In {narrow.kind} because {narrow.why}"].append(layer)
    for layer, why in planned.wide.items():
        others[f"Wide because {why}"].append(layer)
    lines += [f"{why}: {', '.join(numbered(layers))}." for why, layers in others.items()]
    return [*lines, "Norms, tables and biases stay wide."]


def numbered(layers: list[str]) -> list[str]:
    """Names of layers, those that differ in the block's number alone as one: `blocks.{0-19}.ff.conv_depth`."""
    found: dict[str, list[int]] = {}
    for layer in layers:
        number = re.search(r"(?<=\.)\d+(?=\.)", layer)
        form = layer if number is None else layer[: number.start()] + "{}" + layer[number.end() :]
        found.setdefault(form, []).extend([] if number is None else [int(number[0])])
    return [form.replace("{}", runs(numbers)) if numbers else form for form, numbers in found.items()]


def runs(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> {0-2,5}; a single number as it is."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return text if len(numbers) == 1 else f"{{{text}}}"
