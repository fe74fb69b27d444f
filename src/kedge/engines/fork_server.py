"""A process that holds kedge's runtime and the heavy packages of one environment, and forks containers from them.

It stays single-threaded, holds no module of the user, and waits on its control channel and its children's pidfds
only. Modules come from site-packages: while it loads them, no other directory is on `sys.path`. What it loads may make
forking unsafe; it checks after each module, reports the first that does, and never forks after that.

Without pidfds (old kernels, some sandboxes) it asks after its children every 20 ms instead.
"""

from __future__ import annotations

import errno
import gc
import importlib
import importlib.util
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from kedge.engines import bytecode, child, confinement, density, fork_hooks, fork_safety, kernel, spawn, system
from kedge.engines.boot import completed, library_entries
from kedge.engines.bounds import Bounds, bind
from kedge.engines.channel import (
    Channel,
    ChannelClosed,
    CodeShown,
    ContainerBorn,
    ContainerEnded,
    ContainerForked,
    ContainerReaped,
    ServerPrepared,
    ServerReady,
    ToForkServer,
)
from kedge.sdk import alias

_POLL_MS = 20
_AT_ONCE = 8
"""Orders that are taken up together."""


def main(descriptor: int, runtime: Sequence[str], runner: str) -> NoReturn:
    system.set_name("kedge-fork")
    os.chdir("/")
    server = ForkServer(Channel(socket.socket(fileno=descriptor), ToForkServer), runtime, runner)
    try:
        server.prepare()
        server.serve()
    except ChannelClosed:
        pass  # retired, or the supervisor is gone; children die with this process
    os._exit(0)


class _Compiler(NamedTuple):
    process: int
    pidfd: int


