"""Numbers that no network can use: formats that are not floating-point, NaN and infinity.

Vectors and small matrices are looked at whole, larger ones at both ends: 7 ms for 0.8 GB of weights in the page cache,
and from a cold disk some hundred places. A pass over everything would read the whole file before the host wants it,
which memory mapping is there to avoid. A training that has diverged leaves NaN everywhere; a stray one in the middle of
a matrix is found by the checks of the latent, the text states and the image.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

WHOLE, EDGE = 16384, 4096  # numbers: up to how many a tensor is looked at whole, and how many at each end of others


def check_values(name: str, keys: Iterable[str], state_dict: dict[str, Tensor]) -> None:
    """Raises ValueError naming the first of the keys whose tensor is not of finite floating-point numbers."""
    for key in keys:
        tensor = state_dict[key]
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} has {str(tensor.dtype).removeprefix('torch.')} numbers in {key} where floating-point ones "
                "belong: use the bf16, fp16 or fp32 file of this model."
            )
        if not torch.isfinite(ends(tensor).float()).all():
            raise ValueError(
                f"{name} holds NaN or infinity in {key}: download it again, or take an earlier save if you trained it."
            )


def ends(tensor: Tensor) -> Tensor:
    if tensor.numel() <= WHOLE:
        return tensor
    flat = tensor.flatten()  # a view, but for the rare tensor that is not contiguous
    return torch.cat([flat[:EDGE], flat[-EDGE:]])
