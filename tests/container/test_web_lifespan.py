"""What web apps leave behind, and when: a real container against a plane that plays the ingress."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.model.spec import MethodSpec, WebSpec
from tests.container.web_plane import WebPlane, web_function


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[WebPlane]:
    plane = WebPlane(tmp_path)
    yield plane
    plane.stop()


def test_an_end_that_takes_its_time_is_waited_for(plane: WebPlane) -> None:
    methods = (MethodSpec(name="site", web=WebSpec("asgi_app")),)
    plane.start(web_function("SlowEnd", 1, module="tests.container.slow_end", is_class=True, methods=methods))
    plane.drain()
    assert plane.noted("ending") == ["ending"], "exit hooks come after the app"
    plane.allow("end")
    assert plane.wait_exit() == 0, plane.errors()
    assert plane.journal() == ["ending", "ended", "exit"]


@pytest.mark.parametrize("max_inputs", [1, 2])
def test_a_request_that_is_cancelled_leaves_nothing_behind(plane: WebPlane, max_inputs: int) -> None:
    """Also when it is the first, and nothing has ended in order yet. What is left would be reported at the end."""
    plane.start(web_function("site", max_inputs))
    visit = plane.visit("/slow")
    plane.noted("begin slow")
    visit.cancel()
    plane.noted("CancelledError slow")
    assert visit.result.status == "terminated"
    plane.drain()
    assert plane.wait_exit() == 0
    assert plane.errors() == ""
