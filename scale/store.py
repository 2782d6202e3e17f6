"""Where pictures and records go: a local folder, or an object store through pyarrow's file systems.

A file is there under its name whole or not at all: a local one is renamed into place, an object of s3, gs or abfs is
one upload. Other file systems, such as hdfs, may keep part of a file whose writer was killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from pathlib import Path, PurePosixPath
from typing import Protocol

PARTS = ".parts"  # half-written files of a local store
FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreError(RuntimeError):
    """The store cannot be opened, read or written; the message is one sentence with the cure."""


class Store(Protocol):
    """Files by POSIX path below the store's root.

    address: opens the store again, on other machines too. url: for messages and names; one place has one, however it
    was written, and there are no passwords in it.
    """

    address: str
    url: str

    def exists(self, name: str) -> bool: ...

    def get(self, name: str) -> bytes:
        """Raises: StoreError where the file is not there."""

    def put(self, name: str, data: bytes) -> None:
        """Writes a whole file, over one of that name. Raises: StoreError where it cannot be written."""

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files in a folder; none where there is no such folder."""

    def has_files(self, folder: str) -> bool:
        """Whether a file is anywhere below a folder."""


class LocalStore:
    """A folder of this machine, or one that all machines see under the same path."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().absolute()
        self.address, self.url = str(self.root), os.path.realpath(self.root)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def get(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise StoreError(f"{self.root / name} cannot be read ({error.strerror}).") from error

    def put(self, name: str, data: bytes) -> None:
        path, part = self.root / name, self.root / PARTS / uuid.uuid4().hex
        try:
            try:
                part.write_bytes(data)
            except FileNotFoundError:
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(data)
            try:
                os.replace(part, path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise self._cannot_write(path, error) from error

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root / folder) if entry.is_file())
        except FileNotFoundError:
            return []

    def has_files(self, folder: str) -> bool:
        return any(path.is_file() for path in (self.root / folder).rglob("*"))

    def prepare(self) -> None:
        """Makes the folder, and removes what a killed run left half-written. Raises: StoreError."""
        shutil.rmtree(self.root / PARTS, ignore_errors=True)
        try:
            (self.root / PARTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(self.root, error) from error

    def _cannot_write(self, path: Path, error: OSError) -> StoreError:
        cure = "free some space, or choose another folder" if error.errno in FULL else "choose another folder"
        return StoreError(f"{path} cannot be written ({error.strerror}): {cure}.")


class ArrowStore:
    """A folder of a file system of pyarrow: s3, gs, abfs, hdfs, or any of fsspec."""

    def __init__(self, file_system, root: str, address: str):
        self.files, self.root = file_system, PurePosixPath(root)
        self.address, self.url = address, place_of(address)

    def _path(self, name: str) -> str:
        return str(self.root / name)

    def exists(self, name: str) -> bool:
        return self._look(self._path(name)).is_file

    def _look(self, what):
        try:
            return self.files.get_file_info(what)
        except OSError as error:
            raise StoreError(f"{self.url} cannot be read ({_reason(error)}).") from error

    def get(self, name: str) -> bytes:
        try:
            with self.files.open_input_stream(self._path(name)) as stream:
                return stream.read()
        except OSError as error:
            raise StoreError(f"{self.url}/{name} cannot be read ({_reason(error)}).") from error

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        try:
            # Folders are real on file systems such as hdfs; an object store has none to make.
            if not self.files.type_name.startswith(("s3", "gcs", "abfs")):
                self.files.create_dir(str(PurePosixPath(path).parent), recursive=True)
            with self.files.open_output_stream(path) as stream:
                stream.write(data)
        except OSError as error:
            cure = "look at the address and at your rights."
            raise StoreError(f"{self.url}/{name} cannot be written ({_reason(error)}): {cure}") from error

    def names(self, folder: str) -> list[str]:
        from pyarrow.fs import FileSelector

        found = self._look(FileSelector(self._path(folder), allow_not_found=True))
        return sorted(one.base_name for one in found if one.is_file)

    def has_files(self, folder: str) -> bool:
        from pyarrow.fs import FileSelector

        return any(one.is_file for one in self._look(FileSelector(self._path(folder), True, recursive=True)))


def open_store(target: str) -> Store:
    """The store of a path or an address such as s3://bucket/folder.

    Raises: StoreError for an address without pyarrow, or of a kind that neither it nor fsspec knows.
    """
    if not target.strip():
        raise StoreError("--out is empty: give a folder, or an address such as s3://bucket/folder.")
    if "://" not in target:
        return LocalStore(target)
    target = normalize(target)
    scheme, _, rest = target.partition("://")
    if scheme == "file":
        return LocalStore(re.sub("^localhost(?=/)", "", rest))
    try:
        from pyarrow import ArrowException
        from pyarrow.fs import FileSystem
    except ImportError:
        raise StoreError(
            f"{place_of(target)} needs pyarrow: install it into this environment, or give a folder."
        ) from None
    more = ""
    try:
        # One request for a small file; else S3 takes three, as for the parts of a large one.
        wants = scheme == "s3" and "allow_delayed_open" not in rest
        more = ("&" if "?" in rest else "?") + "allow_delayed_open=true" if wants else ""
        file_system, root = FileSystem.from_uri(target + more)
        return ArrowStore(file_system, root, target)
    except (ArrowException, OSError, ValueError) as error:
        found = _by_fsspec(scheme, rest)
        if found is None:
            # pyarrow repeats the address, keys and all.
            reason = _reason(error).replace(target + more, place_of(target)).replace(target, place_of(target))
            raise StoreError(f"{place_of(target)} cannot be opened ({reason}).") from error
        return ArrowStore(*found, target)


def normalize(address: str) -> str:
    """An address without doubled slashes and without one at its end: object stores would take them as names."""
    scheme, _, rest = address.partition("://")
    path, mark, query = rest.partition("?")
    path = re.sub("/+", "/", path)
    return f"{scheme.lower()}://{path.rstrip('/') or path}{mark}{query}"


def place_of(address: str) -> str:
    """What an address points at: without keys, passwords and options, but for the server that another option names."""
    scheme, _, rest = address.partition("://")
    path, _, query = rest.partition("?")
    path = (
        re.sub(r"^([^/@:]*:[^@]*|[^/@]*)@", "", path) if scheme == "s3" else re.sub(r"^([^/@:]*):[^/@]*@", r"\1@", path)
    )
    server = [option for option in query.split("&") if option.startswith("endpoint_override=")]
    return f"{scheme}://{path}" + "".join(f"?{option}" for option in server)


def _by_fsspec(scheme: str, rest: str):
    """File system and root of an address that only fsspec knows; None where it does not either."""
    try:
        import fsspec
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(fsspec.filesystem(scheme))), rest
    except (ImportError, ValueError):
        return None


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
