"""`web_server(port)`: a server of the user's own, started once, waited for, and behind a proxy."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp.web  # noqa: F401  # loaded once, and not in every container: they are forks of this process
import pytest

from kedge.model.protocol import ContainerLeaving, ContainerReady
from kedge.model.spec import MethodSpec, WebSpec
from kedge.model.web import WEB_WINDOW
from tests.container.fake_plane import HERE
from tests.container.web_plane import WebPlane, web_function

WHARF = "tests.container.wharf"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[WebPlane]:
    plane = WebPlane(tmp_path)
    yield plane
    plane.stop()


@pytest.fixture
def port(plane: WebPlane) -> int:
    """A free one, which the code in the container knows as well."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number: int = sock.getsockname()[1]
    Path(f"{plane.journal_file}.port").write_text(str(number))
    return number


def start(
    plane: WebPlane, port: int, name: str = "server", max_inputs: int = 4, ready: bool = True, **more: object
) -> None:
    spec = web_function(name, max_inputs, kind="web_server", module=WHARF, port=port, **more)
    plane.start(spec, ready=ready)


# ---------------------------------------------------------------- requests


def test_requests_go_to_a_server_that_is_started_once(plane: WebPlane, port: int) -> None:
    start(plane, port)
    for _ in range(2):
        assert plane.visit("/a%20b/c?x=%20&y").json()["path"] == "/a%20b/c?x=%20&y"
    assert plane.journal() == ["starts"]
    plane.drain()
    assert plane.wait_exit() == 0
    assert plane.errors() == ""


def test_the_server_sees_who_asked_and_how(plane: WebPlane, port: int) -> None:
    start(plane, port)
    told = {"X-Forwarded-For": "1.1.1.1", "X-Forwarded-Host": "forged", "X-Forwarded-Prefix": "/forged", "X-Mine": "1"}
    seen = plane.visit("//x", headers=told | {"Connection": "close", "Expect": "100-continue"}, scheme="https").json()
    assert seen["path"] == "//x"
    assert sorted(map(tuple, seen["headers"])) == [
        ("host", "shop.test"),
        ("x-forwarded-for", "1.1.1.1, 10.1.2.3"),
        ("x-forwarded-host", "shop.test"),
        ("x-forwarded-proto", "https"),
        ("x-mine", "1"),
    ]


def test_the_label_is_not_part_of_the_path(plane: WebPlane, port: int) -> None:
    start(plane, port)
    seen = plane.visit("/x?y", root_path="/wharf-server").json()
    assert seen["path"] == "/x?y"
    assert ["x-forwarded-prefix", "/wharf-server"] in seen["headers"]


def test_bytes_pass_as_they_are(plane: WebPlane, port: int) -> None:
    start(plane, port)
    visit = plane.visit("/packed")
    assert visit.content == b"\x1f\x8bnot really"
    assert (visit.headers["content-encoding"], visit.headers["x-kept"]) == ("gzip", "é")
    assert visit.headers["content-length"] == "12"
    assert visit.frames == 1, "a short answer is whole at once"
    assert plane.visit("/packed", "HEAD").content == b""
    empty = plane.visit("/empty")
    assert (empty.content, empty.headers["content-length"], empty.headers["x-long"]) == (b"", "0", "x" * 20_000)


@pytest.mark.parametrize(
    ("to", "there"),
    [
        ("/login?next=/", "/shop/login?next=/"),
        ("http://shop.test/login", "http://shop.test/shop/login"),
        ("/shop/login", "/shop/login"),
        ("login", "login"),
        ("//other.test/", "//other.test/"),
        ("https://other.test/", "https://other.test/"),
    ],
)
def test_redirects_are_passed_on_with_the_label(plane: WebPlane, port: int, to: str, there: str) -> None:
    start(plane, port)
    visit = plane.visit(f"/redirect?to={to.replace('?', '%3f')}", root_path="/shop")
    assert (visit.status, visit.headers["location"]) == (302, there)
    assert not {"connection", "x-secret"} & set(visit.headers), "what is about one connection stays there"
    assert plane.visit("/redirect?to=/login").headers["location"] == "/login"


def test_bodies_stream_both_ways(plane: WebPlane, port: int) -> None:
    start(plane, port)
    visit = plane.visit("/stream")
    for number in range(3):
        plane.until(lambda: visit.received.endswith(b"part %d\n" % number))  # noqa: B023
        assert not visit.complete
        plane.allow(f"part {number}")
    assert visit.content == b"part 0\npart 1\npart 2\n"
    upload = plane.visit("/size", "POST", b"head", more_body=True)
    plane.noted("size 4")
    upload.body(b"x" * 50_000)
    plane.noted("size 50004")
    upload.body(b"", more=False)
    assert upload.text == "50004"
    assert plane.visit("/size", "POST", b"abc").text == "3"
    known = plane.visit("/size", "POST", b"abc", {"content-length": "6"}, more_body=True)
    known.body(b"def", more=False)
    assert known.text == "6"


