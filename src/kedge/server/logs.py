"""What containers print: kept in a file per container, handed to the sessions that watch the app.

Files lie under `KEDGE_HOME/logs/<app>/<container>.log` and can be read without a server. Each holds at most LIMIT
bytes; what comes later is counted, and said once at the end of the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from kedge.model.protocol import OutputCaptured

LIMIT = 8 * 1024 * 1024
"""Bytes of one container's file: enough to find out what happened, too little to fill a disk."""


class OutputLog:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, int] = {}
        """Bytes that each container has written, kept or not."""
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
            try:
                with file:
                    if size > LIMIT:
                        file.write(f"\n[kedge: {size - LIMIT} further bytes were not kept]\n".encode())
            except OSError:
                pass

    def close_all(self) -> None:
        for container in list(self._files):
            self.close(container)

    def _keep(self, captured: OutputCaptured) -> None:
        """A full disk loses the log, not the work."""
        container = captured.container
        size = self._sizes.get(container, 0)
        self._sizes[container] = size + len(captured.data)
        if size >= LIMIT:
            return
        try:
            file = self._files.get(container)
            if file is None:
                file = self._files[container] = self._open(captured.app or "unknown", container)
            file.write(captured.data[: LIMIT - size])
        except OSError:
            self._sizes[container] = max(self._sizes[container], LIMIT)

    def _open(self, app: str, container: str) -> BinaryIO:
        directory = self.directory / app
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory / f"{container}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "ab", buffering=0)
