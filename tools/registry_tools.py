"""The Comfy Registry's `comfy` and ComfyUI Manager's `cm-cli`, installed once into an environment of their own.

    python -m tools.registry_tools comfy node validate

Their packages stay out of the host's environment, but see those in it, for Manager is made to run there: start this
with the host's Python. The versions are those of the extra `registry` in pyproject.toml.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from .host import PRIVATE, HostError
from .own_environment import install

FOLDER = PRIVATE / "registry-tools"
COMMANDS = ("comfy", "cm-cli")


def command(name: str) -> Path:
    """Return the path of `comfy` or `cm-cli`, installed if need be (half a minute the first time).

    Raises: HostError when pip cannot install them.
    """
    if name not in COMMANDS:
        raise ValueError(f"{name} is not one of {', '.join(COMMANDS)}.")
    scripts, is_new = install(FOLDER, "registry")
    if is_new:
        own, host = (sysconfig.get_path("purelib", vars={"base": str(base)}) for base in (FOLDER, sys.prefix))
        Path(own, "host.pth").write_text(host + "\n", encoding="utf-8")  # read after what lies in the folder itself
    return scripts / (name + (".exe" if os.name == "nt" else ""))


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment in which both write their settings below `home`, and comfy-cli sends nothing out."""
    home.mkdir(parents=True, exist_ok=True)
    return {**os.environ, "HOME": str(home), "USERPROFILE": str(home), "XDG_CONFIG_HOME": str(home / ".config"),
            "DO_NOT_TRACK": "1", "NO_COLOR": "1", "COLUMNS": "200", **more}  # fmt: skip


def run(name: str, *arguments: str, cwd: Path, env: Mapping[str, str]) -> str:
    """Run one of the commands to its end and return what it says.  Raises: HostError with that when it fails."""
    done = subprocess.run(
        [str(command(name)), *arguments],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise HostError(f"{name} {' '.join(arguments)} failed:\n{done.stdout}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        sys.stderr.write(f"Say which of {', '.join(COMMANDS)} to run, and its arguments.\n")
        return 2
    return subprocess.run([str(command(arguments[0])), *arguments[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
