"""A deployed app as the core sees it: its versions, the current one, and one that is being tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedge.model.payload import ErrorInfo

if TYPE_CHECKING:
    from kedge.core.apps import App
    from kedge.core.pool import Pool


class Deployment:
    __slots__ = (
        "candidate",
        "current",
        "environment",
        "id",
        "last",
        "name",
        "origin",
        "session",
        "stop_requests",
        "versions",
    )

    def __init__(self, id: str, environment: str, name: str, session: str) -> None:
        self.id = id
        self.environment = environment
        self.name = name
        self.session = session
        """Whose end ends it; empty for a deployed app."""
        self.current: App | None = None
        """None where it has stopped, or the first version is still being tried."""
        self.candidate: Candidate | None = None
        self.versions: dict[int, App] = {}
        """Those that are there, by number. One that was rolled back to has several."""
        self.last = 0
        """The highest number that was ever given."""
        self.origin = 0
        """Of the current version: the one that it brought back, or 0."""
        self.stop_requests: list[tuple[str, int]] = []

    @property
    def number(self) -> int:
        """Of the current version; 0 where there is none."""
        return max((n for n, app in self.versions.items() if app is self.current), default=0)


class Candidate:
    """A version that is being tried."""

    def __init__(self, app: App, session: str, request: int, origin: int, before: App | None, began: float) -> None:
        self.app = app
        self.session = session
        self.request = request
        self.origin = origin
        self.began = began
        self.waits = False
        """Whether somebody has been told that it waits for the version before."""
        self.before = before
        """The version that has given way already (recreate); None where it serves meanwhile."""
        self.awaited: dict[Pool, None] = {}
        """Pools of which no container has come up."""
        self.unproved: list[str] = []
        """Functions for which there is no room at the moment."""
        self.error: ErrorInfo | None = None
