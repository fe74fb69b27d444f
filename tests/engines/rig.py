"""An engine under test: launches little programs as containers, and waits for what is reported about them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from kedge.engines.base import Fact
from kedge.engines.process import ProcessEngine
from kedge.model.payload import Payload
from kedge.model.protocol import ContainerLost, ContainerStarted, ForkServerReported, OutputCaptured
from kedge.model.spec import CodeSpec, EnvironmentSpec, FunctionSpec, Isolation, Launch, Resources

PATIENCE_S = 60.0
"""Far beyond what anything here takes: only a failure waits so long."""
HERE = str(Path(__file__).parent)
T = TypeVar("T")
_numbers = itertools.count()


def new_name() -> str:
    """Of a container. Runtimes keep names for the whole machine, where other test processes have theirs."""
    return f"ct-{os.getpid()}-{next(_numbers)}"


class Rig:
    """Starts containers, and collects what the engine reports."""

    def __init__(self, runner: str = "engine_standin") -> None:
        self.facts: list[Fact] = []
        self.engine = ProcessEngine(self._report, runner=runner, runtime=[HERE])
        self._changed = asyncio.Event()

    def _report(self, fact: Fact) -> None:
        self.facts.append(fact)
        self._changed.set()

    def launch(self, source: str, **options: Any) -> str:
        """Starts a container that runs `source`; `options` are those of `make_launch`. Returns its id."""
        launch = make_launch(new_name(), source, **options)
        self.engine.start(launch)
        return launch.container

    async def until(self, check: Callable[[], T]) -> T:
        """Waits for a report that makes `check` true, and returns what it returned."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := check()):
                self._changed.clear()
                await self._changed.wait()
            return found

    def of(self, kind: type[T], container: str = "") -> list[T]:
        """The facts of one kind, in their order."""
        return [
            fact
            for fact in self.facts
            if isinstance(fact, kind) and (not container or getattr(fact, "container", "") == container)
        ]

    async def started(self, container: str) -> ContainerStarted:
        return (await self.until(lambda: self.of(ContainerStarted, container)))[0]

    async def lost(self, container: str) -> ContainerLost:
        return (await self.until(lambda: self.of(ContainerLost, container)))[0]

    async def fork_servers(self, count: int) -> list[ForkServerReported]:
        return await self.until(lambda: found if len(found := self.of(ForkServerReported)) >= count else [])

    def output(self, container: str, stream: int = 1) -> bytes:
        return b"".join(fact.data for fact in self.of(OutputCaptured, container) if fact.stream == stream)

    async def says(self, container: str, text: bytes = b"\n", stream: int = 1) -> bytes:
        """Waits until the container has written `text`, and returns all it has written."""
        await self.until(lambda: text in self.output(container, stream))
        return self.output(container, stream)

    async def run(self, source: str, **options: Any) -> tuple[ContainerLost, bytes]:
        """Runs a container to its end. Returns its end and its stdout."""
        container = self.launch(source, **options)
        return await self.lost(container), self.output(container)


def make_launch(
    container: str,
    source: str,
    *,
    app: str = "app",
    preload: tuple[str, ...] = (),
    variables: dict[str, str] | None = None,
    sys_path: tuple[str, ...] | None = None,
    python: str = sys.executable,
    directory: str = "/",
    cpu: float = 1.0,
    alias_modal: bool = False,
    isolation: Isolation | None = None,
) -> Launch:
    """A launch whose code is `source`, for the stand-in."""
    return Launch(
        container=container,
        token="t",
        address="/nowhere",
        pool="fu-app-f",
        app=f"ap-{app}",
        app_name=app,
        function=FunctionSpec(
            name="f",
            module="m",
            qualname="f",
            serialized=Payload(data=textwrap.dedent(source).encode()),
            resources=Resources(cpu=cpu),
        ),
        code=CodeSpec(),
        environment=EnvironmentSpec(
            python=python,
            python_version="",
            sys_path=tuple(entry for entry in sys.path if entry) if sys_path is None else sys_path,
            variables=tuple({"PATH": os.environ.get("PATH", ""), **(variables or {})}.items()),
            directory=directory,
            alias_modal=alias_modal,
        ),
        preload=preload,
        isolation=isolation or Isolation(),
    )


@asynccontextmanager
async def rig(runner: str = "engine_standin") -> AsyncIterator[Rig]:
    """An open engine. When it has closed, nothing that it started may be left."""
    it = Rig(runner)
    await it.engine.open()
    supervisor = it.engine.supervisor
    try:
        yield it
    finally:
        await it.engine.close()
    started = [fact.process for fact in it.facts if isinstance(fact, ContainerStarted | ForkServerReported)]
    assert [process for process in (supervisor, *started) if alive(process)] == []


def with_rig(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes a test of a coroutine function whose first parameter is an open rig."""

    async def play(**fixtures: Any) -> None:
        async with rig() as it:
            await scenario(it, **fixtures)

    def test(**fixtures: Any) -> None:
        asyncio.run(play(**fixtures))

    # pytest reads the signature for fixtures: all parameters but the rig.
    functools.update_wrapper(test, scenario)
    del test.__wrapped__  # type: ignore[attr-defined]
    signature = inspect.signature(scenario)
    test.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return test


def alive(process: int) -> bool:
    """Whether a process runs: one that has ended and was not reaped does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


async def eventually(check: Callable[[], T]) -> T:
    """Waits for what sets no event, and returns what `check` returned."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := check()):
            await asyncio.sleep(0.005)
        return found


async def ended(*processes: int) -> None:
    """Waits until none of these processes runs."""
    await eventually(lambda: not any(alive(process) for process in processes))


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def mapped(process: int) -> str:
    """The files that a process has in its memory, as text."""
    return Path(f"/proc/{process}/maps").read_text()


def descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def site_packages(directory: Path, **modules: str) -> str:
    """A directory of installed modules with these sources."""
    root = directory / "site-packages"
    root.mkdir(exist_ok=True)
    for name, source in modules.items():
        (root / f"{name}.py").write_text(textwrap.dedent(source))
    return str(root)
