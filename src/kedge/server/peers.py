"""Who is at the other end of a Unix socket, and what code inside of a container may not ask for.

The socket is in every container, since functions call others and use volumes, dicts and queues. Whoever may deploy an
app may run anything as the server's user, and whoever knows a token may come in over TCP: code that is kept apart is
refused both, or it would not be apart. It is also refused what is for people who look after a server: to end what is
not of its app, and to see who else is there doing what. That holds for every process in a container with a pid
namespace of its own. It does not make other apps safe from it: it may still call them, and change the data that they
share.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from kedge.model import protocol as p
from kedge.model.ids import app_of
from kedge.server.chunks import Place

_MOST_PARENTS = 1000
_REFUSED: dict[type, str] = {
    p.AppCreated: "run an app",
    p.AppDeployed: "deploy an app",
    p.AppRolledBack: "roll an app back",
    p.ImageRequested: "build an image",
    p.TokensChanged: "see or change tokens",
}
"""By these it could leave its container."""
_OWN_ONLY: dict[type, str] = {
    p.AppStopped: "stop another app",
    p.ContainerStopRequested: "stop a container of another app",
    p.OutputSubscribed: "see what another app prints",
    p.CallsRequested: "list the calls of functions",
}
"""These it may ask about its own app, if at all. Who knows the id of a call may have its results and cancel it, so
nobody tells it those that it was not given."""


def refusal(message: Any, container: str, place: Callable[[str], Place | None]) -> str:
    """Why code in a container that is kept apart does not get this; empty where it does. `container` may be empty,
    since it need not say where it is; `place` knows them all. Pure."""
    what, why = _REFUSED.get(type(message), ""), ", since it could leave the container that way"
    if isinstance(message, (p.ContainersRequested, p.FunctionsRequested)) and message.secrets:
        what = "see the values of secrets"
    elif isinstance(message, p.SecretsChanged) and message.action in ("replace", "update", "delete"):
        what, why = "change secrets", ""
    elif type(message) in _OWN_ONLY and not _is_own(message, place(container), place):
        what, why = _OWN_ONLY[type(message)], ""
    return what and (
        f"code in a container cannot {what}{why}; do it from outside, or give the app that is to do it "
        'isolation="process"'
    )


def _is_own(message: Any, here: Place | None, place: Callable[[str], Place | None]) -> bool:
    """Whether a message is about the app of the container `here`."""
    if here is None:
        return False
    if isinstance(message, p.ContainerStopRequested):
        other = place(message.container)
        return other is not None and other.app == here.app
    return isinstance(message, (p.AppStopped, p.OutputSubscribed)) and message.app in (here.app, app_of(here.pool))


def process_of(sock: Any) -> int:
    """The process that has connected; 0 where that is not known, or not to be seen from here."""
    if sys.platform != "linux" or sock is None or sock.family != socket.AF_UNIX:
        return 0
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", data)[0])


def is_inside(process: int) -> bool:
    """Whether a process descends from this one and is in another pid namespace: one of a container that is kept apart.
    One that has gone meanwhile is taken for such."""
    if not process:
        return False
    try:
        if os.readlink(f"/proc/{process}/ns/pid") == os.readlink("/proc/self/ns/pid"):
            return False
    except OSError:  # gone, or it lets nobody look: its parents are to be seen
        pass
    own = os.getpid()
    for _ in range(_MOST_PARENTS):
        if process in (0, 1, own):
            return process == own
        try:
            with open(f"/proc/{process}/stat", "rb") as file:
                process = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            return True
    return True
