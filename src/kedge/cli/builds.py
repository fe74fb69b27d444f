"""What a person sees of images being built: a line for each step that stays, and live lines below. Pure.

Steps that are there already are not worth a line: of an image that is all cached nothing is said.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from kedge.cli.lines import plain
from kedge.cli.progress import render, seconds, spinner
from kedge.model.protocol import ImageProgressed

SHOWN = 8
"""Images with lines of their own."""
LONG_S = 1.0
"""Seconds from which on a whole image is worth a line."""
SHORT_S = 0.1
"""Seconds below which a step is not."""


class Build:
    """One image that is being built."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.step, self.steps = 0, 0
        self.title = ""
        self.since = 0.0
        self.waiting = False
        self.built = 0
        self.last = ""
        """The last line of output of its step."""

    @property
    def name(self) -> str:
        return f" of {self.image}" if self.image else ""


class Builds:
    """All images of a run."""

    def __init__(self) -> None:
        self._open: dict[str, Build] = {}

    def feed(self, image: str, message: ImageProgressed, now: float) -> list[str]:
        """What is to be read once."""
        if not message.step and message.state in ("finished", "cached", "failed"):
            build = self._open.pop(image, None)
            if build is None or message.state != "finished" or message.seconds < LONG_S or build.built < 2:
                return []
            return [f"image{build.name}: built in {seconds(message.seconds)}"]
        build = self._open.setdefault(image, Build(image))
        if message.state == "output":
            build.last = next((line for line in reversed(message.text.splitlines()) if line.strip()), build.last)
            return []
        waited, build.waiting = build.waiting, message.state == "waiting"
        if build.waiting:
            return [] if waited else [f"image{build.name}: another program builds the same; waiting for it"]
        if message.step:
            build.step, build.steps = message.step, message.steps
        if message.state == "started":
            build.title, build.since, build.last = message.title, now, ""
            return []
        title, build.title = message.title or build.title, ""
        if message.state != "finished":
            return []
        build.built += 1
        if message.seconds < SHORT_S:
            return []
        return [f"image{build.name}: {title}, {seconds(message.seconds)}"]

    def live(self, console: Console, now: float, elapsed: float) -> list[str]:
        """One line per image, with the last line of its output; never wider than the terminal."""
        running = [build for build in list(self._open.values()) if build.title or build.waiting]
        lines: list[str] = []
        for build in running[:SHOWN]:
            lines += render(console, _line(build, now, elapsed))
            if build.last and not build.waiting:
                lines += render(console, Text(f"    {plain(build.last.encode())}", "dim"))
        if len(running) > SHOWN:
            lines += render(console, Text(f"  … and {len(running) - SHOWN} more", "dim"))
        return lines


def _line(build: Build, now: float, elapsed: float) -> Text:
    sign = (spinner(elapsed), "cyan")
    if build.waiting:
        return Text.assemble(sign, f" image{build.name}  ", ("another program builds the same", "dim"))
    place = f"  step {build.step} of {build.steps}, {seconds(max(0.0, now - build.since))}  "
    return Text.assemble(sign, f" building the image{build.name}", (place, "dim"), (build.title, "bold"))


def began(image: str, message: ImageProgressed) -> str:
    """What a file gets when a step begins.

    >>> began("", ImageProgressed(1, "started", 2, 3, "pip_install numpy"))
    'building the image: pip_install numpy (step 2 of 3)'
    """
    of = f" of {image}" if image else ""
    return f"building the image{of}: {message.title} (step {message.step} of {message.steps})"
