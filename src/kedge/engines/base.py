"""What the server asks of an engine: make containers exist, end them, and say what happened to them.

An engine decides nothing. It reports facts, each exactly once, through the `report` callback that it was made with:

* `ContainerStarted` when the process of a container exists;
* `ContainerLost` when it is gone, for whatever reason, also where it never came up: the last word about a container;
* `OutputCaptured` for what it wrote, always before its `ContainerLost`;
* `ForkServerReported` for people who ask why containers start the way they do;
* `VolumeAnswered` to each `remount`.

Other engines (namespaces, OCI, Ray) fit behind the same methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kedge.model.protocol import (
    ContainerLost,
    ContainerStarted,
    ForkServerReported,
    OutputCaptured,
    VolumeAnswered,
)
from kedge.model.spec import Launch, VolumeMount

Fact = ContainerStarted | ContainerLost | OutputCaptured | ForkServerReported | VolumeAnswered
Report = Callable[[Fact], None]


class Engine(Protocol):
    """Makes containers exist. All methods are called on the server's event loop and return at once."""

    async def open(self) -> None:
        """Gets ready. OSError where this machine cannot run the engine."""

    def start(self, launch: Launch) -> None:
        """Brings up one container. Answered by ContainerStarted, or by ContainerLost where that failed."""

    def warm(self, launch: Launch) -> None:
        """Prepares for launches like this one, without starting a container. Never fails."""

    def kill(self, container: str, grace_s: float = 0.0) -> None:
        """Ends a container: asks it to leave, and after `grace_s` seconds ends its whole process tree.

        With 0 the tree ends at once. Unknown containers are ignored: they are gone already."""

    def remount(self, container: str, mount: VolumeMount, request: int) -> None:
        """Shows another version of a volume in a living container, at the same place. Answered by VolumeAnswered;
        its `error` begins with `busy` where files of the volume are open."""

    async def close(self) -> None:
        """Ends every container and everything the engine started. Nothing is reported after this."""
