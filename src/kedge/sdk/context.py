"""Where code runs: in which container, and for which input. The container room writes it, the SDK reads it.

The container is one value of the process, set once before user code is imported. The input is a context variable, so
that threads and tasks of concurrent inputs each see their own; `contextvars.copy_context` carries it into children.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Protocol

from msgspec import Struct

from kedge.model.ids import input_id
from kedge.model.spec import FunctionSpec


class ContainerControl(Protocol):
    """What user code may ask of its own container (`kedge.experimental`)."""

    def get_concurrency(self) -> int: ...

    def set_concurrency(self, inputs: int) -> None: ...

    def stop_fetching_inputs(self) -> None: ...


class ContainerContext(Struct, frozen=True, kw_only=True):
    """The container that this process is."""

    app_id: str
    app_name: str = ""
    address: str = ""
    """Where SDK calls made by user code connect to."""
    home: str = ""
    container: str = ""
    function: FunctionSpec | None = None
    control: ContainerControl | None = None


class InputContext:
    """The input that the current thread or task works on. For a batch: its first input, and all in `members`."""

    __slots__ = ("attempt", "call", "cancelled", "index", "lease", "members", "method")

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
        self.attempt = attempt
        self.method = method
        self.lease = lease
        self.members = members or ((call, index),)
        self.cancelled = ""
        """`cancelled` or `timeout` once the work is no longer wanted; the executor sets it."""


_container: ContainerContext | None = None
_input: ContextVar[InputContext | None] = ContextVar("kedge_input", default=None)


def set_container(
    *,
    app_id: str,
    app_name: str = "",
    address: str = "",
    home: str = "",
    container: str = "",
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
        function=function,
        control=control,
    )


def clear_container() -> None:
    """Forgets it: for tests that play container in their own process."""
    global _container
    _container = None


def container() -> ContainerContext | None:
    """The container this process is; None in a caller's process."""
    return _container


def enter_input(current: InputContext) -> Token[InputContext | None]:
    """From here on this thread or task works on `current`."""
    return _input.set(current)


def exit_input(token: Token[InputContext | None]) -> None:
    _input.reset(token)


def current_input() -> InputContext | None:
    return _input.get()


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