def test_a_reader_that_takes_nothing_stops_the_server_and_one_that_goes_ends_it(plane: WebPlane, port: int) -> None:
    start(plane, port)
    visit = plane.visit("/endless", auto_credit=False)
    plane.until(lambda: len(visit.received) == WEB_WINDOW)
    assert plane.visit("/").status == 200
    assert len(visit.received) == WEB_WINDOW
    visit.cancel()
    assert visit.result.status == "terminated"
    plane.noted("endless has ended")


def test_an_answer_that_breaks_off_is_cut_off(plane: WebPlane, port: int) -> None:
    start(plane, port)
    visit = plane.visit("/breaks")
    assert visit.result.status == "failure"
    assert (visit.received, visit.complete) == (b"half", False)
    assert f"ExecutionError: the server on port {port} broke its answer off: " in plane.errors()
    assert plane.visit("/").status == 200


# ---------------------------------------------------------------- WebSockets


def test_websockets_pass(plane: WebPlane, port: int) -> None:
    start(plane, port)
    visit = plane.socket("/talk", subprotocols=["other", "chat"])
    assert visit.accepted.subprotocol == "chat"
    visit.say("hello")
    visit.say(b"\x00\xff")
    visit.say("x" * 2_000_000)
    assert visit.heard(3) == ["hello", b"\x00\xff", "x" * 2_000_000]
    visit.say("bye")
    assert (visit.closed.code, visit.closed.reason) == (4001, "as you like")
    assert visit.result.status == "success"
    assert plane.errors() == ""


def test_the_end_of_a_websocket_passes_with_its_code(plane: WebPlane, port: int) -> None:
    start(plane, port)
    visit = plane.socket("/talk")
    assert visit.accepted
    visit.hang_up(4321)
    plane.noted("closed 4321")
    assert visit.result.status == "success"
    broken = plane.socket("/talk")
    assert broken.accepted
    broken.say("break")
    assert broken.closed.code == 1011


def test_a_websocket_that_the_server_refuses_is_refused(plane: WebPlane, port: int) -> None:
    start(plane, port)
    visit = plane.socket("/nothing-here")
    assert visit.status == 400
    assert visit.result.status == "success"


# ---------------------------------------------------------------- coming up


def test_it_is_waited_for(plane: WebPlane, port: int) -> None:
    start(plane, port, "slow_server", ready=False)
    plane.poll(0.1)
    assert not plane.of(ContainerReady)
    plane.allow("listen")
    plane.wait_for(ContainerReady)
    assert plane.visit("/x").json()["path"] == "/x"


def test_it_may_listen_on_any_address(plane: WebPlane, port: int) -> None:
    start(plane, port, "server_elsewhere")
    assert plane.visit("/x").json()["path"] == "/x"


def test_a_method_of_a_class_starts_it_after_the_hooks(plane: WebPlane, port: int) -> None:
    methods = (MethodSpec(name="serve", web=WebSpec("web_server", port=port)), MethodSpec(name="plain"))
    plane.start(web_function("Server", 2, module=WHARF, is_class=True, methods=methods))
    assert plane.journal() == ["enter", "serve"]
    assert plane.visit("/x", function="serve").json()["path"] == "/x"
    assert plane.call(method="plain") == "plain"


@pytest.mark.slow
def test_an_enter_hook_may_start_it(plane: WebPlane, port: int) -> None:
    methods = (MethodSpec(name="serve", web=WebSpec("web_server", port=port, startup_timeout=30.0)),)
    plane.start(web_function("Engine", 2, module=WHARF, is_class=True, methods=methods))
    assert plane.visit("/", function="serve").status == 200


def test_a_port_is_taken_before_an_enter_hook_runs(plane: WebPlane, port: int) -> None:
    methods = (MethodSpec(name="serve", web=WebSpec("web_server", port=port, startup_timeout=0.1)),)
    with socket.create_server(("127.0.0.1", port)):
        plane.start(web_function("Server", 2, module=WHARF, is_class=True, methods=methods), ready=False)
        assert plane.failure().message.startswith(f"something else listened on port {port} when Server.serve() ")
    assert plane.journal() == []


