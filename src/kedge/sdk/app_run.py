"""`AppRun`: the time in which an app runs, as a context manager for sync and async code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.exception import ExecutionError
from kedge.sdk import context

if TYPE_CHECKING:
    from kedge.sdk.app import App
    from kedge.sdk.runner import RunningApp


class AppRun:
    """`app.run()`: enter it with `with` or `async with`."""

    def __init__(self, app: App, name: str | None, detach: bool, environment_name: str | None = None) -> None:
        self._app = app
        self._name = name
        self._detach = detach
        self._environment = environment_name
        self._running: RunningApp | None = None

    def _check(self) -> None:
        if context.container() is not None:
            raise ExecutionError(
                f"{self._app} runs already: this is one of its containers, which imports the file. Put what starts the "
                f"program under `if __name__ == '__main__':`; inside of a function, call other functions directly"
            )
        if self._app.runs:
            raise ExecutionError(f"{self._app} runs already; leave the first `with app.run():` before the second")

    def __enter__(self) -> App:
        from kedge.sdk import runner

        self._check()
        self._running = runner.run_app(
            self._app, detach=self._detach, name=self._name, environment_name=self._environment
        )
        return self._app

    def __exit__(self, *exc_info: object) -> None:
        assert self._running is not None
        self._running.close()

    async def __aenter__(self) -> App:
        from kedge.sdk import runner

        self._check()
        self._running = await runner.run_app_async(
            self._app, detach=self._detach, name=self._name, environment_name=self._environment
        )
        return self._app

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._running is not None
        await self._running.close_async()