class ForkServer:
    """Forks on demand. A child that has ended stays a zombie until the supervisor has dealt with it."""

    def __init__(self, channel: Channel, runtime: Sequence[str], runner: str) -> None:
        self._channel = channel
        self._runtime = runtime
        self._runner = runner
        self._mounts: int | None = None
        """Where containers are confined: the mounts from which they make theirs."""
        self._own: int | None = None
        """There, too: the pid namespace of this process."""
        self._away = False
        """Children of this process are not where it is."""
        self._sole_chance = False
        """Once a container was forked, no child of this process could be beside it any more."""
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._running: dict[str, tuple[int, int | None]] = {}
        """Container → (process, pidfd)."""
        self._ended: dict[str, int] = {}
        self._watched: dict[int, str] = {}
        """pidfd → container."""
        self._uncompiled: deque[tuple[str, int]] = deque()
        """Code that was shown: where it lies, and a descriptor of that."""
        self._compiler: _Compiler | None = None
        self._small: list[int] = []
        """Where small pages are to become big ones, when there is nothing else to do."""

    def prepare(self) -> None:
        """Loads what this server is for, and says how that went."""
        started = time.monotonic()
        messages: list[object] = []
        while not messages:
            messages = self._channel.receive()
        order = messages[0]
        assert isinstance(order, ServerPrepared)
        if order.confined:
            [self._mounts] = self._channel.take(1)
            self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            self._sole_chance = not _can_return(self._own)
            confinement.prepare()
        if order.sys_path:
            sys.path[:] = completed(library_entries(order.sys_path), self._runtime)
        unsafe = self._load_base(order.alias_modal)
        skipped: dict[str, str] = {}
        culprit = ""
        for name in () if unsafe else order.preload:
            problem = load(name)
            if problem:
                skipped[name] = problem
            unsafe = self._objection()
            if unsafe:
                culprit = name
                break
        spawn.forget_signals()  # whatever was loaded has set
        child.rehearse()
        sys.stdout.flush()
        sys.stderr.flush()
        for entry in [entry for entry, finder in sys.path_importer_cache.items() if finder is None]:
            del sys.path_importer_cache[entry]  # not there yet, and Python would never look again
        gc.collect()
        gc.freeze()
        density.fill()
        self._small = density.big_places()
        self._channel.send(
            ServerReady(skipped=skipped, unsafe=unsafe, culprit=culprit, seconds=time.monotonic() - started)
        )

    def serve(self) -> None:
        """Forks until the channel closes."""
        while True:
            unwatched = len(self._running) > len(self._watched)
            idle = bool(self._small) and not self._running
            wait = 0 if idle else _POLL_MS if unwatched else None
            ready = {descriptor for descriptor, _ in self._poll.poll(wait)}
            if idle and not ready:
                density.collapse(self._small.pop())
            for descriptor in ready & self._watched.keys():
                self._collect(self._watched[descriptor])
            if unwatched:
                for container in [name for name, (_, pidfd) in self._running.items() if pidfd is None]:
                    self._collect(container)
            if self._compiler is not None and self._compiler.pidfd in ready:
                self._compiled()
            if self._channel.fileno() in ready:
                self._obey([(each, self._brought(each)) for each in self._channel.receive_at_hand(_AT_ONCE)])

    def _brought(self, message: object) -> tuple[int, ...]:
        """The descriptors that came with it."""
        try:
            if isinstance(message, ContainerForked):
                return self._channel.take(4 if self._mounts is None else 6)
            return self._channel.take(1) if isinstance(message, CodeShown) else ()
        except OSError:  # too many are open; it is said when it is its turn
            return ()

    def _obey(self, orders: list[tuple[Any, tuple[int, ...]]]) -> None:
        """Forks come first where that can be."""
        for message, descriptors in orders:
            if isinstance(message, CodeShown):
                self._uncompiled.extend((message.root, directory) for directory in descriptors)
        if self._sole_chance and self._uncompiled:
            self._sole_chance = False
            self._compile([each for order, own in orders if isinstance(order, ContainerForked) for each in own])
        self._fork([order for order in orders if isinstance(order[0], ContainerForked)])
        for message, _ in orders:
            if isinstance(message, ContainerReaped):
                self._bury(message.container)
        self._compile_next()

    def _load_base(self, alias_modal: bool) -> str:
        """What every container needs. A failure here is a broken installation: it ends the process, on stderr."""
        package = importlib.import_module("kedge")
        for name in getattr(package, "__all__", ()):
            getattr(package, name)  # public names may be loaded lazily
        importlib.import_module(self._runner).prepare()
        if alias_modal:
            alias.install()  # before anything that says `import modal`
        return self._objection()

    def _objection(self) -> str:
        if sys.platform == "darwin":
            return "macOS: its system libraries do not survive a fork"
        return fork_safety.objection({0, 1, 2, self._channel.fileno()})

    def _fork(self, orders: list[tuple[ContainerForked, tuple[int, ...]]]) -> None:
        """One fork right after the other: what this process writes to between two of them is copied again."""
        parent = os.getpid() if self._mounts is None else 0  # which cannot be seen from inside
        born: list[tuple[str, int, str]] = []
        later = [descriptor for _, descriptors in orders for descriptor in descriptors]
        for order, descriptors in orders:
            del later[: len(descriptors)]
            process, error = 0, ""
            try:
                if not descriptors:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                if self._mounts is not None:
                    self._away = True
                    kernel.setns(descriptors[4], kernel.NEWPID)  # for children: this process stays where it is
                process = fork_hooks.fork()
                if process == 0:
                    self._live(parent, order.bounds, descriptors, later)
            except OSError as problem:
                error = f"cannot fork: {problem}"
            for descriptor in descriptors:  # now: they are not for the next one
                os.close(descriptor)
            born.append((order.container, process, error))
        for container, process, error in born:
            if process:
                pidfd = system.open_pidfd(process)
                self._running[container] = (process, pidfd)
                if pidfd is not None:
                    self._watched[pidfd] = container
                    self._poll.register(pidfd, select.POLLIN)
            self._channel.send(ContainerBorn(container, process, error))

    def _compile_next(self) -> None:
        while self._compiler is None and self._uncompiled:
            self._compile()

    def _compile(self, containers: Sequence[int] = ()) -> None:
        """`containers`: descriptors of some that are still to be forked."""
        root, directory = self._uncompiled.popleft()
        try:
            if self._away and self._own is not None:
                kernel.setns(self._own, kernel.NEWPID)  # not into the last container's
            parent = os.getpid()
            process = fork_hooks.fork()
            if process == 0:
                try:
                    system.die_with(parent)
                    system.set_name("kedge-compile")
                    self._leave()
                    for descriptor in containers:
                        os.close(descriptor)
                    bytecode.write(directory, root)
                finally:
                    os._exit(0)
        except OSError:  # containers compile for themselves
            process = 0
        os.close(directory)
        pidfd = system.open_pidfd(process) if process else None
        if pidfd is not None:
            self._compiler = _Compiler(process, pidfd)
            self._poll.register(pidfd, select.POLLIN)

    def _compiled(self) -> None:
        assert self._compiler is not None
        self._poll.unregister(self._compiler.pidfd)
        os.close(self._compiler.pidfd)
        os.waitpid(self._compiler.process, 0)
        self._compiler = None
        self._compile_next()

    def _leave(self) -> None:
        """In a child: closes what is the server's own."""
        self._channel.close()
        if self._own is not None:
            os.close(self._own)
        for pidfd in self._watched:
            os.close(pidfd)
        if self._compiler is not None:
            os.close(self._compiler.pidfd)
        for _, directory in self._uncompiled:
            os.close(directory)

    def _live(self, parent: int, bounds: Bounds, descriptors: tuple[int, ...], siblings: Sequence[int]) -> NoReturn:
        launch, stdout, stderr, records, *room = descriptors
        try:
            self._leave()
            for descriptor in siblings:
                os.close(descriptor)
            spawn.detach(parent, stdout, stderr)
            if self._mounts is not None:
                kernel.setns(self._mounts, kernel.NEWNS)  # where control groups are
                os.close(self._mounts)
            bind(bounds)
            data = child.read_whole(launch)
            os.close(launch)
            child.live(data, records, self._runtime, self._runner, forked=True, room=room)
        except OSError as error:
            os.write(2, f"kedge: cannot start: {error}\n".encode())
        finally:
            os._exit(child.CRASHED)

    def _collect(self, container: str) -> None:
        process, pidfd = self._running[container]
        fate = system.peek_exit(process)
        if fate is None:
            return
        if pidfd is not None:
            self._poll.unregister(pidfd)
            del self._watched[pidfd]
            os.close(pidfd)
        del self._running[container]
        self._ended[container] = process
        self._channel.send(ContainerEnded(container, *fate))

    def _bury(self, container: str) -> None:
        if container in self._running:  # the supervisor saw its end first
            self._collect(container)
        os.waitpid(self._ended.pop(container), 0)


def _can_return(own: int) -> bool:
    """Whether children of this process could be in its own pid namespace again. Not where it is in a user namespace."""
    try:
        kernel.setns(own, kernel.NEWPID)
    except OSError:
        return False
    return True


def load(name: str) -> str:
    """Imports an installed module. Returns why it was left out, or an empty string."""
    try:
        specification = importlib.util.find_spec(name.partition(".")[0])
        if specification is None:
            return "not installed"
        places = specification.submodule_search_locations or [specification.origin or ""]
        if specification.origin not in ("built-in", "frozen") and not any(_is_installed(place) for place in places):
            return "not from site-packages: it belongs to the user's code"
        importlib.import_module(name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    return ""


def _is_installed(place: str) -> bool:
    return any(place.startswith(entry.rstrip("/") + "/") for entry in sys.path)
