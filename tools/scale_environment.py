"""Ray and pyarrow for `scale run --engine ray`, installed once into an environment of their own, and run there.

    python -m tools.scale_environment scale run --workflow w.json --prompts p.jsonl --out DIR --set ... --engine ray

The host's environment stays as it is: workers start the host's server with `--python`, which is the Python that runs
this command unless it is given. The versions are those of the extra `scale` in pyproject.toml.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .host import PRIVATE, HostError
from .own_environment import install

FOLDER = PRIVATE / "scale"


def scale_python() -> Path:
    """Return the environment's Python, installed if need be (a minute the first time).

    Raises: HostError when pip cannot install it.
    """
    scripts, _ = install(FOLDER, "scale")
    return scripts / ("python.exe" if os.name == "nt" else "python")


def main(arguments: Sequence[str]) -> int:
    try:
        command = [str(scale_python()), *arguments]
    except HostError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    os.environ.setdefault("COMFYUI_PYTHON", sys.executable)
    if os.name != "nt":
        os.execv(command[0], command)  # signals reach the command itself, which has workers to stop
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
