"""Pictures of an evaluation: found in folders, read, and what was computed of them stored in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from .command_line import say

KINDS = (".png", ".jpg", ".jpeg", ".webp")
PART = 64  # pictures between two files
READING = "upright, alpha on white"  # how pictures are read; a change makes other parts

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
    """(H, W, 3) of 8 bits, upright, as the training reads it.  Raises: EvaluationError for a file that is no picture.

    box: left, top, right and bottom of the part that is wanted, in px.
    """
    from sana_native.training.pictures import read_picture as read_upright

    try:
        image = read_upright(str(path)).image
    except ValueError as error:
        raise EvaluationError(f"{path} cannot be read as a picture ({error}); mend it, or take it away.") from None
    return np.array(image.crop(box) if box else image)


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
        file = parts / f"{hashlib.sha256(repr((network, READING, stats)).encode()).hexdigest()[:24]}.npy"
        values = read_part(file)
        if values is None:
            values = compute([read_picture(*one) for one in some])
            unfinished = file.with_suffix(".part")
            with open(unfinished, "wb") as stream:
                np.save(stream, values)
            unfinished.replace(file)
            say(f"{min(start + PART, len(picked))} of {len(picked)} {done}")
        yield values


def read_part(file: Path) -> np.ndarray | None:
    """What a part holds; None for one that is not there or damaged, which is made again."""
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError):
        return None
