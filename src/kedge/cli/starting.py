"""What a person sees while a version is tried: which of its functions still start, and what they printed last.

An app that is deployed is none whose output is followed: only the newest line of each function that loads is shown, and
the rest is in its log.
"""

from __future__ import annotations

from kedge.cli.display import Display
from kedge.cli.lines import plain
from kedge.cli.progress import Statistics
from kedge.model.protocol import ImageProgressed, OutputCaptured


class Starting:
    """The output sink of a deploy."""

    def __init__(self, display: Display) -> None:
        self.progress_interval = display.progress_interval
        self._display = display
        self._said: dict[str, str] = {}
        """The last line of each pool: those of the version before are among them."""
        self._since: float | None = None
        """When containers were launched that are not all up. Building their image came before."""

    def captured(self, message: OutputCaptured) -> None:
        lines = [line for line in message.data.replace(b"\r", b"\n").split(b"\n") if line.strip()]
        if lines:
            self._said[message.pool] = plain(lines[-1])

    def notice(self, text: str, level: str = "info") -> None:
        self._display.notice(text, level)

    def progress(self, pools: list[Statistics]) -> None:
        loading = [pool for pool in pools if pool["starting"] and not pool["containers"]]
        now = self._display.elapsed
        if not loading:
            self._since = None
        elif self._since is None:
            self._since = now
        functions = [(str(pool["name"]), self._said.get(pool["pool"], "")) for pool in loading]
        self._display.starting(functions, now - (now if self._since is None else self._since))

    def building(self, image: str, message: ImageProgressed) -> None:
        self._display.building(image, message)
