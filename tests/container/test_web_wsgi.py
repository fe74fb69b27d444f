"""Requests to WSGI apps, which run as synchronous inputs do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.container.wsgi import environ_of
from kedge.model.spec import MethodSpec, WebSpec
from kedge.model.web import WEB_WINDOW, BodySent, Request, ResponseStarted
from tests.container.web_plane import WebPlane, web_function

MILL = "tests.container.mill"
SLOTS = [1, 3]
"""On the main thread, and on threads."""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[WebPlane]:
    plane = WebPlane(tmp_path)
    yield plane
    plane.stop()


def flask(plane: WebPlane, max_inputs: int = 1, **more: object) -> WebPlane:
    plane.start(web_function("site", max_inputs, kind="wsgi_app", module=MILL, **more))
    return plane


def plain(plane: WebPlane, max_inputs: int = 1, **more: object) -> WebPlane:
    plane.start(web_function("plain", max_inputs, kind="wsgi_app", module=MILL, **more))
    return plane


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_requests_are_answered_where_synchronous_inputs_run(plane: WebPlane, max_inputs: int) -> None:
    flask(plane, max_inputs)
    for _ in range(2):
        visit = plane.visit("/")
        assert visit.json() == {"input": f"in-{visit.dispatch.call[3:]}-0", "main": max_inputs == 1}
        assert visit.headers["content-type"] == "application/json"
        assert visit.result.status == "success"
        assert visit.frames == 1
        assert [type(event) for event in visit.events] == [ResponseStarted, BodySent]
    assert plane.visit("/nowhere").status == 404
    plane.drain()
    assert plane.wait_exit() == 0


def test_as_many_run_at_once_as_there_are_slots(plane: WebPlane) -> None:
    flask(plane, 45)
    visits = [plane.visit("/meet/45") for _ in range(45)]
    assert len({visit.text for visit in visits}) == 45


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_the_environ_is_as_pep_3333_wants_it(plane: WebPlane, max_inputs: int) -> None:
    plain(plane, max_inputs)
    headers = {"Content-Type": "text/x", "Cookie": "a=1", "X-Twice": "1", "x_twice": "forged", "Accept": "é"}
    visit = plane.visit("/environ?q=%20", "PUT", b"abc", headers, root_path="", scheme="https", http_version="1.0")
    assert visit.text == "done"
    assert "said on the side" in plane.errors()
    (line,) = plane.journal()
    assert dict(eval(line)) == {
        "CONTENT_LENGTH": "3",
        "CONTENT_TYPE": "text/x",
        "HTTP_ACCEPT": "Ã©",
        "HTTP_COOKIE": "a=1",
        "HTTP_HOST": "shop.test",
        "HTTP_X_TWICE": "1",
        "PATH_INFO": "/environ",
        "QUERY_STRING": "q=%20",
        "REMOTE_ADDR": "10.1.2.3",
        "REMOTE_PORT": "4567",
        "REQUEST_METHOD": "PUT",
        "REQUEST_URI": "/environ?q=%20",
        "SCRIPT_NAME": "",
        "SERVER_NAME": "shop.test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "wsgi.input_terminated": True,
        "wsgi.multiprocess": True,
        "wsgi.multithread": max_inputs > 1,
        "wsgi.run_once": False,
        "wsgi.url_scheme": "https",
        "wsgi.version": (1, 0),
    }


def test_a_label_is_the_script_name_and_texts_are_bytes(plane: WebPlane) -> None:
    plain(plane)
    path = "/environ"
    visit = plane.visit(path, root_path="/mill-site", headers={"X-A": "1"}, raw_path=b"/mill-site/%65nviron")
    assert visit.text == "done"
    seen = dict(eval(plane.journal()[0]))
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/mill-site", "/environ")
    assert seen["REQUEST_URI"] == "/mill-site/%65nviron"


def test_bytes_of_a_path_that_are_no_utf8_are_kept() -> None:
    request = Request(path="/s/a\ufffdb/ä", raw_path=b"/s/a%ffb/%c3%a4", root_path="/s")
    seen = environ_of(request, None, False)
    assert seen["PATH_INFO"].encode("latin-1") == b"/a\xffb/\xc3\xa4"


def test_headers_that_come_twice_are_joined(plane: WebPlane) -> None:
    plain(plane)
    plane.visit("/environ", headers=[("x-a", "1"), ("x-a", "2"), ("cookie", "a=1"), ("cookie", "b=2")]).text  # noqa: B018
    seen = dict(eval(plane.journal()[0]))
    assert (seen["HTTP_X_A"], seen["HTTP_COOKIE"]) == ("1,2", "a=1; b=2")


@pytest.mark.parametrize("max_inputs", SLOTS)
@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/writes", 201, "one two three"),
        ("/late-start", 202, "late"),
        ("/recovers", 500, "recovered"),
        ("/closing", 200, "ab"),
        ("/empty", 200, ""),
    ],
)
def test_all_ways_to_answer(plane: WebPlane, max_inputs: int, path: str, status: int, text: str) -> None:
    plain(plane, max_inputs)
    visit = plane.visit(path)
    assert (visit.status, visit.text) == (status, text)
    assert visit.result.status == "success"
    assert plane.journal() == (["close"] if path == "/closing" else [])


def test_head_has_no_body(plane: WebPlane) -> None:
    plain(plane)
    assert plane.visit("/writes", "HEAD").content == b""
    assert plane.visit("/too-short", "HEAD").headers["content-length"] == "3"


def test_an_answer_that_is_there_does_not_wait_for_its_code(plane: WebPlane) -> None:
    plain(plane)
    visit = plane.visit("/sized")
    assert visit.text == "done"
    assert visit.lease not in plane.finished
    plane.allow("sized")
    assert visit.result.status == "success"
    assert [event.data for event in visit.of(BodySent)] == [b"done"]


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_a_class_mixes_apps_of_both_kinds_and_methods(plane: WebPlane, max_inputs: int) -> None:
    methods = (
        MethodSpec(name="old", web=WebSpec("wsgi_app")),
        MethodSpec(name="new", web=WebSpec("asgi_app")),
        MethodSpec(name="where"),
    )
    plane.start(web_function("Mixed", max_inputs, module=MILL, is_class=True, methods=methods))
    for _ in range(2):
        assert plane.visit(function="old").text == "ab"
        assert plane.visit(function="new").text == "new"
        assert plane.call(method="where") is (max_inputs == 1)


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_a_body_is_read_as_it_comes(plane: WebPlane, max_inputs: int) -> None:
    plain(plane, max_inputs)
    piece = b"x" * (WEB_WINDOW // 4)
    visit = plane.visit("/reads", "POST", more_body=True)
    for number in range(8):
        visit.body(piece)
        plane.noted(str(len(piece) * (number + 1)))
    plane.until(lambda: visit.credited == len(piece) * 8)
    visit.body(b"", more=False)
    assert visit.text == str(len(piece) * 8)


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_frameworks_read_bodies(plane: WebPlane, max_inputs: int) -> None:
    flask(plane, max_inputs)
    assert plane.visit("/size", "POST", b"x" * 50_000).text == "50000"
    visit = plane.visit("/size", "POST", b"head", more_body=True)
    visit.body(b"body")
    visit.body(b"tail", more=False)
    assert visit.text == "12", "of a body whose length nobody said"
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        + b"y" * 70_000
        + b"\r\n--b--\r\n"
    )
    upload = plane.visit(
        "/upload", "POST", form[:100], {"content-type": "multipart/form-data; boundary=b"}, more_body=True
    )
    upload.body(form[100:50_000])
    upload.body(form[50_000:], more=False)
    assert upload.text == "a.txt 70000"


@pytest.mark.parametrize("more", [False, True])
def test_the_input_is_a_file(plane: WebPlane, more: bool) -> None:
    plain(plane)
    text = b"first\nabcsecond\nthird"
    if more:
        visit = plane.visit("/lines", "POST", text[:3], more_body=True)
        visit.body(text[3:8])
        visit.body(text[8:], more=False)
    else:
        visit = plane.visit("/lines", "POST", text)
    assert visit.text == repr((b"first\n", b"abc", [b"second\n", b"third"], b""))


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_a_reader_that_takes_nothing_stops_the_code(plane: WebPlane, max_inputs: int) -> None:
    flask(plane, max_inputs)
    size = WEB_WINDOW // 4
    visit = plane.visit(f"/stream?count=20&size={size}", auto_credit=False)
    plane.until(lambda: len(visit.received) == WEB_WINDOW)
    plane.noted("part 4")
    plane.until(plane.is_asleep)
    assert plane.journal()[-1] == "part 4"
    visit.credit(size)
    plane.noted("part 5")
    visit.auto_credit = True
    plane.until(lambda: len(visit.received) == WEB_WINDOW + size)
    visit.credit(WEB_WINDOW)
    assert len(visit.content) == 20 * size
    assert plane.noted("closed")[-1] == "closed"


def test_a_large_part_is_cut(plane: WebPlane) -> None:
    plain(plane)
    visit = plane.visit("/large")
    assert visit.content == b"x" * 1_000_000
    assert max(len(event.data) for event in visit.of(BodySent)) <= WEB_WINDOW


# ---------------------------------------------------------------- apps that break the rules


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/twice", "start_response() was called twice; the second time it needs exc_info=sys.exc_info()"),
        ("/no-start", "the app gave a part of the body before it called start_response()"),
        ("/no-start-empty", "the app returned without calling start_response(): there is no answer"),
        ("/status-number", "the status of start_response() is a str such as '200 OK', not 200"),
        ("/status-text", "the status of start_response() is a str such as '200 OK', not 'OK'"),
        ("/status-low", "the status of start_response() is 200 to 999, not '101 Switching Protocols'"),
        ("/header-bytes", "the headers of start_response() are pairs of str, not [(b'a', b'b')]"),
        ("/header-split", "has a line break in it, or no name"),
        ("/text-body", "a part of the body must be bytes, not str: 'text'"),
        ("/too-long", "the body of the response is 1 bytes longer than its content-length"),
    ],
)
def test_an_app_that_breaks_the_rules_is_told(plane: WebPlane, path: str, told: str) -> None:
    plain(plane)
    visit = plane.visit(path)
    assert visit.result.status == "failure"
    assert visit.events == []
    assert f"kedge: plain() failed at GET {path}; its client gets 500" in plane.errors()
    assert told in plane.errors()
    assert plane.visit("/writes").text == "one two three", "the next one is answered"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/cannot-recover", "ValueError: too late"),
        ("/closing-broken", "ValueError: no more"),
        ("/too-short", "the body of the response is 1 bytes shorter than its content-length"),
    ],
)
def test_an_app_that_fails_in_the_middle_cuts_its_client_off(plane: WebPlane, path: str, told: str) -> None:
    plain(plane, 3)
    visit = plane.visit(path)
    assert visit.result.status == "failure"
    assert visit.received
    assert not visit.complete
    assert f"kedge: plain() failed in the middle of its answer to GET {path}; its client is cut off" in plane.errors()
    assert told in plane.errors()
    assert plane.journal() == (["close"] if path == "/closing-broken" else [])


def test_a_websocket_is_refused(plane: WebPlane) -> None:
    flask(plane)
    visit = plane.socket("/")
    assert (visit.status, visit.text) == (400, "this address answers HTTP, and no WebSockets\n")
    assert visit.result.status == "success"


def test_a_framework_answers_for_broken_code(plane: WebPlane) -> None:
    flask(plane, 3)
    visit = plane.visit("/broken")
    assert visit.status == 500
    assert visit.result.status == "success"
    assert "RuntimeError: no water" in plane.errors()


# ---------------------------------------------------------------- clients that go


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_a_client_that_goes_interrupts_its_code(plane: WebPlane, max_inputs: int) -> None:
    flask(plane, max_inputs)
    visit = plane.visit("/slow")
    plane.noted("begin slow")
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.journal() == ["begin slow", "InputCancellation slow"]
    assert plane.visit("/nowhere").status == 404


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_waiting_for_more_of_a_body_can_be_interrupted(plane: WebPlane, max_inputs: int) -> None:
    plain(plane, max_inputs)
    visit = plane.visit("/reads", "POST", b"head", more_body=True)
    plane.noted("0")
    plane.until(plane.is_asleep)
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.visit("/writes").text == "one two three"


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_waiting_for_the_reader_can_be_interrupted(plane: WebPlane, max_inputs: int) -> None:
    flask(plane, max_inputs)
    visit = plane.visit(f"/stream?count=20&size={WEB_WINDOW}", auto_credit=False)
    plane.noted("part 1")
    plane.until(plane.is_asleep)
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.journal()[-1] == "closed"


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_a_shielded_block_ends_first(plane: WebPlane, max_inputs: int) -> None:
    plain(plane, max_inputs)
    visit = plane.visit("/shields")
    plane.noted("begin shielded")
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.journal() == ["begin shielded", "end shielded"]
    assert visit.events == []


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_what_cleans_up_may_write_and_is_hit_only_once(plane: WebPlane, max_inputs: int) -> None:
    plain(plane, max_inputs)
    visit = plane.visit("/cleans-up")
    plane.noted("begin")
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.journal() == ["begin", "cleaned up"]
    assert visit.events == []


@pytest.mark.parametrize("max_inputs", SLOTS)
def test_code_that_takes_too_long_is_interrupted(plane: WebPlane, max_inputs: int) -> None:
    flask(plane, max_inputs, timeout=0.1)
    visit = plane.visit("/slow")
    assert visit.result.status == "timeout"
    assert plane.journal() == ["begin slow", "InputTimeout slow"]
    assert "kedge: site() failed at GET /slow; its client gets 504" in plane.errors()
