"""`Retries`: how often an input whose own code failed is tried again, and how soon."""

from __future__ import annotations

from typing import Any

from kedge.exception import InvalidError
from kedge.model.spec import RetryPolicy
from kedge.sdk import validation
from kedge.sdk.usage import keywords_only


class Retries:
    """A retry policy for `@app.function(retries=…)`.

    The first retry comes after `initial_delay` seconds; each later delay is `backoff_coefficient` times the one before,
    up to `max_delay`. A container that is lost costs no retry: its inputs run again anyway.

    Args:
        max_retries: Attempts after the first one.
        backoff_coefficient: 1 (a fixed delay) to 10.
        initial_delay: Seconds, 0 to 60.
        max_delay: Seconds, 1 to 60.

    Raises:
        InvalidError: where a value is out of these bounds.

    Example:
        @app.function(retries=kedge.Retries(max_retries=4, initial_delay=2.0))
        def flaky(): ...
    """

    __slots__ = ("policy",)

    @keywords_only("kedge.Retries(max_retries=3)", name="kedge.Retries", bound=True)
    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
    ) -> None:
        validation.whole_number("Retries: max_retries", max_retries)
        self.policy = RetryPolicy(
            max_retries=max_retries,
            backoff_coefficient=_bounded("backoff_coefficient", backoff_coefficient, 1, 10, "times"),
            initial_delay=_bounded("initial_delay", initial_delay, 0, 60, "seconds"),
            max_delay=_bounded("max_delay", max_delay, 1, 60, "seconds"),
        )

    def __repr__(self) -> str:
        return f"Retries(max_retries={self.policy.max_retries})"


def _bounded(name: str, value: Any, least: float, most: float, unit: str) -> float:
    checked = validation.number(f"Retries: {name}", value, unit)
    if not least <= checked <= most:
        raise InvalidError(f"Retries: {name} must be {least} to {most} {unit}, got {value}")
    return checked


def policy_of(what: str, value: Any) -> RetryPolicy:
    """The policy of `retries=3` (a fixed second between attempts) or `retries=Retries(…)`."""
    if isinstance(value, Retries):
        return value.policy
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f"{what} is a number or kedge.Retries(max_retries=…), not {value!r}")
    return RetryPolicy(max_retries=validation.whole_number(what, value))
