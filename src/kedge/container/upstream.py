"""A server of the user's own behind a port of this machine: started once, waited for, looked after.

Containers share the ports of their machine. So a container claims its port before it starts a server there: one that
finds the port taken waits for it, and would rather not come up than pass requests on to somebody else's server.
"""

from __future__ import annotations

import gc
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kedge.container.output import say
from kedge.exception import ExecutionError

FIRST_LOOK_S = 0.005
LONGEST_LOOK_S = 0.1
CONNECT_S = 1.0
"""A server of this machine that takes longer to accept a connection is as good as none."""
TAKEN_HINT_S = 2.0
"""How long a port may be taken until somebody is told."""
LONGEST_COMMAND = 200
"""Characters of a command that a message shows."""
HINT_S = 3.0
"""How long a function may go on while its server answers already, until somebody is told to return."""


class Upstream:
    def __init__(self, port: int, shown: str) -> None:
        self.port = port
        self.host = "127.0.0.1"
        """Where it was found."""
        self._shown = shown
        self._claim: socket.socket | None = None

    def start(self, launch: Callable[[], object], timeout: float) -> None:
        """Calls `launch`, which starts the server, and waits until that accepts connections."""
        returned = threading.Event()
        threading.Thread(target=self._hint, args=(returned,), name="kedge port", daemon=True).start()
        try:
            launch()
        finally:
            returned.set()
        threads, returned_at = threading.active_count(), time.monotonic()
        for _ in _looks(timeout):
            if self.accepts():
                return
            if _is_hopeless(threads):
                break
        raise ExecutionError(self._why_not(timeout, time.monotonic() - returned_at))

    def accepts(self) -> bool:
        """Whether something listens there."""
        for host in dict.fromkeys((self.host, "127.0.0.1", "::1", *_listening(self.port))):
            try:
                socket.create_connection((host, self.port), CONNECT_S).close()
            except OSError:
                continue
            self.host = host
            return True
        return False

    def obituary(self) -> str:
        """What is known of why it does not answer any more."""
        dead = _dead_child()
        return f"; {dead[0]} {dead[1]}" if dead[0] else ""

    def take_port(self, timeout: float) -> None:
        """Waits until the port is free, and makes it ours. Before any code that may start the server."""
        problem, asked_at, told = "", time.monotonic(), False
        for _ in _looks(timeout):
            problem = self._claim_port()
            if not problem:
                return
            if not told and time.monotonic() - asked_at >= TAKEN_HINT_S:
                told = True
                say(f"{self._shown} cannot start its server yet, and waits: {problem}. {self._advice()}")
        raise ExecutionError(
            f"{problem} when {self._shown} was to start its server there, and still after {timeout:g} s. "
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        if self._claim is None and sys.platform == "linux":
            return (
                "Containers share the ports of their machine: use another port, or write max_containers=1 to have one "
                "container"
            )
        return f"`ss -ltnp 'sport = :{self.port}'` names the program that holds it: end that, or use another port"

    def _claim_port(self) -> str:
        """Makes the port ours; else why not."""
        if self._claim is None and sys.platform == "linux":
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0kedge port {self.port}")  # without a file: it ends with its process, however that ends
            except OSError:
                claim.close()
                return f"another container had port {self.port}"
            self._claim = claim
        return f"something else listened on port {self.port}" if self.accepts() else ""

    def _hint(self, returned: threading.Event) -> None:
        """A function that runs the server instead of starting it never returns."""
        while not returned.wait(HINT_S):
            if self.accepts():
                if not returned.wait(HINT_S):
                    say(
                        f"port {self.port} accepts connections, but {self._shown} has not returned: the container "
                        f"cannot answer before it does. Start the server in the background, with subprocess.Popen or "
                        f"in a thread"
                    )
                return

    def _why_not(self, timeout: float, took: float) -> str:
        dead = _dead_child()
        children = _children()
        if dead[0] and not children:
            return (
                f"{dead[0]} {dead[1]} before it listened on port {self.port}, {took:.3g} s after {self._shown} had "
                "returned; what it printed is in the log"
            )
        if dead[0]:
            why = f"{dead[0]} {dead[1]}, and {', '.join(children)} runs; what they printed is in the log"
        elif children:
            why = (
                f"{', '.join(children)} runs. Does it listen on another port, or need more time? Then write "
                f"startup_timeout={timeout * 4:g}"
            )
        else:
            why = "it has started no process that still runs. A server in a thread may need more time: startup_timeout="
        return f"nothing listened on port {self.port} within {timeout:g} s after {self._shown} had returned: {why}"


def _looks(timeout: float) -> Iterator[None]:
    """One pass at once, and others until the time is over."""
    deadline, pause = time.monotonic() + timeout, FIRST_LOOK_S
    yield
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_LOOK_S)
        yield


def _listening(port: int) -> list[str]:
    """Addresses of this machine at which somebody listens on a port."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            address, _, number = line.split()[1].partition(":")
            if line.split()[3] == "0A" and int(number, 16) == port:
                words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                raw = b"".join(words)
                if any(raw):
                    found.append(socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw))
    return found


def _is_hopeless(threads: int) -> bool:
    """Whether all that was started has ended, and badly."""
    return bool(_dead_process(badly=True)) and not _children() and threading.active_count() <= threads


def _dead_child() -> tuple[str, str]:
    """`the process python -m shop (7)` and `exited with code 1`, where a child has ended that nobody has asked for
    yet; else nothing."""
    status = _dead_process()
    if status is None:
        return "", ""
    how = "exited with code" if status.si_code == os.CLD_EXITED else "was ended by signal"
    command = _command(status.si_pid)
    name = f"{command} ({status.si_pid})" if command else _name(status.si_pid)
    return f"the process {name}", f"{how} {status.si_status}"


def _dead_process(badly: bool = False) -> os.waitid_result | None:
    try:
        status = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):
        return None
    return None if status is None or (badly and status.si_status == 0) else status


def _command(process: int) -> str:
    """What a process that has ended was started as: of that, only who started it still knows."""
    known = [one for one in gc.get_objects() if issubclass(type(one), subprocess.Popen) and one.pid == process]
    if not known:
        return ""
    given = known[0].args
    words = [given] if isinstance(given, (str, bytes, os.PathLike)) else list(given)
    text = os.fsdecode(words[0]) if len(words) == 1 else shlex.join(os.fsdecode(word) for word in words)
    return text if len(text) <= LONGEST_COMMAND else f"{text[:LONGEST_COMMAND]}…"


def _children() -> list[str]:
    """Processes that this one has started and that run."""
    found = []
    for thread in Path("/proc/self/task").glob("*/children"):
        try:
            numbers = thread.read_text().split()
        except OSError:
            continue
        found += [_name(int(number)) for number in numbers if _state(int(number)) != "Z"]
    return found


def _name(process: int) -> str:
    try:
        return f"{Path(f'/proc/{process}/comm').read_text().strip()} ({process})"
    except OSError:
        return str(process)


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "Z"
