"""Which rungs of the isolation ladder this machine has, found out by trying them.

Everything is tried in a process that is thrown away, and exactly as containers are made: what works here works there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn

from kedge.engines import boot
from kedge.engines.process import runtime_directories
from kedge.model.spec import BUBBLEWRAP, GVISOR, NAMESPACE, OCI, PROCESS, RUNGS, Isolation

if TYPE_CHECKING:
    from kedge.engines.channel import Channel

_PATIENCE_S = 10.0
"""For one tool: what hangs is not there."""
_OWN_FAULT = "the test of isolation failed"


def survey(directory: str = "") -> dict[str, str]:
    """For each rung an empty string, or why containers cannot be isolated that way here. Blocks for some tenths of a
    second, and touches nothing that lives on. `directory` is where containers will write, since not every file system
    can take that; empty: the one for temporary files."""
    if sys.platform != "linux":
        return {PROCESS: "", **dict.fromkeys(RUNGS[1:], f"it needs Linux, and this is {sys.platform}")}
    found = {PROCESS: "", NAMESPACE: _try_namespaces(directory or tempfile.gettempdir())}
    for rung, check in _TOOLS.items():
        found[rung] = check()
        if not found[rung] and found[NAMESPACE]:  # the files of every rung are put together in the same way
            found[rung] = found[NAMESPACE]
    return found


def best(found: Mapping[str, str]) -> str:
    """The rung that containers with images of their own run on, where nobody says otherwise: the second, or the first
    that there is."""
    return NAMESPACE if not found.get(NAMESPACE, "unknown") else PROCESS


def _try_namespaces(directory: str) -> str:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = boot.command(
            sys.executable, boot.PROBE, theirs.fileno(), runtime_directories(), directory, options=["-I", "-S"]
        )
        try:
            ended = subprocess.run(
                arguments,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_PATIENCE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{_OWN_FAULT}: {error}"
        theirs.close()
        said = b""
        while part := ours.recv(4096):
            said += part
    if said == b"ok":
        return ""
    return said.decode(errors="replace") or f"{_OWN_FAULT}: {ended.stderr.decode(errors='replace')[-300:]}"


def main(descriptor: int, directory: str) -> None:
    """In the process that is thrown away: makes a container that does nothing, and says how that went."""
    from kedge.engines import furnisher, namespaces

    with (
        socket.socket(fileno=descriptor) as sock,
        tempfile.TemporaryDirectory(prefix=".probe-", dir=directory) as scratch,
    ):
        step = "namespaces are not allowed here"
        try:
            base = namespaces.make_base()
            step = "pid namespaces are not allowed here"
            maker, channel = furnisher.start(base)
            room, settled = _room(channel)
            step = "a container's files or confinement cannot be made here"
            place = os.path.join(scratch, "container")
            os.mkdir(place)
            isolation = Isolation(rung=NAMESPACE, shares_files=False, hidden=("/tmp",), scratch=place)
            answers, theirs = socket.socketpair()
            channel.send(furnisher.Furnishing(isolation, "kedge-probe"), (room, settled, theirs.fileno()))
            theirs.close()
            reader, writer = os.pipe()
            process = namespaces.branch(base, room)
            if process == 0:
                _settle(namespaces.enter, room, answers.detach(), writer)
            os.close(writer)
            reason = os.read(reader, 1024)
            os.waitpid(process, 0)
            channel.close()
            os.waitpid(maker, 0)
            if reason:
                raise OSError(0, reason.decode(errors="replace"))
            sock.sendall(b"ok")
        except OSError as error:
            text = error.strerror if not error.errno else str(error)
            sock.sendall(f"{step}: {text}{_advice()}".encode())


def _room(channel: Channel) -> tuple[int, int]:
    from kedge.engines.channel import ChannelClosed
    from kedge.engines.furnisher import RoomsWanted

    channel.send(RoomsWanted(1))
    try:
        [made] = channel.receive()
    except ChannelClosed:
        raise OSError(0, "the process that makes rooms died") from None
    if made.error:
        raise OSError(0, made.error)
    room, settled = channel.take(2)
    return room, settled


def _settle(enter: Callable[[int, int], None], room: int, answers: int, writer: int) -> NoReturn:
    try:
        enter(room, answers)
    except OSError as error:
        os.write(writer, (error.strerror or str(error)).encode()[:1000])
    finally:
        os._exit(0)


def _advice() -> str:
    """What usually stands in the way, as far as the machine says."""
    for path, value, text in (
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor keeps user namespaces from users"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "user namespaces are switched off for users"),
        ("/proc/sys/user/max_user_namespaces", "0", "user namespaces are switched off"),
    ):
        try:
            with open(path, encoding="ascii") as file:
                if file.read().strip() == value and os.geteuid() != 0:
                    return f" ({text}: {path} is {value}; a server that runs as root does not need them)"
        except OSError:
            continue
    return ""


# ---------------------------------------------------------------- tools


def _works(*arguments: str) -> str:
    """What is wrong with a command, or an empty string."""
    try:
        ended = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{arguments[0]}: {error}"
    return "" if ended.returncode == 0 else f"{arguments[0]}: {(ended.stderr.strip() or ended.stdout.strip())[-300:]}"


def _bubblewrap() -> str:
    if shutil.which("bwrap") is None:
        return "bwrap is not installed (Debian: apt install bubblewrap)"
    return _works("bwrap", "--unshare-all", "--dev-bind", "/", "/", "--proc", "/proc", "true")


def _oci() -> str:
    if shutil.which("runc") is None and shutil.which("crun") is None:
        return "neither runc nor crun is installed (Debian: apt install runc)"
    return _administrator_only("runc") or _works(shutil.which("runc") or "crun", "--version")


def _gvisor() -> str:
    if shutil.which("runsc") is None:
        return "runsc is not installed (Debian: apt install runsc; or https://gvisor.dev)"
    return _administrator_only("runsc") or _works("runsc", "--version")


def _administrator_only(tool: str) -> str:
    from kedge.engines import namespaces

    allowed = os.geteuid() == 0 and namespaces.is_administrator()
    return "" if allowed else f"{tool} is used by servers that run as root, with CAP_SYS_ADMIN, only"


_TOOLS = {BUBBLEWRAP: _bubblewrap, OCI: _oci, GVISOR: _gvisor}
