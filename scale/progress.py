"""How a job goes: counts of this run, a line now and then, metrics as lines of JSON, and the limit of failures."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

from .manifest import DONE, TROUBLE, UNREADABLE, Record

WINDOW = 200  # rows that the limit of failures looks back on
LINE_SECONDS, METRIC_SECONDS = 10.0, 60.0
SHOWN_ERRORS = 3


@dataclass(frozen=True)
class Outcome:
    """What a driver is told of a row."""

    status: str
    error: str
    seconds: float
    files: int
    bytes: int

    @classmethod
    def of(cls, record: Record) -> Outcome:
        seconds = record.seconds / record.batch
        return cls(record.status, record.error, seconds, len(record.files), sum(record.bytes))


def read_limit(text: str) -> int:
    """Failures that the last `WINDOW` rows may have, of a share as "5%" or a number. Raises ValueError."""
    try:
        limit = int(float(text[:-1]) * WINDOW / 100) if text.endswith("%") else int(text)
    except ValueError:
        limit = -1
    if not 0 <= limit <= WINDOW:
        raise ValueError(f'--max-failed "{text}" is neither a share such as 5% nor a number of 0 to {WINDOW} rows.')
    return limit


class Progress:
    """Counts outcomes of all workers. stop: set when more than `limit` of the last rows failed.

    earlier: status -> rows of earlier runs, which the lines count too; None where that is not known.
    """

    def __init__(
        self,
        total: int,
        limit: int,
        stop: threading.Event,
        metrics: Path | None = None,
        earlier: Counter | None = None,
    ):
        self.total, self.limit, self.stop, self.metrics = total, limit, stop, metrics
        self.earlier = earlier
        self.counts, self.errors = Counter(), Counter()
        self.files = self.bytes = 0
        self.recent: deque[bool] = deque(maxlen=WINDOW)
        self.seconds: deque[float] = deque(maxlen=1000)
        self.too_many = False
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._line = self._metric = self.started
        self._reported = 0

    def add_first(self, outcome: Outcome) -> None:
        """A row that ran before the others: its seconds count as this run's."""
        self.started -= outcome.seconds
        self._metric = self.started
        self.add(outcome)

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            self.counts[outcome.status] += 1
            self.files += outcome.files
            self.bytes += outcome.bytes
            if outcome.status == UNREADABLE:
                return
            self.recent.append(outcome.status in TROUBLE)
            if outcome.status == DONE:
                self.seconds.append(outcome.seconds)
            elif len(self.errors) < 1000:
                self.errors[outcome.error] += 1
            if sum(self.recent) > self.limit:
                self.too_many = True
                self.stop.set()

    def tick(self, workers: int) -> None:
        """Writes a line and a metric where it is time."""
        now = time.monotonic()
        if now - self._line >= LINE_SECONDS:
            self._line = now
            say(self.line())
        if self.metrics and now - self._metric >= METRIC_SECONDS:
            self._write_metric(workers)

    def close(self, workers: int) -> None:
        """Writes the last metric."""
        if self.metrics:
            self._write_metric(workers)

    def line(self) -> str:
        """How far the job is, and what of that is this run's own."""
        taken = time.monotonic() - self.started
        done = self.counts[DONE]
        rate = f", {done / taken:.2f} pictures/s" if taken > 0 and done else ""
        own = f"{list_counts(self.counts) or 'none yet'}{rate}"
        if self.earlier is None:
            return f"This run: {own}"
        counts = self.earlier + self.counts
        told = f"{list_counts(counts)}; this run: {own}" if self.earlier else own
        return f"{counts.total()} of {counted(self.total, 'row')}: {told}"

    def commonest_errors(self) -> list[str]:
        return [f"{count} times: {error}" for error, count in self.errors.most_common(SHOWN_ERRORS)]

    def _write_metric(self, workers: int) -> None:
        now, total = time.monotonic(), sum(self.counts.values())
        seconds = sorted(self.seconds)
        metric = {
            "time": round(time.time(), 1),
            "seconds": round(now - self.started, 1),
            "rows": total,
            "rows_per_second": round((total - self._reported) / max(now - self._metric, 1e-6), 3),
            "statuses": dict(self.counts),
            "files": self.files,
            "bytes": self.bytes,
            "row_seconds_median": round(seconds[len(seconds) // 2], 3) if seconds else None,
            "row_seconds_p90": round(seconds[len(seconds) * 9 // 10], 3) if seconds else None,
            "workers": workers,
        }
        self._metric, self._reported = now, total
        with contextlib.suppress(OSError), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(metric) + "\n")


def list_counts(counts: Counter) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.most_common())


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def say(text: str) -> None:
    """Writes a line. Neither it nor a metric is worth a run, whose terminal may be gone and whose disk may be full."""
    with contextlib.suppress(OSError):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
