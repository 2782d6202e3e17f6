"""Prompt files as rows, streamed: names, settings, and the tags at the end of a prompt.

Pure: the standard library and `formats.py` alone, so that a node, a command and a worker read the same rows with the
same names.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .formats import READERS, Entry, setting_of

SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".tsv")
SIDES, STEPS, SEEDS, CFG = (32, 16384), (1, 10000), (0, 2**64 - 1), (0.0, 100.0)
# Names: characters as NVIDIA's scripts cut them, and bytes, of which file systems take 255; an ending follows.
NAME_LENGTH, NAME_BYTES = 100, 200
UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udfff]')
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
TAGS = ("ar", "aspect_ratio", "hw", "size", "seed", "neg", "steps", "cfg")
TAG = re.compile(r"(?:^|\s)--(?=[A-Za-z])")


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its settings; None for a setting that the file leaves open.

    index: among the file's rows from 0, unreadable ones included, so that mending one moves no other.
    place: for messages, as "line 3". name: of the image's file, safe on every system and unique in the file.
    aspect: (width, height) of a ratio. id: as the file has it.
    """

    index: int
    place: str
    name: str
    prompt: str
    negative: str = ""
    width: int | None = None
    height: int | None = None
    aspect: tuple[float, float] | None = None
    seed: int | None = None
    steps: int | None = None
    cfg: float | None = None
    id: str = ""

    def seed_from(self, base: int) -> int:
        """The row's own seed, else base + index, so that every image stands alone."""
        return (base + self.index) % (SEEDS[1] + 1) if self.seed is None else self.seed


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, and the sentence that says why."""

    index: int
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def read_rows(path: str | Path, nvlabs_tags: bool = False) -> Iterator[Row | BadRow]:
    """Rows of a prompt file one by one, in its order; memory does not grow with the prompts, only with their number.

    nvlabs_tags: read `--ar` as height:width, as NVIDIA's scripts do, in place of width:height.
    Raises ValueError for a file that is none of `SUFFIXES`, UTF-16, or a csv without a prompt column.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path.name} is no prompt file: its name must end in one of {', '.join(SUFFIXES)}.")
    with open(path, "rb") as file:
        if file.read(2) in UTF_16:
            raise ValueError(f"{path.name} is UTF-16: save it as UTF-8 in your editor.")
    # Broken bytes become surrogates, which are found row by row: one bad line does not stop the rest.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from rows_of(READERS[path.suffix.lower()](file, path.name), nvlabs_tags)


def rows_of(entries: Iterable[Entry], nvlabs_tags: bool = False) -> Iterator[Row | BadRow]:
    """Rows of a file's entries one by one, each with a name of its own."""
    names = _Names()
    for index, (place, fields) in enumerate(entries):
        try:
            if isinstance(fields, str):
                raise ValueError(fields)
            settings = read_settings(fields, nvlabs_tags)
            yield Row(index, place, names.take(settings.get("id"), index), **settings)
        except ValueError as error:
            yield BadRow(index, place, str(error))


class _Names:
    """Names of files that were given; 8 bytes of a hash stand for each, as a file may have millions of rows."""

    def __init__(self):
        self.ids: set[int] = set()
        self.names: set[int] = set()

    def take(self, row_id: str | None, index: int) -> str:
        """A free name; a short hash of the id follows where another row has it. Raises ValueError for a used id."""
        if row_id is not None:
            if _hash(row_id) in self.ids:
                raise ValueError(f'an earlier row has the id "{row_id}" already')
            self.ids.add(_hash(row_id))
        name = f"{index:09}" if row_id is None else safe_name(row_id)
        if _hash(name.casefold()) in self.names:
            name = with_hash(name, row_id or name)
        self.names.add(_hash(name.casefold()))
        return name


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def safe_name(text: str) -> str:
    """A name of a file for Linux, macOS and Windows; one that is cut to `NAME_LENGTH` characters ends in a hash."""
    name = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
    name = UNSAFE.sub("_", name).strip(" .")
    if RESERVED.match(name):
        name = f"_{name}"
    if not name or len(name) > NAME_LENGTH or len(name.encode()) > NAME_BYTES:
        return with_hash(name, text)
    return name


def with_hash(name: str, text: str) -> str:
    """The name with a short hash of a text behind it, shortened where it would be too long."""
    ending = "-" + hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    room = NAME_BYTES - len(ending)
    short = name[: NAME_LENGTH - len(ending)].encode()[:room].decode("utf-8", "ignore")
    return short.rstrip(" .") + ending


# Fields and tags


