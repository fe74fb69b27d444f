"""Commands that ask a server: which one, and how they hear that there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kedge.exception import AuthError, ConnectionError
from kedge.sdk import output, server_process
from kedge.sdk.client import Client

ANSWER_S = 60.0
"""Seconds that a server has for an answer; it takes milliseconds unless its disk is busy."""

Facts = dict[str, Any]


@contextmanager
def connected(so: str = "`kedge server start` starts one") -> Iterator[Client]:
    """The server in use, for the time of the `with` block. ConnectionError where there is none; `so` says what follows
    from that."""
    client = find()
    if client is None:
        raise ConnectionError(
            f"no server is running, {so}." if so.startswith("so ") else f"no server is running; {so}."
        )
    try:
        yield client
    finally:
        client.close()


@contextmanager
def provided() -> Iterator[Client]:
    """The server in use, for commands that put something there: where none runs, the machine's is started as `kedge
    deploy` does it, and stderr says so."""
    from kedge.sdk.runner import Session  # only these commands wait for it

    with output.show_on(output.PlainOutput()):
        session = Session.join(machine=True)
    try:
        yield session.client
    finally:
        session.leave()


def find() -> Client | None:
    """A connection to the server in use; None where none runs on this machine. ConnectionError or AuthError where one
    that was named (by a variable or a profile) cannot be reached."""
    found = server_process.find()
    if found is None:
        return None
    try:
        return Client.connect(found.address, found.token, found.tls_ca, found.token_of)
    except (ConnectionError, AuthError):
        if found.named:
            raise
        return None


def ask(client: Client, make: Callable[[int], Any], timeout: float = ANSWER_S) -> Any:
    return client.request(make, timeout)
