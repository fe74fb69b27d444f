"""Prefixed identifiers, made once and never parsed for meaning by the core.

Clients make the ids of calls (`fc-`), so that a resend after a broken connection is a duplicate and not a second
call. An input is named by its call and its index in it; `input_id` gives the one string that people see.
"""

from __future__ import annotations

from typing import Protocol

APP = "ap"
FUNCTION = "fu"
CALL = "fc"
INPUT = "in"
CONTAINER = "ct"
IMAGE = "im"


class IdFactory(Protocol):
    """Makes ids that are unique for the life of a state directory. Injected, so that a simulation can repeat itself."""

    def __call__(self, prefix: str) -> str: ...


def input_id(call: str, index: int) -> str:
    """The public id of one input: `in-<call>-<index>`.

    >>> input_id("fc-0123abcd", 7)
    'in-0123abcd-7'
    """
    return f"{INPUT}-{call[3:]}-{index}"


def parse_input_id(text: str) -> tuple[str, int]:
    """The call and index behind a public input id; ValueError where it is none.

    >>> parse_input_id("in-0123abcd-7")
    ('fc-0123abcd', 7)
    """
    prefix, _, rest = text.partition("-")
    call, _, index = rest.rpartition("-")
    if prefix != INPUT or not call or not index.isdecimal():
        raise ValueError(f"{text!r} is not an input id (expected {INPUT}-<call>-<number>)")
    return f"{CALL}-{call}", int(index)


def function_id(app: str, name: str) -> str:
    """The id of a function within its app: the same name always gives the same id.

    >>> function_id("ap-77aa", "square")
    'fu-77aa-square'
    """
    return f"{FUNCTION}-{app[3:]}-{name}"


def deployment_id(environment: str, name: str, served: bool = False) -> str:
    """The id that stands for the current version of a deployed app: the same for ever, also after it was stopped and
    deployed again, so that handles which others hold stay good. An app that is `served` for a while has one of its own.

    >>> deployment_id("main", "chat")
    'ap-9ff733bb9e2a0446'
    """
    import hashlib  # not at the top, for the time of `import kedge`

    text = f"{environment}/{name}{'~dev' if served else ''}"
    return f"{APP}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def app_of(function: str) -> str:
    """The app that a function or a pool belongs to.

    >>> app_of("fu-77aa-square"), app_of("fu-77aa-Model@9f3c")
    ('ap-77aa', 'ap-77aa')
    """
    return f"{APP}-{function[3:].partition('-')[0]}"


def pool_id(function: str, variant: str = "") -> str:
    """The id of a pool: a function, and the digest of its parameters and options where it has any.

    >>> pool_id("fu-77aa-Model", "9f3c")
    'fu-77aa-Model@9f3c'
    """
    return f"{function}@{variant}" if variant else function
