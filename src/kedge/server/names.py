"""Names of what is kept in environments (secrets, dicts, queues, volumes): which there can be, and what is said where
one is taken, or is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kedge.exception import AlreadyExistsError, InvalidError, NotFoundError

NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
SHOWN = 10
"""Names of what there is instead."""


def check(kind: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidError(
            f"a {kind} cannot be called {name[:80]!r}: its name has letters, digits, '.', '-' and '_', 64 at most"
        )


def taken(kind: str, name: str, environment: str, advice: str = "") -> AlreadyExistsError:
    return AlreadyExistsError(f"there is a {kind} {name!r} in the environment {environment!r} already{advice}")


def missing(kind: str, name: str, environment: str, there: Iterable[str], advice: str) -> NotFoundError:
    """`there`: the names in this environment."""
    names = sorted(there)
    more = " and more" if len(names) > SHOWN else ""
    listed = f"there are {', '.join(names[:SHOWN])}{more}" if names else "there are none"
    return NotFoundError(f"there is no {kind} {name!r} in the environment {environment!r}; {listed}. {advice}")
