"""A folder of pictures and .txt captions -> a checked training set. Every problem is told in one message.

A subfolder named `<n>_<name>` has its pictures n times in an epoch, as kohya's scripts count.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..models.files.file_errors import printable
from ..models.sana.resolution import RATIO
from .buckets import Size, target_size
from .pictures import NOTEWORTHY_CROP, cropped_part, enlargement, read_picture

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LARGEST_ENLARGEMENT = 2.0
REPEATS = re.compile(r"(\d+)_.+")
MOST_REPEATS = 1000  # more is a date or another number, and a list of as many samples


@dataclass(frozen=True)
class Sample:
    """One picture of a set. size: (height, width) it is trained at. digest: of the file's bytes."""

    path: str
    caption: str
    size: Size
    repeats: int
    digest: str
    mirrored: bool = False


@dataclass(frozen=True)
class SetOptions:
    """How a folder is read. size: side of the square in pixels, bins: aspect ratios are kept as far as trained."""

    size: int = 1024
    bins: bool = True
    flip: bool = False
    trigger_word: str = ""
    default_caption: str = ""


@dataclass(frozen=True)
class TrainingSet:
    """Checked pictures with their captions. notices: what is converted, enlarged or cropped."""

    samples: tuple[Sample, ...]
    options: SetOptions
    notices: tuple[str, ...] = ()

    def describe(self) -> str:
        sizes = sorted({sample.size for sample in self.samples})
        often = sum(sample.repeats for sample in self.samples)
        repeated = f", {often} in an epoch," if often != len(self.samples) else ""
        first = f"{len(self.samples)} pictures{repeated} at {', '.join(f'{w} x {h}' for h, w in sizes)} px"
        return "\n".join([first, *self.notices])


def read_folder(folder: str, options: SetOptions) -> TrainingSet:
    """The training set in a folder.

    Raises FileNotFoundError for a folder that is not there, and ValueError with every problem of its files in one
    message.
    """
    if options.size % RATIO:
        raise ValueError(
            f"size {options.size} is no multiple of {RATIO}: enter the side of the square the model was trained on."
        )
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"{printable(folder)} is no folder: enter the folder with the pictures and their .txt files."
        )
    found_pictures = list(find_pictures(folder))
    samples, problems, notices, first_of = [], wrong_repeats(folder, found_pictures), [], {}
    for path, repeats in found_pictures:
        name = printable(os.path.relpath(path, folder))
        try:
            sample, found, told = read_sample(path, repeats, options)
        except (OSError, ValueError) as error:
            problems.append(f"{name}: cannot be read ({printable(str(error))})")
            continue
        twin = first_of.setdefault(sample.digest, name)
        problems += [f"{name}: {problem}" for problem in found]
        problems += [] if twin == name else [f"{name}: the same picture as {twin}"]
        notices += [f"{name}: {note}" for note in told]
        samples.append(sample)
    notices += shared_captions(folder, [path for path, _ in found_pictures])
    notices += [f"{name}: no picture of this name, so nobody reads it" for name in lonely_captions(folder)]
    if not samples and not problems:
        raise ValueError(f"{printable(folder)} has no pictures: put files there that end in {', '.join(ENDINGS)}.")
    if problems:
        raise ValueError(f"{printable(folder)} cannot be trained on until this is mended:\n" + "\n".join(problems))
    mirrored = [Sample(**(vars(sample) | {"mirrored": True})) for sample in samples] if options.flip else []
    return TrainingSet(tuple(samples + mirrored), options, tuple(notices))


def find_pictures(folder: str) -> Iterator[tuple[str, int]]:
    """Paths of the pictures with how often each comes in an epoch, in the order of their names."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        repeats = REPEATS.fullmatch(entry.name)
        if entry.is_dir() and repeats:
            for path, _ in find_pictures(entry.path):
                yield path, int(repeats[1])
        elif entry.is_file() and entry.name.lower().endswith(ENDINGS):
            yield entry.path, 1


def wrong_repeats(folder: str, pictures: Iterable[tuple[str, int]]) -> list[str]:
    """Problems of subfolders whose number in front is none of repeats."""
    wrong = {
        os.path.relpath(path, folder).split(os.sep)[0]: repeats
        for path, repeats in pictures
        if not 1 <= repeats <= MOST_REPEATS
    }
    return [
        f"{printable(name)}: its pictures would come {repeats} times in an epoch, and 1 to {MOST_REPEATS} is possible: "
        "put another number in front, or a letter"
        for name, repeats in wrong.items()
    ]


def shared_captions(folder: str, pictures: Iterable[str]) -> list[str]:
    """Notices of pictures that have their caption from the file of another one, as a.png and a.jpg have."""
    first_of, found = {}, []
    for path in pictures:
        first = first_of.setdefault(caption_path(path), path)
        if first != path and os.path.isfile(caption_path(path)):
            one, other = (printable(os.path.relpath(picture, folder)) for picture in (path, first))
            found.append(f"{one}: has the same .txt as {other}, and so the same caption")
    return found


def lonely_captions(folder: str) -> list[str]:
    """Captions beside the pictures of a set that belong to none, as after a slip in a name."""
    pictures = [path for path, _ in find_pictures(folder)]
    known = {caption_path(path) for path in pictures}
    return sorted(
        printable(os.path.relpath(entry.path, folder))
        for place in {os.path.dirname(path) for path in pictures}
        for entry in os.scandir(place)
        if entry.name.endswith(".txt") and entry.path not in known
    )


def read_sample(path: str, repeats: int, options: SetOptions) -> tuple[Sample, list[str], list[str]]:
    """A picture and its caption, its problems, and what is done to it. Raises OSError or ValueError as
    `read_picture`."""
    with open(path, "rb") as file:
        content = file.read()
    picture = read_picture(content)
    size = target_size(picture.image.height, picture.image.width, options.size, options.bins)
    problems, notices = [], list(picture.notes)
    scale, cut = enlargement(picture.image, size), cropped_part(picture.image, size)
    pixels = f"{picture.image.width} x {picture.image.height} px"
    if scale > LARGEST_ENLARGEMENT:
        problems.append(f"too small, {pixels} for {size[1]} x {size[0]} px: use a larger picture or a smaller size")
    elif scale > 1:
        notices.append(f"{pixels} enlarged to {size[1]} x {size[0]} px")
    if cut > NOTEWORTHY_CROP:
        notices.append(f"{cut:.0%} cropped, {pixels} to {size[1]} x {size[0]} px")
    caption, fault = read_caption(path, options)
    digest = content_digest(content)
    return Sample(path, caption, size, repeats, digest), problems + ([fault] if fault else []), notices


def content_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def caption_path(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".txt"


def read_caption(path: str, options: SetOptions) -> tuple[str, str | None]:
    """The caption beside a picture with the trigger word before it, and what is wrong with it or None."""
    text, caption, fault = caption_path(path), "", None
    name = printable(os.path.basename(text))
    if os.path.isfile(text):
        try:
            with open(text, encoding="utf-8-sig") as file:
                caption = " ".join(file.read().split())
        except UnicodeDecodeError:
            return "", f"{name} is not UTF-8: save it as UTF-8"
        fault = None if caption else f"{name} is empty: write what the picture shows"
    elif not options.default_caption and not options.trigger_word:
        fault = f"no {name}: write a caption there, or set default_caption or trigger_word"
    caption = caption or options.default_caption
    if options.trigger_word and options.trigger_word not in caption:
        caption = f"{options.trigger_word}, {caption}" if caption else options.trigger_word
    return caption, fault if not options.default_caption else None
