"""Intervals cover the truth as often as they say, in simulations whose truth is known."""

import math

import numpy as np
import pytest
from sana_native.evaluation.intervals import distance_of, jackknife_error, mean_of, mean_of_shares, share_of
from sana_native.evaluation.metrics import Moments, cmmd, fid, kid

OF_95 = (0.89, 0.99)  # shares of 200 to 300 intervals that agree with 95 %, three standard errors and skewness


def covered(estimates, truth: float) -> float:
    return np.mean([one.low <= truth <= one.high for one in estimates])


def test_the_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(5)
    estimates = [mean_of(rng.exponential(2.0, 80), seed) for seed in range(300)]
    assert OF_95[0] <= covered(estimates, 2.0) <= OF_95[1]


def test_the_interval_of_cmmds_kernel_covers_the_discrepancy(monkeypatch):
    """Two Gaussians, whose discrepancy is known: E exp(-|z|^2 / 2s^2) of z ~ N(d, 2) in closed form."""
    monkeypatch.setattr("sana_native.evaluation.metrics.normalized", lambda values: values)
    rng, width, apart, s = np.random.default_rng(6), 4, 2.0, 10.0
    same = (s**2 / (s**2 + 2)) ** (width / 2)
    truth = 1000 * 2 * same * (1 - math.exp(-(apart**2) / (2 * (s**2 + 2))))
    move = np.eye(width)[0] * apart
    estimates = [cmmd(rng.normal(size=(120, width)), rng.normal(size=(100, width)) + move) for _ in range(200)]
    assert OF_95[0] <= covered(estimates, truth) <= OF_95[1]


def test_the_interval_of_kid_covers_the_mean_of_many():
    """KID has no bias, so that the mean of all is the truth."""
    rng = np.random.default_rng(7)
    estimates = [kid(rng.normal(size=(90, 6)), rng.normal(0.8, 1.2, size=(110, 6))) for _ in range(300)]
    truth = np.mean([one.value for one in estimates])
    assert OF_95[0] <= covered(estimates, truth) <= OF_95[1]


def test_the_interval_of_fid_covers_the_distance_of_two_gaussians():
    rng, width, apart = np.random.default_rng(8), 4, 1.0
    truth = width * apart**2 + width * (2.0 - 1.0) ** 2
    estimates = [fid(rng.normal(size=(2048, width)), rng.normal(apart, 2.0, size=(2048, width))) for _ in range(200)]
    assert OF_95[0] <= covered(estimates, truth) <= OF_95[1]
    exact = Moments(np.full(width, apart), np.eye(width) * 4.0)
    estimates = [fid(rng.normal(size=(2048, width)), exact) for _ in range(200)]
    assert OF_95[0] <= covered(estimates, truth) <= OF_95[1]


def test_an_interval_is_the_same_each_time_and_narrows_with_more_pictures():
    values = np.random.default_rng(3).normal(size=1600)
    assert mean_of(values) == mean_of(values)
    few, many = mean_of(values[:100]), mean_of(values)
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.25)


def test_too_few_pictures_have_a_number_and_no_interval():
    found = mean_of([1.0] * 9)
    assert (found.value, found.low, found.high, found.count) == (1.0, None, None, 9)
    assert distance_of(1.0, [np.ones(9), np.ones(50)], 9, 50).high is None


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(4).normal(size=50)
    without = (values.sum() - values) / 49
    assert jackknife_error(without) == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-9)


@pytest.mark.parametrize("values", [[], [1.0, math.inf]])
def test_no_values_and_infinite_ones_have_no_mean(values):
    with pytest.raises(ValueError, match="have no mean"):
        mean_of(values)


@pytest.mark.parametrize(("truth", "alike"), [(0.6, 0.0), (0.6, 0.7), (0.95, 0.5), (0.05, 0.9)])
def test_the_interval_of_a_share_covers_it_when_pictures_of_a_prompt_are_alike(truth, alike):
    """Four pictures of each of 100 prompts, equal to one of their prompt with probability `alike`."""
    rng, prompts = np.random.default_rng(9), np.repeat(np.arange(100), 4)

    def drawn():
        shared = (rng.random(100) < truth)[prompts]
        return np.where(rng.random(400) < alike, shared, rng.random(400) < truth)

    estimates = [share_of(drawn(), prompts) for _ in range(300)]
    assert OF_95[0] <= covered(estimates, truth) <= OF_95[1]


def test_a_share_of_nothing_but_right_pictures_has_an_interval_by_its_prompts():
    found = share_of([True] * 80, np.repeat(np.arange(20), 4))
    assert (found.value, found.high, found.count) == (1.0, 1.0, 80)
    assert found.low == pytest.approx(1 / (1 + 1.959964**2 / 20))  # Wilson's of 20 of 20
    assert share_of([False] * 20, range(20)).low == 0.0
    alone = share_of([True, False] * 20, range(40))
    assert (alone.low, alone.high) == pytest.approx((0.3520, 0.6480), abs=2e-4)  # Wilson's of 20 of 40
    equal = share_of([True, False] * 20, np.repeat(np.arange(20), 2))  # every prompt has the same share
    assert (equal.low, equal.high) == (alone.low, alone.high)
    assert share_of([True] * 40, np.repeat(np.arange(9), 5)[:40]).low is None
    with pytest.raises(ValueError, match="0 pictures in 0 places have no share"):
        share_of([], [])


def test_the_interval_of_a_mean_of_shares_covers_it():
    rng, truths = np.random.default_rng(10), (0.98, 0.8, 0.4, 0.1)
    estimates = [mean_of_shares([share_of(rng.random(60) < p, range(60)) for p in truths]) for _ in range(300)]
    assert OF_95[0] <= covered(estimates, np.mean(truths)) <= OF_95[1]
    assert estimates[0].count == 240
    assert mean_of_shares([estimates[0], share_of([True], [0])]).low is None
