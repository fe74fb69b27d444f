"""A plane that only talks: starts one container process, sends it what a test says, and collects what it answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop  # noqa: F401 - here rather than in each fork, as in a fork server

from kedge.container import main
from kedge.model.payload import Payload
from kedge.model.protocol import (
    ContainerDrained,
    ContainerFailed,
    ContainerReady,
    Dispatch,
    Finished,
    FromContainer,
    Heartbeat,
    Hello,
    InputsCancelled,
    InputsDispatched,
    InputsFinished,
    InputsReturned,
    InputsStarted,
    StreamValues,
)
from kedge.model.spec import CodeSpec, Concurrency, EnvironmentSpec, FunctionSpec, Launch, MethodSpec
from kedge.sdk.blobs import BlobStore
from kedge.sdk.serializer import arguments_payload, from_payload
from kedge.wire.transport import BlockingConnection, ConnectionLost

HERE = Path(__file__).parent
PATIENCE_S = 30.0
"""For what must happen; a test that waits this long has failed."""


def function(
    name: str, max_inputs: int = 1, *, is_async: bool = False, stream: bool = False, **more: Any
) -> FunctionSpec:
    fields = {
        "name": name,
        "module": "shop",
        "qualname": name,
        "methods": (MethodSpec(is_async=is_async, is_generator=stream),),
        "concurrency": Concurrency(max_inputs, max_inputs, max_inputs > 1),
    }
    return FunctionSpec(**(fields | more))


def service_class(name: str, max_inputs: int, methods: dict[str, bool], **more: Any) -> FunctionSpec:
    """`methods`: whether each is async."""
    return function(
        name,
        max_inputs,
        is_class=True,
        methods=tuple(MethodSpec(name=method, is_async=is_async) for method, is_async in methods.items()),
        **more,
    )


class FakePlane:
    records: int | None = None
    """The write end of a pipe for what a forked container prints."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal_file = directory / "journal"
        self.address = str(directory / "plane.sock")
        self.blobs = BlobStore(str(directory))
        self.messages: list[Any] = []
        self.frames = 0
        self.finished: dict[int, Finished] = {}
        self.started: list[int] = []
        self.returned: list[int] = []
        self.values: list[Any] = []
        self.process = 0
        self.code: int | None = None
        self._leases = 0
        self._call_index: dict[int, tuple[str, int]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(1)
        self._listener.settimeout(PATIENCE_S)
        self.connection: BlockingConnection

    # ------------------------------------------------------------ the container's life

    def launch_of(self, spec: FunctionSpec, **more: Any) -> Launch:
        spec = msgspec.structs.replace(spec, env=(("JOURNAL", str(self.journal_file)),))
        fields = {
            "container": "ct-1",
            "token": "secret",
            "address": self.address,
            "pool": "fu-1-x",
            "app": "ap-1",
            "app_name": "shop",
            "function": spec,
            "code": CodeSpec(),
            "environment": EnvironmentSpec(
                python=sys.executable,
                python_version="3.11",
                sys_path=(str(HERE), *(entry for entry in sys.path if entry)),
                directory=str(self.directory),
            ),
            "home": str(self.directory),
        }
        return Launch(**(fields | more))

    def start(self, spec: FunctionSpec, *, fresh: bool = False, ready: bool = True, **more: Any) -> FakePlane:
        """Starts the container, as a fork of this process or as a fresh one, and waits until it is ready."""
        launch = self.launch_of(spec, **more)
        self.process = self._fresh(launch) if fresh else self._fork(launch)
        accepted, _ = self._listener.accept()
        self.connection = BlockingConnection(accepted, FromContainer)
        hello = self.wait_for(Hello)
        assert (hello.role, hello.identity, hello.token) == ("container", "ct-1", "secret")
        assert hello.process == self.process
        if ready:
            self.wait_for(ContainerReady, ContainerFailed)
            assert not self.of(ContainerFailed), self.of(ContainerFailed)[0].error.traceback
        return self

    def _fork(self, launch: Launch) -> int:
        process = os.fork()
        if process:
            return process
        try:
            os.setsid()
            for number, name in ((1, "stdout"), (2, "stderr")):
                target = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(target, number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
            self._listener.close()
            os.environ.update(launch.environment.variables)
            main.run(launch, self.records)
        finally:
            os._exit(99)

    def _fresh(self, launch: Launch) -> int:
        command = [sys.executable, "-m", "kedge.container.main"]
        with open(self.directory / "stdout", "wb") as out, open(self.directory / "stderr", "wb") as err:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True)
        assert child.stdin is not None
        child.stdin.write(msgspec.msgpack.encode(launch))
        child.stdin.close()
        child.returncode = 0  # this object forgets the process; wait_exit looks after it
        return child.pid

    def wait_exit(self) -> int:
        """The exit code, negative for a signal; reads on until then."""
        deadline = time.monotonic() + PATIENCE_S
        while self.code is None:
            assert time.monotonic() < deadline, f"the container lives on\n{self.errors()}"
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
            else:
                self.poll(0.005)
        self.poll(0)
        return self.code

    def stop(self) -> None:
        if self.process and self.code is None:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        self._listener.close()
        if hasattr(self, "connection"):
            self.connection.close()

    def errors(self) -> str:
        path = self.directory / "stderr"
        return path.read_text() if path.exists() else ""

    # ------------------------------------------------------------ what the container says

    def poll(self, timeout: float) -> None:
        try:
            messages = self.connection.receive(timeout)
        except ConnectionLost:
            time.sleep(timeout)
            return
        self.frames += bool(messages)
        for message in messages:
            self.messages.append(message)
            match message:
                case InputsFinished():
                    for item in message.inputs:
                        assert item.lease not in self.finished, "reported twice"
                        self.finished[item.lease] = item
                    self.started += message.started
                case InputsStarted():
                    self.started += message.leases
                case InputsReturned():
                    self.returned += message.leases
                case StreamValues():
                    self.values += [from_payload(value, self.blobs) for value in message.values]

    def until(self, condition: Callable[[], Any]) -> Any:
        """Reads on until the condition holds: its value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"it did not happen; got {self.messages[-5:]}\n{self.errors()}"
            self.poll(0.005)
        return found

    def wait_for(self, *kinds: type) -> Any:
        return self.until(lambda: [m for m in self.messages if isinstance(m, kinds)])[-1]

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]

    def noted(self, *lines: str) -> list[str]:
        """Waits until user code has noted all of these; everything it has noted."""
        self.until(lambda: set(lines) <= set(self.journal()))
        return self.journal()

    def journal(self) -> list[str]:
        return self.journal_file.read_text().splitlines() if self.journal_file.exists() else []

    def allow(self, name: str) -> None:
        """Lets user code go on that waits for this name."""
        Path(f"{self.journal_file}.{name}").touch()

    # ------------------------------------------------------------ what the plane says

    def send(self, *messages: Any) -> None:
        self.connection.send(list(messages))

    def input(
        self,
        *args: Any,
        method: str = "",
        credited: bool = False,
        stream: bool = False,
        payload: Payload | None = None,
        timeout: float = 0.0,
    ) -> Dispatch:
        self._leases += 1
        lease = self._leases
        payload = payload or arguments_payload(args, {}, self.blobs)
        return Dispatch(lease, f"fc-{lease:08x}", lease * 10, method, payload, 0, credited, stream, timeout)

    def dispatch(self, *args: Any, **more: Any) -> int:
        dispatch = self.input(*args, **more)
        self.send(InputsDispatched([dispatch]))
        return dispatch.lease

    def cancel(self, *leases: int, reason: str = "cancelled") -> None:
        self.send(InputsCancelled(list(leases), reason))

    def drain(self, *, cancel: bool = False) -> None:
        self.send(ContainerDrained("enough", cancel))

    def result(self, lease: int) -> Finished:
        self.until(lambda: lease in self.finished)
        return self.finished[lease]

    def value(self, lease: int) -> Any:
        result = self.result(lease).result
        assert result.status == "success", result.error and result.error.traceback
        return from_payload(result.payload, self.blobs) if result.payload else None

    def call(self, *args: Any, **more: Any) -> Any:
        return self.value(self.dispatch(*args, **more))

    def beats(self) -> list[Heartbeat]:
        return self.of(Heartbeat)

    def switches(self) -> int:
        """How often threads of the container have gone to sleep so far: what never wakes up does not count on."""
        total = 0
        for status in Path(f"/proc/{self.process}/task").glob("*/status"):
            total += int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        return total

    def is_asleep(self) -> bool:
        """Whether no thread of it woke up for a tenth of a second."""
        before = self.switches()
        self.poll(0.1)
        return self.switches() == before
