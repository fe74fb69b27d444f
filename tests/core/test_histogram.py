"""Quantiles of durations, in constant memory."""

from __future__ import annotations

from random import Random

import pytest

from kedge.core.histogram import Histogram


def test_of_nothing_there_is_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_quantiles_are_right_within_a_factor(share: float) -> None:
    random, histogram = Random(1), Histogram()
    durations = sorted(random.expovariate(10.0) for _ in range(3000))
    for seconds in durations:
        histogram.add(seconds)
    found, right = histogram.quantile(share), durations[int(share * len(durations))]
    assert found is not None
    assert right / 1.51 < found < right * 1.51


def test_extremes_are_counted() -> None:
    histogram = Histogram()
    histogram.add(0.0)
    histogram.add(1e12)
    assert histogram.quantile(0.5) == 0.75e-6
    assert histogram.quantile(1.0) is not None


def test_the_past_fades() -> None:
    histogram = Histogram()
    for _ in range(5000):
        histogram.add(10.0)
    for _ in range(20000):
        histogram.add(0.001)
    found = histogram.quantile(0.95)
    assert found is not None
    assert found < 0.01
