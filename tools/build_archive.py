"""Build the archive that the Comfy Registry hands to users, by the rules of its own command line (comfy-cli 1.23).

    python -m tools.build_archive [--out FILE] [--list]

What git tracks, minus `.comfyignore`, plus what `[tool.comfy] includes` names, tracked or not. Standard library and git
only. Unlike `comfy node pack`, which would pack everything it finds where git cannot answer, this stops there, and it
writes the same bytes for the same files.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IGNORE_FILE = ".comfyignore"
WRITTEN = (1980, 1, 1, 0, 0, 0)  # the zip format's first day, for every file


class ArchiveError(RuntimeError):
    """The archive cannot be built; the message is one sentence with the cure."""


def shipped_files(root: Path = ROOT) -> list[str]:
    """Return the archive's files, sorted, as POSIX paths below `root`.

    Raises: ArchiveError where git cannot say what it tracks, or where a tracked or included file is missing.
    """
    if not (root / "pyproject.toml").is_file():
        raise ArchiveError(f"{root} holds no pyproject.toml; build from the folder of the pack.")
    tracked = _git_files(root, "--cached")
    ignored = set()
    if (root / IGNORE_FILE).is_file():
        ignored = set(_git_files(root, "--cached", "--ignored", f"--exclude-from={IGNORE_FILE}"))
    includes = [name.strip("/") for name in read_includes(root / "pyproject.toml")]
    kept = {name for name in tracked if name not in ignored or _is_below(name, includes)}
    for name in includes:
        kept |= set(_files_below(root, name))
    missing = sorted(name for name in kept if not (root / name).is_file())
    if missing:
        raise ArchiveError(f"{missing[0]} is tracked by git but not there; commit its removal, or restore it.")
    return sorted(kept)


def read_includes(pyproject: Path) -> list[str]:
    """Return `[tool.comfy] includes`, a list written as a Python literal too (Python 3.10 has no TOML parser)."""
    section = re.search(r"^\[tool\.comfy\]$(.*?)(?=^\[|\Z)", pyproject.read_text(encoding="utf-8"), re.S | re.M)
    found = re.search(r"^includes = (\[.*?\])$", section.group(1), re.S | re.M) if section else None
    return ast.literal_eval(found.group(1)) if found else []


def read_version(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """Return the project's version.  Raises: ArchiveError when there is none."""
    found = re.search(r'^version = "([^"]+)"$', pyproject.read_text(encoding="utf-8"), re.M)
    if found is None:
        raise ArchiveError(f"{pyproject.name} names no version; write one into its [project] section.")
    return found.group(1)


def build(out: Path, root: Path = ROOT) -> list[str]:
    """Write the archive of `root` to `out` and return its files.  Raises: ArchiveError as `shipped_files` does."""
    names = shipped_files(root)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, WRITTEN)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, (root / name).read_bytes())
    part.replace(out)
    return names


def _git_files(root: Path, *options: str) -> list[str]:
    try:
        done = subprocess.run(["git", "-C", str(root), "ls-files", "-z", *options], capture_output=True, check=False)
    except FileNotFoundError:
        raise ArchiveError("git is not there to say which files belong to the project; install git.") from None
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise ArchiveError(f"git does not say what it tracks in {root} ({reason}); build from a git checkout.")
    return [name for name in done.stdout.decode("utf-8").split("\0") if name]


def _is_below(name: str, includes: Sequence[str]) -> bool:
    return any(name == include or name.startswith(include + "/") for include in includes)


def _files_below(root: Path, name: str) -> list[str]:
    if (root / name).is_file():
        return [name]
    if not (root / name).is_dir():
        raise ArchiveError(f"[tool.comfy] includes names {name}, which is not there; take it out of pyproject.toml.")
    return [
        Path(folder, file).relative_to(root).as_posix() for folder, _, files in os.walk(root / name) for file in files
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.build_archive", description="Build the registry's archive.")
    parser.add_argument("--out", type=Path, help="the file to write (default: output/sana-native-VERSION.zip)")
    parser.add_argument("--list", action="store_true", help="only name the files and their sizes")
    options = parser.parse_args(arguments)
    try:
        if options.list:
            lines = [f"{(ROOT / name).stat().st_size:>10,}  {name}" for name in shipped_files()]
            sys.stdout.write("\n".join(lines) + "\n")
            return 0
        out = options.out or ROOT / "output" / f"sana-native-{read_version()}.zip"
        names = build(out)
    except ArchiveError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{out}: {len(names)} files, {out.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
