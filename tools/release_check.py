"""Say whether this tree may be published as a version, or what is in the way; docs/publishing.md tells the whole way.

    python -m tools.release_check [TAG]          names every obstacle, exit code 1 when there is one
    python -m tools.release_check --changes      prints the version's section of CHANGELOG.md, for the registry
    python -m tools.release_check --fill         writes pyproject.toml's Repository into the READMEs' clone commands

Standard library only, like everything the publishing job runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from .build_archive import ROOT, ArchiveError, read_version

PLACEHOLDERS = ("example.com", "no-publisher-yet")
UNRELEASED = "(unreleased)"
IMAGES = re.compile(r"Images change: (yes|no)\b")
READMES = ("README.md", "README.zh.md")
CLONE = re.compile(r"^git clone (\S+) (\S+)$", re.MULTILINE)
REPOSITORY = re.compile(r'^Repository = "([^"]+)"', re.MULTILINE)


def obstacles(root: Path = ROOT, tag: str | None = None) -> list[str]:
    """Return one sentence for each thing that forbids to publish `root` (under `tag`, where given)."""
    pyproject = (root / "pyproject.toml").read_text(encoding="utf-8")
    try:
        version = read_version(root / "pyproject.toml")
    except ArchiveError as error:
        return [str(error)]
    found = []
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(f"The version {version} is not of the form 1.2.3; the registry takes no other.")
    if tag is not None and tag != f"v{version}":
        found.append(f"The tag {tag} does not fit the version {version} in pyproject.toml; tag v{version}.")
    settings = [line for line in pyproject.splitlines() if not line.startswith("#")]
    found += [
        f"pyproject.toml still holds the placeholder {word}; write in where the project lives and who publishes it."
        for word in PLACEHOLDERS
        if any(word in line for line in settings)
    ]
    return found + _clone_obstacles(root, pyproject) + _changelog_obstacles(root / "CHANGELOG.md", version)


def fill_clone_commands(root: Path = ROOT) -> None:
    """Write the address under `Repository` in pyproject.toml into the clone command of every README."""
    (address,) = REPOSITORY.findall((root / "pyproject.toml").read_text(encoding="utf-8"))
    for name in READMES:
        text = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(CLONE.sub(rf"git clone {address} \2", text), encoding="utf-8")


def _clone_obstacles(root: Path, pyproject: str) -> list[str]:
    """A README whose clone command names another address than pyproject.toml."""
    address = REPOSITORY.findall(pyproject)
    wrong = [name for name in READMES if _clone_addresses(root / name) != address]
    return [
        f"{name} has no clone command with the Repository of pyproject.toml; run python -m tools.release_check --fill."
        for name in wrong
    ]


def _clone_addresses(readme: Path) -> list[str]:
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    return [address for address, _ in CLONE.findall(text)]


def changes(changelog: Path, version: str) -> str:
    """Return the text under the version's heading, "" when it has none."""
    section = _section(changelog, version)
    return section.partition("\n")[2].strip()


def _section(changelog: Path, version: str) -> str:
    """The heading of a version and all below it, up to the next one."""
    text = changelog.read_text(encoding="utf-8") if changelog.is_file() else ""
    found = re.search(rf"^## {re.escape(version)}(?![\w.]).*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found.group() if found else ""


def _changelog_obstacles(changelog: Path, version: str) -> list[str]:
    section = _section(changelog, version)
    if not section:
        return [f"CHANGELOG.md has no section {version}; say there what changes for users."]
    found = []
    if UNRELEASED in section.partition("\n")[0]:
        found.append(f'CHANGELOG.md calls {version} "{UNRELEASED}"; write the date instead.')
    if not IMAGES.search(section):
        found.append(f'The section {version} of CHANGELOG.md has no line "Images change: yes" or "no"; add it.')
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.release_check", description="May this tree be published?")
    parser.add_argument("tag", nargs="?", help="the git tag that is about to be published, such as v1.2.3")
    parser.add_argument("--changes", action="store_true", help="print the version's section of CHANGELOG.md instead")
    parser.add_argument("--fill", action="store_true", help="write Repository into the READMEs' clone commands instead")
    options = parser.parse_args(arguments)
    if options.fill:
        fill_clone_commands()
        return 0
    if options.changes:
        sys.stdout.write(changes(ROOT / "CHANGELOG.md", read_version()) + "\n")
        return 0
    found = obstacles(tag=options.tag)
    sys.stderr.write("".join(f"{sentence}\n" for sentence in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
