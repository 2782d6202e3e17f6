"""One job from its command to its last record, with either engine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

from .engine import Engine, HandOut, known_parts, shard_rows
from .graph import Options, Template, is_api, read_workflow
from .manifest import (
    DONE,
    FAILED,
    KILLED,
    TIMEOUT,
    UNREADABLE,
    compare_job,
    file_digest,
    fingerprint,
    join_job,
    model_files,
    part_firsts,
    read_job,
    require_job,
    settled_rows,
    shards,
)
from .parquet import SUFFIX as PARQUET
from .parquet import read_parquet
from .progress import Outcome, Progress, counted, list_counts, say
from .rows import BadRow, Row, read_rows
from .store import LocalStore, Store, open_store
from .worker import Job

SHOWN_ROWS = 10  # unreadable ones that are named
ROOT = Path(__file__).absolute().parent.parent


class RunError(RuntimeError):
    """The job cannot begin, or was stopped; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Settings:
    """What a command says of a job, beside where it runs."""

    workflow: Path
    prompts: Path
    out: str
    assignments: tuple[str, ...]
    options: Options
    timeout: float
    retries: int
    limit: int
    limit_text: str
    retry_failed: bool
    force_new_graph: bool
    nvlabs_tags: bool
    models: Path
    verify: bool = False

    def parts(self) -> dict[str, object]:
        """What decides on the pictures, as far as the command alone tells."""
        rows = file_digest(self.prompts) + ("+nvlabs_tags" if self.nvlabs_tags else "")
        return {"rows": rows, "options": asdict(self.options)}

    def command(self, workflow: dict) -> str:
        """Fingerprint of what the command names; equal ones make an equal job in one ComfyUI."""
        return fingerprint(self.parts() | {"workflow": workflow, "assignments": self.assignments})

    def rows(self) -> Iterator[Row | BadRow]:
        read = read_parquet if self.prompts.suffix.lower() == PARQUET else read_rows
        return read(self.prompts, self.nvlabs_tags)


@dataclass
class Survey:
    """What a first reading of the prompt file finds: the number of rows, the first that can run, unreadable ones."""

    total: int = 0
    bad_total: int = 0
    first: Row | None = None
    bad: list[BadRow] = field(default_factory=list)
    samples: dict[str, Row] = field(default_factory=dict)  # a row for each setting that rows give

    @classmethod
    def of(cls, rows: Iterator[Row | BadRow]) -> Survey:
        found = cls()
        for row in rows:
            found.total += 1
            if isinstance(row, BadRow):
                found.bad_total += 1
                found.bad += [row] if len(found.bad) < SHOWN_ROWS else []
                continue
            found.first = found.first or row
            for name in ("negative", "width", "aspect", "seed", "steps", "cfg"):
                if name not in found.samples and getattr(row, name) not in (None, ""):
                    found.samples[name] = row
        return found

    def tell(self, name: str) -> None:
        """Says what is left out. Raises: RunError where nothing is left."""
        for row in self.bad:
            say(f"Unreadable: {row}")
        if self.bad_total > len(self.bad):
            say(f"Unreadable: {self.bad_total - len(self.bad)} more rows")
        if self.first is None:
            raise RunError(f"{name} holds no prompt that can be read.")


def run_job(settings: Settings, engine_of, check: bool = False) -> int:
    """Runs a job and returns the command's exit code; with check its first row alone, into the same store.

    engine_of: makes the engine, when all that can be told without it is in order.
    """
    workflow = read_workflow(settings.workflow)
    survey = Survey.of(settings.rows())
    survey.tell(settings.prompts.name)
    store = open_store(settings.out)
    # Before a server starts, which takes its time.
    if is_api(workflow):
        Template(workflow, settings.assignments, settings.options)
    if not settings.force_new_graph:
        compare_job(store, settings.parts())
    with locked(store), stop_on_signals() as signals:
        if isinstance(store, LocalStore):
            store.prepare()
        earlier = None if check else earlier_rows(settings, survey, store)
        finished = earlier is not None and earlier.total() >= survey.total and not settings.force_new_graph
        if finished and is_joined(settings, workflow, store):
            tell_finished(settings, earlier)
            return 0
        engine = engine_of()
        signals.listen()  # again: Ray puts handlers of its own in place
        try:
            job, own = make_job(settings, workflow, survey, store, engine)
            known = part_firsts(store)
            first = run_canary(engine, job, survey.first, known) if check or not known else None
            if check:
                return 0
            require_job(store, own)
            signals.wait_for_rows = True
            return run_rows(settings, survey, store, engine, job, signals.stop, first, earlier)
        finally:
            engine.close()


def earlier_rows(settings: Settings, survey: Survey, store: Store) -> Counter | None:
    """Status -> rows that earlier runs have recorded and this one leaves; None where it looks for their pictures."""
    if settings.verify:
        return None
    earlier = settled_rows(store, survey.total, settings.retry_failed)
    # Those that can be read by now run.
    earlier[UNREADABLE] = min(earlier[UNREADABLE], survey.bad_total)
    return +earlier


def is_joined(settings: Settings, workflow: dict, store: Store) -> bool:
    """Whether the store's job is that of the same command."""
    job = read_job(store)
    return job is not None and job["command"] == settings.command(workflow)


