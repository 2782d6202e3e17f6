"""Residual blocks on a CPU with fewer products: Winograd's convolutions, a few rows at a time.

In float32, F(4x4, 3x3): squares of the input and the kernel, both transformed, are multiplied place by place, a quarter
of the products of a sliding kernel. In bfloat16 the sums before and after would round eleven times as much as such a
kernel; there F(4, 3) runs along the columns alone, with five times as much, and half of the products are left, sliding
along the rows. Sums cost little where they stay in the cache, so a block runs a few rows at a time, its second
convolution one row behind the first.
Source: Lavin and Gray, arXiv 1509.09308.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import cpu_has
from .winograd_sums import KERNEL, PLACES, RESULTS, transform_input, transform_output

# Elements of the map in the rows worked on at once, for each thread and in all: what is made of them fits the cache.
# In all that takes ten times their memory.
ROWS_A_THREAD, ROWS = 2**19, 2**21
# From here on it is faster than the library's convolutions: below, transforms cost more than they save.
CHANNELS, POSITIONS = 128, 2**11


def pays(x: Tensor) -> bool:
    """Whether a residual block on x (B, C, H, W) is faster with these convolutions than with the library's.

    AMX multiplies bfloat16 so fast that the sums would take longer than the products that they save.
    """
    if x.device.type != "cpu" or x.shape[1] < CHANNELS or x.shape[2] * x.shape[3] < POSITIONS:
        return False
    by_vectors = cpu_has("avx512_bf16") and not cpu_has("amx_bf16")
    return x.dtype in CONVOLUTIONS and (x.dtype != torch.bfloat16 or by_vectors)


def transformed_rows(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) -> (6, D, C, 1, 3), six kernels along the rows, channels last."""
    kernel = torch.tensor(KERNEL, dtype=torch.float32, device=weight.device)
    rows = torch.einsum("pk,dckl->pdlc", kernel, weight.float()).to(weight.dtype)
    return rows.transpose(2, 3).unsqueeze(3)


