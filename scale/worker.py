"""A worker: one ComfyUI server as its child, which runs rows, puts their pictures into the store and records them.

Knows nothing of Ray nor of other workers. A server that dies or hangs is replaced without losing the worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp

from ..tools.comfy_server import (
    ComfyServer,
    NodeFailed,
    PromptRefused,
    PromptTimeout,
    Result,
    ServerEnded,
    ServerError,
)
from ..tools.host import link_folder
from .graph import Options, Template, api_of
from .manifest import DONE, FAILED, KILLED, REFUSED, SETTLED, TIMEOUT, UNREADABLE, Part, Record, Shard
from .pictures import picture_name, picture_size
from .rows import BadRow, Row
from .store import Store, StoreError, open_store

T = TypeVar("T")
SAVE_ROWS, SAVE_SECONDS = 64, 30.0  # after which a shard's records are written
GRACE = 30.0  # seconds for an interrupted prompt to end
STORE_TRIES, START_TRIES = 3, 3
SHARED = ("models", "custom_nodes", "input")  # folders of the user's base that every worker sees
OUT_OF_MEMORY = ("out of memory", "allocation on device")
# The host's caches as they were before 0.30's others: loaders and the negative prompt stay between rows.
HOST_ARGUMENTS = ("--cache-classic",)


@dataclass(frozen=True)
class HostSettings:
    """Where ComfyUI, its Python and the user's base directory are, on every machine; work: a folder for workers."""

    comfyui: str
    python: str
    base: str
    work: str
    cpu: bool
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What a worker has to know of a job beside its rows.

    timeout: seconds of a run. retries: deaths of a server. verify: whether a row is done only while its pictures exist.
    run: a name of this run of the command, "" for none.
    """

    prompt: dict
    assignments: tuple[str, ...]
    options: Options
    store: str
    timeout: float = 300.0
    retries: int = 2
    retry_failed: bool = False
    verify: bool = False
    run: str = ""


class WorkerError(RuntimeError):
    """The worker cannot go on: its server does not start, or the store takes nothing; one sentence."""


class Ending(Exception):
    """The worker was told to end while a row ran; that row has no record."""


def is_open(row: Row | BadRow, record: Record | None, job: Job, store: Store) -> bool:
    """Whether a row is left to run. record: its own so far."""
    if record is None:
        return True
    if job.run and record.job_run == job.run:
        return False
    if record.status == UNREADABLE:
        return not isinstance(row, BadRow)
    if record.status == DONE and job.verify:
        return not all(store.exists(name) for name in record.files)
    return record.status not in SETTLED and job.retry_failed


class Worker:
    """name: of its folder below `host.work`. environment: of its server, such as the device it sees."""

    def __init__(self, name: str, host: HostSettings, environment: dict[str, str] | None = None):
        self.name, self.host, self.environment = name, host, environment or {}
        self.folder = Path(host.work) / name
        self.job: Job | None = None
        self.ending = False
        self.device = ""
        _end_server_of(self.folder)
        shutil.rmtree(self.folder / "output", ignore_errors=True)
        for shared in SHARED:
            link_folder(Path(host.base) / shared, self.folder / shared)
        self.server = ComfyServer(
            self.folder,
            [*HOST_ARGUMENTS, *host.arguments],
            host=host.comfyui,
            python=host.python,
            cpu=host.cpu,
            dies_with_parent=True,
            environment=self.environment,
        )

    def start(self) -> None:
        """Starts the server, again where it runs. Raises: WorkerError where it does not start."""
        for attempt in range(START_TRIES):
            self.server.stop()
            try:
                self.server.start()
                break
            except (ServerError, OSError) as error:
                if attempt == START_TRIES - 1 or self.ending:
                    raise WorkerError(str(error)) from error
        (self.folder / "server.pid").write_text(str(self.server.pid), encoding="utf-8")
        self.device = self.describe()["device"]

    def stop(self) -> None:
        """Ends the server; a row that runs has no record, and runs again another time. Callable from any thread."""
        self.ending = True
        self.server.stop()

    def describe(self) -> dict[str, str]:
        """Version of the host and name of the device."""
        stats = self.server.system_stats()
        devices = [one.get("name", "") for one in stats.get("devices", [])]
        return {"comfyui": stats["system"].get("comfyui_version", ""), "device": devices[0] if devices else ""}

    def prompt_of(self, workflow: dict) -> dict:
        """The API prompt of a workflow in either form. Raises: WorkflowError for a node that the host lacks."""
        return api_of(workflow, self.server.object_info())

    def take_job(self, job: Job) -> None:
        self.job, self.store = job, open_store(job.store)
        self.template = Template(job.prompt, job.assignments, job.options)

    def run_first(self, row: Row, known: Sequence[int]) -> Record | None:
        """Runs a row alone, also one that failed before; None where it was done.

        A failure is not recorded, so that the same command stops at it again. Raises: WorkerError.
        """
        part = _persist(lambda: Part(self.store, Shard(row.index, [row]), known))
        old = part.records.get(row.index)
        if old is not None and old.status == DONE:
            return None
        (record,) = self._run_rows([row])
        if record.status == DONE:
            part.add(record)
            self._save(part)
        self._forget()
        return record

    def run_shard(
        self,
        shard: Shard,
        known: Sequence[int],
        on_record: Callable[[Record], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Record]:
        """Runs the rows of a shard that have no settled record, and saves their records.

        known: first indexes of parts that may hold records of its rows. stopping: asked between rows. Returns what
        another worker recorded of it in this run before that ended. Raises: WorkerError.
        """
        part = _persist(lambda: Part(self.store, shard, known))
        before = part.of_run(shard, self.job.run)
        open_rows = [row for row in shard.rows if is_open(row, part.records.get(row.index), self.job, self.store)]

        def note(record: Record) -> None:
            record.job_run = self.job.run
            part.add(record)
            on_record(record)

        for row in open_rows:
            if isinstance(row, BadRow):
                note(Record(row.index, "", row.place, UNREADABLE, error=row.reason, worker=self.name))
        saved = time.monotonic()
        try:
            for group in self.template.groups(row for row in open_rows if isinstance(row, Row)):
                if stopping():
                    break
                for record in self._run_rows(group):
                    note(record)
                if part.unsaved >= SAVE_ROWS or time.monotonic() - saved > SAVE_SECONDS:
                    self._save(part)
                    saved = time.monotonic()
        except Ending:
            pass
        finally:
            self._save(part)
        self._forget()
        return before

    def _forget(self) -> None:
        with contextlib.suppress(OSError, aiohttp.ClientError):
            self.server.forget()  # else the host's memory grows with every prompt

    def _save(self, part: Part) -> None:
        _persist(part.save)

    # Rows

    def _run_rows(self, rows: list[Row]) -> list[Record]:
        """Records of rows that run together; after a failure each runs alone."""
        started, clock = time.time(), time.perf_counter()
        outcome = self._attempt(rows)
        if outcome.status != DONE and len(rows) > 1:
            return [record for row in rows for record in self._run_rows([row])]
        records = []
        for number, row in enumerate(rows):
            record = Record(row.index, row.name, row.place, outcome.status, row.prompt, row.id)
            record.seed = self.template.seed_of(row)
            record.attempts, record.error, record.node = outcome.attempts, outcome.error, outcome.node
            record.batch, record.batch_index = len(rows), number
            record.worker, record.host, record.device = self.name, socket.gethostname(), self.device
            record.started = round(started, 3)
            for file in outcome.files[number] if outcome.files else []:
                self._commit(record, file)
            record.node_seconds = outcome.node_seconds
            records.append(record)
        for record in records:
            record.seconds = round(time.perf_counter() - clock, 4)
        return records

    def _attempt(self, rows: list[Row]) -> Outcome:
        """Runs a prompt until it has an outcome: again after a server's death, once again when memory was short."""
        prompt, deaths, freed = self.template.fill(rows), 0, False
        outcome = Outcome(FAILED)
        while True:
            outcome.attempts += 1
            try:
                return self._take(rows, self.server.run(prompt, timeout=self.job.timeout), outcome)
            except PromptRefused as error:
                return outcome.end(REFUSED, error)
            except PromptTimeout as error:
                self._recover()
                return outcome.end(TIMEOUT, error)
            except NodeFailed as error:
                short = any(text in str(error).lower() for text in OUT_OF_MEMORY)
                if not short or freed or len(rows) > 1:
                    return outcome.end(FAILED, error)
                freed = True
                self.server.free_memory()
            except (ServerEnded, aiohttp.ClientError, OSError) as error:
                self._replace_server()
                deaths += 1
                if deaths > self.job.retries:
                    return outcome.end(KILLED, error)
            except (ValueError, KeyError) as error:
                return outcome.end(FAILED, f"The host's answer could not be read: {error!r}")

    def _take(self, rows: list[Row], result: Result, outcome: Outcome) -> Outcome:
        """The files that a run saved, those of each row together."""
        own: list[list[Path]] = [[] for _ in rows]
        for node in result.outputs.values():
            saved = [image for image in node.get("images", []) if image["type"] == "output"]
            if len(saved) % len(rows):
                return outcome.end(FAILED, f"{len(rows)} rows gave {len(saved)} pictures")
            each = len(saved) // len(rows)
            for number, image in enumerate(saved):
                path = self.folder / "output" / image["subfolder"] / image["filename"]
                own[number // each].append(path)
        if not own[0]:
            return outcome.end(FAILED, "the run saved no picture")
        seconds = {node: round(value, 4) for node, value in result.seconds.items()}
        outcome.status, outcome.files, outcome.node_seconds = DONE, own, seconds
        return outcome

    def _commit(self, record: Record, file: Path) -> None:
        """Puts a picture into the store under its row's name, and notes it in the record."""
        data = file.read_bytes()
        name = picture_name(record.name, len(record.files), file.suffix)
        _persist(lambda: self.store.put(name, data))
        file.unlink()
        record.files.append(name)
        record.bytes.append(len(data))
        width, height = picture_size(data)
        record.width.append(width)
        record.height.append(height)
        record.sha256.append(hashlib.sha256(data).hexdigest())

    # The server

    def _recover(self) -> None:
        """Waits for an interrupted prompt to end; replaces the server where it does not."""
        deadline = time.monotonic() + GRACE
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                if self.server.is_idle():
                    return
                time.sleep(0.2)
        self._replace_server()

    def _replace_server(self) -> None:
        if self.ending:
            raise Ending
        self.start()


@dataclass
class Outcome:
    """How a run ended; node: that failed. files: of each of its rows."""

    status: str
    attempts: int = 0
    error: str = ""
    node: str = ""
    files: list[list[Path]] = field(default_factory=list)
    node_seconds: dict[str, float] = field(default_factory=dict)

    def end(self, status: str, error: object) -> Outcome:
        self.status, self.error = status, " ".join(str(error).split())[:500]
        self.node = error.node if isinstance(error, NodeFailed) else ""
        return self


def _persist(work: Callable[[], T]) -> T:
    """Reads or writes, again after a while where the store fails. Raises: WorkerError."""
    for attempt in range(STORE_TRIES):
        try:
            return work()
        except StoreError as error:
            if attempt == STORE_TRIES - 1:
                raise WorkerError(str(error)) from error
            time.sleep(2**attempt)


def _end_server_of(folder: Path) -> None:
    """Ends the server that an earlier worker of this folder left, where the system can say that it is one."""
    try:
        pid = int((folder / "server.pid").read_text(encoding="utf-8"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if str(folder).encode() in command:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