def tell_finished(settings: Settings, earlier: Counter) -> None:
    """Says that nothing is left to run, for which no server has to start."""
    total = earlier.total()
    if earlier[DONE] == total:
        say("The only row is done already." if total == 1 else f"All {total} rows are done already.")
        return
    retry = not settings.retry_failed and any(earlier[status] for status in (FAILED, TIMEOUT, KILLED))
    cure = "no option runs refused rows again"
    if earlier[UNREADABLE]:
        cure = "correct the lines that cannot be read, and go on with --force-new-graph"
    cure = "--retry-failed tries rows again that failed" if retry else cure
    say(f"Nothing is left to run, {list_counts(earlier)}: {cure}.")


def make_job(settings: Settings, workflow: dict, survey: Survey, store: Store, engine: Engine) -> tuple[Job, str]:
    """The job, entered into its store, and its fingerprint. Raises: WorkflowError, JobError."""
    prompt = engine.prompt_of(workflow)
    template = Template(prompt, settings.assignments, settings.options)
    for name in template.unused(survey.samples.values()):
        say(f"Ignored: rows give {name}, and no --set takes {{{name}}}.")
    if not template.sets_seed:
        say("No --set takes {seed}: every row is drawn with the workflow's own seed.")
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    parts = settings.parts() | {
        "workflow": template.digest(),
        "models": model_files(template.prompt, settings.models),
        "versions": {"comfyui": engine.describe()["comfyui"], "sana-native": version[1] if version else ""},
    }
    own = join_job(store, parts, survey.total, settings.force_new_graph, settings.command(workflow))
    say(f"Job {own}: {counted(survey.total, 'row')}, {counted(engine.workers, 'worker')}, into {store.url}")
    options = (settings.options, store.address, settings.timeout, settings.retries, settings.retry_failed)
    return Job(prompt, settings.assignments, *options, settings.verify, uuid4().hex[:8]), own


def run_canary(engine: Engine, job: Job, row: Row, parts: list[int]) -> Outcome | None:
    """Runs the first row; None where it was done before. Raises: RunError if it fails, before anything else starts."""
    outcome = engine.canary(job, row, known_parts(row.index, row.index, parts))
    if outcome is None:
        say("The first row is done already.")
    elif outcome.status != DONE:
        raise RunError(
            f"The first row ({row.place}) is {outcome.status}, and nothing else was started: {outcome.error}"
        )
    else:
        say(f"The first row ({row.place}) is done in {outcome.seconds:.1f} s.")
    return outcome


def run_rows(
    settings: Settings,
    survey: Survey,
    store: Store,
    engine: Engine,
    job: Job,
    stop: threading.Event,
    first: Outcome | None,
    earlier: Counter | None,
) -> int:
    """Runs all rows and returns the command's exit code.

    first: what became of the canary, which counts too. earlier: of `earlier_rows`.
    """
    metrics = store.root if isinstance(store, LocalStore) else work_folder(store)
    progress = Progress(survey.total, settings.limit, stop, metrics / "metrics.jsonl", earlier)
    if first is not None:
        progress.add_first(first)
    size = shard_rows(survey.total, engine.workers)
    engine.run(job, HandOut(shards(settings.rows(), size), part_firsts(store)), progress, stop)
    progress.close(engine.workers)
    say(progress.line())
    if progress.too_many:
        errors = " ".join(f"({error})" for error in progress.commonest_errors())
        raise RunError(f"More than {settings.limit_text} of the last rows failed; the commonest errors: {errors}")
    if stop.is_set():
        say("Stopped: the same command goes on.")
        return 130
    failed = sum(progress.counts.values()) - progress.counts[DONE]
    for error in progress.commonest_errors():
        say(error)
    return 1 if failed else 0


class Signals:
    """SIGINT and SIGTERM: the first lets running rows end, where rows run; else it ends the run at once, as a second.

    stop: set when the run shall end.
    """

    def __init__(self):
        self.stop, self.wait_for_rows = threading.Event(), False

    def listen(self) -> dict:
        """Takes the signals, and returns the handlers that were there; none where this is no main thread."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {one: signal.signal(one, self._take) for one in (signal.SIGINT, signal.SIGTERM)}

    def _take(self, *_: object) -> None:
        at_once = self.stop.is_set() or not self.wait_for_rows
        self.stop.set()
        if at_once:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Signals]:
    """Signals that are heard inside, where this is the main thread."""
    signals = Signals()
    old = signals.listen()
    try:
        yield signals
    finally:
        for one, handler in old.items():
            signal.signal(one, handler)


def folder_name(store: Store) -> str:
    """Of the folder of a store's workers, so that those of two jobs are apart."""
    return hashlib.sha256(store.url.encode()).hexdigest()[:12]


def work_folder(store: Store) -> Path:
    """A folder of this machine for the workers of a store, the same in every run of the job."""
    user = f"sana-scale-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder = Path(tempfile.gettempdir()) / user / folder_name(store)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(store: Store) -> Iterator[None]:
    """Keeps a second run of this machine out of the same store. Raises: RunError."""
    with open(work_folder(store) / "lock", "w", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError:
            raise RunError(f"Another run writes into {store.url}: wait for its end, or stop it.") from None
        yield
