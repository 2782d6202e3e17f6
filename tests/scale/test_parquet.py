"""Prompt files in Parquet: without pyarrow one sentence, with it the rows of other forms, streamed."""

import subprocess
import sys
from pathlib import Path

import pytest
from sana_native.scale.command import parser, settings_of
from sana_native.scale.parquet import read_parquet
from sana_native.tests.support import parquet_files
from sana_native.tools.scale_environment import scale_python


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "P.Parquet").write_bytes(b"PAR1")
    job = ["run", "--workflow", "w.json", "--prompts", str(tmp_path / "P.Parquet"), "--out", str(tmp_path / "out")]
    settings = settings_of(parser().parse_args(job), tmp_path)
    for rows in (settings.rows(), read_parquet(tmp_path / "P.Parquet")):
        with pytest.raises(ValueError, match=r"P\.Parquet needs pyarrow: pip install pyarrow into this"):
            next(rows)


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux writes it")
def test_parquet_gives_the_rows_of_other_forms_streamed(tmp_path):
    """In the command's own environment, as the host has no pyarrow."""
    program = (str(scale_python()), parquet_files.__file__, str(Path(parquet_files.__file__).parents[2]), str(tmp_path))
    for more in ((), ("memory",)):
        done = subprocess.run([*program, *more], capture_output=True, text=True, check=False)
        assert done.stdout == "as it should be\n", done.stderr
