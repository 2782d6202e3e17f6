"""The working tree as if it were committed: a git repository of its own, for what ships from git."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    """Run git in `folder`, untouched by the settings of this user and by a repository around it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    plain |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def commit_tree(folder: Path, tree: Path = ROOT) -> Path:
    """Make `folder` a checkout that holds what `tree` holds now, all of it committed, without what git ignores."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    git(folder, f"--work-tree={tree}", "add", "--all")
    git(folder, "commit", "-q", "--allow-empty", "-m", "the tree under test")
    git(folder, "reset", "-q", "--hard")
    return folder


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Write path -> text below `folder`."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
