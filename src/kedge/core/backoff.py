"""Starts after failed ones: how many have failed in a row, and when the next may be tried."""

from __future__ import annotations

BACKOFF_S = 0.5
MAX_BACKOFF_S = 60.0
"""Starts after a failed one wait 0.5 s, doubling up to a minute: a crash loop costs little and heals by itself."""


class Backoff:
    def __init__(self) -> None:
        self.failures = 0
        """In a row."""
        self.until = 0.0

    def failed(self, now: float) -> None:
        self.failures += 1
        self.until = now + min(MAX_BACKOFF_S, BACKOFF_S * 2 ** min(self.failures - 1, 10))

    def succeeded(self) -> None:
        self.failures = 0
        self.until = 0.0
