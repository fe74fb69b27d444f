"""`LocalEntrypoint`: the function that `kedge run` runs in the caller's process, inside the running app."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from kedge.sdk.app import App

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class LocalEntrypoint(Generic[P, R_co]):
    """Made by `@app.local_entrypoint()`. Calling it calls the function."""

    def __init__(self, app: App, name: str, raw: Callable[P, R_co]) -> None:
        self.app = app
        self.name = name
        self.raw = raw
        functools.update_wrapper(self, raw)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.raw(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<kedge.LocalEntrypoint {self.name}>"
