"""How containers come to exist and end: orders to the engine and its supervisor, and their facts; what the shell of the
plane says of connections, nodes and time.
"""

from __future__ import annotations

from kedge.model.gpus import GpuDevice
from kedge.model.protocol.base import Message
from kedge.model.spec import Launch, VolumeMount

# ---------------------------------------------------------------- plane → engine


class StartContainer(Message, frozen=True):
    container: str
    pool: str
    node: str = ""
    devices: list[int] = []


class KillContainer(Message, frozen=True):
    """Ends a container's process tree after `grace_s` seconds, at once with 0."""

    container: str
    grace_s: float = 0.0


# ---------------------------------------------------------------- engine → plane


class ContainerStarted(Message, frozen=True):
    container: str
    process: int
    how: str = "fork"
    """fork or spawn."""


class ContainerLost(Message, frozen=True):
    """The process is gone, for whatever reason. With `exit_code` 0 it has left by itself."""

    container: str
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    peak_memory: int | None = None
    """MiB that its process tree has used at most, where that was measured."""
    blameless: bool = False
    """Its end had nothing to do with what ran in it: whatever held it up has died."""


# ---------------------------------------------------------------- shell → plane


class ContainerDisconnected(Message, frozen=True):
    """From the shell: the connection of a container is gone while its process may still be there."""

    container: str
    reason: str = ""


class NodeJoined(Message, frozen=True):
    """A machine that can hold containers. `gpus` counts further devices by name, of which nothing else is known."""

    node: str
    cpu: float
    memory: int
    gpus: dict[str, int] = {}
    devices: tuple[GpuDevice, ...] = ()


class NodeLost(Message, frozen=True):
    node: str


class VramMeasured(Message, frozen=True):
    """GPU memory of containers that share devices, in MiB: the most that the processes of each use of one device."""

    used: dict[str, int]


class TimePassed(Message, frozen=True):
    """Nothing happened but time: the next deadline is due."""


# ---------------------------------------------------------------- server → supervisor (see engines.process)


class ContainerLaunched(Message, frozen=True):
    """To the supervisor: bring this container up."""

    launch: Launch


class ForkServerWarmed(Message, frozen=True):
    """To the supervisor: have a fork server ready for launches like this one."""

    launch: Launch


class VolumeRemounted(Message, frozen=True):
    """To the supervisor: show this version of a volume in a living container, in the place of the one that is there.
    Answered by VolumeAnswered."""

    request: int
    container: str
    mount: VolumeMount


class SupervisorStopped(Message, frozen=True):
    """To the supervisor: kill everything and leave."""


# ---------------------------------------------------------------- supervisor → server


class ForkServerReported(Message, frozen=True):
    """From the supervisor: a fork server is up, or why its environment is started fresh instead."""

    key: str
    process: int
    safe: bool = True
    reason: str = ""
    seconds: float = 0.0


class VolumeAnswered(Message, frozen=True):
    """From the supervisor; `error` says why the mount is as it was (`busy`: files of it are open)."""

    request: int
    error: str = ""
