"""An ingress on a real plane and driver, with containers in this process that do what a test says.

No store, no frames, no processes: what the driver sends to a container is heard at once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

from kedge.core.plane import Plane
from kedge.model import protocol as p
from kedge.model.payload import FAILURE, SUCCESS, TERMINATED, ErrorInfo, Result
from kedge.model.spec import (
    AppSpec,
    CodeSpec,
    Concurrency,
    EnvironmentSpec,
    FunctionSpec,
    Launch,
    MethodSpec,
    WebSpec,
)
from kedge.model.web import (
    WEB_MESSAGE,
    BodyReceived,
    BodySent,
    MessageReceived,
    Request,
    ResponseStarted,
    Sent,
)
from kedge.server.driver import Driver
from kedge.server.ingress.ingress import Ingress
from tests.wire.loops import until

Script = Callable[["Turn"], Awaitable[Result | None]]


class Turn:
    """One request in a container: what its code sees and may do."""

    def __init__(self, container: Container, dispatch: p.Dispatch) -> None:
        self.container = container
        self.dispatch = dispatch
        self.call = dispatch.call
        self.request: Request = msgspec.msgpack.decode(dispatch.payload.data, type=Request)
        self.events: list[Any] = []
        """All that came after the request."""
        self.unheard: deque[Any] = deque()
        self.news = asyncio.Event()
        self.credit = 0
        """Bytes that the ingress has credited."""
        self.cancelled = False

    def say(self, *events: Sent) -> None:
        self.container.say(p.WebSent(self.call, list(events)))

    def answer(self, body: bytes = b"", status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        """The whole response at once."""
        self.say(ResponseStarted(status, list(headers)), BodySent(body, False))

    async def hear(self) -> Any:
        """The next event of the client; what has data is credited."""
        await until(lambda: self.unheard)
        event = self.unheard.popleft()
        if isinstance(event, BodyReceived | MessageReceived):
            count = WEB_MESSAGE if isinstance(event, MessageReceived) else 0
            self.container.say(p.WebCredited(self.call, len(event.data) + count))
        return event

    async def body(self) -> bytes:
        """All of the request's body."""
        body, more = self.request.body, self.request.more_body
        while more:
            event = await self.hear()
            assert isinstance(event, BodyReceived)
            body, more = body + event.data, event.more
        return body


class Container:
    """A link of the driver, and the process behind it."""

    def __init__(self, hall: Hall, launch: Launch) -> None:
        self.hall = hall
        self.launch = launch
        self.id = launch.container
        self.turns: dict[str, Turn] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.writable = asyncio.Event()
        self.unread = 0
        self.closed = False

    def say(self, message: Any) -> None:
        """As if it came over the connection."""
        if self.id not in self.hall.driver.links:
            return
        if isinstance(message, p.WebSent | p.WebCredited):
            self.hall.driver.relay_web(message, self.id)
        else:
            self.hall.driver.submit(message, self.id)
        self.hall.driver.flush_all()

    def send(self, message: Any) -> None:
        if isinstance(message, p.InputsDispatched):
            for dispatch in message.inputs:
                turn = self.turns[dispatch.call] = Turn(self, dispatch)
                self.tasks[dispatch.lease] = asyncio.get_running_loop().create_task(self._run(turn))
        elif isinstance(message, p.InputsCancelled):
            for lease in message.leases:
                if lease in self.tasks:
                    # Later: a task that has not begun would never hear of it.
                    asyncio.get_running_loop().call_soon(self.tasks[lease].cancel)
        elif isinstance(message, p.WebReceived | p.WebCredited):
            turn = self.turns.get(message.call)
            if turn is not None and isinstance(message, p.WebReceived):
                turn.events += message.events
                turn.unheard += message.events
            elif turn is not None:
                turn.credit += message.size
        elif isinstance(message, p.ContainerDrained):
            self.die("it has left", expected=True)

    async def _run(self, turn: Turn) -> None:
        self.hall.turns.append(turn)
        try:
            result = await self.hall.script(turn) or Result(SUCCESS)
        except asyncio.CancelledError:
            turn.cancelled = True
            result = Result(TERMINATED)
        except Exception as error:
            result = Result(FAILURE, error=ErrorInfo(type(error).__name__, str(error)))
        self.tasks.pop(turn.dispatch.lease, None)
        self.turns.pop(turn.call, None)
        self.say(p.InputsFinished([p.Finished(turn.dispatch.lease, result, 0.001)]))

    def die(self, reason: str = "signal 9", expected: bool = False) -> None:
        if self.hall.containers.pop(self.id, None) is None:
            return
        self.hall.driver.links.pop(self.id, None)
        self.closed = True
        for task in self.tasks.values():
            task.cancel()
        lost = p.ContainerLost(self.id, reason, 0 if expected else None, None if expected else 9)
        asyncio.get_running_loop().call_soon(self.hall.driver.report, lost)

    def flush(self) -> None:
        pass

    def close(self, reason: str) -> None:
        raise AssertionError(f"the server has closed the connection of a container: {reason}")

    def pause_reading(self, paused: bool) -> None:
        pass


