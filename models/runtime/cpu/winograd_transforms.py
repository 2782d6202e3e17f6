"""Winograd's F(4, 3): four results of a convolution by three weights, from six products.

Six neighbors are transformed, multiplied by six transformed weights, and transformed to four results, each of which
would have taken three products. A sliding kernel makes twelve of them.
Source: Lavin and Gray, arXiv 1509.09308, section 4.3; for the points Alam et al., arXiv 2201.10369.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RESULTS, PLACES = 4, 6
# Polynomials are compared at 0, at these four and at infinity. With the paper's, 1 and 2, the error is twice as large.
P, Q = 2 / 3, 3 / 2  # and -P, -Q
PP, QQ = P * P, Q * Q
NEAR = 1 / (2 * (PP - QQ))
KERNEL = (  # G of the paper: three weights to six. Rows of P and Q are scaled to leave `transform_output` less to do.
    (1 / (PP * QQ), 0, 0),
    *((NEAR / P, NEAR, NEAR * P), (NEAR / P, -NEAR, NEAR * P)),
    *((-NEAR, -NEAR * Q, -NEAR * QQ), (-NEAR, NEAR * Q, -NEAR * QQ)),
    (0, 0, 1),
)

# B and A of the paper, the rows of the one and the columns of the other multiplied until any format holds them exactly.
INPUT = (
    (36, 0, -97, 0, 36, 0),
    *((0, -18, -27, 8, 12, 0), (0, 18, -27, -8, 12, 0)),
    *((0, -12, -8, 27, 18, 0), (0, 12, -8, -27, 18, 0)),
    (0, 36, 0, -97, 0, 36),
)
OUTPUT = ((1, 27, 27, 8, 8, 0), (0, 18, -18, 12, -12, 0), (0, 12, 12, 18, 18, 0), (0, 8, -8, 27, -27, 1))
INPUT_SCALE, OUTPUT_SCALE = (36, 12, 12, 18, 18, 36), (1, 18, 18, 18, 18, 1)  # times what the functions below do


def transform_input(d: Sequence[Tensor], out: Sequence[Tensor], scratch: Tensor) -> None:
    """Six neighbors to six values, as B of the paper does. scratch: two tensors like any of them."""
    even, odd = scratch
    torch.sub(d[4], d[2], alpha=PP, out=even)
    torch.sub(d[3], d[1], alpha=PP, out=odd)
    torch.add(even, odd, alpha=Q, out=out[3])
    torch.sub(even, odd, alpha=Q, out=out[4])
    torch.sub(d[4], d[2], alpha=QQ, out=even)
    torch.sub(d[3], d[1], alpha=QQ, out=odd)
    torch.add(even, odd, alpha=P, out=out[1])
    torch.sub(even, odd, alpha=P, out=out[2])
    torch.sub(d[5], d[3], alpha=QQ, out=out[5])
    out[5].sub_(odd, alpha=PP)
    torch.sub(d[2], d[0], alpha=QQ, out=odd)
    torch.sub(even, odd, alpha=PP, out=out[0])


def transform_output(m: Sequence[Tensor], out: Sequence[Tensor], scratch: Tensor) -> None:
    """Six values to four neighbors, as A of the paper does; m is overwritten. scratch: two tensors like one of m."""
    near, far = scratch
    torch.add(m[1], m[2], out=near)
    m[1].sub_(m[2])
    torch.add(m[3], m[4], out=far)
    m[3].sub_(m[4])
    torch.add(m[0], near, alpha=1 / P, out=out[0])
    out[0].add_(far, alpha=1 / QQ)
    torch.add(m[1], m[3], alpha=1 / Q, out=out[1])
    torch.add(far, near, alpha=P, out=out[2])
    torch.add(m[5], m[1], alpha=PP, out=out[3])
    out[3].add_(m[3], alpha=Q)
