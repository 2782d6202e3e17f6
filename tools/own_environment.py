"""Environments of their own for extras of pyproject.toml whose packages the host's must not meet."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .host import HostError, read_extra


def install(folder: Path, extra: str) -> tuple[Path, bool]:
    """Return the folder of an environment's programs, and whether the extra was installed into it just now.

    Raises: HostError when pip cannot install it.
    """
    wanted = read_extra(extra)
    stamp, scripts = folder / "installed", folder / ("Scripts" if os.name == "nt" else "bin")
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return scripts, False
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], extra)
    _run([str(scripts / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted], extra)
    stamp.write_text(digest, encoding="utf-8")
    return scripts, True


def _run(arguments: Sequence[str], extra: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1]
        raise HostError(f"Could not install the extra {extra}: {last}")
