"""Strip-mining: work in place on one band of rows at a time, as DC-AE's blocks do where no gradient is wanted.

A residual block then needs little memory beside its one tensor, and a band stays in the cache. Every value equals that
of the whole tensor, except that norms are rounded once, at their end.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Elements at once: of a block's widest tensor, and of a norm's float32 copy. On a CPU the first bounds the memory and
# the second fits the cache; elsewhere the many small kernels of short bands would cost more than they save.
BAND, STRIP = {"cpu": 2**23}, {"cpu": 2**18}
BAND_ELSEWHERE, STRIP_ELSEWHERE = 2**26, 2**25
# Elements of a map. From the first number on oneDNN, torch's library on a CPU, has only slow reference code; a
# convolution of such a map runs in parts of the second.
ONEDNN_INT32_LIMIT = 2**31
PART = ONEDNN_INT32_LIMIT // 8
SHORTEST_BAND = 8  # rows; the shorter a band, the larger the share of rows that it computes for its neighbors


def row_bands(x: Tensor, channels: int) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of each band of x (1, C, H, W); channels: of the widest tensor."""
    height, width = x.shape[-2:]
    rows = max(BAND.get(x.device.type, BAND_ELSEWHERE) // (channels * width), SHORTEST_BAND)
    count = -(-height // rows)
    for number in range(count):  # of nearly equal height, because every band computes the same number of halo rows
        yield number * height // count, (number + 1) * height // count


def rows_of(function: Callable[[Tensor], Tensor], x: Tensor, start: int, stop: int, halo: int) -> Tensor:
    """function(x)[:, :, start:stop], for one that leaves the size and whose rows depend on `halo` rows around them."""
    first = max(start - halo, 0)
    return function(x[:, :, first : stop + halo])[:, :, start - first :][:, :, : stop - start]


def add_in_row_bands_(x: Tensor, branch: Callable[[Tensor], Tensor], add_: Callable, halo: int) -> Tensor:
    """Calls add_(rows of x, branch(x) of these rows) for all rows of all images of x (B, C, H, W), and returns x.

    add_ works in place. branch is as in `rows_of` and has no tensor wider than C.
    """
    for image in x.split(1):
        above = image[:, :, :0]
        for start, stop in row_bands(image, x.shape[1]):
            # The rows above have been overwritten: a copy of those in the halo is put before the band's own.
            rows = image[:, :, start : stop + halo]
            rows = torch.cat([above, rows], dim=2) if start else rows
            end = above.shape[2] + stop - start
            out = branch(rows)[:, :, above.shape[2] : end]
            above = rows[:, :, max(end - halo, 0) : end].clone()
            add_(image[:, :, start:stop], out)
    return x


def sliding_rows(
    x: Tensor, make: Callable[[Tensor, Tensor], None], channels: int, halo: int, widest: int
) -> Iterator[tuple[int, int, slice, Tensor]]:
    """A map that make(rows of x (1, C, H, W), out (rows, W, channels)) writes once, row by row, a band at a time.

    Yields, for every one of `row_bands(x, widest)`, its first row and the one after its last; and, until the next one,
    the map's rows from `halo` above it to `halo` below, (1, channels, rows, W), with the slice of them that is the
    band.
    """
    sizes = list(row_bands(x, widest))
    memory = empty_map(x, channels, max(stop - start for start, stop in sizes) + 2 * halo, x.shape[3])
    rows = memory[0].permute(1, 2, 0)
    first = last = 0
    for start, stop in sizes:
        above, made = max(start - halo, 0), last
        rows[: made - above] = rows[above - first : made - first].clone()  # known from the band before
        first, last = above, min(stop + halo, x.shape[2])
        if made < last:
            make(x[:, :, made:last], rows[made - first : last - first])
        yield start, stop, slice(start - first, stop - first), memory[:, :, : last - first]


def in_parts(convolve: Callable[[Tensor], Tensor], x: Tensor, channels: int, taken: int = 1, given: int = 1) -> Tensor:
    """convolve(x), in parts of the rows where x (B, C, H, W) or the result reaches ONEDNN_INT32_LIMIT elements.

    The result is (B, channels, H * given / taken, W * given / taken). Each `given` rows of it depend on `taken` rows of
    x and on as many above and below.
    """
    units, width = x.shape[2] // taken, x.shape[3] * given // taken
    largest = max(x.numel(), x.shape[0] * channels * units * given * width)
    if largest < ONEDNN_INT32_LIMIT:
        return convolve(x)
    out, count = empty_map(x, channels, units * given, width), min(-(-largest // PART), units)
    for number in range(count):
        start, stop = number * units // count, (number + 1) * units // count
        first = max(start - 1, 0)
        part = convolve(x[:, :, first * taken : (stop + 1) * taken])[:, :, (start - first) * given :]
        out[:, :, start * given : stop * given] = part[:, :, : (stop - start) * given]
    return out


def empty_map(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Uninitialized (B, channels, height, width), channels last, with x's format and device."""
    return x.new_empty(x.shape[0], height, width, channels).permute(0, 3, 1, 2)


def strips(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tokens (n, C) of channels-last tensors (B, C, H, W) of one size, a few at a time, as views of the same memory."""
    yield from in_strips(*(tensor.permute(0, 2, 3, 1).view(-1, tensor.shape[1]) for tensor in tensors))


def in_strips(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts along the first dimension, which all tensors share, of at most STRIP elements of the last tensor."""
    most = STRIP.get(tensors[0].device.type, STRIP_ELSEWHERE)
    length = max(most // tensors[-1][0].numel(), 1)
    yield from zip(*(tensor.split(length) for tensor in tensors), strict=True)