def transformed_squares(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) -> (36, C, D), rows before columns."""
    kernel = torch.tensor(KERNEL, dtype=torch.float64)
    rows_and_columns = torch.kron(kernel, kernel).to(weight)
    places = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (rows_and_columns @ places).unflatten(1, (weight.shape[1], weight.shape[0]))


def neighbours(x: Tensor, dim: int, count: int) -> list[Tensor]:
    """Of the 4 * count positions of x and the two after them: those that are first to sixth in their four."""
    return [
        x.narrow(dim, k, RESULTS * (count - 1) + 1)[(slice(None),) * dim + (slice(None, None, RESULTS),)]
        for k in range(PLACES)
    ]


class Memory(NamedTuple):
    """What a convolution needs beside its rows."""

    half: Tensor  # transformed along the columns
    scratch: Tensor
    squares: Tensor
    products: Tensor

    @classmethod
    def like(cls, x: Tensor, channels: int, rows: int, columns: int) -> "Memory":
        """rows, columns: of squares of 4 x 4 results."""
        half = PLACES * rows * (RESULTS * columns + 2) * channels
        squares = PLACES**2 * rows * columns * channels if x.dtype == torch.float32 else 0
        return cls(*(x.new_empty(size) for size in (half, max(half, squares) // 3, squares, squares)))


def convolve_rows(x: Tensor, out: Tensor, kernel: Tensor, memory: Memory) -> None:
    """A 3x3 convolution of x (4n + 2, 4m + 2, C), the positions around the results included, to out (4n, 4m, D).

    kernel: as `transformed_rows` gives it.
    """
    rows = out.shape[0] // RESULTS
    half = view(memory.half, PLACES, rows, *x.shape[1:])
    transform_input(neighbours(x, 0, rows), half, view(memory.scratch, 2, *half.shape[1:]))
    products = [F.conv2d(maps.permute(2, 0, 1)[None], weight) for maps, weight in zip(half, kernel, strict=True)]
    products = [product[0].permute(1, 2, 0) for product in products]
    results = [out[k::RESULTS] for k in range(RESULTS)]
    transform_output(products, results, view(memory.scratch, 2, *products[0].shape))


def convolve_squares(x: Tensor, out: Tensor, kernel: Tensor, memory: Memory) -> None:
    """The same with kernel as `transformed_squares` gives it."""
    rows, columns, (channels, out_channels) = out.shape[0] // RESULTS, out.shape[1] // RESULTS, kernel.shape[1:]
    half = view(memory.half, PLACES, rows, x.shape[1], channels)
    transform_input(neighbours(x, 0, rows), half, view(memory.scratch, 2, *half.shape[1:]))
    squares = view(memory.squares, PLACES, PLACES, rows, columns, channels)
    scratch = view(memory.scratch, 2, *squares.shape[1:])
    transform_input(neighbours(half, 2, columns), squares.unbind(1), scratch)
    products = view(memory.products, PLACES, PLACES, rows, columns, out_channels)
    torch.bmm(squares.view(PLACES**2, -1, channels), kernel, out=products.view(PLACES**2, -1, out_channels))
    half = view(memory.half, PLACES, rows, columns, RESULTS, out_channels)
    transform_output(products.unbind(1), half.unbind(3), view(memory.scratch, 2, *products.shape[1:]))
    half = half.flatten(2, 3)
    results = [out[k::RESULTS] for k in range(RESULTS)]
    transform_output(half, results, view(memory.scratch, 2, *half.shape[1:]))


def view(memory: Tensor, *shape: int) -> Tensor:
    return memory[: torch.Size(shape).numel()].view(shape)


CONVOLUTIONS = {
    torch.float32: (transformed_squares, convolve_squares),
    torch.bfloat16: (transformed_rows, convolve_rows),
}


def res_block_(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], add_: Callable) -> None:
    """x (1, C, H, W), channels last, plus its branch: two convolutions with SiLU between them, and then add_.

    weights (C, C, 3, 3) and biases (C,) or None are those of either. add_(rows of x, as many of the branch) is called
    for all rows in turn and works in place.
    """
    channels, height, width = x.shape[1:]
    columns = -(-width // RESULTS)
    most = min(ROWS_A_THREAD * torch.get_num_threads(), ROWS)
    n = min(max(most // (RESULTS**2 * columns * channels), 1), -(-height // RESULTS))
    band = RESULTS * n
    memory = Memory.like(x, channels, n, columns)
    transformed, convolve = CONVOLUTIONS[x.dtype]
    first, second = (partial(convolve, kernel=transformed(weight), memory=memory) for weight in weights)
    around = (band + 2, RESULTS * columns + 2, channels)
    read, hidden = (x.new_zeros(around) for _ in range(2))
    branch = x.new_empty(band, RESULTS * columns, channels)
    picture = x[0].permute(1, 2, 0)
    for start in range(0, height + 1, band):
        # The first convolution's rows from `start` on, and the second's from one above, for which all is known then.
        rows = min(band, height - start)
        above, below = start > 0, start + rows < height
        hidden[:2] = hidden[band:].clone()
        if rows:
            read[: 1 - above] = 0
            read[1 - above : 1 + rows + below, 1 : 1 + width] = picture[start - above : start + rows + below]
            read[1 + rows + below :] = 0
            fours = -(-rows // RESULTS) * RESULTS
            first(read[: fours + 2], hidden[2 : 2 + fours, 1:-1])
            F.silu(add_bias_(hidden[2 : 2 + rows, 1 : 1 + width], biases[0]), inplace=True)
        hidden[2 + rows :] = 0
        hidden[:, 1 + width :] = 0
        done = rows + (rows < band)  # the picture's last row has zeros below it
        fours = -(-done // RESULTS) * RESULTS
        second(hidden[: fours + 2], branch[:fours])
        target = x[:, :, max(start - 1, 0) : start - 1 + done]
        made = add_bias_(branch[done - target.shape[2] : done, :width], biases[1])
        add_(target, made.permute(2, 0, 1)[None])


def add_bias_(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x.add_(bias)
