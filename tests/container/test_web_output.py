"""What code prints while it answers belongs to its request, in whatever thread that is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.wire.records import STDERR
from tests.container.test_attribution import Listener
from tests.container.web_plane import WebPlane, web_function


class Overhears(WebPlane, Listener):
    """An ingress that also hears what the container prints."""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Overhears]:
    plane = Overhears(tmp_path)
    yield plane
    plane.stop()


def test_a_plain_handler_prints_for_its_request(plane: Overhears) -> None:
    plane.start(web_function("order", 3, kind="fastapi_endpoint", method="POST"))
    json = {"content-type": "application/json"}
    visits = [plane.visit("/", "POST", b'{"name": "%s"}' % name, json) for name in (b"oar", b"mast")]
    assert [visit.status for visit in visits] == [200, 200]
    assert all(visit.result.status == "success" for visit in visits)
    plane.until(lambda: plane.lines(visits[1].lease))
    assert [plane.lines(visit.lease) for visit in visits] == [["an order of oar"], ["an order of mast"]]


@pytest.mark.parametrize("max_inputs", [1, 3])
def test_a_wsgi_app_prints_for_its_request(plane: Overhears, max_inputs: int) -> None:
    plane.start(web_function("site", max_inputs, kind="wsgi_app", module="tests.container.mill"))
    visit = plane.visit("/")
    assert visit.result.status == "success"
    plane.until(lambda: plane.lines(visit.lease))
    assert plane.lines(visit.lease) == [f"hello from {visit.json()['input']}"]


@pytest.mark.parametrize(
    ("name", "kind", "module", "path", "last"),
    [
        ("site", "asgi_app", "gallery", "/broken", "RuntimeError: no frame"),
        ("rough", "asgi_app", "tests.container.rough", "/raises-before", "ValueError: no idea"),
        ("plain", "wsgi_app", "tests.container.mill", "/cannot-recover", "ValueError: too late"),
    ],
)
def test_what_its_code_raises_is_printed_for_the_request(
    plane: Overhears, name: str, kind: str, module: str, path: str, last: str
) -> None:
    plane.start(web_function(name, 2, kind=kind, module=module))
    visit = plane.visit(path)
    assert visit.result.status == "failure"
    plane.until(lambda: plane.lines(visit.lease, STDERR))
    first, *rest = plane.lines(visit.lease, STDERR)
    assert first.startswith((f"kedge: {name}() failed ", f"kedge: {name}() raised while answering "))
    assert f" GET {path}" in first
    assert (rest[0], rest[-1]) == ("Traceback (most recent call last):", last)
    assert "/starlette/" not in "".join(rest), "what leads to the handler is always the same"


def test_what_apps_do_beside_requests_belongs_to_nobody(plane: Overhears) -> None:
    plane.start(web_function("careless_lifespan", 2, module="tests.container.rough"))
    assert plane.visit("/").text == "done"
    plane.until(lambda: any("is served without a lifespan" in line for line in plane.lines(0, STDERR)))
