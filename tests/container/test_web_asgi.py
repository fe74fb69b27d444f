"""Requests to ASGI apps: a real container against a plane that plays the ingress."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.model.payload import Payload
from kedge.model.protocol import InputsDispatched
from kedge.model.spec import MethodSpec, WebSpec
from kedge.model.web import WEB, WEB_MESSAGE, WEB_WINDOW, BodySent, MessageSent, ResponseStarted
from tests.container.fake_plane import function
from tests.container.web_plane import WebPlane, web_function


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[WebPlane]:
    plane = WebPlane(tmp_path)
    yield plane
    plane.stop()


def rough(plane: WebPlane, max_inputs: int = 4, **more: object) -> WebPlane:
    plane.start(web_function("rough", max_inputs, module="tests.container.rough", **more))
    return plane


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("max_inputs", [1, 4])
def test_requests_are_answered_by_one_app(plane: WebPlane, max_inputs: int) -> None:
    plane.start(web_function("site", max_inputs))
    first, second = plane.visit("/"), plane.visit("/")
    assert (first.status, first.headers["content-type"]) == (200, "application/json")
    assert first.json() == {"made": 1, "input": f"in-{first.dispatch.call[3:]}-0"}
    assert second.json() == {"made": 1, "input": f"in-{second.dispatch.call[3:]}-0"}
    assert first.result.status == second.result.status == "success"
    plane.drain()
    assert plane.wait_exit() == 0


def test_a_short_answer_and_the_end_of_its_input_share_a_frame(plane: WebPlane) -> None:
    plane.start(web_function("site", 4))
    for path in ("/", "/plain/a"):
        visit = plane.visit(path)
        assert visit.result.status == "success"
        assert visit.frames == 1
        assert [type(event) for event in visit.events] == [ResponseStarted, BodySent]


def test_bodies_and_parameters_reach_the_code(plane: WebPlane) -> None:
    plane.start(web_function("site"))
    posted = plane.visit("/items", "POST", b'{"name": "oar", "price": 2.5}', {"content-type": "application/json"})
    assert posted.json() == {"name": "oar", "double": 5.0}
    assert plane.visit("/items", "POST", b"{}", {"content-type": "application/json"}).status == 422
    assert plane.visit("/plain/b?size=3").text == "b b b "
    assert plane.visit("/nowhere").status == 404
    assert plane.visit("/items").status == 405


def test_the_scope_is_as_asgi_wants_it(plane: WebPlane) -> None:
    rough(plane)
    path = plane.visit("/scope?a=%20b", root_path="", http_version="1.0", scheme="https")
    assert path.text == "done"
    (line,) = plane.journal()
    assert eval(line) == [
        ("client", ("10.1.2.3", 4567)),
        ("extensions", {}),
        ("http_version", "1.0"),
        ("method", "GET"),
        ("path", "/scope"),
        ("query_string", b"a=%20b"),
        ("raw_path", b"/scope"),
        ("root_path", ""),
        ("scheme", "https"),
        ("server", ("shop.test", 80)),
        ("state", {"seen": 1}),
        ("type", "http"),
    ]


def test_under_a_label_the_app_finds_its_routes(plane: WebPlane) -> None:
    plane.start(web_function("site"))
    visit = plane.visit("/plain/b", root_path="/shop-site")
    assert visit.text == "b "


def test_head_has_no_body(plane: WebPlane) -> None:
    rough(plane)
    visit = plane.visit("/parts", "HEAD")
    assert (visit.status, visit.content) == (200, b"")
    assert plane.visit("/too-short", "HEAD").headers["content-length"] == "5"
    assert plane.visit("/not-modified").status == 304


def test_a_class_has_web_methods_and_others(plane: WebPlane) -> None:
    methods = (
        MethodSpec(name="first", web=WebSpec("asgi_app")),
        MethodSpec(name="second", web=WebSpec("asgi_app")),
    )
    plane.start(web_function("Living", 2, module="tests.container.rough", is_class=True, methods=methods))
    assert plane.visit(function="first").text == "done"
    assert plane.visit(function="second").text == "done"
    assert plane.visit(function="third").result.status == "failure"


def test_calls_and_requests_do_not_mix(plane: WebPlane) -> None:
    rough(plane)
    call = plane.result(plane.dispatch()).result
    assert call.status == "failure"
    assert "rough() is a web function: it answers requests to its address, and no calls" in call.error.message


def test_a_plain_function_answers_no_requests(plane: WebPlane) -> None:
    plane.start(function("square"))
    refused = plane.visit("/").result
    assert refused.status == "failure"
    assert "square() is no web function: a request cannot call it" in refused.error.message


def test_a_request_that_makes_no_sense_fails_alone(plane: WebPlane) -> None:
    rough(plane)
    dispatch = plane.input(payload=Payload(WEB, b"\xc1"), stream=True)
    plane.send(InputsDispatched([dispatch]))
    assert plane.result(dispatch.lease).result.status == "failure"


# ---------------------------------------------------------------- streams


def test_events_leave_as_they_are_sent(plane: WebPlane) -> None:
    rough(plane)
    visit = plane.visit("/events")
    for number in range(3):
        plane.until(lambda: visit.received.count(b"data:") == number + 1)  # noqa: B023
        assert not visit.complete
        plane.allow(f"event {number}")
    assert visit.content == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_a_reader_that_takes_nothing_stops_the_code(plane: WebPlane) -> None:
    plane.start(web_function("site", 2))
    size = WEB_WINDOW // 4
    visit = plane.visit(f"/stream?count=20&size={size}", auto_credit=False)
    plane.until(lambda: len(visit.received) == WEB_WINDOW)
    assert plane.visit("/").status == 200, "others go on"
    assert plane.journal()[-1] == "chunk 4", "it waits with the next chunk in its hands"
    visit.credit(size)
    plane.noted("chunk 5")
    plane.until(lambda: len(visit.received) == WEB_WINDOW + size)
    visit.auto_credit = True
    visit.credit(WEB_WINDOW)
    assert len(visit.content) == 20 * size


def test_a_large_body_is_cut(plane: WebPlane) -> None:
    rough(plane)
    visit = plane.visit("/gulps", auto_credit=False)
    plane.until(lambda: len(visit.received) == WEB_WINDOW)
    visit.credit(1)  # too little to be worth a piece
    assert plane.visit("/parts").text == "partpart"
    assert len(visit.received) == WEB_WINDOW
    assert plane.journal() == []
    visit.auto_credit = True
    visit.credit(WEB_WINDOW - 1)
    assert visit.content == b"x" * 1_000_000
    assert max(len(event.data) for event in visit.of(BodySent)) <= WEB_WINDOW
    plane.noted("sent")


def test_a_long_body_is_credited_as_the_code_takes_it(plane: WebPlane) -> None:
    rough(plane)
    piece = b"x" * (WEB_WINDOW // 8)
    visit = plane.visit("/reads", "POST", more_body=True)
    for _ in range(8):
        visit.body(piece)
    assert plane.visit("/parts").text == "partpart", "all of it has come"
    assert visit.credited == 0, "and nothing of it is taken"
    plane.allow("read")
    plane.until(lambda: visit.credited == WEB_WINDOW)
    visit.body(b"tail")
    visit.body(b"", more=False)
    assert visit.content == b"%d" % (WEB_WINDOW + 4)
    assert visit.credited == WEB_WINDOW, "a few bytes are not worth a message"


def test_starlette_reads_a_streamed_body(plane: WebPlane) -> None:
    plane.start(web_function("site"))
    visit = plane.visit("/size", "POST", b"head", {"content-length": "11"}, more_body=True)
    visit.body(b"bo")
    visit.body(b"dy")
    visit.body(b"end", more=False)
    assert visit.json() == 11


# ---------------------------------------------------------------- apps that break the rules


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/start-twice", "'http.response.start' was sent twice; expected 'http.response.body'"),
        ("/body-first", "'http.response.body' was sent where 'http.response.start' was expected"),
        ("/other-type", "'http.response.push' was sent where 'http.response.start' was expected"),
        ("/no-type", "an ASGI message is a dict with a 'type', not {'status': 200}"),
        ("/no-dict", "an ASGI message is a dict with a 'type', not 'hello'"),
        ("/text-body", "body must be bytes, not str: 'text'"),
        ("/status-text", "the status of a response is a number from 200 to 999, not '200'"),
        ("/status-low", "the status of a response is a number from 200 to 999, not 99"),
        ("/status-early", "the status of a response is a number from 200 to 999, not 103"),
        ("/status-high", "the status of a response is a number from 200 to 999, not 1000"),
        ("/header-text", "the name of a header must be bytes, not str: 'a'"),
        ("/header-flat", "the headers of 'http.response.start' are pairs of bytes, not [b'abc']"),
        ("/header-split", "the header b'x': b'a\\r\\nset-cookie: b' has a line break in it, or no name"),
        ("/too-long", "the body of the response is 1 bytes longer than its content-length"),
        ("/too-short", "the body of the response is 1 bytes shorter than its content-length"),
        ("/length-text", "the content-length of a response is a number, not b'many'"),
    ],
)
def test_an_app_that_breaks_the_rules_is_told_where_it_does(plane: WebPlane, path: str, told: str) -> None:
    rough(plane)
    visit = plane.visit(path)
    assert visit.result.status == "failure"
    assert visit.events == []
    assert plane.journal() == [f"RuntimeError: {told}"]
    errors = plane.errors()
    assert f"kedge: rough() failed at GET {path}; its client gets 500" in errors
    assert "rough.py" in errors
    assert f"RuntimeError: {told}" in errors
    assert plane.visit("/parts").text == "partpart", "the next one is answered"


@pytest.mark.parametrize(
    ("path", "said", "sent"),
    [
        ("/raises-before", "failed at GET /raises-before; its client gets 500", b""),
        ("/nothing", "the app returned without an answer; it must send 'http.response.start'", b""),
        ("/only-start", "the app returned before its answer was complete", b""),
        ("/no-end", "failed in the middle of its answer to GET /no-end; its client is cut off", b"part"),
        ("/raises-after", "failed in the middle of its answer to GET /raises-after; its client is cut off", b"part"),
    ],
)
def test_an_app_that_does_not_answer_fails_its_input(plane: WebPlane, path: str, said: str, sent: bytes) -> None:
    rough(plane)
    visit = plane.visit(path)
    assert visit.result.status == "failure"
    assert (visit.received, visit.complete) == (sent, False)
    assert said in plane.errors()


def test_what_fails_after_the_answer_is_only_logged(plane: WebPlane) -> None:
    rough(plane)
    visit = plane.visit("/after-end")
    assert visit.text == "done"
    assert visit.result.status == "failure"
    assert plane.journal() == [
        "RuntimeError: 'http.response.body' was sent after the answer was complete; nothing can follow a body with "
        "more_body=False"
    ]
    assert "kedge: rough() failed after it had answered GET /after-end\n" in plane.errors()


def test_a_framework_that_answers_for_broken_code_still_has_it_logged(plane: WebPlane) -> None:
    plane.start(web_function("site"))
    visit = plane.visit("/broken")
    assert (visit.status, visit.text) == (500, "Internal Server Error")
    assert visit.result.status == "failure"
    assert 'raise RuntimeError("no frame")' in plane.errors()
    assert "kedge: site() raised while answering GET /broken; its client got 500\n" in plane.errors()


# ---------------------------------------------------------------- clients that go


def test_a_client_that_goes_cancels_its_code(plane: WebPlane) -> None:
    plane.start(web_function("site", 2))
    visit = plane.visit("/slow")
    plane.noted("begin slow")
    visit.cancel()
    plane.noted("CancelledError slow")
    assert visit.result.status == "terminated"
    assert visit.events == []
    assert plane.errors() == ""


def test_code_that_listens_hears_of_it_and_sends_to_nobody(plane: WebPlane) -> None:
    rough(plane)
    visit = plane.visit("/waits")
    plane.noted("waits")
    visit.cancel()
    assert visit.result.status == "terminated"
    assert plane.journal() == ["waits", "CancelledError", "http.disconnect", "sent all the same"]
    assert visit.events == []


def test_whoever_asks_now_and_then_whether_the_client_is_there_leaves_nothing_behind(plane: WebPlane) -> None:
    plane.start(web_function("site", 2))
    visit = plane.visit("/asks")
    plane.noted("asked often")
    assert plane.journal() == ["False, and 0 wait", "asked often"]
    visit.cancel()
    assert visit.result.status == "terminated"


def test_after_the_answer_whoever_listens_hears_of_the_end(plane: WebPlane) -> None:
    rough(plane)
    assert plane.visit("/answers-then-waits").result.status == "success"
    assert plane.journal() == ["http.disconnect", "http.disconnect"]


def test_work_after_the_answer_goes_on(plane: WebPlane) -> None:
    plane.start(web_function("site", 1))
    visit = plane.visit("/background")
    assert visit.json() == "answered"
    plane.noted("background begins")
    assert visit.lease not in plane.finished, "it keeps its slot"
    plane.allow("background")
    assert visit.result.status == "success"
    assert plane.noted("background ends")[-1] == "background ends"


def test_an_answer_does_not_wait_for_code_that_blocks_the_loop_after_it(plane: WebPlane) -> None:
    rough(plane, 1)
    visit = plane.visit("/blocks")
    assert visit.text == "done"
    assert visit.lease not in plane.finished
    plane.allow("blocked")
    assert visit.result.status == "success"


@pytest.mark.parametrize("path", ["/slow", "/slow-plain"])
def test_code_that_takes_too_long_is_interrupted(plane: WebPlane, path: str) -> None:
    plane.start(web_function("site", 2, timeout=0.1))
    visit = plane.visit(path)
    assert visit.result.status == "timeout"
    assert f"kedge: site() failed at GET {path}; its client gets 504" in plane.errors()
    assert "FunctionTimeoutError: the input ran longer than timeout=0.1 s of site()" in plane.errors()
    frames = [line for line in plane.errors().splitlines() if line.startswith("  File ")]
    assert not [frame for frame in frames if "site-packages" in frame], "frames of a framework alone say nothing"
    assert bool(frames) == (path == "/slow"), "those of the user's own handler do"


def test_a_container_that_stops_cancels_its_requests(plane: WebPlane) -> None:
    plane.start(web_function("site", 2))
    plane.visit("/slow")
    plane.noted("begin slow")
    plane.drain(cancel=True)
    assert plane.wait_exit() == 0
    assert plane.journal()[-1] == "CancelledError slow"


def test_what_comes_for_a_request_that_is_over_is_dropped(plane: WebPlane) -> None:
    rough(plane, 1)
    visit = plane.visit("/parts", "POST", more_body=True)
    assert visit.result.status == "success"
    visit.body(b"late")
    visit.credit(10)
    visit.hang_up()
    assert plane.visit("/parts").text == "partpart"


def test_a_cancel_that_comes_first_is_remembered(plane: WebPlane) -> None:
    rough(plane, 1)
    plane.cancel(1)
    early = plane.visit("/parts")
    assert early.lease == 1
    assert early.result.status == "terminated"
    running = plane.visit("/lingers")
    plane.until(lambda: running.complete)
    waiting = plane.visit("/parts")
    waiting.cancel()
    assert waiting.result.status == "terminated", "it never had a slot"
    plane.allow("linger")
    assert running.result.status == "success"


# ---------------------------------------------------------------- WebSockets


def test_messages_go_to_and_fro(plane: WebPlane) -> None:
    plane.start(web_function("site", 2))
    socket = plane.socket("/echo", subprotocols=["chat", "talk"])
    assert socket.accepted.subprotocol == "chat"
    socket.say("hello")
    socket.say(b"\x00\xff")
    socket.say("ümlaut")
    assert socket.heard(3) == ["hello", b"\x00\xff", "ümlaut"]
    assert plane.visit("/").status == 200, "beside requests"
    socket.say("bye")
    assert (socket.closed.code, socket.closed.reason) == (4001, "as you like")
    assert socket.result.status == "success"


def test_a_message_of_a_megabyte_goes_both_ways(plane: WebPlane) -> None:
    plane.start(web_function("site"))
    socket = plane.socket("/echo")
    socket.say("short")
    socket.heard(1)
    assert socket.credited == 0, "so little is under way that a large message may go"
    socket.say(b"x" * 2_000_000)
    assert socket.heard(2)[1] == b"x" * 2_000_000
    plane.until(lambda: socket.credited == 2_000_005 + 2 * WEB_MESSAGE)


def test_a_client_that_goes_is_a_disconnect(plane: WebPlane) -> None:
    plane.start(web_function("site"))
    socket = plane.socket("/echo")
    socket.say("hello")
    socket.heard(1)
    socket.hang_up(1001)
    assert socket.result.status == "success"
    assert plane.journal() == ["disconnected 1001"]
    assert socket.of(MessageSent)
    assert not socket.complete, "nobody is there to be told"


def test_messages_before_the_end_are_heard_first_and_the_end_again_and_again(plane: WebPlane) -> None:
    rough(plane)
    socket = plane.socket("/listens")
    assert socket.accepted
    socket.say("one")
    socket.hang_up(4002)
    assert socket.result.status == "success"
    gone = "[('code', 4002), ('reason', ''), ('type', 'websocket.disconnect')]"
    assert plane.journal() == ["[('text', 'one'), ('type', 'websocket.receive')]", gone, gone]


def test_code_that_does_not_care_about_the_end_is_no_failure(plane: WebPlane) -> None:
    plane.start(web_function("site"))
    socket = plane.socket("/careless")
    assert socket.accepted
    socket.hang_up()
    assert socket.result.status == "success"
    assert plane.errors() == ""


def test_code_that_only_sends_hears_of_it_by_an_error(plane: WebPlane) -> None:
    rough(plane)
    socket = plane.socket("/to-nobody")
    assert socket.accepted
    socket.hang_up()
    assert plane.visit("/parts").text == "partpart", "that was heard"
    plane.allow("gone")
    assert socket.result.status == "success"
    assert plane.journal() == ["OSError: 'websocket.send' was sent, but the client of this WebSocket is gone"]
    assert plane.errors() == ""


def test_a_reader_that_takes_nothing_stops_messages(plane: WebPlane) -> None:
    rough(plane)
    socket = plane.socket("/floods", auto_credit=False)
    plane.until(lambda: len(socket.of(MessageSent)) == 5)
    assert plane.visit("/parts").text == "partpart"
    assert plane.journal()[-1] == "message 5"
    socket.auto_credit = True
    socket.credit(5 * 50_000)
    assert socket.closed.code == 1000
    assert len(socket.of(MessageSent)) == 40


def test_one_large_message_goes_when_nothing_else_is_under_way(plane: WebPlane) -> None:
    rough(plane)
    socket = plane.socket("/large", auto_credit=False)
    assert socket.closed.code == 1000
    assert len(socket.of(MessageSent)[0].data) == 2_000_000


@pytest.mark.parametrize("path", ["/nothing", "/raises", "/send-first", "/http", "/denies-half"])
def test_a_websocket_that_nobody_accepts_fails(plane: WebPlane, path: str) -> None:
    rough(plane)
    socket = plane.socket(path)
    assert socket.result.status == "failure"
    assert not socket.complete
    assert f"GET {path}" in plane.errors()


def test_a_websocket_can_be_refused(plane: WebPlane) -> None:
    rough(plane)
    assert plane.socket("/refuses").closed.code == 4003
    denied = plane.socket("/denies")
    assert (denied.status, denied.content, denied.headers) == (401, b"who are you?", {"x": "y"})
    assert denied.result.status == "success"


def test_code_that_returns_closes_its_websocket(plane: WebPlane) -> None:
    rough(plane)
    socket = plane.socket("/returns-open")
    assert socket.closed.code == 1000
    assert socket.result.status == "success"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/raises-open", "ValueError: no idea"),
        ("/accept-twice", "'websocket.accept' was sent where 'websocket.send' or 'websocket.close' was expected"),
        ("/both", "'websocket.send' needs one of 'bytes' and 'text'"),
        ("/neither", "'websocket.send' needs one of 'bytes' and 'text'"),
        ("/text-bytes", "'text' of a message is a str, not bytes"),
        ("/bytes-text", "bytes must be bytes, not str: 'x'"),
        ("/bad-code", "a WebSocket is closed with a code of 1000 to 1014 or 3000 to 4999, not 1005"),
        ("/long-reason", "the reason to close a WebSocket is a str of at most 123 bytes"),
        ("/too-large", "a WebSocket message may have 33554432 bytes, not 34603008; send it in parts"),
    ],
)
def test_a_websocket_whose_code_fails_is_closed_in_order(plane: WebPlane, path: str, told: str) -> None:
    rough(plane)
    socket = plane.socket(path)
    assert socket.closed.code == 1011
    assert socket.result.status == "failure"
    assert told in plane.errors()


def test_nothing_follows_the_end_of_a_websocket(plane: WebPlane) -> None:
    rough(plane)
    assert plane.socket("/after-close").result.status == "failure"
    assert "'websocket.send' was sent after the WebSocket was closed; nothing can follow" in plane.errors()
    assert plane.socket("/closes-then-listens").result.status == "success"
    assert plane.journal()[-1] == "websocket.disconnect"


# ---------------------------------------------------------------- lifespan


def test_apps_live_between_the_hooks(plane: WebPlane) -> None:
    methods = (
        MethodSpec(name="first", web=WebSpec("asgi_app")),
        MethodSpec(name="second", web=WebSpec("asgi_app")),
    )
    plane.start(web_function("Living", 1, module="tests.container.rough", is_class=True, methods=methods))
    before = ["enter", "first is made", "first: lifespan.startup", "second: lifespan.startup"]
    assert plane.journal() == before
    for _ in range(2):
        assert plane.visit(function="first").text == "done"
    plane.drain()
    assert plane.wait_exit() == 0
    assert plane.journal()[len(before) :] == [
        "first has [('color', 'red')]",
        "first has [('color', 'red')]",
        "second: lifespan.shutdown",
        "first: lifespan.shutdown",
        "exit",
    ]
    assert "kedge: the app of Living.second() failed at the end of its lifespan" in plane.errors()
    assert "RuntimeError: cannot stop" in plane.errors()
    assert "rough.py" in plane.errors()
    assert "lifespan.py" not in plane.errors(), "frames of kedge's own say nothing"


def test_an_app_that_cannot_start_fails_its_container(plane: WebPlane) -> None:
    plane.start(web_function("refuses_to_start", module="tests.container.rough"), ready=False)
    error = plane.failure()
    assert error.message == "the app of refuses_to_start() refused to start: no fuel"
    assert plane.wait_exit() == 1


def test_what_an_app_raises_at_its_start_is_reported(plane: WebPlane) -> None:
    plane.start(web_function("raises_at_start", module="tests.container.rough"), ready=False)
    error = plane.failure()
    assert (error.type, error.message) == ("RuntimeError", "no fuel at all")
    assert "rough.py" in error.traceback
    assert "raised while the app of raises_at_start() started (lifespan.startup)" in error.traceback


@pytest.mark.parametrize(("name", "said"), [("no_lifespan", False), ("careless_lifespan", True)])
def test_an_app_without_a_lifespan_is_served_all_the_same(plane: WebPlane, name: str, said: bool) -> None:
    plane.start(web_function(name, module="tests.container.rough"))
    assert plane.visit().text == "done"
    told = f"kedge: the app of {name}() is served without a lifespan, since it raised RuntimeError" in plane.errors()
    assert told is said
    plane.drain()
    assert plane.wait_exit() == 0


def test_an_end_that_does_not_come_is_not_waited_for(plane: WebPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.container.lifespan.SHUTDOWN_S", 0.05)
    plane.start(web_function("endless_end", module="tests.container.rough"))
    plane.drain()
    assert plane.wait_exit() == 0, plane.errors()
    assert "kedge: the app of endless_end() did not end its lifespan within 0.05 s" in plane.errors()


# ---------------------------------------------------------------- functions that give no app


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        (
            "forgets_to_return",
            "asgi_app",
            "forgets_to_return() returned None; with @kedge.asgi_app() it returns its app",
        ),
        ("returns_text", "asgi_app", "returns_text() returned 'app', which is no app: it cannot be called"),
        ("returns_flask", "asgi_app", "returned a WSGI app (<Flask 'shop'>); write @kedge.wsgi_app() on it"),
        ("returns_wsgi", "asgi_app", "write @kedge.wsgi_app() on it"),
        ("returns_fastapi", "wsgi_app", "write @kedge.asgi_app() on it"),
        ("fails_to_make", "asgi_app", "no bricks"),
    ],
)
def test_a_function_that_gives_no_app_fails_its_container(plane: WebPlane, name: str, kind: str, told: str) -> None:
    plane.start(web_function(name, kind=kind, module="tests.container.rough"), ready=False)
    assert told in plane.failure().message
    assert plane.wait_exit() == 1
