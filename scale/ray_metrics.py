"""What Ray's metrics say of a job: rows by status, and the seconds of a row. Ray hands them to Prometheus."""

from .manifest import DONE
from .progress import Outcome

BOUNDARIES = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]  # seconds: Sprint on a GPU to 4096 px on a CPU


class RowMetrics:
    """Counts rows of this process; Ray adds up those of all, each with its node and worker."""

    def __init__(self):
        from ray.util.metrics import Counter, Histogram

        self._rows = Counter("sana_scale_rows", "Rows that ended, by status.", tag_keys=("status",))
        self._seconds = Histogram("sana_scale_row_seconds", "Seconds of a row that is done.", BOUNDARIES)

    def add(self, outcome: Outcome) -> None:
        self._rows.inc(tags={"status": outcome.status})
        if outcome.status == DONE:
            self._seconds.observe(outcome.seconds)
