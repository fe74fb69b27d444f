"""What people see while images are built: a line per step that took time, live lines of the moment, nothing of what is
there already."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kedge.cli.builds import Builds
from kedge.cli.display import LiveDisplay, PlainDisplay
from kedge.cli.starting import Starting
from kedge.model.protocol import ImageProgressed


def progress(state: str, step: int = 0, **rest: object) -> ImageProgressed:
    return ImageProgressed(1, state, step, 3 if step else 0, **rest)  # type: ignore[arg-type]


def feed(builds: Builds, *messages: ImageProgressed, image: str = "", now: float = 100.0) -> list[str]:
    return [line for message in messages for line in builds.feed(image, message, now)]


def live(builds: Builds, now: float = 103.2, width: int = 100) -> list[str]:
    return builds.live(Console(file=io.StringIO(), width=width, color_system=None), now, 0.0)


def test_a_step_is_seen_while_it_runs_and_said_when_it_is_over() -> None:
    builds = Builds()
    assert feed(builds, progress("cached", 1), progress("started", 2, title="pip_install numpy")) == []
    feed(builds, progress("output", 2, text="Resolving\n\x1b[1mDownloading numpy\x1b[0m\n\n"))
    assert live(builds) == [
        "⠋ building the image  step 2 of 3, 3.2 s  pip_install numpy",
        "    Downloading numpy",
    ]
    assert all(len(line) <= 40 for line in live(builds, width=40))
    assert feed(builds, progress("finished", 2, seconds=4.2)) == ["image: pip_install numpy, 4.2 s"]
    assert live(builds) == []
    assert feed(builds, progress("started", 3, title="env A"), progress("finished", 3, seconds=0.01)) == []
    assert feed(builds, progress("finished", seconds=4.3)) == ["image: built in 4.3 s"]


def test_what_is_there_already_is_not_worth_a_line() -> None:
    builds = Builds()
    assert feed(builds, *(progress("cached", step) for step in (1, 2, 3)), progress("cached")) == []
    assert feed(builds, progress("cached")) == []
    assert live(builds) == []


def test_several_images_are_named_by_their_functions() -> None:
    builds = Builds()
    feed(builds, progress("started", 1, title="debian_slim 3.11"), image="f, g")
    assert feed(builds, progress("waiting", 1), progress("waiting", 1), image="h") == [
        "image of h: another program builds the same; waiting for it"
    ]
    assert live(builds) == [
        "⠋ building the image of f, g  step 1 of 3, 3.2 s  debian_slim 3.11",
        "⠋ image of h  another program builds the same",
    ]
    for number in range(20):
        feed(builds, progress("started", 1, title="x"), image=f"i{number}")
    assert live(builds)[-1] == "  … and 14 more"


def test_a_failure_leaves_no_line_behind() -> None:
    builds = Builds()
    feed(builds, progress("started", 2, title="pip_install nope"))
    assert feed(builds, progress("failed")) == []
    assert live(builds) == []


def test_without_a_terminal_each_step_is_said_when_it_begins(capfd: pytest.CaptureFixture[str]) -> None:
    display = Starting(PlainDisplay("app"))
    for message in (
        progress("started", 2, title="pip_install numpy"),
        progress("output", 2, text="Downloading"),
        progress("finished", 2, seconds=4.2),
    ):
        display.building("", message)
    assert capfd.readouterr().err == (
        "kedge: building the image: pip_install numpy (step 2 of 3)\nkedge: image: pip_install numpy, 4.2 s\n"
    )


def test_on_a_terminal_it_is_among_the_live_lines() -> None:
    display = LiveDisplay("app", io.StringIO())
    display.building("", progress("started", 2, title="pip_install numpy"))
    assert any("pip_install numpy" in line for line in display._compose())
