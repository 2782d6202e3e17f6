"""One writer of a run at a time, by a lock that ends with its process, however that ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from .state import writing

LOCK = "run.lock"


@contextmanager
def locked_run(folder: str) -> Iterator[None]:
    """Within it no other training writes the run in the folder; raises ValueError where one does."""
    path = os.path.join(folder, LOCK)
    with writing(path):
        os.makedirs(folder, exist_ok=True)
        file = open(path, "ab")
    with file:
        if not try_lock(file):
            raise ValueError(
                f"{folder} is being trained already, here or by tools.train: wait for the end of that, or stop it; "
                f"where nothing trains, delete {LOCK} in it."
            )
        yield


def try_lock(file: IO[bytes]) -> bool:
    """Whether the file is locked now, or cannot be, as on some network drives; False where another holds it."""
    try:
        if os.name == "nt":
            import msvcrt  # Windows only

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # POSIX only

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
