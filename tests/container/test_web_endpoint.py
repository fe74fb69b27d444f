"""`fastapi_endpoint`, classes with web methods, and the threads in which FastAPI runs plain functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.model.protocol import ConcurrencyChanged
from kedge.model.spec import Concurrency, MethodSpec, ParameterSpec, WebSpec
from kedge.sdk.parameters import encode
from tests.container.web_plane import WebPlane, web_function

JSON = {"content-type": "application/json"}
OAR = b'{"name": "oar", "price": 2.5}'


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[WebPlane]:
    plane = WebPlane(tmp_path)
    yield plane
    plane.stop()


def endpoint(plane: WebPlane, name: str, max_inputs: int = 1, **more: object) -> WebPlane:
    plane.start(web_function(name, max_inputs, kind="fastapi_endpoint", **more))
    return plane


# ---------------------------------------------------------------- one route


def test_a_function_is_one_route(plane: WebPlane) -> None:
    endpoint(plane, "order", method="POST")
    visit = plane.visit("/?times=2", "POST", OAR, JSON)
    assert visit.json() == {"oar": 5.0}
    assert plane.journal() == [f"False in-{visit.dispatch.call[3:]}-0"], "in a thread, and it knows its input"
    assert plane.visit("/", "POST", b"{}", JSON).status == 422
    assert plane.visit("/").status == 405
    assert plane.visit("/other", "POST", OAR, JSON).status == 404
    assert plane.visit("/docs").status == 404
    assert plane.visit("/openapi.json").status == 404


def test_async_functions_and_documentation(plane: WebPlane) -> None:
    endpoint(plane, "documented", docs=True, is_async=True)
    assert plane.visit("/?name=Bob").json() == "Hello Bob"
    assert plane.visit("/docs").status == 200
    schema = plane.visit("/openapi.json").json()
    assert list(schema["paths"]) == ["/"]
    assert schema["info"]["title"] == "documented"


def test_every_page_may_call_it(plane: WebPlane) -> None:
    endpoint(plane, "order", method="POST")
    asked = {"origin": "https://a.test", "access-control-request-method": "POST"}
    preflight = plane.visit("/", "OPTIONS", headers=asked | {"access-control-request-headers": "x-mine"})
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.test"
    assert preflight.headers["access-control-allow-credentials"] == "true"
    assert preflight.headers["access-control-allow-headers"] == "x-mine"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    answer = plane.visit("/", "POST", OAR, JSON | {"origin": "https://a.test"})
    assert answer.headers["access-control-allow-origin"] in ("*", "https://a.test")


def test_without_fastapi_the_container_says_what_to_install(plane: WebPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    plane.start(
        web_function("square", kind="fastapi_endpoint", module="shop"),
        ready=False,
    )
    told = plane.failure().message
    assert told.startswith(
        "square() has @kedge.fastapi_endpoint(), and FastAPI cannot be imported where containers run"
    )
    assert "kedge.Image.debian_slim().pip_install('fastapi')" in told


def test_a_class_serves_methods_of_all_kinds_from_the_same_slots(plane: WebPlane) -> None:
    methods = (
        MethodSpec(name="hello", web=WebSpec("fastapi_endpoint")),
        MethodSpec(name="sell", is_async=True, web=WebSpec("fastapi_endpoint", method="POST")),
        MethodSpec(name="site", web=WebSpec("asgi_app")),
        MethodSpec(name="count"),
    )
    spec = web_function("Shop", 2, is_class=True, methods=methods, parameters=(ParameterSpec("owner", "str"),))
    plane.start(spec, parameters=encode("Shop", {"owner": "Bob"}))
    assert plane.visit("/?name=Eve", function="hello").json() == "Bob welcomes Eve"
    assert plane.visit("/", "POST", OAR, JSON, function="sell").json() == 1
    assert plane.visit("/sold", function="site").json() == ["oar"]
    assert plane.call(method="count") == 1
    plane.drain()
    assert plane.wait_exit() == 0


# ---------------------------------------------------------------- threads


def test_plain_handlers_have_as_many_threads_as_there_are_slots(plane: WebPlane) -> None:
    plane.start(web_function("site", 45))
    visits = [plane.visit("/meet/45") for _ in range(45)]
    assert len({visit.json() for visit in visits}) == 45


def test_the_number_of_threads_grows_with_the_slots_and_never_falls_below_the_usual(plane: WebPlane) -> None:
    plane.start(web_function("threads", 50))
    assert plane.visit("/limit").json() == 50
    plane.send(ConcurrencyChanged(Concurrency(120, 120)))
    assert plane.visit("/limit").json() == 120
    plane.send(ConcurrencyChanged(Concurrency(2, 2)))
    assert plane.visit("/limit").json() == 40


def test_with_one_slot_a_thread_may_still_need_another_one(plane: WebPlane) -> None:
    plane.start(web_function("threads", 1))
    assert plane.visit("/nested").json() == "deep"


def test_threads_outlive_their_request(plane: WebPlane) -> None:
    plane.start(web_function("threads", 2))
    assert [plane.visit("/used").json() for _ in range(4)] == [1, 1, 1, 1]


def test_what_a_handler_raises_is_its_own(plane: WebPlane) -> None:
    plane.start(web_function("threads", 2))
    visit = plane.visit("/raises")
    assert (visit.status, visit.result.status) == (500, "failure")
    assert "LookupError: not here" in plane.errors()


@pytest.mark.parametrize("max_inputs", [1, 3])
def test_a_client_that_goes_interrupts_the_thread_of_its_handler(plane: WebPlane, max_inputs: int) -> None:
    endpoint(plane, "sleeper", max_inputs)
    visit = plane.visit("/?name=a")
    plane.noted("begin a")
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.journal() == ["begin a", "finally a"]
    again = plane.visit("/?name=b")
    plane.noted("begin b")
    again.cancel()
    assert again.result.status == "terminated"
    assert plane.errors() == ""


def test_siblings_go_on(plane: WebPlane) -> None:
    plane.start(web_function("site", 3))
    meeting, slow = plane.visit("/meet/2"), plane.visit("/slow-plain")
    plane.noted("begin slow plain")
    slow.cancel()
    assert slow.result.status == "terminated"
    other = plane.visit("/meet/2")
    assert {meeting.json(), other.json()} == {f"in-{v.dispatch.call[3:]}-0" for v in (meeting, other)}


def test_a_slot_is_held_until_the_thread_has_ended(plane: WebPlane) -> None:
    plane.start(web_function("threads", 1))
    visit = plane.visit("/stubborn")
    plane.noted("begin stubborn")
    visit.cancel()
    plane.noted("InputCancellation")
    assert visit.lease not in plane.finished
    plane.allow("stubborn")
    assert visit.result.status == "terminated"
    assert plane.journal() == ["begin stubborn", "InputCancellation", "end stubborn"]


def test_a_shielded_block_in_a_thread_ends_first(plane: WebPlane) -> None:
    plane.start(web_function("threads", 2))
    visit = plane.visit("/shielded")
    plane.noted("begin shielded")
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.journal() == ["begin shielded", "end shielded"]


def test_what_cleans_up_after_a_cancellation_is_left_alone(plane: WebPlane) -> None:
    plane.start(web_function("threads", 2))
    visit = plane.visit("/depends")
    plane.noted("begin depends")
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.journal() == ["connected", "begin depends", "cleaned up"]


def test_all_threads_of_a_request_are_interrupted(plane: WebPlane) -> None:
    plane.start(web_function("threads", 2))
    visit = plane.visit("/both")
    plane.noted("begin a", "begin b")
    visit.cancel()
    assert visit.result.status == "terminated"
    assert sorted(plane.journal()) == ["begin a", "begin b", "finally a", "finally b"]


def test_a_handler_that_takes_too_long_is_interrupted(plane: WebPlane) -> None:
    endpoint(plane, "sleeper", 2, timeout=0.1)
    visit = plane.visit("/?name=a")
    assert visit.result.status == "timeout"
    assert plane.journal() == ["begin a", "finally a"]
