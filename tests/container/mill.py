"""WSGI apps for containers under test."""

from __future__ import annotations

import sys
import threading
import time

import flask

import kedge
from tests.container.gallery import is_allowed, note

app = kedge.App("mill")


def allowed(name):
    deadline = time.monotonic() + 60
    while not is_allowed(name) and time.monotonic() < deadline:
        time.sleep(0.005)


@app.function()
@kedge.wsgi_app()
def site():
    web = flask.Flask("mill")
    web.logger.addHandler(flask.logging.default_handler)  # Flask leaves it out where a test looks at logs
    barriers: dict[int, threading.Barrier] = {}

    @web.get("/")
    def index():
        print("hello from", kedge.current_input_id())
        return {"input": kedge.current_input_id(), "main": threading.current_thread() is threading.main_thread()}

    @web.post("/size")
    def size():
        return str(sum(len(chunk) for chunk in iter(lambda: flask.request.stream.read(10_000), b"")))

    @web.post("/upload")
    def upload():
        file = flask.request.files["file"]
        return f"{file.filename} {len(file.read())}"

    @web.get("/meet/<int:parties>")
    def meet(parties):
        barriers.setdefault(parties, threading.Barrier(parties)).wait(30)
        return kedge.current_input_id()

    @web.get("/stream")
    def stream():
        count, size = int(flask.request.args["count"]), int(flask.request.args["size"])

        def parts():
            try:
                for number in range(count):
                    note(f"part {number}")
                    yield bytes([65 + number % 26]) * size
            finally:
                note("closed")

        return flask.Response(parts())

    @web.get("/slow")
    def slow():
        try:
            note("begin slow")
            time.sleep(60)
        except BaseException as error:
            note(f"{type(error).__name__} slow")
            raise
        return "never"

    @web.get("/broken")
    def broken():
        raise RuntimeError("no water")

    return web


# ---------------------------------------------------------------- written against WSGI itself

PLAIN = [("Content-Type", "text/plain")]


def environ(environ, start_response):
    note(sorted((key, value) for key, value in environ.items() if type(value) in (str, bool, tuple)))
    start_response("200 OK", PLAIN)
    environ["wsgi.errors"].write("said on the side\n")
    return [b"done"]


def writes(environ, start_response):
    write = start_response("201 Created", [("X-Mill", "wind")])
    write(b"one ")
    write(b"two ")
    return [b"three"]


def late_start(environ, start_response):
    def parts():
        start_response("202 Accepted", PLAIN)
        yield b""
        yield b"late"

    return parts()


def recovers(environ, start_response):
    """Replaces its answer before anything of it has left."""
    start_response("200 OK", PLAIN)
    try:
        raise ValueError("oops")
    except ValueError:
        start_response("500 Oops", PLAIN, sys.exc_info())
    return [b"recovered"]


def cannot_recover(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(b"part")
    try:
        raise ValueError("too late")
    except ValueError:
        start_response("500 Oops", PLAIN, sys.exc_info())
    return [b"never"]


class Closing:
    def __init__(self, parts, error=None):
        self.parts = iter(parts)
        self.error = error

    def __iter__(self):
        return self

    def __next__(self):
        part = next(self.parts, None)
        if part is None:
            if self.error:
                raise self.error
            raise StopIteration
        return part

    def close(self):
        note("close")


def closing(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing([b"a", b"b"])


def closing_broken(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing([b"a"], ValueError("no more"))


def sized(environ, start_response):
    """All that it has announced is there before it ends."""
    start_response("200 OK", [("Content-Length", "4")])

    def parts():
        yield b"done"
        note("after the last part")
        allowed("sized")

    return parts()


def lines(environ, start_response):
    start_response("200 OK", PLAIN)
    stream = environ["wsgi.input"]
    return [repr((stream.readline(), stream.read(3), list(stream), stream.read())).encode()]


def reads(environ, start_response):
    start_response("200 OK", PLAIN)
    size = 0
    while True:
        note(size)
        chunk = environ["wsgi.input"].read(64 * 1024)
        if not chunk:
            return [str(size).encode()]
        size += len(chunk)


def shields(environ, start_response):
    write = start_response("200 OK", PLAIN)
    with kedge.shield():
        note("begin shielded")
        while not kedge.current_input().cancelled:
            time.sleep(0.005)
        write(b"to nobody")
        note("end shielded")
    note("never")
    return []


def cleans_up(environ, start_response):
    write = start_response("200 OK", PLAIN)
    try:
        note("begin")
        time.sleep(60)
    finally:
        write(b"to nobody")
        time.sleep(0.01)
        note("cleaned up")
    return []


def returning(*, status="200 OK", headers=PLAIN, body=(b"x",), twice=False, start=True):
    def answer(environ, start_response):
        try:
            if start:
                start_response(status, headers)
            if twice:
                start_response(status, headers)
        except Exception as error:
            note(f"{type(error).__name__}: {error}")
            raise
        return body

    return answer


APPS = {
    "/environ": environ,
    "/writes": writes,
    "/late-start": late_start,
    "/recovers": recovers,
    "/cannot-recover": cannot_recover,
    "/closing": closing,
    "/closing-broken": closing_broken,
    "/sized": sized,
    "/lines": lines,
    "/reads": reads,
    "/shields": shields,
    "/cleans-up": cleans_up,
    "/twice": returning(twice=True),
    "/no-start": returning(start=False),
    "/no-start-empty": returning(start=False, body=()),
    "/empty": returning(body=()),
    "/status-number": returning(status=200),
    "/status-text": returning(status="OK"),
    "/status-low": returning(status="101 Switching Protocols"),
    "/header-bytes": returning(headers=[(b"a", b"b")]),
    "/header-split": returning(headers=[("a", "b\r\nc: d")]),
    "/text-body": returning(body=["text"]),
    "/too-long": returning(headers=[("Content-Length", "1")], body=[b"ab"]),
    "/too-short": returning(headers=[("Content-Length", "3")], body=[b"ab"]),
    "/large": returning(body=[b"x" * 1_000_000]),
}


@app.function()
@kedge.wsgi_app()
def plain():
    def site(environ, start_response):
        return APPS[environ["PATH_INFO"]](environ, start_response)

    return site


@app.cls()
class Mixed:
    """A WSGI and an ASGI app, and a method, share the slots."""

    @kedge.wsgi_app()
    def old(self):
        return closing

    @kedge.asgi_app()
    def new(self):
        async def site(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"new"})

        return site

    @kedge.method()
    def where(self):
        return threading.current_thread() is threading.main_thread()