class Nothing:
    """A store, launches and a log that do nothing."""

    def __getattr__(self, name: str) -> Any:
        return Nothing()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return None


class NoLaunches(Nothing):
    def make(self, order: p.StartContainer, spec: FunctionSpec, parameters: Any, app: AppSpec) -> Launch:
        return Launch(
            container=order.container,
            token="",
            address="",
            pool=order.pool,
            app=app.app,
            app_name=app.name,
            function=spec,
            parameters=parameters,
            code=app.code,
            environment=ENVIRONMENT,
        )


class NoOutput(Nothing):
    def close(self, container: str) -> list[Any]:
        return []


ENVIRONMENT = EnvironmentSpec(python="python", python_version="3.11")


class Hall:
    """`script` is what every container does with a request."""

    def __init__(self, script: Script, **options: Any) -> None:
        self.script = script
        self.starting = True
        """Whether containers come up as soon as they are asked for."""
        self.launches: list[Launch] = []
        self.containers: dict[str, Container] = {}
        self.turns: list[Turn] = []
        ids = itertools.count(1)
        self.plane = Plane(lambda prefix: f"{prefix}-{next(ids)}")
        nothing = cast(Any, Nothing())
        self.driver = Driver(self.plane, cast(Any, self), nothing, cast(Any, NoLaunches()), cast(Any, NoOutput()))
        self.driver.submit(p.NodeJoined("local", 64.0, 65536))
        self.ingress = Ingress(self.driver, **options)
        self.address = ("", 0)
        self.clients: list[Client] = []

    # ------------------------------------------------------------ the engine

    def start(self, launch: Launch) -> None:
        self.launches.append(launch)
        if self.starting:
            self.come_up(launch)

    def come_up(self, launch: Launch) -> None:
        def arrive() -> None:
            container = self.containers[launch.container] = Container(self, launch)
            self.driver.links[container.id] = cast(Any, container)
            self.driver.report(p.ContainerStarted(container.id, 4711))
            self.driver.submit(p.ContainerReady(), container.id)

        asyncio.get_running_loop().call_soon(arrive)

    def kill(self, container: str, grace_s: float = 0.0) -> None:
        if container in self.containers:
            self.containers[container].die("killed")

    # ------------------------------------------------------------ what tests do

    def add(self, *functions: FunctionSpec, app: str = "ap-1", name: str = "demo", **options: Any) -> None:
        spec = AppSpec(
            app=app,
            name=name,
            functions=functions,
            code=CodeSpec(),
            environment=ENVIRONMENT,
            ephemeral=False,
            **options,
        )
        self.driver.restore(p.AppCreated(1, spec))
        assert app in self.plane.apps, "the app was refused"

    @property
    def exchanges(self) -> int:
        return len(self.ingress._exchanges)

    async def turn(self, number: int = 0) -> Turn:
        await until(lambda: len(self.turns) > number)
        return self.turns[number]

    async def idle(self) -> None:
        """Until nothing is left of any request."""
        await until(lambda: not self.exchanges and not any(c.tasks for c in self.containers.values()))
        self.plane.check()
        assert not self.plane.calls.by_id
        assert not self.driver.awaited
        assert not self.ingress._leaving
        assert self.driver.failures == 0

    async def client(self) -> Client:
        reader, writer = await asyncio.open_connection(*self.address)
        self.clients.append(Client(reader, writer))
        return self.clients[-1]

    async def get(self, path: str = "/web/", *lines: str) -> Answer:
        """The answer to one request on a connection of its own."""
        client = await self.client()
        client.ask(path, *lines)
        answer = await client.answer()
        client.close()
        return answer


