"""What became of every row: records in parts of the store, and the fingerprint of the job that wrote them.

A row is the unit of commit: its picture is in the store before its record is. A shard, some rows in a line, is the unit
of assignment, and the first index names its part. Pure: the standard library, and a store that is handed in.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from .pictures import FOLDER as PICTURES
from .rows import BadRow, Row
from .store import Store, StoreError

FOLDER, JOB = "manifest", "job.json"
DONE, REFUSED, FAILED, TIMEOUT, KILLED, UNREADABLE = (
    "done", "refused", "failed", "timeout", "killed_worker", "unreadable",
)  # fmt: skip
SETTLED = {DONE, REFUSED}  # not run again by the same command
PART_NAMES = {"workflow": "workflow or --set"}  # of a job, where a message names it
TROUBLE = (FAILED, TIMEOUT, KILLED, REFUSED)


@dataclass
class Record:
    """What became of a row.

    name: of its pictures, without a number and an ending. id: as the prompt file has it. node: that failed. files,
    bytes, sha256, width and height (px) go together. batch: rows of the run. batch_index: place in it. node_seconds: of
    the whole run. job_run: of the command that wrote it, so that a lost shard's rows are told from earlier ones.
    """

    index: int
    name: str
    place: str
    status: str
    prompt: str = ""
    id: str = ""
    seed: int | None = None
    attempts: int = 1
    error: str = ""
    node: str = ""
    files: list[str] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    width: list[int] = field(default_factory=list)
    height: list[int] = field(default_factory=list)
    seconds: float = 0.0
    node_seconds: dict[str, float] = field(default_factory=dict)
    batch: int = 1
    batch_index: int = 0
    worker: str = ""
    host: str = ""
    device: str = ""
    started: float = 0.0
    job_run: str = ""

    def line(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False)


@dataclass
class Shard:
    """Rows in a line of the prompt file, unreadable ones among them."""

    first: int
    rows: list[Row | BadRow]
    losses: int = 0  # workers that ended with it

    def __len__(self) -> int:
        return len(self.rows)

    def halves(self) -> list[Shard]:
        """Two shards of half its rows, so that a row that ends its worker is found."""
        middle = len(self.rows) // 2
        parts = self.rows[:middle], self.rows[middle:]
        return [Shard(rows[0].index, list(rows), self.losses) for rows in parts]


def shards(rows: Iterable[Row | BadRow], size: int) -> Iterator[Shard]:
    """Shards of `size` rows one by one; the last may be smaller."""
    waiting: list[Row | BadRow] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == size:
            yield Shard(waiting[0].index, waiting)
            waiting = []
    if waiting:
        yield Shard(waiting[0].index, waiting)


def part_name(first: int) -> str:
    return f"{FOLDER}/{first:012}.jsonl"


class Part:
    """Records of a shard: what earlier runs left, and what this one adds; written whole at each save.

    A part of that name from a larger shard holds records of rows beyond it, which are kept.
    """

    def __init__(self, store: Store, shard: Shard, known: Iterable[int]):
        """known: first indexes of the parts in which the shard's rows may have records; not all need to be there."""
        self.store, self.name = store, part_name(shard.first)
        self.records: dict[int, Record] = {}
        wanted = {row.index for row in shard.rows}
        for first in sorted({*known, shard.first}):
            for record in read_part(store, part_name(first)) if store.exists(part_name(first)) else ():
                old = self.records.get(record.index)
                here = record.index in wanted or first == shard.first
                if here and (old is None or _counts_more(record, old)):
                    self.records[record.index] = record
        self.unsaved = 0

    def add(self, record: Record) -> None:
        self.records[record.index] = record
        self.unsaved += 1

    def of_run(self, shard: Shard, run: str) -> list[Record]:
        """Records of the shard's rows that a run of the command wrote; none for a run without a name."""
        found = [self.records[row.index] for row in shard.rows if row.index in self.records]
        return [record for record in found if run and record.job_run == run]

    def save(self) -> None:
        if self.unsaved:
            lines = [self.records[index].line() for index in sorted(self.records)]
            self.store.put(self.name, ("\n".join(lines) + "\n").encode())
            self.unsaved = 0


def read_part(store: Store, name: str) -> list[Record]:
    """Records of a part; fields of later versions are left out. Raises: StoreError for what is none."""
    known = {one.name for one in fields(Record)}
    try:
        found = [json.loads(line) for line in store.get(name).decode().split("\n") if line]
        return [Record(**{key: value for key, value in one.items() if key in known}) for one in found]
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{store.url}/{name} is no part of a manifest: remove it, and its rows run again.") from error


def part_firsts(store: Store) -> list[int]:
    """First indexes of the parts that are there, in their order."""
    return [int(name[:-6]) for name in store.names(FOLDER) if name.endswith(".jsonl") and name[:-6].isdigit()]


