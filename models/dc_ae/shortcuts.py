"""DC-AE's shortcuts between resolutions on channels-last maps, without the copies of pixel shuffle to another layout.

Source: DC-AE, arXiv 2410.10733, section 3.1, residual autoencoding.
"""

import torch.nn.functional as F
from torch import Tensor


def squares(x: Tensor) -> Tensor:
    """(B, D, 2H, 2W) -> (B, H, 2, W, 2, D), a view."""
    return x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def unshuffled(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, D * rows * columns, H, W) -> (B, H, rows, W, columns, D), as pixel shuffle spreads channels over places.

    A view of channels-last x.
    """
    x = x.permute(0, 2, 3, 1).unflatten(3, (-1, rows, columns))
    return x.permute(0, 1, 4, 2, 5, 3)


def square_of(repeats: int) -> tuple[int, int]:
    """Rows and columns of a 2 x 2 square to which a shortcut that repeats channels gives values of their own.

    A channel repeated four times gives one value to all of the square, one repeated twice one to each row.
    """
    return 2 if repeats <= 2 else 1, 2 if repeats == 1 else 1


def space_to_channel(x: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) -> (B, channels, H/2, W/2), averages of each channel's 2 x 2 squares and of neighboring channels."""
    averaged = 4 * x.shape[1] // channels  # positions of a 2 x 2 square, columns before rows
    rows, columns = 1 if averaged >= 4 else 2, 1 if averaged >= 2 else 2  # that are left of it
    x = F.avg_pool2d(x, (2 // rows, 2 // columns)).permute(0, 2, 3, 1)
    x = x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).permute(0, 1, 3, 5, 2, 4)
    return x.flatten(3).unflatten(3, (channels, -1)).mean(dim=-1).permute(0, 3, 1, 2)
