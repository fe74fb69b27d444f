"""A small plane for tests of the calling half: it speaks the protocol on a real socket and runs functions in place.

`functions` maps pools to plain functions, which get the arguments of each input. Inputs of the pool `held` are kept
until a test answers them. Everything that clients said is in `said`, and `wait_for` waits until something is true.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kedge.core.routes import routes_of
from kedge.model import protocol as p
from kedge.model.ids import deployment_id, function_id
from kedge.model.payload import FAILURE, TERMINATED, ErrorInfo, Payload, Result
from kedge.sdk.blobs import BlobStore
from kedge.sdk.serializer import error_info, from_payload, to_payload
from kedge.wire.transport import BlockingConnection, ConnectionLost

HELD = "held"
PATIENCE_S = 30.0


class FakePlane:
    def __init__(
        self, home: str, functions: dict[str, Callable[..., Any]] | None = None, *, over_tcp: bool = False
    ) -> None:
        self.home = home
        self.address = os.path.join(home, "plane.sock")
        self._over_tcp = over_tcp
        self.blobs = BlobStore(home)
        self.functions = functions or {}
        self.said: list[Any] = []
        self.welcomed = 0
        self.stored: dict[str, dict[int, Result]] = {}
        """Results of durable calls."""
        self.silent_about: set[type] = set()
        """Requests that are never answered."""
        self.refuse_hello = ""
        self.lets_in: dict[str, int] = {}
        """Inputs of one message that a pool takes; it refuses the others, which may come again."""
        self.retry_after = 0.01
        self.streams: dict[str, int] = {}
        """Credits that clients have given, by call."""
        self.web = ""
        """Where it answers requests, as it says to who connects."""
        self.deployed: dict[tuple[str, str], p.AppDeployed] = {}
        """What was deployed last, by environment and name."""
        self.refuse_deploy: ErrorInfo | None = None
        self.code: dict[str, list[tuple[str, bytes]]] = {}
        """Files that were uploaded, by digest."""
        self._changed = threading.Condition()
        self._links: list[BlockingConnection] = []
        self._by_call: dict[str, BlockingConnection] = {}
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.listen()

    # ------------------------------------------------------------ for tests

    def listen(self) -> None:
        self._listener = socket.socket(socket.AF_INET if self._over_tcp else socket.AF_UNIX)
        self._listener.bind(("127.0.0.1", 0) if self._over_tcp else self.address)
        if self._over_tcp:
            self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._listener.listen(64)
        self._start(self._accept, self._listener)

    def stop_listening(self) -> None:
        """The server is gone: nobody answers, and all connections break."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
            if not self._over_tcp:
                os.unlink(self.address)
        self.disconnect()

    def disconnect(self) -> None:
        for link in self._links[:]:
            link.close()

    def close(self) -> None:
        self.stop_listening()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Waits until `condition` gives something true, and gives that."""
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while not (found := condition()):
                assert time.monotonic() < deadline, f"it did not happen; said: {self.said}"
                # Not all conditions are about messages: look again soon in any case.
                self._changed.wait(0.01)
            return found

    def heard(self, kind: type, **fields: Any) -> list[Any]:
        """What clients said of one kind, with these fields."""
        return [m for m in self.said if type(m) is kind and all(getattr(m, k) == v for k, v in fields.items())]

    def wait_heard(self, kind: type, count: int = 1, **fields: Any) -> list[Any]:
        return self.wait_for(lambda: found if len(found := self.heard(kind, **fields)) >= count else None)

    def inputs(self) -> list[tuple[str, int]]:
        """(call, index) of everything submitted, in order, resends included."""
        return [(m.call, m.first + i) for m in self.heard(p.InputsSubmitted) for i in range(len(m.payloads))]

    def finish(self, call: str, index: int, value: Any, status: str = "success") -> None:
        """Answers a held input."""
        payload = value if isinstance(value, Payload) else to_payload(value, self.blobs)
        self.deliver(call, [p.Output(index, Result(status, payload))])

    def deliver(self, call: str, outputs: list[p.Output]) -> None:
        self._by_call[call].send([p.OutputsDelivered(call, outputs)])

    def tell_all(self, message: Any) -> None:
        for link in self._links:
            link.send([message])

    # ------------------------------------------------------------ connections

    def _start(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self._start(self._serve, BlockingConnection(sock, p.FromClient))

    def _serve(self, link: BlockingConnection) -> None:
        self._links.append(link)
        try:
            first, *rest = link.receive()
            assert isinstance(first, p.Hello)
            if self.refuse_hello:
                link.send([p.Refused(self.refuse_hello)])
                return
            self.welcomed += 1
            domain = self.web.replace("http://127.0.0.1", "localhost")
            link.send([p.Welcome(f"se-{self.welcomed}", home=self.home, web=self.web, web_domain=domain)])
            self._hear(rest, link)
            while True:
                self._hear(link.receive(), link)
        except ConnectionLost:
            pass
        finally:
            self._links.remove(link)
            link.close()

    def _hear(self, messages: Iterable[Any], link: BlockingConnection) -> None:
        for message in messages:
            # First the facts that tests wait for, then the record, then what follows.
            if isinstance(message, p.InputsSubmitted):
                self._by_call[message.call] = link
            elif isinstance(message, p.StreamCredited):
                self.streams[message.call] = self.streams.get(message.call, p.STREAM_WINDOW) + message.values
            with self._changed:
                self.said.append(message)
                self._changed.notify_all()
            if type(message) in self.silent_about:
                continue
            handler = getattr(self, f"_on_{type(message).__name__}", None)
            if handler is not None:
                handler(message, link)

    # ------------------------------------------------------------ what the plane does

    def _on_InputsSubmitted(self, message: p.InputsSubmitted, link: BlockingConnection) -> None:
        if message.pool not in self.functions and message.pool != HELD:
            error = ErrorInfo("NotFoundError", f"there is no running function {message.pool}")
            link.send([p.CallRefused(message.call, error)])
            return
        accepted = p.InputsAccepted(message.call, message.first, len(message.payloads))
        if message.pool == HELD:
            if message.durable:
                link.send([accepted])
            return
        if message.stream:
            self._start(self._stream, message, link)
            return
        most = self.lets_in.get(message.pool, len(message.payloads))
        outputs = [
            self._run(message, i, payload) if i < message.first + most else p.Output(i, self._refusal())
            for i, payload in enumerate(message.payloads, message.first)
        ]
        if message.durable:
            # Stored first: a client that knows they were accepted may ask for them on another connection at once.
            self.stored.setdefault(message.call, {}).update((output.index, output.result) for output in outputs)
            link.send([accepted])
        else:
            link.send([p.OutputsDelivered(message.call, outputs)])

    def _refusal(self) -> Result:
        text = "as many inputs wait as max_queued_inputs allows"
        return Result(FAILURE, error=ErrorInfo("ResourceExhaustedError", text, retry_after=self.retry_after))

    def _run(self, message: p.InputsSubmitted, index: int, payload: Payload) -> p.Output:
        try:
            args, kwargs = from_payload(payload, self.blobs)
            return p.Output(
                index, Result(payload=to_payload(self.functions[message.pool](*args, **kwargs), self.blobs))
            )
        except Exception as error:
            return p.Output(index, Result(FAILURE, error=error_info(error)))

    def _stream(self, message: p.InputsSubmitted, link: BlockingConnection) -> None:
        args, kwargs = from_payload(message.payloads[0], self.blobs)
        sent = 0
        try:
            for value in self.functions[message.pool](*args, **kwargs):
                self.wait_for(
                    lambda sent=sent: (
                        self.streams.get(message.call, p.STREAM_WINDOW) > sent
                        or self.heard(p.CallCancelled, call=message.call)
                    )
                )
                if self.heard(p.CallCancelled, call=message.call):
                    return
                link.send([p.StreamValues(message.call, 0, sent, [to_payload(value, self.blobs)])])
                sent += 1
            result = Result(count=sent)
        except ConnectionLost:
            return
        except Exception as error:
            result = Result(FAILURE, error=error_info(error))
        link.send([p.OutputsDelivered(message.call, [p.Output(0, result)])])

    def _on_CallCancelled(self, message: p.CallCancelled, link: BlockingConnection) -> None:
        if message.request:
            link.send([p.Reply(message.request)])
        call = self._by_call.get(message.call)
        if call is not None:
            gone = Result(TERMINATED, error=ErrorInfo("InputCancellation", "the input was cancelled"))
            call.send([p.OutputsDelivered(message.call, [p.Output(0, gone)])])

    def _on_OutputsRequested(self, message: p.OutputsRequested, link: BlockingConnection) -> None:
        results = self.stored.get(message.call)
        if results is None:
            text = f"there is no call {message.call}: it never was, or its results have expired after 7 days"
            link.send([p.CallRefused(message.call, ErrorInfo("OutputExpiredError", text), message.request)])
            return
        end = max(results, default=-1) + 1 if message.end is None else message.end
        there = [p.Output(i, results[i]) for i in range(message.start, end) if i in results]
        if there:
            link.send([p.OutputsDelivered(message.call, there, message.request)])

    def _on_CallRequested(self, message: p.CallRequested, link: BlockingConnection) -> None:
        results = self.stored.get(message.call)
        if results is None:
            error = ErrorInfo("NotFoundError", f"there is no call {message.call}")
            link.send([p.Reply(message.request, None, error)])
            return
        status = [[index, result.status] for index, result in sorted(results.items())]
        value = {"inputs": len(status), "done": len(status), "function": "f", "method": "", "status": status}
        link.send([p.Reply(message.request, value)])

    def _on_StatisticsRequested(self, message: p.StatisticsRequested, link: BlockingConnection) -> None:
        pool = {"backlog": 3, "containers": 2, "running": 4, "headroom": 1, "name": "f"}
        pool |= {"cancelled": 5, "bursts": 6, "loop_blocks": 7, "wait_p50_s": 0.1, "wait_p95_s": 0.2}
        pool |= {"run_p50_s": 0.3, "run_p95_s": None}
        link.send([p.Reply(message.request, pool if message.pool else [pool])])

    def _on_AutoscalerUpdated(self, message: p.AutoscalerUpdated, link: BlockingConnection) -> None:
        link.send([p.Reply(message.request, {"min_containers": message.min_containers})])

    def _on_ConcurrencyUpdated(self, message: p.ConcurrencyUpdated, link: BlockingConnection) -> None:
        link.send([p.Reply(message.request, {"max_inputs": message.max_inputs})])

    def _on_AppCreated(self, message: p.AppCreated, link: BlockingConnection) -> None:
        link.send([p.Reply(message.request, {"app": message.app.app})])

    def _on_AppDeployed(self, message: p.AppDeployed, link: BlockingConnection) -> None:
        if self.refuse_deploy is not None:
            link.send([p.Reply(message.request, None, self.refuse_deploy)])
            return
        spec = message.app
        self.deployed[spec.environment_name, spec.name] = message
        labels = {route.name: route.label for route in routes_of(spec)}
        value = {"app": deployment_id(spec.environment_name, spec.name), "version": len(self.heard(p.AppDeployed))}
        link.send([p.Notice(spec.app, "f is up", "deploy"), p.Reply(message.request, {**value, "labels": labels})])

    def _on_FunctionRequested(self, message: p.FunctionRequested, link: BlockingConnection) -> None:
        found = self.deployed.get((message.environment, message.app))
        for deployed in self.deployed.values():
            spec = deployed.app
            if message.function.startswith(function_id(deployment_id(spec.environment_name, spec.name), "")):
                found = deployed
        if found is None:
            there = ", ".join(name for _, name in self.deployed) or "nothing"
            self._not_found(link, message, f"no app {message.app!r} is deployed; deployed there: {there}. Deploy it")
            return
        spec = found.app
        id = deployment_id(spec.environment_name, spec.name)
        name = message.name or message.function.removeprefix(function_id(id, ""))
        value = {"app": id, "name": spec.name, "environment": spec.environment_name, "version": 1}
        value["labels"] = {route.method: route.label for route in routes_of(spec) if name in route.name}
        if message.version is not None:
            value |= {"app": f"ap-v{message.version}", "version": message.version}
        if name:
            function = next((function for function in spec.functions if function.name == name), None)
            if function is None:
                there = ", ".join(function.name for function in spec.functions)
                self._not_found(link, message, f"the app {spec.name} has no function or class {name!r}; it has {there}")
                return
            value["spec"] = function
        link.send([p.Reply(message.request, value)])

    def _not_found(self, link: BlockingConnection, message: Any, text: str) -> None:
        link.send([p.Reply(message.request, None, ErrorInfo("NotFoundError", text))])

    def _on_CodeUploaded(self, message: p.CodeUploaded, link: BlockingConnection) -> None:
        arrived = self.code.setdefault(message.digest, [])
        arrived += message.files
        if message.last:
            link.send([p.Reply(message.request, {"root": f"/there/{message.digest}" if arrived else ""})])

    def _on_AppStopped(self, message: p.AppStopped, link: BlockingConnection) -> None:
        link.send([p.Reply(message.request, {"app": message.app})])
