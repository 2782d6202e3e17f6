"""What a bare GPU machine lacks to measure the pack: a packed ComfyUI, diffusers and a few packages, without network.

    make gpu-kit                                          # builds .kit/ from the prepared environment
    python3 -m tools.gpu_kit --run [options of benchmarks.gpu]     # on that machine: this tree with .kit/ in it

The machine brings torch, transformers and the packages of PRESENT; the kit brings what else is imported, as installed
here, without compiled libraries where Python does the same. `.kit/manifest.json` lists it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from .host import ROOT, HostError, extract_folder

KIT = ROOT / ".kit"
ARCHIVE, MANIFEST, UNPACKED = "kit.tar.gz", "manifest.json", "unpacked"
TOP, HOST_PLACE, SITE_PLACE = "kit", "host", "site"  # folders in the archive
SIZE_LIMIT = 30e6  # bytes

# What a machine for such work has.
PRESENT = (
    *("torch", "torchvision", "torchaudio", "triton", "transformers", "tokenizers", "sentencepiece", "safetensors"),
    *("einops", "psutil", "tqdm", "scipy", "pyyaml", "aiohttp", "pillow", "requests", "numpy"),
)
# What the host's networks, the pack's nodes and the other implementations import beside that.
NEEDED = ("comfy-aimdo", "comfy-kitchen", "torchsde", "diffusers", "accelerate", "protobuf")
# Both have forms in Python too. Most of the 166 MB of the first are libraries for one Python and one kind of card.
WITHOUT_LIBRARIES = ("comfy-kitchen", "protobuf")
LIBRARIES = (".so", ".pyd", ".dylib", ".dll", ".cu", ".cuh", ".hip")
HOST_FOLDERS = ("comfy", "comfy_extras", "comfy_api", "comfy_execution", "comfy_config", "utils")
TOKENIZER_DATA = {"tokenizer.json", "vocab.json", "merges.txt"}
# Imported by the host for video only, and 36 MB: any name that is asked of its modules is an empty class.
STUBBED = "av"
STUB = '''"""Stands in for PyAV, which no measurement needs."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
'''


class KitError(RuntimeError):
    """The kit cannot be built or used; the message is one sentence with the cure."""


# Building


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: Iterable[str], everywhere: bool) -> set[str]:
    """Normalized names of installed distributions: those named and all that they require, extras aside.

    everywhere: also what is required on other systems and Pythons only. Raises: KitError for a name not installed.
    """
    from packaging.requirements import Requirement

    found: set[str] = set()
    asked = {normalized(name) for name in names}
    waiting = list(asked)
    while waiting:
        name = waiting.pop()
        if name in found or not (is_installed(name) or name in asked):
            continue
        if not is_installed(name):
            raise KitError(f"{name} is not installed here: build the kit with `make gpu-kit`.")
        found.add(name)
        for requirement in map(Requirement, metadata.requires(name) or ()):
            marker = requirement.marker
            is_extra = marker is not None and "extra" in str(marker)
            if not is_extra and (everywhere or marker is None or marker.evaluate()):
                waiting.append(normalized(requirement.name))
    return found


def lacking() -> list[str]:
    """Normalized names of the distributions that the machine may lack."""
    there = closure([name for name in PRESENT if is_installed(name)], everywhere=False)
    return sorted(closure(NEEDED, everywhere=True) - there)


def is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def package_files(name: str) -> Iterator[tuple[str, Path]]:
    """Path below site-packages and source of every file of a distribution that the kit takes along."""
    skipped = LIBRARIES if name in WITHOUT_LIBRARIES else ()
    for file in metadata.distribution(name).files or ():
        outside = file.is_absolute() or ".." in file.parts
        if not outside and "__pycache__" not in file.parts and file.suffix not in skipped:
            yield file.as_posix(), Path(file.locate())


def host_files(host: Path) -> Iterator[tuple[str, Path]]:
    """Path and source of every file of the host that is imported or read."""
    yield from ((path.name, path) for path in sorted(host.glob("*.py")))
    for folder in HOST_FOLDERS:
        for path in sorted((host / folder).rglob("*")):
            taken = path.is_file() and "__pycache__" not in path.parts and path.suffix != ".model"
            if taken and path.name not in TOKENIZER_DATA:
                yield path.relative_to(host).as_posix(), path


def stub_files(sources: Iterable[Path]) -> list[str]:
    """Modules of the stub that these Python files import, as paths below site-packages."""
    pattern = re.compile(rf"^\s*(?:from|import) ({STUBBED}(?:\.\w+)*)\b", re.MULTILINE)
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources if path.suffix == ".py")
    modules = {STUBBED, *pattern.findall(text)}
    packages = {name.rsplit(".", count)[0] for name in modules for count in range(name.count(".") + 1)} | modules
    return sorted(f"{name.replace('.', '/')}/__init__.py" for name in packages)


def build(kit: Path, host: Path) -> dict:
    """Writes the archive and its manifest, which is returned.  Raises: KitError when it is too large."""
    names = lacking()
    files = [(f"{HOST_PLACE}/{path}", source) for path, source in host_files(host)]
    stubs = stub_files(source for _, source in files)
    for name in names:
        files += [(f"{SITE_PLACE}/{path}", source) for path, source in package_files(name)]
    shutil.rmtree(kit, ignore_errors=True)
    kit.mkdir(parents=True)
    with tarfile.open(kit / ARCHIVE, "w:gz") as archive:
        for path, source in files:
            add(archive, path, source.read_bytes())
        for path in stubs:
            add(archive, f"{SITE_PLACE}/{path}", STUB.encode())
    packages = {name: metadata.version(name) for name in names}
    found = {"host": host_version(host), "packages": packages, "files": len(files) + len(stubs)}
    found |= {"bytes": (kit / ARCHIVE).stat().st_size, "sha256": digest(kit / ARCHIVE)}
    require_small(found["bytes"])
    (kit / MANIFEST).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    member = tarfile.TarInfo(f"{TOP}/{path}")
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def require_small(size: int) -> None:
    if size > SIZE_LIMIT:
        raise KitError(
            f"The kit has {size / 1e6:.1f} MB, expected at most {SIZE_LIMIT / 1e6:.0f}: leave a package out of "
            "NEEDED, or its libraries, in tools/gpu_kit.py."
        )


def host_version(host: Path) -> str:
    text = (host / "comfyui_version.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "([^"]+)"', text).group(1)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Using


def unpack(kit: Path) -> Path:
    """The folder of the unpacked archive, instant when that is done already.

    Raises: KitError without a kit, and with one that is not what its manifest says.
    """
    if not (kit / ARCHIVE).is_file() or not (kit / MANIFEST).is_file():
        raise KitError(f"{kit} holds no kit: run `make gpu-kit` where ComfyUI is and copy the folder .kit along.")
    expected = json.loads((kit / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    if digest(kit / ARCHIVE) != expected:
        raise KitError(f"{kit / ARCHIVE} is not what its manifest says: copy the folder .kit anew.")
    place = kit / f"{UNPACKED}-{expected[:12]}"
    if not place.is_dir():
        part = place.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            extract_folder(kit / ARCHIVE, (), part)
        except HostError as error:
            raise KitError(str(error)) from error
        part.rename(place)
    return place


def environment(place: Path) -> dict[str, str]:
    """Variables of a process that finds the kit's host and packages."""
    paths = [str(place / SITE_PLACE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"COMFYUI_PATH": str(place / HOST_PLACE), "PYTHONPATH": os.pathsep.join(paths)}


def run(kit: Path, arguments: list[str]) -> int:
    """Replaces this process by the measurement, but on Windows, where that would detach it from its console."""
    command, variables = [sys.executable, "-m", "benchmarks.gpu", *arguments], environment(unpack(kit))
    os.chdir(ROOT)
    if os.name == "nt":
        return subprocess.call(command, env=variables)
    os.execve(command[0], command, variables)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="unpack the kit and measure; the rest is benchmarks.gpu's")
    given, arguments = parser.parse_known_args()
    try:
        if given.run:
            return run(KIT, arguments)
        if arguments:
            parser.error(f"unrecognized arguments: {' '.join(arguments)}")
        found = build(KIT, Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI"))
    except KitError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    names = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    sys.stdout.write(
        f"{KIT} has {found['bytes'] / 1e6:.1f} MB: ComfyUI {found['host']}, {names}.\n"
        "Copy this folder with .kit to the machine and run there:\n"
        "    python3 -m tools.gpu_kit --run --budget 440\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
