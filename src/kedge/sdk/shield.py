"""`shield`: a block of user code that is not interrupted."""

from __future__ import annotations

from types import TracebackType

from kedge.exception import ExecutionError
from kedge.sdk.context import InputContext, current_input


class shield:
    """Holds back the cancellation or timeout of the current input until the end of the block.

    In synchronous code `InputCancellation` is raised where the outermost block ends; in asynchronous code
    `CancelledError` at the end of an `async with`, and at the next `await` after a plain `with`. An exception of the
    block becomes its `__context__`. For the caller the input is over at once, and the grace period of the function goes
    on meanwhile: code that is still at it then goes down with its container.

    It protects the code of the input itself: the thread that runs a plain function, and all tasks of an `async def`. In
    another thread or executor that the input has started it does nothing (those are never interrupted anyway), and
    neither does it outside of a container.

    Example:
        @app.function()
        def transfer(amount):
            withdraw(amount)
            with kedge.shield():
                deposit(amount)
                write_receipt(amount)

    Raises:
        ExecutionError: this very object is in use already; each block needs its own.
    """

    __slots__ = ("_input",)

    def __init__(self) -> None:
        self._input: InputContext | None = None

    def __enter__(self) -> None:
        current = current_input()
        if current is not None and current.shelter is not None:
            if self._input is not None:
                raise ExecutionError(
                    "this kedge.shield() protects a block already; write `with kedge.shield():` anew for each block"
                )
            current.shelter.enter(current)
            self._input = current

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._leave():
            import asyncio

            await asyncio.sleep(0)

    def _leave(self) -> bool:
        current, self._input = self._input, None
        return current is not None and current.shelter is not None and current.shelter.leave(current)
