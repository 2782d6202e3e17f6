"""3x3 convolutions with a quarter of the products, for residual blocks on a CPU: Winograd's F(4x4, 3x3).

A 6 x 6 square of the input and a 3 x 3 kernel, both transformed, are multiplied place by place instead of slid over one
another: 36 products for 16 results that took 144. What is added up before and after costs little where it stays in the
cache, so a block runs a few rows at a time, its second convolution one row behind the first. In float32 the sums cost
half a digit; 16-bit formats have none to spare.
Source: Lavin and Gray, arXiv 1509.09308, section 4.3.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = (  # G of the paper times 24: a row of three weights to six
    *((6, 0, 0), (-4, -4, -4), (-4, 4, -4)),
    *((1, 2, 4), (1, -2, 4), (0, 0, 24)),
)
KERNEL_SCALE = 24
# Elements of the map in the rows worked on at once, for each thread and in all: what is made of them fits the cache.
# In all that takes ten times their memory.
ROWS_A_THREAD, ROWS = 2**19, 2**21
# From here on it is faster than the library's convolutions: below, transforms cost more than they save.
CHANNELS, POSITIONS = 128, 2**11


def pays(x: Tensor) -> bool:
    """Whether a residual block on x (B, C, H, W) is faster with these convolutions than with the library's.

    In 16-bit formats it is not: their own products take half the time, and all this would be in float32.
    """
    on_a_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_a_cpu and x.shape[1] >= CHANNELS and x.shape[2] * x.shape[3] >= POSITIONS


def transformed_kernel(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) -> (36, C, D), columns before rows."""
    kernel = torch.tensor(KERNEL, dtype=torch.float64) / KERNEL_SCALE
    columns_and_rows = torch.kron(kernel, kernel).to(weight)
    places = weight.permute(3, 2, 1, 0).reshape(9, -1)
    return (columns_and_rows @ places).unflatten(1, (weight.shape[1], weight.shape[0]))


def transform_input(d: Sequence[Tensor], out: Sequence[Tensor], scratch: Tensor) -> None:
    """Six neighbours to six values, as B of the paper does. scratch: two tensors like any of them."""
    a, b = scratch
    torch.sub(d[4], d[2], alpha=4, out=a)
    torch.sub(d[3], d[1], alpha=4, out=b)
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])
    torch.sub(d[4], d[2], out=a)
    torch.sub(d[3], d[1], out=b)
    torch.add(a, b, alpha=2, out=out[3])
    torch.sub(a, b, alpha=2, out=out[4])
    torch.sub(d[5], d[3], out=out[5])
    out[5].sub_(b, alpha=4)
    torch.sub(d[0], d[2], out=b)
    torch.add(a, b, alpha=4, out=out[0])


def transform_output(m: Sequence[Tensor], out: Sequence[Tensor], scratch: Tensor) -> None:
    """Six values to four neighbours, as A of the paper does; m is spent. scratch: two tensors like one of m."""
    near, far = scratch
    torch.add(m[1], m[2], out=near)
    m[1].sub_(m[2])
    torch.add(m[3], m[4], out=far)
    m[3].sub_(m[4])
    torch.add(near, far, out=out[0])
    out[0].add_(m[0])
    torch.add(m[1], m[3], alpha=2, out=out[1])
    torch.add(near, far, alpha=4, out=out[2])
    torch.add(m[1], m[3], alpha=8, out=out[3])
    out[3].add_(m[5])


def every_fourth(x: Tensor, dim: int, count: int) -> list[Tensor]:
    """Of the 4 * count positions of x and the two after them: those that are first to sixth in their square."""
    return [x.narrow(dim, k, 4 * count - 3)[(slice(None),) * dim + (slice(None, None, 4),)] for k in range(6)]


