"""Engines hand shards to workers. The local one has a thread and a server for each worker of this machine.

`ray_engine.py` is the other one; both share the hand-out, which takes shards back from workers that ended.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from .manifest import Shard
from .progress import Outcome, Progress
from .rows import Row
from .worker import HostSettings, Job, Worker, WorkerError

SHARD_ROWS = 256  # at most
FEWEST_ROWS, SHARDS_EACH = 8, 4  # a small job still has some shards for each worker
STOP_SECONDS = 30.0  # for running rows to end


def shard_rows(total: int, workers: int) -> int:
    """Rows of a shard for a job of that size."""
    return max(min(SHARD_ROWS, total // max(workers * SHARDS_EACH, 1)), FEWEST_ROWS)


def known_parts(first: int, last: int, firsts: Sequence[int]) -> list[int]:
    """Of the sorted first indexes of all parts those that may hold records of rows from first to last."""
    return list(firsts[bisect_right(firsts, first - SHARD_ROWS) : bisect_right(firsts, last)])


class HandOut:
    """Shards one by one, those that came back first; with each the parts that may hold records of its rows."""

    def __init__(self, shards: Iterator[Shard], firsts: Sequence[int]):
        self._shards, self._firsts = shards, sorted(firsts)
        self._returned: deque[Shard] = deque()
        self._lock = threading.Lock()

    def take(self) -> tuple[Shard, list[int]] | None:
        """None at the end."""
        with self._lock:
            shard = self._returned.popleft() if self._returned else next(self._shards, None)
        return None if shard is None else (shard, self.known(shard))

    def give_back(self, shard: Shard) -> None:
        """Its own part may be there now, or one of an earlier loss."""
        with self._lock:
            self._returned.append(shard)
            self._firsts = sorted({*self._firsts, shard.first})

    def known(self, shard: Shard) -> list[int]:
        return known_parts(shard.first, shard.rows[-1].index, self._firsts)

    @property
    def has_returned(self) -> bool:
        return bool(self._returned)


class Engine(Protocol):
    """Workers, however they are run."""

    workers: int

    def prompt_of(self, workflow: dict) -> dict: ...

    def describe(self) -> dict[str, str]: ...

    def canary(self, job: Job, row: Row, known: list[int]) -> Outcome | None: ...

    def run(self, job: Job, hand_out: HandOut, progress: Progress, stop: threading.Event) -> None: ...

    def close(self) -> None: ...


class LocalEngine:
    """Workers of this machine, without Ray. devices: of which each worker sees one, in turn; none on a CPU."""

    def __init__(self, host: HostSettings, workers: int, devices: Sequence[str] = ()):
        self.host, self.workers, self.devices = host, workers, devices
        self._running: dict[int, Worker] = {}
        self._errors: list[str] = []
        self._lock = threading.Lock()

    def _worker(self, number: int) -> Worker:
        """The worker of a number, started by the thread that asks first."""
        if number not in self._running:
            worker = Worker(f"worker-{number}", self.host, server_environment(number, self.workers, self.devices))
            self._running[number] = worker
            worker.start()
        return self._running[number]

    def prompt_of(self, workflow: dict) -> dict:
        return self._worker(0).prompt_of(workflow)

    def describe(self) -> dict[str, str]:
        return self._worker(0).describe()

    def canary(self, job: Job, row: Row, known: list[int]) -> Outcome | None:
        worker = self._worker(0)
        worker.take_job(job)
        record = worker.run_first(row, known)
        return record and Outcome.of(record)

    def run(self, job: Job, hand_out: HandOut, progress: Progress, stop: threading.Event) -> None:
        """Raises: WorkerError when no worker is left for the rows that are."""
        arguments = (job, hand_out, progress, stop)
        threads = [threading.Thread(target=self._work, args=(n, *arguments)) for n in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            self._watch(threads, progress, stop)
        except KeyboardInterrupt:
            self.close()
            for thread in threads:
                thread.join()  # saves the records of its rows
            raise
        if hand_out.has_returned and not stop.is_set():
            raise WorkerError(self._errors[0])

    def _watch(self, threads: Sequence[threading.Thread], progress: Progress, stop: threading.Event) -> None:
        """Waits for the threads; ends the servers of those that do not end when they shall stop."""
        deadline = None
        while any(thread.is_alive() for thread in threads):
            threads[-1].join(0.2) if threads[-1].is_alive() else time.sleep(0.2)
            progress.tick(sum(thread.is_alive() for thread in threads))
            if stop.is_set():
                deadline = deadline or time.monotonic() + STOP_SECONDS
                if time.monotonic() > deadline:
                    self.close()

    def _work(self, number: int, job: Job, hand_out: HandOut, progress: Progress, stop: threading.Event) -> None:
        taken = hand_out.take()
        try:
            if taken is None:
                return
            worker = self._worker(number)
            worker.take_job(job)
            while taken is not None and not stop.is_set():
                worker.run_shard(*taken, lambda record: progress.add(Outcome.of(record)), stop.is_set)
                taken = hand_out.take()
        except Exception as error:  # noqa: BLE001  (whatever it was, the shard must not be lost)
            self._errors.append(str(error) if isinstance(error, WorkerError) else repr(error))
            hand_out.give_back(taken[0])
        finally:
            if number in self._running:
                self._running[number].stop()

    def close(self) -> None:
        """Ends all servers."""
        for worker in list(self._running.values()):
            worker.stop()


def server_environment(number: int, workers: int, devices: Sequence[str]) -> dict[str, str]:
    """The device of a worker's server; without one its share of the cores, as more threads than cores spin."""
    if devices:
        return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(cores // workers, 1))}