def read_settings(fields: dict[str, Any], nvlabs_tags: bool) -> dict[str, Any]:
    """Arguments of a Row, and "id" where there is one, from named fields and the tags of the prompt.

    A field counts more than a tag. Raises ValueError with the reason why the row cannot be read.
    """
    given = {}
    for key, value in fields.items():
        name = setting_of(key)
        if name not in SETTINGS or value is None:
            continue
        if isinstance(value, dict | list | bool):
            raise ValueError(f"needs a text or a number for {name}")
        if str(value).strip():
            given.setdefault(name, str(value).strip())
    _require_utf_8(given)
    prompt, tags = split_tags(given.pop("prompt", ""))
    settings = {}
    for name, value in (tags | given).items():
        settings |= _read_setting(name, value, nvlabs_tags)
    if not prompt:
        raise ValueError("has no prompt")
    if ("width" in settings) != ("height" in settings):
        raise ValueError("has a width or a height alone: give both, or neither")
    return settings | {"prompt": prompt}


def _require_utf_8(given: dict[str, str]) -> None:
    try:
        "".join(given.values()).encode()
    except UnicodeEncodeError:
        raise ValueError("holds bytes that are not UTF-8: save the file as UTF-8") from None


def split_tags(text: str) -> tuple[str, dict[str, str]]:
    """A prompt and the tags at its end, setting -> value; a tag before other text is part of the prompt.

    Raises ValueError for an unknown tag among known ones.
    """
    starts = list(TAG.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    pieces = [re.split(r"\s+|$", text[match.end() : end], maxsplit=1) for match, end in zip(starts, ends)]
    tail = len(pieces)
    while tail and _is_tag(*pieces[tail - 1]):
        tail -= 1
    names = [name.lower() for name, _ in pieces[tail:]]
    known = [name for name in names if name in TAGS]
    if not known:
        return text.strip(), {}
    unknown = [name for name in names if name not in TAGS]
    if unknown:
        raise ValueError(f"has the unknown tag --{unknown[0]}: known are {', '.join('--' + tag for tag in TAGS)}")
    values = {setting_of(name): value.strip() for name, (_, value) in zip(names, pieces[tail:], strict=True)}
    return text[: starts[tail].start()].strip(), values


def _is_tag(name: str, value: str) -> bool:
    """Whether a piece after "--" is a tag and no text: one value follows, for --neg any number of words."""
    return name.lower() == "neg" or len(value.split()) <= 1


def _read_setting(name: str, value: str, nvlabs_tags: bool) -> dict[str, Any]:
    """Arguments of a Row from a named value. Raises ValueError with what was expected."""
    if name in ("id", "negative"):
        return {name: value}
    if name == "ar":
        first, second = _pair(name, value, ":", _number((0.001, 1000.0)))
        return {"aspect": (second, first) if nvlabs_tags else (first, second)}
    if name in ("hw", "size"):
        sides = _pair(name, value, ":xX×*", _integer(SIDES))
        return dict(zip(("height", "width") if name == "hw" else ("width", "height"), sides, strict=True))
    return {name: PARSERS[name](name, value)}


def _pair(name: str, value: str, separators: str, parse: Callable[[str, str], Any]) -> tuple[Any, Any]:
    parts = re.split(f"[{re.escape(separators)}]", value)
    if len(parts) != 2:
        example = "16:9" if name == "ar" else "1024:768" if name == "hw" else "1024x768"
        raise ValueError(f'needs {name} as in {example}, not "{value}"')
    return parse(name, parts[0].strip()), parse(name, parts[1].strip())


def _integer(limits: tuple[int, int]) -> Callable[[str, str], int]:
    def parse(name: str, value: str) -> int:
        if (
            not re.fullmatch(r"\d{1,20}(\.0)?", value, re.ASCII)
            or not limits[0] <= int(value.split(".")[0]) <= limits[1]
        ):
            raise ValueError(f'needs an integer of {limits[0]} to {limits[1]} for {name}, not "{value}"')
        return int(value.split(".")[0])

    return parse


def _number(limits: tuple[float, float]) -> Callable[[str, str], float]:
    def parse(name: str, value: str) -> float:
        if not re.fullmatch(r"\d{1,10}(\.\d{0,10})?", value, re.ASCII) or not limits[0] <= float(value) <= limits[1]:
            raise ValueError(f'needs a number of {limits[0]:g} to {limits[1]:g} for {name}, not "{value}"')
        return float(value)

    return parse


PARSERS: dict[str, Callable[[str, str], Any]] = {
    "width": _integer(SIDES),
    "height": _integer(SIDES),
    "seed": _integer(SEEDS),
    "steps": _integer(STEPS),
    "cfg": _number(CFG),
}
SETTINGS = {"id", "prompt", "negative", "ar", "hw", "size", *PARSERS}
