"""Names of the API that come later: they import, annotate and test with isinstance, and say so when used."""

from __future__ import annotations

from typing import Any, NoReturn

from kedge.exception import UnavailableError
from kedge.sdk import validation
from kedge.sdk.secret import Secret as Secret


def refuse(what: str, instead: str = "") -> NoReturn:
    """UnavailableError: `what` does not exist yet."""
    raise UnavailableError(f"{what} does not exist in this version of kedge yet.{' ' + instead if instead else ''}")


class _Later(type):
    """A class whose every use is refused by name."""

    instead = ""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        refuse(f"kedge.{cls.__name__}", cls.instead)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        refuse(f"kedge.{cls.__name__}.{name}", cls.instead)


def later(name: str, instead: str = "") -> type:
    """A placeholder class."""
    return _Later(
        name, (), {"instead": instead, "__module__": "kedge", "__doc__": "Comes in a later version of kedge."}
    )


PLACEHOLDERS = {
    "CloudBucketMount": "Read and write the bucket with its own client library.",
    "Cluster": "",
    "Environment": "",
    "Probe": "",
    "Sandbox": "",
    "SandboxSnapshot": "",
    "SchedulerPlacement": "",
    "Server": "",
    "Tunnel": "Containers run on this machine: its ports can be reached directly.",
    "Workspace": "",
    "Client": "Programs connect by themselves.",
    "Mount": "Containers see the files of this machine.",
    "build": "Use @kedge.enter() or Image.run_function.",
    "clustered": "",
    "forward": "Containers run on this machine: its ports can be reached directly.",
    "interact": "",
    "sessioned": "",
    "billing": "",
}


class _Named:
    """A value that stands for something kept by name."""

    kind = ""

    def __init__(self, description: str) -> None:
        self.description = description

    def __repr__(self) -> str:
        return f"{self.kind} {self.description}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        refuse(f"kedge.{self.kind}.{name}", _INSTEAD[self.kind])


_INSTEAD = {
    "NetworkFileSystem": "Use kedge.Volume.from_name('NAME', create_if_missing=True).",
}


class Proxy:
    """An address that containers reach the network from. It can be named; containers use that of their machine."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def from_name(cls, name: str, *, environment_name: str | None = None, client: Any = None) -> Proxy:
        """A proxy by name. Nothing is asked, and giving it to a function has no effect but a warning."""
        return cls(validation.name("Proxy.from_name: name", name))

    def __repr__(self) -> str:
        return f"Proxy {self.name!r}"


class NetworkFileSystem(_Named):
    """A shared file system of older programs. It can be named; `kedge.Volume` is what to use instead."""

    kind = "NetworkFileSystem"

    @classmethod
    def from_name(
        cls, name: str, *, environment_name: str | None = None, create_if_missing: bool = False
    ) -> NetworkFileSystem:
        return cls(repr(name))