def web(
    name: str = "web",
    label: str | None = None,
    slots: int = 10,
    method: str = "",
    kind: str = "asgi_app",
    **options: Any,
) -> FunctionSpec:
    """A web function that is found under its own name."""
    fields = WebSpec.__struct_fields__
    spec = WebSpec(kind=kind, label=label or name, **{k: v for k, v in options.items() if k in fields})
    rest = {k: v for k, v in options.items() if k not in fields}
    return FunctionSpec(
        name=name,
        module="script",
        qualname=name,
        methods=(MethodSpec(name=method, web=spec),),
        concurrency=Concurrency(slots, slots, True),
        **rest,
    )


class Answer:
    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = dict(headers)
        self.all_headers = headers
        self.body = body

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """A client that sends what a test says, byte by byte, and reads strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *parts: str | bytes) -> None:
        self.writer.write(b"".join(part.encode() if isinstance(part, str) else part for part in parts))

    def ask(self, path: str = "/web/", *lines: str, method: str = "GET", host: str = "localhost") -> None:
        rest = "".join(f"{line}\r\n" for line in lines)
        self.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{rest}\r\n")

    async def line(self) -> str:
        return (await self.reader.readuntil(b"\r\n")).decode("latin-1")[:-2]

    async def head(self) -> Answer:
        """A response up to its body."""
        version, status, _ = (await self.line()).split(" ", 2)
        assert version == "HTTP/1.1"
        headers = []
        while line := await self.line():
            name, _, value = line.partition(": ")
            headers.append((name, value))
        return Answer(int(status), headers, b"")

    async def answer(self, of_head: bool = False) -> Answer:
        answer = await self.head()
        headers = answer.headers
        if of_head or answer.status in (204, 304):
            return answer
        if "content-length" in headers:
            answer.body = await self.reader.readexactly(int(headers["content-length"]))
        elif "transfer-encoding" in headers:
            chunks = []
            while chunk := await self.chunk():
                chunks.append(chunk)
            answer.body = b"".join(chunks)
        else:
            answer.body = await self.reader.read()
        return answer

    async def chunk(self) -> bytes:
        size = int(await self.line(), 16)
        data = await self.reader.readexactly(size + 2)
        assert data[size:] == b"\r\n"
        return data[:size]

    async def gone(self) -> bytes:
        """What comes until the server closes the connection."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self.writer.close()

    async def end(self) -> None:
        self.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def vanish(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def hall(script: Script, *functions: FunctionSpec, **options: Any) -> AsyncGenerator[Hall, None]:
    """A hall that listens, with an app of these functions (by default one, under `/web/`)."""
    made = Hall(script, **options)
    made.add(*(functions or (web(),)))
    made.address = await made.ingress.listen()
    try:
        yield made
    finally:
        for client in made.clients:
            await client.end()
        await made.ingress.close()
        for container in list(made.containers.values()):
            container.die()
        await asyncio.sleep(0)


async def hello(turn: Turn) -> None:
    turn.answer(b"hello")


async def echo(turn: Turn) -> None:
    turn.answer(await turn.body())


async def forever(turn: Turn) -> None:
    await asyncio.Event().wait()
