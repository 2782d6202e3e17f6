"""Residual blocks on a CPU with fewer products: Winograd's convolutions, a few rows at a time.

Squares, F(4x4, 3x3): transformed squares of the input and of the kernel are multiplied element by element, a quarter of
the products of a sliding kernel. Rows, F(4, 3) along the columns: half of the products, which slide along the rows. The
transforms cost little while their data stays in the cache, so a block runs a few rows at a time, its second convolution
one row after the first. In bfloat16 squares round ten times as much as a sliding kernel, rows less than half as much as
squares.
Source: Lavin and Gray, arXiv 1509.09308.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..row_bands import in_strips
from .features import cpu_has
from .winograd_transforms import (
    INPUT,
    INPUT_SCALE,
    KERNEL,
    OUTPUT,
    OUTPUT_SCALE,
    PLACES,
    RESULTS,
    transform_input,
    transform_output,
)

# Limits of the rows that are computed at once: bytes of the map, and a share of the whole. `Rows` needs seven times as
# much memory for them, `Squares` ten times, so each has its own number of bytes per thread that fits the cache.
MOST, SHARE = 2**24, 1 / 8
# Below these, the transforms cost more than the products that they save.
CHANNELS, POSITIONS = 128, 2**11
ODD = 2**7 + 2**5  # elements between slices; see `padded_slices`


def is_faster(x: Tensor) -> bool:
    """Whether a residual block on x (B, C, H, W) is faster with these convolutions than with the library's.

    AMX multiplies bfloat16 so fast that the sums would take longer than the products that they save.
    """
    if x.device.type != "cpu" or x.shape[1] < CHANNELS or x.shape[2] * x.shape[3] < POSITIONS:
        return False
    by_vectors = cpu_has("avx512_bf16") and not cpu_has("amx_bf16")
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and by_vectors)


def view(memory: Tensor, *shape: int) -> Tensor:
    return memory[: torch.Size(shape).numel()].view(shape)


def padded_slices(like: Tensor, *shape: int) -> Tensor:
    """Zeros whose outermost slices are no power of two apart: otherwise equal places of all would share a cache set."""
    size = torch.Size(shape[1:]).numel()
    return like.new_zeros(shape[0], size + ODD)[:, :size].unflatten(1, shape[1:])


def transform_rows(x: Tensor, out: Tensor) -> None:
    """Fours of rows of x (4n + 2, W, C), and the row on either side of each, to their six values out (6, n, W, C)."""
    matrix = torch.tensor(INPUT, dtype=x.dtype)
    for i in range(out.shape[1]):
        torch.mm(matrix, x[RESULTS * i :][:PLACES].flatten(1), out=out[:, i].flatten(1))


class Rows:
    """F(4, 3) along the columns, with memory for `count` fours of rows of so many columns and channels."""

    BYTES_PER_THREAD = 2**23

    @staticmethod
    def transformed(weight: Tensor) -> Tensor:
        """(D, C, 3, 3) -> (6, D, C, 1, 3), six kernels along the rows, channels last."""
        kernel = (torch.tensor(KERNEL) / torch.tensor(INPUT_SCALE)[:, None]).to(weight.device)
        rows = torch.einsum("pk,dckl->pdlc", kernel, weight.float()).to(weight.dtype)
        return rows.transpose(2, 3).unsqueeze(3)

    def __init__(self, like: Tensor, channels: int, count: int, columns: int):
        self.values = padded_slices(like, PLACES, count, columns + 2, channels)
        self.scratch = like.new_empty(2 * count * columns * channels)

    def __call__(self, x: Tensor, out: Tensor, kernel: Tensor) -> None:
        """A 3x3 convolution of x (4n + 2, W, C), rows around the results included, to out (4n, W, D)."""
        n = out.shape[0] // RESULTS
        values = self.values[:, :n]
        transform_rows(x, values[:, :, 1:-1])
        images = (place.permute(2, 0, 1)[None] for place in values)
        products = [F.conv2d(x, weight)[0].permute(1, 2, 0) for x, weight in zip(images, kernel, strict=True)]
        results = [out[k::RESULTS] for k in range(RESULTS)]
        transform_output(products, results, view(self.scratch, 2, *products[0].shape))


class Squares:
    """F(4x4, 3x3), with memory as for `Rows`."""

    BYTES_PER_THREAD = 2**21

    @staticmethod
    def transformed(weight: Tensor) -> Tensor:
        """(D, C, 3, 3) -> (36, C, D), rows before columns."""
        columns = torch.tensor(KERNEL, dtype=torch.float64)
        rows = columns / (torch.tensor(INPUT_SCALE) * torch.tensor(OUTPUT_SCALE))[:, None]
        both = torch.kron(rows, columns).to(weight.device, torch.float32)
        out = weight.new_empty(PLACES**2, weight.shape[1], weight.shape[0])
        for some, target in in_strips(weight.permute(1, 2, 3, 0).flatten(1, 2), out.transpose(0, 1)):
            target.copy_(both @ some.float())
        return out

    def __init__(self, like: Tensor, channels: int, count: int, columns: int):
        fours = -(-columns // RESULTS)
        # With zeros before and after the rows.
        self.values = padded_slices(like, PLACES, count, RESULTS * fours + 2, channels)
        self.squares, self.products = (like.new_empty(PLACES**2 * count * fours * channels) for _ in range(2))
        self.scratch = like.new_empty(2 * PLACES * count * fours * channels)

    def __call__(self, x: Tensor, out: Tensor, kernel: Tensor) -> None:
        """The same convolution as that of `Rows`."""
        n, width, (channels, out_channels) = out.shape[0] // RESULTS, x.shape[1], kernel.shape[1:]
        fours = -(-width // RESULTS)
        transform_rows(x, self.values[:, :n, 1 : 1 + width])
        read = [self.values[:, :n, k : k + RESULTS * (fours - 1) + 1 : RESULTS] for k in range(PLACES)]
        squares = view(self.squares, PLACES, PLACES, n, fours, channels)
        transform_input(read, squares.unbind(1), view(self.scratch, 2, *read[0].shape))
        products = view(self.products, PLACES, PLACES, n, fours, out_channels)
        torch.bmm(squares.view(PLACES**2, -1, channels), kernel, out=products.view(PLACES**2, -1, out_channels))
        rows = view(self.squares, RESULTS, PLACES, n, fours, out_channels)
        torch.mm(torch.tensor(OUTPUT, dtype=x.dtype), products.flatten(1), out=rows.flatten(1))
        whole = out if width % RESULTS == 0 else out.new_empty(len(out), RESULTS * fours, out_channels)
        columns = whole.view(n, RESULTS, fours, RESULTS, out_channels).permute(3, 1, 0, 2, 4)
        transform_output(rows.unbind(1), columns, view(self.scratch, 2, *columns.shape[1:]))
        if whole is not out:
            out.copy_(whole[:, :width])


def rows_around(image: Tensor, start: int, count: int, memory: Tensor) -> Tensor:
    """Rows start - 1 to start + count of the image (H, W, C): itself or, with zeros around it, a copy in memory."""
    height, stop = len(image), start + count + 1
    if start > 0 and stop <= height:
        return image[start - 1 : stop]
    rows = memory[: count + 2].zero_()
    rows[int(start == 0) : height - start + 1] = image[max(start - 1, 0) : stop]
    return rows


def res_block_(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    add_: Callable,
    convolution: type[Rows] | type[Squares],
) -> None:
    """x (1, C, H, W), channels last, plus its branch: two convolutions with SiLU between them, and then add_.

    weights (C, C, 3, 3) and biases (C,) or None are those of either. add_(rows of x, as many of the branch) is called
    for all rows in turn and works in place.
    """
    channels, height, width = x.shape[1:]
    most = min(convolution.BYTES_PER_THREAD * torch.get_num_threads(), MOST, int(x.nbytes * SHARE))
    n = max(most // (RESULTS * width * channels * x.element_size()), 1)
    band = RESULTS * n
    convolve = convolution(x, channels, n, width)
    first, second = (partial(convolve, kernel=convolution.transformed(weight)) for weight in weights)
    read, hidden, branch = (padded_slices(x, band + 2, width, channels) for _ in range(3))
    image = x[0].permute(1, 2, 0)
    for start in range(0, height + 1, band):
        # The first convolution's rows from `start` on, and the second's from one above, for which all is known then.
        rows = min(band, height - start)
        hidden[:2] = hidden[band:].clone()
        if rows:
            fours = -(-rows // RESULTS) * RESULTS
            first(rows_around(image, start, fours, read), hidden[2 : 2 + fours])
            F.silu(add_bias_(hidden[2 : 2 + rows], biases[0]), inplace=True)
        hidden[2 + rows :] = 0
        done = rows + (rows < band)  # the image's last row has zeros below it
        fours = -(-done // RESULTS) * RESULTS
        second(hidden[: fours + 2], branch[:fours])
        target = x[:, :, max(start - 1, 0) : start - 1 + done]
        made = add_bias_(branch[done - target.shape[2] : done], biases[1])
        add_(target, made.permute(2, 0, 1)[None])


def add_bias_(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x.add_(bias)