@pytest.mark.slow
def test_it_may_be_another_process(plane: WebPlane, port: int) -> None:
    start(plane, port, "files", startup_timeout=30.0)
    assert plane.visit("/wharf.py").content == (HERE / "wharf.py").read_bytes()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "wrong_port",
            "sleep (N) runs. Does it listen on another port, or need more time? Then write startup_timeout=",
        ),
        ("starts_nothing", "it has started no process that still runs"),
    ],
)
def test_a_server_that_does_not_listen_fails_the_container(plane: WebPlane, port: int, name: str, told: str) -> None:
    start(plane, port, name, ready=False, startup_timeout=0.2)
    message = plane.failure().message
    assert message.startswith(f"nothing listened on port {port} within ")
    assert f"after {name}() had returned" in message
    assert _without_numbers(told) in _without_numbers(message)
    assert plane.wait_exit() == 1


def test_a_server_that_ends_before_it_listens_is_named_with_its_command(plane: WebPlane, port: int) -> None:
    start(plane, port, "dies_at_once", ready=False, startup_timeout=60.0)
    message = plane.failure().message
    assert message.startswith("the process sh -c 'echo no room for me >&2; exit 7' (")
    assert f" exited with code 7 before it listened on port {port}, " in message
    assert message.endswith(" s after dies_at_once() had returned; what it printed is in the log")
    assert plane.wait_exit() == 1


def test_what_the_function_raises_fails_the_container(plane: WebPlane, port: int) -> None:
    start(plane, port, "raises", ready=False)
    assert plane.failure().message == "no timber"


def test_without_aiohttp_the_container_says_what_to_install(
    plane: WebPlane, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    spec = web_function("square", kind="web_server", module="shop", port=port)
    plane.start(spec, ready=False)
    told = plane.failure().message
    assert told.startswith(f"@kedge.web_server({port}) needs aiohttp where containers run, and that cannot be imported")
    assert "kedge.Image.debian_slim().pip_install('aiohttp')" in told


def test_a_port_that_is_taken_is_not_passed_on_to(plane: WebPlane, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        start(plane, port, ready=False, startup_timeout=0.1)
        message = plane.failure().message
    assert message.startswith(f"something else listened on port {port} when server() was to start its server there")
    assert f"`ss -ltnp 'sport = :{port}'` names the program that holds it" in message
    assert "max_containers" not in message, "no container has that port"
    assert plane.journal() == []


def test_who_waits_for_a_port_says_so(plane: WebPlane, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.container.upstream.TAKEN_HINT_S", 0.05)
    with socket.create_server(("127.0.0.1", port)):
        start(plane, port, ready=False, startup_timeout=60.0)
        plane.until(lambda: "cannot start its server yet" in plane.errors())
        assert f"and waits: something else listened on port {port}. `ss -ltnp" in plane.errors()
        assert not plane.of(ContainerReady)


def test_a_port_that_becomes_free_is_waited_for(plane: WebPlane, port: int, tmp_path: Path) -> None:
    start(plane, port, startup_timeout=30.0)
    (tmp_path / "second").mkdir()
    second = WebPlane(tmp_path / "second")
    Path(f"{second.journal_file}.port").write_text(str(port))
    try:
        start(second, port, ready=False, startup_timeout=30.0)
        second.poll(0.1)
        assert second.journal() == []
        plane.drain()
        assert plane.wait_exit() == 0
        second.wait_for(ContainerReady)
        assert second.visit("/x").json()["path"] == "/x"
    finally:
        second.stop()


def test_a_function_that_runs_its_server_itself_is_told(
    plane: WebPlane, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge.container.upstream.HINT_S", 0.05)
    start(plane, port, "never_returns", ready=False)
    plane.until(lambda: "Start the server in the background, with subprocess.Popen" in plane.errors())
    assert f"kedge: port {port} accepts connections, but never_returns() has not returned" in plane.errors()


# ---------------------------------------------------------------- going away


def test_a_server_that_is_gone_is_a_502_and_the_container_leaves(plane: WebPlane, port: int) -> None:
    start(plane, port)
    assert plane.visit("/die").text == "goodbye"
    plane.until(lambda: plane.visit("/").status == 502)
    visit = plane.visit("/")
    assert (visit.status, visit.text) == (502, "the server behind this address does not answer\n")
    assert visit.headers["content-type"] == "text/plain; charset=utf-8"
    assert plane.wait_for(ContainerLeaving).reason.startswith(f"the server on port {port} is gone")
    assert f"kedge: the server on port {port} is gone" in plane.errors()
    assert plane.socket("/talk").status == 502


def _without_numbers(text: str) -> str:
    return "".join(character for character in text.replace("(N)", "()") if not character.isdecimal())
