"""Tables that a network computes once and not at every step, and sends to a device once."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class TableCache:
    """Key -> a tensor that nothing but the key, the device in it among others, and its owner decide; `most` at once."""

    def __init__(self, most: int):
        self.most = most
        self.tables: dict[Hashable, Tensor] = {}

    def __len__(self) -> int:
        return len(self.tables)

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        if torch.compiler.is_compiling():  # a compiled graph would be made anew once the cache is filled
            return make()
        if key not in self.tables:
            if len(self.tables) == self.most:
                self.tables.clear()
            with torch.inference_mode(False):  # training reads it too
                self.tables[key] = make()
        return self.tables[key]
