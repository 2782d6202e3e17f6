"""What the commands of this folder share: lines on the standard output, and an end that stops what they started."""

import signal
import sys
from collections.abc import Callable


def say(text: str, end: str = "\n") -> None:
    """Writes a line at once, also into a pipe."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def run_command(main: Callable[[], int]) -> None:
    """Ends the process with what `main` returns; a polite kill leaves it as an exception, which ends its servers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
