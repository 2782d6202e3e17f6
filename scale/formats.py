"""Forms of prompt files, read entry by entry: txt, json, jsonl, csv and tsv.

Forms of json are a list, of prompts or of objects, and that of NVIDIA's scripts, {"id": {"prompt": "..."}}. Pure: the
standard library alone.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

CHUNK = 1 << 16  # characters of json read at once
COMMENT = "#"
# Name of a field, or of a tag -> setting.
ALIASES = {
    "aspect_ratio": "ar",
    "caption": "prompt",
    "name": "id",
    "neg": "negative",
    "negative_prompt": "negative",
    "text": "prompt",
}

Entry = tuple[str, dict[str, Any] | str]
"""Place, and the fields of a row or the reason why there are none."""


def setting_of(name: str) -> str:
    """The setting that a name of a field or of a tag stands for."""
    name = name.strip().lower()
    return ALIASES.get(name, name)


def _lines(file: TextIO) -> Iterator[tuple[str, str]]:
    """Lines that hold something and are no comment, with their place."""
    for number, line in enumerate(file, 1):
        line = line.strip()
        if line and not line.startswith(COMMENT):
            yield f"line {number}", line


def _read_txt(file: TextIO, _name: str) -> Iterator[Entry]:
    for place, line in _lines(file):
        yield place, {"prompt": line}


def _read_jsonl(file: TextIO, _name: str) -> Iterator[Entry]:
    for place, line in _lines(file):
        try:
            yield place, _fields(json.loads(line))
        except (ValueError, RecursionError):
            yield place, "is no JSON"


def _read_csv(file: TextIO, name: str, delimiter: str = "") -> Iterator[Entry]:
    lines = iter(file)
    head = next(lines, "")
    if not delimiter:
        delimiter = ";" if head.count(";") > head.count(",") else ","
    reader = csv.reader(_chain(head, lines), delimiter=delimiter)
    columns = next(reader, [])
    if "prompt" not in map(setting_of, columns):
        raise ValueError(f'{name} has no column "prompt": name the columns in its first line.')
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {reader.line_num}", f"is no csv ({error})"
            continue
        if not any(value.strip() for value in values):
            continue
        place = f"line {reader.line_num}"
        if len(values) > len(columns):
            yield place, f"has {len(values)} values for {len(columns)} columns: put a text with a comma in quotes"
        else:
            yield place, dict(zip(columns, values))


def _chain(head: str, lines: Iterable[str]) -> Iterator[str]:
    yield head
    yield from lines


def _read_tsv(file: TextIO, name: str) -> Iterator[Entry]:
    return _read_csv(file, name, "\t")


def _read_json(file: TextIO, name: str) -> Iterator[Entry]:
    """Entries of a list, or of NVIDIA's object of objects, decoded one by one."""
    text = _Json(file)
    first = text.peek()
    if first not in ("[", "{"):
        raise ValueError(f"{name} holds no list and no object of prompts: begin it with [ or {{.")
    text.skip()
    number = 0
    while text.peek() not in ("]", "}"):
        number += 1
        place = f"entry {number}"
        try:
            key = text.value() if first == "{" else None
            if first == "{":
                text.require(":")
            value = text.value()
            if text.peek() not in ("]", "}"):
                text.require(",")
        except (ValueError, RecursionError):
            yield place, "is no JSON, and nothing after it can be read"
            return
        yield place, _fields(value, key)


def _fields(value: Any, key: str | None = None) -> dict[str, Any] | str:
    """Fields of an entry, which may be a prompt alone; the reason for one that is neither."""
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        return "is neither a prompt nor an object"
    return value if key is None else {"id": key} | value


class _Json:
    """A window on a json text that is decoded value by value."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at, self.decoder = file, "", 0, json.JSONDecoder()

    def more(self) -> bool:
        """Reads on; False at the end."""
        chunk = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def skip(self) -> None:
        self.at += 1

    def require(self, sign: str) -> None:
        """Raises ValueError where another character comes next."""
        if self.peek() != sign:
            raise ValueError(sign)
        self.skip()

    def value(self) -> Any:
        """The next value. Raises ValueError where there is none."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                length = end - self.at
                if end < len(self.text) or not self.more():  # at the window's end a number may go on
                    self.at += length
                    return value
            except ValueError:
                if not self.more():
                    raise


READERS: dict[str, Callable[[TextIO, str], Iterator[Entry]]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
