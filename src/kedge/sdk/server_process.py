"""Finding the machine's server, and starting one: private to this program, or the machine's own.

A private server holds one end of a pipe whose other end is here: it ends when we close ours, however we end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from kedge.exception import ConnectionError, Error, InvalidError
from kedge.sdk import config, server_options

START_S = 60.0
"""Seconds until a server must have said that it listens; it takes well under one."""
STOP_S = 20.0
"""Seconds a private server has for the exit hooks of its containers. It allows them 10 by itself."""


class ServerAddress(Struct, frozen=True):
    """Where a server listens, and what it asks for over TCP."""

    address: str
    token: str = ""
    tls_ca: str = ""
    """A file of certificates that the server's is checked against."""
    named: str = ""
    """What names it (`KEDGE_SERVER`, a profile): where it does not answer, no other takes its place. Empty for the
    machine's own."""
    token_of: str = ""
    """Where the token comes from, for whoever is refused."""
    tcp: str = ""
    """Where the machine's own listens for others."""


def home() -> str:
    """The state directory: `KEDGE_HOME`, or `~/.kedge`."""
    return os.path.abspath(os.path.expanduser(os.environ.get("KEDGE_HOME") or "~/.kedge"))


def unusable(directory: str, error: OSError) -> Error:
    """What to say where the state directory cannot be written."""
    return Error(
        f"the state directory {directory} cannot be used: {error}; set KEDGE_HOME to a directory you can write to"
    )


def find(directory: str | None = None) -> ServerAddress | None:
    """The server to use: `KEDGE_SERVER` (with `KEDGE_TOKEN`), else that of the profile in use (`sdk.config`), else the
    machine's if it runs, else None.

    Args:
        directory: State directory of the machine's server, which then is the only one to be looked for.
    """
    if directory is None:
        named = _named()
        if named is not None:
            return named
    path = os.path.join(directory or home(), "server", "server.json")
    try:
        with open(path, encoding="utf-8") as file:
            facts = json.load(file)
        # A server that was killed leaves its file behind.
        os.kill(facts["process"], 0)
        return ServerAddress(facts["address"], facts.get("token", ""), tcp=facts.get("tcp", ""))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _named() -> ServerAddress | None:
    """The server that a variable or the profile in use names."""
    variable = os.environ.get("KEDGE_SERVER")
    if variable:
        _check(variable, "KEDGE_SERVER")
        token, ca = os.environ.get("KEDGE_TOKEN", ""), os.environ.get("KEDGE_TLS_CA", "")
        return ServerAddress(variable, token, ca, "KEDGE_SERVER")
    profile = config.profile()
    if profile is None or not profile.server:
        return None
    _check(profile.server, f"the server of the profile {profile.name!r} in {config.path()}")
    named = f"the profile {profile.name!r}"
    variable = os.environ.get("KEDGE_TOKEN")
    if variable:
        token_of = f"KEDGE_TOKEN, which goes before that of {named}"
    else:
        token_of = f"that of {named}" if profile.token else f"missing: {named} has none"
    return ServerAddress(profile.server, variable or profile.token, profile.tls_ca, named, token_of)


def _check(address: str, what: str) -> None:
    """InvalidError where it is no address: a name or a port alone would be taken for the path of a socket."""
    from kedge.wire.transport import is_tcp, split_tcp  # not for the time of `import kedge`

    try:
        good = bool(split_tcp(address)[1]) if is_tcp(address) else "/" in address and "://" not in address
    except ValueError:
        good = False
    if not good:
        raise InvalidError(
            f"{what} is {address!r}; write tcp://HOST:PORT, tcps://HOST:PORT (under TLS), or the path of a socket"
        )


def elsewhere() -> ServerAddress | None:
    """The server that a variable or the profile in use names, where it is reached over TCP and not this machine's own:
    its files are not here."""
    found = _named()
    if found is None or not found.address.startswith(("tcp://", "tcps://")):
        return None
    own = find(home())
    return None if own is not None and own.tcp == found.address else found