class Memory(NamedTuple):
    """What a convolution needs beside its rows, for as many squares of 4 x 4 results and channels as were asked for."""

    squares: Tensor
    products: Tensor
    half: Tensor  # transformed along one side
    scratch: Tensor

    @classmethod
    def like(cls, x: Tensor, channels: int, rows: int, columns: int) -> "Memory":
        """rows, columns: of squares."""
        squares, half = 36 * rows * columns * channels, 6 * rows * (4 * columns + 2) * channels
        return cls(*(x.new_empty(size) for size in (squares, squares, half, squares // 3)))


def convolve(x: Tensor, out: Tensor, kernel: Tensor, bias: Tensor | None, memory: Memory) -> None:
    """A 3x3 convolution of x (4n + 2, 4m + 2, C), the positions around the results included, to out (4n, 4m, D).

    kernel: as `transformed_kernel` gives it. bias: (D,) or None.
    """
    rows, columns, (channels, out_channels) = out.shape[0] // 4, out.shape[1] // 4, kernel.shape[1:]
    half = view(memory.half, 6, rows, x.shape[1], channels)
    transform_input(every_fourth(x, 0, rows), half, view(memory.scratch, 2, *half.shape[1:]))
    squares = view(memory.squares, 6, 6, rows, columns, channels)
    transform_input(every_fourth(half, 2, columns), squares, view(memory.scratch, 2, *squares.shape[1:]))
    products = view(memory.products, 6, 6, rows, columns, out_channels)
    torch.bmm(squares.view(36, -1, channels), kernel, out=products.view(36, -1, out_channels))
    if bias is not None:
        products[1, 1].add_(bias)  # the place that every result has a share of one of
    half = view(memory.half, 6, rows, columns, 4, out_channels)
    transform_output(products, half.unbind(3), view(memory.scratch, 2, *products.shape[1:]))
    half = half.flatten(2, 3)
    transform_output(half, [out[k::4] for k in range(4)], view(memory.scratch, 2, *half.shape[1:]))


def view(memory: Tensor, *shape: int) -> Tensor:
    return memory[: torch.Size(shape).numel()].view(shape)


def res_block_(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], add_: Callable) -> None:
    """x (1, C, H, W), channels last, plus its branch: two convolutions with SiLU between them, and then add_.

    weights (C, C, 3, 3) and biases (C,) or None are those of either. add_(rows of x, as many of the branch) is called
    for all rows in turn and works in place.
    """
    channels, height, width = x.shape[1:]
    columns = -(-width // 4)
    most = min(ROWS_A_THREAD * torch.get_num_threads(), ROWS)
    n = min(max(most // (16 * columns * channels), 1), -(-height // 4))
    memory = Memory.like(x, channels, n, columns)
    first, second = (
        partial(convolve, kernel=transformed_kernel(weight), bias=bias, memory=memory)
        for weight, bias in zip(weights, biases, strict=True)
    )
    around = (4 * n + 2, 4 * columns + 2, channels)
    read, hidden = (x.new_zeros(around) for _ in range(2))
    branch = x.new_empty(4 * n, 4 * columns, channels)
    picture = x[0].permute(1, 2, 0)
    for start in range(0, height + 1, 4 * n):
        # The first convolution's rows from `start` on, and the second's from one above, for which all is known then.
        rows = min(4 * n, height - start)
        above, below = start > 0, start + rows < height
        hidden[:2] = hidden[4 * n :].clone()
        if rows:
            read[: 1 - above] = 0
            read[1 - above : 1 + rows + below, 1 : 1 + width] = picture[start - above : start + rows + below]
            read[1 + rows + below :] = 0
            squares = -(-rows // 4)
            first(read[: 4 * squares + 2], hidden[2 : 2 + 4 * squares, 1:-1])
            F.silu(hidden[2 : 2 + rows], inplace=True)
        hidden[2 + rows :] = 0
        hidden[:, 1 + width :] = 0
        done = rows + (rows < 4 * n)  # the picture's last row has zeros below it
        squares = -(-done // 4)
        second(hidden[: 4 * squares + 2], branch[: 4 * squares])
        target = x[:, :, max(start - 1, 0) : start - 1 + done]
        add_(target, branch[done - target.shape[2] : done, :width].permute(2, 0, 1)[None])
