"""Durations, counted by powers of two: what medians and tails of waits and runs come from. Constant memory."""

from __future__ import annotations

_MEMORY = 4096
"""Durations after which the counts are halved, so that quantiles speak of the recent past."""
_BUCKETS = 64
"""From below a microsecond to half a million years: more than anybody can say."""


class Histogram:
    """Durations in seconds.

    >>> waits = Histogram()
    >>> for _ in range(99):
    ...     waits.add(0.001)
    >>> waits.add(10.0)
    >>> round(waits.quantile(0.5), 4), round(waits.quantile(1.0))
    (0.0008, 13)
    """

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._total = 0

    def add(self, seconds: float) -> None:
        self._counts[int(seconds * 1e6).bit_length()] += 1
        self._total += 1
        if self._total == _MEMORY:
            self._counts = [count >> 1 for count in self._counts]
            self._total = sum(self._counts)

    def quantile(self, share: float) -> float | None:
        """The duration that `share` of all do not exceed, right within a factor of 1.5; None where there is none."""
        if not self._total:
            return None
        wanted, seen = share * self._total, 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return 0.75e-6 * (1 << bucket)
        return None
