"""Pictures of an evaluation: found in folders, read, and what was computed of them stored in parts."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from .command_line import say

KINDS = (".png", ".jpg", ".jpeg", ".webp")
PART = 64  # pictures between two files
# What Pillow raises for files that are damaged or none of its formats.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)
WIDE = ("I", "F")  # Pillow's modes

Value = TypeVar("Value")
Picked = tuple  # a picture's path, and where only a part of it is meant, left, top, right and bottom in px


class EvaluationError(ValueError):
    """What was asked for cannot be measured; the message is one sentence with the cure."""


def find_pictures(folder: str, what: str) -> list[Path]:
    """Every picture in a folder and the folders in it, by name.  Raises: EvaluationError for none."""
    place = Path(folder)
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in KINDS) if place.is_dir() else []
    if not found:
        raise EvaluationError(f"{what}={folder} is no folder with pictures ({', '.join(KINDS)}); give another one.")
    return found


def read_picture(path: Path, *box: int) -> np.ndarray:
    """(H, W, 3) of 8 bits.  Raises: EvaluationError for a file that is no picture, or one of wider grey values."""
    try:
        with Image.open(path) as file:
            mode, values = file.mode, np.array((file.crop(box) if box else file).convert("RGB"))
    except BROKEN as error:
        raise EvaluationError(f"{path} cannot be read as a picture ({error}); mend it, or take it away.") from None
    if mode.startswith(WIDE):  # Pillow would make all above 255 white
        raise EvaluationError(f"{path} has grey values of 16 bits or more, where 8 were expected; save it with 8.")
    return values


def by_stem(known: Mapping[str, Value], path: Path) -> Value | None:
    """What is known of a picture by its name, or by that before the number of an image in a batch; None for nothing."""
    return known.get(path.stem, known.get(path.stem.rpartition("_")[0]))


def stored(
    picked: Sequence[Picked], network: str, compute: Callable[[list[np.ndarray]], np.ndarray], parts: Path, done: str
) -> Iterator[np.ndarray]:
    """What is computed of pictures, part by part; a part that was made of the same files before is read.

    network: what names the network and its file, for the name of the part. done: what happened to pictures, to be told.
    """
    parts.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(picked), PART):
        some = picked[start : start + PART]
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns, *box) for path, *box in some]
        file = parts / f"{hashlib.sha256(repr((network, stats)).encode()).hexdigest()[:24]}.npy"
        if not file.is_file():
            values = compute([read_picture(*one) for one in some])
            unfinished = file.with_suffix(".part")
            with open(unfinished, "wb") as stream:
                np.save(stream, values)
            unfinished.replace(file)
            say(f"{min(start + PART, len(picked))} of {len(picked)} {done}")
        yield np.load(file)
