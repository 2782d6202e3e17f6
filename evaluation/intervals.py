"""95 % intervals: a bootstrap for means, a jackknife for distances between two sets, Wilson's for shares.

A distance is no mean, and a bootstrap of it is off: a picture drawn twice is at distance 0 from itself. A share has
Wilson's interval, which a bootstrap of only right pictures would shrink to a point. Source: Efron and Tibshirani, An
Introduction to the Bootstrap, chapters 11 and 13; Wilson, 1927; Korn and Graubard, 1998 (effective samples); Zou and
Donner, 2008 (sums of estimates).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

LEAVES_OUT = 0.05  # of all samples, both tails together
NORMAL = 1.959964  # standard errors that hold all but this share
RESAMPLES = 4000
LEAST = 10  # values; an interval from fewer is too narrow to be believed
GROUPS = 20  # of pictures left out together, where one number takes seconds
BLOCK = 1 << 22  # numbers drawn at a time


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and how many pictures it is of; low and high are None for too few.

    reference: pictures it was compared with, None for a number that needs none.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    reference: int | None = None


def mean_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of one value a picture, with the percentile bootstrap.  Raises: ValueError for none, or not finite ones."""
    values = np.asarray(values, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"{values.size} values, of which {int(np.isfinite(values).sum())} are finite, have no mean.")
    mean, count = float(values.mean()), len(values)
    if count < LEAST:
        return Estimate(mean, None, None, count)
    rng, means = np.random.default_rng(seed), []
    rows = max(1, BLOCK // count)
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, count, (min(rows, RESAMPLES - start), count))
        means.append(values[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (LEAVES_OUT / 2, 1 - LEAVES_OUT / 2))
    return Estimate(mean, float(low), float(high), count)


def share_of(right: Sequence[bool], groups: Sequence[Hashable]) -> Estimate:
    """Share of pictures that are right, with Wilson's interval.

    groups: the prompt of each picture. Pictures of one prompt are alike, so that they count as fewer: as many as would
    give a share of this spread if each had a prompt of its own. No interval for fewer than 10 prompts.

    Raises: ValueError for no picture.
    """
    values = np.asarray(right, dtype=np.float64)
    if not values.size or len(values) != len(groups):
        raise ValueError(f"{len(values)} pictures in {len(groups)} places have no share.")
    share, count = float(values.mean()), len(values)
    place = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(place) < LEAST:
        return Estimate(share, None, None, count)
    apart = np.bincount([place[group] for group in groups], values - share)
    variance = len(place) / (len(place) - 1) * float(np.square(apart).sum()) / count**2
    alone = share * (1 - share) / (count - 1)  # the variance if each had a prompt of its own
    if not alone:
        effective = len(place)  # nothing says how alike they are
    else:
        effective = min(count * alone / variance, count) if variance else count
    return Estimate(share, *wilson(share, effective), count)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval of a share of `count` samples."""
    square = NORMAL**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = NORMAL * float(np.sqrt(share * (1 - share) / count + square / (4 * count))) / (1 + square)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def mean_of_shares(shares: Sequence[Estimate]) -> Estimate:
    """The plain mean of independent shares, with an interval from theirs; none where one of them has none."""
    value, count = float(np.mean([one.value for one in shares])), sum(one.count for one in shares)
    if any(one.low is None for one in shares):
        return Estimate(value, None, None, count)
    down = float(np.sqrt(sum((one.value - one.low) ** 2 for one in shares))) / len(shares)
    up = float(np.sqrt(sum((one.high - one.value) ** 2 for one in shares))) / len(shares)
    return Estimate(value, value - down, value + up, count)


def jackknife_error(values: np.ndarray) -> float:
    """Standard error of a number from its values without one sample, or without one group, each."""
    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    return float(np.sqrt((count - 1) / count * np.square(values - values.mean()).sum()))


def distance_of(
    value: float, without: Sequence[np.ndarray], count: int, reference: int | None, least: float | None = 0.0
) -> Estimate:
    """A distance and its interval. without: for each set, the distance without one of its samples or groups.

    least: below which no interval reaches; None for a distance that can be negative.
    """
    if min(map(len, without)) < LEAST:
        return Estimate(value, None, None, count, reference)
    reach = NORMAL * float(np.sqrt(sum(jackknife_error(values) ** 2 for values in without)))
    low = value - reach if least is None else max(least, value - reach)
    return Estimate(value, low, value + reach, count, reference)


def without_groups(samples: np.ndarray, number: Callable[[np.ndarray], float], groups: int = GROUPS) -> np.ndarray:
    """The number of all samples but every `groups`-th, for each start. samples: (N, D)."""
    places = np.arange(len(samples)) % groups
    return np.array([number(samples[places != group]) for group in range(groups)])
