"""Rows that end are counted where Ray hands its metrics out."""

import subprocess
from pathlib import Path

import pytest
from sana_native.tests.support import ray_metrics_probe
from sana_native.tools.scale_environment import scale_python


@pytest.mark.heavy
def test_ray_counts_rows_of_all_processes_by_status_and_their_seconds():
    """In the command's own environment, as Prometheus would read them from Ray's agent."""
    program = Path(ray_metrics_probe.__file__)
    command = [str(scale_python()), str(program), str(program.parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "as it should be\n", done.stderr
