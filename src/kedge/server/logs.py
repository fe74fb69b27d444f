"""What containers print: kept in a file per container, handed to the sessions that watch the app.

Files lie under `KEDGE_HOME/logs/<app>/<container>.log` and can be read without a server. Each holds at most LIMIT
bytes; what comes later is counted, and said once at the end of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from kedge.model.protocol import OutputCaptured

LIMIT = 8 * 1024 * 1024
"""Bytes of one container's file: enough to find out what happened, too little to fill a disk."""


class OutputLog:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, int] = {}
        self._watchers: dict[str, dict[str, None]] = {}

    def write(self, captured: OutputCaptured) -> list[str]:
        """Keeps the bytes; gives the sessions that want to see them."""
        self._keep(captured)
        return list(self._watchers.get(captured.app, ()))

    def subscribe(self, app: str, session: str) -> None:
        self._watchers.setdefault(app, {})[session] = None

    def unsubscribe(self, session: str) -> None:
        for app, sessions in list(self._watchers.items()):
            sessions.pop(session, None)
            if not sessions:
                del self._watchers[app]

    def close(self, container: str) -> None:
        """The container is gone."""
        file = self._files.pop(container, None)
        size = self._sizes.pop(container, 0)
        if file is not None:
            with file:
                if size > LIMIT:
                    file.write(f"\n[kedge: {size - LIMIT} further bytes were not kept]\n".encode())

    def close_all(self) -> None:
        for container in list(self._files):
            self.close(container)

    def _keep(self, captured: OutputCaptured) -> None:
        container = captured.container
        file = self._files.get(container)
        if file is None:
            directory = self._directory / (captured.app or "unknown")
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self._files[container] = (directory / f"{container}.log").open("ab", buffering=0)
            Path(file.name).chmod(0o600)
        size = self._sizes.get(container, 0)
        self._sizes[container] = size + len(captured.data)
        if size < LIMIT:
            try:
                file.write(captured.data[: LIMIT - size])
            except OSError:
                # A full disk loses the log, not the work.
                self._sizes[container] = max(size, LIMIT)