def all_records(store: Store) -> Iterator[Record]:
    """Every row's record, once: parts of other shard sizes may overlap."""
    waiting: dict[int, Record] = {}
    for first in part_firsts(store):
        for index in sorted(index for index in waiting if index < first):
            yield waiting.pop(index)
        for record in read_part(store, part_name(first)):
            old = waiting.get(record.index)
            if old is None or _counts_more(record, old):
                waiting[record.index] = record
    for index in sorted(waiting):
        yield waiting[index]


def settled_rows(store: Store, total: int, retry_failed: bool) -> Counter:
    """Status -> how many of the first `total` rows a run leaves as they are, since they have a record."""
    return Counter(
        record.status
        for record in all_records(store)
        if record.index < total and (record.status in {*SETTLED, UNREADABLE} or not retry_failed)
    )


def _counts_more(record: Record, old: Record) -> bool:
    return (record.status == DONE, record.started) > (old.status == DONE, old.started)


@dataclass
class Summary:
    """How many rows have which status, the pictures, and the commonest errors."""

    statuses: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def add(self, record: Record) -> None:
        self.statuses[record.status] += 1
        self.files += len(record.files)
        self.bytes += sum(record.bytes)
        self.seconds += record.seconds / record.batch
        if record.error and len(self.errors) < 1000:
            self.errors[record.error] += 1

    def line(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common()) or "no row yet"
        return f"{counts}; {self.files} files, {self.bytes / 1e6:.1f} MB"


# The job


def file_digest(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def model_files(prompt: dict, models: Path) -> dict[str, int]:
    """Names of model files that a prompt's inputs name -> bytes; a folder counts as the sum of its files."""
    folders = [entry for entry in models.iterdir() if entry.is_dir()] if models.is_dir() else []
    texts = {value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, str)}
    found = {}
    for text in sorted(filter(_may_be_a_file, texts)):
        for path in (folder / text for folder in folders):
            if path.is_file():
                found[f"{path.parent.name}/{text}"] = path.stat().st_size
            elif path.is_dir():
                found[f"{path.parent.name}/{text}"] = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return found


def _may_be_a_file(text: str) -> bool:
    """Whether a file system takes it as a name, of which it counts the bytes."""
    return bool(text.strip(" ./")) and len(text.encode("utf-8", "replace")) < 200 and "\0" not in text


def fingerprint(parts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class JobError(ValueError):
    """The store holds another job; the message is one sentence with the cure."""


def read_job(store: Store) -> dict | None:
    """The job of a store; None where there is none. Raises: JobError for what is no job."""
    if not store.exists(JOB):
        return None
    try:
        job = json.loads(store.get(JOB))
        parts, command = dict(job["parts"]), job.get("command", "")
        return {"fingerprint": job["fingerprint"], "parts": parts, "rows": job.get("rows"), "command": command}
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"{store.url}/{JOB} is no description of a job: choose another folder.") from error


def has_begun(store: Store) -> bool:
    """Whether a row of the store's job has a record or a picture. A job of which none has may become another one."""
    return bool(part_firsts(store)) or store.has_files(PICTURES)


def compare_job(store: Store, parts: dict[str, object]) -> None:
    """Compares parts of a job with those of one that has begun in the store. Raises: JobError with what differs."""
    job = read_job(store)
    if job is None:
        return
    changed = [part for part in sorted(parts) if parts[part] != job["parts"].get(part)]
    if changed and has_begun(store):
        told = " and ".join(PART_NAMES.get(part, part) for part in changed)
        raise JobError(
            f"{store.url} holds the job {job['fingerprint']}, and {told} changed since. Choose "
            "another folder, or go on with --force-new-graph."
        )


def join_job(store: Store, parts: dict[str, object], total: int, force: bool = False, command: str = "") -> str:
    """Writes a job of `total` rows into the store and returns its fingerprint. parts: what decides on the pictures.

    command: fingerprint of what the command names. Raises: JobError where another job has begun in the store and
    `force` is off.
    """
    if not force:
        compare_job(store, parts)
    own = fingerprint(parts)
    job = {"fingerprint": own, "rows": total, "parts": parts, "command": command}
    store.put(JOB, json.dumps(job, indent=1, ensure_ascii=False).encode())
    return own


def require_job(store: Store, own: str) -> None:
    """Raises: JobError where another machine made the store its own since `own` joined it."""
    job = read_job(store)
    if job is None or job["fingerprint"] != own:
        other = f"the job {job['fingerprint']}" if job else "no job any more"
        raise JobError(f"{store.url} holds {other}, as another run wrote into it too: choose another folder.")


def total_rows(store: Store) -> int | None:
    """Rows of the job in a store; None where there is none."""
    job = read_job(store)
    return job and job["rows"]
