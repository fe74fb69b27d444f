"""What people mean by a name or a part of an id: one of what there is, or an error that says what there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kedge.exception import InvalidError, NotFoundError
from kedge.sdk.usage import nearest

Facts = dict[str, Any]

SHOWN = 10
"""Names of what there is instead."""
SHORTEST = 3
"""Characters of an id that may stand for it, after its prefix."""


def matching(text: str, ids: Sequence[str]) -> list[str]:
    """The ids that `text` may stand for: itself, its beginning with or without the prefix, or its end.

    >>> matching("ct-12", ["ct-1234", "ct-3412"]), matching("412", ["ct-1234", "ct-3412"])
    ([], ['ct-3412'])
    >>> matching("ct-123", ["ct-1234", "ct-3412"])
    ['ct-1234']
    """
    if text in ids:
        return [text]
    if len(text.rpartition("-")[2]) < SHORTEST:
        return []
    starts = [id for id in ids if id.startswith(text) or id.partition("-")[2].startswith(text)]
    return starts or [id for id in ids if id.endswith(text)]


def one_of(
    text: str,
    facts: Sequence[Facts],
    *,
    id: str,
    what: str,
    name: str = "",
    prefer: Callable[[Facts], Any] = lambda facts: 0,
    advice: str = "",
) -> Facts:
    """The one that `text` stands for.

    Args:
        text: What was written.
        facts: What there is.
        id: Key of its id.
        what: What it is called in messages: `app`.
        name: Key of its name, if it has one that may be written instead. A whole id wins over a name.
        prefer: Of several with one name, those with the least of this are meant.
        advice: What to do where there is none.
    """
    whole = [one for one in facts if one[id] == text]
    if whole:
        return whole[0]
    named = [one for one in facts if name and one[name] == text]
    if named:
        least = min(map(prefer, named))
        found = [one for one in named if prefer(one) == least]
    else:
        ids = set(matching(text, [one[id] for one in facts]))
        found = [one for one in facts if one[id] in ids]
    if len(found) > 1:
        there = ", ".join(_shown(one, id, name) for one in found[:SHOWN])
        raise InvalidError(f"{text!r} stands for {len(found)} {what}s: {there}; write the whole id")
    if not found:
        names = list(dict.fromkeys(one[name or id] for one in facts))
        there = f" There are: {some(names)}." if names else ""
        tail = f" {advice}" if advice else ""
        raise NotFoundError(f"there is no {what} {text!r}.{nearest(text, names)}{there}{tail}")
    return found[0]


def absent(kind: str, name: str, environment: str, there: Sequence[Facts]) -> NotFoundError:
    """What is said where somebody wants to be rid of what is not there: not how to make it."""
    names = [one["name"] for one in there]
    listed = f"There are {some(names)}" if names else "There are none"
    return NotFoundError(
        f"there is no {kind} {name!r} in the environment {environment!r}.{nearest(name, names)} {listed}"
    )


def some(names: Sequence[str]) -> str:
    """
    >>> some(["a", "b"])
    'a, b'
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shown(one: Facts, id: str, name: str) -> str:
    return f"{one[id]} ({one[name]})" if name and one[name] else str(one[id])
