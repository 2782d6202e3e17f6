"""Progress on the node that works, and the chance to cancel it, for work outside the host's own loops."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import comfy.model_management
import comfy.utils

Item = TypeVar("Item")


def tracked(items: Sequence[Item]) -> Iterator[Item]:
    """The items one by one, each counted when it is done with. Raises the host's interrupt before the next one.

    A single item is not counted: its bar would be full from the start of what follows.
    """
    bar = comfy.utils.ProgressBar(len(items))
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        if len(items) > 1:
            bar.update(1)
