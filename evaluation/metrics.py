"""Numbers of a set of pictures from their embeddings: FID, KID, CMMD and CLIP score, in float64.

Source: Heusel et al., arXiv 1706.08500 (FID); Binkowski et al., arXiv 1801.01401 (KID); Jayasumana et al., arXiv
2401.09603 (CMMD, with its sigma and scale); Hessel et al., arXiv 2104.08718 (CLIP score, times 100 as it is printed in
papers). Checked against pytorch-fid, clean-fid and torchmetrics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .intervals import Estimate, distance_of, mean_of, without_groups

LEAST_FOR_FID = 2048  # below, the covariance of 2048 features has no full rank
LEAST_FOR_KID = 500  # from where CMMD and KID are usable; below, a note is due
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
CLIP_SCALE = 100.0
ROWS = 1024  # of a kernel's matrix at a time

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of features; count: None where a file does not say it."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


def as_samples(values: np.ndarray) -> np.ndarray:
    """(N, D) in float64.  Raises: ValueError for another shape, or a value that is not finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"Embeddings have shape {values.shape}, expected (pictures, features).")
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values).all(axis=1)).sum())
        raise ValueError(f"{wrong} of {len(values)} embeddings are not finite; the network or its file is damaged.")
    return values


def normalized(values: np.ndarray) -> np.ndarray:
    """Rows of length 1.  Raises: ValueError for a row of zeros."""
    values = as_samples(values)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"{int((lengths == 0).sum())} of {len(values)} embeddings are zero; the network is damaged.")
    return values / lengths


def moments(features: np.ndarray) -> Moments:
    features = as_samples(features)
    return Moments(features.mean(axis=0), np.cov(features, rowvar=False).reshape(features.shape[1], -1), len(features))


def square_root(matrix: np.ndarray) -> np.ndarray:
    """Of a covariance: symmetric, and eigenvalues below 0 are rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def frechet_distance(a: Moments, b: Moments, root: np.ndarray | None = None) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)). root: square root of b's covariance, if it is known.

    (A B)^(1/2) has the trace of (R A R)^(1/2) with R R = B, which is symmetric: no complex values arise, and
    covariances without full rank need no offset.
    """
    root = square_root(b.covariance) if root is None else root
    product = np.sqrt(np.linalg.eigvalsh(root @ a.covariance @ root).clip(0)).sum()
    apart = np.square(a.mean - b.mean).sum()
    return float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * product)


def fid(features: np.ndarray, reference: np.ndarray | Moments) -> Estimate:
    """Frechet distance of Inception features (N, 2048) to a reference's features (M, 2048) or moments.

    Its interval is the spread at this number of pictures, over groups left out; FID itself falls as the number grows.
    Moments are taken as exact, as their samples are not at hand.

    Raises: ValueError for fewer than 2,048 pictures on either side.
    """
    features = as_samples(features)
    require_enough_for_fid("pictures", len(features))
    known = reference if isinstance(reference, Moments) else moments(reference)
    if known.count is not None:
        require_enough_for_fid("reference pictures", known.count)
    own, root = moments(features), square_root(known.covariance)
    without = [without_groups(features, lambda left: frechet_distance(moments(left), known, root))]
    if not isinstance(reference, Moments):
        own_root = square_root(own.covariance)
        reference = as_samples(reference)
        without.append(without_groups(reference, lambda left: frechet_distance(moments(left), own, own_root)))
    return distance_of(frechet_distance(own, known, root), without, len(features), known.count)


def require_enough_for_fid(what: str, count: int) -> None:
    if count < LEAST_FOR_FID:
        raise ValueError(
            f"FID of {count} {what} means nothing: it needs {LEAST_FOR_FID:,}, and papers take 30,000; use cmmd, which "
            "needs 500, or generate more."
        )


def cmmd(embeddings: np.ndarray, reference: np.ndarray) -> Estimate:
    """CLIP's maximum mean discrepancy of image embeddings (N, D) and (M, D), with the authors' biased estimate."""
    a, b = normalized(embeddings), normalized(reference)
    gamma = 1 / (2 * CMMD_SIGMA**2)

    def gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None]
        return np.exp(-gamma * (squares - 2 * x @ y.T))

    value, without = discrepancy(a, b, gaussian, unbiased=False)
    scaled = [CMMD_SCALE * each for each in without]
    return distance_of(CMMD_SCALE * value, scaled, len(a), len(b))


def kid(features: np.ndarray, reference: np.ndarray) -> Estimate:
    """Kernel Inception distance of features (N, D) and (M, D): unbiased, so it may be negative, from all pairs."""
    a, b = as_samples(features), as_samples(reference)
    width = a.shape[1]
    value, without = discrepancy(a, b, lambda x, y: (x @ y.T / width + 1) ** 3, unbiased=True)
    return distance_of(value, without, len(a), len(b), least=None)


def discrepancy(a: np.ndarray, b: np.ndarray, kernel: Kernel, unbiased: bool) -> tuple[float, list[np.ndarray]]:
    """Squared maximum mean discrepancy, and for each set its values without one sample, (N,) and (M,).

    All follow from the sums of the kernel's rows. unbiased: leaves out the pairs of a sample with itself.
    """
    least = 3 if unbiased else 2
    if min(len(a), len(b)) < least:
        raise ValueError(f"{min(len(a), len(b))} pictures have no spread; give {least} or more on either side.")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"Embeddings are {a.shape[1]} and {b.shape[1]} wide; both must come from the same network.")
    own = [row_sums(x, x, kernel)[0] for x in (a, b)]
    selves = [self_values(x, kernel) for x in (a, b)]
    cross = row_sums(a, b, kernel)
    sums = [rows.sum() - (own_values.sum() if unbiased else 0) for rows, own_values in zip(own, selves, strict=True)]
    sizes, both = [len(a), len(b)], cross[0].sum()

    def pairs(size: int) -> int:
        return size * (size - 1) if unbiased else size * size

    value = sum(total / pairs(size) for total, size in zip(sums, sizes, strict=True)) - 2 * both / (sizes[0] * sizes[1])
    without = []
    for i, (size, other) in enumerate(((sizes[0], sizes[1]), (sizes[1], sizes[0]))):
        lost = 2 * own[i] - (2 if unbiased else 1) * selves[i]
        left = (sums[i] - lost) / pairs(size - 1) - 2 * (both - cross[i]) / ((size - 1) * other)
        without.append(left + sums[1 - i] / pairs(other))
    return float(value), without


def row_sums(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the rows (N,) and of the columns (M,) of the kernel's matrix, a part of it in memory at a time."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for start in range(0, len(x), ROWS):
        part = kernel(x[start : start + ROWS], y)
        rows[start : start + ROWS] = part.sum(axis=1)
        columns += part.sum(axis=0)
    return rows, columns


def self_values(x: np.ndarray, kernel: Kernel) -> np.ndarray:
    """The kernel of each sample with itself, (N,)."""
    return np.concatenate([np.diag(kernel(part, part)) for part in np.array_split(x, -(-len(x) // ROWS))])


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """100 times the cosine of each image's and its text's embedding, at least 0. images, texts: (N, D) -> (N,)."""
    if np.shape(images) != np.shape(texts):
        raise ValueError(
            f"Images are {np.shape(images)} and texts {np.shape(texts)}: CLIP Vision and CLIP must be the two halves "
            "of one model, such as both of CLIP ViT-L/14."
        )
    return (CLIP_SCALE * (normalized(images) * normalized(texts)).sum(axis=1)).clip(0)


def clip_score(images: np.ndarray, texts: np.ndarray) -> Estimate:
    return mean_of(clip_scores(images, texts))
