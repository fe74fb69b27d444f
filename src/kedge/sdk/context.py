"""Where code runs: in which container, and for which input. The container room writes it, the SDK reads it.

The container is one value of the process, set once before user code is imported. The input is a context variable, so
that threads and tasks of concurrent inputs each see their own; `contextvars.copy_context` carries it into children.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Protocol

from msgspec import Struct, structs

from kedge.model.ids import input_id
from kedge.model.spec import FunctionSpec


class ContainerControl(Protocol):
    """What user code may ask of its own container (`kedge.experimental`), and what it is told by the SDK."""

    def get_concurrency(self) -> int: ...

    def set_concurrency(self, inputs: int) -> None: ...

    def stop_fetching_inputs(self) -> None: ...

    def block_loop(self, blocked: bool) -> None: ...


class ContainerContext(Struct, frozen=True, kw_only=True):
    """The container that this process is."""

    app_id: str
    app_name: str = ""
    address: str = ""
    """Where SDK calls made by user code connect to."""
    home: str = ""
    container: str = ""
    token: str = ""
    """Proves to the server that a connection comes from this container."""
    function: FunctionSpec | None = None
    control: ContainerControl | None = None


class Shelter(Protocol):
    """Where the code of an input runs: it can hold back what interrupts that code. See `kedge.shield`."""

    def enter(self, current: InputContext) -> None:
        """From here on nothing interrupts it. No effect in a thread that does not run the input's own code."""

    def leave(self, current: InputContext) -> bool:
        """Lets it be interrupted again. What was held back is raised here, or at the next await: then True."""


class InputContext:
    """The input that the current thread or task works on. For a batch: its first input, and all in `ids`."""

    __slots__ = (
        "attempt",
        "call",
        "cancelled",
        "deadline",
        "held_back",
        "index",
        "lease",
        "members",
        "method",
        "shelter",
        "shields",
        "voice",
    )

    def __init__(
        self,
        call: str,
        index: int,
        attempt: int = 0,
        method: str = "",
        members: tuple[tuple[str, int], ...] = (),
        lease: int = 0,
    ) -> None:
        self.call = call
        self.index = index
        """Which input of its call it is."""
        self.attempt = attempt
        """0 at the first try, 1 at the first retry."""
        self.method = method
        """The method of a class that it calls; empty for a function."""
        self.lease = lease
        self.members = members or ((call, index),)
        self.cancelled = ""
        """Why its work is no longer wanted: `cancelled` or `timeout`; empty while it is. Code that nothing interrupts
        (a loop in C, a thread of its own) asks this and ends by itself."""
        self.deadline = 0.0
        """When its time is over, as `time.perf_counter` counts; 0 before its code has begun."""
        self.shelter: Shelter | None = None
        self.shields = 0
        """How many blocks of `kedge.shield` its code is in."""
        self.held_back: Callable[[], object] | None = None
        """Interrupts a task that was shielded when that was due."""
        self.voice: Any = None
        """What it prints (`container.output`); None until it does."""

    @property
    def id(self) -> str:
        return input_id(self.call, self.index)

    @property
    def call_id(self) -> str:
        """The id of the call that it belongs to: `kedge.FunctionCall.from_id` finds it."""
        return self.call

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all members of the batch; for an input of its own, just that."""
        return tuple(input_id(call, index) for call, index in self.members)

    @property
    def remaining(self) -> float:
        """Seconds until its `timeout`: 0 when that is over, infinite where it has none."""
        return max(0.0, self.deadline - time.perf_counter()) if self.deadline else math.inf

    def __repr__(self) -> str:
        return f"<input {self.id}, attempt {self.attempt}{f', {self.cancelled}' if self.cancelled else ''}>"


_container: ContainerContext | None = None
_input: ContextVar[InputContext | None] = ContextVar("kedge_input", default=None)


def set_container(
    *,
    app_id: str,
    app_name: str = "",
    address: str = "",
    home: str = "",
    container: str = "",
    token: str = "",
    function: FunctionSpec | None = None,
    control: ContainerControl | None = None,
) -> None:
    """Says that this process is a container. Called once, before user code is imported."""
    global _container
    _container = ContainerContext(
        app_id=app_id,
        app_name=app_name,
        address=address,
        home=home,
        container=container,
        token=token,
        function=function,
        control=control,
    )


def set_control(control: ContainerControl) -> None:
    """From now on user code may ask the container for something: it takes inputs."""
    global _container
    assert _container is not None
    _container = structs.replace(_container, control=control)


def clear_container() -> None:
    """Forgets it: for tests that play container in their own process."""
    global _container
    _container = None


def container() -> ContainerContext | None:
    """The container this process is; None in a caller's process."""
    return _container


def enter_input(current: InputContext | None) -> Token[InputContext | None]:
    """From here on this thread or task works on `current`; None: on no input."""
    return _input.set(current)


def exit_input(token: Token[InputContext | None]) -> None:
    _input.reset(token)


def current_input() -> InputContext | None:
    """The input that the calling code works on; None outside of one.

    It has `id`, `call_id`, `index`, `attempt` and `method`, `ids` with all members of a batch, `remaining` seconds, and
    `cancelled`: empty while the work is wanted, else why it is not. Threads and tasks that the input starts see it too.

    Example:
        @app.function()
        def work(chunks):
            for chunk in chunks:
                if kedge.current_input().cancelled:
                    break
                long_call_into_c(chunk)
    """
    return _input.get()


get_input: Callable[[], InputContext | None] = _input.get
"""`current_input` for the path of every printed line: a builtin."""


def current_input_id() -> str | None:
    """The id of the input that the calling code works on; None outside a container.

    Within a batch it is the id of the batch's first input.

    Example:
        @app.function()
        def work(x):
            print(f"{kedge.current_input_id()}: {x}")
    """
    current = _input.get()
    return None if current is None else input_id(current.call, current.index)


def current_function_call_id() -> str | None:
    """The id of the call that the current input belongs to; None outside a container."""
    current = _input.get()
    return None if current is None else current.call


def is_local() -> bool:
    """Whether this process is not a container.

    Example:
        if kedge.is_local():
            print("on the caller's machine")
    """
    return _container is None
