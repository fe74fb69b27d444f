"""What the ingress answers by itself: a status, a short plain text that says what to do, never details of the code.

Pure. A `Refusal` is raised wherever a request cannot be served; `refusal_of` says what the end of an input means to a
client that has had no response yet.
"""

from __future__ import annotations

import math

from kedge.model.payload import FAILURE, INIT_FAILURE, INTERNAL_FAILURE, SUCCESS, TIMEOUT, ErrorInfo, Result

Headers = list[tuple[bytes, bytes]]

QUEUE_RETRY_S = 1
"""Seconds after which a client whose request has waited too long may come again: what it waited for is full."""
ENDING_RETRY_S = 2
"""The same where the server ends: a restart takes about as long."""


class Refusal(Exception):
    """A request that gets a plain text instead of the answer of a web function."""

    def __init__(self, status: int, text: str, *headers: tuple[bytes, bytes], close: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers: Headers = list(headers)
        self.close = close
        """Nothing more can be understood on this connection."""


def bad_request(text: str, status: int = 400) -> Refusal:
    """What was sent is no HTTP request that may be answered: the connection ends with it."""
    return Refusal(status, text, close=True)


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    return b"retry-after", b"%d" % max(1, math.ceil(seconds))


def server_ends() -> Refusal:
    return Refusal(503, "this kedge server is stopping; try again in a moment", retry_after(ENDING_RETRY_S), close=True)


def too_many_connections(most: int) -> Refusal:
    return Refusal(503, f"this server has {most} connections open already; try again in a moment", retry_after(1))


def refusal_of(result: Result, name: str, app: str = "") -> Refusal:
    """What a client hears whose request to the function `name` of `app` has ended without a response."""
    look = f"kedge app logs {app}" if app else "kedge logs"
    status, error = result.status, result.error
    kind = error.type if error is not None else ""
    if error is not None and error.retry_after > 0 and status == FAILURE:
        return Refusal(503, f"too many requests wait for {name}; try again later", retry_after(error.retry_after))
    if kind == "QueueTimeoutError":
        return Refusal(503, f"{name} was busy for too long; try again later", retry_after(QUEUE_RETRY_S))
    if status == SUCCESS:
        return Refusal(500, f"{name} ended without a response; its log says more: {look}")
    if status == FAILURE:
        return Refusal(500, f"{name} failed; its log says why: {look}")
    if status == TIMEOUT:
        return Refusal(504, f"{name} did not respond within its timeout; raise timeout= of the function")
    if status == INIT_FAILURE:
        return Refusal(500, f"{name} could not start; its log says why: {look}")
    if status == INTERNAL_FAILURE:
        return Refusal(502, f"the container of {name} died before it had responded; its log may say why: {look}")
    return Refusal(503, f"{name} has been stopped; deploy or run it again", retry_after(QUEUE_RETRY_S))


def refusal_of_call(error: ErrorInfo, name: str) -> Refusal:
    """The same where the call could not even wait."""
    if error.retry_after > 0:
        return Refusal(503, f"too many requests wait for {name}; try again later", retry_after(error.retry_after))
    if error.type in ("NotFoundError", "ExecutionError"):
        return Refusal(503, f"{name} has been stopped; deploy or run it again", retry_after(QUEUE_RETRY_S))
    return Refusal(500, f"{name} could not be called; the log of the server says why: kedge server logs")
