"""What Ray hands to Prometheus after outcomes of two processes; run as a program with the Python of Ray's environment.

python ray_metrics_probe.py ROOT
"""

import socket
import sys
import time
import types
import urllib.request
from pathlib import Path

SECONDS = 90
ROWS, SECONDS_OF_ROWS = "ray_sana_scale_rows_total", "ray_sana_scale_row_seconds"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metrics_at(port: int) -> list[str]:
    """Lines of our metrics that Ray's agent answers with; none before it answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return [line for line in answer.read().decode().splitlines() if line.startswith("ray_sana_scale")]
    except OSError:
        return []


def value_of(lines: list[str], name: str, label: str = "") -> float:
    """Sum over processes."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{") and label in line)


def main() -> None:
    import ray
    from sana_native.scale.progress import Outcome
    from sana_native.scale.ray_engine import stage_pack
    from sana_native.scale.ray_metrics import RowMetrics

    port, stage = free_port(), stage_pack()
    ray.init(num_cpus=1, include_dashboard=False, _metrics_export_port=port, log_to_driver=False,
             runtime_env={"py_modules": [str(stage)]})  # fmt: skip

    @ray.remote
    def count() -> None:
        metrics = RowMetrics()
        for status, seconds in (("done", 0.15), ("done", 3.0), ("failed", 1.0)):
            metrics.add(Outcome(status, "", seconds, 1, 10))
        time.sleep(SECONDS)  # a process that ends takes its counts along

    reference = count.remote()
    RowMetrics().add(Outcome("killed_worker", "", 0.0, 0, 0))
    deadline, found = time.monotonic() + SECONDS, {}
    wanted = {"done": 2, "failed": 1, "killed_worker": 1, "below 0.2 s": 1, "seconds": 2}
    while found != wanted and time.monotonic() < deadline:
        time.sleep(1)
        lines = metrics_at(port)
        found = {status: value_of(lines, ROWS, f'status="{status}"') for status in ("done", "failed", "killed_worker")}
        found |= {"below 0.2 s": value_of(lines, SECONDS_OF_ROWS + "_bucket", 'le="0.2"')}
        found |= {"seconds": value_of(lines, SECONDS_OF_ROWS + "_count")}
    ray.cancel(reference, force=True)
    ray.shutdown()
    assert found == wanted, (found, lines)


if __name__ == "__main__":
    sys.modules["sana_native"] = types.ModuleType("sana_native")
    sys.modules["sana_native"].__path__ = [str(Path(sys.argv[1]))]
    main()
    sys.stdout.write("as it should be\n")
