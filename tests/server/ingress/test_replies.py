"""What a client hears whose request has ended without a response."""

from __future__ import annotations

import pytest

from kedge.model.payload import (
    FAILURE,
    INIT_FAILURE,
    INTERNAL_FAILURE,
    SUCCESS,
    TERMINATED,
    TIMEOUT,
    ErrorInfo,
    Result,
)
from kedge.server.ingress.replies import refusal_of, refusal_of_call, too_many_connections


@pytest.mark.parametrize(
    ("result", "status", "text"),
    [
        (Result(SUCCESS), 500, "web ended without a response; its log says more: kedge logs"),
        (Result(FAILURE, error=ErrorInfo("ValueError", "secret")), 500, "web failed; its log says why: kedge logs"),
        (Result(TIMEOUT), 504, "web did not respond within its timeout; raise timeout= of the function"),
        (
            Result(TIMEOUT, error=ErrorInfo("QueueTimeoutError", "too late")),
            503,
            "web was busy for too long; try again later",
        ),
        (
            Result(INIT_FAILURE, error=ErrorInfo("ImportError", "secret")),
            500,
            "web could not start; its log says why: kedge logs",
        ),
        (
            Result(INTERNAL_FAILURE),
            502,
            "the container of web died before it had responded; its log may say why: kedge logs",
        ),
        (Result(TERMINATED), 503, "web has been stopped; deploy or run it again"),
        (
            Result(FAILURE, error=ErrorInfo("ResourceExhaustedError", "full", retry_after=2.1)),
            503,
            "too many requests wait for web; try again later",
        ),
    ],
)
def test_each_end_has_its_status(result: Result, status: int, text: str) -> None:
    refusal = refusal_of(result, "web")
    assert (refusal.status, refusal.text, refusal.close) == (status, text, False)
    assert refusal_of(result, "web", "shop").text == text.replace("kedge logs", "kedge app logs shop")


def test_who_may_come_again_hears_when() -> None:
    full = refusal_of(Result(FAILURE, error=ErrorInfo("ResourceExhaustedError", "", retry_after=2.1)), "web")
    assert full.headers == [(b"retry-after", b"3")]
    late = refusal_of(Result(TIMEOUT, error=ErrorInfo("QueueTimeoutError", "")), "web")
    assert late.headers == [(b"retry-after", b"1")]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ErrorInfo("ExecutionError", "x"), 503, "web has been stopped; deploy or run it again"),
        (ErrorInfo("NotFoundError", "x"), 503, "web has been stopped; deploy or run it again"),
        (ErrorInfo("X", "x", retry_after=1.0), 503, "too many requests wait for web; try again later"),
        (
            ErrorInfo("InternalError", "x"),
            500,
            "web could not be called; the log of the server says why: kedge server logs",
        ),
    ],
)
def test_a_call_that_was_refused(error: ErrorInfo, status: int, text: str) -> None:
    refusal = refusal_of_call(error, "web")
    assert (refusal.status, refusal.text) == (status, text)


def test_too_many_connections() -> None:
    refusal = too_many_connections(7)
    assert (refusal.status, refusal.text) == (503, "this server has 7 connections open already; try again in a moment")
