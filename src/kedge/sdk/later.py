"""Names of the API that come later: they import, annotate and test with isinstance, and say so when used.

`Secret` and `Volume` can be named (programs do that at import time); passing one on is refused where it is passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from kedge.exception import UnavailableError


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
    "Dict": "Keep shared state in a database or a file.",
    "Environment": "",
    "FilePatternMatcher": "",
    "NetworkFileSystem": "Containers see the files of this machine.",
    "Probe": "",
    "Proxy": "",
    "Queue": "Pass values as arguments and results, or use .map and .spawn.",
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
    "Secret": "Containers have the caller's environment variables; others can be given by env={…}.",
    "Volume": "Containers see the files of this machine.",
}


class Secret(_Named):
    """Environment variables kept apart from code. Can be named; passing it to a function is refused until it exists."""

    kind = "Secret"

    @classmethod
    def from_name(cls, name: str, *, environment_name: str | None = None, required_keys: Sequence[str] = ()) -> Secret:
        return cls(repr(name))

    @classmethod
    def from_dict(cls, env_dict: Mapping[str, str | None] | None = None) -> Secret:
        return cls(f"of a dict with {', '.join(env_dict or {}) or 'nothing'}")

    @classmethod
    def from_dotenv(cls, path: str | None = None, *, filename: str = ".env") -> Secret:
        return cls(f"of {filename}")

    @classmethod
    def from_local_environ(cls, env_keys: Sequence[str]) -> Secret:
        return cls(f"of the variables {', '.join(env_keys)}")


class Volume(_Named):
    """A shared file system. Can be named; passing it to a function, or using it, is refused until it exists."""

    kind = "Volume"

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        version: int | None = None,
    ) -> Volume:
        return cls(repr(name))
