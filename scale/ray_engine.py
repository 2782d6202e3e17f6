"""Workers as Ray actors: on every GPU of a cluster, or on this machine.

Ray starts and restarts processes on machines and carries shards to them; what is drawn, and what counts as done, is
decided in `worker.py`. Ray's own retries are off, because they would run a deadly row for ever.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

from .engine import STOP_SECONDS, HandOut, server_environment
from .graph import Template
from .manifest import KILLED, Part, Record, Shard, part_firsts
from .progress import Outcome, Progress, say
from .ray_metrics import RowMetrics
from .rows import BadRow, Row
from .store import open_store
from .worker import HostSettings, Job, Worker, WorkerError, is_open

IN_FLIGHT = 2  # shards of an actor: one runs, the next is there already
WAVE, WAVE_SECONDS = 50, 1.0  # actors that start at once, to spare the models' disk
CALL_SECONDS = 1.0  # between calls to an actor that starts again
START_TRIES = 3  # of a cluster of its own
FAILED_STARTS = 3  # in a row, after which an actor is given up
SHIPPED = ("scale", "tools", "models/sana/resolution.py")  # of the pack, to every machine


class Actor:
    """A worker in a process of its own; Ray starts it anew where that ends."""

    def __init__(self, name: str, host: HostSettings, environment: dict[str, str]):
        self.worker, self.metrics = Worker(name, host, environment), RowMetrics()
        self.worker.start()

    def prompt_of(self, workflow: dict) -> dict:
        return self.worker.prompt_of(workflow)

    def describe(self) -> dict[str, str]:
        return self.worker.describe()

    def run_first(self, job: Job, row: Row, known: list[int]) -> Outcome | None:
        self.worker.take_job(job)
        record = self.worker.run_first(row, known)
        return record and self._count(record)

    def run_shard(self, job: Job, shard: Shard, known: list[int]) -> list[Outcome]:
        """Outcomes of the rows that ran, here or in an actor that ended; counts alone travel, never pictures.

        Ends between rows when it is canceled.
        """
        import ray

        canceled = ray.get_runtime_context().is_canceled
        if self.worker.job != job:
            self.worker.take_job(job)
        outcomes: list[Outcome] = []
        before = self.worker.run_shard(shard, known, lambda record: outcomes.append(self._count(record)), canceled)
        return [*map(Outcome.of, before), *outcomes]

    def _count(self, record: Record) -> Outcome:
        outcome = Outcome.of(record)
        self.metrics.add(outcome)
        return outcome


class RayEngine:
    """Actors on a Ray cluster.

    workers: how many, 0 for as many as the cluster's GPUs take. gpus_each: of an actor, where there are GPUs. address:
    of a cluster, "local" to start one on this machine.
    """

    def __init__(self, host: HostSettings, workers: int, gpus_each: float, address: str):
        import ray

        self.ray = ray
        stage = stage_pack()
        try:
            self._join(address, workers, stage)
        finally:
            shutil.rmtree(stage.parent)
        gpus = ray.cluster_resources().get("GPU", 0)
        self.host, self.workers, self.gpus_each = share_out(host, workers, gpus_each, gpus)
        if self.host.cpu and not host.cpu:
            say("The cluster has no GPU: its workers compute on CPUs.")
        self.actors: dict[int, object] = {}
        self.start_actors(1)

    def _join(self, address: str, workers: int, stage: Path) -> None:
        """Joins a cluster, or starts one, again where a busy machine was too slow for it. Raises: WorkerError."""
        own = {"num_cpus": max(workers, 2) + 1, "include_dashboard": False} if address == "local" else {}
        options = {"runtime_env": {"py_modules": [str(stage)]}, "log_to_driver": False, "logging_level": "ERROR"}
        for attempt in range(1, START_TRIES + 1):
            try:
                self.ray.init(address=address, **options, **own)
                return
            except ConnectionError as error:
                raise WorkerError(
                    f"There is no Ray cluster at {address}: start one, or take --address local."
                ) from error
            except Exception as error:  # noqa: BLE001  (Ray raises that itself where a node does not start)
                self.ray.shutdown()
                if not own or attempt == START_TRIES:
                    raise WorkerError(f"Ray does not start: {reason_of(error)}") from error

    def start_actors(self, count: int) -> None:
        """Starts actors up to a count."""
        for number in range(len(self.actors), count):
            options = {"num_cpus": 1, "num_gpus": self.gpus_each, "max_restarts": -1, "max_task_retries": 0}
            environment = {} if self.gpus_each else server_environment(number, self.workers, ())
            remote = self.ray.remote(Actor).options(**options)
            self.actors[number] = remote.remote(f"ray-{number}", self.host, environment)

    def prompt_of(self, workflow: dict) -> dict:
        return self._get(self.actors[0].prompt_of.remote(workflow))

    def describe(self) -> dict[str, str]:
        return self._get(self.actors[0].describe.remote())

    def canary(self, job: Job, row: Row, known: list[int]) -> Outcome | None:
        return self._get(self.actors[0].run_first.remote(job, row, known))

    def _get(self, reference):
        """What a call of the first actor returns. Raises: WorkerError where it ended."""
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return self.ray.get(reference)
        except RayTaskError as error:
            raise error.cause or WorkerError(str(error)) from None
        except RayActorError as error:
            raise WorkerError(f"The first worker ended: {reason_of(error)}") from error

    def run(self, job: Job, hand_out: HandOut, progress: Progress, stop: threading.Event) -> None:
        """Raises: WorkerError when no actor is left for the rows that are."""
        _Run(self, job, hand_out, progress, stop).run()

    def close(self) -> None:
        """Ends all actors; their servers end with them."""
        for actor in self.actors.values():
            with contextlib.suppress(Exception):  # noqa: BLE001  (Ray raises what it likes for an actor that is gone)
                self.ray.kill(actor)
        self.ray.shutdown()


class _Run:
    """Shards in flight: which actor has which, and what happens to them when it ends.

    An actor gets shards once it has answered, so that one that starts again is not taken for one that a row ended.
    """

    def __init__(self, engine: RayEngine, job: Job, hand_out: HandOut, progress: Progress, stop: threading.Event):
        self.engine, self.ray, self.job = engine, engine.ray, job
        self.hand_out, self.progress, self.stop = hand_out, progress, stop
        self.job_reference = self.ray.put(job)
        self.flying: dict[object, tuple[int, Shard]] = {}
        self.queues: dict[int, deque] = {}  # of actors that answered
        self.calls: dict[object, int] = {}  # to those that have not
        self.call_again: dict[int, float] = {}
        self.failed_starts: Counter = Counter()
        self.last_error = ""
        self._wave = 0.0

    def run(self) -> None:
        deadline = None
        while True:
            if not self.stop.is_set():
                self._start_wave()
                self._fill()
            elif deadline is None:
                deadline = time.monotonic() + STOP_SECONDS
                for reference in self.flying:
                    self.ray.cancel(reference)
            if not self.flying and (self.stop.is_set() or not self._waits()):
                break
            if deadline and time.monotonic() > deadline:
                break
            self._collect()
            self.progress.tick(len(self.queues))
        if self.hand_out.has_returned and not self.stop.is_set():
            raise WorkerError(self.last_error)

    def _start_wave(self) -> None:
        """Starts the next actors, and calls those that are to answer."""
        started, now = len(self.engine.actors), time.monotonic()
        if started < self.engine.workers and now >= self._wave:
            self.engine.start_actors(min(started + WAVE, self.engine.workers))
            self._wave = now + WAVE_SECONDS
        called = set(self.calls.values())
        for number, actor in self.engine.actors.items():
            given_up = self.failed_starts[number] >= FAILED_STARTS
            if number in self.queues or number in called or given_up or now < self.call_again.get(number, 0.0):
                continue
            self.calls[actor.describe.remote()] = number

    def _waits(self) -> bool:
        """Whether shards wait for an actor that starts."""
        left = any(self.failed_starts[number] < FAILED_STARTS for number in self.engine.actors)
        return left and (self.hand_out.has_returned or not self.queues)

    def _fill(self) -> None:
        """Gives every actor its next shards, a first one to each before a second."""
        for depth in range(IN_FLIGHT):
            for number, queue in self.queues.items():
                if len(queue) > depth:
                    continue
                taken = self.hand_out.take()
                if taken is None:
                    return
                reference = self.engine.actors[number].run_shard.remote(self.job_reference, *taken)
                self.flying[reference] = number, taken[0]
                queue.append(reference)

    def _collect(self) -> None:
        waiting = [*self.flying, *self.calls]
        if not waiting:
            time.sleep(0.2)
            return
        ready, _ = self.ray.wait(waiting, num_returns=1, timeout=0.5)
        for reference in ready:
            if reference in self.calls:
                self._take_answer(reference)
            else:
                self._take_shard(reference)

    def _take_answer(self, reference) -> None:
        from ray.exceptions import ActorUnavailableError, RayActorError

        number = self.calls.pop(reference)
        try:
            self.ray.get(reference)
            self.queues[number] = deque()
            self.failed_starts[number] = 0
        except RayActorError as error:
            self.call_again[number] = time.monotonic() + CALL_SECONDS
            self.last_error = reason_of(error)
            self.failed_starts[number] += not isinstance(error, ActorUnavailableError)

    def _take_shard(self, reference) -> None:
        from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError

        number, shard = self.flying.pop(reference)
        queue = self.queues.get(number, deque())
        was_running = bool(queue) and queue[0] == reference
        with contextlib.suppress(ValueError):
            queue.remove(reference)
        try:
            for outcome in self.ray.get(reference):
                self.progress.add(outcome)
        except TaskCancelledError:
            pass  # the run stops, and what ran is recorded
        except RayTaskError as error:
            if not isinstance(error.cause, WorkerError):
                raise
            self.failed_starts[number] = FAILED_STARTS  # its server does not start, or the store takes nothing
            self._lose(number, shard, False, str(error.cause))
        except RayActorError as error:
            self._lose(number, shard, was_running, reason_of(error))

    def _lose(self, number: int, shard: Shard, was_running: bool, reason: str) -> None:
        """Puts a shard back; one that ended several workers in halves, until the row is found that does."""
        self.last_error = reason
        for other in self.queues.pop(number, ()):
            self.hand_out.give_back(self.flying.pop(other)[1])
        shard.losses += was_running
        if shard.losses <= self.job.retries:
            self.hand_out.give_back(shard)
        elif len(shard) > 1:
            for half in shard.halves():
                half.losses = self.job.retries
                self.hand_out.give_back(half)
        else:
            self._record_death(shard)

    def _record_death(self, shard: Shard) -> None:
        """Records a row that ended its worker each time, unless it was recorded before that ended."""
        store, row = open_store(self.job.store), shard.rows[0]
        part = Part(store, shard, self.hand_out.known(shard) or part_firsts(store))
        for record in part.of_run(shard, self.job.run):
            self.progress.add(Outcome.of(record))
        if isinstance(row, BadRow) or not is_open(row, part.records.get(row.index), self.job, store):
            return
        record = Record(row.index, row.name, row.place, KILLED, row.prompt, row.id, attempts=shard.losses)
        record.error, record.started = "The worker ended each time it ran this row.", time.time()
        record.job_run = self.job.run
        record.seed = Template(self.job.prompt, self.job.assignments, self.job.options).seed_of(row)
        part.add(record)
        part.save()
        self.progress.add(Outcome.of(record))
        RowMetrics().add(Outcome.of(record))


def share_out(host: HostSettings, workers: int, gpus_each: float, gpus: float) -> tuple[HostSettings, int, float]:
    """Host, workers and GPUs of each for a cluster with so many GPUs, whatever the driver's machine has.

    Raises: WorkerError where that leaves no worker.
    """
    if host.cpu or not gpus:
        if not workers:
            why = "--cpu leaves the GPUs alone" if host.cpu else "The cluster has no GPU"
            raise WorkerError(f"{why}: say with --workers how many workers to start on CPUs.")
        return replace(host, cpu=True), workers, 0.0
    count = workers or int(gpus / gpus_each)
    if not count:
        raise WorkerError(f"The cluster has {gpus:g} GPUs, fewer than one worker takes: lower --gpus-per-worker.")
    return host, count, gpus_each


def stage_pack() -> Path:
    """A folder of the modules that workers need, importable as `sana_native`, to be shipped by Ray."""
    root, stage = Path(__file__).absolute().parent.parent, Path(tempfile.mkdtemp(prefix="sana-scale-")) / "sana_native"
    for name in SHIPPED:
        source, target = root / name, stage / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True)
            shutil.copyfile(source, target)
    for folder in (stage, stage / "models", stage / "models" / "sana"):
        (folder / "__init__.py").touch()
    return stage


def reason_of(error: Exception) -> str:
    """The first line of what Ray says that tells something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "WorkerError:" in line] or lines or [type(error).__name__]
    return causes[-1 if "WorkerError:" in causes[-1] else 0]