class ServerProcess:
    """A server that this process has started.

    Args:
        private: End with this process, and keep state of its own; otherwise it is the machine's server and stays.
        directory: State directory.
        options: More words for the command line of the machine's server. None: those that it was started with last.
        ending: Ends the machine's server that runs, whose place this one takes. Called when this one is loaded, so that
            the machine is without a server for a moment only.
        wait: Until it listens. Without that, `await_ready` is to be called before anything else but `leave`.

    Raises ConnectionError with the server's own words where it does not come up.

    Example:
        server = ServerProcess(private=True)
        client = Client.connect(server.address.address)
    """

    def __init__(
        self,
        *,
        private: bool,
        directory: str | None = None,
        options: Sequence[str] | None = None,
        ending: Callable[[], None] | None = None,
        wait: bool = True,
    ) -> None:
        directory = directory or home()
        self._owner: int | None = None
        self._private = private
        self._log = _private_log(directory) if private else machine_log(directory)
        self._log_begins = os.path.getsize(self._log)
        self._ready, ready_there = os.pipe()
        there = [ready_there]
        command = [sys.executable, "-P", "-m", "kedge.server.main", "--home", directory, "--ready-fd", str(ready_there)]
        self._ending = ending
        self._remembered = remembered = server_options.load(directory) if options is None and not private else []
        if private:
            owned, self._owner = os.pipe()
            there.append(owned)
            command += ["--private", "--owner-fd", str(owned)]
        else:
            command += ["--log-file", self._log, *(remembered if options is None else options)]
        if ending is not None:
            command.append("--successor")
        try:
            with open(self._log, "ab") as log:
                # A session of its own: Ctrl-C in the terminal is for this program, which then ends the server in order.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=there,
                    env=environment(),
                    cwd=directory,
                    start_new_session=True,
                )
        finally:
            for descriptor in there:
                os.close(descriptor)
        if self._owner is not None:
            _owned.add(self._owner)
        if wait:
            self.await_ready()

    def await_ready(self) -> None:
        """Until it listens; ConnectionError where that does not happen."""
        try:
            facts = self._facts() if self._ending is None else self._succeed(self._ending)
        except ConnectionError as error:
            self.close()
            if not self._remembered:
                raise
            raise ConnectionError(
                f"{error}\nIt was started as the last time, with {' '.join(self._remembered)}; "
                "`kedge server start --reset` begins without these options"
            ) from error
        except BaseException:
            self.close()
            raise
        finally:
            os.close(self._ready)
            self._ready = -1
        self.facts = facts
        """What it says of itself: where it listens, and what people should know."""
        self.address = ServerAddress(facts["address"], facts.get("token", ""))
        if not self._private:
            # It outlives us: nobody waits for it, and that is no leak.
            self._process.returncode = 0

    def gone(self) -> str:
        """Why it is not there any more; empty while it runs."""
        code = self._process.poll()
        return "" if code is None else f"it has ended with exit code {code}, see {self._log}"

    def close(self) -> None:
        """Lets a private server go and waits for it; kills it where it does not go."""
        self._let_go()
        if not self._ends_within(STOP_S):
            self._process.kill()
        self._process.wait()
        if self._process.returncode == 0 and self._private:
            # It ended in order: what it had to say is of no further use.
            self._remove_log()

    def leave(self) -> None:
        """Lets a private server go that nobody has used, without waiting for it: it ends as soon as it sees that."""
        os.close(self._ready)
        self._let_go()
        self._process.returncode = 0  # nobody waits for it, and that is no leak
        self._remove_log()

    def _let_go(self) -> None:
        if self._owner is not None:
            _owned.discard(self._owner)
            os.close(self._owner)
            self._owner = None

    def _remove_log(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._log)

    def _ends_within(self, seconds: float) -> bool:
        if self._process.poll() is None and hasattr(os, "pidfd_open"):
            # `Popen.wait` asks again and again, and people wait for this.
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(self._process.pid)
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll(seconds * 1000)
                os.close(descriptor)
                seconds = 0.0
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _succeed(self, ending: Callable[[], None]) -> dict[str, Any]:
        try:
            said = self._hear(time.monotonic() + START_S)
            if said == b" ":
                ending()
        except BaseException:
            self._process.kill()
            raise
        return self._facts(said)

    def _facts(self, line: bytes = b"") -> dict[str, Any]:
        deadline = time.monotonic() + START_S
        while not line.endswith(b"\n"):
            line += self._hear(deadline)
        facts: dict[str, Any] = json.loads(line)
        if "error" in facts:
            raise ConnectionError(f"the kedge server could not start: {facts['error']}")
        return facts

    def _hear(self, deadline: float) -> bytes:
        """What it says next."""
        poll = select.poll()
        poll.register(self._ready, select.POLLIN | select.POLLHUP)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ConnectionError(f"the kedge server did not come up within {START_S:g} s; see {self._log}")
        data = os.read(self._ready, 65536)
        if not data:
            raise ConnectionError(f"the kedge server ended before it was up:\n{self._last_words()}")
        return data

    def _last_words(self) -> str:
        try:
            with open(self._log, "rb") as file:
                file.seek(self._log_begins)
                return file.read().decode("utf-8", "replace")[-4000:].strip() or "it said nothing"
        except OSError as error:
            return f"its log cannot be read: {error}"


class Early:
    """A private server that starts while the user's program is still being imported, where it looks as if that would
    need one. It is taken only if all is then as it was: a program may set variables for the server.

    Example:
        with Early():
            program = importlib.import_module("program")
            server = Early.take() or ServerProcess(private=True)
    """

    _started: tuple[ServerProcess, str, dict[str, str]] | None = None

    def __enter__(self) -> None:
        try:
            if find() is None:
                Early._started = ServerProcess(private=True, wait=False), home(), environment()
        except (Error, OSError):  # whoever needs one is told
            pass

    def __exit__(self, *exception: object) -> None:
        if Early._started is not None:
            Early._started[0].leave()
            Early._started = None

    @classmethod
    def take(cls) -> ServerProcess | None:
        """The one that was started, once it listens; None where there is none for this program as it is now."""
        if cls._started is None or cls._started[1:] != (home(), environment()):
            return None
        server, cls._started = cls._started[0], None
        server.await_ready()
        return server


_owned: set[int] = set()
"""Our ends of the pipes of private servers."""


def _forked() -> None:
    # The child of a fork must not keep its parent's server alive.
    for descriptor in _owned:
        os.close(descriptor)
    _owned.clear()
    Early._started = None


os.register_at_fork(after_in_child=_forked)


def machine_log(directory: str) -> str:
    """The log of the machine's server."""
    return _log_file(directory, "server.log")


def _private_log(directory: str) -> str:
    return _log_file(directory, f"private-{os.getpid()}-{time.monotonic_ns():x}.log")


def _log_file(directory: str, name: str) -> str:
    logs = os.path.join(directory, "logs")
    try:
        for path in (directory, logs):
            os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise unusable(directory, error) from error
    path = os.path.join(logs, name)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    return path


def environment() -> dict[str, str]:
    """Ours, with the place of this very kedge at the end of the path, whatever the server's directory holds."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), here]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}
