"""Whether a server could start with some settings, found out before the one that runs is ended."""

from __future__ import annotations

from contextlib import ExitStack

import psutil

from kedge.server.settings import Settings
from kedge.server.web import context_of, listening
from kedge.wire.transport import split_tcp


def check(settings: Settings, process: int) -> None:
    """ValueError or OSError says what stands against it. The ports of `process`, which will have ended, are free."""
    context_of(settings)
    own = _ports(process)
    wanted = [(settings.host, settings.port or 0), *(split_tcp(address) for address in settings.listen)]
    with ExitStack() as taken:
        for host, port in wanted:
            taken.enter_context(listening(host, 0 if port in own else port))


def _ports(process: int) -> set[int]:
    try:
        connections = psutil.Process(process).net_connections("tcp")
    except (ValueError, psutil.Error):
        return set()
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
