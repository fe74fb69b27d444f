"""Apps written against ASGI and WSGI themselves, many of which break the rules."""

from __future__ import annotations

import asyncio
import time

import kedge
from tests.container.gallery import allowed, is_allowed, note

app = kedge.App("rough")

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
END = {"type": "http.response.body", "body": b"done"}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}


def head(status=200, **headers):
    pairs = [(name.replace("_", "-").encode(), str(value).encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


def sending(*messages):
    async def answer(scope, receive, send):
        for message in messages:
            try:
                await send(message)
            except Exception as error:
                note(f"{type(error).__name__}: {error}")
                raise

    return answer


async def raises_before(scope, receive, send):
    raise ValueError("no idea")


async def raises_after(scope, receive, send):
    await send(START)
    await send(PART)
    raise ValueError("no more ideas")


async def tells_scope(scope, receive, send):
    scope["state"]["seen"] = scope["state"].get("seen", 0) + 1
    note(sorted((key, value) for key, value in scope.items() if key not in ("headers", "asgi")))
    await sending(START, END)(scope, receive, send)


async def waits(scope, receive, send):
    """Says what it hears after the request."""
    await receive()
    note("waits")
    try:
        note((await receive())["type"])
    except BaseException as error:
        note(type(error).__name__)
        note((await receive())["type"])
        await send(START)
        await send(END)
        note("sent all the same")
        raise


async def answers_then_waits(scope, receive, send):
    await receive()
    waiting = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    await sending(START, END)(scope, receive, send)
    note((await waiting)["type"])
    note((await receive())["type"])


async def event_stream(scope, receive, send):
    await send(START)
    for number in range(3):
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        await allowed(f"event {number}")
    await send({"type": "http.response.body"})


async def gulps(scope, receive, send):
    """One large body at once."""
    await send(START)
    await send({"type": "http.response.body", "body": memoryview(b"x" * 1_000_000)})
    note("sent")


async def reads(scope, receive, send):
    size, more = 0, True
    while more:
        await allowed("read")
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
        note(size)
    await send(START)
    await send({"type": "http.response.body", "body": b"%d" % size})


async def lingers(scope, receive, send):
    await sending(START, END)(scope, receive, send)
    await allowed("linger")
    note("lingered")


async def blocks_after_answer(scope, receive, send):
    await sending(START, END)(scope, receive, send)
    block()


def block():
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not is_allowed("blocked"):
        time.sleep(0.005)


HTTP = {
    "/start-twice": sending(START, START),
    "/body-first": sending(END),
    "/after-end": sending(START, END, PART),
    "/other-type": sending({"type": "http.response.push"}),
    "/no-type": sending({"status": 200}),
    "/no-dict": sending("hello"),
    "/text-body": sending(START, {"type": "http.response.body", "body": "text"}),
    "/status-text": sending({"type": "http.response.start", "status": "200"}),
    "/status-low": sending(head(99)),
    "/status-early": sending(head(103)),
    "/status-high": sending(head(1000)),
    "/header-text": sending({"type": "http.response.start", "status": 200, "headers": [("a", "b")]}),
    "/header-flat": sending({"type": "http.response.start", "status": 200, "headers": [b"abc"]}),
    "/header-split": sending(head(x="a\r\nset-cookie: b")),
    "/too-long": sending(head(content_length=3), END),
    "/too-short": sending(head(content_length=5), END),
    "/length-text": sending(head(content_length="many")),
    "/nothing": sending(),
    "/only-start": sending(START),
    "/no-end": sending(START, PART),
    "/raises-before": raises_before,
    "/raises-after": raises_after,
    "/scope": tells_scope,
    "/waits": waits,
    "/answers-then-waits": answers_then_waits,
    "/events": event_stream,
    "/gulps": gulps,
    "/reads": reads,
    "/lingers": lingers,
    "/blocks": blocks_after_answer,
    "/parts": sending(START, PART, PART, {"type": "http.response.body"}),
    "/not-modified": sending(head(304, content_length=10), {"type": "http.response.body"}),
}

ACCEPT = {"type": "websocket.accept"}


def talking(*messages):
    async def answer(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        await sending(*messages)(scope, receive, send)

    return answer


async def floods(scope, receive, send):
    await receive()
    await send(ACCEPT)
    for number in range(40):
        note(f"message {number}")
        await send({"type": "websocket.send", "bytes": b"x" * 50_000})
    await send({"type": "websocket.close"})


async def sends_to_nobody(scope, receive, send):
    await receive()
    await send(ACCEPT)
    await allowed("gone")
    try:
        await send({"type": "websocket.send", "text": "hello?"})
    except OSError as error:
        note(f"OSError: {error}")
        raise


async def listens(scope, receive, send):
    await receive()
    await send(ACCEPT)
    while True:
        message = await receive()
        note(sorted(message.items(), key=str))
        if message["type"] == "websocket.disconnect":
            note(sorted((await receive()).items(), key=str))
            return


async def raises_in_socket(scope, receive, send):
    await receive()
    await send(ACCEPT)
    raise ValueError("no idea")


async def closes_then_listens(scope, receive, send):
    await receive()
    await send(ACCEPT)
    await send({"type": "websocket.close", "code": 4000})
    note((await receive())["type"])


def denial(*, more=False):
    return [
        {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x", b"y")]},
        {"type": "websocket.http.response.body", "body": b"who are you?", "more_body": more},
    ]


SOCKET = {
    "/nothing": talking(),
    "/raises": raises_before,
    "/raises-open": raises_in_socket,
    "/returns-open": talking(ACCEPT),
    "/refuses": talking({"type": "websocket.close", "code": 4003}),
    "/denies": talking(*denial()),
    "/denies-half": talking(*denial(more=True)),
    "/accept-twice": talking(ACCEPT, ACCEPT),
    "/send-first": talking({"type": "websocket.send", "text": "x"}),
    "/after-close": talking(ACCEPT, {"type": "websocket.close"}, {"type": "websocket.send", "text": "x"}),
    "/both": talking(ACCEPT, {"type": "websocket.send", "text": "x", "bytes": b"x"}),
    "/neither": talking(ACCEPT, {"type": "websocket.send"}),
    "/text-bytes": talking(ACCEPT, {"type": "websocket.send", "text": b"x"}),
    "/bytes-text": talking(ACCEPT, {"type": "websocket.send", "bytes": "x"}),
    "/bad-code": talking(ACCEPT, {"type": "websocket.close", "code": 1005}),
    "/long-reason": talking(ACCEPT, {"type": "websocket.close", "reason": "x" * 200}),
    "/http": talking(START),
    "/large": talking(ACCEPT, {"type": "websocket.send", "bytes": b"x" * 2_000_000}, {"type": "websocket.close"}),
    "/too-large": talking(ACCEPT, {"type": "websocket.send", "bytes": bytes(33 * 1024 * 1024)}),
    "/floods": floods,
    "/to-nobody": sends_to_nobody,
    "/listens": listens,
    "/closes-then-listens": closes_then_listens,
}


@app.function()
@kedge.asgi_app()
def rough():
    async def site(scope, receive, send):
        await (HTTP if scope["type"] == "http" else SOCKET)[scope["path"]](scope, receive, send)

    return site


# ---------------------------------------------------------------- lifespans


def living(name, *, failing="", state=None):
    """An app that notes its own life."""

    async def site(scope, receive, send):
        if scope["type"] == "http":
            note(f"{name} has {sorted(scope['state'].items())}")
            scope["state"]["mine"] = 1
            await sending(START, END)(scope, receive, send)
            return
        note(f"{name}: {(await receive())['type']}")
        scope["state"].update(state or {})
        if failing == "startup":
            await send({"type": "lifespan.startup.failed", "message": "no fuel"})
            return
        if failing == "raises":
            await send({"type": "lifespan.startup.failed", "message": "Traceback …"})
            raise RuntimeError("no fuel at all")
        await send({"type": "lifespan.startup.complete"})
        note(f"{name}: {(await receive())['type']}")
        if failing == "shutdown":
            raise RuntimeError("cannot stop")
        if failing == "endless":
            await asyncio.sleep(60)
        await send({"type": "lifespan.shutdown.complete"})

    return site


@app.cls()
class Living:
    @kedge.enter()
    def open(self):
        note("enter")

    @kedge.asgi_app()
    def first(self):
        note("first is made")
        return living("first", state={"color": "red"})

    @kedge.asgi_app()
    def second(self):
        return living("second", failing="shutdown")

    @kedge.exit()
    def close(self):
        note("exit")


@app.function()
@kedge.asgi_app()
def refuses_to_start():
    return living("it", failing="startup")


@app.function()
@kedge.asgi_app()
def raises_at_start():
    return living("it", failing="raises")


@app.function()
@kedge.asgi_app()
def endless_end():
    return living("it", failing="endless")


@app.function()
@kedge.asgi_app()
def no_lifespan():
    async def site(scope, receive, send):
        assert scope["type"] == "http"
        await sending(START, END)(scope, receive, send)

    return site


@app.function()
@kedge.asgi_app()
def careless_lifespan():
    """Knows of HTTP only, and looks at nothing."""

    async def site(scope, receive, send):
        await receive()
        await sending(START, END)(scope, receive, send)

    return site


# ---------------------------------------------------------------- no apps


@app.function()
@kedge.asgi_app()
def forgets_to_return():
    pass


@app.function()
@kedge.asgi_app()
def returns_text():
    return "app"


@app.function()
@kedge.asgi_app()
def returns_flask():
    from flask import Flask

    return Flask("shop")


@app.function()
@kedge.asgi_app()
def returns_wsgi():
    def site(environ, start_response): ...

    return site


@app.function()
@kedge.wsgi_app()
def returns_fastapi():
    from fastapi import FastAPI

    return FastAPI()


@app.function()
@kedge.asgi_app()
def fails_to_make():
    raise RuntimeError("no bricks")


@app.function()
@kedge.asgi_app()
def narrow():
    """One thing at a time, and where."""

    async def site(scope, receive, send):
        if scope["path"] == "/hold":
            note("begin hold")
            await allowed("hold")
        await sending(START, END)(scope, receive, send)

    return site
