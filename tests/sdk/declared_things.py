"""A user's module as containers import it: functions in a loop, classes with hooks and parameters, two apps."""

from __future__ import annotations

from collections.abc import Iterator

import kedge

app = kedge.App("declared")
other = kedge.App("other")
log: list[str] = []


@app.function()
def square(x: int) -> int:
    return x * x


for _factor in (2, 3):

    @app.function(name=f"times-{_factor}")
    def times(x: int, factor: int = _factor) -> int:
        return x * factor


def _shared(target: kedge.App, result: str) -> None:
    def shared() -> str:
        return result

    shared.__qualname__ = "shared"
    target.function()(shared)


_shared(app, "of declared")
_shared(other, "of other")


@kedge.function()
def implicit(x: int) -> int:
    return -x


class Base:
    prefix: str = kedge.parameter(default="hello")

    @kedge.enter()
    def base_enter(self) -> None:
        log.append("base enter")

    @kedge.exit()
    def base_exit(self) -> None:
        log.append("base exit")

    @kedge.method()
    def greet(self, name: str) -> str:
        return f"{self.prefix} {name}"


@app.cls()
class Greeter(Base):
    times: int = kedge.parameter(default=1)
    mood: str = kedge.parameter(default="plain", init=False)

    def __init__(self) -> None:
        self.made_with = self.times

    @kedge.enter()
    async def connect(self) -> None:
        log.append("connect")

    @kedge.exit()
    def close(self) -> None:
        log.append("close")

    @kedge.method()
    def shout(self, name: str) -> str:
        return self.greet.local(name).upper() * self.times

    @kedge.method()
    def plainly(self, name: str) -> str:
        return self.greet(name)  # type: ignore[operator, no-any-return]

    @kedge.method()
    async def whisper(self, name: str) -> str:
        return f"{self.prefix} {name}".lower()

    @kedge.method()
    def letters(self, name: str) -> Iterator[str]:
        yield from name
